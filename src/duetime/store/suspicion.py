"""Whoever has waited for the database for a second makes it be asked, on a new connection, whether it is there."""

from __future__ import annotations

import asyncio
import time
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from logging import Logger, getLogger
from typing import Generic, TypeVar

import asyncpg

W = TypeVar("W")

PATIENCE = 1.0
"""Seconds that somebody may wait before the database is asked, and between two questions."""

PROBE_TIMEOUT = 5.0
"""Seconds that a question may take."""

ON_ITS_WAY = 0.5
"""Seconds that are left to an answer that the server has given while it was asked."""

_MOST_QUESTIONS = 5


class Suspicion(ABC, Generic[W]):
    """Asks the database while somebody waits long for it: a second later, and again every second.

    :ivar logger: is told of what is found
    """

    def __init__(self, logger: Logger | None = None) -> None:
        self.logger = logger or getLogger(__name__)
        # Since when each waits.
        self._waiting: dict[W, float] = {}
        self._asking: set[asyncio.Task[None]] = set()
        self._timer: asyncio.TimerHandle | None = None

    @contextmanager
    def watching(self, waiter: W) -> Iterator[None]:
        """Count somebody as waiting for the database for as long as the block lasts."""
        self._waiting[waiter] = time.monotonic()
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(PATIENCE, self._look)
        try:
            yield
        finally:
            self._waiting.pop(waiter, None)

    def close(self) -> None:
        """Ask no more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for each in self._asking:
            each.cancel()

    def _look(self) -> None:
        """Ask when somebody has waited long; the timer runs only while somebody waits."""
        loop = asyncio.get_running_loop()
        self._timer = None
        if not self._waiting:
            return
        self._timer = loop.call_later(PATIENCE, self._look)
        # Beside a question that hangs: the network may be back, and the question that was lost in it not.
        if self._suspects() and len(self._asking) < _MOST_QUESTIONS:
            task = loop.create_task(self._ask(), name="duetime suspicion")
            self._asking.add(task)
            task.add_done_callback(self._asked)

    def _asked(self, task: asyncio.Task[None]) -> None:
        self._asking.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self.logger.debug("The database cannot be asked whether it is there: %s", error)

    def _long_waiting(self) -> dict[W, float]:
        """Return those who have waited long, and since when they wait."""
        latest = time.monotonic() - PATIENCE
        return {each: since for each, since in self._waiting.items() if since <= latest}

    @abstractmethod
    def _suspects(self) -> Collection[asyncpg.Connection]:
        """Return the connections that may be dead, going by who has waited long."""

    @abstractmethod
    async def _ask(self) -> None:
        """Ask the database, and end the connections that it does not know of."""
