"""procrastinate over psycopg's pool, one worker with a concurrency of 30; ended jobs are deleted, as for the others."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Sequence
from typing import Any

from procrastinate import App, PsycopgConnector

from . import work
from .peer import Peer, moment


class Adapter(Peer):
    """procrastinate."""

    packages = ("procrastinate", "psycopg")
    pending = (
        "select count(*) from procrastinate_jobs where status in ('todo', 'doing') "
        "and (scheduled_at is null or scheduled_at < now() + interval '1 day')"
    )
    multiply = (
        "insert into procrastinate_jobs (queue_name, task_name, args, scheduled_at) "
        "select 'default', 'note', '{}', now() + interval '1 year' from generate_series(1, $1)"
    )

    def _make(self) -> None:
        self._app = App(connector=PsycopgConnector(conninfo=self.place.libpq))
        self._worker: asyncio.Task[None] | None = None

        @self._app.task(name="note")
        async def note(key: str, due: float) -> None:
            await work.note(key, due)

        self._note: Any = note

    async def install(self) -> None:
        self._make()
        async with self._app.open_async():
            await self._app.schema_manager.apply_schema_async()

    async def open(self) -> None:
        self._make()
        await self._app.open_async()

    async def close(self) -> None:
        if self._worker is not None:
            self._worker.cancel()
            await asyncio.wait([self._worker], timeout=10)
        await self._app.close_async()

    async def add(self, key: str, due: float) -> None:
        await self._note.configure(schedule_at=moment(due)).defer_async(key=key, due=due)

    async def add_many(self, items: Sequence[tuple[str, float]]) -> None:
        for due, group in itertools.groupby(items, key=lambda item: item[1]):
            jobs = [{"key": key, "due": due} for key, _ in group]
            await self._note.configure(schedule_at=moment(due)).batch_defer_async(*jobs)

    async def _work(self) -> None:
        self._worker = asyncio.create_task(
            self._app.run_worker_async(concurrency=30, delete_jobs="always", install_signal_handlers=False)
        )

    async def start(self) -> None:
        await self._work()
        await asyncio.sleep(0.5)  # it says nothing when it is ready
        assert self._worker is not None
        if self._worker.done():
            self._worker.result()

    def declare(self, schedules: int) -> None:
        super().declare(schedules)
        self._make()
        for i in range(schedules):

            async def nothing(timestamp: int) -> None:
                await work.nothing()

            self._app.periodic(cron="0 0 1 1 *")(self._app.task(name=f"recurring{i}")(nothing))

    async def start_registering(self) -> None:
        await self._app.open_async()
        await self._work()
