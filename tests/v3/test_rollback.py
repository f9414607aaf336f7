"""Going back: rows as they were, due at the first fire that Duetime has not made, and nothing fired by both."""

from __future__ import annotations

import asyncio
import pickletools
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from duetime.errors import V3MigrationUnfinished, V3NotChangeable
from duetime.settings import DatabaseUrl
from duetime.v3.cutover import cutover
from duetime.v3.model import V3Row
from duetime.v3.outcomes import Result
from duetime.v3.rollback import rollback
from duetime.v3.standing import status

from ..store.parts import node, running, tasks
from ..waiting import eventually
from .moving import (
    Crash,
    V3Side,
    a_row,
    carrier,
    crashing,
    instant,
    migrated,
    preparing,
    schedules,
    v3_side,
)
from .stored import stored_rows


async def carry(database: DatabaseUrl, side: V3Side, *rows: V3Row) -> None:
    await side.put(rows)
    async with carrier(database) as scheduler:
        result = await cutover(side.url, scheduler, preparing(scheduler), v3_stopped=True)
    assert result.is_complete


async def go_back(database: DatabaseUrl, side: V3Side, **options: Any) -> Result:
    async with carrier(database) as scheduler:
        return await rollback(side.url, scheduler, **{"wait": 0.0, **options})


def a_real_row() -> V3Row:
    """Return an hourly job of a real release, whose pickle says what its column does."""
    return next(
        stored.row
        for stored in stored_rows("3.11.3")
        if stored.row.id.startswith("interval") and stored.row.next_run_time is not None
    )


async def test_a_dry_run_says_what_would_go_back_and_changes_nothing(
    database: DatabaseUrl, connection: asyncpg.Connection, side: V3Side
) -> None:
    await carry(database, side, a_row("a"), a_row("b"))
    before = await schedules(connection)
    result = await go_back(database, side, dry_run=True)
    assert result.counts == {"would_return": 2}
    assert await schedules(connection) == before
    assert await side.rows() == {}


async def test_a_job_that_has_fired_here_is_due_at_its_next_fire_there(
    database: DatabaseUrl, connection: asyncpg.Connection, side: V3Side
) -> None:
    row = a_real_row()
    await carry(database, side, row)
    later = instant(row.next_run_time or 0.0) + timedelta(days=3, microseconds=5)
    await connection.execute("update duetime.schedules set next_fire_time = $1", later)
    assert (await go_back(database, side)).counts == {"returned": 1}
    back = (await side.rows())[row.id]
    assert instant(back.next_run_time or 0.0) == later
    assert back.job_state != row.job_state
    assert [*pickletools.genops(back.job_state)]
    assert not await schedules(connection)
    noted = (await migrated(connection))[row.id]
    assert (noted["state"], noted["job_state"]) == ("returned", row.job_state)


async def test_a_job_whose_pickle_cannot_be_given_the_time_goes_on_here(
    database: DatabaseUrl, connection: asyncpg.Connection, side: V3Side
) -> None:
    await carry(database, side, a_row("a"))
    later = datetime.now(UTC) + timedelta(days=3)
    await connection.execute("update duetime.schedules set next_fire_time = $1", later)
    result = await go_back(database, side)
    assert result.counts == {"unmovable": 1}
    assert "not a whole pickle" in result.rows[0].text
    assert await side.rows() == {}
    stored = (await schedules(connection))["a"]
    assert (stored["paused"], stored["pause_reason"], stored["next_fire_time"]) == (False, None, later)


async def test_a_schedule_that_was_changed_since_stays(
    database: DatabaseUrl, connection: asyncpg.Connection, side: V3Side
) -> None:
    await carry(database, side, a_row("a"), a_row("b"))
    async with carrier(database) as scheduler:
        await scheduler.pause_schedule("a")
        await scheduler.unpause_schedule("a")
    result = await go_back(database, side)
    assert result.counts == {"changed": 1, "returned": 1}
    assert (await schedules(connection)).keys() == {"a"}
    assert (await side.rows()).keys() == {"b"}


async def test_a_schedule_that_was_removed_here_is_not_brought_back(database: DatabaseUrl, side: V3Side) -> None:
    await carry(database, side, a_row("a"))
    async with carrier(database) as scheduler:
        await scheduler.remove_schedule("a")
    result = await go_back(database, side)
    assert result.counts == {"removed": 1}
    assert await side.rows() == {}


async def test_what_has_fired_for_the_last_time_is_not_brought_back(
    database: DatabaseUrl, connection: asyncpg.Connection, side: V3Side
) -> None:
    ran = []

    def work() -> None:
        ran.append(1)

    await carry(database, side, a_row("once", -1), a_row("once more", 3600))
    async with running(node(database, tasks(work))):
        await eventually(lambda: ran)
        await eventually(lambda: _is_empty(connection, "jobs"))
    result = await go_back(database, side)
    assert result.counts == {"finished": 1, "returned": 1}
    assert (await side.rows()).keys() == {"once more"}
    assert len(ran) == 1


async def test_a_job_that_runs_is_waited_for_and_no_other_is_begun(
    database: DatabaseUrl, connection: asyncpg.Connection, side: V3Side
) -> None:
    ended = asyncio.Event()
    began: list[int] = []

    async def work() -> None:
        began.append(1)
        await ended.wait()

    row = replace(a_real_row(), id="busy")
    await carry(database, side, row)
    due = datetime.now(UTC)
    await connection.execute("update duetime.schedules set next_fire_time = $1", due)
    async with running(node(database, tasks(work))):
        await eventually(lambda: began)
        result = await go_back(database, side, wait=0.3)
        assert result.counts == {"busy": 1}
        stored = (await schedules(connection))["busy"]
        assert (stored["paused"], stored["pause_reason"]) == (False, None)
        assert await side.rows() == {}

        under_way = asyncio.create_task(go_back(database, side, wait=20))
        await eventually(lambda: _is_held(connection))
        ended.set()
        assert (await under_way).counts == {"returned": 1}
    assert len(began) == 1
    assert instant((await side.rows())["busy"].next_run_time or 0.0) > due


async def _is_held(connection: asyncpg.Connection) -> bool:
    return bool(await connection.fetchval("select paused from duetime.schedules"))


async def _is_empty(connection: asyncpg.Connection, table: str) -> bool:
    return not await connection.fetchval(f"select count(*) from duetime.{table}")  # noqa: S608


async def test_a_row_that_the_application_has_added_again_is_not_written_over(
    database: DatabaseUrl, connection: asyncpg.Connection, side: V3Side
) -> None:
    await carry(database, side, a_row("a"), a_row("b"))
    again = replace(a_row("a"), job_state=b"added again")
    await side.put([again])
    result = await go_back(database, side)
    assert result.counts == {"taken": 1, "returned": 1}
    assert (await side.rows())["a"] == again
    assert (await schedules(connection))["a"]["paused"] is False


async def test_only_the_jobs_that_are_named_go_back(database: DatabaseUrl, side: V3Side) -> None:
    await carry(database, side, a_row("a"), a_row("b"))
    assert (await go_back(database, side, ids=["b"])).counts == {"returned": 1}
    assert (await side.rows()).keys() == {"b"}


async def test_what_has_gone_back_can_be_carried_over_once_more(
    database: DatabaseUrl, connection: asyncpg.Connection, side: V3Side
) -> None:
    row = a_row("a")
    for _ in range(3):
        await carry(database, side, *([] if await side.rows() else [row]))
        assert (await migrated(connection))["a"]["state"] == "done"
        assert (await go_back(database, side)).counts == {"returned": 1}
        assert await side.rows() == {"a": row}


async def test_a_cut_over_waits_for_the_end_of_the_way_back(
    database: DatabaseUrl, side: V3Side, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the steps of going back, only going back knows how to go on."""
    await carry(database, side, a_row("a"))
    at = 0
    while True:
        at += 1
        with crashing(monkeypatch, at), suppress(Crash):
            await go_back(database, side)
        async with carrier(database) as scheduler:
            if (await status(side.url, scheduler)).under_way:
                break
    async with carrier(database) as scheduler:
        with pytest.raises(V3MigrationUnfinished, match="duetime migrate v3 rollback"):
            await cutover(side.url, scheduler, preparing(scheduler))
    assert (await go_back(database, side)).is_complete


async def test_without_permission_to_write_nothing_is_begun(
    database: DatabaseUrl, connection: asyncpg.Connection, tmp_path: Path
) -> None:
    role = f"eraser_{database.database}"
    async with v3_side("postgresql", database, tmp_path) as side:
        await carry(database, side, a_row("a"))
        await side.run(f"create role {role} login password 'eraser'")
        await side.run(f"grant select, update, delete on apscheduler_jobs to {role}")
        other = DatabaseUrl.parse(side.url)
        try:
            eraser = V3Side(replace(other, user=role, password="eraser").text, database=other, path=None)
            with pytest.raises(V3NotChangeable, match="insert"):
                await go_back(database, eraser)
        finally:
            await side.run(f"drop owned by {role}")
            await side.run(f"drop role {role}")
    assert (await migrated(connection))["a"]["state"] == "done"


async def test_it_says_how_far_it_has_come(database: DatabaseUrl, side: V3Side) -> None:
    await carry(database, side, a_row("a"), a_row("b"))
    await go_back(database, side, ids=["b"])
    async with carrier(database) as scheduler:
        standing = await status(side.url, scheduler)
    assert standing.record() == {
        "source": standing.source,
        "complete": False,
        "counts": {"done": 1, "returned": 1},
        "left_in_v3": 1,
        "under_way": 0,
        "added_again": [],
        "other_sources": [],
    }
