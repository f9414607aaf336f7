"""pgqueuer over an asyncpg pool, with its default batch size of 10."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import asyncpg
from pgqueuer import PgQueuer, Queries

from . import work
from .peer import Peer


class Adapter(Peer):
    """pgqueuer."""

    packages = ("pgqueuer", "asyncpg")
    pending = "select count(*) from pgqueuer where execute_after < now() + interval '1 day'"
    registered = "select count(*) from pgqueuer_schedules"
    multiply = (
        "insert into pgqueuer (priority, entrypoint, payload, status, execute_after) "
        "select 0, 'note', 'null', 'queued', now() + interval '1 year' from generate_series(1, $1)"
    )

    async def install(self) -> None:
        connection = await asyncpg.connect(self.place.libpq)
        await Queries.from_asyncpg_connection(connection).install()
        await connection.close()

    async def open(self) -> None:
        self._pool = await asyncpg.create_pool(self.place.libpq, min_size=1, max_size=10)
        self._pgq = PgQueuer.from_asyncpg_pool(self._pool)
        self._queries = self._pgq.queries
        self._worker: asyncio.Task[None] | None = None

        @self._pgq.entrypoint("note")
        async def note(job: Any) -> None:
            await work.note(*json.loads(job.payload))

    async def close(self) -> None:
        if self._worker is not None:
            self._pgq.shutdown.set()
            await asyncio.wait([self._worker], timeout=10)
            self._worker.cancel()
        await self._pool.close()

    async def add(self, key: str, due: float) -> None:
        # It takes delays, which the database counts from its own present.
        await self._queries.enqueue("note", json.dumps([key, due]).encode(), 0, timedelta(seconds=due - time.time()))

    async def add_many(self, items: Sequence[tuple[str, float]]) -> None:
        for first in range(0, len(items), 1000):
            some = items[first : first + 1000]
            now = time.time()
            await self._queries.enqueue(
                ["note"] * len(some),
                [json.dumps(item).encode() for item in some],
                [0] * len(some),
                [timedelta(seconds=due - now) for _, due in some],
            )

    async def start(self) -> None:
        self._worker = asyncio.create_task(self._pgq.run())
        # It says nothing when it is ready; its listener is the last thing that it opens.
        await asyncio.sleep(0.5)
        if self._worker.done():
            self._worker.result()

    async def start_registering(self) -> None:
        await self.open()
        for i in range(self.schedules):

            async def nothing(_schedule: Any) -> None:
                await work.nothing()

            self._pgq.schedule(f"recurring{i}", "0 0 1 1 *")(nothing)
        self._worker = asyncio.create_task(self._pgq.run())
