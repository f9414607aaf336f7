"""Changes that wait for others: a statement sees what was there when it began, whatever it has waited for since.

A schedule that gets a new id takes along what has not ended, also what ends or comes at that very moment.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any
from uuid import UUID

import asyncpg
import attrs
import pytest
from apscheduler import Job, JobOutcome, JobResult

from duetime.errors import JobNotFound
from duetime.options import OnCrash, TaskOptions
from duetime.settings import DatabaseUrl
from duetime.store import PostgresDataStore, scheduler_transaction
from duetime.store.changing import ScheduleChanges, Update

from ..waiting import eventually
from .parts import LEASE, a_job, a_schedule, a_store, a_task, add, ago, every, expire, fire

FIRES = "select schedule_id, state from duetime.fires order by fire_time"


async def rename(store: PostgresDataStore, old: str, new: str) -> UUID | None:
    [row] = await store.database.fetch_for_user("schedules", [old])
    found = await store.get_schedules({old})
    # After a first rename only the caller's transaction sees it under this id.
    renamed = attrs.evolve(found[0] if found else a_schedule(old, every(3600, ago(1))), id=new)
    return await ScheduleChanges(store).update({**row, "now": ago()}, Update(renamed, keeps_trigger=True))


async def a_claimed_job(store: PostgresDataStore, options: TaskOptions | None = None) -> Job:
    metadata = (options or TaskOptions()).to_metadata()
    await store.add_task(a_task())
    await add(store, a_schedule("old", every(3600, ago(1)), metadata=metadata))
    await fire(store)
    [job] = await store.acquire_jobs("one", LEASE)
    return job


async def waits_for_a_lock(store: PostgresDataStore, statements: int = 1) -> bool:
    """Return whether so many statements wait."""
    [row] = await store.database.query(
        "select count(*) as n from pg_stat_activity where wait_event_type = 'Lock' and datname = current_database()",
        deadline=None,
    )
    return bool(row["n"] == statements)


async def succeeds(store: PostgresDataStore, job: Job) -> None:
    await store.release_job("one", job, JobResult.from_job(job, JobOutcome.success))


async def is_cancelled(store: PostgresDataStore, job: Job) -> None:
    await store.cancel_job(job.id)


@pytest.mark.parametrize("chain", [["new"], ["newer", "new"]], ids=["once", "twice"])
@pytest.mark.parametrize(
    ("end", "state"), [(succeeds, "succeeded"), (is_cancelled, "cancelled")], ids=["ends", "is cancelled"]
)
async def test_the_ledger_tells_of_a_job_that_ends_while_its_schedule_is_renamed(
    database: DatabaseUrl,
    connection: asyncpg.Connection,
    chain: list[str],
    end: Callable[[PostgresDataStore, Job], Coroutine[Any, Any, None]],
    state: str,
) -> None:
    """The end waits for the rename, and had begun before it was committed."""
    async with a_store(database) as store:
        job = await a_claimed_job(store)
        if state == "cancelled":  # at once, because nobody has claimed it
            await store.database.fetch("leave", "one", [], *store._message([]), deadline=None)
        async with connection.transaction():
            async with scheduler_transaction(connection):
                for before, after in zip(["old", *chain], chain, strict=False):
                    assert await rename(store, before, after)
            ends = asyncio.create_task(end(store, job))
            await eventually(lambda: waits_for_a_lock(store))
        await ends
        assert [tuple(row) for row in await connection.fetch(FIRES)] == [("new", state)]
        assert await connection.fetchval("select count(*) from duetime.jobs") == 0


async def test_the_ledger_tells_of_a_job_whose_node_has_vanished_while_its_schedule_was_renamed(
    database: DatabaseUrl, connection: asyncpg.Connection
) -> None:
    async with a_store(database) as store:
        await a_claimed_job(store, TaskOptions(on_crash=OnCrash.abandon))
        await expire(connection, "jobs")
        assert await rename(store, "old", "new")
        await add(store, a_schedule("old", every(3600, ago(1))))  # another one, of the old name
        await store._reap(None, default="abandon")
        rows = await connection.fetch("select schedule_id, state, attempts from duetime.fires")
        assert [tuple(row) for row in rows] == [("new", "abandoned", 1)]


async def test_jobs_that_come_while_a_rename_waits_for_them_get_the_new_id(
    database: DatabaseUrl, connection: asyncpg.Connection
) -> None:
    """The release that makes them has the schedule's row, and has begun before the rename does."""
    async with a_store(database) as store:
        await store.add_task(a_task())
        await add(store, a_schedule("old", every(3600, ago(1))))
        transaction = connection.transaction()
        await transaction.start()
        await connection.execute(
            "update duetime.schedules set next_fire_time = next_fire_time + interval '1 hour' where id = 'old'"
        )
        await connection.execute(
            "with job as (insert into duetime.jobs (id, task_id, args, kwargs, schedule_id, fire_time, "
            "scheduled_fire_time, executor, metadata) values (gen_random_uuid(), 'work', '[]', '{}', 'old', $1, $1, "
            "'async', '{}') returning *) insert into duetime.fires (schedule_id, fire_time, task_id, state, job_id) "
            "select schedule_id, fire_time, task_id, 'pending', id from job",
            ago(1),
        )
        renaming = asyncio.create_task(rename(store, "old", "new"))
        await eventually(lambda: waits_for_a_lock(store))
        await transaction.commit()
        assert await renaming
        assert await connection.fetchval("select schedule_id from duetime.jobs") == "new"
        [job] = await store.acquire_jobs("one", LEASE)
        await succeeds(store, job)
        assert [tuple(row) for row in await connection.fetch(FIRES)] == [("new", "succeeded")]


async def test_the_end_of_a_renamed_job_leaves_another_schedule_of_the_old_id_alone(
    database: DatabaseUrl, connection: asyncpg.Connection
) -> None:
    async with a_store(database) as store:
        job = await a_claimed_job(store)
        assert await rename(store, "old", "new")
        due = job.scheduled_fire_time
        assert due is not None
        await add(store, a_schedule("old", every(3600, due)))
        [again] = await fire(store)
        assert again.next_fire_time == due
        await succeeds(store, job)
        rows: list[Any] = await connection.fetch("select schedule_id, state from duetime.fires order by schedule_id")
        assert [tuple(row) for row in rows] == [("new", "succeeded"), ("old", "pending")]


# -- others -----------------------------------------------------------------------------------------------------------


async def test_a_resume_that_another_change_comes_before_is_noted_once(
    database: DatabaseUrl, connection: asyncpg.Connection
) -> None:
    async with a_store(database) as store:
        await add(store, a_schedule("s", every(3600, ago(1))))
        await store.pause_schedule("s")
        async with connection.transaction():
            await connection.execute("update duetime.schedules set tags = '{x}', revision = gen_random_uuid()")
            resuming = asyncio.create_task(store.resume_schedule("s"))
            await eventually(lambda: waits_for_a_lock(store))
        await resuming
        assert await connection.fetchval("select not paused and tags = '{x}' from duetime.schedules")
        assert await connection.fetchval("select count(*) from duetime.schedule_changes where change = 'resumed'") == 1


async def test_a_cancellation_that_another_one_comes_before_is_done(
    database: DatabaseUrl, connection: asyncpg.Connection
) -> None:
    async with a_store(database) as store:
        job = a_job()
        await store.add_job(job)
        async with connection.transaction():
            cancel = store.database.statements["cancel_job"]
            await connection.fetch(cancel, job.id, "first", *store._message([]), "")
            cancelling = asyncio.create_task(store.cancel_job(job.id))
            await eventually(lambda: waits_for_a_lock(store))
        assert (await cancelling).is_ended
        assert [row["error"] for row in await connection.fetch("select error from duetime.runs")] == ["first"]


async def test_what_ended_while_its_cancellation_waited_is_said(
    database: DatabaseUrl, connection: asyncpg.Connection
) -> None:
    async with a_store(database) as store:
        job = await a_claimed_job(store)
        async with connection.transaction():
            await connection.execute("select from duetime.jobs for update")
            ending = asyncio.create_task(succeeds(store, job))
            await eventually(lambda: waits_for_a_lock(store))
            cancelling = asyncio.create_task(store.cancel_job(job.id))
            await eventually(lambda: waits_for_a_lock(store, statements=2))
        await ending
        with pytest.raises(JobNotFound, match="success"):
            await cancelling
