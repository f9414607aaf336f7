"""Carrying rows over: exactly once, wherever it is interrupted, and never while v3 may have them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import asyncpg
import attrs
import pytest

from duetime.errors import SourceUnavailable, V3MigrationRunning, V3NotChangeable
from duetime.settings import DatabaseUrl
from duetime.store.driver import StoreConnection
from duetime.v3.cutover import Prepared, cutover
from duetime.v3.model import V3Row
from duetime.v3.outcomes import Result
from duetime.v3.rollback import rollback
from duetime.v3.standing import status

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


@pytest.fixture
async def same(database: DatabaseUrl, tmp_path: Path) -> AsyncIterator[V3Side]:
    """A table of v3 in Duetime's database."""
    async with v3_side("same", database, tmp_path) as side:
        yield side


async def carry(
    database: DatabaseUrl,
    side: V3Side,
    *,
    left: tuple[str, ...] = (),
    has_read: asyncio.Event | None = None,
    **options: Any,
) -> Result:
    """Carry over; ``has_read`` is set once the first rows have been read."""
    async with carrier(database) as scheduler:
        planned = preparing(scheduler, left=left)

        async def prepare(rows: Sequence[V3Row]) -> Sequence[Prepared]:
            if has_read is not None:
                has_read.set()
            return await planned(rows)

        return await cutover(side.url, scheduler, prepare, **{"wait": 0.0, "batch": 2, **options})


async def go_back(database: DatabaseUrl, side: V3Side, **options: Any) -> Result:
    async with carrier(database) as scheduler:
        return await rollback(side.url, scheduler, **{"wait": 0.0, "batch": 2, **options})


ROWS = (a_row("a"), a_row("b", 7200.5), a_row("once", 86_400), a_row("paused", None), a_row("ü'\"; drop table x"))

FEW = (ROWS[0], ROWS[2], ROWS[3])


async def test_a_row_becomes_a_schedule_that_is_due_when_v3_would_have_been(
    database: DatabaseUrl, connection: asyncpg.Connection, side: V3Side
) -> None:
    await side.put(ROWS)
    result = await carry(database, side)
    assert result.is_complete
    assert result.counts == {"carried": len(ROWS)}
    assert await side.rows() == {}
    stored, noted = await schedules(connection), await migrated(connection)
    for row in ROWS:
        assert (noted[row.id]["next_run_time"], noted[row.id]["job_state"]) == (row.next_run_time, row.job_state)
        assert noted[row.id]["state"] == "done"
        assert stored[row.id]["paused"] == (row.next_run_time is None)
        assert stored[row.id]["revision"] == noted[row.id]["revision"]
        if row.next_run_time is not None:
            assert stored[row.id]["next_fire_time"] == instant(row.next_run_time)
            assert stored[row.id]["pause_reason"] is None


async def test_what_a_person_must_look_at_stays_in_v3(
    database: DatabaseUrl, connection: asyncpg.Connection, side: V3Side
) -> None:
    await side.put(ROWS)
    result = await carry(database, side, left=("b",))
    assert not result.is_complete
    assert await side.rows() == {"b": ROWS[1]}
    assert "b" not in await schedules(connection)
    assert "b" not in await migrated(connection)


async def test_a_dry_run_changes_nothing(database: DatabaseUrl, connection: asyncpg.Connection, side: V3Side) -> None:
    await side.put(ROWS)
    result = await carry(database, side, dry_run=True)
    assert result.counts == {"would_carry": len(ROWS)}
    assert await side.rows() == {row.id: row for row in ROWS}
    assert not await schedules(connection)
    assert not await migrated(connection)


async def test_only_the_jobs_that_are_named_are_carried_over(database: DatabaseUrl, side: V3Side) -> None:
    await side.put(ROWS)
    result = await carry(database, side, ids=["b", "nobody"])
    assert result.counts == {"carried": 1}
    assert (await side.rows()).keys() == {row.id for row in ROWS} - {"b"}


# -- v3 may be at work on it -------------------------------------------------------------------------------------------


async def test_a_row_that_is_due_is_left_to_v3(
    database: DatabaseUrl, connection: asyncpg.Connection, side: V3Side
) -> None:
    due, soon = a_row("due", -1), a_row("soon", 0.3)
    await side.put([due, soon, a_row("later")])
    result = await carry(database, side, margin=5)
    assert result.counts == {"due": 2, "carried": 1}
    assert await side.rows() == {"due": due, "soon": soon}
    assert (await schedules(connection)).keys() == {"later"}
    assert "--v3-stopped" in result.rows[-1].text


async def test_a_row_that_is_due_is_carried_over_once_v3_has_moved_it_on(
    database: DatabaseUrl, connection: asyncpg.Connection, side: V3Side
) -> None:
    due = a_row("due", -1)
    await side.put([due])
    has_read = asyncio.Event()
    under_way = asyncio.create_task(carry(database, side, wait=20, has_read=has_read))
    await eventually(has_read.is_set)
    moved = replace(due, next_run_time=time.time() + 3600, job_state=b"moved on")
    await side.run(
        "update apscheduler_jobs set next_run_time = ?, job_state = ? where id = ?",
        moved.next_run_time,
        moved.job_state,
        "due",
    )
    result = await under_way
    assert due.next_run_time is not None
    assert moved.next_run_time is not None
    assert result.counts == {"carried": 1}
    assert (await migrated(connection))["due"]["job_state"] == b"moved on"
    assert (await migrated(connection))["due"]["in_flight"] == [instant(due.next_run_time)]
    assert (await schedules(connection))["due"]["next_fire_time"] == instant(moved.next_run_time)
    assert result.in_flight == {"due": [instant(due.next_run_time).isoformat()]}


async def test_a_last_fire_that_v3_makes_meanwhile_is_recorded_and_not_made_again(
    database: DatabaseUrl, connection: asyncpg.Connection, side: V3Side
) -> None:
    due = a_row("once", -1)
    await side.put([due])
    has_read = asyncio.Event()
    under_way = asyncio.create_task(carry(database, side, wait=20, has_read=has_read))
    await eventually(has_read.is_set)
    await side.run("delete from apscheduler_jobs where id = 'once'")
    result = await under_way
    assert result.counts == {"ran_in_v3": 1}
    assert not await schedules(connection)
    noted = (await migrated(connection))["once"]
    assert (noted["state"], noted["job_state"]) == ("left", due.job_state)


async def test_with_v3_stopped_what_is_due_is_carried_over_and_due_here(
    database: DatabaseUrl, connection: asyncpg.Connection, side: V3Side
) -> None:
    due = a_row("due", -60)
    await side.put([due])
    result = await carry(database, side, v3_stopped=True)
    assert due.next_run_time is not None
    assert result.counts == {"carried": 1}
    assert (await schedules(connection))["due"]["next_fire_time"] == instant(due.next_run_time)


async def test_a_row_that_changes_although_v3_is_said_to_be_stopped_ends_the_run(
    database: DatabaseUrl, connection: asyncpg.Connection, side: V3Side
) -> None:
    await side.put([a_row("a")])
    async with carrier(database) as scheduler:
        prepare = preparing(scheduler)

        async def meddle(rows: Any) -> Any:
            await side.run("update apscheduler_jobs set job_state = ? where id = 'a'", b"changed")
            return await prepare(rows)

        result = await cutover(side.url, scheduler, meddle, v3_stopped=True)
    assert "expected v3 to be stopped" in (result.interrupted or "")
    assert (await side.rows())["a"].job_state == b"changed"
    assert not await schedules(connection)


async def test_a_row_that_changes_while_it_is_planned_is_planned_anew(
    database: DatabaseUrl, connection: asyncpg.Connection, side: V3Side
) -> None:
    await side.put([a_row("a")])
    async with carrier(database) as scheduler:
        prepare = preparing(scheduler)
        meddled: list[bool] = []

        async def meddle(rows: Any) -> Any:
            if not meddled:
                await side.run("update apscheduler_jobs set job_state = ? where id = 'a'", b"changed")
                meddled.append(True)
            return await prepare(rows)

        result = await cutover(side.url, scheduler, meddle, wait=10)
    assert result.counts == {"carried": 1}
    assert (await migrated(connection))["a"]["job_state"] == b"changed"


async def test_v3_does_not_read_a_row_while_it_is_being_taken(database: DatabaseUrl, same: V3Side) -> None:
    """v3 reads without a lock; a row that it has read just before must not be gone when it moves it on."""
    await same.put([a_row("a")])
    reader = await asyncpg.connect(**database.asyncpg_arguments())
    try:
        async with reader.transaction():
            await reader.fetch("select * from apscheduler_jobs")  # v3 is reading: its transaction is open
            under_way = asyncio.create_task(carry(database, same))
            waiting = "select count(*) from pg_locks where mode = 'AccessExclusiveLock' and not granted"
            await eventually(lambda: reader.fetchval(waiting))
            assert not under_way.done()
        assert (await under_way).counts == {"carried": 1}
    finally:
        await reader.close()


# -- crashes -----------------------------------------------------------------------------------------------------------


async def both_fire(connection: asyncpg.Connection, side: V3Side) -> tuple[set[str], set[str]]:
    """Return which jobs v3 fires, and which Duetime does."""
    in_v3 = {row.id for row in (await side.rows()).values() if row.next_run_time is not None}
    here = {row["id"] for row in (await schedules(connection)).values() if not row["paused"]}
    return in_v3, here


async def crash_everywhere(
    database: DatabaseUrl,
    connection: asyncpg.Connection,
    side: V3Side,
    monkeypatch: pytest.MonkeyPatch,
    attempt: Any,
    repair: Any,
) -> int:
    """Crash before each statement in turn; after each crash nothing is fired twice, and a second run mends it."""
    at = 0
    while True:
        at += 1
        with crashing(monkeypatch, at) as crashes:
            with suppress(Crash):
                await attempt()
            has_crashed = crashes.seen >= at
        in_v3, here = await both_fire(connection, side)
        assert not in_v3 & here, f"fired twice after a crash before statement {at}"
        await repair(at)
        if not has_crashed:
            return at - 1


async def test_a_crash_anywhere_loses_and_doubles_nothing(
    database: DatabaseUrl, connection: asyncpg.Connection, side: V3Side, monkeypatch: pytest.MonkeyPatch
) -> None:
    await side.put(FEW)

    async def attempt() -> None:
        await carry(database, side, batch=9)

    async def repair(at: int) -> None:
        assert (await carry(database, side, batch=9)).is_complete, at
        assert await side.rows() == {}, at
        noted, stored = await migrated(connection), await schedules(connection)
        for row in FEW:
            assert noted[row.id]["state"] == "done", at
            assert (noted[row.id]["next_run_time"], noted[row.id]["job_state"]) == (row.next_run_time, row.job_state)
            assert stored[row.id]["paused"] == (row.next_run_time is None), at
        await connection.execute("truncate duetime.schedules, duetime.v3_migrated")
        await side.put(FEW)

    assert await crash_everywhere(database, connection, side, monkeypatch, attempt, repair) > 12


async def test_a_crash_anywhere_on_the_way_back_loses_and_doubles_nothing(
    database: DatabaseUrl, connection: asyncpg.Connection, side: V3Side, monkeypatch: pytest.MonkeyPatch
) -> None:
    await side.put(FEW)
    await carry(database, side, batch=9)

    async def attempt() -> None:
        await go_back(database, side, batch=9)

    async def repair(at: int) -> None:
        assert (await go_back(database, side, batch=9)).is_complete, at
        assert await side.rows() == {row.id: row for row in FEW}, at
        assert not await schedules(connection), at
        assert {row["state"] for row in (await migrated(connection)).values()} == {"returned"}, at
        await carry(database, side, batch=9)

    assert await crash_everywhere(database, connection, side, monkeypatch, attempt, repair) > 12


async def test_after_a_crash_one_can_go_back_as_well(
    database: DatabaseUrl, connection: asyncpg.Connection, side: V3Side, monkeypatch: pytest.MonkeyPatch
) -> None:
    await side.put(FEW)

    async def attempt() -> None:
        await carry(database, side, batch=9)

    async def repair(at: int) -> None:
        assert (await go_back(database, side, batch=9)).is_complete, at
        assert await side.rows() == {row.id: row for row in FEW}, at
        assert not await schedules(connection), at

    assert await crash_everywhere(database, connection, side, monkeypatch, attempt, repair) > 12


async def test_what_v3_has_run_after_a_crash_is_not_run_again(
    database: DatabaseUrl, connection: asyncpg.Connection, side: V3Side, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between two databases: it was noted that the row is to be taken, and v3 ran it for the last time meanwhile."""
    at = 0
    while True:
        at += 1
        await side.put([a_row("once")])
        with crashing(monkeypatch, at) as crashes:
            with suppress(Crash):
                await carry(database, side)
            has_crashed = crashes.seen >= at
        if not has_crashed:
            break
        gone = await side.run(
            "delete from apscheduler_jobs where id = 'once' and next_run_time is not null returning id"
        )
        await carry(database, side)
        assert len(await schedules(connection)) == (0 if gone else 1), at
        await connection.execute("truncate duetime.schedules, duetime.v3_migrated")
        await side.run("delete from apscheduler_jobs")


async def test_a_parked_row_that_falls_due_before_the_resume_goes_to_who_cannot_double_it(
    database: DatabaseUrl, connection: asyncpg.Connection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file has no lock that v3's reading waits for: it may have been parked too late, so v3 has it again."""
    async with v3_side("sqlite", database, tmp_path) as side:
        at = 0
        while True:
            at += 1
            row = a_row(f"try {at}", 2.0)
            await side.put([row])
            with crashing(monkeypatch, at), suppress(Crash):
                await carry(database, side, margin=0.2)
            noted = (await migrated(connection)).get(row.id)
            if noted is not None and noted["state"] == "taking" and (await side.rows())[row.id].next_run_time is None:
                break
            await carry(database, side, margin=0.0, v3_stopped=True)
        await eventually(lambda: time.time() > (row.next_run_time or 0.0))
        result = await carry(database, side)
        assert result.counts == {"due": 1}
        assert await side.rows() == {row.id: row}
        assert row.id not in await schedules(connection)


async def test_a_commit_without_an_answer_is_looked_up(
    database: DatabaseUrl, connection: asyncpg.Connection, side: V3Side, monkeypatch: pytest.MonkeyPatch
) -> None:
    await side.put(ROWS)
    lost: list[str] = []

    async def execute(self: Any, query: str, *arguments: Any, **options: Any) -> Any:
        answer = await asyncpg.Connection.execute(self, query, *arguments, **options)
        if query == "COMMIT;" and len(lost) < 3:
            lost.append(query)
            self.terminate()
            raise ConnectionResetError("the answer is lost")
        return answer

    async with carrier(database) as scheduler:
        prepare = preparing(scheduler)

        async def prepare_and_lose(rows: Any) -> Any:
            monkeypatch.setattr(StoreConnection, "execute", execute, raising=False)
            return await prepare(rows)

        result = await cutover(side.url, scheduler, prepare_and_lose, batch=2)
    assert len(lost) == 3
    assert result.counts == {"carried": len(ROWS)}
    assert (await schedules(connection)).keys() == {row.id for row in ROWS}
    assert await side.rows() == {}


# -- where it cannot be ------------------------------------------------------------------------------------------------


async def test_a_schedule_of_the_same_id_is_not_touched(
    database: DatabaseUrl, connection: asyncpg.Connection, side: V3Side
) -> None:
    await side.put([a_row("a"), a_row("b")])
    await carry(database, side, ids=["a"])
    await connection.execute("update duetime.v3_migrated set source = 'another'")
    await side.put([a_row("a")])
    before = (await schedules(connection))["a"]
    result = await carry(database, side)
    assert result.counts == {"carried": 1, "exists": 1}
    assert "does not come from this table" in next(row.text for row in result.rows if row.id == "a")
    assert (await schedules(connection))["a"] == before
    assert (await side.rows()).keys() == {"a"}


async def test_a_job_that_the_application_adds_again_is_reported(database: DatabaseUrl, side: V3Side) -> None:
    await side.put([a_row("a")])
    await carry(database, side)
    await side.put([a_row("a")])
    async with carrier(database) as scheduler:
        standing = await status(side.url, scheduler)
    assert standing.added_again == ["a"]
    assert not standing.is_complete
    result = await carry(database, side)
    assert "has added it again" in result.rows[0].text


async def test_two_migrations_at_once_are_refused(database: DatabaseUrl, side: V3Side) -> None:
    await side.put([a_row("a")])
    async with carrier(database) as scheduler:
        entered, leave = asyncio.Event(), asyncio.Event()
        prepare = preparing(scheduler)

        async def slow(rows: Any) -> Any:
            entered.set()
            await leave.wait()
            return await prepare(rows)

        first = asyncio.create_task(cutover(side.url, scheduler, slow))
        await entered.wait()
        with pytest.raises(V3MigrationRunning):
            await carry(database, side)
        leave.set()
        assert (await first).counts == {"carried": 1}


async def test_without_permission_nothing_is_begun(
    database: DatabaseUrl, connection: asyncpg.Connection, tmp_path: Path
) -> None:
    role = f"reader_{database.database}"
    async with v3_side("postgresql", database, tmp_path) as side:
        await side.put([a_row("a")])
        await side.run(f"create role {role} login password 'reader'")
        await side.run(f"grant select on apscheduler_jobs to {role}")
        other = DatabaseUrl.parse(side.url)
        try:
            reader = V3Side(replace(other, user=role, password="reader").text, database=other, path=None)
            with pytest.raises(V3NotChangeable, match="may update, delete and insert"):
                await carry(database, reader)
            assert not await migrated(connection)
            assert not await schedules(connection)
        finally:
            await side.run(f"drop owned by {role}")
            await side.run(f"drop role {role}")


async def test_a_role_that_may_not_change_v3s_table_leaves_that_to_v3s_own(
    database: DatabaseUrl, connection: asyncpg.Connection, same: V3Side
) -> None:
    role = f"guest_{database.database}"
    await connection.execute(
        f"create role {role} login password 'guest'; grant usage on schema duetime to {role};"
        f"grant all on all tables in schema duetime to {role}; grant all on all sequences in schema duetime to {role}"
    )
    try:
        await same.put(ROWS)
        result = await carry(replace(database, user=role, password="guest"), same)
        assert result.counts == {"carried": len(ROWS)}
        assert await same.rows() == {}
        assert (await go_back(replace(database, user=role, password="guest"), same)).is_complete
        assert await same.rows() == {row.id: row for row in ROWS}
    finally:
        await connection.execute(f"drop owned by {role}; drop role {role}")


async def test_a_file_that_may_only_be_read_is_refused(database: DatabaseUrl, tmp_path: Path) -> None:
    async with v3_side("sqlite", database, tmp_path) as side:
        await side.put([a_row("a")])
        reader = V3Side(
            f"{side.url}?mode=ro&uri=true".replace("sqlite:///", "sqlite:///file:"), database=None, path=None
        )
        with pytest.raises(V3NotChangeable):
            await carry(database, reader)
        assert (await side.rows()).keys() == {"a"}


async def test_a_database_that_does_not_answer_is_named_without_its_password(database: DatabaseUrl) -> None:
    side = V3Side("postgresql://v3:secret@127.0.0.1:1/jobs", database=None, path=None)
    with pytest.raises(SourceUnavailable) as caught:
        await carry(database, side)
    assert "secret" not in str(caught.value)


async def test_a_row_that_cannot_be_stored_does_not_keep_the_others(
    database: DatabaseUrl, connection: asyncpg.Connection, side: V3Side
) -> None:
    rows = [a_row(f"r{number}") for number in range(5)]
    await side.put(rows)
    async with carrier(database) as scheduler:
        prepare = preparing(scheduler)

        async def unprintable(found: list[V3Row]) -> Any:
            return [
                replace(each, schedule=attrs.evolve(each.schedule, id="a\nb"))
                if row.id == "r2" and each.schedule is not None
                else each
                for row, each in zip(found, await prepare(found), strict=True)
            ]

        result = await cutover(side.url, scheduler, unprintable)  # type: ignore[arg-type]
    assert result.counts == {"carried": 4, "refused": 1}
    assert (await side.rows()).keys() == {"r2"}
    assert (await schedules(connection)).keys() == {"r0", "r1", "r3", "r4"}
