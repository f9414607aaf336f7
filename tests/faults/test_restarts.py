"""The server is stopped in every way that there is, and started again: nobody has to do anything about it."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Awaitable
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pytest
from apscheduler.triggers.date import DateTrigger

from duetime import Duetime
from duetime.commands import FireQuery, NewJob, NewSchedule, PageRequest, RunQuery, ScheduleQuery
from duetime.errors import StoreUnavailable

from ..store.parts import ago
from ..waiting import eventually
from .parts import (
    CALL_TIMEOUT,
    MARGIN,
    a_node,
    add_often,
    connected,
    done,
    is_ready,
    is_whole,
    measured,
    settled,
    works,
)
from .servers import FAST, IMMEDIATE, KILL, SMART, OwnServer

OUTAGE = 2.0
"""Seconds that the server stays down: longer than a call may take."""


@pytest.mark.parametrize("how", [FAST, IMMEDIATE, KILL], ids=["fast", "immediate", "kill -9"])
async def test_a_restart_is_waited_for_and_nothing_is_lost_or_doubled(own: OwnServer, how: signal.Signals) -> None:
    loop = asyncio.get_running_loop()
    async with a_node(own.url) as duetime:
        await add_often(duetime)
        await own.stop(how)
        down_at = loop.time()
        # Every call ends in time, with a typed error.
        outcomes = await asyncio.gather(*calls(duetime), return_exceptions=True)
        assert loop.time() - down_at < CALL_TIMEOUT + MARGIN
        assert [outcome for outcome in outcomes if not isinstance(outcome, StoreUnavailable)] == []
        readiness = await duetime.service.readiness()
        assert not readiness.ready
        assert readiness.database == "unreachable"
        assert readiness.reason
        await asyncio.sleep(max(0.0, OUTAGE - (loop.time() - down_at)))
        await own.start()
        before = len(done)
        back_at = loop.time()
        await eventually(lambda: len(done) > before)
        measured("first fire after a restart", loop.time() - back_at)
        await works(duetime)
        await is_ready(duetime)
        async with connected(own.url) as connection:
            await is_whole(duetime, connection)


async def test_a_server_that_waits_for_its_clients_to_leave_goes_on_serving_them(own: OwnServer) -> None:
    async with a_node(own.url) as duetime:
        own.begin_stop(SMART)
        await works(duetime)
        await own.stop(FAST)
        await own.start()
        await works(duetime)
        await is_ready(duetime)


async def test_restarts_one_after_the_other_cost_nothing(own: OwnServer) -> None:
    async with a_node(own.url) as duetime:
        added: list[str] = []
        for number, how in enumerate((FAST, IMMEDIATE, KILL, FAST, KILL)):
            restarting = asyncio.create_task(restart(own, how))
            while not restarting.done():
                name = f"{number}-{len(added)}"
                with suppress(StoreUnavailable):
                    await duetime.scheduler.add_schedule("work", DateTrigger(datetime.now(UTC)), args=[name], id=name)
                    added.append(name)
                await asyncio.sleep(0.01)
            await restarting
        await works(duetime)
        await eventually(lambda: set(added) <= set(done))
        async with connected(own.url) as connection:
            await eventually(lambda: settled(connection))
            assert await connection.fetchval("select count(*) from duetime.fires where state <> 'succeeded'") == 0
        assert sorted(set(done)) == sorted(done), "none ran twice"


async def restart(own: OwnServer, how: signal.Signals) -> None:
    await asyncio.sleep(0.2)
    await own.stop(how)
    await own.start()


def calls(duetime: Duetime) -> list[Awaitable[Any]]:
    """Begin every call that a user may make."""
    scheduler, service = duetime.scheduler, duetime.service
    some = UUID(int=1)
    new = NewSchedule.model_validate({"task": "work", "trigger": {"type": "interval", "hours": 1}})
    return [
        scheduler.add_schedule("work", DateTrigger(ago()), id="never"),
        scheduler.add_job("work"),
        scheduler.run_job("work"),
        scheduler.configure_task("work", max_running_jobs=3),
        scheduler.remove_schedule("often"),
        scheduler.pause_schedule("often"),
        scheduler.unpause_schedule("often"),
        scheduler.get_schedule("often"),
        scheduler.get_schedules(),
        scheduler.get_tasks(),
        scheduler.get_jobs(),
        scheduler.get_job_result(some),
        service.add(new),
        service.get("often"),
        service.schedules(ScheduleQuery()),
        service.remove("often"),
        service.pause("often"),
        service.resume("often"),
        service.run_schedule("often"),
        service.add_job(NewJob.model_validate({"task": "work"})),
        service.jobs(PageRequest()),
        service.fires(FireQuery()),
        service.runs(RunQuery()),
        service.run(1),
    ]
