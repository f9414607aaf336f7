"""No job waits for another one that it has nothing to do with."""

from __future__ import annotations

import asyncpg
import pytest
from apscheduler.triggers.date import DateTrigger

from duetime.settings import DatabaseUrl

from ..waiting import eventually
from .parts import a_job, ago, node, running, tasks

done: list[str] = []


async def work(name: str = "work") -> None:
    done.append(name)


@pytest.fixture(autouse=True)
def nothing_done() -> None:
    done.clear()


@pytest.mark.parametrize("jitter", [20, 86_400], ids=["held", "queued"])
async def test_fires_that_wait_for_their_jitter_take_no_place_from_the_queue(
    database: DatabaseUrl, connection: asyncpg.Connection, jitter: int
) -> None:
    scheduler = node(database, tasks(work), max_concurrent_jobs=2)
    async with running(scheduler):
        for number in range(40):
            await scheduler.add_schedule("work", DateTrigger(ago(1)), id=f"s{number}", max_jitter=jitter)
        await eventually(lambda: connection.fetchval("select count(*) = 40 from duetime.fires"))
        await scheduler.add_job("work", args=["not kept waiting"])
        await eventually(lambda: "not kept waiting" in done, within=5)


async def test_a_fire_whose_jitter_is_long_belongs_to_nobody_until_its_time_comes(
    database: DatabaseUrl, connection: asyncpg.Connection
) -> None:
    """A node that holds it for hours could die in them, and a task that runs at most once would never run."""
    scheduler = node(database, tasks(work))
    async with running(scheduler):
        await scheduler.add_schedule("work", DateTrigger(ago(1)), id="s", max_jitter=86_400)
        await eventually(lambda: connection.fetchval("select count(*) = 1 from duetime.jobs"))
        assert await connection.fetchval("select acquired_by from duetime.jobs") is None
        await connection.execute("update duetime.jobs set run_at = now()")
        await scheduler.add_job("work", args=["wakes the loop"])
        await eventually(lambda: sorted(done) == ["wakes the loop", "work"], within=5)


async def test_a_job_that_cannot_be_read_does_not_keep_the_next_one_waiting(
    database: DatabaseUrl, connection: asyncpg.Connection
) -> None:
    scheduler = node(database, tasks(work), max_concurrent_jobs=1)
    await scheduler.configure_task("work")
    for name in ("bad", "worse", "good"):
        await scheduler.store.add_job(a_job("work", args=[name]))
    damage = (
        "update duetime.jobs set args = 'damaged' where id in (select id from duetime.jobs order by run_at limit 2)"
    )
    await connection.execute(damage)
    async with running(scheduler):
        await eventually(lambda: done == ["good"], within=5)
    assert await connection.fetchval("select count(*) from duetime.runs where outcome = 'unreadable'") == 2


async def test_a_job_that_another_nodes_claim_has_locked_and_leaves_is_not_left_until_the_poll(
    database: DatabaseUrl, connection: asyncpg.Connection
) -> None:
    """That node has one place, which the urgent one of two jobs takes; while its claim is under way it locks both."""
    planner = node(database, tasks(work), role="scheduler")
    worker = node(database, tasks(work), role="worker", poll_interval=60)
    async with running(planner):
        await planner.add_job("work", args=["urgent"], metadata={"duetime.priority": 5})
        await planner.add_job("work", args=["not urgent"])
        claim = connection.transaction()
        await claim.start()
        claimed = "select count(*) from duetime.claim_jobs_v3('other', interval '1 minute', interval '0', 1, true)"
        assert await connection.fetchval(claimed) == 1
        async with running(worker):
            store = worker.store
            await eventually(lambda: store._is_asked and not store._queue_is_due and not store._answers)
            await claim.commit()
            await eventually(lambda: done == ["not urgent"])
