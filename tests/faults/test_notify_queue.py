"""A queue of notifications that somebody else has filled: nobody hears anything, and everything goes on."""

from __future__ import annotations

from datetime import UTC, datetime

import asyncpg
import pytest
from apscheduler.triggers.date import DateTrigger

from ..matrix.servers import embedded_programs
from ..store.parts import every
from ..waiting import eventually
from .parts import a_node, connected, done, is_ready, settled, works
from .servers import OwnServer


async def fill(speaker: asyncpg.Connection) -> None:
    """Notify until that fails."""
    while True:
        await speaker.execute("select pg_notify('something', repeat('x', 7000) || n) from generate_series(1, 10) as n")


async def test_a_full_queue_of_notifications_costs_notifications_only() -> None:
    # A queue that can be filled within a test is to be had from PostgreSQL 17 on.
    server = OwnServer(programs=embedded_programs(), max_notify_queue_pages="64")
    try:
        await server.start()
        async with a_node(server.url, poll_interval=1) as duetime:
            await works(duetime)
            async with connected(server.url) as sleeper, connected(server.url) as speaker:
                await sleeper.execute("listen something")
                await sleeper.execute("begin")
                await sleeper.execute("select 1")
                with pytest.raises(asyncpg.PostgresError, match="NOTIFY queue"):
                    await fill(speaker)
                assert await speaker.fetchval("select pg_notification_queue_usage()") > 0.8
                await works(duetime)
                await duetime.scheduler.add_job("work", args=["job"])
                await duetime.scheduler.add_schedule("work", every(3600), id="kept", args=["kept"])
                await eventually(lambda: {"job", "kept"} <= set(done))
                await duetime.scheduler.pause_schedule("kept")
                await duetime.scheduler.unpause_schedule("kept")
                await duetime.service.run_schedule("kept")
                await eventually(lambda: done.count("kept") == 2)
                assert await duetime.scheduler.run_job("work", args=["result"]) == "result"
                await duetime.scheduler.remove_schedule("kept")
                await duetime.scheduler.configure_task("work", max_running_jobs=2)
                await duetime.scheduler.add_schedule("work", DateTrigger(datetime.now(UTC)), args=["limited"])
                await eventually(lambda: "limited" in done)
                await eventually(lambda: settled(speaker))
            await works(duetime)
            await is_ready(duetime)
    finally:
        await server.remove()
