"""Several nodes in one process: ``max_running_jobs`` holds over all of them, and nobody waits for another's turn."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import asyncpg
import pytest
from apscheduler.triggers.date import DateTrigger
from apscheduler.triggers.interval import IntervalTrigger

from duetime import Duetime, Retry, Settings
from duetime.options import Overlap, TaskOptions
from duetime.settings import DatabaseUrl
from duetime.tasks import TaskRegistry

from ..store.parts import ago, every
from ..waiting import eventually

Work = Callable[[str], Awaitable[None]]


@asynccontextmanager
async def nodes(
    database: DatabaseUrl, names: str, tasks: Mapping[str, Work], options: TaskOptions | None = None, **settings: Any
) -> AsyncIterator[list[Duetime]]:
    """Run nodes of these names, whose tasks are told on which of them they run.

    The poll is a minute away: what a test waits for has to come by a wake-up or by a timer.
    """
    async with AsyncExitStack() as stack:
        running = []
        for name in names.split():
            registry = TaskRegistry()
            for task, work in tasks.items():
                registry.add(
                    _told_where(work, task, name), name=task, options=options or TaskOptions(overlap=Overlap.allow)
                )
            duetime = Duetime(
                Settings(**{"database_url": database.text, "node_name": name, "poll_interval": 60, **settings}),
                registry=registry,
            )
            running.append(await stack.enter_async_context(duetime))
            async with asyncio.timeout(20):
                await duetime._broker.wait_listening()
        yield running


def _told_where(work: Work, task: str, node: str) -> Callable[[], Awaitable[None]]:
    async def run() -> None:
        await work(node)

    run.__qualname__ = task
    return run


async def limit(duetime: Duetime, task: str, most: int) -> None:
    await duetime.scheduler.configure_task(task, max_running_jobs=most)


class Busy:
    """Work that counts how much of it goes on at once."""

    def __init__(self) -> None:
        self.now = 0
        self.most = 0
        self.done: Counter[str] = Counter()

    async def __call__(self, node: str) -> None:
        self.now += 1
        self.most = max(self.most, self.now)
        await asyncio.sleep(0.002)
        self.now -= 1
        self.done[node] += 1


async def test_three_nodes_together_keep_to_the_limit_of_a_task_and_run_all_of_it(
    database: DatabaseUrl, connection: asyncpg.Connection
) -> None:
    busy = Busy()
    async with nodes(database, "a b c", {"busy": busy}) as [a, b, c]:
        await limit(a, "busy", 2)
        await asyncio.gather(*(each.scheduler.add_job("busy") for each in [a, b, c] * 30))
        await eventually(lambda: busy.done.total() == 90)
    assert busy.most == 2
    assert await connection.fetchval("select count(*) from duetime.jobs") == 0


async def test_a_queue_that_waits_for_its_turn_holds_nobody_else_up(database: DatabaseUrl) -> None:
    """500 jobs of a task that runs one at a time are queued before the job of another task."""
    release, ran = asyncio.Event(), asyncio.Event()

    async def blocked(_node: str) -> None:
        await release.wait()

    async def free(_node: str) -> None:
        ran.set()

    async with nodes(database, "a b", {"blocked": blocked, "free": free}, drain_timeout=0) as [a, b]:
        await limit(a, "blocked", 1)
        await asyncio.gather(*(a.scheduler.add_job("blocked") for _ in range(500)))
        await b.scheduler.add_job("free")
        async with asyncio.timeout(20):
            await ran.wait()
        release.set()


async def test_a_queue_that_waits_for_its_turn_does_not_hide_when_another_job_is_due(database: DatabaseUrl) -> None:
    """The second attempt of another task is due in a moment, and the look at the queue finds older jobs first."""
    release = asyncio.Event()
    attempts: list[str] = []

    async def blocked(_node: str) -> None:
        await release.wait()

    async def unlucky(node: str) -> None:
        attempts.append(node)
        if len(attempts) < 3:
            raise RuntimeError("not yet")

    options = TaskOptions(overlap=Overlap.allow, retry=Retry(max_attempts=3, backoff=0.8, factor=1, jitter=0))
    tasks = {"blocked": blocked, "unlucky": unlucky}
    async with nodes(database, "a", tasks, options, drain_timeout=0) as [a]:
        await limit(a, "blocked", 1)
        await asyncio.gather(*(a.scheduler.add_job("blocked") for _ in range(20)))
        await a.scheduler.add_job("unlucky")
        await eventually(lambda: len(attempts) == 3)
        release.set()


async def test_a_limited_task_starts_when_its_schedule_is_due(
    database: DatabaseUrl, connection: asyncpg.Connection
) -> None:
    """Its jobs are not claimed ahead of their time; so somebody has to come back for them at their time."""
    busy = Busy()
    async with nodes(database, "a b", {"busy": busy}) as [a, _b]:
        await limit(a, "busy", 1)
        await a.scheduler.add_schedule("busy", every(0.4), id="s")
        await eventually(lambda: busy.done.total() >= 5)
        await a.scheduler.pause_schedule("s")
        await eventually(lambda: connection.fetchval("select count(*) = 0 from duetime.jobs"))
    early = await connection.fetchval("select count(*) from duetime.runs where started_at < due_at - interval '0.1 s'")
    assert early == 0


async def test_a_limited_task_makes_its_next_attempt_when_it_is_due(database: DatabaseUrl) -> None:
    attempts: list[str] = []

    async def unlucky(node: str) -> None:
        attempts.append(node)
        if len(attempts) < 4:
            raise RuntimeError("not yet")

    options = TaskOptions(retry=Retry(max_attempts=4, backoff=0.3, factor=2, jitter=0))
    async with nodes(database, "a b", {"unlucky": unlucky}, options) as [a, _b]:
        await limit(a, "unlucky", 1)
        await a.scheduler.add_job("unlucky")
        await eventually(lambda: len(attempts) == 4)


async def test_every_node_gets_its_share_of_a_long_queue(database: DatabaseUrl) -> None:
    """15 jobs go on only when all of them are running, and each of three nodes has room for five."""
    barrier = asyncio.Barrier(15)
    done: Counter[str] = Counter()

    async def together(node: str) -> None:
        await barrier.wait()
        done[node] += 1

    async with nodes(database, "a b c", {"together": together}, max_concurrent_jobs=5) as [a, _b, _c]:
        await asyncio.gather(*(a.scheduler.add_job("together") for _ in range(15)))
        await eventually(lambda: done.total() == 15)
    assert done == {"a": 5, "b": 5, "c": 5}


async def test_a_scheduler_and_a_worker_share_the_work_of_a_schedule(
    database: DatabaseUrl, connection: asyncpg.Connection
) -> None:
    ran: list[str] = []

    async def work(node: str) -> None:
        ran.append(node)

    async with (
        nodes(database, "planner", {"work": work}, role="scheduler") as [planner],
        nodes(database, "hand", {"work": work}, role="worker"),
    ):
        await planner.scheduler.add_schedule(
            "work", IntervalTrigger(microseconds=300_000, start_time=ago(), end_time=ago(-1))
        )
        await eventually(lambda: len(ran) >= 3)
        await eventually(lambda: connection.fetchval("select bool_and(state = 'succeeded') from duetime.fires"))
    assert set(ran) == {"hand"}
    assert {row["node"].split(":")[0] for row in await connection.fetch("select node from duetime.runs")} == {"hand"}
    assert {row["node"].split(":")[0] for row in await connection.fetch("select node from duetime.fires")} == {
        "planner"
    }


async def test_a_worker_alone_fires_nothing_and_a_scheduler_alone_runs_nothing(
    database: DatabaseUrl, connection: asyncpg.Connection
) -> None:
    ran: list[str] = []

    async def work(node: str) -> None:
        ran.append(node)

    async with nodes(database, "hand", {"work": work}, role="worker") as [hand]:
        await hand.scheduler.add_schedule("work", DateTrigger(ago(1)), id="s")
        await hand.scheduler.add_job("work")
        await eventually(lambda: ran == ["hand"])
        assert await connection.fetchval("select count(*) from duetime.fires") == 0
    async with nodes(database, "planner", {"work": work}, role="scheduler"):
        await eventually(lambda: connection.fetchval("select count(*) = 1 from duetime.jobs"))
    assert ran == ["hand"]
    assert await connection.fetchval("select acquired_by is null from duetime.jobs"), "expected it to be left queued"


async def test_a_node_that_ends_while_it_claims_gives_back_at_once_what_it_gets(
    database: DatabaseUrl, connection: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answer to its claim comes after it has begun to end; nobody waits for the time that running jobs get."""
    ran: list[str] = []

    async def work(node: str) -> None:
        ran.append(node)

    async with nodes(database, "a", {"work": work}, drain_timeout=3600) as [a]:
        store = a._scheduler.store
        claim, claiming, answer = store._claim, asyncio.Event(), asyncio.Event()

        async def slow_claim(*arguments: Any) -> Any:
            found = await claim(*arguments)
            if found[0]:
                claiming.set()
                await answer.wait()
            return found

        monkeypatch.setattr(store, "_claim", slow_claim)
        await a.scheduler.add_job("work")
        await claiming.wait()
        await store.stop_claiming()
        waiting = asyncio.create_task(store.wait_until_idle(3600))
        await asyncio.sleep(0)
        answer.set()
        async with asyncio.timeout(20):
            assert await waiting
        queued = await connection.fetch("select acquired_by, attempt from duetime.jobs")
        assert [tuple(row) for row in queued] == [(None, 0)]
    assert ran == []
