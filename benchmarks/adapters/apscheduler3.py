"""APScheduler 3.11: ``AsyncIOScheduler`` with ``SQLAlchemyJobStore`` over psycopg2, or ``MemoryJobStore``.

``misfire_grace_time`` is None: with the default of one second, jobs that come due while the event loop is frozen by
the store are dropped, and there would be nothing to measure.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from apscheduler.jobstores.memory import MemoryJobStore
from apscheduler.jobstores.sqlalchemy import SQLAlchemyJobStore
from apscheduler.schedulers.asyncio import AsyncIOScheduler
from sqlalchemy.pool import NullPool, QueuePool

from . import work
from .peer import Peer, moment


class Adapter(Peer):
    """APScheduler 3."""

    packages = ("APScheduler", "SQLAlchemy", "psycopg2-binary")
    pending = "select count(*) from apscheduler_jobs where next_run_time < extract(epoch from now()) + 86400"
    adds_while_running = True
    multiply = (
        "insert into apscheduler_jobs (id, next_run_time, job_state) "
        "select 'other' || i, one.next_run_time, one.job_state "
        "from (select * from apscheduler_jobs limit 1) one, generate_series(1, $1) i"
    )

    def _scheduler(self) -> AsyncIOScheduler:
        store: Any
        if self.variant == "memory":
            store = MemoryJobStore()
        else:
            pool: dict[str, Any] = {"poolclass": NullPool}
            if self.variant == "queuepool2":
                pool = {"poolclass": QueuePool, "pool_size": 2}
            url = self.place.url("postgresql+psycopg2", sslmode="require" if self.place.tls else "disable")
            store = SQLAlchemyJobStore(url=url, engine_options=pool)
        return AsyncIOScheduler(jobstores={"default": store}, job_defaults={"misfire_grace_time": None}, timezone="UTC")

    async def install(self) -> None:
        await self.open()
        await self.close()

    async def open(self) -> None:
        self._running = self._scheduler()
        self._running.start(paused=True)

    async def close(self) -> None:
        self._running.shutdown(wait=False)

    async def add(self, key: str, due: float) -> None:
        self._running.add_job(work.note, "date", run_date=moment(due), args=(key, due), id=key)

    async def add_many(self, items: Sequence[tuple[str, float]]) -> None:
        await self.add_by(1, items)  # a plain function: callers cannot overlap

    async def start(self) -> None:
        self._running.resume()

    def declare(self, schedules: int) -> None:
        super().declare(schedules)
        self._running = self._scheduler()

    async def start_registering(self) -> None:
        for i in range(self.schedules):
            self._running.add_job(
                work.nothing, "interval", hours=1, start_date=moment(4e9), id=f"recurring{i}", replace_existing=True
            )
        self._running.start()
