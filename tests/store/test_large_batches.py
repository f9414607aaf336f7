"""What a statement looks at grows with its batch, and no faster: 300 jobs cost no more than 300 times one.

After five times a connection goes over to a plan for any values, which takes every array for ten long: on a new
database, whose tables were empty when it was made, that is the plan to fear.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

import asyncpg
import pytest
from apscheduler import ConflictPolicy, Job, JobOutcome, JobResult, Schedule
from apscheduler.triggers.date import DateTrigger

from duetime.attempts import Retry
from duetime.options import TaskOptions
from duetime.store.changing import ScheduleChanges
from duetime.store.driver import PLANS
from duetime.store.node import NodeDataStore
from duetime.store.reads import Reads
from duetime.store.statements import Statements
from duetime.store.statements.naming import texts

from .parts import LEASE, a_job, a_schedule, a_task, ago, result_of, silent_broker, started
from .plans import ExplainedConnections

SIZE = 300

MOST = 100
"""Rows that all nodes of a plan look at together, for each item of a batch."""

NAMES = [f"schedule-{n}" for n in range(SIZE)]


def schedules(**options: Any) -> list[Schedule]:
    return [a_schedule(name, DateTrigger(ago(-30)), **options) for name in NAMES]


async def fire(store: NodeDataStore, **options: Any) -> list[Job]:
    """Claim schedules, renew the claims and release them; return their jobs."""
    await store.add_schedules(schedules(**options), ConflictPolicy.replace)
    claimed = await store.acquire_schedules("this node", LEASE, SIZE)
    assert len(claimed) == SIZE
    await store.database.fetch("extend_schedules", "this node", NAMES, LEASE, deadline=None)
    for schedule in claimed:
        await store.add_job(a_job(schedule.task_id, schedule_id=schedule.id))
    await store.release_schedules("this node", [result_of(schedule) for schedule in claimed])
    return [card.job for card in store._hand]


async def hold(store: NodeDataStore) -> None:
    """Renew the claims of jobs, look after them, and give them back."""
    ids = [job.id for job in await fire(store)]
    assert len(ids) == SIZE
    await store._renew_leases(ids)
    for name, *arguments in (
        ("held_jobs", "this node", ids),
        ("overlapped_jobs", ids),
        ("cancel_requests", "this node", ids),
        ("confirm_jobs", "this node", ids, False),
    ):
        await store.database.fetch(name, *arguments, deadline=None)
    await store.give_back(ids)


async def finish(store: NodeDataStore) -> None:
    """End jobs that have succeeded, all at once."""
    jobs = await fire(store)
    results = [JobResult.from_job(job, JobOutcome.success, return_value=1) for job in jobs]
    await asyncio.gather(*(store.release_job("this node", *each) for each in zip(jobs, results, strict=True)))


async def fail(store: NodeDataStore) -> None:
    """End jobs that have failed: for good, with all that follows, or for now."""
    options = TaskOptions(on_failure="work", pause_on_failure=1)
    for each in (options, TaskOptions(retry=Retry())):
        jobs = await fire(store, metadata=each.to_metadata())
        results = [JobResult.from_job(job, JobOutcome.error, exception=ValueError("no")) for job in jobs]
        await asyncio.gather(*(store.release_job("this node", *each) for each in zip(jobs, results, strict=True)))
        await store.remove_schedules(NAMES)


async def queue(store: NodeDataStore) -> None:
    """Claim jobs from the queue, and leave."""
    store.works = False
    await fire(store)
    claimed, _, _ = await store._claim("this node", LEASE, SIZE, timedelta(minutes=1))
    assert len(claimed) == SIZE
    await store._leave()


async def reap(store: NodeDataStore) -> None:
    """End the attempts of a node that has vanished."""
    await fire(store)
    found = await store.database.fetch("reap_jobs", "this node", "retry", deadline=None)
    assert len(found) == SIZE


async def change(store: NodeDataStore) -> None:
    """Replace, pause, resume and remove schedules with jobs that are held, and clean up."""
    await fire(store)
    await fire(store)
    assert len(await store.pause_schedules(NAMES)) == SIZE
    found = await Reads(store).named(NAMES)
    assert len(await ScheduleChanges(store).resume(found, ago(0))) == SIZE
    assert len(await store.remove_existing(NAMES[: SIZE // 2])) == SIZE // 2
    await store.cleanup()


_OTHERS = """
    insert into duetime.schedules (id, task_id, trigger, args, kwargs, coalesce, job_executor, metadata, revision,
        next_fire_time)
    select 'other-' || n, 'work', '', '[]', '{}', 'latest', 'auto', '{}', gen_random_uuid(), now() + interval '1 year'
    from generate_series(1, 30000) n
"""


@pytest.mark.parametrize("others", [False, True], ids=["alone", "among-others"])
@pytest.mark.parametrize("step", [fire, hold, finish, fail, queue, reap, change], ids=lambda step: step.__name__)
async def test_a_large_batch_costs_no_more_than_its_items(
    connection: asyncpg.Connection, step: Callable[[NodeDataStore], Awaitable[object]], others: bool
) -> None:
    """Also among 30,000 other schedules of which PostgreSQL knows nothing yet, because nobody has counted them."""
    undone = connection.transaction()
    await undone.start()
    try:
        explained = ExplainedConnections(connection)
        # As the store's own connections are.
        await connection.execute(";".join(f"set {name} = {value}" for name, value in PLANS.items()))
        store = NodeDataStore(
            "postgresql://", connections=explained, identity="this node", look_ahead=timedelta(minutes=1)
        )
        async with started(store, silent_broker()):
            await explained.prepare(store.database.statements[name] for name, text in texts.items() if "$1" in text)
            await store.add_task(a_task())
            if others:
                await connection.execute(_OTHERS)
            await step(store)
    finally:
        await undone.rollback()
    touched = {
        (name, kind): plan.touched / SIZE
        for name, plans in explained.plans.items()
        for number, plan in enumerate(plans)
        for kind in [("these values", "any values")[number % 2]]
        if not (name.endswith("_many") and kind == "any values")  # see below
    }
    assert ("release_schedules_many", "these values") in touched
    assert {what: rows for what, rows in touched.items() if rows > MOST} == {}, "rows for each item of the batch"


@pytest.mark.parametrize("name", [name for name in texts if name.endswith("_many")])
async def test_a_large_batch_is_always_planned_for_its_values(connection: asyncpg.Connection, name: str) -> None:
    """Past the fifth time too, even when the batch that is planned is a large one, and the tables are empty."""
    statement = await connection.prepare(Statements("duetime")[name])
    arguments = [[None] * SIZE if kind.kind == "array" else None for kind in statement.get_parameters()]
    for _ in range(8):
        await statement.fetch(*arguments)
    counts = await connection.fetchrow(
        "select generic_plans, custom_plans from pg_prepared_statements where name = $1", statement.get_name()
    )
    assert counts is not None
    assert tuple(counts) == (0, 8)
