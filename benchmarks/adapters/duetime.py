"""Duetime as its README shows it: ``Duetime()`` with its default settings, ``add_schedule`` with a ``DateTrigger``."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import AsyncExitStack
from datetime import timedelta

from apscheduler import CoalescePolicy, ConflictPolicy, RunState, Schedule
from apscheduler.triggers.date import DateTrigger
from apscheduler.triggers.interval import IntervalTrigger
from fastapi import FastAPI

from duetime import Duetime, Settings, task
from duetime.commands import ScheduleQuery

from . import work
from .peer import Peer, moment

note = task(name="note")(work.note)
nothing = task(name="nothing")(work.nothing)


class Adapter(Peer):
    """Duetime."""

    packages = ("duetime", "APScheduler", "asyncpg", "anyio", "SQLAlchemy")
    pending = (
        "select (select count(*) from duetime.jobs)"
        " + (select count(*) from duetime.schedules where next_fire_time < now() + interval '1 day'"
        "    and next_fire_time is not null and not paused and broken_reason is null)"
        " + (select count(*) from duetime.fires where state = 'pending')"
    )

    adds_while_running = True
    multiply = (
        "insert into duetime.schedules (id, task_id, trigger, args, kwargs, coalesce, "
        "job_executor, metadata, revision, "
        "next_fire_time) select 'other' || i, task_id, trigger, args, kwargs, coalesce, "
        "job_executor, metadata, "
        "gen_random_uuid(), next_fire_time from (select * from duetime.schedules limit 1) one, "
        "generate_series(1, $1) i"
    )

    async def install(self) -> None:
        await self.open()
        async with self._duetime:
            await self._until_started()

    async def open(self) -> None:
        self._duetime = Duetime(Settings(database_url=self.place.libpq))
        self._stack = AsyncExitStack()

    async def close(self) -> None:
        await self._stack.aclose()

    async def _until_started(self) -> None:
        while self._duetime.scheduler.state is not RunState.started:
            await asyncio.sleep(0.001)

    async def add(self, key: str, due: float) -> None:
        await self._duetime.scheduler.add_schedule(note, DateTrigger(moment(due)), id=key, args=(key, due))

    async def add_many(self, items: Sequence[tuple[str, float]]) -> None:
        scheduler = self._duetime.scheduler
        task = await scheduler.configure_task(note)
        schedules = []
        for key, due in items:
            trigger = DateTrigger(moment(due))
            schedules.append(
                Schedule(
                    id=key,
                    task_id=task.id,
                    trigger=trigger,
                    args=(key, due),
                    kwargs={},
                    coalesce=CoalescePolicy.latest,
                    misfire_grace_time=None,
                    max_jitter=None,
                    job_executor=task.job_executor,
                    job_result_expiration_time=timedelta(0),
                    metadata=task.metadata,
                    next_fire_time=trigger.next(),
                )
            )
        await self._duetime.scheduler.data_store.add_schedules(schedules)

    async def start(self) -> None:
        await self._stack.enter_async_context(self._duetime)
        await self._until_started()

    def declare(self, schedules: int) -> None:
        super().declare(schedules)
        self._duetime = Duetime(Settings(database_url=self.place.libpq))
        self._stack = AsyncExitStack()

    async def start_registering(self) -> None:
        await self._stack.enter_async_context(self._duetime.lifespan(FastAPI()))

    async def register_in_background(self) -> None:
        scheduler = self._duetime.scheduler
        await asyncio.gather(
            *(
                scheduler.add_schedule(
                    nothing,
                    IntervalTrigger(hours=1, start_time=moment(4e9)),
                    id=f"recurring{i}",
                    conflict_policy=ConflictPolicy.replace,
                )
                for i in range(self.schedules)
            )
        )
        await self._until_started()

    async def page(self) -> None:
        await self._duetime.service.schedules(ScheduleQuery(limit=50))
