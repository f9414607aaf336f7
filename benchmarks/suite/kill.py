"""What is lost when a worker is killed?"""

from __future__ import annotations

import asyncio
import json
import os
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..errors import PeerFailed
from ..lab import Case, Database, Figures, Lab
from ..places import cache
from ..scale import Scale
from . import peers

QUESTION = "What is lost when a worker is killed before its jobs are due, or while they run?"
JOBS = 50
HOW = (
    f"{JOBS} one-offs due at one instant, a worker that is killed (SIGKILL, its child processes too) a second before "
    "it or while they run, and another that is started after it; lost is what had not ended when the benchmark's time "
    "was over, so what is given back later is lost here; all peers at the same time"
)
TOGETHER = True
"""All cases at once: what is counted does not depend on speed, and some peers give nothing back for a minute."""

BEFORE, DURING = "killed before they are due", "killed while they run"
KILLED = {BEFORE: -1.0, DURING: 3.0}
"""Seconds after the instant. Some look for what is due every other second; held jobs run until six seconds after it."""

LEAD = 20.0
"""Seconds from storing to the instant: all peers start their workers in that time, on few cores."""

TRIES = 3
QUIET = 3.0
"""Seconds for which the store has held nothing that has not ended, before what has not run is called lost."""


def cases(scale: Scale) -> Iterator[Case]:
    """Yield what is measured."""
    for variant in (BEFORE, DURING):
        yield from peers.everybody(variant, seconds=scale.kill_seconds)


async def measure(lab: Lab, case: Case) -> Figures:
    """Measure one case."""
    lead = LEAD
    for _ in range(TRIES):
        handle, name = tempfile.mkstemp(prefix="journal-", dir=cache("journals").parent)
        os.close(handle)
        journal = Journal(Path(name))
        try:
            async with lab.database(case) as database:
                instant = await _killed(lab, case, database, journal, time.time() + lead)
                if instant is not None:
                    return await _restarted(lab, case, database, journal, instant)
        finally:
            Path(name).unlink()
        lead *= 2
    raise PeerFailed(
        f"storing {JOBS} one-offs and starting took more than {lead / 2:g} s, or none had begun at the kill"
    )


class Journal:
    """The file in which the jobs note that they begin and end."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def count(self, what: str) -> Counter[str]:
        """Return how often each job has ``began`` or ``ended``."""
        entries = [json.loads(line) for line in self.path.read_text().splitlines()]
        return Counter(key for said, key, _due, _at in entries if said == what)

    def under_way(self) -> int:
        """Return how many have begun and not ended; those that were killed among them."""
        return self.count("began").total() - self.count("ended").total()


async def _killed(lab: Lab, case: Case, database: Database, journal: Journal, instant: float) -> float | None:
    """Store the jobs, start a worker and kill it; return their instant, or None if it was too near to show anything."""
    prefix = "held" if case.variant == DURING else "job"
    async with lab.peer(case, database.place) as feeder:
        await feeder.ask("open")
        await feeder.ask("store", items=[(f"{prefix}{i}", instant) for i in range(JOBS)])
    async with lab.peer(case, database.place) as worker:
        await worker.ask("journal", path=str(journal.path))
        await worker.ask("open")
        await worker.ask("start")
        kill_at = instant + KILLED[case.variant]
        if time.time() > min(instant, kill_at) - 1.0:
            return None
        await asyncio.sleep(kill_at - time.time())
        await worker.kill()
    if case.variant == DURING and not journal.count("began"):
        return None
    return instant


async def _restarted(lab: Lab, case: Case, database: Database, journal: Journal, instant: float) -> Figures:
    begun_before, killed = len(journal.count("began")), journal.under_way()
    await asyncio.sleep(max(0.0, instant + 1.0 - time.time()))
    async with lab.peer(case, database.place) as worker:
        await worker.ask("journal", path=str(journal.path))
        await worker.ask("open")
        restarted = time.monotonic()
        await worker.ask("start")
        watcher = await database.connect()
        try:
            took = await _watch(watcher, worker.about["pending"], journal, killed, restarted, case.seconds)
        finally:
            await watcher.close()
    ended, began = journal.count("ended"), journal.count("began")
    lost = JOBS - len(ended)
    figures: Figures = {"had begun": (begun_before, f"of {JOBS}"), "lost": (lost, f"of {JOBS}")}
    figures["begun twice"] = (sum(times > 1 for times in began.values()), f"of {JOBS}")
    if took is not None:
        figures["all ended, after the restart"] = (took, "s")
    return figures


async def _watch(
    watcher: Any, pending: str | None, journal: Journal, killed: int, restarted: float, seconds: float
) -> float | None:
    """Wait until all jobs have ended, or nothing is left that could; return when all had, seconds after the restart."""
    nothing_since: float | None = None
    while (now := time.monotonic()) < restarted + seconds:
        if len(journal.count("ended")) == JOBS:
            return now - restarted
        left = pending is None or await watcher.fetchval(pending) or journal.under_way() > killed
        nothing_since = None if left else nothing_since or now
        if nothing_since is not None and now - nothing_since > QUIET:
            return None
        await asyncio.sleep(0.1)
    return None
