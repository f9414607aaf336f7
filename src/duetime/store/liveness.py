"""Statements that wait for an answer which will never come are found, and made again, within about a second.

A network that swallows what is sent, without a reset, looks like a statement that takes long. So whoever has waited for
a second is asked after on a new connection: the server says whether it is at work for him (``pg_stat_activity``). If it
is not, his connection is dead, whatever the socket says, and is ended, and the statement is made again. While the new
connection cannot be opened either, the question is asked every second: that is how soon work resumes.
"""

from __future__ import annotations

import asyncio
import time
from logging import getLogger

import asyncpg

from .connections import Connections
from .suspicion import ON_ITS_WAY, PROBE_TIMEOUT, Suspicion

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


class Liveness(Suspicion[asyncpg.Connection]):
    """Ends connections whose server does not work on what they wait for.

    What waits is the connection that a statement goes over.

    :param connections: where a new connection comes from, to ask on
    """

    def __init__(self, connections: Connections) -> None:
        super().__init__(getLogger(__name__))
        self._connections = connections

    def _suspects(self) -> dict[asyncpg.Connection, float]:
        """Return the connections whose answer is late, and since when they wait for it."""
        return self._long_waiting()

    async def _ask(self) -> None:
        async with asyncio.timeout(PROBE_TIMEOUT), self._connections.probe() as probe:
            suspects = self._suspects()
            pids = [each.get_server_pid() for each in suspects]
            [row] = await probe.fetch(_QUESTION, pids, probe.get_server_pid())
        long_ago = time.monotonic() - _LONG
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
