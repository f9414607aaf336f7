"""The redis-server that the peers on Redis share, started and ended by the run: loopback, a free port, a new directory.

It appends every write to its log and flushes that once a second (``appendonly yes``, ``appendfsync everysec``): what
Redis calls the sensible durability. PostgreSQL flushes before it answers; a crash of the machine costs Redis a second.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import shutil
import socket
import time
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager, suppress
from typing import Any, Self

import psutil

from .environments import last_line
from .errors import NotMeasurable, PeerFailed
from .places import cache, own_directory

DATABASES = 64
"""Databases of the server: as many measurements may go on at once."""

SHOWN_SETTINGS = ("appendonly", "appendfsync", "save", "maxmemory")

START_TIMEOUT = 20.0


def program() -> str | None:
    """Return where redis-server is installed, or None."""
    return shutil.which("redis-server")


class RedisServer:
    """A redis-server of the run's own; each measurement has one of its numbered databases, empty."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._free = set(range(DATABASES))
        self._process: asyncio.subprocess.Process | None = None
        self._password = secrets.token_hex(16)

    async def __aenter__(self) -> Self:
        if (found := program()) is None:
            raise NotMeasurable("there is no redis-server on the PATH (Debian, Ubuntu: apt install redis-server)")
        try:
            await self._start(found)
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def __aexit__(self, *_exc_info: object) -> None:
        if self._process is not None:
            with suppress(ProcessLookupError):
                self._process.terminate()
            try:
                await asyncio.wait_for(self._process.wait(), 10)
            except TimeoutError:
                self._process.kill()
                await self._process.wait()
        self._stack.close()

    async def _start(self, found: str) -> None:
        self.directory = self._stack.enter_context(own_directory("redis"))
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port = probe.getsockname()[1]
        settings = self.directory / "redis.conf"
        settings.touch(mode=0o600)  # the password is in it
        settings.write_text(
            f"bind 127.0.0.1\nport {self._port}\nrequirepass {self._password}\ndatabases {DATABASES}\n"
            f'dir "{self.directory}"\nappendonly yes\nappendfsync everysec\nsave ""\n'
        )
        log = cache("logs", f"redis-{os.getpid()}.log")
        with log.open("wb") as out:
            self._process = await asyncio.create_subprocess_exec(
                found, str(settings), stdin=asyncio.subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True
            )
        until = time.monotonic() + START_TIMEOUT
        while True:
            try:
                watcher = await self.connect("0")
            except (OSError, PeerFailed):
                if self._process.returncode is not None or time.monotonic() > until:
                    raise PeerFailed(f"redis-server did not start: {last_line(log)}") from None
                await asyncio.sleep(0.02)
            else:
                break
        self._version = (await watcher.info("server"))["redis_version"]
        self._settings = {name: await watcher.setting(name) for name in SHOWN_SETTINGS}
        self._watcher = watcher
        self._stack.callback(watcher.close_now)
        self._measured = psutil.Process(self._process.pid)

    async def settings(self) -> dict[str, str]:
        """Return its version and the settings that matter for these figures, as the server says them."""
        return {"redis_version": self._version, **self._settings}

    async def written(self) -> int:
        """Return how many bytes its log of writes has."""
        return int((await self._watcher.info("persistence"))["aof_current_size"])

    def cpu(self) -> float:
        """Return the CPU seconds that the server has used."""
        times = self._measured.cpu_times()
        return float(times.user + times.system)

    @property
    def address(self) -> tuple[str, int]:
        """Host and port."""
        return "127.0.0.1", self._port

    def place(self, database: str) -> dict[str, Any]:
        """Return what a peer needs in order to connect straight to the database."""
        return {
            "host": "127.0.0.1",
            "port": self._port,
            "user": "default",
            "password": self._password,
            "database": database,
            "tls": False,
            "redis": True,
        }

    async def connections(self, watcher: Watcher) -> int:
        """Return how many connections there are to the watcher's database, its own left out."""
        return await watcher.others()

    @asynccontextmanager
    async def database(self) -> AsyncIterator[str]:
        """Take an empty database for the length of the block."""
        number = self._free.pop()
        try:
            yield str(number)
        finally:
            watcher = await self.connect(str(number))
            await watcher.command("FLUSHDB")
            await watcher.close()
            self._free.add(number)

    async def connect(self, database: str) -> Watcher:
        """Open a connection to look at a database, past any proxy."""
        watcher = Watcher(*await asyncio.open_connection(*self.address), database)
        await watcher.command("AUTH", self._password)
        await watcher.command("SELECT", database)
        return watcher


class Watcher:
    """A connection that looks at one database, with as much of Redis's protocol as that takes."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, database: str) -> None:
        self._reader = reader
        self._writer = writer
        self._database = database
        self._turn = asyncio.Lock()

    async def command(self, *words: str) -> Any:
        """Run a command and return its answer: an integer, a text, or None.

        :raises PeerFailed: if Redis answers with an error
        """
        parts = [word.encode() for word in words]
        request = b"".join(b"$%d\r\n%s\r\n" % (len(part), part) for part in parts)
        async with self._turn:
            self._writer.write(b"*%d\r\n%s" % (len(parts), request))
            await self._writer.drain()
            return await self._answer()

    async def _answer(self) -> Any:
        line = (await self._reader.readline()).decode().rstrip("\r\n")
        kind, rest = line[:1], line[1:]
        if kind == ":":
            return int(rest)
        if kind == "+":
            return rest
        if kind == "$":
            return None if rest == "-1" else (await self._reader.readexactly(int(rest) + 2))[:-2].decode()
        if kind == "*":
            return [await self._answer() for _ in range(int(rest))]
        raise PeerFailed(f"redis-server answered {line or 'nothing'!r}")

    async def fetchval(self, script: str) -> Any:
        """Return what a Lua script returns."""
        return await self.command("EVAL", script, "0")

    async def info(self, section: str) -> dict[str, str]:
        """Return a section of what Redis says about itself."""
        lines = (await self.command("INFO", section)).splitlines()
        return dict(line.split(":", 1) for line in lines if ":" in line)

    async def setting(self, name: str) -> str:
        """Return a setting as Redis says it."""
        return str((await self.command("CONFIG", "GET", name))[1])

    async def others(self) -> int:
        """Return how many connections there are to this database, this one left out."""
        clients = (await self.command("CLIENT", "LIST")).splitlines()
        return sum(f" db={self._database} " in client for client in clients) - 1

    async def close(self) -> None:
        """Close the connection."""
        self.close_now()

    def close_now(self) -> None:
        """Close the connection, and wait for nothing."""
        self._writer.close()
