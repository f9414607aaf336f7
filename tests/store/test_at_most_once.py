"""What may run at most once (``on_crash="abandon"``): never twice, and not lost when it surely has not run."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import asyncpg
import pytest
from apscheduler import ConflictPolicy, current_job
from apscheduler.triggers.date import DateTrigger

from duetime.options import OnCrash, TaskOptions
from duetime.scheduler import DuetimeScheduler
from duetime.settings import DatabaseUrl
from duetime.store.node import NodeDataStore

from ..waiting import eventually
from .parts import a_job, a_schedule, a_store, ago, expire, node, running, tasks

ONCE = TaskOptions(on_crash=OnCrash.abandon)
done: list[str] = []


async def once() -> None:
    done.append(current_job.get().schedule_id or "")


@pytest.fixture(autouse=True)
def nothing_done() -> None:
    done.clear()


def a_node(database: DatabaseUrl, **settings: Any) -> DuetimeScheduler:
    settings = {"look_ahead": 20, "lease_duration": 3600, **settings}
    return node(database, tasks(once, once=ONCE), **settings)


async def holds_one(scheduler: DuetimeScheduler) -> None:
    await eventually(lambda: len(scheduler.store._hand) == 1)


async def test_a_job_that_was_only_held_when_its_node_died_runs_on_another(
    database: DatabaseUrl, connection: asyncpg.Connection
) -> None:
    """It is certain that it has not begun, although it was claimed: that is no attempt, and nothing is abandoned."""
    first, second = a_node(database), a_node(database, look_ahead=0)
    async with running(first):
        await first.add_schedule("once", DateTrigger(ago(-2)), id="s")
        await holds_one(first)
        # It is dead from here on: nothing that it does reaches the database.
        first.store._hand.clear()
        async with running(second):
            await expire(connection, "jobs")
            await second.store._reap(None, default="retry")
            row = await connection.fetchrow("select acquired_by, attempt, held from duetime.jobs")
            assert tuple(row) == (None, 0, False)
            second.store._queue_is_due = True
            second.store._jobs_wake.set()
            await eventually(lambda: connection.fetchval("select state = 'succeeded' from duetime.fires"))
    assert done == ["s"]
    assert [tuple(row) for row in await connection.fetch("select attempt, outcome from duetime.runs")] == [
        (1, "success")
    ]


async def test_a_job_that_another_node_has_taken_over_meanwhile_is_not_begun(
    database: DatabaseUrl, connection: asyncpg.Connection
) -> None:
    """However sure the node is of its lease: its clock may have stood still with the machine."""
    first = a_node(database)
    async with running(first):
        due = ago(-2)
        await first.add_schedule("once", DateTrigger(due), id="s")
        await holds_one(first)
        await connection.execute("update duetime.jobs set acquired_by = 'somebody else', attempt = 2")
        await eventually(lambda: not first.store._attempts)
        assert await connection.fetchval("select clock_timestamp() < $1", due), "before its time"
    assert done == []


async def test_a_job_that_has_begun_is_abandoned_when_its_node_dies(
    database: DatabaseUrl, connection: asyncpg.Connection
) -> None:
    """Also when it was held ahead of its time before."""
    goes_on = asyncio.Event()
    begun: list[str] = []

    async def waits() -> None:
        begun.append("once")
        await goes_on.wait()

    first = node(database, tasks(waits, waits=ONCE), look_ahead=20, lease_duration=3600)
    async with running(first), a_store(database) as other:
        await first.add_schedule("waits", DateTrigger(ago(-1)), id="s")
        await holds_one(first)
        assert await connection.fetchval("select held from duetime.jobs")
        await eventually(lambda: begun)
        await expire(connection, "jobs")
        await other._reap(None, default="retry")
        assert await connection.fetchval("select state from duetime.fires") == "abandoned"
        assert await connection.fetchval("select count(*) from duetime.jobs") == 0
        goes_on.set()
    assert begun == ["once"]


@pytest.mark.parametrize("change", ["paused and resumed", "removed", "replaced"])
async def test_a_fire_that_another_node_is_about_to_begin_is_not_made_a_second_time(
    database: DatabaseUrl, connection: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    """The notification of the change is late. What the node has confirmed runs, and its fire exists."""
    monkeypatch.setattr("duetime.store.node._CONFIRM_AHEAD", 2.0)
    monkeypatch.setattr("duetime.store.node.NodeDataStore._doubt", lambda *_: None)
    first = a_node(database, role="both")
    async with running(first), a_store(database) as other:
        due = ago(-2.5)
        schedule = a_schedule("s", DateTrigger(due), task_id="once", metadata=ONCE.to_metadata())
        await first.add_schedule("once", DateTrigger(due), id="s")
        await eventually(lambda: connection.fetchval("select not held from duetime.jobs"))
        if change == "paused and resumed":
            await other.pause_schedule("s")
            await other.resume_schedule("s")
        else:
            await other.remove_schedules(["s"] if change == "removed" else [])
            await other.add_schedule(schedule, ConflictPolicy.replace)
        assert await connection.fetchval("select clock_timestamp() < $1", due), "before its time"
        await eventually(lambda: connection.fetchval("select state = 'succeeded' from duetime.fires"))
        await eventually(
            lambda: connection.fetchval(
                "select not exists (select from duetime.schedules where next_fire_time <= now())"
            )
        )
        await eventually(lambda: connection.fetchval("select not exists (select from duetime.jobs)"))
    assert done == ["s"]
    assert await connection.fetchval("select count(*) from duetime.fires") == 1


async def test_the_node_that_is_asked_takes_back_what_it_has_confirmed_and_not_begun(
    database: DatabaseUrl, connection: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("duetime.store.node._CONFIRM_AHEAD", 5.0)
    scheduler = a_node(database)
    async with running(scheduler):
        due = ago(-5.5)
        await scheduler.add_schedule("once", DateTrigger(due), id="s")
        await eventually(lambda: connection.fetchval("select not held from duetime.jobs"))
        await scheduler.pause_schedule("s")
        assert await connection.fetchval("select clock_timestamp() < $1", due), "before its time"
        assert await connection.fetchval("select count(*) from duetime.jobs") == 0
        assert await connection.fetchval("select count(*) from duetime.fires") == 0
        assert (await scheduler.get_schedule("s")).next_fire_time == due
        assert len(scheduler.store._hand) == 0
    assert done == []


async def test_a_confirmed_job_starts_at_its_time(database: DatabaseUrl, connection: asyncpg.Connection) -> None:
    scheduler = a_node(database)
    async with running(scheduler):
        await scheduler.add_schedule("once", DateTrigger(ago(-1.5)), id="s")
        await eventually(lambda: done)
        await eventually(lambda: connection.fetchval("select count(*) = 1 from duetime.runs"))
    early = await connection.fetchval("select due_at - started_at from duetime.runs")
    assert early < timedelta(seconds=0.08), "it waits for its time after it was confirmed"


@pytest.mark.parametrize(
    ("claim", "held"),
    [
        ("select held from duetime.claim_jobs_v1($1, $2, $2, 9)", False),
        ("select held from duetime.claim_jobs_v2($1, $2, $2, 9, true)", True),
    ],
)
async def test_what_a_node_of_the_release_before_has_claimed_counts_as_begun(
    database: DatabaseUrl, connection: asyncpg.Connection, claim: str, held: bool
) -> None:
    """It does not confirm a job before it begins, so nobody may take it for certain that it has not."""
    async with a_store(database) as store:
        await store.add_job(a_job("once", metadata=ONCE.to_metadata()))
        await connection.execute("update duetime.jobs set run_at = now() + interval '10 s'")
        claimed = await connection.fetch(claim, "node", timedelta(seconds=30))
        assert [row["held"] for row in claimed] == [held]
        await expire(connection, "jobs")
        await store._reap(None, default="retry")
        assert await connection.fetchval("select count(*) from duetime.jobs") == held


@pytest.mark.parametrize("seconds", [-1, 3600], ids=["confirmed", "late"])
async def test_a_job_is_tried_again_when_the_database_has_refused_to_be_asked_about_it(
    database: DatabaseUrl, connection: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch, seconds: float
) -> None:
    """It is claimed, and its lease is renewed: nobody else would run it, for as long as this node lives."""
    refused = 0
    real = NodeDataStore._loop_fetch
    asked = "confirm_jobs" if seconds < 0 else "extend_jobs"

    async def refusing(self: NodeDataStore, name: str, *arguments: Any) -> Any:
        nonlocal refused
        if name == asked and refused < 1:
            refused += 1
            raise asyncpg.PostgresError("refused")
        return await real(self, name, *arguments)

    monkeypatch.setattr(NodeDataStore, "_loop_fetch", refusing)
    scheduler = a_node(database)
    async with running(scheduler):
        await scheduler.add_schedule("once", DateTrigger(ago(-2)), id="s")
        await holds_one(scheduler)
        for card in scheduler.store._hand:
            card.leased_until -= max(0, seconds)
        await eventually(lambda: done == ["s"])
        await eventually(lambda: connection.fetchval("select state = 'succeeded' from duetime.fires"))
    assert refused == 1
