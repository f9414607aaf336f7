"""Jobs in the store: queued, claimed within limits, released by who holds them."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any
from uuid import uuid4

import asyncpg
import pytest
from apscheduler import (
    Event,
    JobOutcome,
    JobResult,
)

from duetime.errors import (
    UnsupportedValue,
)
from duetime.settings import DatabaseUrl
from duetime.store import PostgresDataStore

from .parts import (
    LEASE,
    a_job,
    a_store,
    a_task,
    ago,
    all_of,
    expire,
    ids,
    told,
)


async def test_a_job_comes_back_as_it_was_added(store: PostgresDataStore, events: list[Event]) -> None:
    given = a_job(
        args=(1, (2, 3)),
        kwargs={"a": {"b": b"c"}},
        start_deadline=ago(-60),
        result_expiration_time=timedelta(hours=1),
        metadata={"mine": [1]},
    )
    await store.add_job(given)
    [found] = await store.get_jobs([given.id])
    for attribute in ("task_id", "args", "kwargs", "executor", "result_expiration_time", "metadata", "jitter"):
        assert getattr(found, attribute) == getattr(given, attribute), attribute
    assert abs(found.start_deadline - given.start_deadline - store.database.clock.host_offset) < timedelta(seconds=1)  # type: ignore[operator]
    [event] = await told(events, "JobAdded")
    assert (event.job_id, event.task_id) == (given.id, "work")


async def test_jobs_are_read_by_id_or_all_or_none_in_the_order_they_are_given_out(store: PostgresDataStore) -> None:
    jobs = [a_job() for _ in range(3)]
    for job in jobs:
        await store.add_job(job)
    assert ids(await store.get_jobs()) == ids(jobs)
    assert ids(await store.get_jobs([jobs[1].id, uuid4()])) == [jobs[1].id]
    assert await store.get_jobs([]) == []
    assert ids(await store.acquire_jobs("one", LEASE, 2)) == ids(jobs[:2])
    assert ids(await store.acquire_jobs("two", LEASE, 2)) == [jobs[2].id]


async def test_a_claimed_job_is_nobody_elses_and_its_release_ends_it(
    store: PostgresDataStore, events: list[Event], connection: asyncpg.Connection
) -> None:
    await store.add_job(a_job())
    [job] = await store.acquire_jobs("one", LEASE)
    assert job.acquired_by == "one"
    assert await store.acquire_jobs("two", LEASE) == []
    assert await store.acquire_jobs("one", LEASE) == [], "a job is begun once per attempt"
    started_at = ago()
    await store.release_job("one", job, JobResult.from_job(job, JobOutcome.success, started_at=started_at))
    assert await store.get_jobs() == []
    run = await connection.fetchrow("select * from duetime.runs")
    assert (run["job_id"], run["attempt"], run["node"], run["outcome"]) == (job.id, 1, "one", "success")
    assert abs(run["started_at"] - started_at) < timedelta(seconds=1)
    _, acquired, released = await told(events, "JobAdded", "JobAcquired", "JobReleased")
    assert acquired.scheduler_id == "one"
    assert released.outcome is JobOutcome.success


async def test_a_job_is_not_claimed_before_its_time(store: PostgresDataStore, connection: asyncpg.Connection) -> None:
    await store.add_job(a_job())
    await connection.execute("update duetime.jobs set run_at = now() + interval '1 hour'")
    assert await store.acquire_jobs("one", LEASE) == []


async def test_a_release_by_a_scheduler_that_lost_the_job_changes_nothing(
    store: PostgresDataStore, database: DatabaseUrl, connection: asyncpg.Connection
) -> None:
    await store.add_job(a_job(result_expiration_time=timedelta(hours=1)))
    [job] = await store.acquire_jobs("one", LEASE)
    await expire(connection, "jobs")
    async with a_store(database) as other:
        [again] = await other.acquire_jobs("two", LEASE)
        assert again.id == job.id
        await store.release_job("one", job, JobResult.from_job(job, JobOutcome.success, return_value="late"))
        [run] = await connection.fetch("select * from duetime.runs")
        assert (run["attempt"], run["outcome"], run["node"]) == (1, "abandoned", "one")
        await other.release_job("two", again, JobResult.from_job(again, JobOutcome.success, return_value="in time"))
    result = await store.get_job_result(job.id)
    assert result is not None
    assert result.return_value == "in time"
    outcomes = await connection.fetch("select attempt, outcome from duetime.runs order by id")
    assert [tuple(row) for row in outcomes] == [(1, "abandoned"), (2, "success")]


async def test_the_same_scheduler_cannot_end_an_attempt_that_was_taken_from_it(
    store: PostgresDataStore, connection: asyncpg.Connection
) -> None:
    await store.add_job(a_job())
    [job] = await store.acquire_jobs("one", LEASE)
    store._attempts[job.id] = 1
    await expire(connection, "jobs")
    await store.acquire_jobs("one", LEASE)  # its second attempt
    store._attempts[job.id] = 1  # and the end of the first comes late
    await store.release_job("one", job, JobResult.from_job(job, JobOutcome.success))
    assert len(await store.get_jobs()) == 1
    assert await connection.fetchval("select count(*) from duetime.runs where outcome = 'success'") == 0


async def test_extended_leases_last_longer_and_only_their_holder_extends_them(
    store: PostgresDataStore, connection: asyncpg.Connection
) -> None:
    await store.add_job(a_job())
    [job] = await store.acquire_jobs("one", LEASE)
    await expire(connection, "jobs")
    await store.extend_acquired_job_leases("one", {job.id}, LEASE)
    assert await store.acquire_jobs("two", LEASE) == []
    await expire(connection, "jobs")
    await store.extend_acquired_job_leases("two", {job.id}, LEASE)
    await store.extend_acquired_job_leases("one", set(), LEASE)
    assert len(await store.acquire_jobs("two", LEASE)) == 1


async def test_a_limited_task_never_has_more_running_jobs_than_its_limit_over_two_stores(
    store: PostgresDataStore, database: DatabaseUrl, connection: asyncpg.Connection
) -> None:
    await store.add_task(a_task("limited", max_running_jobs=3))
    for _ in range(12):
        await store.add_job(a_job("limited"))
    async with a_store(database) as other:
        claims = await asyncio.gather(
            *(
                each.acquire_jobs(f"{name}{n}", LEASE, 2)
                for n in range(5)
                for name, each in (("a", store), ("b", other))
            )
        )
        assert sum(map(len, claims)) == 3
        assert await connection.fetchval("select count(*) from duetime.jobs where acquired_by is not null") == 3
        [held] = [jobs[0] for jobs in claims if jobs][:1]
        holder = held.acquired_by
        assert holder is not None
        await (store if holder[0] == "a" else other).release_job(
            holder, held, JobResult.from_job(held, JobOutcome.success)
        )
        assert len(await other.acquire_jobs("c", LEASE)) == 1, "a place that is free is given away"


async def test_jobs_of_a_full_task_do_not_stand_in_the_way_of_others(store: PostgresDataStore) -> None:
    await store.add_task(a_task("limited", max_running_jobs=1))
    for _ in range(10):
        await store.add_job(a_job("limited"))
    other = a_job()
    await store.add_job(other)
    claimed = await store.acquire_jobs("one", LEASE, 2)
    assert [job.task_id for job in claimed] == ["limited", "work"]
    assert await store.acquire_jobs("one", LEASE, 2) == []


@pytest.mark.parametrize(
    "damage",
    ["args = 'no arguments'", "args = '5'", "kwargs = '5'", """metadata = '{"a": [null]}'""", "metadata = '[]'"],
)
async def test_an_unreadable_job_ends_with_a_reason_and_the_others_are_claimed(
    store: PostgresDataStore, events: list[Event], connection: asyncpg.Connection, damage: str
) -> None:
    bad, good = a_job(result_expiration_time=timedelta(hours=1)), a_job()
    await store.add_job(bad)
    await store.add_job(good)
    await connection.execute(f"update duetime.jobs set {damage} where id = $1", bad.id)  # noqa: S608 - a constant
    await all_of(events)
    assert ids(await store.get_jobs()) == [good.id]
    assert ids(await store.acquire_jobs("one", LEASE)) == [good.id]
    await told(events, "JobDeserializationFailed", "JobReleased", "JobDeserializationFailed", "JobAcquired")
    run = await connection.fetchrow("select * from duetime.runs")
    assert (run["job_id"], run["outcome"]) == (bad.id, "unreadable")
    assert "UnreadableValue" in run["error"]
    result = await store.get_job_result(bad.id)
    assert result is not None
    assert result.outcome is JobOutcome.deserialization_failed


@pytest.mark.parametrize("metadata", [{"duetime.overlap": "banana"}, {"duetime.retry": 5}, {"duetime.timeout": "x"}])
async def test_a_job_with_options_that_cannot_be_read_still_ends(
    store: PostgresDataStore, connection: asyncpg.Connection, metadata: dict[str, Any]
) -> None:
    await store.add_job(a_job(metadata=metadata))
    [job] = await store.acquire_jobs("one", LEASE)
    await store.release_job("one", job, JobResult.from_job(job, JobOutcome.error, exception=ValueError("x")))
    assert await store.get_jobs() == []
    assert await connection.fetchval("select outcome from duetime.runs") == "error"


async def test_metadata_that_postgresql_cannot_store_is_refused_with_a_typed_error(store: PostgresDataStore) -> None:
    with pytest.raises(UnsupportedValue):
        await store.add_job(a_job(metadata={"text": "\x00"}))
    with pytest.raises(UnsupportedValue):
        await store.add_task(a_task("t", metadata={"text": "\x00"}))
