"""Connections that an application's pool asks in vain whether they are still there are found within about a second.

With ``pool_pre_ping`` SQLAlchemy asks within the checkout, without a limit of time, and before anybody is told which
connection it is. A network that swallows what is sent makes that wait for ever. So, when somebody has waited for a
connection for a second, a new one is opened beside the pool. If the server answers on that one, those that the pool has
had idle since before he came are ended: if they were of use, he would have one. SQLAlchemy's question fails at once
then, and it opens others in their place. What the application has checked out, or has given back meanwhile, is left
alone, so that a pool of which all connections are in use is only waited for.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from logging import getLogger
from typing import Any
from weakref import WeakKeyDictionary

import asyncpg
from sqlalchemy import Engine, event
from sqlalchemy.pool import QueuePool

from .suspicion import ON_ITS_WAY, PROBE_TIMEOUT, Suspicion


class Checkouts(Suspicion[object]):
    """Ends idle connections of a pool that nobody answers on, while a checkout waits for them.

    Connections that were opened before, and that the pool has not lent since, are not known and not ended.

    What waits is whoever asks the pool for a connection.

    :param engine: whose pool it is
    :param probe: opens a connection beside the pool
    """

    def __init__(self, engine: Engine, probe: Callable[[], AbstractAsyncContextManager[asyncpg.Connection]]) -> None:
        super().__init__(getLogger(__name__))
        self._probe = probe
        # Since when each has been idle for the pool, which includes the time in which it is asked.
        self._idle: WeakKeyDictionary[asyncpg.Connection, float] = WeakKeyDictionary()
        if isinstance(engine.pool, QueuePool):  # others lend one connection to several, or keep none
            _listen(engine, self._idle)

    def _suspects(self) -> list[asyncpg.Connection]:
        """Return what was idle already when the last one came who has waited long."""
        came = max(self._long_waiting().values(), default=0.0)
        return [each for each, since in self._idle.items() if since <= came and not each.is_closed()]

    async def _ask(self) -> None:
        async with asyncio.timeout(PROBE_TIMEOUT), self._probe() as probe:
            await probe.fetchval("select 1")
        await asyncio.sleep(ON_ITS_WAY)
        if suspects := self._suspects():
            self.logger.warning("The database does not answer on idle connections of the pool; they are replaced")
            for each in suspects:
                each.terminate()


def _listen(engine: Engine, idle: WeakKeyDictionary[asyncpg.Connection, float]) -> None:
    """Have it written down since when each connection of a pool has been idle."""

    # The connection is None if it was given back as lost.
    def given_back(connection: Any, _record: object) -> None:
        if connection is not None:
            idle[connection.driver_connection] = time.monotonic()

    def lent(connection: Any, _record: object, _proxy: object) -> None:
        idle.pop(connection.driver_connection, None)

    event.listen(engine, "checkin", given_back)
    event.listen(engine, "checkout", lent)
