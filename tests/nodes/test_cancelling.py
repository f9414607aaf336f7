"""A job is cancelled from any node: queued ones at once, running ones by the node that runs them."""

from __future__ import annotations

import asyncio
import os
import threading
from datetime import timedelta
from pathlib import Path
from uuid import UUID, uuid4

import asyncpg
import pytest
from apscheduler import JobCancelled
from apscheduler.triggers.date import DateTrigger

from duetime import OnCrash, Retry
from duetime.commands import NewJob, NewSchedule, PageRequest
from duetime.errors import JobNotFound
from duetime.options import Overlap, TaskOptions
from duetime.records import CancelState, JobState
from duetime.settings import DatabaseUrl

from .. import process_work
from ..store.parts import ago
from ..waiting import eventually
from .fleet import fleet_on
from .test_limits import nodes


async def never(_node: str) -> None:
    await asyncio.Event().wait()


async def the_run(connection: asyncpg.Connection) -> asyncpg.Record:
    found = await eventually(lambda: connection.fetch("select * from duetime.runs"))
    assert len(found) == 1
    return found[0]


async def is_running(connection: asyncpg.Connection, job_id: UUID) -> bool:
    return bool(await connection.fetchval("select acquired_by is not null from duetime.jobs where id = $1", job_id))


async def test_a_running_job_is_cancelled_from_another_node_at_once_and_not_run_again(
    database: DatabaseUrl, connection: asyncpg.Connection
) -> None:
    """The lease is renewed in a quarter of an hour: it is the notification that does it."""
    began, ended = asyncio.Event(), asyncio.Event()

    async def work(_node: str) -> None:
        began.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    async with nodes(database, "a b", {"work": work}, lease_duration=3000, max_concurrent_jobs=1) as [a, b]:
        await a.scheduler.add_schedule("work", DateTrigger(ago(1)), id="s")
        await eventually(began.is_set)
        [job] = (await b.service.jobs(PageRequest())).items
        assert job.state is JobState.running
        other = b if job.node and job.node.startswith("a:") else a
        done = await other.service.cancel_job(job.id, "wrong customer")
        assert (done.state, done.node) == (CancelState.requested, job.node)
        await eventually(ended.is_set)
        await eventually(lambda: connection.fetchval("select state = 'cancelled' from duetime.fires"))
    assert await connection.fetchval("select reason from duetime.fires") == "cancelled by request: wrong customer"
    run = await the_run(connection)
    assert (run["outcome"], run["error"]) == ("cancelled", "cancelled by request: wrong customer")
    assert run["will_retry_at"] is None
    assert await connection.fetchval("select count(*) from duetime.jobs") == 0


async def test_a_running_job_whose_cancellation_nobody_was_told_of_is_cancelled_at_the_next_renewal(
    database: DatabaseUrl, connection: asyncpg.Connection
) -> None:
    async with nodes(database, "a", {"work": never}, lease_duration=2) as [a]:
        job = await a.service.add_job(NewJob(task="work"))
        await eventually(lambda: is_running(connection, job.id))
        await connection.execute("update duetime.jobs set cancel_requested_at = now(), cancel_reason = 'by hand'")
        run = await the_run(connection)
    assert (run["outcome"], run["error"]) == ("cancelled", "by hand")


async def test_a_notification_cancels_nothing_that_the_database_does_not_want_cancelled(
    database: DatabaseUrl, connection: asyncpg.Connection
) -> None:
    async with nodes(database, "a", {"work": never}, drain_timeout=0) as [a]:
        job = await a.service.add_job(NewJob(task="work"))
        await eventually(lambda: is_running(connection, job.id))
        hint = f'other\nJobRemoved {{"job_id": "{job.id}", "task_id": "work"}}'
        await connection.execute("select pg_notify('duetime', $1)", hint)
        await a.service.add_job(NewJob(task="work"))  # the looking-up is over when the next job runs
        await eventually(lambda: connection.fetchval("select count(*) = 2 from duetime.jobs where attempt = 1"))
        assert await connection.fetchval("select count(*) from duetime.runs") == 0


async def test_a_queued_job_is_cancelled_at_once_with_its_ledger_row_and_whoever_waits_for_it_hears_of_it(
    database: DatabaseUrl, connection: asyncpg.Connection
) -> None:
    async with (
        nodes(database, "a", {"work": never}, role="scheduler") as [a],
        nodes(database, "b", {"work": never}, role="scheduler") as [b],
    ):
        await a.service.add(
            NewSchedule.model_validate(
                {
                    "id": "s",
                    "task": "work",
                    "trigger": {"type": "date", "run_at": "2020-01-01T00:00:00Z"},
                }
            )
        )
        await eventually(lambda: connection.fetchval("select count(*) = 1 from duetime.jobs"))
        [job] = (await a.service.jobs(PageRequest())).items
        done = await b.service.cancel_job(job.id)
        assert (done.state, done.node) == (CancelState.cancelled, None)
        fire = await connection.fetchrow("select state, reason, attempts, finished_at from duetime.fires")
        assert tuple(fire)[:3] == ("cancelled", "cancelled by request", 0)
        assert fire["finished_at"] is not None
        run = await the_run(connection)
        assert (run["outcome"], run["started_at"], run["attempt"]) == ("cancelled", None, 1)

        waiting = asyncio.create_task(a.scheduler.run_job("work"))
        await eventually(lambda: connection.fetchval("select count(*) = 1 from duetime.jobs"))
        [job] = (await a.service.jobs(PageRequest())).items
        await b.service.cancel_job(job.id)
        with pytest.raises(JobCancelled):
            async with asyncio.timeout(20):
                await waiting


async def test_a_job_that_waits_for_its_next_attempt_is_cancelled_at_once(
    database: DatabaseUrl, connection: asyncpg.Connection
) -> None:
    async def fail(_node: str) -> None:
        raise RuntimeError("no")

    options = TaskOptions(retry=Retry(max_attempts=3, backoff=3600, max_backoff=3600))
    async with nodes(database, "a", {"fail": fail}, options) as [a]:
        job = await a.service.add_job(NewJob(task="fail"))
        await eventually(lambda: connection.fetchval("select last_error is not null from duetime.jobs"))
        [seen] = (await a.service.jobs(PageRequest())).items
        assert seen.last_error == "RuntimeError: no"
        assert (await a.service.cancel_job(job.id)).state is CancelState.cancelled
    runs = await connection.fetch("select attempt, outcome from duetime.runs order by id")
    assert [tuple(run) for run in runs] == [(1, "error"), (2, "cancelled")]


async def test_a_job_that_raises_instead_of_being_cancelled_is_not_tried_again(
    database: DatabaseUrl, connection: asyncpg.Connection
) -> None:
    began = asyncio.Event()

    async def stubborn(_node: str) -> None:
        began.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            raise RuntimeError("not me") from None

    options = TaskOptions(retry=Retry(max_attempts=5, backoff=0))
    async with nodes(database, "a", {"stubborn": stubborn}, options) as [a]:
        await a.scheduler.add_schedule("stubborn", DateTrigger(ago(1)), id="s")
        await eventually(began.is_set)
        [job] = (await a.service.jobs(PageRequest())).items
        await a.service.cancel_job(job.id)
        await eventually(lambda: connection.fetchval("select state = 'cancelled' from duetime.fires"))
    assert (await the_run(connection))["attempt"] == 1


async def test_a_job_that_is_held_for_later_is_cancelled_before_it_begins(
    database: DatabaseUrl, connection: asyncpg.Connection
) -> None:
    ran: list[str] = []

    async def work(node: str) -> None:
        ran.append(node)

    async with nodes(database, "a", {"work": work}, look_ahead=20) as [a]:
        await a.scheduler.add_schedule("work", DateTrigger(ago(-8)), id="s")
        await eventually(lambda: connection.fetchval("select count(*) = 1 from duetime.jobs where acquired_by <> ''"))
        [job] = (await a.service.jobs(PageRequest())).items
        await a.service.cancel_job(job.id)
        await eventually(lambda: connection.fetchval("select state = 'cancelled' from duetime.fires"), within=5)
        assert await connection.fetchval("select count(*) from duetime.jobs") == 0
    assert ran == []
    assert (await the_run(connection))["started_at"] is None


async def test_a_cancelled_job_that_its_node_has_given_back_does_not_run_on_another(
    database: DatabaseUrl, connection: asyncpg.Connection
) -> None:
    ran: list[str] = []

    async def work(node: str) -> None:
        ran.append(node)

    async with nodes(database, "planner", {"work": work}, role="scheduler") as [planner]:
        await planner.service.add_job(NewJob(task="work"))
        await connection.execute("update duetime.jobs set cancel_requested_at = now(), cancel_reason = 'too late'")
        async with nodes(database, "hand", {"work": work}):
            run = await the_run(connection)
    assert (run["outcome"], run["error"], run["started_at"]) == ("cancelled", "too late", None)
    assert ran == []


async def test_the_job_of_a_node_that_was_killed_is_not_run_again_if_its_cancellation_was_asked_for(
    database: DatabaseUrl, connection: asyncpg.Connection, tmp_path: Path
) -> None:
    async with fleet_on(database, tmp_path) as fleet:
        one = await fleet.start("one", lease_duration=2)
        async with nodes(database, "here", {"work": never}, role="scheduler", lease_duration=2) as [here]:
            await here.scheduler.add_schedule(
                "work", DateTrigger(ago(1)), id="s", kwargs={"seconds": 3600}, metadata={"duetime.overlap": "allow"}
            )
            await eventually(lambda: fleet.diary("began"))
            [job] = (await here.service.jobs(PageRequest())).items
            one.kill()
            assert (await here.service.cancel_job(job.id)).state is CancelState.requested
            await fleet.start("two", lease_duration=2)
            await eventually(lambda: connection.fetchval("select state = 'cancelled' from duetime.fires"))
        assert len(fleet.diary("began")) == 1
    assert (await the_run(connection))["outcome"] == "abandoned"
    assert await connection.fetchval("select count(*) from duetime.jobs") == 0


async def test_the_job_of_a_cancelled_thread_ends_and_the_thread_goes_on(
    database: DatabaseUrl, connection: asyncpg.Connection
) -> None:
    release, returned = threading.Event(), threading.Event()

    def block() -> None:
        release.wait(30)
        returned.set()

    async with nodes(database, "a", {}) as [a]:
        a.registry.add(block, name="block", options=TaskOptions(on_crash=OnCrash.abandon))
        job = await a.service.add_job(NewJob(task="block"))
        await eventually(lambda: is_running(connection, job.id))
        await eventually(lambda: bool(a._scheduler._running_jobs))
        await a.service.cancel_job(job.id)
        assert (await the_run(connection))["outcome"] == "cancelled"
        assert not returned.is_set()
        assert (await a.service.readiness()).abandoned_threads == 1
        release.set()
        await eventually(returned.is_set)

        async def is_back() -> bool:
            return (await a.service.readiness()).abandoned_threads == 0

        await eventually(is_back)


async def test_the_worker_process_of_a_cancelled_job_is_killed(
    database: DatabaseUrl, connection: asyncpg.Connection, tmp_path: Path
) -> None:
    async with nodes(database, "a", {}) as [a]:
        a.registry.add(process_work.hangs_as, name="hangs")
        said = tmp_path / "pid"
        job_id = await a.scheduler.add_job("hangs", args=[str(said)], job_executor="processpool")
        await eventually(lambda: said.exists() and said.read_text().endswith("."))
        await a.service.cancel_job(job_id)
        assert (await the_run(connection))["outcome"] == "cancelled"
        await eventually(lambda: not is_there(int(said.read_text()[:-1])))


def is_there(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


async def test_what_is_not_queued_and_not_running_cannot_be_cancelled_but_twice_is_once(
    database: DatabaseUrl, connection: asyncpg.Connection
) -> None:
    async def work(_node: str) -> None: ...

    async with nodes(database, "a", {"work": work}) as [a]:
        unknown = uuid4()
        with pytest.raises(JobNotFound, match=f"{unknown}.*no such job"):
            await a.service.cancel_job(unknown)
        job = await a.service.add_job(NewJob(task="work"))
        await the_run(connection)
        with pytest.raises(JobNotFound, match="ended with the outcome 'success'"):
            await a.service.cancel_job(job.id)
    async with nodes(database, "b", {"work": work}, TaskOptions(overlap=Overlap.allow), role="scheduler") as [b]:
        job = await b.service.add_job(NewJob(task="work"))
        for _ in range(2):
            assert (await b.service.cancel_job(job.id)).state is CancelState.cancelled
    assert await connection.fetchval("select count(*) from duetime.runs where outcome = 'cancelled'") == 1


async def test_the_first_who_asks_says_why(database: DatabaseUrl, connection: asyncpg.Connection) -> None:
    async with nodes(database, "a", {"work": never}, role="scheduler") as [a]:
        job = await a.service.add_job(NewJob(task="work"))
        await connection.execute(
            "update duetime.jobs set acquired_by = 'elsewhere', acquired_until = now() + $1", timedelta(hours=1)
        )
        for reason in ("first", "second"):
            done = await a.service.cancel_job(job.id, reason)
            assert (done.state, done.node) == (CancelState.requested, "elsewhere")
        [seen] = (await a.service.jobs(PageRequest())).items
    assert seen.cancel_reason == "cancelled by request: first"
    assert seen.cancel_requested_at is not None
