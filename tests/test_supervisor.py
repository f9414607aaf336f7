"""How a node starts, survives crashes and outages, and stops."""

from __future__ import annotations

import asyncio
import logging
from datetime import timedelta
from functools import partial
from typing import Any

import asyncpg
import pytest
from apscheduler import RunState
from apscheduler.triggers.date import DateTrigger

from duetime.options import OnCrash, TaskOptions
from duetime.scheduler import DuetimeScheduler, Supervisor
from duetime.settings import DatabaseUrl
from duetime.store.node import NodeDataStore

from .store.network import Network
from .store.parts import ago, every, node, running, tasks
from .waiting import eventually

done: list[Any] = []


async def work(value: Any = "work") -> Any:
    done.append(value)
    return value


@pytest.fixture(autouse=True)
def nothing_done() -> None:
    done.clear()


def supervised(scheduler: DuetimeScheduler, drain: float = 5) -> Supervisor:
    return Supervisor(scheduler, drain_timeout=timedelta(seconds=drain))


async def is_started(scheduler: DuetimeScheduler) -> None:
    await eventually(lambda: scheduler.state is RunState.started)


async def test_a_node_starts_when_the_database_comes_and_keeps_what_was_asked_meanwhile(
    database: DatabaseUrl,
) -> None:
    network = Network(database)
    async with network:
        pass  # a port where nobody listens
    scheduler = node(network.url, tasks(work))
    async with supervised(scheduler) as supervisor:
        await eventually(lambda: scheduler.store.database.outage is not None)
        adding = asyncio.create_task(scheduler.add_schedule("work", DateTrigger(ago(1)), args=["early"]))
        assert scheduler.state is RunState.stopped
        await network.mend()
        await is_started(scheduler)
        await adding
        await eventually(lambda: done == ["early"])
        assert supervisor.crashes == 0
    await network.cut()


async def test_a_node_that_has_not_started_yet_stops_at_once(database: DatabaseUrl) -> None:
    network = Network(database)
    async with network:
        pass
    scheduler = node(network.url, tasks(work))
    async with asyncio.timeout(5), supervised(scheduler, drain=60):
        await eventually(lambda: scheduler.store.database.outage is not None)


async def test_an_outage_is_waited_for_and_is_no_crash(database: DatabaseUrl) -> None:
    async with Network(database) as network:
        scheduler = node(network.url, tasks(work), poll_interval=0.2)
        async with supervised(scheduler) as supervisor:
            await is_started(scheduler)
            await scheduler.add_schedule("work", every(0.1))
            await eventually(lambda: len(done) >= 3)
            for _ in range(2):
                await network.cut()
                await eventually(lambda: scheduler.store.database.outage is not None)
                await network.mend()
                seen = len(done)
                await eventually(partial(_are_more_than, seen))
            assert supervisor.crashes == 0
            assert scheduler.state is RunState.started


def _are_more_than(number: int) -> bool:
    return len(done) > number


@pytest.mark.parametrize("loop", ["acquire_schedules", "acquire_jobs"])
async def test_a_crash_is_logged_and_followed_by_a_new_start_after_ever_longer_waits(
    database: DatabaseUrl, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, loop: str
) -> None:
    caplog.set_level(logging.ERROR)
    real = getattr(NodeDataStore, loop)
    crashes = iter((ZeroDivisionError("first"), ZeroDivisionError("second")))

    async def crashes_twice(self: NodeDataStore, *args: Any, **options: Any) -> Any:
        if error := next(crashes, None):
            raise error
        return await real(self, *args, **options)

    monkeypatch.setattr(NodeDataStore, loop, crashes_twice)
    scheduler = node(database, tasks(work))
    first = scheduler.identity
    async with supervised(scheduler) as supervisor:
        await eventually(lambda: supervisor.crashes == 2)
        await is_started(scheduler)
        # What was said before the crash may still be on its way to the database: it must mean nothing after it.
        assert scheduler.identity == scheduler.store.identity != first
        assert scheduler.identity.split(":")[:2] == first.split(":")[:2]
        assert await scheduler.run_job("work") == "work"
    assert supervisor.crashes == 2
    assert isinstance(supervisor.last_crash, ExceptionGroup)
    assert supervisor.last_crash.subgroup(ZeroDivisionError) is not None
    assert "crashed (1 so far); it starts again in 0.2 s" in caplog.text
    assert "crashed (2 so far); it starts again in 0.4 s" in caplog.text


async def test_a_crash_puts_running_jobs_back_and_they_run_again(
    database: DatabaseUrl, connection: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[str] = []
    real = NodeDataStore.acquire_schedules

    async def waits_the_first_time() -> None:
        begun.append("begun")
        if len(begun) == 1:
            await asyncio.Event().wait()

    async def crashes_when_it_runs(self: NodeDataStore, *args: Any, **options: Any) -> Any:
        if len(begun) == 1:
            begun.append("crashed")
            raise ZeroDivisionError
        return await real(self, *args, **options)

    monkeypatch.setattr(NodeDataStore, "acquire_schedules", crashes_when_it_runs)
    scheduler = node(database, tasks(waits_the_first_time, work))
    async with supervised(scheduler):
        await is_started(scheduler)
        job_id = await scheduler.add_job("waits_the_first_time")
        await eventually(lambda: begun == ["begun"])
        await scheduler.add_schedule("work", DateTrigger(ago(1)))
        await eventually(lambda: begun == ["begun", "crashed", "begun"])
        await eventually(lambda: connection.fetchval("select outcome = 'success' from duetime.runs where attempt = 2"))
    runs = await connection.fetch("select attempt, outcome from duetime.runs where job_id = $1 order by id", job_id)
    assert [tuple(run) for run in runs] == [(1, "cancelled"), (2, "success")]


async def test_at_its_end_a_node_waits_for_running_jobs_for_the_drain_time(
    database: DatabaseUrl, connection: asyncpg.Connection
) -> None:
    begun, open_door = asyncio.Event(), asyncio.Event()

    async def waits() -> None:
        begun.set()
        await open_door.wait()

    scheduler = node(database, tasks(waits))
    supervisor = supervised(scheduler, drain=20)
    async with supervisor:
        await is_started(scheduler)
        await scheduler.add_job("waits")
        await begun.wait()
        supervisor.begin_stop()
        asyncio.get_running_loop().call_later(0.2, open_door.set)
    assert await connection.fetchval("select outcome from duetime.runs") == "success"


async def test_after_the_drain_time_running_jobs_go_back_or_are_recorded_as_their_task_asks(
    database: DatabaseUrl, connection: asyncpg.Connection
) -> None:
    begun: list[str] = []

    async def again() -> None:
        begun.append("again")
        await asyncio.Event().wait()

    async def once() -> None:
        begun.append("once")
        await asyncio.Event().wait()

    scheduler = node(database, tasks(again, once, once=TaskOptions(on_crash=OnCrash.abandon)))
    async with supervised(scheduler, drain=0.05):
        await is_started(scheduler)
        for name in ("again", "once"):
            await scheduler.add_schedule(name, DateTrigger(ago(1)), id=name)
        await eventually(lambda: sorted(begun) == ["again", "once"])
    [job] = await connection.fetch("select task_id, acquired_by, attempt from duetime.jobs")
    assert tuple(job) == ("again", None, 1)
    states = dict(await connection.fetch("select schedule_id, state from duetime.fires"))
    assert states == {"again": "pending", "once": "cancelled"}
    outcomes = dict(await connection.fetch("select task_id, outcome from duetime.runs"))
    assert outcomes == {"again": "cancelled", "once": "cancelled"}


async def test_an_attempt_that_ends_while_the_node_stops_is_recorded_as_it_ended(
    database: DatabaseUrl, connection: asyncpg.Connection
) -> None:
    """The node is stopped while the statement that records the success waits for a lock."""
    options = TaskOptions(on_crash=OnCrash.abandon)
    scheduler = node(database, tasks(work, work=options))

    async def run() -> None:
        async with running(scheduler):
            await scheduler.configure_task("work")
            await connection.execute("begin; lock table duetime.runs in exclusive mode")
            await scheduler.add_job("work")
            await eventually(lambda: connection.fetchval("select count(*) > 0 from pg_locks where not granted"))

    stopping = asyncio.create_task(run())
    await eventually(lambda: scheduler.state is RunState.started)
    await eventually(lambda: scheduler.state is RunState.stopping)
    await connection.execute("commit")
    await stopping
    assert done == ["work"]
    assert await connection.fetchval("select count(*) from duetime.jobs") == 0
    rows = await connection.fetch("select attempt, outcome from duetime.runs")
    assert [tuple(row) for row in rows] == [(1, "success")]


async def test_a_node_can_be_started_again(database: DatabaseUrl) -> None:
    scheduler = node(database, tasks(work))
    supervisor = supervised(scheduler)
    for number in range(2):
        async with supervisor:
            await is_started(scheduler)
            assert await scheduler.run_job("work", args=[number]) == number
        assert scheduler.state is RunState.stopped


async def test_nothing_is_left_when_a_node_has_stopped(database: DatabaseUrl, connection: asyncpg.Connection) -> None:
    before = asyncio.all_tasks()
    async with supervised(node(database, tasks(work))) as supervisor:
        await is_started(supervisor.scheduler)
        await supervisor.scheduler.run_job("work")
    query = "select count(*) = 0 from pg_stat_activity where datname = current_database() and pid <> $1"
    await eventually(lambda: connection.fetchval(query, connection.get_server_pid()))
    await eventually(lambda: asyncio.all_tasks() - before == set())
