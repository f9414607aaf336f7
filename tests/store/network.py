"""A network between a node and its database that can be cut, held up and mended."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import replace
from typing import Self

from duetime.settings import DatabaseUrl


class Network:
    """A TCP way to a server; ``url`` leads through it. It is cut until :meth:`mend` or ``async with``."""

    def __init__(self, database: DatabaseUrl) -> None:
        self._database = database
        self._server: asyncio.Server | None = None
        self._ways: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._flows = asyncio.Event()
        self._flows.set()
        self.port = 0

    @property
    def url(self) -> DatabaseUrl:
        """The database's address through this way."""
        return replace(self._database, host="127.0.0.1", port=self.port, sslmode="disable")

    async def mend(self) -> None:
        """Let everything through, on the same port as before."""
        self._flows.set()
        if self._server is None:
            self._server = await asyncio.start_server(self._carry, "127.0.0.1", self.port)
            self.port = self._server.sockets[0].getsockname()[1]

    def stall(self) -> None:
        """Take connections and what is sent, and let nothing through: a black hole."""
        self._flows.clear()

    async def cut(self) -> None:
        """Break all connections, and refuse new ones."""
        if self._server is not None:
            self._server.close()
        for way in self._ways:
            way.transport.abort()
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        if self._server is not None:
            await self._server.wait_closed()
            self._server = None

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._ways.add(writer)
        try:
            far_reader, far_writer = await self._far_end()
            self._ways.add(far_writer)
            await asyncio.gather(self._pump(reader, far_writer), self._pump(far_reader, writer))
        except (asyncio.CancelledError, OSError):
            pass  # cut, or no server at the far end; a server's tasks have nobody to tell
        finally:
            self._tasks.discard(task)
            writer.transport.abort()

    async def _far_end(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        host, port = self._database.host or "127.0.0.1", self._database.port
        if host.startswith("/"):
            return await asyncio.open_unix_connection(f"{host}/.s.PGSQL.{port}")
        return await asyncio.open_connection(host, port)

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await reader.read(65536):
                await self._flows.wait()
                writer.write(data)
                await writer.drain()
        with suppress(OSError, RuntimeError):
            writer.close()

    async def __aenter__(self) -> Self:
        await self.mend()
        return self

    async def __aexit__(self, *_exc_info: object) -> None:
        await self.cut()
