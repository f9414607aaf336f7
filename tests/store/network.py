"""A network between a node and its database that can be cut, held up and mended."""

from __future__ import annotations

import asyncio
import socket
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Self

from duetime.settings import DatabaseUrl

from ..accepting import Acceptor


@dataclass(eq=False)
class _Way:
    """One connection through the network."""

    near: asyncio.StreamWriter
    far: asyncio.StreamWriter | None = None
    server_spoke: bool = True
    is_dead: bool = False
    """Nothing goes through it any more, in either direction, and neither end is told."""


class Network:
    """A TCP way to a server; ``url`` leads through it. It is cut until :meth:`mend` or ``async with``.

    :param delay: seconds that bytes take in each direction
    :ivar connections: how many have been made through it
    :ivar round_trips: bursts of bytes to the server, each after bytes from it
    """

    def __init__(self, database: DatabaseUrl, *, delay: float = 0) -> None:
        self._database = database
        self._delay = delay
        self._acceptor: Acceptor | None = None
        self._ways: set[_Way] = set()
        self._flows = asyncio.Event()
        self._flows.set()
        self.port = 0
        self.connections = 0
        self.round_trips = 0

    @property
    def url(self) -> DatabaseUrl:
        """The database's address through this way."""
        return replace(self._database, host="127.0.0.1", port=self.port, sslmode="disable")

    async def mend(self) -> None:
        """Let everything through, on the same port as before."""
        self._flows.set()
        if self._acceptor is None:
            listener = socket.create_server(("127.0.0.1", self.port))
            self.port = listener.getsockname()[1]
            self._acceptor = Acceptor(listener, self._carry)

    async def lead_to(self, database: DatabaseUrl) -> None:
        """Break all connections, and lead new ones to another server."""
        await self.cut()
        self._database = database
        await self.mend()

    def stall(self) -> None:
        """Take connections and what is sent, and let nothing through: a black hole."""
        self._flows.clear()

    def black_hole(self) -> None:
        """Let nothing through, and of the connections that are there now nothing ever again: neither end is told."""
        self.stall()
        for way in self._ways:
            way.is_dead = True

    def half_open(self) -> None:
        """Close the server's end of all connections, of which the client's end is never told; new ones work."""
        for way in self._ways:
            way.is_dead = True
            if way.far is not None:
                way.far.transport.abort()

    async def cut(self) -> None:
        """Break all connections, and refuse new ones."""
        if self._acceptor is not None:
            await self._acceptor.close()
            self._acceptor = None

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        way = _Way(writer)
        self._ways.add(way)
        self.connections += 1
        try:
            far_reader, way.far = await self._far_end()
            await asyncio.gather(self._pump(way, reader, way.far), self._pump(way, far_reader, writer))
        finally:
            self._ways.discard(way)
            if way.far is not None:
                way.far.transport.abort()

    async def _far_end(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        host, port = self._database.host or "127.0.0.1", self._database.port
        if host.startswith("/"):
            return await asyncio.open_unix_connection(f"{host}/.s.PGSQL.{port}")
        return await asyncio.open_connection(host, port)

    async def _pump(self, way: _Way, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await reader.read(65536):
                self._count(way, to_server=writer is not way.near)
                if self._delay:
                    await asyncio.sleep(self._delay)
                await self._flows.wait()
                if not way.is_dead:
                    writer.write(data)
                    await writer.drain()
        if way.is_dead and writer is way.near:
            await asyncio.Event().wait()  # the client's end stays open: it is not told
        with suppress(OSError, RuntimeError):
            writer.close()

    def _count(self, way: _Way, *, to_server: bool) -> None:
        self.round_trips += to_server and way.server_spoke
        way.server_spoke = not to_server

    async def __aenter__(self) -> Self:
        await self.mend()
        return self

    async def __aexit__(self, *_exc_info: object) -> None:
        await self.cut()
