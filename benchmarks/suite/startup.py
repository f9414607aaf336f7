"""What does starting the scheduler do to the application?"""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Iterator

from ..driver import Driver
from ..errors import NotMeasurable, PeerFailed
from ..lab import Case, Database, Figures, Lab, Way
from ..results import quantile
from ..scale import Scale
from . import peers

QUESTION = "What does starting the scheduler do to the application?"
HOW = (
    "FastAPI and uvicorn with the peer in the lifespan, 20 recurring schedules registered, tables already "
    "there; seconds count from the start of uvicorn, imports done. A request is wanted every 20 ms, and asked "
    "again until it is answered"
)
SCHEDULES = 20
WANTED_EVERY = 0.02
LONGEST = 180.0


def cases(scale: Scale) -> Iterator[Case]:
    """Yield what is measured."""
    for rtt in scale.startup_rtts:
        for peer, store in (*peers.FIRST, ("apscheduler3", "memory"), *peers.VERSION_3, *peers.QUEUES, *peers.REDIS):
            yield Case(peer, store, peers.distance(rtt), rtt)


async def measure(lab: Lab, case: Case) -> Figures:
    """Measure one case."""
    async with (
        lab.database(case) as database,
        lab.way(database, case.rtt) as way,
        lab.peer(case, way.place) as driver,
    ):
        return await start_application(driver, database, way)


async def start_application(driver: Driver, database: Database, way: Way) -> Figures:
    """Start the application once, and ask it all the while."""
    if driver.about["starts_nothing"]:
        raise NotMeasurable(driver.about["starts_nothing"])
    await driver.ask("load", schedules=SCHEDULES)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    serving = asyncio.create_task(driver.ask("serve", port=port, timeout=LONGEST))
    visitor = Visitor(port)
    visiting = asyncio.create_task(visitor.visit())
    try:
        started = await serving
        ready = started["ready"]
        if registered := driver.about["registered"]:
            ready = max(ready, await _until_registered(database, registered))
        crossed = await way.take()
        await asyncio.sleep(0.1)
    finally:
        visiting.cancel()
    began = started["began"]
    live, latencies = await visitor.latencies(began, ready)
    return {
        "/health/live": (live - began, "s"),
        "ready": (ready - began, "s"),
        "round trips": (crossed["round_trips"], ""),
        "connections": (crossed["connections"], ""),
        "longest stall": (started["stall"] * 1000, "ms"),
        "requests p99": (quantile(latencies, 0.99) * 1000, "ms"),
    }


async def _until_registered(database: Database, registered: str) -> float:
    watcher = await database.connect()
    try:
        until = time.monotonic() + LONGEST
        while await watcher.fetchval(registered) < SCHEDULES:
            if time.monotonic() > until:
                raise PeerFailed(f"hangs: its {SCHEDULES} schedules were not stored after {LONGEST:g} s")
            await asyncio.sleep(0.005)
        return time.monotonic()
    finally:
        await watcher.close()


class Visitor:
    """Asks an application for ``/health/live``, all the time."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._answered: list[tuple[float, float]] = []
        self._asking: set[asyncio.Task[None]] = set()

    async def visit(self) -> None:
        """Ask until cancelled."""
        while True:
            wanted = time.monotonic()
            if not self._answered:
                await self._ask(wanted)
                await asyncio.sleep(0.002)
            else:
                # Beside the ones that still wait: a frozen application must not slow the asking down.
                task = asyncio.create_task(self._ask(wanted))
                self._asking.add(task)
                task.add_done_callback(self._asking.discard)
                await asyncio.sleep(WANTED_EVERY)

    async def _ask(self, wanted: float) -> None:
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        except OSError:
            return  # it does not listen yet
        try:
            writer.write(b"GET /health/live HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            if (await reader.read(15)).startswith(b"HTTP/1.1 200"):
                self._answered.append((wanted, time.monotonic()))
        except OSError:
            return
        finally:
            writer.close()

    async def latencies(self, began: float, ready: float) -> tuple[float, list[float]]:
        """Return when the first answer came, and how long each request waited that was wanted until it was ready."""
        if self._asking:
            await asyncio.wait(self._asking, timeout=LONGEST)
        if not self._answered:
            raise PeerFailed("the application never answered")
        first = min(answered for _, answered in self._answered)
        latencies = [answered - wanted for wanted, answered in self._answered if began <= wanted <= ready]
        # Those wanted before it listened: each would have been answered when the first one was.
        wanted = began
        while wanted < first:
            latencies.append(first - wanted)
            wanted += WANTED_EVERY
        return first, latencies
