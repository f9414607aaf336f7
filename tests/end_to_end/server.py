"""Real server processes: started, watched through HTTP and their log, killed, and gone afterwards whatever happens."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import psutil

from .waiting import until

SERVE = ("duetime", "serve")
"""What ``python -m`` is given: the product's own server."""

ORDINARY = {
    "PORT": "0",
    "DUETIME_HTTP_ALLOW_PRIVATE": "true",
    "PYTHONWARNINGS": "default::ResourceWarning",
    "TZ": "Asia/Kathmandu",  # local time must not matter, so it is not UTC
}
"""Settings of every server here, unless a test has others."""

# Lines that no server may ever write, whatever a test does to it.
_ALARMS = re.compile(
    r"Exception in ASGI application|Exception in callback|exception was never retrieved|was never awaited"
    r"|The scheduler crashed|did not stop cleanly|ResourceWarning|Unclosed|internal_error|Unhandled exception"
)


class Server:
    """One server and its data directory; it can be started again after it has ended.

    :param directory: working directory, which also holds the log and, unless there is a DATABASE_URL, the embedded
        PostgreSQL
    :param command: module and arguments for ``python -m``
    :param environment: settings; nothing of this process's own settings is inherited
    """

    def __init__(self, directory: Path, *command: str, environment: Mapping[str, str] | None = None) -> None:
        self.directory = directory
        self.command = command or SERVE
        self.environment = dict(environment or {})
        self.log_file = directory / "server.log"
        self._process: subprocess.Popen[bytes] | None = None
        self._log_start = 0
        self._client: httpx.Client | None = None

    # -- the process ------------------------------------------------------------------------------------------------

    def launch(self) -> None:
        """Start the process, and return before it does anything."""
        assert self._process is None
        self.directory.mkdir(parents=True, exist_ok=True)
        inherited = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("DUETIME_", "PG")) and name not in ("DATABASE_URL", "PORT")
        }
        with self.log_file.open("ab") as log:
            self._log_start = log.tell()
            self._process = subprocess.Popen(
                [sys.executable, "-m", *self.command],
                cwd=self.directory,
                env=inherited | ORDINARY | self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # a process group of its own, which can be ended as a whole
            )

    def start(self) -> None:
        """Start the process and return when it answers HTTP; its database may still be on the way."""
        self.launch()
        self.wait_until_live()

    def wait_until_live(self) -> None:
        """Return when the process answers HTTP."""
        port = until(self._port, "the server to listen")
        self._client = self.new_client(f"http://127.0.0.1:{port}")
        until(self._answers, "the server to answer")

    def new_client(self, address: str = "", **options: Any) -> httpx.Client:
        """Return a client of the server, to be closed by the caller; no answer to it may be an internal error."""
        return httpx.Client(
            base_url=address or self.client.base_url,
            timeout=60,
            trust_env=False,
            event_hooks={"response": [self._refuse_internal_error]},
            **options,
        )

    def _refuse_internal_error(self, response: httpx.Response) -> None:
        if response.status_code == 500:
            response.read()
            raise AssertionError(f"{response.request.method} {response.url}: {response.text}\n{self.log[-8000:]}")

    def wait_until_ready(self) -> None:
        """Return when the scheduler runs and the database answers."""
        until(lambda: self.get("/health/ready").status_code == 200, "the server to be ready")

    def kill(self) -> None:
        """Do ``kill -9``, to the server process and to nothing else."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()
        self._forget()

    def send(self, signal_number: signal.Signals) -> None:
        """Send the process a signal."""
        assert self._process is not None
        self._process.send_signal(signal_number)

    def wait_until_ended(self, *, within: float = 20) -> int:
        """Return the exit status of a process that was asked to end."""
        assert self._process is not None
        try:
            status = self._process.wait(within)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"expected the server to end within {within:g} s\n{self.log}") from None
        self._forget()
        return status

    def stop(self) -> int:
        """Ask the process to end, as a platform does, and return its exit status."""
        self.send(signal.SIGTERM)
        return self.wait_until_ended()

    def close(self) -> None:
        """End the process if it is still there, with all that it has started."""
        if self._process is not None:
            if self._process.poll() is None:
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._forget()
        wait_until_nothing_runs_in(self.directory)

    def _forget(self) -> None:
        self._process = None
        if self._client is not None:
            self._client.close()
            self._client = None

    @property
    def is_up(self) -> bool:
        """Whether the process runs."""
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        """The process's id."""
        assert self._process is not None
        return self._process.pid

    # -- the log ------------------------------------------------------------------------------------------------------

    @property
    def log(self) -> str:
        """What the process has written since its last start."""
        with self.log_file.open("rb") as log:
            log.seek(self._log_start)
            return log.read().decode("utf-8", "replace")

    def alarms(self) -> list[str]:
        """Return the lines of all its logs that tell of a bug in the server."""
        text = self.log_file.read_text(errors="replace") if self.log_file.exists() else ""
        return [line for line in text.splitlines() if _ALARMS.search(line)]

    def _port(self) -> int | None:
        if not self.is_up:
            raise AssertionError(f"expected the server to start, and it ended:\n{self.log}")
        found = re.search(r"http://127\.0\.0\.1:(\d+)", self.log)
        return int(found[1]) if found else None

    # -- HTTP ---------------------------------------------------------------------------------------------------------

    @property
    def client(self) -> httpx.Client:
        """The connection to the server; ``/api`` is part of each path."""
        assert self._client is not None, "expected a server that was started"
        return self._client

    def _answers(self) -> bool:
        with suppress(httpx.TransportError):
            return self.get("/health/live").status_code in (200, 404)
        return False

    def get(self, path: str, **params: Any) -> httpx.Response:
        return self.client.get(path, params=params or None)

    def post(self, path: str, body: Any = None) -> httpx.Response:
        return self.client.post(path) if body is None else self.client.post(path, json=body)

    def read(self, path: str, **params: Any) -> Any:
        """Return the document at a path that must be there."""
        response = self.get(path, **params)
        assert response.status_code == 200, response.text
        return response.json()

    def add(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Add a schedule that must be accepted, and return it."""
        response = self.post("/api/schedules", body)
        assert response.status_code == 201, response.text
        added: dict[str, Any] = response.json()
        return added

    def everything(self, path: str, **params: Any) -> list[dict[str, Any]]:
        """Return the items of all pages of a list."""
        items: list[dict[str, Any]] = []
        after: str | None = None
        while True:
            page = self.read(path, **params, limit=200, **({"after": after} if after else {}))
            items += page["items"]
            after = page["next"]
            if after is None:
                return items

    def schedule(self, schedule_id: str) -> dict[str, Any]:
        found: dict[str, Any] = self.read(f"/api/schedules/{quote(schedule_id, safe='')}")
        return found

    def fires(self, schedule_id: str) -> list[dict[str, Any]]:
        """Return the ledger of one schedule, oldest fire first."""
        return sorted(self.everything("/api/fires", schedule_id=schedule_id), key=fire_time)

    def runs(self, schedule_id: str) -> list[dict[str, Any]]:
        """Return the runs of one schedule, oldest first."""
        return self.everything("/api/runs", schedule_id=schedule_id)[::-1]


def fire_time(fire: Mapping[str, Any]) -> datetime:
    """Return the due instant of a fire."""
    return datetime.fromisoformat(fire["fire_time"])


def processes_in(directory: Path) -> list[psutil.Process]:
    """Return the processes that work in a directory or name it in their command line: servers, PostgreSQL, keepers."""
    return [process for process in psutil.process_iter() if _works_in(process, str(directory.resolve()))]


def _works_in(process: psutil.Process, directory: str) -> bool:
    try:
        if process.pid == os.getpid() or process.status() == psutil.STATUS_ZOMBIE:
            return False
        words = process.cmdline()
        with suppress(psutil.AccessDenied):  # of other users' processes, which are not ours
            words = [process.cwd(), *words]
        return any(directory in word for word in words)
    except psutil.Error:
        return False


def wait_until_nothing_runs_in(directory: Path) -> None:
    """Return when no process uses the directory any more; the embedded PostgreSQL follows its last user."""
    until(lambda: not processes_in(directory), f"the processes in {directory} to end")


@contextmanager
def closing(servers: Iterable[Server]) -> Iterator[None]:
    """End all the servers at the end of the block, and fail if one of them has logged what it never may."""
    try:
        yield
    finally:
        with ExitStack() as stack:  # each of them, even if one does not end
            for server in servers:
                stack.callback(server.close)
    alarms = [line for server in servers for line in server.alarms()]
    assert not alarms, "\n".join(alarms)
