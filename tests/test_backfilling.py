"""Backfill: a job for each fire of the past that has had none, once."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import pytest

from duetime.commands import ScheduleChange
from duetime.errors import InvalidRequest, ScheduleNotFound, TooManyFires
from duetime.settings import DatabaseUrl

from .services import EVERY_SECOND, a_service, calls, new
from .waiting import eventually

HOURLY = {"type": "cron", "expression": "0 * * * *"}
START = datetime(2026, 6, 1, tzinfo=UTC)
DAY = (START, START + timedelta(days=1))


async def ended(connection: asyncpg.Connection, schedule_id: str = "s") -> dict[datetime, Any]:
    """Return the fires of a schedule when none is pending."""
    found = await connection.fetch(
        "select * from duetime.fires where schedule_id = $1 and fire_time < now() - interval '1 day'", schedule_id
    )
    assert all(row["state"] != "pending" for row in found)
    return {row["fire_time"]: row for row in found}


async def test_every_fire_of_the_range_runs_once_however_often_it_is_asked(
    database: DatabaseUrl, connection: asyncpg.Connection
) -> None:
    async with a_service(database) as service:
        await service.add(new(id="s", trigger=HOURLY, paused=True, args=[7]))
        told = await service.backfill("s", *DAY, dry_run=True)
        assert (told.fires, told.already, told.made, told.dry_run) == (24, 0, 24, True)
        assert told.first[:2] == [START, START + timedelta(hours=1)]
        assert await connection.fetchval("select count(*) from duetime.fires") == 0
        both = await asyncio.gather(service.backfill("s", *DAY), service.backfill("s", *DAY))
        assert sum(each.made for each in both) == 24
        fires = await eventually(lambda: ended(connection))
        assert {fire["state"] for fire in fires.values()} == {"succeeded"}
        assert sorted(fires) == [START + timedelta(hours=n) for n in range(24)]
        assert calls == [(7, "")] * 24
        again = await service.backfill("s", *DAY)
        assert (again.fires, again.already, again.made) == (24, 24, 0)
        assert len(calls) == 24


async def test_what_was_missed_skipped_or_coalesced_is_made_up_for_and_nothing_else(
    database: DatabaseUrl, connection: asyncpg.Connection
) -> None:
    states = ["missed", "skipped", "coalesced", "succeeded", "failed", "cancelled", "abandoned"]
    async with a_service(database) as service:
        await service.add(new(id="s", trigger=HOURLY, paused=True))
        await connection.executemany(
            "insert into duetime.fires (schedule_id, fire_time, task_id, state) values ('s', $1, 't', $2)",
            [(START + timedelta(hours=n), state) for n, state in enumerate(states)],
        )
        made = await service.backfill("s", START, START + timedelta(hours=len(states)))
        assert (made.made, made.already) == (3, 4)
        fires = await eventually(lambda: ended(connection))
        found = [fires[START + timedelta(hours=n)] for n in range(len(states))]
        assert [row["state"] for row in found] == ["succeeded"] * 3 + states[3:]
        assert found[0]["reason"] == "backfilled by request; it was missed before"


async def test_a_fire_from_before_a_rename_is_not_made_again(
    database: DatabaseUrl, connection: asyncpg.Connection
) -> None:
    async with a_service(database) as service:
        await service.add(new(id="s", trigger=HOURLY, paused=True))
        await service.backfill("s", *DAY)
        await eventually(lambda: ended(connection))
        await service.update("s", ScheduleChange(id="t"))
        assert (await service.backfill("t", *DAY, dry_run=True)).made == 0
        assert (await service.backfill("t", *DAY)).made == 0


async def test_a_million_fires_are_refused_with_their_number(database: DatabaseUrl) -> None:
    async with a_service(database) as service:
        await service.add(new(id="s", trigger={**EVERY_SECOND, "start": "2026-01-01T00:00:00Z"}, paused=True))
        with pytest.raises(TooManyFires, match="1,000,000"):
            await service.backfill("s", START, START + timedelta(seconds=1_000_000))
        await service.add(new(id="t", trigger={"type": "cron", "expression": "*/2 * * * * *"}, paused=True))
        with pytest.raises(TooManyFires, match="43,200"):
            await service.backfill("t", *DAY)


@pytest.mark.parametrize(
    ("start", "end", "overlap"),
    [
        (START, START, "buffer_all"),
        (START + timedelta(1), START, "buffer_all"),
        (START, datetime(2200, 1, 1, tzinfo=UTC), "buffer_all"),
        (START, START + timedelta(1), "bufer_all"),
    ],
)
async def test_a_range_or_a_policy_that_is_none_is_refused(
    database: DatabaseUrl, start: datetime, end: datetime, overlap: str
) -> None:
    async with a_service(database) as service:
        await service.add(new(id="s", trigger=HOURLY))
        with pytest.raises(InvalidRequest):
            await service.backfill("s", start, end, overlap=overlap)
        with pytest.raises(ScheduleNotFound):
            await service.backfill("nothing", *DAY)


async def test_the_policy_rides_with_the_jobs(database: DatabaseUrl, connection: asyncpg.Connection) -> None:
    async with a_service(database, role="scheduler") as service:
        await service.add(new(id="s", trigger=HOURLY, paused=True))
        made = await service.backfill("s", *DAY, overlap="allow")
        assert made.overlap == "allow"
        found = await connection.fetch("select metadata ->> 'duetime.overlap' from duetime.jobs")
        assert {row[0] for row in found} == {"allow"}
        order = await connection.fetch("select fire_time from duetime.jobs order by run_at")
        assert [row[0] for row in order] == sorted(row[0] for row in order)
