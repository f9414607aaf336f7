"""The PostgreSQL that all peers of a run share, and a database of its own for each measurement."""

from __future__ import annotations

import asyncio
import itertools
import os
import secrets
import socket
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager, suppress
from dataclasses import replace
from typing import Any, Self

import asyncpg
import psutil

from duetime.local import LocalDatabase
from duetime.settings import DatabaseUrl

from .places import own_directory

_ACCESS = """\
# The benchmarks' own: passwords over TCP on loopback, nothing else from outside.
local all all trust
host all all 127.0.0.1/32 scram-sha-256
"""

SHOWN_SETTINGS = (
    "server_version",
    "fsync",
    "synchronous_commit",
    "full_page_writes",
    "wal_level",
    "shared_buffers",
    "max_connections",
    "max_wal_size",
    "checkpoint_timeout",
    "autovacuum",
    "jit",
    "max_parallel_workers_per_gather",
)


class Server:
    """The embedded PostgreSQL with its defaults (``fsync`` on), listening on loopback too, or the server of an address.

    :param url: a superuser's address; None: the embedded one, with a new data directory in the cache
    """

    def __init__(self, url: DatabaseUrl | None) -> None:
        self._given = url
        self._numbers = itertools.count(1)
        self._local: LocalDatabase | None = None
        self._admin: Any = None
        self._lock = asyncio.Lock()
        self._stack = ExitStack()

    async def __aenter__(self) -> Self:
        try:
            self._url = self._given or await self._start_local()
            self._admin = await asyncpg.connect(**self._url.asyncpg_arguments())
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def __aexit__(self, *_exc_info: object) -> None:
        if self._admin is not None:
            await self._admin.close()
        if self._local is not None:
            await self._local.stop()
        self._stack.close()

    async def _start_local(self) -> DatabaseUrl:
        directory = self._stack.enter_context(own_directory("postgresql"))
        access = directory / "postgres" / "pg_hba.conf"
        # First without TCP: initdb trusts everybody, which is fine only behind the socket's private directory.
        async with LocalDatabase(directory):
            access.write_text(_ACCESS)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self._local = LocalDatabase(
            directory,
            max_connections=200,
            server_settings={"listen_addresses": "127.0.0.1", "port": str(port)},
        )
        inside = replace(await self._local.start(), port=port)
        connection = await asyncpg.connect(**inside.asyncpg_arguments())
        password = secrets.token_hex(16)  # of letters and digits
        await connection.execute(f"alter role postgres password '{password}'")
        self._process = psutil.Process(int((directory / "postgres" / "postmaster.pid").read_text().splitlines()[0]))
        await connection.close()
        return replace(inside, host="127.0.0.1", password=password, sslmode="disable")

    async def settings(self) -> dict[str, str]:
        """Return the settings that matter for these figures, as the server says them."""
        rows = await self._admin.fetch(
            "select name, current_setting(name) as value from pg_settings where name = any($1)", list(SHOWN_SETTINGS)
        )
        found = {row["name"]: row["value"] for row in rows}
        return {name: found[name] for name in SHOWN_SETTINGS if name in found}

    async def written(self) -> int:
        """Return how many bytes of log the server has written in its life."""
        async with self._lock:
            position: int = await self._admin.fetchval("select (pg_current_wal_insert_lsn() - '0/0')::bigint")
        return position

    def cpu(self) -> float | None:
        """Return the CPU seconds that the server has used, those of its ended processes too; None if it is not ours."""
        if self._local is None:
            return None
        used = 0.0
        for process in (self._process, *self._process.children(recursive=True)):
            with suppress(psutil.NoSuchProcess):
                times = process.cpu_times()
                used += times.user + times.system
                if process == self._process:
                    used += times.children_user + times.children_system
        return used

    @property
    def address(self) -> tuple[str, int]:
        """Host and port."""
        return self._url.host or "127.0.0.1", self._url.port

    def place(self, database: str) -> dict[str, Any]:
        """Return what a peer needs in order to connect straight to the database."""
        host, port = self.address
        return {
            "host": host,
            "port": port,
            "user": self._url.user or "postgres",
            "password": self._url.password or "",
            "database": database,
            "tls": False,
        }

    async def connections(self, watcher: Any) -> int:
        """Return how many connections there are to the watcher's database, its own left out."""
        number: int = await watcher.fetchval(
            "select count(*) from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()"
        )
        return number

    async def execute(self, statement: str) -> None:
        """Run a statement on the server's own database."""
        async with self._lock:
            await self._admin.execute(statement)

    @asynccontextmanager
    async def database(self, template: str | None = None) -> AsyncIterator[str]:
        """Make a database for the length of the block."""
        name = f"benchmark_{os.getpid()}_{next(self._numbers)}"
        await self.execute(f"create database {name}" + (f" template {template}" if template else ""))
        try:
            yield name
        finally:
            await self.execute(f"drop database {name} with (force)")

    async def connect(self, database: str) -> Any:
        """Open a connection to look at a database, past any proxy."""
        return await asyncpg.connect(**replace(self._url, database=database).asyncpg_arguments())
