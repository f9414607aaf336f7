"""chancy with its asyncio executor, 10,000 jobs at a time: it acknowledges once a second, so fewer would be a brake."""

from __future__ import annotations

from collections.abc import Sequence

from chancy import Chancy, Job, Queue, Worker
from chancy.plugins.cron import Cron

from . import work
from .peer import Peer, moment

NOTE = f"{work.__name__}.note"
NOTHING = f"{work.__name__}.nothing"


class Adapter(Peer):
    """chancy."""

    packages = ("chancy", "psycopg")
    pending = (
        "select count(*) from chancy_jobs where state in ('pending', 'running', 'retrying') "
        "and scheduled_at < now() + interval '1 day'"
    )
    multiply = (
        "insert into chancy_jobs (id, queue, func, kwargs, scheduled_at) select gen_random_uuid(), 'default', "
        "'nothing', '{}', now() + interval '1 year' from generate_series(1, $1)"
    )

    def _make(self) -> None:
        self._chancy = Chancy(self.place.libpq, plugins=[Cron()])
        self._worker: Worker | None = None

    async def install(self) -> None:
        self._make()
        async with self._chancy:
            await self._chancy.migrate()
            await self._declare()

    async def _declare(self) -> None:
        await self._chancy.declare(
            Queue("default", concurrency=10_000, executor="chancy.executors.asyncex.AsyncExecutor", polling_interval=1),
            upsert=True,
        )

    async def open(self) -> None:
        self._make()
        await self._chancy.__aenter__()

    async def close(self) -> None:
        if self._worker is not None:
            await self._worker.stop(timeout=5)
        await self._chancy.__aexit__(None, None, None)

    def _job(self, key: str, due: float) -> Job:
        return Job(func=NOTE, kwargs={"key": key, "due": due}, scheduled_at=moment(due))

    async def add(self, key: str, due: float) -> None:
        await self._chancy.push(self._job(key, due))

    async def add_many(self, items: Sequence[tuple[str, float]]) -> None:
        async for _ in self._chancy.push_many([self._job(key, due) for key, due in items]):
            pass

    async def start(self) -> None:
        self._worker = Worker(self._chancy, register_signal_handlers=False)
        await self._worker.start()

    async def start_registering(self) -> None:
        await self.open()
        await self._declare()
        jobs = [Job(func=NOTHING, unique_key=f"recurring{i}") for i in range(self.schedules)]
        await Cron.schedule(self._chancy, "0 0 1 1 *", *jobs)
        await self.start()
