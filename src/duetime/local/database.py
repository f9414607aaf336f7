"""``LocalDatabase``: joins or starts the embedded PostgreSQL of a data directory, and leaves it again.

Three locks in the data directory, released by the kernel however their holder ends, order the processes:

``start.lock``
    exclusive, held while a process joins, starts or leaves the server, so these never interleave
``users.lock``
    shared, held by everybody who uses the server; the keeper waits for it exclusively, then stops the server
``keeper.lock``
    exclusive, held by the keeper for as long as it lives
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from duetime.database_url import DatabaseUrl
from duetime.errors import LocalDatabaseFailed

from . import keeper
from .cluster import (
    DATABASE,
    SUPERUSER,
    Identity,
    Programs,
    ensure_cluster,
    make_socket_directory,
    path_as_seen_by,
    server_environment,
)
from .keeper import Order, PidFile

if TYPE_CHECKING:
    import psutil

logger = logging.getLogger(__name__)

START_TIMEOUT = 60.0
STOP_TIMEOUT = 45.0

_POLL = 0.01
_LARGEST_LOG = 10 * 1024 * 1024
_SERVER_SETTINGS = {
    "listen_addresses": "",
    "port": str(keeper.SOCKET_PORT),
    "unix_socket_permissions": "0700",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "log_checkpoints": "off",
    # Parallel queries need shared memory that a container's default /dev/shm (64 MB) does not have.
    "max_parallel_workers_per_gather": "0",
}


class LocalDatabase:
    """The embedded PostgreSQL of one directory, for as long as this object uses it.

    Several objects, in one process or in many, share one server: the first starts it, the last one to leave
    stops it, and leaving includes being killed. It listens on a Unix socket in a private directory (no TCP
    port), which only this OS user and root can enter; inside, every connection is the superuser's. Linux
    and macOS.

    :param data_dir: directory for data, log and locks; made if it is missing. Any length, spaces allowed
    :param max_connections: connections the server accepts, if it is this object that starts it
    :param server_settings: further run-time parameters for the server, if it is this object that starts it
    """

    def __init__(
        self,
        data_dir: Path,
        *,
        max_connections: int = 100,
        server_settings: Mapping[str, str] | None = None,
    ) -> None:
        self._directory = data_dir.expanduser().absolute()
        self._cluster = self._directory / "postgres"
        self._log = self._directory / "postgres.log"
        self._settings = {
            **_SERVER_SETTINGS,
            "max_connections": str(max_connections),
            **(server_settings or {}),
        }
        self._membership: int | None = None
        self._url: DatabaseUrl | None = None
        self._joining: asyncio.Task[DatabaseUrl] | None = None
        self._give_up = threading.Event()
        self._state = threading.Lock()

    async def start(self) -> DatabaseUrl:
        """Join the running server or start one, and return its address. May be repeated, also concurrently.

        About a second for a new directory, a fifth of one later. Nothing of it runs on the event loop. A
        call that is cancelled does not stop the attempt, which the next call awaits; :meth:`stop` does.

        :raises LocalDatabaseFailed: if it does not run after 60 seconds, or cannot run at all
        """
        if self._url is not None:
            return self._url
        if self._joining is None or self._joining.done():
            self._give_up = threading.Event()
            self._joining = asyncio.create_task(asyncio.to_thread(self._start, self._give_up))
            self._joining.add_done_callback(_take_note)
        joining = self._joining
        url = await asyncio.shield(joining)
        if self._joining is joining:  # else it was stopped meanwhile
            self._url = url
        return url

    async def stop(self) -> None:
        """Leave the server; the last one to leave waits until it has stopped. May be repeated.

        A server that takes longer than 45 seconds is left to its keeper, with a warning in the log.
        """
        joining, self._joining, self._url = self._joining, None, None
        self._leave()
        if joining is None:
            return
        if not joining.done():
            await asyncio.wait([joining])
        await asyncio.to_thread(self._await_shutdown)

    async def __aenter__(self) -> DatabaseUrl:
        try:
            return await self.start()
        except BaseException:
            await self.stop()
            raise

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.stop()

    def _leave(self) -> None:
        """Let go of the server, even if an attempt to join it succeeds only later."""
        with self._state:
            self._give_up.set()
            if self._membership is not None:
                os.close(self._membership)
                self._membership = None

    # From here on everything blocks and runs in a thread.

    def _start(self, give_up: threading.Event) -> DatabaseUrl:
        wait = _Wait(START_TIMEOUT, give_up)
        try:
            self._prepare_directory()
            with self._transition(wait):
                membership, url = self._join_or_launch(wait)
        except (OSError, subprocess.SubprocessError) as exc:
            raise LocalDatabaseFailed(
                f"expected to start the embedded PostgreSQL in {str(self._directory)!r}, got: {exc}. "
                f"Check who owns the directory and whether there is room, choose another data_dir, or set "
                f"DATABASE_URL."
            ) from exc
        with self._state:
            if give_up.is_set() or self._membership is not None:
                os.close(membership)
            else:
                self._membership = membership
        return url

    def _prepare_directory(self) -> None:
        self._directory.mkdir(parents=True, exist_ok=True)
        for name in ("start.lock", "users.lock", "keeper.lock", self._log.name):
            descriptor = os.open(self._directory / name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            if os.geteuid() == 0:  # an ordinary user's directory stays that user's when root works in it
                owner = self._directory.stat()
                os.fchown(descriptor, owner.st_uid, owner.st_gid)
            os.close(descriptor)
        ignore = self._directory / ".gitignore"
        if not ignore.exists():
            ignore.write_text("*\n")

    def _join_or_launch(self, wait: _Wait) -> tuple[int, DatabaseUrl]:
        membership = self._lock("users.lock", fcntl.LOCK_SH, wait, "the server to stop")
        try:
            while True:
                server = self._running_server()
                is_kept = self._is_kept()
                if server and server.is_ready and (is_kept or not self._is_alone(membership)):
                    break
                if server and not is_kept and self._is_alone(membership):
                    logger.warning("Stopping the PostgreSQL in %s: its keeper was killed.", self._directory)
                    self._stop_orphan(server)
                elif not server and not is_kept:
                    self._launch(wait)
                wait.a_little("the server to be ready")
            url = DatabaseUrl(host=server.socket_directory, port=keeper.SOCKET_PORT, user=SUPERUSER, database=DATABASE)
            return membership, url
        except BaseException:
            os.close(membership)
            raise

    def _launch(self, wait: _Wait) -> None:
        self._forget_crashed_server(wait)
        identity = Identity.for_cluster(self._cluster)
        programs = Programs.for_cluster(self._cluster).runnable_by(identity)
        is_new = ensure_cluster(self._cluster, programs, identity)
        data_directory = path_as_seen_by(identity, self._cluster)
        if self._log.stat().st_size > _LARGEST_LOG:
            self._log.replace(self._log.with_suffix(".log.1"))
            self._prepare_directory()
        log_length = self._log.stat().st_size
        socket_directory = make_socket_directory(identity)
        quoted = '"' + socket_directory.replace('"', '""') + '"'
        settings = {**self._settings, "unix_socket_directories": quoted}
        order = Order(
            command=[
                programs["postgres"],
                "-D",
                data_directory,
                *(part for name, value in settings.items() for part in ("-c", f"{name}={value}")),
            ],
            sync_command=[programs["initdb"], "--sync-only", f"--pgdata={data_directory}"] if is_new else [],
            environment=server_environment(),
            identity=identity.arguments,
            cluster=str(self._cluster),
            socket_directory=socket_directory,
            log=str(self._log),
            users_lock=str(self._directory / "users.lock"),
            keeper_lock=str(self._directory / "keeper.lock"),
            start_timeout=wait.left,
        )
        finished = subprocess.run(  # noqa: S603 - our own command line
            [_python(), "-I", "-S", keeper.__file__, str(self._directory)],  # the last is for readers of `ps`
            check=False,
            input=order.to_json(),
            stdout=subprocess.PIPE,
            timeout=wait.left + 5,
            start_new_session=True,
            text=True,
        )
        if finished.stdout != keeper.READY:
            with self._log.open(errors="replace") as log:
                log.seek(log_length)
                said = log.read().strip()[-2000:] or f"nothing in {str(self._log)!r}"
            raise LocalDatabaseFailed(
                f"expected the embedded PostgreSQL in {str(self._directory)!r} to start, got: {said}"
            )

    def _forget_crashed_server(self, wait: _Wait) -> None:
        """Make room for a start after a server was killed: wait for its last processes, drop its note.

        PostgreSQL refuses to start while ``postmaster.pid`` names a living process of its user, even if that
        number belongs to another program by now (after a restart of a container, say).
        """
        note = PidFile.read(self._cluster)
        if note is None:
            return
        while any(_works_in(process, self._cluster) for process in _postgres_processes()):
            wait.a_little("the processes of a killed server to end")
        (self._cluster / "postmaster.pid").unlink(missing_ok=True)
        keeper.remove_socket_directory(note.socket_directory)

    def _running_server(self) -> PidFile | None:
        note = PidFile.read(self._cluster)
        return note if note and (process := _process(note.pid)) and _works_in(process, self._cluster) else None

    def _stop_orphan(self, server: PidFile) -> None:
        """Stop a server that has no keeper and no users."""
        import psutil

        process = _process(server.pid)
        for step, seconds in keeper.SHUTDOWN_STEPS:
            if process is None or not _works_in(process, self._cluster):
                break
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(step)
            deadline = time.monotonic() + seconds
            while time.monotonic() < deadline and _works_in(process, self._cluster):
                time.sleep(_POLL)
        keeper.remove_socket_directory(server.socket_directory)

    def _await_shutdown(self) -> None:
        """Return when the server is gone, or when somebody else uses it."""
        wait = _Wait(STOP_TIMEOUT, threading.Event())
        try:
            with self._transition(wait):
                while not self._is_used_by_others():
                    server = self._running_server()
                    if not self._is_kept():
                        if server is not None:
                            self._stop_orphan(server)
                        return
                    wait.a_little("the server to stop")
        except LocalDatabaseFailed as exc:
            logger.warning("%s", exc)
        except OSError as exc:  # the directory was removed meanwhile; the keeper has the locks open and goes on
            logger.warning("Cannot tell whether the embedded PostgreSQL has stopped: %s", exc)

    def _is_used_by_others(self) -> bool:
        """Return whether others share the server. Only for one who holds the start lock and has left."""
        # Not free for a shared lock either: that is the keeper, which holds the exclusive one while it stops.
        return not self._is_free("users.lock", fcntl.LOCK_EX) and self._is_free("users.lock", fcntl.LOCK_SH)

    def _is_kept(self) -> bool:
        return not self._is_free("keeper.lock", fcntl.LOCK_EX)

    def _is_alone(self, membership: int) -> bool:
        """Return whether nobody else uses the server. Only under the start lock, when there is no keeper."""
        try:
            fcntl.flock(membership, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        finally:
            fcntl.flock(membership, fcntl.LOCK_SH)
        return True

    def _is_free(self, name: str, kind: int) -> bool:
        descriptor = os.open(self._directory / name, os.O_RDWR | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        finally:
            os.close(descriptor)
        return True

    def _lock(self, name: str, kind: int, wait: _Wait, reason: str) -> int:
        """Take a lock and return the descriptor that holds it until it is closed."""
        descriptor = os.open(self._directory / name, os.O_RDWR | os.O_CLOEXEC)
        try:
            while True:
                with contextlib.suppress(BlockingIOError):
                    fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
                    return descriptor
                wait.a_little(reason)
        except BaseException:
            os.close(descriptor)
            raise

    @contextlib.contextmanager
    def _transition(self, wait: _Wait) -> Iterator[None]:
        descriptor = self._lock("start.lock", fcntl.LOCK_EX, wait, "others to start or stop the server")
        try:
            yield
        finally:
            os.close(descriptor)


class _Wait:
    """A deadline that a caller who no longer waits can bring forward."""

    def __init__(self, seconds: float, give_up: threading.Event) -> None:
        self._deadline = time.monotonic() + seconds
        self._give_up = give_up

    @property
    def left(self) -> float:
        return max(0.0, self._deadline - time.monotonic())

    def a_little(self, reason: str) -> None:
        """Pause for a moment; raise when the time is up."""
        if self._give_up.wait(min(_POLL, self.left)) or not self.left:
            raise LocalDatabaseFailed(
                f"expected {reason} before the deadline, got no sign of it. The embedded PostgreSQL's own "
                f"account is postgres.log in data_dir."
            )


def _take_note(joining: asyncio.Task[DatabaseUrl]) -> None:
    """Keep asyncio from complaining about the error of an attempt that nobody waits for any more."""
    if not joining.cancelled():
        joining.exception()


def _python() -> str:
    """Return a Python for the keeper; a program that embeds Python is not one."""
    own = sys.executable or ""
    found = own if Path(own).name.startswith("python") else shutil.which("python3")
    if not found:
        raise LocalDatabaseFailed(f"expected a Python interpreter to run PostgreSQL's keeper, got {own!r}.")
    return found


def _process(pid: int) -> psutil.Process | None:
    import psutil

    with contextlib.suppress(psutil.NoSuchProcess, ValueError):
        return psutil.Process(pid)
    return None


def _postgres_processes() -> Iterator[psutil.Process]:
    import psutil

    return psutil.process_iter()


def _works_in(process: psutil.Process, cluster: Path) -> bool:
    """Return whether the process is a living PostgreSQL whose data (and working) directory this is."""
    import psutil

    try:
        return (
            process.name() == "postgres"
            and process.status() != psutil.STATUS_ZOMBIE
            and os.path.samefile(process.cwd(), cluster)
        )
    except (psutil.NoSuchProcess, psutil.AccessDenied, OSError):
        return False
