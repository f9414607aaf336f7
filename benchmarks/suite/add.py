"""What does awaiting ``add_schedule`` in a handler cost?"""

from __future__ import annotations

import time
from collections.abc import Iterator

from ..lab import Case, Figures, Lab
from ..scale import Scale
from . import peers

QUESTION = "What does awaiting `add_schedule` in a handler cost?"
HOW = (
    "one-offs due in a year, added for a fixed time by one caller, then by 50; peers whose scheduler lives in the "
    "application run it meanwhile; bulk is 2,000 in the peer's own way, or by 50 callers if it has none"
)
BULK = 2_000


def cases(scale: Scale) -> Iterator[Case]:
    """Yield what is measured."""
    for rtt in scale.add_rtts:
        yield from peers.everybody(peers.distance(rtt), rtt=rtt, seconds=scale.add_seconds)


async def measure(lab: Lab, case: Case) -> Figures:
    """Measure one case."""
    due = time.time() + 365 * 86400
    async with (
        lab.database(case) as database,
        lab.way(database, case.rtt) as counted,
        lab.peer(case, counted.place if case.rtt else database.place) as driver,
    ):
        await driver.ask("open")
        if driver.about["adds_while_running"]:
            await driver.ask("start")
        await driver.ask("add", n=10, callers=1, due=due, prefix="warm")
        alone = await driver.ask("add_for", seconds=case.seconds, callers=1, due=due, prefix="alone")
        together = await driver.ask("add_for", seconds=case.seconds, callers=50, due=due, prefix="together")
        bulk = await driver.ask("add", n=BULK, callers=0, due=due, prefix="bulk", timeout=300)
    # The proxy would cost the fast ones at no distance more than what is measured: it counts in a run of its own.
    async with (
        lab.database(case) as database,
        lab.way(database, case.rtt) as counted,
        lab.peer(case, counted.place) as driver,
    ):
        await driver.ask("open")
        await driver.ask("add", n=10, callers=1, due=due, prefix="warm")
        await counted.take()
        await driver.ask("add", n=50, callers=1, due=due, prefix="counted")
        crossed = await counted.take()
    return {
        "one after another": (alone["n"] / alone["seconds"], "ops/s"),
        "50 callers": (together["n"] / together["seconds"], "ops/s"),
        "bulk": (BULK / bulk["seconds"], "rows/s"),
        "stall, one": (alone["stall"] * 1000, "ms"),
        "stall, 50": (together["stall"] * 1000, "ms"),
        "round trips": (crossed["round_trips"] / 50, "per add"),
    }
