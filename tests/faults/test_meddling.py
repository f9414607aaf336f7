"""Jobs that meddle with the scheduler that runs them, and callers that ask it for nonsense."""

from __future__ import annotations

import asyncio
import math
from datetime import timedelta
from typing import Any

import asyncpg
import pytest
from apscheduler import ConflictPolicy, current_async_scheduler, current_job
from apscheduler.triggers.date import DateTrigger

from duetime import Duetime, Settings
from duetime.errors import DuetimeError, ScheduleNotFound, UnsupportedValue
from duetime.settings import DatabaseUrl

from ..store.parts import ago, every, tasks
from ..waiting import eventually
from .parts import a_node, done, is_ready, later, settled, works


def scheduler() -> Any:
    return current_async_scheduler.get()


async def removes_its_own_schedule() -> None:
    done.append("removed")
    await scheduler().remove_schedule(current_job.get().schedule_id)


async def pauses_its_own_schedule() -> None:
    done.append("paused")
    await scheduler().pause_schedule(current_job.get().schedule_id)


async def replaces_its_own_schedule() -> None:
    done.append("replaced")
    await scheduler().add_schedule(
        "work",
        DateTrigger(ago()),
        args=["instead"],
        id=current_job.get().schedule_id,
        conflict_policy=ConflictPolicy.replace,
    )


async def adds_another() -> None:
    await scheduler().add_schedule("work", DateTrigger(ago()), args=["another"], id="another")
    done.append(await scheduler().run_job("work", args=["inner"]))


async def removes_its_own_task() -> None:
    await scheduler().data_store.remove_task(current_job.get().task_id)


async def test_a_job_may_do_anything_to_its_own_schedule(database: DatabaseUrl, connection: asyncpg.Connection) -> None:
    meddlers = (
        removes_its_own_schedule,
        pauses_its_own_schedule,
        replaces_its_own_schedule,
        adds_another,
        removes_its_own_task,
    )
    async with a_node(database, *meddlers) as duetime:
        for function in meddlers:
            await duetime.scheduler.add_schedule(function.__name__, every(3600, ago(1)), id=function.__name__)
        await eventually(lambda: {"removed", "paused", "instead", "another"} <= set(done))
        await eventually(lambda: done.count("inner") == 2)
        await eventually(lambda: settled(connection))
        assert await connection.fetchval("select count(*) from duetime.runs where outcome <> 'success'") == 0
        with pytest.raises(ScheduleNotFound):
            await duetime.service.get("removes_its_own_schedule")
        assert (await duetime.service.get("pauses_its_own_schedule")).state == "paused"
        await works(duetime)


async def cancels_the_scheduler() -> None:
    done.append("cancels")
    if done.count("cancels") == 1:
        for task in asyncio.all_tasks():
            if task.get_name().startswith(("duetime scheduler", "Scheduler")):
                task.cancel()
    await asyncio.sleep(0.1)


async def test_a_scheduler_that_a_job_cancels_starts_again(
    database: DatabaseUrl, connection: asyncpg.Connection
) -> None:
    async with a_node(database, cancels_the_scheduler, crashes=None) as duetime:
        await duetime.scheduler.add_job("cancels_the_scheduler")
        await eventually(lambda: duetime._supervisor.crashes == 1)
        await is_ready(duetime)
        await works(duetime)
        await eventually(lambda: settled(connection))


async def stops_the_scheduler() -> None:
    done.append("stops")
    await scheduler().stop()
    await asyncio.Event().wait()


async def test_a_scheduler_that_a_job_stops_is_stopped_and_says_so(
    database: DatabaseUrl, connection: asyncpg.Connection
) -> None:
    duetime = Duetime(Settings(database_url=database.text), registry=tasks(stops_the_scheduler))
    done.clear()
    async with duetime:
        await is_ready(duetime)
        await duetime.scheduler.add_job("stops_the_scheduler")
        await eventually(lambda: "stops" in done and duetime.scheduler.state.name == "stopped")
        readiness = await duetime.service.readiness()
        assert (readiness.ready, readiness.reason) == (False, "the scheduler is stopped")
    [job] = await connection.fetch("select acquired_by, attempt from duetime.jobs")
    assert tuple(job) == (None, 1), "it goes back into the queue"


ODD_OPTIONS: list[dict[str, Any]] = [
    {"metadata": {"x": object()}},
    {"metadata": {"x": math.nan}},
    {"metadata": {"x": "\x00"}},
    {"metadata": {"x": "\ud800"}},
    {"metadata": {"duetime.tags": 5}},
    {"metadata": {"duetime.engine": 5}},
    {"metadata": 5},
    {"job_executor": None},
    {"job_executor": "\x00"},
    {"misfire_grace_time": timedelta.max},
    {"max_jitter": 1e18},
    {"job_result_expiration_time": 1e300},
    {"args": 5},
    {"kwargs": [1]},
    {"id": 5},
    {"id": "x\x00"},
    {"paused": "x"},
]


async def test_options_that_make_no_sense_are_refused_and_cost_those_of_other_calls_nothing(
    database: DatabaseUrl, connection: asyncpg.Connection
) -> None:
    async with a_node(database) as duetime:
        add = duetime.scheduler.add_schedule
        outcomes = await asyncio.gather(
            *(add("work", DateTrigger(later(3600)), **options) for options in ODD_OPTIONS),
            *(add("work", DateTrigger(later(3600)), id=f"good-{number}") for number in range(20)),
            return_exceptions=True,
        )
        refused, good = outcomes[: len(ODD_OPTIONS)], outcomes[len(ODD_OPTIONS) :]
        assert [options for options, each in zip(ODD_OPTIONS, refused, strict=True) if isinstance(each, str)] == []
        assert all(isinstance(each, (DuetimeError, TypeError, ValueError, OverflowError)) for each in refused), refused
        assert good == [f"good-{number}" for number in range(20)]
        assert await connection.fetchval("select count(*) from duetime.schedules") == 20
        # Schedules take the grace time of their task.
        with pytest.raises(UnsupportedValue):
            await duetime.scheduler.configure_task("work", misfire_grace_time=timedelta.max)
        await works(duetime)
