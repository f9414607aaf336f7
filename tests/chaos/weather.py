"""What happens to nodes, network and database during a storm: chosen by dice, so that a seed brings it back."""

from __future__ import annotations

import asyncio
import random
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

import asyncpg

from duetime.settings import DatabaseUrl

from ..nodes.fleet import Fleet, NodeProcess
from ..store.network import Network


@dataclass(frozen=True)
class Trouble:
    """A time in which a node could not do its work as it should.

    :ivar node: its name; None: all nodes
    :ivar begin: the machine's time, in seconds since 1970
    """

    kind: str
    node: str | None
    begin: float
    end: float


@dataclass
class Weather:
    """Makes trouble, keeps account of it, and mends everything in the end.

    :param networks: by the node's name, the way from it to the database
    :param restart: kills the database's server, which then comes back by itself; None where that cannot be done
    """

    dice: random.Random
    fleet: Fleet
    networks: dict[str, Network]
    restart: Callable[[], Awaitable[None]] | None
    troubles: list[Trouble] = field(default_factory=list)

    async def burst(self, seconds: float) -> None:
        """Make trouble for some seconds; it all ends before the burst does."""
        loop = asyncio.get_running_loop()
        ends_at = loop.time() + seconds
        async with asyncio.TaskGroup() as group:
            for node in self.fleet.nodes.values():
                group.create_task(self._trouble_node(node, ends_at))
            group.create_task(self._trouble_all(ends_at))

    async def _trouble_node(self, node: NodeProcess, ends_at: float) -> None:
        """One trouble after another for one node."""
        loop = asyncio.get_running_loop()
        kinds = {self.kill: 4, self.stop: 3, self.cut: 2, self.stall: 2, self.end: 1}
        while True:
            pause, lasts = self.dice.uniform(0.1, 1.5), self.dice.choice([0.2, 0.5, 1.0, 3.0])
            [make] = self.dice.choices(list(kinds), list(kinds.values()))
            if loop.time() + pause + lasts > ends_at:
                return
            await asyncio.sleep(pause)
            async with self._noted(make.__name__, node.name):
                await make(node, lasts)

    async def _trouble_all(self, ends_at: float) -> None:
        """Trouble that all nodes have together."""
        loop = asyncio.get_running_loop()
        while True:
            pause = self.dice.uniform(0.5, 3.0)
            makes = [self.break_connections, self.break_listeners, self.restart]
            make = self.dice.choice([make for make in makes if make is not None])
            if loop.time() + pause > ends_at:
                return
            await asyncio.sleep(pause)
            async with self._noted(getattr(make, "__name__", "restart"), None):
                await make()

    @asynccontextmanager
    async def _noted(self, kind: str, node: str | None) -> AsyncIterator[None]:
        begin = time.time()
        try:
            yield
        finally:
            self.troubles.append(Trouble(kind, node, begin, time.time()))

    async def kill(self, node: NodeProcess, lasts: float) -> None:
        """Kill -9, and a new start."""
        if node.is_up:
            node.kill()
        await asyncio.sleep(lasts)
        node.start()
        await self.fleet.wait_until_ready(node)

    async def end(self, node: NodeProcess, lasts: float) -> None:
        """SIGTERM, and a new start: a deployment."""
        assert await node.end() == 0
        await asyncio.sleep(lasts)
        node.start()
        await self.fleet.wait_until_ready(node)

    async def stop(self, node: NodeProcess, lasts: float) -> None:
        """SIGSTOP and SIGCONT: a virtual machine that is paused."""
        node.send(signal.SIGSTOP)
        try:
            await asyncio.sleep(lasts)
        finally:
            node.send(signal.SIGCONT)

    async def cut(self, node: NodeProcess, lasts: float) -> None:
        """Break the node's connections, and refuse new ones."""
        network = self.networks[node.name]
        await network.cut()
        await asyncio.sleep(lasts)
        await network.mend()

    async def stall(self, node: NodeProcess, lasts: float) -> None:
        """Let nothing through between the node and the database, and tell neither."""
        network = self.networks[node.name]
        network.stall()
        await asyncio.sleep(lasts)
        await network.mend()

    async def break_connections(self) -> None:
        """End every connection to the database, from the database's side."""
        await _terminate(self.fleet.database, "%")

    async def break_listeners(self) -> None:
        """End the connections that were opened first, among them those that listen for notifications."""
        await _terminate(self.fleet.database, "%", first=len(self.fleet.nodes))

    async def clear(self) -> None:
        """Mend everything, and return when all nodes are at work."""
        for network in self.networks.values():
            await network.mend()
        for node in self.fleet.nodes.values():
            if node.is_stopped:
                node.send(signal.SIGCONT)
            if not node.is_up:
                node.start()
                await self.fleet.wait_until_ready(node)


async def _terminate(database: DatabaseUrl, which: str, *, first: int | None = None) -> None:
    with suppress(OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
        async with connected(database) as connection:
            await connection.execute(
                "select pg_terminate_backend(pid) from ("
                "  select pid from pg_stat_activity "
                "  where datname = current_database() and pid <> pg_backend_pid() and query ilike $1"
                "  order by backend_start limit $2"
                ") chosen",
                which,
                first,
            )


@asynccontextmanager
async def connected(database: DatabaseUrl) -> AsyncIterator[asyncpg.Connection]:
    """Lend a connection of its own, which is gone at the end, whatever became of it."""
    connection = await asyncpg.connect(**database.asyncpg_arguments())
    try:
        yield connection
    finally:
        connection.terminate()
