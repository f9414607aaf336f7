"""``add_schedules``: many at once, each said as ``add_schedule`` takes it, all of them or none."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from copy import copy
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import asyncpg
import pytest
from apscheduler import ConflictPolicy, Event, ScheduleAdded, ScheduleUpdated
from apscheduler.triggers.date import DateTrigger
from apscheduler.triggers.interval import IntervalTrigger

from duetime import scheduler_transaction
from duetime.errors import InvalidArguments, ScheduleExists, UnknownTask
from duetime.scheduler import DuetimeScheduler
from duetime.settings import DatabaseUrl

from .store.parts import a_schedule, node, running, tasks
from .waiting import eventually

LATER = datetime(2100, 1, 1, tzinfo=UTC)
done: list[tuple[Any, ...]] = []


async def work(*args: Any, **kwargs: Any) -> None:
    done.append((*args, kwargs))


async def other() -> None:
    """Be another task."""


@asynccontextmanager
async def a_scheduler(database: DatabaseUrl) -> AsyncIterator[DuetimeScheduler]:
    done.clear()
    scheduler = node(database, tasks(work, other))
    async with running(scheduler):
        yield scheduler


async def test_each_is_stored_as_add_schedule_would_have_stored_it(database: DatabaseUrl) -> None:
    async with a_scheduler(database) as scheduler:
        options: list[dict[str, Any]] = [
            {"func_or_task_id": "work", "trigger": DateTrigger(LATER), "id": "plain"},
            {
                "func_or_task_id": "work",
                "trigger": IntervalTrigger(hours=1, start_time=LATER),
                "id": "all",
                "args": [1, "two"],
                "kwargs": {"three": 3},
                "paused": True,
                "coalesce": "all",
                "misfire_grace_time": timedelta(seconds=5),
                "max_jitter": 7,
                "job_result_expiration_time": 60,
                "metadata": {"own": True},
                "job_executor": "async",
            },
            {"func_or_task_id": partial(work, 1, a=2), "trigger": DateTrigger(LATER), "id": "partial", "args": (3,)},
            {"func_or_task_id": other, "trigger": DateTrigger(LATER), "id": "other"},
        ]
        for each in options:
            func, trigger = each["func_or_task_id"], each["trigger"]
            rest = {name: value for name, value in each.items() if name not in ("func_or_task_id", "trigger", "id")}
            twin = copy(trigger)
            await scheduler.add_schedule(func, twin, id=f"{each['id']} by itself", **rest)
        assert await scheduler.add_schedules(options) == ["plain", "all", "partial", "other"]
        stored = {each.id: each for each in await scheduler.get_schedules()}
        assert len(stored) == 8
        for name in ("plain", "all", "partial", "other"):
            ours, theirs = stored[name], stored[f"{name} by itself"]
            for part in (
                "task_id", "args", "kwargs", "paused", "coalesce", "misfire_grace_time", "max_jitter", "job_executor",
                "job_result_expiration_time", "metadata", "next_fire_time",
            ):  # fmt: skip
                assert getattr(ours, part) == getattr(theirs, part), (name, part)


async def test_those_that_are_due_run(database: DatabaseUrl) -> None:
    async with a_scheduler(database) as scheduler:
        now = datetime.now(UTC)
        ids = await scheduler.add_schedules(
            {"func_or_task_id": work, "trigger": DateTrigger(now), "args": [number]} for number in range(100)
        )
        assert len(set(ids)) == 100
        await eventually(lambda: sorted(number for number, _ in done) == list(range(100)))


async def test_apschedulers_own_schedules_may_stand_among_them(database: DatabaseUrl) -> None:
    async with a_scheduler(database) as scheduler:
        await scheduler.configure_task("work")
        ids = await scheduler.add_schedules(
            [
                a_schedule("stock", DateTrigger(LATER)),
                {"func_or_task_id": "work", "trigger": DateTrigger(LATER), "id": "ours"},
            ]
        )
        assert ids == ["stock", "ours"]
        assert {each.id for each in await scheduler.get_schedules()} == {"stock", "ours"}


async def test_none_is_nothing(database: DatabaseUrl) -> None:
    async with a_scheduler(database) as scheduler:
        assert await scheduler.add_schedules([]) == []


@pytest.mark.parametrize(
    ("item", "words"),
    [
        ({"func_or_task_id": "work"}, r"schedules\[1\].*no trigger"),
        ({"trigger": DateTrigger(LATER)}, r"schedules\[1\].*no func_or_task_id"),
        ({"func_or_task_id": "work", "triger": 1, "trigger": DateTrigger(LATER)}, "'triger'.*did you mean 'trigger'"),
        ({"func_or_task_id": "work", "trigger": DateTrigger(LATER), "coalesce": "sometimes"}, r"schedules\[1\]"),
        ({"func_or_task_id": "work", "trigger": DateTrigger(LATER), "max_jitter": "long"}, r"schedules\[1\]"),
        ({"func_or_task_id": "work", "trigger": "0 9 * * *"}, r"schedules\[1\]"),
        (5, r"schedules\[1\]"),
        (None, r"schedules\[1\]"),
    ],
    ids=["no trigger", "no task", "a typing error", "a policy", "a duration", "a text", "a number", "nothing"],
)
async def test_one_that_is_no_schedule_is_named_and_none_is_stored(
    database: DatabaseUrl, connection: asyncpg.Connection, item: Any, words: str
) -> None:
    async with a_scheduler(database) as scheduler:
        good = {"func_or_task_id": "work", "trigger": DateTrigger(LATER), "id": "good"}
        with pytest.raises(InvalidArguments, match=words):
            await scheduler.add_schedules([good, item])
        assert await connection.fetchval("select count(*) from duetime.schedules") == 0


async def test_an_unknown_task_is_refused(database: DatabaseUrl) -> None:
    async with a_scheduler(database) as scheduler:
        with pytest.raises(UnknownTask, match="did you mean 'work'"):
            await scheduler.add_schedules([{"func_or_task_id": "wrok", "trigger": DateTrigger(LATER)}])


async def test_an_id_that_is_taken_is_kept_or_refuses_all(
    database: DatabaseUrl, connection: asyncpg.Connection
) -> None:
    async with a_scheduler(database) as scheduler:

        def items(count: int) -> list[dict[str, Any]]:
            return [{"func_or_task_id": "work", "trigger": DateTrigger(LATER), "id": f"s{n}"} for n in range(count)]

        await scheduler.add_schedules(items(1))
        with pytest.raises(ScheduleExists, match="s0"):
            await scheduler.add_schedules(items(3), conflict_policy=ConflictPolicy.exception)
        assert await connection.fetchval("select count(*) from duetime.schedules") == 1
        assert await scheduler.add_schedules(items(3)) == ["s0", "s1", "s2"]
        assert await connection.fetchval("select count(*) from duetime.schedules") == 3


async def test_they_are_written_by_the_callers_transaction(
    database: DatabaseUrl, connection: asyncpg.Connection
) -> None:
    async with a_scheduler(database) as scheduler:
        mine = await asyncpg.connect(**database.asyncpg_arguments())
        try:
            for commits in (False, True):
                transaction = mine.transaction()
                await transaction.start()
                async with scheduler_transaction(mine):
                    await scheduler.add_schedules(
                        {"func_or_task_id": "work", "trigger": DateTrigger(LATER), "id": f"s{n}"} for n in range(200)
                    )
                assert await connection.fetchval("select count(*) from duetime.schedules") == 0
                await (transaction.commit() if commits else transaction.rollback())
                assert await connection.fetchval("select count(*) from duetime.schedules") == (200 if commits else 0)
        finally:
            await mine.close()


async def test_whoever_wants_to_hear_of_each_hears_of_each(database: DatabaseUrl) -> None:
    """Without such a subscriber, one event tells the loop of them all."""
    async with a_scheduler(database) as scheduler:
        heard: list[str] = []

        def take(event: Event) -> None:
            assert isinstance(event, ScheduleAdded)
            heard.append(event.schedule_id)

        scheduler.subscribe(take, {ScheduleAdded, ScheduleUpdated})
        await scheduler.add_schedules(
            {"func_or_task_id": work, "trigger": DateTrigger(LATER), "id": f"s{number}"} for number in range(30)
        )
        await eventually(lambda: len(heard) >= 30)
    assert sorted(heard) == sorted(f"s{number}" for number in range(30))
