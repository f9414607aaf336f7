"""What does one schedule due in an hour cost the database?"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator

from ..lab import Case, Figures, Lab
from ..scale import Scale
from . import peers

QUESTION = "What does one schedule due in an hour cost the database?"
HOW = (
    "one one-off due in an hour, a worker that has run for 10 s, then counted by the proxy; all peers at the "
    "same time, each in its own database"
)
TOGETHER = True
"""All cases at once: what is counted does not depend on speed, and a minute for each would be long."""


def cases(scale: Scale) -> Iterator[Case]:
    """Yield what is measured."""
    yield from peers.everybody("", seconds=scale.idle_seconds)


async def measure(lab: Lab, case: Case) -> Figures:
    """Measure one case."""
    async with (
        lab.database(case) as database,
        lab.way(database, 0) as way,
        lab.peer(case, way.place) as driver,
    ):
        await driver.ask("open")
        await driver.ask("add", n=1, callers=1, due=time.time() + 3600, prefix="one")
        await driver.ask("start")
        await asyncio.sleep(10)
        watcher = await database.connect()
        try:
            committed = "select xact_commit + xact_rollback from pg_stat_database where datname = current_database()"
            await way.take()
            before = 0 if case.on_redis else await watcher.fetchval(committed)
            began = time.monotonic()
            await asyncio.sleep(case.seconds)
            crossed = await way.take()
            # The look itself was one.
            transactions = 0 if case.on_redis else await watcher.fetchval(committed) - before - 1
            minutes = (time.monotonic() - began) / 60
            connections = await database.server.connections(watcher)
        finally:
            await watcher.close()
    figures: Figures = {"round trips": (crossed["round_trips"] / minutes, "per min")}
    if not case.on_redis:
        figures["statements"] = (crossed["statements"] / minutes, "per min")
        figures["transactions"] = (max(0, transactions) / minutes, "per min")
    return figures | {"connections": (connections, "")}
