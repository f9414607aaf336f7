"""streaQ on Redis: its default worker, on the event loop of the process that the driver talks to."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from streaq import Worker

from . import work
from .peer import Peer, moment


class Adapter(Peer):
    """streaQ."""

    packages = ("streaq", "coredis")
    pending = (
        "return redis.call('xlen', 'streaq:default:queues:normal') + redis.call('zcount', "
        "'streaq:default:queues:delayed:normal', '-inf', (redis.call('time')[1] + 86400) * 1000)"
    )
    registered = "return redis.call('zcard', 'streaq:default:queues:delayed:normal')"

    def _make(self) -> tuple[Worker[Any], Any]:
        """Return a worker, which is its client too, and the task as that client adds it."""
        worker: Worker[Any] = Worker(redis_url=self.place.redis_url)
        return worker, worker.task(name="note")(work.note)

    async def install(self) -> None:
        """Nothing is needed: a worker brings its functions when it connects."""

    async def open(self) -> None:
        self._running: asyncio.Task[None] | None = None
        self._client, self._note = self._make()
        await self._client.__aenter__()

    async def close(self) -> None:
        if self._running is not None:
            self._running.cancel()
            await asyncio.wait([self._running], timeout=10)
        await self._client.__aexit__(None, None, None)

    async def add(self, key: str, due: float) -> None:
        await self._note.enqueue(key, due).start(schedule=moment(due))

    async def add_many(self, items: Sequence[tuple[str, float]]) -> None:
        await self._client.enqueue_many(
            [self._note.enqueue(key, due).start(schedule=moment(due)) for key, due in items]
        )

    async def _work(self, worker: Worker[Any]) -> None:
        started: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        class Status:
            """What ``run_async`` tells when it has started."""

            @staticmethod
            def started(_value: object = None) -> None:
                started.set_result(None)

        self._running = asyncio.create_task(worker.run_async(task_status=Status))
        await asyncio.wait([started, self._running], return_when=asyncio.FIRST_COMPLETED)
        if self._running.done():
            self._running.result()

    async def start(self) -> None:
        worker, _ = self._make()  # beside the one that adds
        await self._work(worker)

    def declare(self, schedules: int) -> None:
        super().declare(schedules)
        self._worker, _ = self._make()
        for i in range(schedules):
            self._worker.cron("0 0 1 1 *", name=f"recurring{i}")(work.nothing)

    async def start_registering(self) -> None:
        await self._work(self._worker)
