"""Several nodes on one schedule: what becomes of a fire while the job of an earlier one has not ended, by policy."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from apscheduler import current_job

from duetime import Duetime, Retry, Settings
from duetime.options import Overlap, TaskOptions
from duetime.settings import DatabaseUrl
from duetime.tasks import TaskRegistry

from ..store.parts import (
    LEASE,
    a_job,
    a_schedule,
    a_store,
    a_task,
    add,
    ago,
    every,
    node_store,
    result_of,
    silent_broker,
    started,
)
from ..waiting import eventually
from .desk import schedule
from .fleet import Fleet, fleet_on


class Work:
    """A task that goes on until it is told to end, and knows which of its jobs do, on which node."""

    def __init__(self) -> None:
        self.going: dict[str, str] = {}
        self.order: list[str] = []
        self.most = 0
        self.let_go = asyncio.Event()
        self.nodes: set[str] = set()

    async def run(self, node: str) -> None:
        job = current_job.get()
        assert job.scheduled_fire_time is not None
        name = job.scheduled_fire_time.isoformat()
        self.order.append(name)
        self.going[name] = node
        self.nodes.add(node)
        self.most = max(self.most, len(self.going))
        try:
            await self.let_go.wait()
            await asyncio.sleep(0.005)
        finally:
            del self.going[name]


@asynccontextmanager
async def own_nodes(
    database: DatabaseUrl, names: str, work: Callable[[str], Awaitable[None]], options: TaskOptions, **settings: Any
) -> AsyncIterator[list[Duetime]]:
    """Run nodes that know the task ``work``, which is told on which of them it runs.

    The poll is a minute away: wake-ups and timers have to do.
    """
    async with AsyncExitStack() as stack:
        running = []
        for name in names.split():
            registry = TaskRegistry()
            registry.add(_told_where(work, name), name="work", options=options)
            given = {"database_url": database.text, "node_name": name, "poll_interval": 60, "drain_timeout": 0}
            duetime = Duetime(Settings(**{**given, **settings}), registry=registry)
            running.append(await stack.enter_async_context(duetime))
            async with asyncio.timeout(20):
                await duetime._broker.wait_listening()
        yield running


def _told_where(work: Callable[[str], Awaitable[None]], node: str) -> Callable[[], Awaitable[None]]:
    async def run() -> None:
        await work(node)

    return run


@asynccontextmanager
async def nodes(
    database: DatabaseUrl, names: str, work: Work, options: TaskOptions, **settings: Any
) -> AsyncIterator[list[Duetime]]:
    """Run nodes whose work goes on until it is let go, which it is at the end."""
    async with own_nodes(database, names, work.run, options, **settings) as running:
        try:
            yield running
        finally:
            work.let_go.set()


async def ledger(connection: asyncpg.Connection) -> list[asyncpg.Record]:
    found: list[asyncpg.Record] = await connection.fetch("select * from duetime.fires order by fire_time")
    return found


async def all_have_ended(connection: asyncpg.Connection) -> bool:
    return bool(await connection.fetchval("select not exists (select from duetime.jobs)"))


async def fired(connection: asyncpg.Connection, count: int) -> bool:
    """Whether so many fires are in the ledger whose time has come."""
    return bool(await connection.fetchval("select count(*) >= $1 from duetime.fires where fire_time <= now()", count))


SERIAL = [Overlap.buffer_one, Overlap.buffer_all, Overlap.cancel_other]


async def test_buffer_all_lets_each_fire_wait_for_its_turn_in_order_over_all_nodes(
    database: DatabaseUrl, connection: asyncpg.Connection
) -> None:
    work = Work()
    async with nodes(database, "a b c", work, TaskOptions(overlap=Overlap.buffer_all)) as [a, _b, c]:
        await a.scheduler.add_schedule("work", every(0.15), id="s")
        await eventually(lambda: fired(connection, 8))
        assert len(work.going) == 1
        waiting = await connection.fetch("select * from duetime.jobs where waits")
        assert len(waiting) >= 5
        assert all(job["acquired_by"] is None for job in waiting)
        await c.scheduler.pause_schedule("s")
        work.let_go.set()
        await eventually(lambda: all_have_ended(connection))
    fires = await ledger(connection)
    assert {fire["state"] for fire in fires} == {"succeeded"}
    assert work.most == 1
    assert work.order == sorted(work.order)
    assert len(work.order) == len(fires) >= 8
    assert [fire["reason"] for fire in fires[1:4]] == [
        "it waited for the job of an earlier fire (overlap=buffer_all)"
    ] * 3


async def test_buffer_one_keeps_the_first_that_has_to_wait_and_skips_those_after_it(
    database: DatabaseUrl, connection: asyncpg.Connection
) -> None:
    work = Work()
    async with nodes(database, "a b", work, TaskOptions(overlap=Overlap.buffer_one)) as [a, b]:
        await a.scheduler.add_schedule("work", every(0.2), id="s")
        await eventually(lambda: fired(connection, 5))
        await eventually(lambda: connection.fetchval("select count(*) >= 3 from duetime.fires where state = 'skipped'"))
        assert await connection.fetchval("select count(*) from duetime.jobs where waits") == 1
        await b.scheduler.pause_schedule("s")
        first, second, third, *_ = await ledger(connection)
        assert [each["state"] for each in (first, second, third)] == ["pending", "pending", "skipped"]
        instant = second["fire_time"].strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        assert third["reason"] == f"the fire of {instant} was waiting already (overlap=buffer_one)"
        work.let_go.set()
        await eventually(lambda: all_have_ended(connection))
    assert work.most == 1
    assert [fire["state"] for fire in await ledger(connection)][:2] == ["succeeded", "succeeded"]


async def test_cancel_other_has_the_running_job_cancelled_and_begins_when_that_has_ended(
    database: DatabaseUrl, connection: asyncpg.Connection
) -> None:
    """The one in between, which has not begun, ends at once."""
    work = Work()
    async with nodes(database, "a b", work, TaskOptions(overlap=Overlap.cancel_other)) as [a, b]:
        first = await a.service.run_schedule(
            await a.scheduler.add_schedule("work", every(0.5, since=ago(-0.5)), id="s")
        )
        await eventually(lambda: len(work.order) >= 1)
        asked = "select coalesce((select cancel_requested_at is not null from duetime.jobs where id = $1), true)"
        await eventually(lambda: connection.fetchval(asked, first.id))
        await eventually(lambda: fired(connection, 4))
        await b.scheduler.pause_schedule("s")
        work.let_go.set()
        await eventually(lambda: all_have_ended(connection))
    assert work.most == 1
    fires = await ledger(connection)
    assert fires[-1]["state"] == "succeeded"
    others = [fire for fire in fires[1:-1] if fire["state"] == "cancelled"]
    assert others
    assert {fire["reason"] for fire in others} == {"a later fire took its place (overlap=cancel_other)"}


@pytest.mark.parametrize("overlap", SERIAL)
async def test_jobs_that_take_turns_never_run_at_once_however_often_they_fire(
    database: DatabaseUrl, connection: asyncpg.Connection, overlap: Overlap
) -> None:
    """Twenty fires a second, several of them claimed ahead together, over three nodes; most of them wait for nobody."""
    work = Work()
    work.let_go.set()
    async with nodes(database, "a b c", work, TaskOptions(overlap=overlap)) as [a, b, _c]:
        await a.scheduler.add_schedule("work", every(0.05), id="s")
        await eventually(lambda: fired(connection, 60))
        await b.scheduler.pause_schedule("s")
        await eventually(lambda: all_have_ended(connection))
    assert work.most == 1
    states = [fire["state"] for fire in await ledger(connection)]
    assert states.count("succeeded") >= len(states) / 2
    if overlap is Overlap.buffer_all:
        assert set(states) == {"succeeded"}


@pytest.fixture
async def fleet(database: DatabaseUrl, tmp_path: Path) -> AsyncIterator[Fleet]:
    async with fleet_on(database, tmp_path) as fleet:
        yield fleet


@pytest.mark.parametrize(("task", "becomes"), [("in_turn", "succeeded"), ("in_turn_once", "abandoned")])
async def test_those_that_wait_get_their_turn_after_the_node_of_the_running_one_was_killed(
    fleet: Fleet, database: DatabaseUrl, connection: asyncpg.Connection, task: str, becomes: str
) -> None:
    """As the crash policy says, the job of the killed node runs again before them, or not at all."""
    gate = fleet.directory / "gate"
    killed = await fleet.start("killed", lease_duration=1)
    async with a_store(database) as desk:
        await add(desk, schedule("s", task, every(0.3), kwargs={"until": str(gate)}))
        [first] = await eventually(lambda: fleet.diary("began"))
        await eventually(lambda: connection.fetchval("select count(*) >= 3 from duetime.jobs where waits"))
        await fleet.start("heir", lease_duration=1)
        waiting = {row["id"] for row in await connection.fetch("select id from duetime.jobs where waits")}
        killed.kill()
        again = await eventually(lambda: fleet.diary("began", node="heir"))
        assert len(again) == 1
        assert (again[0]["job"] == first["job"]) == (becomes == "succeeded")
        await desk.pause_schedule("s")
        gate.touch()
        await eventually(lambda: all_have_ended(connection))
    began = [line["fire_time"] for line in fleet.diary("began", node="heir")]
    assert began == sorted(set(began))
    fires = await ledger(connection)
    assert fires[0]["state"] == becomes
    assert {fire["state"] for fire in fires if fire["job_id"] in waiting} == {"succeeded"}
    # One that was due, and about to be told to wait, when its node died may have begun for all that anybody knows.
    assert {fire["state"] for fire in fires} <= {becomes, "succeeded"}
    assert len(began) >= 3


async def test_a_job_that_waits_for_its_next_attempt_keeps_its_turn(
    database: DatabaseUrl, connection: asyncpg.Connection
) -> None:
    order: list[datetime] = []

    async def unlucky(_node: str) -> None:
        order.append(current_job.get().scheduled_fire_time or ago())
        if len(order) == 1:
            raise RuntimeError("not yet")

    options = TaskOptions(overlap=Overlap.buffer_all, retry=Retry(max_attempts=2, backoff=0.8, jitter=0))
    async with own_nodes(database, "a b", unlucky, options) as [a, b]:
        await a.scheduler.add_schedule("work", every(0.2), id="s")
        await eventually(lambda: len(order) >= 4)
        await b.scheduler.pause_schedule("s")
        await eventually(lambda: all_have_ended(connection))
    assert order[0] == order[1]
    assert order[1:] == sorted(set(order))


async def test_a_run_by_request_does_not_wait_but_the_next_fire_waits_for_it(
    database: DatabaseUrl, connection: asyncpg.Connection
) -> None:
    work = Work()
    async with nodes(database, "a b", work, TaskOptions(overlap=Overlap.buffer_all)) as [a, b]:
        await a.scheduler.add_schedule("work", every(1, since=ago(-0.5)), id="s", paused=True)
        await a.service.run_schedule("s")
        await b.service.run_schedule("s")
        await eventually(lambda: len(work.going) == 2)
        await b.scheduler.unpause_schedule("s")
        await eventually(lambda: connection.fetchval("select count(*) >= 1 from duetime.jobs where waits"))
        assert len(work.going) == 2
        await b.scheduler.pause_schedule("s")
        work.let_go.set()
        await eventually(lambda: all_have_ended(connection))
    assert {fire["state"] for fire in await ledger(connection)} == {"succeeded"}


@pytest.mark.parametrize("requested_on", ["a", "b"])
async def test_a_fire_that_was_claimed_ahead_waits_for_a_run_that_was_requested_meanwhile(
    database: DatabaseUrl, connection: asyncpg.Connection, requested_on: str
) -> None:
    work = Work()
    async with nodes(database, "a b", work, TaskOptions(overlap=Overlap.buffer_all), look_ahead=10) as both:
        await both[0].scheduler.add_schedule("work", every(3600, since=ago(-1.5)), id="s")
        await eventually(lambda: connection.fetchval("select count(*) = 1 from duetime.jobs"))
        await both["ab".index(requested_on)].service.run_schedule("s")
        await eventually(lambda: connection.fetchval("select count(*) = 1 from duetime.jobs where waits"))
        assert len(work.going) == 1
        work.let_go.set()
        await eventually(lambda: all_have_ended(connection))
    assert work.most == 1


async def test_a_removed_schedule_leaves_those_that_wait_their_turn(
    database: DatabaseUrl, connection: asyncpg.Connection
) -> None:
    work = Work()
    async with nodes(database, "a b", work, TaskOptions(overlap=Overlap.buffer_all)) as [a, b]:
        await a.scheduler.add_schedule("work", every(0.2), id="s")
        await eventually(lambda: connection.fetchval("select count(*) >= 3 from duetime.jobs where waits"))
        await b.scheduler.remove_schedule("s")
        work.let_go.set()
        await eventually(lambda: all_have_ended(connection))
    fires = await ledger(connection)
    assert len(fires) >= 4
    assert {fire["state"] for fire in fires} == {"succeeded"}


async def test_fires_whose_time_comes_before_they_are_released_overlap_as_any_other(
    database: DatabaseUrl, connection: asyncpg.Connection
) -> None:
    """They were planned ahead, to be looked at when they start; by then nobody could tell that from the job's row."""
    store = node_store(database, "a", works=False)
    async with started(store, silent_broker()):
        await store.add_task(a_task())
        await store.add_schedules([a_schedule("s", every(0.2, ago(0.01)))])
        [schedule] = await store.acquire_schedules("a", LEASE, 100)
        assert schedule.next_fire_time is not None
        until = schedule.next_fire_time + timedelta(seconds=0.4)
        await eventually(lambda: connection.fetchval("select now() > $1", until))
        await store.add_job(a_job(schedule_id="s"))
        await store.release_schedules("a", [result_of(schedule)])
    came = await connection.fetch("select state from duetime.fires where fire_time <= $1 order by fire_time", until)
    assert [fire["state"] for fire in came] == ["pending", "skipped", "skipped"]
    early = "select count(*) from duetime.jobs where fire_time > $1 and created_at >= run_at"
    assert await connection.fetchval(early, schedule.next_fire_time) == 0, "all others are looked at when they start"
