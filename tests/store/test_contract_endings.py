"""How attempts end: results, retries, vanished nodes, and what the clean-up removes."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import asyncpg
import pytest
from apscheduler import (
    Event,
    JobOutcome,
    JobResult,
)
from apscheduler.triggers.date import DateTrigger

from duetime.attempts import Retry
from duetime.options import OnCrash, TaskOptions
from duetime.store import PostgresDataStore

from ..waiting import eventually
from .parts import (
    LEASE,
    a_job,
    a_schedule,
    add,
    ago,
    all_of,
    every,
    expire,
    fire,
    ids,
    names,
    told,
)

STOCK: dict[str, Any] = {}
"""Metadata of tasks that know nothing of Duetime's options."""


# -- results ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [None, 0, "text", (1, 2), {"a": {1}}, b"bytes"])
async def test_a_result_is_read_any_number_of_times(store: PostgresDataStore, value: object) -> None:
    await store.add_job(a_job(result_expiration_time=timedelta(hours=1)))
    [job] = await store.acquire_jobs("one", LEASE)
    given = JobResult.from_job(job, JobOutcome.success, started_at=ago(), return_value=value)
    await store.release_job("one", job, given)
    for _ in range(2):
        result = await store.get_job_result(job.id)
        assert result is not None
        assert result.return_value == value
        assert result.outcome is JobOutcome.success


async def test_an_error_is_kept_with_its_text(store: PostgresDataStore) -> None:
    await store.add_job(a_job(result_expiration_time=timedelta(hours=1)))
    [job] = await store.acquire_jobs("one", LEASE)
    await store.release_job("one", job, JobResult.from_job(job, JobOutcome.error, exception=KeyError("lost")))
    result = await store.get_job_result(job.id)
    assert result is not None
    assert "lost" in str(result.exception)


async def test_a_result_is_gone_when_its_time_is_over(store: PostgresDataStore, connection: asyncpg.Connection) -> None:
    await store.add_job(a_job(result_expiration_time=timedelta(hours=1)))
    [job] = await store.acquire_jobs("one", LEASE)
    await store.release_job("one", job, JobResult.from_job(job, JobOutcome.success, return_value=1))
    await connection.execute("update duetime.job_results set expires_at = now()")
    assert await store.get_job_result(job.id) is None
    await store.cleanup()
    assert await connection.fetchval("select count(*) from duetime.job_results") == 0


async def test_a_job_whose_result_nobody_wants_leaves_a_run_and_no_result(
    store: PostgresDataStore, connection: asyncpg.Connection
) -> None:
    await store.add_job(a_job())
    [job] = await store.acquire_jobs("one", LEASE)
    await store.release_job("one", job, JobResult.from_job(job, JobOutcome.success, return_value=1))
    assert await store.get_job_result(job.id) is None
    assert await connection.fetchval("select count(*) from duetime.runs") == 1
    assert await connection.fetchval("select count(*) from duetime.job_results") == 0


@pytest.mark.parametrize("value", [object(), "x" * (1024 * 1024 + 1), float], ids=["object", "too large", "class"])
async def test_a_result_that_cannot_be_stored_does_not_undo_the_success(
    store: PostgresDataStore, connection: asyncpg.Connection, value: object
) -> None:
    await store.add_job(a_job(result_expiration_time=timedelta(hours=1)))
    [job] = await store.acquire_jobs("one", LEASE)
    await store.release_job("one", job, JobResult.from_job(job, JobOutcome.success, return_value=value))
    run = await connection.fetchrow("select * from duetime.runs")
    assert run["outcome"] == "success"
    assert run["error"].startswith("it ran, but its result could not be stored: ")


class Unspeakable(Exception):
    """Has no text, and fails when it is asked for one."""

    def __str__(self) -> str:
        raise RuntimeError("no text")


@pytest.mark.parametrize(
    "error",
    [Unspeakable(), ValueError("\x00\ud800"), ValueError("x" * 100_000), ExceptionGroup("g", [ValueError("in")])],
    ids=["no text", "no characters", "long", "group"],
)
async def test_any_error_ends_its_job_and_is_recorded(
    store: PostgresDataStore, connection: asyncpg.Connection, error: Exception
) -> None:
    await store.add_job(a_job(result_expiration_time=timedelta(hours=1)))
    [job] = await store.acquire_jobs("one", LEASE)
    await store.release_job("one", job, JobResult.from_job(job, JobOutcome.error, exception=error))
    run = await connection.fetchrow("select * from duetime.runs")
    assert run["outcome"] == "error"
    assert run["error"].startswith(type(error).__name__)
    assert len(run["error"]) <= 8000
    assert await store.get_jobs() == []


# -- retries ---------------------------------------------------------------------------------------------------------


async def test_a_failed_attempt_is_made_again_under_the_same_id_until_it_gives_up(
    store: PostgresDataStore, connection: asyncpg.Connection
) -> None:
    options = TaskOptions(retry=Retry(max_attempts=3, backoff=100, jitter=0))
    await add(store, a_schedule("s", metadata=options.to_metadata()))
    await fire(store)
    for attempt in (1, 2, 3):
        [job] = await store.acquire_jobs("one", LEASE)
        await store.release_job(
            "one", job, JobResult.from_job(job, JobOutcome.error, exception=OSError(f"no {attempt}"))
        )
        assert await store.acquire_jobs("one", LEASE) == [], "not before its wait is over"
        if attempt < 3:
            wait = await connection.fetchval("select run_at - now() from duetime.jobs")
            assert timedelta(seconds=100 * 2 ** (attempt - 1) - 5) < wait <= timedelta(seconds=100 * 2 ** (attempt - 1))
            state = await connection.fetchrow("select state, attempts, finished_at from duetime.fires")
            assert tuple(state) == ("pending", attempt, None)
        await connection.execute("update duetime.jobs set run_at = now()")
    assert await store.get_jobs() == []
    runs = await connection.fetch("select job_id, attempt, outcome, error, will_retry_at from duetime.runs order by id")
    assert [(row["job_id"], row["attempt"], row["outcome"], row["error"]) for row in runs] == [
        (job.id, attempt, "error", f"OSError: no {attempt}") for attempt in (1, 2, 3)
    ]
    assert [row["will_retry_at"] is None for row in runs] == [False, False, True]
    fire_row = await connection.fetchrow("select * from duetime.fires")
    assert (fire_row["state"], fire_row["attempts"], fire_row["reason"]) == ("failed", 3, "OSError: no 3")


async def test_a_success_after_a_failure_makes_the_fire_succeed(
    store: PostgresDataStore, connection: asyncpg.Connection
) -> None:
    options = TaskOptions(retry=Retry(max_attempts=2, backoff=0))
    await add(store, a_schedule("s", metadata=options.to_metadata()))
    await fire(store)
    [job] = await store.acquire_jobs("one", LEASE)
    await store.release_job("one", job, JobResult.from_job(job, JobOutcome.error, exception=OSError("no")))
    [job] = await store.acquire_jobs("one", LEASE)
    await store.release_job("one", job, JobResult.from_job(job, JobOutcome.success))
    row = await connection.fetchrow("select * from duetime.fires")
    assert (row["state"], row["attempts"]) == ("succeeded", 2)
    assert row["finished_at"] is not None


# -- vanished nodes --------------------------------------------------------------------------------------------------


async def test_reaping_ends_the_claimed_jobs_of_one_scheduler_as_abandoned(
    store: PostgresDataStore, events: list[Event], connection: asyncpg.Connection
) -> None:
    for _ in range(2):
        await store.add_job(a_job(metadata=STOCK))
    [mine] = await store.acquire_jobs("one", LEASE, 1)
    [other] = await store.acquire_jobs("two", LEASE, 1)
    await all_of(events)
    await store.reap_abandoned_jobs("one")
    assert ids(await store.get_jobs()) == [other.id]
    [event] = await told(events, "JobReleased")
    assert (event.job_id, event.scheduler_id) == (mine.id, "one")
    assert event.outcome is JobOutcome.abandoned


async def test_reaping_puts_jobs_back_whose_task_asks_for_it(
    store: PostgresDataStore, connection: asyncpg.Connection
) -> None:
    await store.add_job(a_job())  # on_crash=retry
    await store.acquire_jobs("one", LEASE)
    await store.reap_abandoned_jobs("one")
    [job] = await store.acquire_jobs("two", LEASE)
    assert await connection.fetchval("select attempt from duetime.jobs") == 2
    assert await connection.fetchval("select outcome from duetime.runs where job_id = $1", job.id) == "abandoned"


@pytest.mark.parametrize(
    ("metadata", "by_claim", "by_cleanup"),
    [
        (TaskOptions(on_crash=OnCrash.retry).to_metadata(), "queued", "queued"),
        (TaskOptions(on_crash=OnCrash.abandon).to_metadata(), "abandoned", "abandoned"),
        (STOCK, "queued", "abandoned"),
    ],
    ids=["retry", "abandon", "stock"],
)
async def test_a_job_whose_lease_ended_is_run_again_or_abandoned_as_its_task_asks(
    store: PostgresDataStore,
    connection: asyncpg.Connection,
    metadata: dict[str, Any],
    by_claim: str,
    by_cleanup: str,
) -> None:
    for expected, look in (
        (by_claim, lambda: store.acquire_jobs("two", LEASE, 0)),
        (by_cleanup, store.cleanup),
    ):
        await connection.execute("truncate duetime.jobs, duetime.fires, duetime.schedules")
        await add(store, a_schedule("s", metadata=metadata, job_result_expiration_time=timedelta(hours=1)))
        await fire(store)
        [job] = await store.acquire_jobs("one", LEASE)
        await expire(connection, "jobs")
        await look()
        row = await connection.fetchrow("select state, reason, finished_at from duetime.fires")
        assert row["reason"] == "the node one vanished while it ran"
        if expected == "queued":
            assert ids(await store.get_jobs()) == [job.id]
            assert (row["state"], row["finished_at"]) == ("pending", None)
        else:
            assert await store.get_jobs() == []
            assert row["state"] == "abandoned"
            result = await store.get_job_result(job.id)
            assert result is not None
            assert result.outcome is JobOutcome.abandoned


async def test_a_job_that_takes_every_node_with_it_is_given_up(
    store: PostgresDataStore, connection: asyncpg.Connection
) -> None:
    await store.add_job(a_job())
    [job] = await store.acquire_jobs("one", LEASE)
    await connection.execute("update duetime.jobs set attempt = 20")
    await expire(connection, "jobs")
    assert await store.acquire_jobs("two", LEASE) == []
    assert await store.get_jobs() == []
    assert await connection.fetchval("select outcome from duetime.runs where job_id = $1", job.id) == "abandoned"


# -- clean-up --------------------------------------------------------------------------------------------------------


async def test_the_clean_up_removes_what_is_finished_and_keeps_the_rest(
    store: PostgresDataStore, events: list[Event], connection: asyncpg.Connection
) -> None:
    await add(store, a_schedule("finished"), a_schedule("running"), a_schedule("active", every(60, ago(1))))
    await add(store, a_schedule("broken"))
    await connection.execute(
        "update duetime.schedules set broken_reason = 'x', next_fire_time = null where id = 'broken'"
    )
    await fire(store)
    jobs = {job.schedule_id: job for job in await store.acquire_jobs("one", LEASE)}
    for name in ("finished", "active"):
        await store.release_job("one", jobs[name], JobResult.from_job(jobs[name], JobOutcome.success))
    await eventually(lambda: names(events).count("JobReleased") == 2)
    await all_of(events)
    await store.cleanup()
    assert ids(await store.get_schedules()) == ["active", "broken", "running"]
    [event] = await told(events, "ScheduleRemoved")
    assert (event.schedule_id, event.finished) == ("finished", True)
    states = dict(await connection.fetch("select schedule_id, state from duetime.fires"))
    assert states["finished"] == "succeeded", "history stays"


async def test_the_clean_up_works_through_more_than_one_batch(
    store: PostgresDataStore, connection: asyncpg.Connection
) -> None:
    await connection.execute(
        """
        insert into duetime.job_results (job_id, outcome, finished_at, expires_at)
        select gen_random_uuid(), 'success', now(), now() from generate_series(1, 2500)
        """
    )
    await add(store, a_schedule("pattern", Never()))
    await connection.execute(
        """
        insert into duetime.schedules (id, task_id, trigger, args, kwargs, coalesce, job_executor, revision)
        select 's' || n, task_id, trigger, args, kwargs, coalesce, job_executor, revision
        from duetime.schedules, generate_series(1, 2500) n
        """
    )
    await store.cleanup()
    assert await connection.fetchval("select count(*) from duetime.job_results") == 0
    assert await connection.fetchval("select count(*) from duetime.schedules") == 0


def Never() -> DateTrigger:  # noqa: N802 - reads as a trigger
    """Return a trigger that has fired."""
    trigger = DateTrigger(ago())
    trigger.next()
    return trigger
