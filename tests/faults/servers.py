"""Servers of a test's own, which it may stop, kill, fill up and reconfigure."""

from __future__ import annotations

import asyncio
import shutil
import signal
import socket
import subprocess
import tempfile
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import asyncpg

from duetime.local.cluster import Identity, Programs, ensure_cluster, path_as_seen_by
from duetime.settings import DatabaseUrl

from ..matrix.servers import server_programs
from ..waiting import eventually

SMART, FAST, IMMEDIATE, KILL = signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGKILL


class OwnServer:
    """A server on a port of its own, which stays down when it is stopped."""

    def __init__(
        self, *, copied_from: OwnServer | None = None, programs: Programs | None = None, **settings: str
    ) -> None:
        # A place of its own, because not all versions find their way into those of pytest, which are private.
        self._directory = Path(tempfile.mkdtemp(prefix="duetime-own-", dir="/tmp"))
        self._cluster = self._directory / "postgres"
        self._log = self._directory / "postgres.log"
        self._identity = Identity.for_cluster(self._cluster)
        self._identity.own(self._directory)
        self._programs = programs or server_programs()
        if copied_from is None:
            ensure_cluster(self._cluster, self._programs, self._identity)
        else:
            self._copy(copied_from)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port: int = free.getsockname()[1]
        self.admin = DatabaseUrl.parse(f"postgresql://postgres@127.0.0.1:{self.port}/postgres?sslmode=disable")
        self.database = "postgres"
        self._settings = settings
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> DatabaseUrl:
        """The address of the test's database."""
        return replace(self.admin, database=self.database)

    async def start(self) -> None:
        """Start the server if it is down, and return when it answers."""
        if self._process is not None:
            return
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [
                    self._programs["postgres"],
                    f"-D{path_as_seen_by(self._identity, self._cluster)}",
                    f"-p{self.port}",
                    "-clisten_addresses=127.0.0.1",
                    "-cunix_socket_directories=",
                    "-cfsync=off",
                    *(f"-c{name}={value}" for name, value in self._settings.items()),
                ],
                cwd=self._cluster,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                **self._identity.arguments,
            )
        await eventually(self.answers, within=60)

    def _copy(self, other: OwnServer) -> None:
        self._cluster.mkdir(mode=0o700)
        self._identity.own(self._cluster)
        subprocess.run(
            [
                self._programs["pg_basebackup"],
                f"--pgdata={path_as_seen_by(self._identity, self._cluster)}",
                "--host=127.0.0.1",
                f"--port={other.port}",
                "--username=postgres",
                "--wal-method=stream",
                "--checkpoint=fast",
                "--no-sync",
                "--write-recovery-conf",
            ],
            cwd=self._cluster,
            check=True,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            **self._identity.arguments,
        )

    async def copy(self) -> OwnServer:
        """Return a standby of this server, not started."""
        return await asyncio.to_thread(OwnServer, copied_from=self, programs=self._programs)

    async def administer(self, *statements: str) -> None:
        """Run statements as the superuser."""
        await run(self.admin, *statements)

    async def stop(self, how: signal.Signals = IMMEDIATE) -> None:
        """Send the postmaster a signal, and wait for its end."""
        process, self._process = self._process, None
        if process is not None:
            process.send_signal(how)
            await asyncio.to_thread(process.wait, 60)

    async def remove(self) -> None:
        """Stop the server, and leave nothing of it."""
        await self.stop()
        shutil.rmtree(self._directory)

    def begin_stop(self, how: signal.Signals) -> None:
        """Send the postmaster a signal."""
        assert self._process is not None
        self._process.send_signal(how)

    async def answers(self) -> bool:
        """Return whether somebody can connect."""
        with suppress(OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
            connection = await asyncpg.connect(**self.admin.asyncpg_arguments(), timeout=5)
            await connection.close()
            return True
        return False


async def run(url: DatabaseUrl, *statements: str) -> None:
    """Run statements on a connection of their own."""
    connection = await asyncpg.connect(**url.asyncpg_arguments())
    try:
        await connection.execute("set default_transaction_read_only = off")  # whatever a test has made the default
        for statement in statements:
            await connection.execute(statement)
    finally:
        await connection.close()
