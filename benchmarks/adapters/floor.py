"""The floor: plain asyncpg doing the least that could count.

One table; a one-off is a row, stored in one INSERT; due rows are deleted and run, at most once, by the process that
sleeps until the next one is due and is told only of what it adds itself. No history, no retry, no recurring fires, no
limits: nothing that keeps a schedule can do less.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from contextlib import suppress

import asyncpg

from . import work
from .peer import Peer


class Adapter(Peer):
    """Plain asyncpg."""

    packages = ("asyncpg",)
    pending = "select count(*) from floor_jobs where due < now() + interval '1 day'"
    multiply = (
        "insert into floor_jobs (key, due) select 'other' || i, now() + interval '1 year' from generate_series(1, $1) i"
    )

    async def install(self) -> None:
        connection = await asyncpg.connect(self.place.libpq)
        await connection.execute(
            "create table floor_jobs (key text primary key, due timestamptz not null);create index on floor_jobs (due)"
        )
        await connection.close()

    async def open(self) -> None:
        self._pool = await asyncpg.create_pool(self.place.libpq, min_size=1, max_size=10)
        self._loop: asyncio.Task[None] | None = None
        self._sooner = asyncio.Event()
        self._next: float | None = None

    async def close(self) -> None:
        if self._loop is not None:
            self._loop.cancel()
            await asyncio.wait([self._loop])
        await self._pool.close()

    async def add(self, key: str, due: float) -> None:
        await self._pool.execute("insert into floor_jobs values ($1, to_timestamp($2))", key, due)
        if self._next is None or due < self._next:
            self._sooner.set()

    async def add_many(self, items: Sequence[tuple[str, float]]) -> None:
        await self._pool.execute(
            "insert into floor_jobs select k, to_timestamp(d) from unnest($1::text[], $2::float8[]) as new(k, d)",
            [key for key, _ in items],
            [due for _, due in items],
        )

    async def start(self) -> None:
        self._loop = asyncio.create_task(self._run())

    async def _run(self) -> None:
        async with self._pool.acquire() as connection:
            while True:
                self._sooner.clear()
                *rows, (_, self._next) = await connection.fetch(
                    "with ran as (delete from floor_jobs where due <= clock_timestamp() returning key, due) "
                    "select key, extract(epoch from due)::float8 from ran union all "
                    "(select null, extract(epoch from min(due))::float8 from floor_jobs where due > clock_timestamp())"
                )
                for key, due in rows:
                    await work.note(key, due)
                with suppress(TimeoutError):
                    async with asyncio.timeout(None if self._next is None else max(0.0, self._next - time.time())):
                        await self._sooner.wait()

    async def start_registering(self) -> None:
        await self.open()
        async with self._pool.acquire() as connection:
            await connection.execute(
                "insert into floor_jobs select 'recurring' || i, now() + interval '1 hour' "
                "from generate_series(1, $1) i on conflict (key) do update set due = excluded.due",
                self.schedules,
            )
        await self.start()

    async def page(self) -> None:
        await self._pool.fetch("select key, due from floor_jobs order by key limit 50")
