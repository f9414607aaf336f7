"""A running Duetime, whose verbs a test calls."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from duetime import Duetime, Settings
from duetime.commands import NewSchedule
from duetime.options import TaskOptions
from duetime.service import Service
from duetime.settings import DatabaseUrl
from duetime.tasks import TaskRegistry

calls: list[tuple[Any, ...]] = []


class Gate:
    """Holds tasks up until it is opened. Each test has an event loop of its own, and so has each closed gate."""

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Close it."""
        self._opened = asyncio.Event()

    def set(self) -> None:
        """Open it."""
        self._opened.set()

    async def wait(self) -> None:
        """Wait until it is open."""
        await self._opened.wait()


gate = Gate()


async def work(number: int = 0, *, word: str = "") -> None:
    """Take note of the call."""
    calls.append((number, word))


async def other(number: int = 0) -> None:
    """Be another task."""
    calls.append(("other", number))


async def hold() -> None:
    """Go on until the test opens the gate."""
    calls.append(("hold",))
    await gate.wait()


async def serve(customer: str) -> None:
    """Be a task of which each customer has one job at a time."""
    calls.append(("serve", customer))


async def fail() -> None:
    """Fail."""
    raise ValueError("no luck")


@asynccontextmanager
async def a_service(database: DatabaseUrl, **settings: Any) -> AsyncIterator[Service]:
    """Run a node with the tasks of this module."""
    calls.clear()
    gate.clear()
    registry = TaskRegistry()
    for func in (work, other, hold, fail):
        registry.add(func, options=TaskOptions())
    one_each = TaskOptions(concurrency_key="customer", concurrency_position=0, max_running_per_key=1)
    registry.add(serve, options=one_each)
    async with Duetime(Settings(database_url=database.text, **settings), registry=registry) as duetime:
        try:
            yield duetime.service
        finally:
            gate.set()


def new(**fields: Any) -> NewSchedule:
    """Return what a door would ask for: a schedule of ``work`` in the far future, unless the fields say otherwise."""
    return NewSchedule.model_validate({"task": "work", "trigger": LATER, **fields})


LATER = {"type": "date", "run_at": "2100-01-01T00:00:00Z"}
EVERY_MINUTE = {"type": "cron", "expression": "* * * * *"}
EVERY_SECOND = {"type": "interval", "seconds": 1}
