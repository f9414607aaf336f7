"""The keeper: a small process that runs the embedded PostgreSQL for as long as anybody uses it.

It is PostgreSQL's parent, in a session of its own, so a Ctrl-C or SIGTERM to the application's process
group reaches neither. Every user of the server holds a shared lock on one file; the keeper waits for the
exclusive one. The kernel releases the locks of a process however it ends, so the server stops after a
``kill -9`` of its last user as well. A server that crashes is started again, in the same place.

Run by path in a bare interpreter (``python -I -S keeper.py``, its order on standard input), which starts
fast and stays small: nothing but the standard library may be imported here.
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

SOCKET_PORT = 5432
READY = "ready"
FAILED = "failed"

FAST_SHUTDOWN = signal.SIGINT
IMMEDIATE_SHUTDOWN = signal.SIGQUIT
SHUTDOWN_STEPS = ((FAST_SHUTDOWN, 30.0), (IMMEDIATE_SHUTDOWN, 5.0), (signal.SIGKILL, 5.0))
"""Signals to PostgreSQL and the seconds each gets. After the second one, the next start replays the log."""

_POLL = 0.01
_LONGEST_BACKOFF = 5.0


@dataclass(frozen=True)
class Order:
    """What the keeper is to run; travels as JSON on its standard input.

    :ivar command: PostgreSQL's command line
    :ivar sync_command: run once, beside the started server, to bring a new cluster to disk; empty for none
    :ivar identity: ``user``, ``group`` and ``extra_groups`` for the server; empty for the keeper's own
    :ivar start_timeout: seconds until a server that is not ready counts as failed
    """

    command: list[str]
    sync_command: list[str]
    environment: dict[str, str]
    identity: dict[str, Any]
    cluster: str
    socket_directory: str
    log: str
    users_lock: str
    keeper_lock: str
    start_timeout: float

    def to_json(self) -> str:
        return json.dumps(asdict(self))


@dataclass(frozen=True)
class PidFile:
    """PostgreSQL's own note on its running server, ``postmaster.pid``."""

    pid: int
    socket_directory: str
    is_ready: bool

    @classmethod
    def read(cls, cluster: Path) -> PidFile | None:
        """Return the note, or None when there is none or it is still being written."""
        try:
            lines = [line.strip() for line in (cluster / "postmaster.pid").read_text().splitlines()]
            return cls(pid=int(lines[0]), socket_directory=lines[4], is_ready=lines[7:8] == [READY])
        except (FileNotFoundError, ValueError, IndexError):
            return None


def remove_socket_directory(path: str) -> None:
    """Remove the directory of a server that is gone, and a socket that a crash left in it; nothing else."""
    with suppress(OSError):
        for name in (f".s.PGSQL.{SOCKET_PORT}", f".s.PGSQL.{SOCKET_PORT}.lock"):
            Path(path, name).unlink(missing_ok=True)
        Path(path).rmdir()


class Keeper:
    """Starts the server, reports, and stays until the server is stopped or nobody is left to use it."""

    def __init__(self, order: Order, report: int) -> None:
        self._order = order
        self._report = report
        self._abandoned = threading.Event()
        self._done = threading.Event()
        self._server: subprocess.Popen[bytes] | None = None
        self._sync: subprocess.Popen[bytes] | None = None

    def run(self) -> None:
        own_lock = os.open(self._order.keeper_lock, os.O_RDWR)
        fcntl.flock(own_lock, fcntl.LOCK_EX)  # held until this process ends: "the keeper lives"
        threading.Thread(target=self._stop_when_abandoned, daemon=True).start()
        try:
            self._serve()
            self._end_sync()
        finally:
            remove_socket_directory(self._order.socket_directory)
            self._done.set()

    def _serve(self) -> None:
        backoff = 0.1
        reported = False
        while True:
            started = time.monotonic()
            self._server = server = self._start()
            if self._abandoned.is_set():
                server.send_signal(FAST_SHUTDOWN)
            is_ready = self._wait_until_ready(server)
            if not reported:
                self._tell(READY if is_ready else FAILED)
                reported = True
                if not is_ready:
                    server.wait()
                    return
                if self._order.sync_command:
                    self._sync = self._start_sync()
            status = server.wait()
            is_cluster = Path(self._order.cluster, "PG_VERSION").exists()
            if status == 0 or self._abandoned.is_set() or not is_cluster:
                return
            backoff = 0.1 if time.monotonic() - started > 60 else min(backoff * 2, _LONGEST_BACKOFF)
            if self._abandoned.wait(backoff):
                return

    def _start(self) -> subprocess.Popen[bytes]:
        with open(self._order.log, "ab") as log:
            return subprocess.Popen(  # noqa: S603 - our own command line
                self._order.command,
                cwd=self._order.cluster,
                env=self._order.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                **self._order.identity,
            )

    def _wait_until_ready(self, server: subprocess.Popen[bytes]) -> bool:
        deadline = time.monotonic() + self._order.start_timeout
        while server.poll() is None:
            note = PidFile.read(Path(self._order.cluster))
            if note and note.pid == server.pid and note.is_ready:
                return True
            if time.monotonic() > deadline:
                server.send_signal(IMMEDIATE_SHUTDOWN)
                return False
            time.sleep(_POLL)
        return False

    def _tell(self, word: str) -> None:
        with suppress(BrokenPipeError):  # the one who asked is gone; its lock is free, so the server stops
            os.write(self._report, word.encode())
        os.close(self._report)

    def _start_sync(self) -> subprocess.Popen[bytes]:
        return subprocess.Popen(  # noqa: S603 - our own command line
            self._order.sync_command,
            cwd=self._order.cluster,
            env=self._order.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            **self._order.identity,
        )

    def _end_sync(self) -> None:
        """End it, if a first run was shorter than it: the system writes the rest within half a minute."""
        if self._sync is not None:
            self._sync.kill()
            self._sync.wait()

    def _stop_when_abandoned(self) -> None:
        users = os.open(self._order.users_lock, os.O_RDWR)
        fcntl.flock(users, fcntl.LOCK_EX)  # held until this process ends: nobody joins a server that is going down
        self._abandoned.set()
        for step, seconds in SHUTDOWN_STEPS:
            if self._server is not None:
                self._server.send_signal(step)
            if self._done.wait(seconds):
                return


def main() -> None:
    """Leave the caller's session, then keep. The caller reads one word from standard output, then its end."""
    order = Order(**json.load(sys.stdin))
    report = os.dup(1)
    if os.fork():
        os._exit(0)  # the keeper is nobody's child, so nobody has to wait for it
    os.setsid()
    os.chdir("/")
    for signal_number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        # A handler, because PostgreSQL would inherit SIG_IGN. The keeper ends when its users do.
        signal.signal(signal_number, lambda *_: None)
    nowhere = os.open(os.devnull, os.O_RDWR)
    log = os.open(order.log, os.O_WRONLY | os.O_APPEND)
    for target, source in ((0, nowhere), (1, log), (2, log)):
        os.dup2(source, target)
    Keeper(order, report).run()


if __name__ == "__main__":
    main()
