"""One-offs that come due while a scheduler runs: stored by one process, run by one or more others."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

from ..driver import Driver
from ..errors import PeerFailed
from ..lab import Case, Database, Figures, Lab, Way
from ..results import quantile

DEADLINE = 90.0
"""Seconds after the last instant at which whatever has not run counts as lost."""

SLOW = ("apscheduler3", "apscheduler4", "dbos")
"""Peers that store one-offs one by one, and start with many round trips: they get more time at first."""

_storing: dict[str, float] = {}
"""Seconds that storing one one-off took a peer in this run, so that the next time is planned right."""

_starting: dict[tuple[str, float, int], float] = {}
"""Seconds that starting so many workers at a distance took a peer in this run."""

SETTLED = 1.5
"""Seconds that the workers have run, at least, before the first instant."""


@dataclass
class Fired:
    """What became of the one-offs.

    :ivar runs: ``(key, due, ran)`` of each run, over all processes; Unix times
    :ivar settled: seconds from the first instant until the database held none that has not ended; None: nobody can tell
    :ivar counts: what crossed the proxy, from when the workers ran until it was settled
    :ivar used: CPU seconds of the workers in that time
    :ivar server_used: CPU seconds of the server in that time; None: it is not on this machine
    :ivar wal: bytes that the server wrote to its log in that time
    :ivar audited: what the audit has counted
    """

    asked: int
    runs: list[tuple[str, float, float]]
    first_due: float
    settled: float | None
    counts: dict[str, int]
    used: float
    server_used: float | None
    wal: int
    audited: int | None

    @property
    def lateness(self) -> list[float]:
        """Seconds from due to run, of the first run of each."""
        firsts: dict[str, float] = {}
        for key, due, ran in self.runs:
            firsts[key] = min(firsts.get(key, ran - due), ran - due)
        return list(firsts.values())

    def check(self) -> None:
        """Refuse to give figures when some never ran."""
        ran = len(self.lateness)
        if ran < self.asked:
            raise PeerFailed(f"{self.asked - ran} of {self.asked} one-offs did not run within {DEADLINE:g} s")

    def rates(self) -> Figures:
        """Return how fast they ran, all being due at one instant."""
        seconds = max(ran for _, _, ran in self.runs) - self.first_due
        figures: Figures = {"until the last ran": (seconds, "s"), "ran": (self.asked / seconds, "jobs/s")}
        if self.settled is not None:
            figures["ran and recorded"] = (self.asked / self.settled, "jobs/s")
        return figures

    def latenesses(self, *shares: float) -> Figures:
        """Return quantiles of the lateness."""
        figures: Figures = {
            f"lateness p{share * 100:g}": (quantile(self.lateness, share) * 1000, "ms") for share in shares
        }
        return figures | {"max": (max(self.lateness) * 1000, "ms")}

    def over_time(self, seconds: int) -> dict[str, tuple[list[float], str]]:
        """Return the lateness of what was due in each second since the first instant: half of it, and the greatest."""
        slots: list[dict[str, float]] = [{} for _ in range(seconds)]
        for key, due, ran in self.runs:
            slot = slots[min(seconds - 1, int(due - self.first_due))]
            slot[key] = min(slot.get(key, ran - due), ran - due)
        latenesses = [list(slot.values()) for slot in slots]
        return {
            "lateness p50": ([quantile(each, 0.5) * 1000 for each in latenesses], "ms"),
            "lateness max": ([max(each) * 1000 for each in latenesses], "ms"),
        }


async def fire(
    lab: Lab,
    case: Case,
    offsets: Sequence[float],
    *,
    workers: int = 1,
    others: int = 0,
    counted: bool = False,
    audit: str | None = None,
) -> Fired:
    """Store one-offs due at these seconds after a common instant, run them, return what became of them.

    They are stored straight, by a process of its own, before the workers start; the workers' way has the case's length.

    :param others: further schedules that are in the store already, due in a year
    :param counted: whether the workers' way leads through the counting proxy at no distance too
    :param audit: a query that counts what the store says about it afterwards
    """
    number, start = len(offsets), (case.name, case.rtt, workers)
    slow = case.peer in SLOW
    storing = _storing.get(case.name, 1 / 300 if slow else 1 / 2000) * number
    starting = _starting.get(start, 1.0 + workers + (250 if slow else 30) * case.rtt)
    while True:
        async with lab.database(case) as database:
            if others:
                await multiply(lab, case, database, others)
            watcher = await database.connect()
            try:
                # Counting what is left must not hold up what it counts: a new table of a million rows, which nobody has
                # analyzed, would be read from one end to the other each time.
                await watcher.execute("set enable_seqscan = off; set enable_bitmapscan = off")
                begin = time.time() + (storing + starting) * 1.3 + SETTLED + 1.0
                items = [(f"job{i}", begin + offset) for i, offset in enumerate(offsets)]
                async with lab.peer(case, database.place) as feeder:
                    await feeder.ask("open")
                    asked = time.time()
                    done = await feeder.ask("store", items=items, timeout=300)
                    _storing[case.name] = (done - asked) / number
                    pending = feeder.about["pending"]
                stored = time.time()
                async with _workers(lab, case, database, workers, counted=counted) as (drivers, way):
                    _starting[start] = time.time() - stored
                    if time.time() + SETTLED > begin:  # too late: all again, with more time
                        storing, starting = (done - asked) * 1.5, _starting[start] * 1.5
                        if storing + starting > 240:
                            raise PeerFailed(f"storing {number} one-offs and starting took {time.time() - asked:.0f} s")
                        continue
                    if way is not None:
                        await way.take()
                    server = database.server
                    used, written, server_used = await _cpu(drivers), await server.written(), server.cpu()
                    settled = await _watch(drivers, watcher, pending, number, begin, max(offsets))
                    server_after = server.cpu()
                    return Fired(
                        asked=number,
                        first_due=begin,
                        settled=settled,
                        counts=await way.take() if way is not None else {},
                        used=await _cpu(drivers) - used,
                        server_used=None if server_used is None or server_after is None else server_after - server_used,
                        wal=await server.written() - written,
                        audited=None if audit is None else await watcher.fetchval(audit),
                        runs=[tuple(run) for driver in drivers for run in await driver.ask("take")],
                    )
            finally:
                await watcher.close()


@asynccontextmanager
async def _workers(
    lab: Lab, case: Case, database: Database, number: int, *, counted: bool
) -> AsyncIterator[tuple[list[Driver], Way | None]]:
    async with AsyncExitStack() as stack:
        way = None
        if case.rtt or counted:
            way = await stack.enter_async_context(lab.way(database, case.rtt))
        place = database.place if way is None else way.place
        drivers = [await stack.enter_async_context(lab.peer(case, place)) for _ in range(number)]
        await asyncio.gather(*(_start(driver) for driver in drivers))
        yield drivers, way


async def _start(driver: Driver) -> None:
    await driver.ask("open")
    await driver.ask("start")


async def _cpu(drivers: Sequence[Driver]) -> float:
    return sum([float((await driver.ask("usage"))["cpu"]) for driver in drivers])


async def _watch(
    drivers: Sequence[Driver], watcher: Any, pending: str | None, number: int, begin: float, last: float
) -> float | None:
    """Wait until all have run and the database knows; return when it did, in seconds after the first instant."""
    until = begin + last + DEADLINE
    if len(drivers) == 1:
        ran = await drivers[0].ask("await", n=number, until=until, timeout=until - time.time() + 30)
    else:
        ran = 0
        while ran < number and time.time() < until:
            await asyncio.sleep(0.05)
            ran = sum([await driver.ask("ran") for driver in drivers])
    if pending is None or ran < number:
        return None
    while time.time() < until:
        if not await watcher.fetchval(pending):
            return time.time() - begin
        await asyncio.sleep(0.005)
    raise PeerFailed(f"{await watcher.fetchval(pending)} of {number} one-offs ran and are not recorded as ended")


async def multiply(lab: Lab, case: Case, database: Database, number: int) -> None:
    """Put that many further schedules into the store, due in a year: one by the peer, the others as copies of it."""
    async with lab.peer(case, database.place) as driver:
        statement = driver.about["multiply"]
        if statement is None:
            raise PeerFailed("there is no way to put so many schedules into its store")
        await driver.ask("open")
        await driver.ask("add", n=1, callers=1, due=time.time() + 365 * 86400, prefix="one")
    connection = await database.connect()
    try:
        await connection.execute("set synchronous_commit = off")
        await connection.execute(statement.replace("$1", str(number)))
        await connection.execute("vacuum analyze")
    finally:
        await connection.close()
