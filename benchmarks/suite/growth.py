"""What do many other schedules in the store cost?"""

from __future__ import annotations

import time
from collections.abc import Iterator

from ..errors import PeerFailed
from ..lab import Case, Figures, Lab
from ..scale import Scale
from . import firing, peers, startup

QUESTION = "0, 10⁴, 10⁵, 10⁶ other schedules"
HOW = (
    "the others are due in a year: one that the peer stored, and copies of its row; each figure beside the "
    "same with an empty store, measured just before; memory is the worker's after a page was listed and a "
    "burst of 500 has run"
)
BURST = 500


def cases(scale: Scale) -> Iterator[Case]:
    """Yield what is measured."""
    for others in scale.others:
        for case in peers.everybody(f"{others:,} others", size=others):
            in_form = scale.queues or case.peer in ("duetime", "apscheduler4", "pgqueuer")
            if in_form and case.peer != "dbos" and not case.on_redis:
                yield case


async def measure(lab: Lab, case: Case) -> Figures:
    """Measure one case."""
    empty, full = await _look(lab, case, 0), await _look(lab, case, case.size)
    figures: Figures = {}
    for figure, (value, unit) in full.items():
        figures[figure] = (value, unit)
        figures[f"{figure}, ratio"] = (value / empty[figure][0], "× empty")
    return figures


async def _look(lab: Lab, case: Case, others: int) -> Figures:
    fired = await firing.fire(lab, case, [0.0] * BURST, others=others)
    fired.check()
    figures: Figures = {}
    rates = fired.rates()
    figures["burst"] = rates.get("ran and recorded", rates["ran"])
    async with lab.database(case) as database:
        if others:
            await firing.multiply(lab, case, database, others)
        async with lab.peer(case, database.place) as driver:
            await driver.ask("open")
            added = await driver.ask("add_for", seconds=1.0, callers=1, due=time.time() + 365 * 86400, prefix="alone")
            figures["add"] = (added["n"] / added["seconds"], "ops/s")
            try:
                figures["page of 50"] = (min([await driver.ask("page") for _ in range(5)]) * 1000, "ms")
            except PeerFailed as exc:
                if "NotImplementedError" not in str(exc):
                    raise
            figures["memory"] = ((await driver.ask("usage"))["memory"], "MiB")
        async with lab.way(database, 0) as way, lab.peer(case, way.place) as driver:
            figures["start-up"] = (await startup.start_application(driver, database, way))["ready"]
    return figures
