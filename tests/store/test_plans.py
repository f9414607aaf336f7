"""Every hot statement finds its rows by an index, however many there are."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from uuid import UUID

import asyncpg
import pytest
from apscheduler import ConflictPolicy, JobOutcome, JobResult

from duetime.settings import DatabaseUrl
from duetime.store.node import NodeDataStore
from duetime.store.reads import Reads

from .parts import LEASE, a_job, a_schedule, ago, every, result_of, silent_broker, started
from .plans import ExplainedConnections, Plan, fill

LARGE = {"schedules", "jobs", "fires", "runs", "job_results"}
"""Tables that grow."""

Step = Callable[[NodeDataStore], Awaitable[object]]


@pytest.fixture(scope="module")
def large_database(server: DatabaseUrl) -> Iterator[DatabaseUrl]:
    """A database with 200,000 schedules, fires and runs."""
    name = f"t{os.getpid()}_large"
    url = replace(server, database=name)
    asyncio.run(_run(server, f"create database {name} template duetime_template"))
    asyncio.run(fill(url))
    yield url
    asyncio.run(_run(server, f"drop database {name} with (force)"))


async def _run(server: DatabaseUrl, statement: str) -> None:
    connection = await asyncpg.connect(**server.asyncpg_arguments())
    await connection.execute(statement)
    await connection.close()


async def plans_of(database: DatabaseUrl, step: Step) -> dict[str, list[Plan]]:
    """Return the plans of the statements that a step runs; what it changes is undone."""
    connection = await asyncpg.connect(**database.asyncpg_arguments())
    undone = connection.transaction()
    await undone.start()
    try:
        explained = ExplainedConnections(connection)
        store = NodeDataStore("postgresql://", connections=explained, identity="this node", lease_duration=LEASE)
        async with started(store, silent_broker()):
            explained.plans.clear()
            await step(store)
            plans = dict(explained.plans)
    finally:
        await undone.rollback()
        await connection.close()
    return plans


async def claim_and_release(store: NodeDataStore) -> None:
    schedules = await store.acquire_schedules("this node", LEASE, 1000)
    assert schedules, "expected schedules that are due"
    await store.extend_acquired_schedule_leases("this node", {schedule.id for schedule in schedules}, LEASE)
    for schedule in schedules:
        await store.add_job(a_job(schedule.task_id, schedule_id=schedule.id))
    await store.release_schedules("this node", [result_of(schedule) for schedule in schedules])


async def claim_and_finish(store: NodeDataStore) -> None:
    jobs = [job for job, _ in (await store._claim("this node", LEASE, 100, timedelta(seconds=1)))[0]]
    assert len(jobs) == 100
    ids = {job.id for job in jobs}
    await store.database.fetch("extend_jobs", "this node", list(ids), LEASE, deadline=None)
    await store.database.fetch("held_jobs", "this node", list(ids), deadline=None)
    await store.database.fetch("overlapped_jobs", list(ids), deadline=None)
    await store.give_back([jobs[0].id])
    for job in jobs[1:3]:
        await store.release_job("this node", job, JobResult.from_job(job, JobOutcome.success, return_value=1))


STEPS: dict[str, tuple[Step, dict[str, set[str]]]] = {
    "adding a schedule": (
        lambda store: store.add_schedule(a_schedule("new", every(60)), ConflictPolicy.exception),
        {"add_schedule": {"schedules_due"}},
    ),
    "adding many schedules": (
        lambda store: store.add_schedules([a_schedule(f"new-{n}", every(60)) for n in range(500)]),
        {"add_schedules": {"schedules_pkey", "schedules_due"}},
    ),
    "replacing schedules": (
        lambda store: store.add_schedules(
            [a_schedule(f"schedule-{n}", every(60)) for n in range(400, 420)], ConflictPolicy.replace
        ),
        {"replace_schedules": {"schedules_pkey", "jobs_by_schedule"}},
    ),
    "removing schedules": (
        lambda store: store.remove_schedules([f"schedule-{n}" for n in range(400, 420)]),
        {"remove_schedules": {"schedules_pkey", "jobs_by_schedule"}},
    ),
    "pausing a schedule": (
        lambda store: store.pause_schedule("schedule-2002"),
        {"pause_schedules": {"schedules_pkey", "jobs_by_schedule"}},
    ),
    "resuming a schedule": (
        lambda store: store.resume_schedule("schedule-2001"),
        {"schedules": {"schedules_pkey"}, "resume_schedule": {"schedules_pkey"}},
    ),
    "running a schedule by request": (
        lambda store: store.run_schedule("schedule-2002"),
        {"run_schedule": {"schedules_pkey"}},
    ),
    "claiming and releasing schedules": (
        claim_and_release,
        {
            "acquire_schedules": {"schedules_due", "schedules_pkey"},
            "extend_schedules": {"schedules_pkey"},
            "release_schedules": {"schedules_pkey", "schedules_due", "schedules_held", "jobs_by_schedule"},
        },
    ),
    "looking when work is due": (
        lambda store: store.database.fetch("next_work", deadline=None),
        {"next_work": {"schedules_due", "schedules_held", "jobs_queue", "jobs_leases"}},
    ),
    "adding a job": (lambda store: store.add_job(a_job("task-9")), {"add_jobs": set()}),
    "reading a job": (lambda store: store.get_jobs([UUID(int=1)]), {"jobs": {"jobs_pkey"}}),
    "claiming and finishing jobs": (
        claim_and_finish,
        {
            "acquire_jobs": {"jobs_queue", "jobs_leases"},
            "claim_jobs_v1": {"jobs_queue", "jobs_queue_by_task", "jobs_running", "jobs_pkey"},
            "extend_jobs": {"jobs_pkey"},
            "held_jobs": set(),
            "overlapped_jobs": {"jobs_pkey", "jobs_by_schedule"},
            "give_back_jobs": {"jobs_pkey"},
            "finish_jobs": {"jobs_pkey"},
        },
    ),
    "counting the running jobs of a task": (
        lambda store: store.database.fetch("tasks", "task-1", deadline=None),
        {"tasks": {"jobs_running"}},
    ),
    "counting the running jobs of all tasks": (lambda store: store.get_tasks(), {"tasks": {"jobs_running"}}),
    "ending the jobs of a vanished node": (
        lambda store: store._reap(None, default="retry"),
        {"reap_jobs": {"jobs_leases", "jobs_pkey"}},
    ),
    "leaving": (lambda store: store._leave(), {"leave": {"schedules_held", "jobs_leases"}}),
    "cleaning up": (
        lambda store: store.cleanup(),
        {
            "purge_results": {"job_results_expiry", "job_results_pkey"},
            "purge_finished_schedules": {"schedules_finished", "jobs_by_schedule"},
        },
    ),
    "reading a result": (lambda store: store.get_job_result(UUID(int=1)), {"job_result": {"job_results_pkey"}}),
}


PAGES: dict[str, tuple[Callable[[Reads], Awaitable[object]], str]] = {
    "a schedule": (lambda reads: reads.schedule("schedule-7"), "schedules_pkey"),
    "schedules": (lambda reads: reads.schedules(limit=50), "schedules_pkey"),
    "the next schedules": (lambda reads: reads.schedules(limit=50, after="schedule-5"), "schedules_pkey"),
    "schedules of a task": (lambda reads: reads.schedules(limit=50, task="task-7"), "schedules_by_task"),
    "schedules with a tag": (lambda reads: reads.schedules(limit=50, tag="tag-100"), "schedules_by_tag"),
    "schedules in a state": (lambda reads: reads.schedules(limit=50, state="active"), "schedules_pkey"),
    "fires": (lambda reads: reads.fires(limit=50), "fires_recent"),
    "the next fires": (lambda reads: reads.fires(limit=50, before=(ago(86_400), "schedule-5")), "fires_recent"),
    "fires of a schedule": (lambda reads: reads.fires(limit=50, schedule_id="schedule-7"), "fires_pkey"),
    "failed fires": (lambda reads: reads.fires(limit=50, state="failed"), "fires_recent"),
    "runs": (lambda reads: reads.runs(limit=50), "runs_pkey"),
    "the next runs": (lambda reads: reads.runs(limit=50, before=9000), "runs_pkey"),
    "a run": (lambda reads: reads.runs(limit=1, run_id=77), "runs_pkey"),
    "runs of a schedule": (lambda reads: reads.runs(limit=50, schedule_id="schedule-7"), "runs_by_schedule"),
    "runs of a task": (lambda reads: reads.runs(limit=50, task="task-7"), "runs_by_task"),
    "a job": (lambda reads: reads.jobs(limit=1, job_id=UUID(int=1)), "jobs_pkey"),
}


def check(statement: str, plan: Plan) -> None:
    whole = plan.scanned_whole & LARGE
    assert not whole, f"{statement} reads all of {whole}:\n{plan}"
    assert not plan.spilled, f"{statement} needs the disk:\n{plan}"


@pytest.mark.parametrize("name", STEPS)
async def test_a_statement_finds_its_rows_by_an_index(large_database: DatabaseUrl, name: str) -> None:
    step, expected = STEPS[name]
    plans = await plans_of(large_database, step)
    for statement, made in plans.items():
        for plan in made:
            check(statement, plan)
    for statement, indexes in expected.items():
        used = {index for plan in plans.get(statement, ()) for index in plan.indexes}
        assert used >= indexes, f"{name}: expected {statement} to use {indexes}, and it used {used}"


@pytest.mark.parametrize("name", PAGES)
async def test_a_page_is_found_by_an_index(large_database: DatabaseUrl, name: str) -> None:
    read, index = PAGES[name]
    plans = await plans_of(large_database, lambda store: read(Reads(store)))
    # A filter that is not used is a null, which only the plan for the values knows.
    for_values = plans["read"][0]
    check(name, for_values)
    assert index in for_values.indexes, f"{name}:\n{for_values}"


async def test_a_wake_up_that_is_not_needed_is_found_out_by_an_index(large_database: DatabaseUrl) -> None:
    """A new schedule wakes nobody if another one is due before it: a look at one row, however many there are."""
    later = every(60, since=ago(-90 * 86_400))
    plans = await plans_of(
        large_database, lambda store: store.add_schedule(a_schedule("new", later), ConflictPolicy.exception)
    )
    [looked] = [node for node in plans["add_schedule"][0].nodes if node.get("Index Name") == "schedules_due"]
    assert looked["Actual Rows"] <= 1


async def test_jobs_that_wait_for_a_place_are_not_counted_to_find_a_free_one(large_database: DatabaseUrl) -> None:
    """5,000 queued jobs of a task without a free place cost the claim no more than the rows of those that run."""
    plans = await plans_of(large_database, lambda store: store._claim("this node", LEASE, 10, timedelta(0)))
    counted = [node for node in plans["claim_jobs_v1"][2].nodes if node.get("Index Name") == "jobs_running"]
    assert counted
    assert all(node["Actual Rows"] <= 50 for node in counted)
