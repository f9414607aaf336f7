"""Raw APScheduler 4.0.0a6: ``SQLAlchemyDataStore`` over asyncpg, ``AsyncpgEventBroker`` on the same engine.

anyio is pinned below 4.14: with newer ones its broker fails when it starts. ``max_running_jobs`` is None, because the
default of one job of a task at a time would measure that limit.
"""

from __future__ import annotations

from apscheduler import AsyncScheduler, ConflictPolicy, TaskDefaults
from apscheduler.datastores.sqlalchemy import SQLAlchemyDataStore
from apscheduler.eventbrokers.asyncpg import AsyncpgEventBroker
from apscheduler.triggers.date import DateTrigger
from apscheduler.triggers.interval import IntervalTrigger
from sqlalchemy.ext.asyncio import create_async_engine

from . import work
from .peer import Peer, moment, sqlalchemy_arguments


class Adapter(Peer):
    """APScheduler 4."""

    packages = ("APScheduler", "anyio", "asyncpg", "SQLAlchemy")
    pending = (
        "select (select count(*) from jobs)"
        " + (select count(*) from schedules where next_fire_time < now() + interval '1 day')"
    )
    adds_while_running = True
    multiply = (
        "insert into schedules (id, task_id, trigger, args, kwargs, paused, coalesce, "
        "misfire_grace_time, max_jitter, "
        "job_executor, job_result_expiration_time, metadata, last_fire_time, next_fire_time, "
        "acquired_by, acquired_until) "
        "select 'other' || i, task_id, trigger, args, kwargs, paused, coalesce, "
        "misfire_grace_time, max_jitter, "
        "job_executor, job_result_expiration_time, metadata, last_fire_time, next_fire_time, "
        "acquired_by, acquired_until "
        "from (select * from schedules limit 1) one, generate_series(1, $1) i"
    )

    async def install(self) -> None:
        await self.open()
        await self.close()

    async def open(self) -> None:
        self._engine = create_async_engine(
            self.place.url("postgresql+asyncpg"), connect_args=sqlalchemy_arguments(self.place)
        )
        store = SQLAlchemyDataStore(self._engine)
        broker = AsyncpgEventBroker.from_async_sqla_engine(self._engine)
        self._scheduler = AsyncScheduler(store, broker, task_defaults=TaskDefaults(max_running_jobs=None))
        await self._scheduler.__aenter__()

    async def close(self) -> None:
        await self._scheduler.__aexit__(None, None, None)
        await self._engine.dispose()

    async def add(self, key: str, due: float) -> None:
        await self._scheduler.add_schedule(work.note, DateTrigger(moment(due)), id=key, args=(key, due))

    async def start(self) -> None:
        await self._scheduler.start_in_background()

    async def start_registering(self) -> None:
        await self.open()
        for i in range(self.schedules):
            await self._scheduler.add_schedule(
                work.nothing,
                IntervalTrigger(hours=1, start_time=moment(4e9)),
                id=f"recurring{i}",
                conflict_policy=ConflictPolicy.replace,
            )
        await self.start()

    async def page(self) -> None:
        await self._scheduler.get_schedules()
