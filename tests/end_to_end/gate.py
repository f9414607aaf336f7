"""A TCP door in front of a PostgreSQL server, which a test opens and shuts: it comes, goes or is silent."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from typing import Any

from duetime.database_url import DatabaseUrl

from ..accepting import Acceptor


class Gate:
    """Refuses connections until it is opened; shutting it cuts those that are under way."""

    def __init__(self, database: DatabaseUrl, loop: asyncio.AbstractEventLoop) -> None:
        self._database = database
        self._loop = loop
        # Bound and not listening: nobody else gets the port, and connecting to it is refused.
        self._reserved: socket.socket | None = _bound(0)
        self._port: int = self._reserved.getsockname()[1]
        self._acceptor: Acceptor | None = None

    @property
    def url(self) -> DatabaseUrl:
        """The database, by way of this gate."""
        return replace(self._database, host="127.0.0.1", port=self._port, sslmode="disable")

    def open(self) -> None:
        """Let connections through."""
        self._call(self._listen(silent=False))

    def open_silently(self) -> None:
        """Accept connections and answer nothing, as a machine that hangs does."""
        self._call(self._listen(silent=True))

    def shut(self) -> None:
        """Cut all connections and refuse new ones."""
        self._call(self._shut())

    def _call(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(10)

    async def _listen(self, *, silent: bool) -> None:
        await self._shut()
        reserved, self._reserved = self._reserved, None
        assert reserved is not None

        self._acceptor = Acceptor(reserved, partial(self._pass_on, silent=silent))

    async def _shut(self) -> None:
        if self._acceptor is not None:
            await self._acceptor.close()
            self._acceptor = None
            self._reserved = _bound(self._port)

    async def release(self) -> None:
        """End for good."""
        await self._shut()
        if self._reserved is not None:
            self._reserved.close()

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, silent: bool) -> None:
        if silent:
            await asyncio.Event().wait()
        host, port = self._database.host or "", self._database.port
        if host.startswith("/"):
            server = await asyncio.open_unix_connection(f"{host}/.s.PGSQL.{port}")
        else:
            server = await asyncio.open_connection(host, port)
        try:
            await asyncio.gather(_pump(reader, server[1]), _pump(server[0], writer))
        finally:
            server[1].transport.abort()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    with suppress(OSError):
        writer.write_eof()


def _bound(port: int) -> socket.socket:
    reserved = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    reserved.bind(("127.0.0.1", port))
    return reserved


@contextmanager
def gate_to(database: DatabaseUrl) -> Iterator[Gate]:
    """A gate to the database, refusing at first, with an event loop of its own in a thread."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    gate = Gate(database, loop)
    try:
        yield gate
    finally:
        asyncio.run_coroutine_threadsafe(gate.release(), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
