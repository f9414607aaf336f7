"""Statements that wait for an answer which will never come are found, and made again, within about a second.

A network that swallows what is sent, without a reset, looks like a statement that takes long. So whoever has waited for
a second is asked after on a new connection: the server says whether it is at work for him (``pg_stat_activity``). If it
is not, his connection is dead, whatever the socket says, and is ended, and the statement is made again. While the new
connection cannot be opened either, the question is asked every second: that is how soon work resumes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from logging import Logger, getLogger

import asyncpg

from .connections import Connections

SUSPICION = 1.0
"""Seconds that a statement may take before it is asked after, and between two questions."""

PROBE_TIMEOUT = 5.0
MOST_PROBES = 5

ON_ITS_WAY = 0.5
"""Seconds that are left to an answer that the server has given while it was asked after."""

_LONG = 10.0
"""Seconds after which a statement is given up that the server has answered in part, or that it cannot be asked about:
behind a pooler, which gives its clients numbers of its own."""

_QUESTION = """
    /* duetime: liveness */
    select pg_backend_pid() = $2 as is_direct,
        array(select a.pid from pg_stat_activity a
              where a.pid = any($1::int[]) and a.state = 'active'
                and a.wait_event_type is distinct from 'Client') as at_work,
        array(select a.pid from pg_stat_activity a
              where a.pid = any($1::int[]) and a.state = 'active' and a.wait_event_type = 'Client') as at_talk
"""


class Liveness:
    """Ends connections whose server does not work on what they wait for.

    :param connections: where a new connection comes from, to ask on
    :ivar logger: is told of connections that are ended
    """

    def __init__(self, connections: Connections) -> None:
        self.logger: Logger = getLogger(__name__)
        self._connections = connections
        self._waiting: dict[asyncpg.Connection, float] = {}
        self._asking: set[asyncio.Task[None]] = set()
        self._timer: asyncio.TimerHandle | None = None

    @contextmanager
    def watching(self, connection: asyncpg.Connection) -> Iterator[None]:
        """Watch over a connection for as long as the block waits for its server."""
        loop = asyncio.get_running_loop()
        self._waiting[connection] = loop.time()
        if self._timer is None:
            self._timer = loop.call_later(SUSPICION, self._look)
        try:
            yield
        finally:
            self._waiting.pop(connection, None)

    def close(self) -> None:
        """Ask no more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for each in self._asking:
            each.cancel()

    def _look(self) -> None:
        """Ask after those that have waited long; the timer runs only while somebody waits."""
        loop = asyncio.get_running_loop()
        self._timer = None
        if not self._waiting:
            return
        self._timer = loop.call_later(SUSPICION, self._look)
        # Beside a question that hangs: the network may be back, and the question that was lost in it not.
        if self._suspects() and len(self._asking) < MOST_PROBES:
            task = loop.create_task(self._ask(), name="duetime liveness")
            self._asking.add(task)
            task.add_done_callback(self._asked)

    def _asked(self, task: asyncio.Task[None]) -> None:
        self._asking.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self.logger.debug("The database cannot be asked how it does: %s", error)

    def _suspects(self) -> dict[asyncpg.Connection, float]:
        """Return the connections whose answer is late, and since when they wait for it."""
        latest = asyncio.get_running_loop().time() - SUSPICION
        return {each: since for each, since in self._waiting.items() if since <= latest}

    async def _ask(self) -> None:
        async with asyncio.timeout(PROBE_TIMEOUT), self._connections.probe() as probe:
            suspects = self._suspects()
            pids = [each.get_server_pid() for each in suspects]
            [row] = await probe.fetch(_QUESTION, pids, probe.get_server_pid())
        long_ago = asyncio.get_running_loop().time() - _LONG
        certain = {*row["at_work"], *row["at_talk"]}
        silent = {
            each: since
            for each, since in suspects.items()
            if (row["is_direct"] and each.get_server_pid() not in certain)
            or (since <= long_ago and each.get_server_pid() not in row["at_work"])
        }
        if silent:
            await asyncio.sleep(ON_ITS_WAY)
        for each, since in silent.items():
            if self._waiting.get(each) == since:
                self.logger.warning("The database is not at work on what it was asked; it is asked again")
                each.terminate()
