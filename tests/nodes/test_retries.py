"""Attempts that are made again, on real nodes: for which errors, with which knowledge, and after which end."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from datetime import timedelta
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from apscheduler.triggers.date import DateTrigger

from duetime import Attempt, Retry, current_attempt
from duetime.commands import NewSchedule
from duetime.options import TaskOptions
from duetime.settings import DatabaseUrl

from .. import process_work
from ..store.parts import ago
from ..waiting import eventually
from .desk import job
from .fleet import fleet_on
from .test_limits import nodes


async def ended(connection: asyncpg.Connection) -> bool:
    return bool(await connection.fetchval("select count(*) = 0 from duetime.jobs"))


@pytest.mark.parametrize(
    ("policy", "attempts", "said"),
    [
        ({"retry_on": ["OSError"]}, 3, "ConnectionResetError: gone"),
        ({"retry_on": ["KeyError"]}, 1, "ConnectionResetError: gone (not tried again: retry_on does not have it)"),
        (
            {"give_up_on": ["ConnectionError"]},
            1,
            "ConnectionResetError: gone (not tried again: give_up_on has ConnectionError)",
        ),
    ],
)
async def test_an_error_is_tried_again_if_the_policy_has_it_and_the_ledger_says_why_not(
    database: DatabaseUrl, connection: asyncpg.Connection, policy: dict[str, Any], attempts: int, said: str
) -> None:
    async def fail(_node: str) -> None:
        raise ConnectionResetError("gone")

    options = TaskOptions(retry=Retry(max_attempts=3, backoff=0, jitter=0, **policy))
    async with nodes(database, "a b", {"fail": fail}, options) as [a, _b]:
        await a.scheduler.add_schedule("fail", DateTrigger(ago(1)), id="s")
        await eventually(lambda: connection.fetchval("select state = 'failed' from duetime.fires"))
    fire = await connection.fetchrow("select attempts, reason from duetime.fires")
    assert tuple(fire) == (attempts, said)
    assert await connection.fetchval("select count(*) from duetime.runs") == attempts


async def test_a_schedules_own_policy_takes_the_place_of_its_tasks_and_is_shown(
    database: DatabaseUrl, connection: asyncpg.Connection
) -> None:
    async def fail(_node: str) -> None:
        raise ConnectionResetError("gone")

    options = TaskOptions(retry=Retry(max_attempts=7, backoff=3600, max_backoff=3600))
    async with nodes(database, "a", {"fail": fail}, options) as [a]:
        body = {
            "id": "s",
            "task": "fail",
            "trigger": {"type": "date", "run_at": ago(1).isoformat()},
            "options": {"retry": {"max_attempts": 2, "backoff": 0, "retry_on": ["OSError"]}},
        }
        shown = await a.service.add(NewSchedule.model_validate(body))
        policy = shown.options["retry"]
        assert isinstance(policy, dict)
        assert (policy["max_attempts"], policy["retry_on"], policy["give_up_on"]) == (2, ["OSError"], [])
        await eventually(lambda: connection.fetchval("select state = 'failed' from duetime.fires"))
    assert await connection.fetchval("select attempts from duetime.fires") == 2


async def test_each_attempt_knows_its_number_and_how_the_last_one_ended_on_whichever_node(
    database: DatabaseUrl, connection: asyncpg.Connection
) -> None:
    seen: list[Attempt] = []

    async def work(node: str) -> None:
        seen.append(current_attempt())
        if len(seen) < 3:
            raise RuntimeError(f"attempt {len(seen)}")

    def in_a_thread() -> None:
        seen.append(current_attempt())

    options = TaskOptions(retry=Retry(max_attempts=3, backoff=0, jitter=0))
    async with nodes(database, "a b", {"work": work}, options) as [a, b]:
        await a.scheduler.add_job("work")
        await eventually(lambda: ended(connection))
        assert seen == [
            Attempt(1, 3),
            Attempt(2, 3, "RuntimeError: attempt 1"),
            Attempt(3, 3, "RuntimeError: attempt 2"),
        ]
        assert [attempt.is_last for attempt in seen] == [False, False, True]
        seen.clear()
        for node in (a, b):
            node.registry.add(in_a_thread, name="in-a-thread")
            node.registry.add(process_work.attempt, name="in-a-process")
        await a.scheduler.add_job("in-a-thread")
        await eventually(lambda: len(seen) == 1)
        assert seen == [Attempt(1, 1)]
        number = await a.scheduler.run_job("in-a-process", job_executor="processpool")
        assert number == 1


async def test_an_attempt_after_a_crash_knows_of_it(
    database: DatabaseUrl, connection: asyncpg.Connection, tmp_path: Path
) -> None:
    async with fleet_on(database, tmp_path) as fleet:
        one = await fleet.start("one", lease_duration=2)
        async with nodes(database, "here", {}, role="scheduler") as [here]:
            await here._scheduler.store.add_job(job("attempts", kwargs={"until": str(tmp_path / "go")}))
            await eventually(lambda: fleet.diary("began"))
            identity = await connection.fetchval("select acquired_by from duetime.jobs")
            one.kill()
            await fleet.start("two", lease_duration=2)
            await eventually(lambda: len(fleet.diary("began")) == 2)
            (tmp_path / "go").touch()
            await eventually(lambda: ended(connection))
    first, second = fleet.diary("began")
    assert (first["number"], first["last_error"]) == (1, None)
    assert (second["number"], second["last_error"]) == (2, f"the node {identity} vanished")


async def test_the_grace_time_is_for_the_first_attempt(database: DatabaseUrl, connection: asyncpg.Connection) -> None:
    """The wait for the second attempt is longer than the grace time."""
    attempts: list[str] = []

    async def work(node: str) -> None:
        attempts.append(node)
        if len(attempts) == 1:
            raise RuntimeError("no")

    options = TaskOptions(retry=Retry(max_attempts=2, backoff=1.5, jitter=0))
    async with nodes(database, "a", {"work": work}, options) as [a]:
        await a.scheduler.add_schedule("work", DateTrigger(ago(-0.2)), id="s", misfire_grace_time=timedelta(seconds=1))
        await eventually(lambda: ended_fire(connection))
    assert await connection.fetchval("select state from duetime.fires") == "succeeded"


async def ended_fire(connection: asyncpg.Connection) -> bool:
    return bool(await connection.fetchval("select finished_at is not null from duetime.fires"))


async def test_nobody_waits_for_a_place_that_an_attempt_to_come_does_not_take(database: DatabaseUrl) -> None:
    """A job that waits for its next attempt takes no place of the node."""
    failed, ran = asyncio.Event(), asyncio.Event()

    async def fail(_node: str) -> None:
        failed.set()
        raise RuntimeError("no")

    async def other(_node: str) -> None:
        ran.set()

    options = TaskOptions(retry=Retry(max_attempts=2, backoff=3600, max_backoff=3600))
    async with nodes(database, "a", {"fail": fail, "other": other}, options, max_concurrent_jobs=1) as [a]:
        await a.scheduler.add_job("fail")
        await eventually(failed.is_set)
        await a.scheduler.add_job("other")
        await eventually(ran.is_set)


async def test_an_attempt_to_come_does_not_wait_for_the_node_where_the_last_one_failed(database: DatabaseUrl) -> None:
    """That has stopped by then; nobody else has been asked to run the job before."""
    attempts: list[str] = []

    async def work(node: str) -> None:
        attempts.append(node)
        if len(attempts) == 1:
            raise RuntimeError("no")

    options = TaskOptions(retry=Retry(max_attempts=2, backoff=3, jitter=0))
    async with AsyncExitStack() as one, AsyncExitStack() as two:
        stacks = {"one": one, "two": two}
        for name, stack in stacks.items():
            [running] = await stack.enter_async_context(nodes(database, name, {"work": work}, options))
        await running.scheduler.add_job("work")
        await eventually(lambda: attempts)
        first = attempts[0]
        await stacks.pop(first).aclose()
        await eventually(lambda: attempts == [first, *stacks])
