"""Several nodes: limits for each key of a task's arguments, and jobs that go before others."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import Any

import asyncpg
import pytest
from apscheduler.triggers.date import DateTrigger

from duetime import Duetime, Settings
from duetime.options import Overlap, TaskOptions
from duetime.settings import DatabaseUrl
from duetime.tasks import TaskRegistry

from ..store.parts import ago, every
from ..waiting import eventually

Serve = Callable[[str], Awaitable[None]]


@asynccontextmanager
async def nodes(
    database: DatabaseUrl, names: str, serve: Serve, options: TaskOptions, **settings: Any
) -> AsyncIterator[list[Duetime]]:
    """Run nodes that know the task ``serve``, which is told whom to serve. The poll is a minute away."""
    async with AsyncExitStack() as stack:
        running = []
        for name in names.split():
            registry = TaskRegistry()
            registry.add(serve, name="serve", options=options)
            given = {"database_url": database.text, "node_name": name, "poll_interval": 60, "drain_timeout": 0}
            duetime = Duetime(Settings(**{**given, **settings}), registry=registry)
            running.append(await stack.enter_async_context(duetime))
            async with asyncio.timeout(20):
                await duetime._broker.wait_listening()
        yield running


class Served:
    """Counts how often each customer is served at once."""

    def __init__(self, seconds: float = 0.005) -> None:
        self.seconds = seconds
        self.now: Counter[str] = Counter()
        self.most: Counter[str] = Counter()
        self.most_in_all = 0
        self.done: Counter[str] = Counter()

    async def serve(self, customer: str = "nobody") -> None:
        self.now[customer] += 1
        self.most[customer] = max(self.most[customer], self.now[customer])
        self.most_in_all = max(self.most_in_all, self.now.total())
        await asyncio.sleep(self.seconds)
        self.now[customer] -= 1
        self.done[customer] += 1


PER_CUSTOMER = TaskOptions(
    overlap=Overlap.allow, concurrency_key="customer", concurrency_position=0, max_running_per_key=1
)


async def test_each_customer_is_served_once_at_a_time_over_all_nodes(
    database: DatabaseUrl, connection: asyncpg.Connection
) -> None:
    served = Served()
    async with nodes(database, "a b c", served.serve, PER_CUSTOMER) as [a, b, c]:
        places = [a, b, c] * 12
        await asyncio.gather(
            *(
                node.scheduler.add_job("serve", kwargs={"customer": f"c{n % 4}"})
                if n % 2
                else node.scheduler.add_job("serve", args=[f"c{n % 4}"])
                for n, node in enumerate(places)
            )
        )
        await eventually(lambda: served.done.total() == 36)
    assert served.done == {f"c{n}": 9 for n in range(4)}
    assert set(served.most.values()) == {1}
    assert served.most_in_all > 1
    assert await connection.fetchval("select count(*) from duetime.jobs") == 0


async def test_a_customer_with_a_long_queue_holds_no_other_up(database: DatabaseUrl) -> None:
    release = asyncio.Event()
    ran: list[str] = []

    async def serve(customer: str) -> None:
        ran.append(customer)
        if customer == "busy":
            await release.wait()

    async with nodes(database, "a b", serve, PER_CUSTOMER) as [a, b]:
        await asyncio.gather(*(a.scheduler.add_job("serve", args=["busy"]) for _ in range(300)))
        await b.scheduler.add_job("serve", args=["another"])
        await b.scheduler.add_job("serve")
        await eventually(lambda: "another" in ran)
        assert ran.count("busy") == 1
        release.set()


async def test_the_limit_of_the_task_counts_as_well(database: DatabaseUrl) -> None:
    served = Served(0.01)
    async with nodes(database, "a b c", served.serve, PER_CUSTOMER) as [a, b, c]:
        await a.scheduler.configure_task("serve", max_running_jobs=2)
        await asyncio.gather(
            *(node.scheduler.add_job("serve", args=[f"c{n % 6}"]) for n, node in enumerate([a, b, c] * 10))
        )
        await eventually(lambda: served.done.total() == 30)
    assert served.most_in_all == 2
    assert set(served.most.values()) == {1}


async def test_fires_of_several_schedules_share_the_limit_of_their_key(
    database: DatabaseUrl, connection: asyncpg.Connection
) -> None:
    served = Served(0.02)
    async with nodes(database, "a b", served.serve, PER_CUSTOMER) as [a, b]:
        for number in range(4):
            await a.scheduler.add_schedule("serve", every(0.1), id=f"s{number}", kwargs={"customer": "c"})
        await eventually(lambda: served.done.total() >= 12)
        for number in range(4):
            await b.scheduler.pause_schedule(f"s{number}")
        await eventually(lambda: connection.fetchval("select count(*) = 0 from duetime.jobs"))
    assert served.most == {"c": 1}
    assert await connection.fetchval("select bool_and(state = 'succeeded') from duetime.fires")
    shown = await connection.fetch("select distinct metadata ->> 'duetime.key' as key from duetime.schedules")
    assert [row["key"] for row in shown] == ['"c"']


async def test_the_place_of_a_key_is_free_again_after_a_failure(database: DatabaseUrl) -> None:
    ran: list[str] = []

    async def serve(customer: str) -> None:
        ran.append(customer)
        raise RuntimeError("not today")

    async with nodes(database, "a b", serve, PER_CUSTOMER) as [a, _b]:
        for _ in range(5):
            await a.scheduler.add_job("serve", args=["c"])
        await eventually(lambda: len(ran) == 5)


@pytest.mark.parametrize("limit", [None, 1], ids=["task without a limit", "task with a limit"])
async def test_of_the_jobs_that_are_due_those_of_a_higher_priority_are_claimed_first(
    database: DatabaseUrl, limit: int | None
) -> None:
    release, ran = asyncio.Event(), []

    async def serve(customer: str) -> None:
        ran.append(customer)
        if customer == "first":
            await release.wait()

    options = TaskOptions(overlap=Overlap.allow)
    async with nodes(database, "a", serve, options, max_concurrent_jobs=1) as [a]:
        if limit:
            await a.scheduler.configure_task("serve", max_running_jobs=limit)
        await a.scheduler.add_job("serve", args=["first"])
        await eventually(lambda: ran == ["first"])
        for priority in (0, 0, 5, 9, 5, 0):
            given: dict[str, Any] = {"duetime.priority": priority} if priority else {}
            await a.scheduler.add_job("serve", args=[str(priority)], metadata=given)
        release.set()
        await eventually(lambda: len(ran) == 7)
    assert ran == ["first", "9", "5", "5", "0", "0", "0"]


async def test_of_the_jobs_that_a_node_holds_those_of_a_higher_priority_start_first(database: DatabaseUrl) -> None:
    release, ran = asyncio.Event(), []

    async def serve(customer: str) -> None:
        ran.append(customer)
        if customer == "first":
            await release.wait()

    async with nodes(database, "a", serve, TaskOptions(overlap=Overlap.allow), max_concurrent_jobs=1) as [a]:
        await a.scheduler.add_job("serve", args=["first"])
        await eventually(lambda: ran == ["first"])
        due = ago(0)
        for priority in (0, 5, 9, 1):
            metadata: dict[str, Any] = {"duetime.priority": priority}
            await a.scheduler.add_schedule("serve", DateTrigger(due), args=[str(priority)], metadata=metadata)
        await eventually(lambda: len(a.scheduler.store._hand) == 4)
        release.set()
        await eventually(lambda: len(ran) == 5)
    assert ran == ["first", "9", "5", "1", "0"]


async def test_a_schedule_of_a_higher_priority_goes_before_others_that_wait_for_a_place(
    database: DatabaseUrl, connection: asyncpg.Connection
) -> None:
    release, ran = asyncio.Event(), []

    async def serve(customer: str) -> None:
        ran.append(customer)
        if customer == "first":
            await release.wait()

    async with nodes(database, "a b", serve, TaskOptions(overlap=Overlap.allow)) as [a, _b]:
        await a.scheduler.configure_task("serve", max_running_jobs=1)
        await a.scheduler.add_job("serve", args=["first"])
        await eventually(lambda: ran == ["first"])
        queued = "select exists (select from duetime.jobs where schedule_id = $1)"
        for name, priority in (("low", 0), ("high", 1)):
            metadata: dict[str, Any] = {"duetime.priority": priority}
            await a.scheduler.add_schedule("serve", every(3600, ago(1)), id=name, args=[name], metadata=metadata)
            await eventually(partial(connection.fetchval, queued, name))
        release.set()
        await eventually(lambda: len(ran) == 3)
    assert ran == ["first", "high", "low"]
