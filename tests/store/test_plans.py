"""Every hot statement finds its rows by an index, however many there are."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from uuid import UUID, uuid4

import asyncpg
import attrs
import pytest
from apscheduler import ConflictPolicy, JobOutcome, JobResult

from duetime.options import TaskOptions
from duetime.settings import DatabaseUrl
from duetime.store import rows
from duetime.store.backfilling import make_up
from duetime.store.changing import ScheduleChanges, Update
from duetime.store.node import NodeDataStore
from duetime.store.reads import Reads
from duetime.store.retention import Retention

from ..template import TEMPLATE
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
    asyncio.run(_run(server, f"create database {name} template {TEMPLATE}"))
    asyncio.run(fill(url))
    yield url
    asyncio.run(_run(server, f"drop database {name} with (force)"))


async def _run(server: DatabaseUrl, statement: str) -> None:
    connection = await asyncpg.connect(**server.asyncpg_arguments())
    try:
        await connection.execute(statement)
    finally:
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


async def _cancel(store: NodeDataStore, *, queued: bool) -> None:
    """Cancel a job that is queued, or one that runs."""
    async with store.connections.acquire() as connection:
        job_id = await connection.fetchval(
            "select id from duetime.jobs where (acquired_by is null) = $1 limit 1", queued
        )
    await store.cancel_job(job_id)


async def fail_for_good(store: NodeDataStore) -> None:
    """End jobs as failed whose schedules are to be paused, and of which a task is to be told."""
    jobs = [job for job, _ in (await store._claim("this node", LEASE, 20, timedelta(seconds=1)))[0]]
    for job in jobs:
        follows = TaskOptions(on_failure="task-7", pause_on_failure=1)
        async with store.connections.acquire() as connection:
            await connection.fetch(
                "update duetime.jobs set metadata = $2::text::jsonb where id = $1",
                job.id,
                json.dumps(follows.to_metadata()),
            )
        job.metadata.update(follows.to_metadata())
        result = JobResult.from_job(job, JobOutcome.error, exception=ValueError("no"))
        await store.release_job("this node", job, result)


async def add_again(store: NodeDataStore) -> None:
    """Add a job whose first addition was not answered."""
    arrays = rows.columns([rows.job_values(a_job("task-9"), store.serializer)], 11)
    await store.database.fetch("add_jobs_again", *arrays, "", "", deadline=None)


async def change_in_place(store: NodeDataStore) -> None:
    row = await Reads(store).schedule("schedule-2002")
    assert row is not None
    schedule = rows.schedule_from(row, store.serializer)
    renamed = attrs.evolve(schedule, id="schedule-renamed", paused=False)
    assert await ScheduleChanges(store).update(row, Update(renamed, keeps_trigger=True))


async def resume_many(store: NodeDataStore) -> None:
    found = await Reads(store).named([f"schedule-{n}" for n in range(2001, 2401, 20)])
    assert len(await ScheduleChanges(store).resume(found, ago(0))) == 20


STEPS: dict[str, tuple[Step, dict[str, set[str]]]] = {
    "adding a schedule": (
        lambda store: store.add_schedule(a_schedule("new", every(60)), ConflictPolicy.exception),
        {"add_schedule": {"schedules_due"}},
    ),
    "adding many schedules": (
        lambda store: store.add_schedules(
            [a_schedule(f"new-{n}", every(60)) for n in range(40)], ConflictPolicy.do_nothing
        ),
        {"add_schedules": {"schedules_pkey", "schedules_due"}},
    ),
    "adding very many schedules": (
        lambda store: store.add_schedules([a_schedule(f"newer-{n}", every(60)) for n in range(500)]),
        {"tell_added": {"schedules_due"}},
    ),
    "claiming again": (
        lambda store: store._loop_fetch("lost_claims", "this node", []),
        {"lost_claims": {"jobs_leases"}},
    ),
    "opening the store": (
        lambda store: store.database._open(),
        {
            "opening": {
                "schedules_due",
                "schedules_held",
                "jobs_queue",
                "jobs_leases",
                "job_results_expiry",
                "schedules_finished",
            }
        },
    ),
    "replacing schedules": (
        lambda store: store.add_schedules(
            [a_schedule(f"schedule-{n}", every(60)) for n in range(400, 420)], ConflictPolicy.replace
        ),
        {"replace_schedules": {"schedules_pkey"}, "take_back_v1": {"jobs_by_schedule"}},
    ),
    "changing a schedule": (
        change_in_place,
        {
            "update_schedule": {"schedules_pkey"},
            "take_back_v1": {"jobs_by_schedule"},
            "rename_jobs_v1": {"jobs_by_schedule", "fires_pkey"},
        },
    ),
    "resuming many schedules": (
        resume_many,
        {"resume_schedules": {"schedules_pkey"}},
    ),
    "backfilling a schedule": (
        lambda store: make_up(store, "schedule-2002", [(ago(n * 60), uuid4()) for n in range(1000)], "allow"),
        {"backfill_schedule": {"schedules_pkey"}},
    ),
    "removing old history": (
        lambda store: Retention(
            store._user_fetch, store.database.clock, max_age=timedelta(days=13, hours=20), max_fires=None
        ).clean(),
        {
            "purge_fires": {"fires_recent"},
            "purge_runs": {"runs_pkey"},
            "purge_changes": set(),
            "purge_floors": set(),
            "own_histories": {"schedules_own_history"},
        },
    ),
    "looking for long histories": (
        lambda store: store.database.fetch("long_histories", "schedule-5", 100, deadline=None),
        {"long_histories": {"fires_pkey"}},
    ),
    "shortening one history": (
        lambda store: store.database.fetch("purge_history_of", "schedule-7", ago(0), 10, deadline=None),
        {"purge_history_of": {"fires_pkey", "runs_by_schedule"}},
    ),
    "removing schedules": (
        lambda store: store.remove_schedules([f"schedule-{n}" for n in range(400, 420)]),
        {"remove_schedules": {"schedules_pkey"}, "take_back_v1": {"jobs_by_schedule"}},
    ),
    "pausing a schedule": (
        lambda store: store.pause_schedule("schedule-2002"),
        {"pause_schedules": {"schedules_pkey"}, "take_back_v1": {"jobs_by_schedule"}},
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
            "release_schedules_many": {"schedules_pkey", "schedules_due", "schedules_held", "jobs_by_schedule"},
        },
    ),
    "looking when work is due": (
        lambda store: store.database.fetch("next_work", deadline=None),
        {"next_work": {"schedules_due", "schedules_held", "jobs_queue", "jobs_leases"}},
    ),
    "adding a job": (lambda store: store.add_job(a_job("task-9")), {"add_jobs": set()}),
    "adding a job again": (add_again, {"add_jobs_again": {"runs_by_job"}}),
    "reading a job": (lambda store: store.get_jobs([UUID(int=1)]), {"jobs": {"jobs_pkey"}}),
    "claiming and finishing jobs": (
        claim_and_finish,
        {
            "acquire_jobs": {"jobs_queue", "jobs_leases"},
            "claim_jobs_v3": {"jobs_queue", "jobs_queue_by_task", "jobs_running", "jobs_pkey"},
            "extend_jobs": {"jobs_pkey"},
            "held_jobs": set(),
            "overlapped_jobs": {"jobs_pkey", "jobs_by_schedule"},
            "give_back_jobs": {"jobs_pkey"},
            "finish_jobs": {"jobs_pkey"},
        },
    ),
    "ending jobs that have failed for good": (
        lambda store: fail_for_good(store),
        {"finish_failed_jobs": {"jobs_pkey", "schedules_pkey", "fires_pkey"}},
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
    "cancelling a queued job": (
        lambda store: _cancel(store, queued=True),
        {"cancel_job": {"jobs_pkey", "runs_by_job"}},
    ),
    "cancelling a running job": (
        lambda store: _cancel(store, queued=False),
        {"cancel_job": {"jobs_pkey", "runs_by_job"}},
    ),
    "looking for jobs to cancel": (
        lambda store: store._look_for_cancelled([UUID(int=n) for n in range(100)]),
        {"cancel_requests": {"jobs_pkey"}},
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
    "fires of a schedule in a span": (
        lambda reads: reads.fires(limit=1, schedule_id="schedule-7", start=ago(86_400), end=ago(0), oldest_first=True),
        "fires_pkey",
    ),
    "runs of a job": (lambda reads: reads.runs_of(UUID(int=1)), "runs_by_job"),
    "schedules of a tag that are meant": (lambda reads: reads.chosen(limit=100, tag="tag-100"), "schedules_by_tag"),
    "schedules that are meant by their ids": (
        lambda reads: reads.chosen(limit=100, ids=["schedule-1", "schedule-2"]),
        "schedules_pkey",
    ),
    "schedules that are alike": (lambda reads: reads.alike("task-7", b"1", b"2", ago(0)), "schedules_by_task"),
    "fires that have been": (lambda reads: reads.fired("schedule-7", [ago(n) for n in range(100)]), "fires_recent"),
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
    counted = [node for node in plans["claim_jobs_v3"][2].nodes if node.get("Index Name") == "jobs_running"]
    assert counted
    assert all(node["Actual Rows"] <= 50 for node in counted)


async def test_a_turn_is_taken_and_given_on_by_an_index_however_many_wait(large_database: DatabaseUrl) -> None:
    """PostgreSQL does not explain what functions and triggers do; it counts the rows that they read."""
    connection = await asyncpg.connect(**large_database.asyncpg_arguments())
    undone = connection.transaction()
    await undone.start()
    try:
        await connection.execute(
            "insert into duetime.jobs (id, task_id, args, kwargs, schedule_id, fire_time, scheduled_fire_time, "
            "executor, metadata, created_at, waits, run_at, acquired_by, acquired_until) "
            "select gen_random_uuid(), 'task-9', '[]', '{}', 'schedule-7', at, at, 'auto', "
            """'{"duetime.overlap": "buffer_all"}', at, n between 2 and 4999, at, """
            "case when n in (1, 5000) then 'this node' end, case when n in (1, 5000) then now() end "
            "from generate_series(1, 5000) n, lateral (select now() - (6000 - n) * interval '1 second' as at) t"
        )
        read = (
            "select sum(seq_scan)::int as whole, sum(idx_tup_fetch)::int as rows "
            "from pg_stat_xact_user_tables where relname in ('jobs', 'fires')"
        )
        ends = (
            "select id from duetime.jobs where acquired_by = 'this node' and schedule_id = 'schedule-7' order by run_at"
        )
        first, last = [row["id"] for row in await connection.fetch(ends)]
        before = await connection.fetchrow(read)
        settled = "select verdict from duetime.settle_jobs_v1('this node', array[$1]::uuid[], '')"
        assert await connection.fetchval(settled, last) == "wait"
        await connection.execute("delete from duetime.jobs where id = $1", first)
        after = await connection.fetchrow(read)
        assert await connection.fetchval("select count(*) from duetime.jobs where waits") == 4998
    finally:
        await undone.rollback()
        await connection.close()
    assert before is not None
    assert after is not None
    assert after["whole"] == before["whole"]
    assert after["rows"] - before["rows"] <= 50
