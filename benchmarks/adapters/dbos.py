"""DBOS: workflows on a queue without a limit, due by their delay; recurring ones by ``create_schedule``."""

from __future__ import annotations

import asyncio
import time

from dbos import DBOS, SetEnqueueOptions

from . import work
from .peer import Peer


@DBOS.workflow(name="note")
async def note(key: str, due: float) -> None:
    """Run the one-off."""
    await work.note(key, due)


@DBOS.workflow(name="nothing")
async def nothing(scheduled: object, context: object) -> None:
    """Run a recurring schedule."""
    await work.nothing()


class Adapter(Peer):
    """DBOS."""

    packages = ("dbos", "SQLAlchemy", "psycopg")
    pending = (
        "select count(*) from dbos.workflow_status where status in ('ENQUEUED', 'DELAYED', "
        "'PENDING') and name = 'note' "
        "and (delay_until_epoch_ms is null or delay_until_epoch_ms < (extract(epoch from now()) + "
        "86400) * 1000)"
    )
    adds_while_running = True

    async def _launch(self) -> None:
        DBOS(
            config={
                "name": "benchmark",
                "system_database_url": self.place.libpq,
                "log_level": "WARNING",
            }
        )
        DBOS.launch()
        await DBOS.register_queue_async("work")

    async def install(self) -> None:
        await self._launch()
        DBOS.destroy()

    async def open(self) -> None:
        await self._launch()

    async def close(self) -> None:
        DBOS.destroy()

    async def add(self, key: str, due: float) -> None:
        with SetEnqueueOptions(delay_seconds=max(0.0, due - time.time())):
            await DBOS.enqueue_workflow_async("work", note, key, due)

    async def start(self) -> None:
        await asyncio.sleep(0)  # launching has started it

    async def start_registering(self) -> None:
        await self._launch()
        for i in range(self.schedules):
            await DBOS.create_schedule_async(schedule_name=f"recurring{i}", workflow_fn=nothing, schedule="0 0 1 1 *")
