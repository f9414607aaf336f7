"""SAQ on Redis: its worker in the process that the driver talks to; recurring jobs are ``CronJob``s in code."""

from __future__ import annotations

import asyncio
import json
import math
from typing import Any

from saq import CronJob, Queue, Worker

from . import work
from .peer import Peer

CONCURRENCY = 10


async def note(_context: Any, *, key: str, due: float) -> None:
    """Run the one-off."""
    await work.note(key, due)


class Adapter(Peer):
    """SAQ."""

    packages = ("saq", "redis")
    pending = "return redis.call('zcount', 'saq:default:incomplete', '-inf', redis.call('time')[1] + 86400)"
    registered = "return redis.call('zcard', 'saq:default:incomplete')"

    async def install(self) -> None:
        """Nothing is needed."""

    async def open(self) -> None:
        self._queue = Queue.from_url(self.place.redis_url)
        await self._queue.connect()
        self._worker: asyncio.Task[None] | None = None

    async def close(self) -> None:
        if self._worker is not None:
            self._worker.cancel()
            await asyncio.wait([self._worker], timeout=10)
        await self._queue.disconnect()

    async def add(self, key: str, due: float) -> None:
        # Its times are whole seconds.
        await self._queue.enqueue("note", key=f"job:{key}", scheduled=math.ceil(due), kwargs={"key": key, "due": due})

    def _work(self, crons: list[CronJob[Any]]) -> None:
        worker = Worker(self._queue, [("note", note)], concurrency=CONCURRENCY, cron_jobs=crons)
        self._worker = asyncio.create_task(worker.start())

    async def start(self) -> None:
        self._work([])
        await self._until_working()

    async def _until_working(self) -> None:
        """Wait for the worker's own entry in Redis, which it makes when it begins."""
        assert self._worker is not None
        while not (await self._queue.info())["workers"]:
            if self._worker.done():
                self._worker.result()
            await asyncio.sleep(0.01)

    def declare(self, schedules: int) -> None:
        super().declare(schedules)
        self._crons = []
        for i in range(schedules):

            async def nothing(_context: Any) -> None:
                await work.nothing()

            nothing.__qualname__ = f"recurring{i}"
            self._crons.append(CronJob(nothing, "0 0 1 1 *"))

    async def start_registering(self) -> None:
        await self.open()
        self._work(self._crons)

    async def page(self) -> None:
        json.dumps((await self._queue.info(jobs=True, limit=50))["jobs"])
