"""Servers of tests: whatever they have accepted is closed at their end."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Acceptor:
    """Gives each connection to a task of its own, which need not close it.

    Not an asyncio server: one that is closed at the moment when it accepts a connection never closes that (CPython
    3.11), and a task that is cancelled before its first step closes nothing itself.

    :param listener: a socket that is bound
    """

    def __init__(self, listener: socket.socket, serve: Serve) -> None:
        self._listener = listener
        self._serve = serve
        self._tasks: set[asyncio.Task[None]] = set()
        listener.listen(100)
        listener.setblocking(False)
        asyncio.get_running_loop().add_reader(listener, self._accept)

    async def close(self) -> None:
        """Accept no more, and end what is under way."""
        asyncio.get_running_loop().remove_reader(self._listener)
        self._listener.close()
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    def _accept(self) -> None:
        try:
            accepted, _ = self._listener.accept()
        except OSError:
            return  # whoever knocked has gone
        accepted.setblocking(False)
        writers: list[asyncio.StreamWriter] = []
        task = asyncio.get_running_loop().create_task(self._run(accepted, writers))
        self._tasks.add(task)

        def end(_: object) -> None:
            self._tasks.discard(task)
            for writer in writers:
                writer.transport.abort()
            if not writers:
                accepted.close()

        task.add_done_callback(end)

    async def _run(self, accepted: socket.socket, writers: list[asyncio.StreamWriter]) -> None:
        try:
            reader, writer = await asyncio.open_connection(sock=accepted)
            writers.append(writer)
            await self._serve(reader, writer)
        except (OSError, asyncio.CancelledError):
            pass  # one of the two has hung up, or the server ends; nobody is to be told
