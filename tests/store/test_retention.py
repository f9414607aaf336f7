"""How long history is kept, and that an instant is not fired again because its row is gone."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import pytest

from duetime.settings import DatabaseUrl, Settings

from ..services import a_service, calls, new
from ..waiting import eventually
from .parts import a_store

NOON = datetime(2026, 6, 1, 12, tzinfo=UTC)
DAILY = {"type": "cron", "expression": "0 12 * * *"}


async def fill(connection: asyncpg.Connection, schedule_id: str, days: int, *, exists: bool = True) -> None:
    """Store a fire and a run of each of the last days, the latest of this moment."""
    if exists:
        await connection.execute(
            "insert into duetime.schedules (id, task_id, trigger, args, kwargs, coalesce, job_executor, revision,"
            " paused, next_fire_time)"
            " values ($1, 't', '', '', '', 'latest', 'auto', gen_random_uuid(), true, '2100-01-01')",
            schedule_id,
        )
    await connection.execute(
        """
        with made as (
            insert into duetime.fires (schedule_id, fire_time, task_id, state, job_id, created_at, finished_at)
            select $1, now() - n * interval '1 day', 't', 'succeeded', gen_random_uuid(), now() - n * interval '1 day',
                now() - n * interval '1 day'
            from generate_series(0, $2 - 1) n
            returning *
        )
        insert into duetime.runs (job_id, attempt, schedule_id, fire_time, task_id, finished_at, outcome)
        select job_id, 1, schedule_id, fire_time, 't', finished_at, 'success' from made order by finished_at
        """,
        schedule_id,
        days,
    )


async def left(connection: asyncpg.Connection, schedule_id: str) -> tuple[int, int]:
    """Return how many fires and runs of a schedule there are."""
    row = await connection.fetchrow(
        "select (select count(*) from duetime.fires where schedule_id = $1),"
        " (select count(*) from duetime.runs where schedule_id = $1)",
        schedule_id,
    )
    return tuple(row)


async def own(connection: asyncpg.Connection, schedule_id: str, **options: Any) -> None:
    for name, value in options.items():
        await connection.execute(
            "update duetime.schedules set metadata = metadata || jsonb_build_object($2::text, $3::bigint)"
            " where id = $1",
            schedule_id,
            f"duetime.{name}",
            value,
        )


async def cleaned(database: DatabaseUrl, **limits: Any) -> None:
    async with a_store(database, **limits) as store:
        await store.cleanup()


async def test_without_limits_everything_stays(database: DatabaseUrl, connection: asyncpg.Connection) -> None:
    await fill(connection, "s", 50)
    await cleaned(database)
    assert await left(connection, "s") == (50, 50)


async def test_what_is_too_old_goes_in_batches_and_the_rest_stays(
    database: DatabaseUrl, connection: asyncpg.Connection
) -> None:
    await fill(connection, "s", 2500)
    await fill(connection, "gone", 30, exists=False)
    await cleaned(database, history_max_age=timedelta(days=10, hours=1))
    assert await left(connection, "s") == (11, 11)
    assert await left(connection, "gone") == (11, 11)


async def test_what_is_too_much_goes_the_oldest_first(database: DatabaseUrl, connection: asyncpg.Connection) -> None:
    for number in range(600):
        await connection.execute(
            "insert into duetime.fires (schedule_id, fire_time, task_id, state) values ($1, now(), 't', 'succeeded')",
            f"few-{number}",
        )
    await fill(connection, "much", 2500)
    await fill(connection, "few", 5)
    await cleaned(database, history_max_fires=7)
    assert await left(connection, "much") == (7, 7)
    assert await left(connection, "few") == (5, 5)
    oldest = await connection.fetchval("select min(fire_time) > now() - interval '7 days' from duetime.fires")
    assert oldest
    assert await connection.fetchval("select count(*) from duetime.fires") == 612


async def test_a_schedule_says_for_itself_how_long_its_history_is_kept(
    database: DatabaseUrl, connection: asyncpg.Connection
) -> None:
    for name in ("longer", "shorter", "fewer", "more"):
        await fill(connection, name, 40)
    await own(connection, "longer", history_max_age=30 * 86_400 + 3600)
    await own(connection, "shorter", history_max_age=3 * 86_400 + 3600)
    await own(connection, "fewer", history_max_fires=2)
    await own(connection, "more", history_max_fires=15, history_max_age=10**9)
    await cleaned(database, history_max_age=timedelta(days=20, hours=1), history_max_fires=10)
    assert (await left(connection, "longer"))[0] == 10  # the node's number holds, for what it does not say itself
    assert await left(connection, "shorter") == (4, 4)
    assert await left(connection, "fewer") == (2, 2)
    assert await left(connection, "more") == (15, 15)


async def test_what_has_not_ended_stays_however_old_it_is(
    database: DatabaseUrl, connection: asyncpg.Connection
) -> None:
    await fill(connection, "s", 5)
    await connection.execute("update duetime.fires set state = 'pending', finished_at = null")
    await cleaned(database, history_max_age=timedelta(hours=1), history_max_fires=1)
    assert (await left(connection, "s"))[0] == 5


async def test_an_instant_is_not_fired_again_because_its_row_is_gone(
    database: DatabaseUrl, connection: asyncpg.Connection
) -> None:
    async with a_service(database, history_max_age=60) as service:
        await service.add(new(id="s", trigger=DAILY, paused=True))
        day = (NOON - timedelta(hours=1), NOON + timedelta(hours=1))
        assert (await service.backfill("s", *day)).made == 1
        await eventually(lambda: calls)
        await eventually(lambda: nothing_pending(connection))
        await connection.execute("update duetime.fires set created_at = $1, finished_at = $1", NOON)
        await service._store.cleanup()
        assert await connection.fetchval("select count(*) from duetime.fires") == 0
        again = await service.backfill("s", *day)
        assert (again.fires, again.already, again.made) == (1, 1, 0)
        explanation = await service.explain("s", NOON)
        assert explanation.answer == "history_deleted"
        assert len(calls) == 1


async def test_a_schedule_shows_how_long_its_history_is_kept(database: DatabaseUrl) -> None:
    """By its own options, or by the settings of the node that is asked."""
    async with a_service(database, history_max_age=timedelta(hours=1), history_max_fires=500) as service:
        for own, kept in ({}, (3600, 500)), ({"history_max_age": 60, "history_max_fires": 7}, (60, 7)):
            options = (await service.add(new(trigger=DAILY, options=own))).options
            assert (options["history_max_age"], options["history_max_fires"]) == kept


async def nothing_pending(connection: asyncpg.Connection) -> bool:
    return bool(await connection.fetchval("select not exists (select from duetime.fires where state = 'pending')"))


async def test_the_release_of_a_fire_below_the_floor_makes_no_job(
    database: DatabaseUrl, connection: asyncpg.Connection
) -> None:
    async with a_service(database) as service:
        await service.add(new(id="s", trigger={"type": "date", "run_at": NOON.isoformat()}, paused=True))
        await service.add(new(id="t", trigger={"type": "date", "run_at": NOON.isoformat()}, paused=True))
        await connection.execute(
            "insert into duetime.history_floors values ('s', $1, now())", NOON + timedelta(seconds=1)
        )
        await service._scheduler.unpause_schedule("s")
        await service._scheduler.unpause_schedule("t")
        await eventually(lambda: calls)
        await eventually(
            lambda: connection.fetchval(
                "select count(*) = 2 from duetime.schedules where next_fire_time is null and acquired_by is null"
            )
        )
        found = await connection.fetch("select schedule_id from duetime.fires")
        assert [row["schedule_id"] for row in found] == ["t"]
        assert len(calls) == 1


async def test_the_floor_goes_when_nothing_can_ask_for_it_any_more(
    database: DatabaseUrl, connection: asyncpg.Connection
) -> None:
    await fill(connection, "s", 3)
    await cleaned(database, history_max_age=timedelta(hours=1))
    assert await connection.fetchval("select count(*) from duetime.history_floors") == 1
    await connection.execute("delete from duetime.schedules")
    await cleaned(database, history_max_age=timedelta(hours=1))
    assert await connection.fetchval("select count(*) from duetime.history_floors") == 1
    await connection.execute("update duetime.history_floors set updated_at = now() - interval '2 hours'")
    await cleaned(database, history_max_age=timedelta(hours=1))
    assert await connection.fetchval("select count(*) from duetime.history_floors") == 0


async def test_the_last_thing_that_was_done_to_a_schedule_stays(
    database: DatabaseUrl, connection: asyncpg.Connection
) -> None:
    async with a_service(database) as service:
        await service.add(new(id="s"))
        for verb in (service.pause, service.resume, service.pause):
            await verb("s")
        await service.add(new(id="t"))
        await service.pause("t")
        await service.remove("t")
    await connection.execute("update duetime.schedule_changes set at = now() - interval '1 day'")
    await cleaned(database, history_max_age=timedelta(hours=1))
    found = await connection.fetch("select schedule_id, change from duetime.schedule_changes")
    assert [tuple(row) for row in found] == [("s", "paused")]


@pytest.mark.parametrize(("given", "kept"), [("0", None), ("3600", timedelta(hours=1)), (None, timedelta(days=90))])
def test_the_settings_say_how_long(monkeypatch: pytest.MonkeyPatch, given: str | None, kept: timedelta | None) -> None:
    if given is not None:
        monkeypatch.setenv("DUETIME_HISTORY_MAX_AGE", given)
    assert Settings().history_max_age == kept
