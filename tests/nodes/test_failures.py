"""What follows from a failure, on real nodes: a task that is told, a schedule that is paused."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from apscheduler.triggers.date import DateTrigger

from duetime import Duetime, Failure, Retry, task, tasks
from duetime.commands import NewSchedule, ScheduleOptions
from duetime.options import OnCrash, Overlap, TaskOptions
from duetime.records import FireState, ScheduleState
from duetime.settings import DatabaseUrl
from duetime.tasks import TaskRegistry

from ..store.parts import ago, every, expire
from ..waiting import eventually
from .desk import job
from .fleet import fleet_on
from .test_limits import nodes


async def fail(_node: str) -> None:
    raise ValueError("no")


class Told:
    """A task that is told of failures."""

    def __init__(self) -> None:
        self.failures: list[Failure] = []

    async def __call__(self, failure: Failure) -> None:
        self.failures.append(failure)

    def on(self, *nodes: Duetime, **options: Any) -> None:
        """Register it on these nodes as ``alert``."""

        async def alert(failure: Failure) -> None:
            await self(failure)

        for node in nodes:
            node.registry.add(alert, name="alert", options=TaskOptions(**options))


def add(node: Duetime, task: str, trigger: Any = None, **options: Any) -> Awaitable[str]:
    return node.scheduler.add_schedule(
        task, trigger or DateTrigger(ago(1)), id="s", metadata=ScheduleOptions(**options).to_metadata()
    )


# -- on_failure ------------------------------------------------------------------------------------------------------


async def test_after_the_last_attempt_the_hook_is_told_once_what_has_failed(
    database: DatabaseUrl, connection: asyncpg.Connection
) -> None:
    told = Told()
    options = TaskOptions(retry=Retry(max_attempts=3, backoff=0, jitter=0))
    async with nodes(database, "a b", {"fail": fail}, options) as [a, b]:
        told.on(a, b)
        await add(a, "fail", on_failure="alert")
        await eventually(lambda: bool(told.failures))
        await eventually(lambda: connection.fetchval("select count(*) = 0 from duetime.jobs"))
    [failure] = told.failures
    fire = await connection.fetchrow("select * from duetime.fires")
    assert (fire["state"], fire["attempts"]) == ("failed", 3)
    assert failure == Failure(
        job_id=fire["job_id"],
        task="fail",
        schedule_id="s",
        fire_time=fire["fire_time"],
        state=FireState.failed,
        attempts=3,
        error="ValueError: no",
        node=failure.node,
        failed_at=fire["finished_at"],
    )
    assert failure.node
    assert failure.node.split(":")[0] in "ab"
    runs = await connection.fetch("select task_id, outcome from duetime.runs order by id")
    assert [tuple(run) for run in runs] == [("fail", "error")] * 3 + [("alert", "success")]


async def test_a_job_without_a_schedule_and_a_job_that_times_out_call_their_hook_too(database: DatabaseUrl) -> None:
    told = Told()

    async def never(_node: str) -> None:
        await asyncio.Event().wait()

    options = TaskOptions(on_failure="alert", timeout=timedelta(seconds=0.05))
    async with nodes(database, "a", {"never": never}, options) as [a]:
        told.on(a)
        await a.scheduler.add_job("never")
        await eventually(lambda: bool(told.failures))
    [failure] = told.failures
    assert (failure.schedule_id, failure.fire_time, failure.attempts) == (None, None, 1)
    assert failure.error is not None
    assert failure.error.startswith("TaskTimeout: ")


async def test_what_succeeds_after_a_failure_or_is_cancelled_calls_no_hook(
    database: DatabaseUrl, connection: asyncpg.Connection
) -> None:
    told, attempts = Told(), []

    async def second(node: str) -> None:
        attempts.append(node)
        if len(attempts) == 1:
            raise ValueError("no")

    async def never(_node: str) -> None:
        await asyncio.Event().wait()

    options = TaskOptions(on_failure="alert", retry=Retry(max_attempts=2, backoff=0))
    async with nodes(database, "a", {"second": second, "never": never}, options) as [a]:
        told.on(a)
        await a.scheduler.run_job("second")
        job_id = await a.scheduler.add_job("never")
        await eventually(lambda: connection.fetchval("select acquired_by is not null from duetime.jobs"))
        await a.service.cancel_job(job_id)
        await eventually(lambda: connection.fetchval("select count(*) = 3 from duetime.runs"))
        assert await connection.fetchval("select count(*) from duetime.jobs") == 0
    assert told.failures == []


async def test_a_hook_that_fails_calls_no_hook_of_its_own_and_keeps_its_other_options(
    database: DatabaseUrl, connection: asyncpg.Connection
) -> None:
    calls: list[str] = []

    async def alert(failure: Failure) -> None:
        calls.append(failure.task)
        raise RuntimeError("the alert fails too")

    options = TaskOptions(on_failure="alert")
    async with nodes(database, "a", {"fail": fail}, options) as [a]:
        hooked = TaskOptions(on_failure="alert", retry=Retry(max_attempts=2, backoff=0))
        a.registry.add(alert, name="alert", options=hooked)
        await a.scheduler.add_job("fail")
        await eventually(lambda: connection.fetchval("select count(*) = 3 from duetime.runs"))
        assert await connection.fetchval("select count(*) from duetime.jobs") == 0
    assert calls == ["fail", "fail"], "expected one job of two attempts"


async def test_a_hook_that_no_node_has_fails_with_the_reason_and_nothing_else_stops(
    database: DatabaseUrl, connection: asyncpg.Connection
) -> None:
    async with nodes(database, "a", {"fail": fail}, TaskOptions(on_failure="nobody")) as [a]:
        await a.scheduler.add_job("fail")
        await eventually(lambda: connection.fetchval("select count(*) = 2 from duetime.runs"))
    error = await connection.fetchval("select error from duetime.runs where task_id = 'nobody'")
    assert error.startswith("UnknownTask: ")


async def test_a_job_that_cannot_be_read_calls_its_hook(database: DatabaseUrl, connection: asyncpg.Connection) -> None:
    told = Told()
    async with nodes(database, "planner", {"fail": fail}, TaskOptions(on_failure="alert"), role="scheduler") as [a]:
        told.on(a)
        await a.scheduler.add_job("fail")
        await connection.execute("update duetime.jobs set args = 'rubbish'")
        async with nodes(database, "hand", {"fail": fail}) as [hand]:
            told.on(hand)
            await eventually(lambda: bool(told.failures))
    assert told.failures[0].task == "fail"


async def test_the_hook_is_told_of_a_job_that_was_abandoned_with_its_node(
    database: DatabaseUrl, connection: asyncpg.Connection, tmp_path: Path
) -> None:
    told = Told()
    async with fleet_on(database, tmp_path) as fleet:
        one = await fleet.start("one", lease_duration=2)
        async with nodes(database, "planner", {}, role="scheduler") as [planner]:
            abandoned = job("once", kwargs={"seconds": 3600})
            abandoned.metadata["duetime.on_failure"] = "alert"
            await planner._scheduler.store.add_job(abandoned)
            await eventually(lambda: fleet.diary("began"))
            identity = await connection.fetchval("select acquired_by from duetime.jobs")
            one.kill()
        async with nodes(database, "here", {}, lease_duration=2) as [here]:
            told.on(here)
            await eventually(lambda: bool(told.failures))
    [failure] = told.failures
    assert (failure.job_id, failure.state, failure.node) == (abandoned.id, FireState.abandoned, identity)
    assert failure.error == f"the node {identity} vanished while it ran"


def test_a_decorated_function_can_be_the_hook(monkeypatch: pytest.MonkeyPatch) -> None:
    registry = TaskRegistry()
    monkeypatch.setattr(tasks, "registry", registry)

    @task(name="alert")
    async def alert(failure: Failure) -> None: ...

    @task(name="work", on_failure=alert, start_deadline=30, pause_on_failure=3)
    async def work() -> None: ...

    options = registry.find("work").options
    assert options == TaskOptions(start_deadline=timedelta(seconds=30), on_failure="alert", pause_on_failure=3)


# -- pause_on_failure ------------------------------------------------------------------------------------------------


class Sequence:
    """A task whose runs end as they are told to."""

    def __init__(self, ends: str) -> None:
        self.ends = ends
        self.runs = 0

    async def __call__(self, _node: str) -> None:
        self.runs += 1
        if self.ends[self.runs - 1 : self.runs] in ("", "-"):
            raise ValueError(f"run {self.runs}")


async def states(connection: asyncpg.Connection) -> list[str]:
    return [row["state"] for row in await connection.fetch("select state from duetime.fires order by fire_time")]


async def test_a_schedule_is_paused_after_so_many_failed_fires_in_a_row_and_says_why(
    database: DatabaseUrl, connection: asyncpg.Connection
) -> None:
    work = Sequence("-+--+---")
    async with nodes(database, "a b", {"work": work}) as [a, b]:
        await add(a, "work", every(0.25), pause_on_failure=3)
        await eventually(lambda: connection.fetchval("select paused from duetime.schedules"))
        shown = await b.service.get("s")
        assert shown.state is ScheduleState.paused
        assert shown.pause_reason == (
            "3 fires in a row have failed (pause_on_failure), the last one with: ValueError: run 8"
        )
        assert shown.options["pause_on_failure"] == 3
        assert work.runs == 8
        assert await states(connection) == [{"-": "failed", "+": "succeeded"}[end] for end in "-+--+---"], (
            "what was claimed ahead is taken back"
        )


async def test_a_resumed_schedule_counts_anew(database: DatabaseUrl, connection: asyncpg.Connection) -> None:
    work = Sequence("")
    async with nodes(database, "a", {"work": work}) as [a]:
        await add(a, "work", every(0.2), pause_on_failure=2)
        for runs in (2, 4):
            await eventually(lambda: connection.fetchval("select paused from duetime.schedules"))
            assert work.runs == runs
            resumed = await a.service.resume("s")
            assert (resumed.state, resumed.pause_reason) == (ScheduleState.active, None)
        paused = await a.service.pause("s")
        assert paused.pause_reason is None, "it is somebody else who has paused it"


async def test_fires_that_did_not_run_do_not_count_and_attempts_count_once(
    database: DatabaseUrl, connection: asyncpg.Connection
) -> None:
    work = Sequence("")
    options = TaskOptions(retry=Retry(max_attempts=2, backoff=0, jitter=0))
    async with nodes(database, "a", {"work": work}, options) as [a]:
        await add(a, "work", DateTrigger(ago(-3600)), pause_on_failure=3)
        for run in (1, 2, 3):
            assert not await connection.fetchval("select paused from duetime.schedules")
            await a.service.run_schedule("s")
            await eventually(partial(failed, connection, run))
            await connection.execute(  # between the two, as a skipped fire would be
                "insert into duetime.fires (schedule_id, fire_time, task_id, state, finished_at)"
                " values ('s', clock_timestamp(), 'work', 'skipped', clock_timestamp())"
            )
        assert await connection.fetchval("select paused from duetime.schedules")
    assert work.runs == 6


async def failed(connection: asyncpg.Connection, count: int) -> bool:
    found = await connection.fetchval("select count(*) from duetime.fires where state = 'failed'")
    return bool(found == count)


async def test_jobs_that_are_held_for_later_do_not_run_when_their_schedule_is_paused(
    database: DatabaseUrl, connection: asyncpg.Connection
) -> None:
    """Ten fires are claimed ahead, by one node; the first one fails."""
    work = Sequence("")
    async with nodes(database, "a", {"work": work}, TaskOptions(overlap=Overlap.allow), look_ahead=10) as [a]:
        await add(a, "work", every(1, since=ago(-1.5)), pause_on_failure=1)
        await eventually(lambda: connection.fetchval("select paused from duetime.schedules"))
        next_fire_time = await connection.fetchval("select next_fire_time from duetime.schedules")
        [first] = await connection.fetch("select fire_time from duetime.fires")
        assert next_fire_time == first["fire_time"] + timedelta(seconds=1), "resuming in time loses nothing"
        assert await connection.fetchval("select count(*) from duetime.jobs") == 0
        await eventually(lambda: not len(a._scheduler.store._hand))
    assert work.runs == 1


async def test_a_fire_that_was_abandoned_counts_as_failed(
    database: DatabaseUrl, connection: asyncpg.Connection
) -> None:
    began = asyncio.Event()

    async def never(_node: str) -> None:
        began.set()
        await asyncio.Event().wait()

    options = TaskOptions(on_crash=OnCrash.abandon)
    async with nodes(database, "a", {"never": never}, options, drain_timeout=0) as [a]:
        await add(a, "never", every(3600), pause_on_failure=1)
        await eventually(began.is_set)
        await connection.execute("update duetime.jobs set acquired_by = 'gone'")
        await expire(connection, "jobs")
        await a._scheduler.store._reap(None, default="retry")
        shown = await a.service.get("s")
    assert shown.state is ScheduleState.paused
    assert shown.pause_reason is not None
    assert "the node gone vanished" in shown.pause_reason


# -- start_deadline --------------------------------------------------------------------------------------------------


async def test_a_job_that_waits_too_long_for_a_place_is_missed(
    database: DatabaseUrl, connection: asyncpg.Connection
) -> None:
    """The place is taken, and free again only after the second job's start deadline."""
    release, ran = asyncio.Event(), []

    async def block(_node: str) -> None:
        await release.wait()

    async def work(node: str) -> None:
        ran.append(node)

    tasks_of_node = {"block": block, "work": work}
    async with nodes(database, "a", tasks_of_node, max_concurrent_jobs=1) as [a]:
        await a.scheduler.add_job("block")
        await eventually(lambda: connection.fetchval("select acquired_by is not null from duetime.jobs"))
        await add(a, "work", start_deadline=0.3)
        await a.scheduler.add_job("work", metadata=ScheduleOptions(start_deadline=0.3).to_metadata())
        await eventually(
            lambda: connection.fetchval(
                "select count(*) = 2 and min(clock_timestamp() - created_at) > interval '0.4 s'"
                " from duetime.jobs where task_id = 'work'"
            )
        )
        release.set()
        await eventually(lambda: connection.fetchval("select count(*) = 2 from duetime.runs where task_id = 'work'"))
    assert ran == []
    fire = await connection.fetchrow("select state, reason from duetime.fires")
    assert fire["state"] == "missed"
    assert "start deadline (0.3 s in the queue)" in fire["reason"]
    assert set(await connection.fetchval("select array_agg(outcome) from duetime.runs where task_id = 'work'")) == {
        "missed"
    }


@pytest.mark.parametrize("roles", [("both", "both"), ("scheduler", "worker")], ids=["born claimed", "queued"])
async def test_the_start_deadline_counts_from_when_the_job_was_made_and_the_grace_time_from_the_fires_time(
    database: DatabaseUrl, connection: asyncpg.Connection, roles: tuple[str, str]
) -> None:
    """Nobody was up for an hour: a start deadline of ten seconds lets the fire run, a grace time of ten does not."""
    ran: list[str] = []

    async def work(node: str) -> None:
        ran.append(node)

    async with (
        nodes(database, "a", {"work": work}, role=roles[0]) as [a],
        nodes(database, "b", {"work": work}, role=roles[1]),
    ):
        await a.service.add(the_late("deadline", {"start_deadline": 10}))
        await a.service.add(the_late("grace", {"misfire_grace_time": 10}))
        await eventually(lambda: connection.fetchval("select count(*) = 2 from duetime.fires where state <> 'pending'"))
    found = await connection.fetch("select schedule_id, state from duetime.fires")
    assert {row["schedule_id"]: row["state"] for row in found} == {"deadline": "succeeded", "grace": "missed"}
    assert len(ran) == 1


def the_late(name: str, options: dict[str, Any]) -> NewSchedule:
    at: datetime = ago(3600)
    return NewSchedule.model_validate(
        {"id": name, "task": "work", "trigger": {"type": "date", "run_at": at.isoformat()}, "options": options}
    )


async def test_a_further_attempt_that_cannot_start_in_time_makes_the_fire_fail(
    database: DatabaseUrl, connection: asyncpg.Connection
) -> None:
    """Its node goes away before the second attempt, and the next node comes after the start deadline."""
    async with nodes(database, "a", {"work": fail}, TaskOptions(retry=Retry(max_attempts=2, backoff=0.5))) as [a]:
        await add(a, "work", start_deadline=0.3)
        await eventually(lambda: connection.fetchval("select attempts = 1 from duetime.fires"))
    await eventually(
        lambda: connection.fetchval("select clock_timestamp() > run_at + interval '0.4 s' from duetime.jobs")
    )
    async with nodes(database, "b", {"work": fail}):
        await eventually(lambda: connection.fetchval("select finished_at is not null from duetime.fires"))
    assert await connection.fetchval("select state from duetime.fires") == "failed"
    outcomes = await connection.fetch("select outcome from duetime.runs order by id")
    assert [row["outcome"] for row in outcomes] == ["error", "missed"]
