"""What the store cures of 4.0.0a6: each defect on the stock store, and beside it ours without it.

Both stores live in one database, the stock one in the schema ``stock``.
"""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from datetime import datetime, timedelta
from typing import Any

import asyncpg
import pytest
from apscheduler import ConflictPolicy, JobOutcome, JobResult, ScheduleResult
from apscheduler.abc import DataStore
from apscheduler.datastores.sqlalchemy import SQLAlchemyDataStore
from apscheduler.triggers.date import DateTrigger

from duetime.settings import DatabaseUrl
from duetime.store import PostgresDataStore

from .parts import LEASE, a_job, a_schedule, a_task, ago, engine_of, every, started


class Side:
    """A store, and what a test needs to know of its tables."""

    def __init__(self, store: DataStore, schema: str, connection: asyncpg.Connection) -> None:
        self.store = store
        self.schema = schema
        self._connection = connection

    async def sql(self, statement: str) -> Any:
        return await self._connection.fetchval(statement.replace("{s}", self.schema))

    async def expire(self, table: str) -> None:
        past = "set acquired_until = now() - interval '1 minute' where acquired_by is not null"
        await self.sql(f"update {self.schema}.{table} {past}")

    async def plan_and_add_job(self, scheduler: str) -> ScheduleResult:
        """Do what the scheduler's loop does with a due one-off schedule, up to its release."""
        [schedule] = await self.store.acquire_schedules(scheduler, LEASE, 9)
        assert schedule.next_fire_time is not None
        await self.store.add_job(
            a_job(schedule_id=schedule.id, scheduled_fire_time=schedule.next_fire_time, executor="async")
        )
        return ScheduleResult(
            schedule_id=schedule.id,
            task_id=schedule.task_id,
            trigger=schedule.trigger,
            last_fire_time=schedule.next_fire_time,
            next_fire_time=schedule.trigger.next(),
        )


@pytest.fixture
async def stock(database: DatabaseUrl, connection: asyncpg.Connection) -> AsyncIterator[Side]:
    async with engine_of(database) as engine:
        store = SQLAlchemyDataStore(engine, schema="stock")
        async with started(store):
            await store.add_task(a_task(max_running_jobs=1))
            yield Side(store, "stock", connection)


@pytest.fixture
async def ours(database: DatabaseUrl, connection: asyncpg.Connection) -> AsyncIterator[Side]:
    async with engine_of(database) as engine:
        store = PostgresDataStore(engine)
        async with started(store):
            await store.add_task(a_task(max_running_jobs=1))
            yield Side(store, "duetime", connection)


async def test_a_crash_between_the_job_and_the_release_doubles_a_fire_of_the_stock_store_only(
    stock: Side, ours: Side
) -> None:
    for side, jobs in ((stock, 2), (ours, 1)):
        await side.store.add_schedule(a_schedule("s"), ConflictPolicy.exception)
        await side.plan_and_add_job("crashed")
        await side.expire("schedules")
        result = await side.plan_and_add_job("next")
        await side.store.release_schedules("next", [result])
        assert len({job.scheduled_fire_time for job in await side.store.get_jobs()}) == 1
        assert len(await side.store.get_jobs()) == jobs


async def test_a_schedule_that_a_crashed_scheduler_holds_is_waited_for_by_ours_only(stock: Side, ours: Side) -> None:
    for side, is_waited_for in ((stock, False), (ours, True)):
        await side.store.add_schedule(a_schedule("s"), ConflictPolicy.exception)
        [held] = await side.store.acquire_schedules("crashed", LEASE, 9)
        next_time = await side.store.get_next_schedule_run_time()
        assert next_time == (held.acquired_until if is_waited_for else None)


async def test_a_schedule_edited_while_it_is_held_is_overwritten_in_the_stock_store_only(
    stock: Side, ours: Side
) -> None:
    wanted = ago(-1000)
    for side, survives in ((stock, False), (ours, True)):
        await side.store.add_schedule(a_schedule("s", every(60, ago(1))), ConflictPolicy.exception)
        result = await side.plan_and_add_job("one")
        await side.store.add_schedule(a_schedule("s", DateTrigger(wanted)), ConflictPolicy.replace)
        await side.store.release_schedules("one", [result])
        [stored] = await side.store.get_schedules({"s"})
        assert (stored.next_fire_time == wanted) is survives


async def test_a_lost_claim_is_noticed_by_ours_only(stock: Side, ours: Side) -> None:
    for side, made in ((stock, 2), (ours, 1)):
        await side.store.add_schedule(a_schedule("s"), ConflictPolicy.exception)
        slow = await side.plan_and_add_job("slow")
        await side.expire("schedules")
        quick = await side.plan_and_add_job("quick")
        await side.store.release_schedules("quick", [quick])
        await side.store.release_schedules("slow", [slow])
        assert len(await side.store.get_jobs()) == made


async def test_an_empty_set_of_ids_reads_everything_from_the_stock_store_only(stock: Side, ours: Side) -> None:
    for side, read in ((stock, 1), (ours, 0)):
        await side.store.add_schedule(a_schedule("s"), ConflictPolicy.exception)
        await side.store.add_job(a_job())
        assert len(await side.store.get_schedules(set())) == read
        assert len(await side.store.get_jobs([])) == read


async def test_reading_a_result_deletes_it_from_the_stock_store_only(stock: Side, ours: Side) -> None:
    for side, is_kept in ((stock, False), (ours, True)):
        await side.store.add_job(a_job(result_expiration_time=timedelta(hours=1)))
        [job] = await side.store.acquire_jobs("one", LEASE)
        await side.store.release_job("one", job, JobResult.from_job(job, JobOutcome.success, return_value=1))
        assert await side.store.get_job_result(job.id) is not None
        assert (await side.store.get_job_result(job.id) is not None) is is_kept


async def test_of_a_run_whose_result_is_not_wanted_the_stock_store_keeps_nothing(stock: Side, ours: Side) -> None:
    for side in (stock, ours):
        await side.store.add_job(a_job())
        [job] = await side.store.acquire_jobs("one", LEASE)
        await side.store.release_job("one", job, JobResult.from_job(job, JobOutcome.success, started_at=ago()))
    assert await stock.sql("select (select count(*) from {s}.jobs) + (select count(*) from {s}.job_results)") == 0
    assert await ours.sql("select outcome from {s}.runs") == "success"


async def test_a_host_whose_clock_is_ahead_fires_too_early_with_the_stock_store_only(
    stock: Side, ours: Side, monkeypatch: pytest.MonkeyPatch
) -> None:
    for side in (stock, ours):
        await side.store.add_schedule(a_schedule("s", DateTrigger(ago(-1800))), ConflictPolicy.exception)
    _set_clock_ahead(monkeypatch, timedelta(hours=1))
    assert len(await stock.store.acquire_schedules("one", LEASE, 9)) == 1
    assert len(await ours.store.acquire_schedules("one", LEASE, 9)) == 0


async def test_a_host_whose_clock_is_ahead_takes_running_jobs_from_others_with_the_stock_store_only(
    stock: Side, ours: Side, monkeypatch: pytest.MonkeyPatch
) -> None:
    for side in (stock, ours):
        await side.store.add_task(a_task(max_running_jobs=None))
        await side.store.add_job(a_job())
        assert len(await side.store.acquire_jobs("one", LEASE)) == 1
    _set_clock_ahead(monkeypatch, timedelta(hours=1))
    assert len(await stock.store.acquire_jobs("ahead", LEASE)) == 1
    assert len(await ours.store.acquire_jobs("ahead", LEASE)) == 0


def _set_clock_ahead(monkeypatch: pytest.MonkeyPatch, by: timedelta) -> None:
    """Set the clock that APScheduler's and our modules see."""

    class Ahead(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> datetime:  # type: ignore[override]
            return datetime.now(tz) + by

    for name, module in list(sys.modules.items()):
        if name.startswith(("apscheduler.datastores", "duetime.")) and getattr(module, "datetime", None) is datetime:
            monkeypatch.setattr(module, "datetime", Ahead)


async def test_a_crash_takes_a_place_of_a_limited_task_for_ever_in_the_stock_store_only(
    stock: Side, ours: Side
) -> None:
    for side, is_free in ((stock, False), (ours, True)):
        await side.store.add_job(a_job())
        assert len(await side.store.acquire_jobs("crashed", LEASE)) == 1
        await side.expire("jobs")
        claimed = await side.store.acquire_jobs("next", LEASE)
        assert bool(claimed) is is_free


async def test_jobs_of_a_full_task_starve_others_in_the_stock_store_only(stock: Side, ours: Side) -> None:
    for side, is_served in ((stock, False), (ours, True)):
        await side.store.add_task(a_task("other", max_running_jobs=None))
        for _ in range(5):
            await side.store.add_job(a_job("work"))
        await side.store.add_job(a_job("other"))
        claimed = [*await side.store.acquire_jobs("one", LEASE, 3), *await side.store.acquire_jobs("one", LEASE, 3)]
        assert ("other" in {job.task_id for job in claimed}) is is_served
