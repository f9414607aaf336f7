"""A node stops in time, whatever its jobs and the database do, and what did not end is run again."""

from __future__ import annotations

import asyncio
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from duetime import Duetime, Settings
from duetime.local import LocalDatabase
from duetime.settings import DatabaseUrl

from .end_to_end.conftest import new_server as new_server  # a fixture, wanted here too
from .end_to_end.server import SERVE, Server
from .end_to_end.waiting import until
from .store.parts import tasks
from .waiting import eventually

NewServer = Callable[..., Server]

MARGIN = 1.0
"""Seconds that a stop may take beyond the drain time."""

BUSY = 1.5
"""Seconds more that a machine with other things to do may take, the start and end of the interpreter included."""

TASKS = """
import asyncio, threading, time
from pathlib import Path

from duetime import task


@task(name="wait")
async def wait(mark: str, seconds: float) -> None:
    Path(mark).touch()
    await asyncio.sleep(seconds)
    Path(f"{mark} ended").touch()


@task(name="hang_in_a_thread")
def hang_in_a_thread(mark: str) -> None:
    Path(mark).touch()
    threading.Event().wait()


@task(name="hang_in_threads_of_others")
async def hang_in_threads_of_others(mark: str) -> None:
    Path(mark).touch()
    threading.Thread(target=time.sleep, args=(3600,)).start()
    await asyncio.to_thread(time.sleep, 3600)


@task(name="swallow")
async def swallow(mark: str) -> None:
    Path(mark).touch()
    while True:
        try:
            await asyncio.sleep(3600)
        except BaseException:
            pass
"""
UNFINISHED = b"POST /api/schedules HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9999\r\n\r\n{"
PAST = {"type": "date", "run_at": "2020-01-01T00:00:00Z"}


@pytest.fixture
def start(new_server: NewServer, empty_database: DatabaseUrl) -> Callable[..., Server]:
    """Starts a server that has the tasks above."""

    def start(**settings: str) -> Server:
        server = new_server(
            *SERVE, "--tasks", "hanging", **{"DATABASE_URL": empty_database.text, "DUETIME_LOOK_AHEAD": "0", **settings}
        )
        (server.directory / "hanging.py").write_text(TASKS)
        server.start()
        server.wait_until_ready()
        return server

    return start


def begin(server: Server, task: str, **kwargs: Any) -> str:
    """Start a job that does not end by itself, and return its schedule's id."""
    mark = server.directory / f"{task}.began"
    added = server.add({"task": task, "kwargs": {"mark": str(mark), **kwargs}, "trigger": PAST})
    until(mark.exists, f"{task} to begin")
    return str(added["id"])


def stops_within(server: Server, seconds: float, *signals: signal.Signals) -> None:
    """Send the signals, and expect the process to end in time."""
    began = time.monotonic()
    server.send(signals[0])
    for each in signals[1:]:
        until(lambda: "Shutting down" in server.log, "the stop to begin")  # two signals at once may arrive as one
        server.send(each)
    assert server.wait_until_ended(within=seconds + 20) == 0
    took = time.monotonic() - began
    assert took < seconds, f"{took:.2f} s\n{server.log}"


def goes_back_and_is_counted(server: Server, schedule_id: str) -> None:
    """Expect that the job waits in the queue for its second attempt, as a node sees it that runs no jobs."""
    server.environment["DUETIME_ROLE"] = "scheduler"
    server.start()
    server.wait_until_ready()
    [run] = server.runs(schedule_id)
    assert (run["outcome"], run["attempt"]) == ("cancelled", 1)
    [job] = server.everything("/api/jobs")
    assert (job["schedule_id"], job["state"], job["attempt"]) == (schedule_id, "queued", 1)


@pytest.mark.parametrize("task", ["wait", "hang_in_a_thread", "hang_in_threads_of_others", "swallow"])
def test_a_stop_takes_the_drain_time_and_a_second_and_gives_back_what_has_not_ended(
    start: Callable[..., Server], task: str
) -> None:
    server = start(DUETIME_DRAIN_TIMEOUT="0.5")
    schedule_id = begin(server, task, **({"seconds": 3600} if task == "wait" else {}))
    stops_within(server, 0.5 + MARGIN + BUSY, signal.SIGTERM)
    goes_back_and_is_counted(server, schedule_id)


def test_jobs_are_drained_and_nothing_new_begins(start: Callable[..., Server]) -> None:
    server = start(DUETIME_DRAIN_TIMEOUT="20")
    schedule_id = begin(server, "wait", seconds=4)
    late = server.directory / "late"
    # A request is open while the server stops: nothing new begins although it has not been answered.
    with socket.create_connection(("127.0.0.1", server.client.base_url.port)) as open_one:
        open_one.sendall(UNFINISHED)
        soon = {"type": "interval", "seconds": 1}
        server.add({"task": "wait", "kwargs": {"mark": str(late), "seconds": 0}, "trigger": soon})
        server.send(signal.SIGTERM)
        until(lambda: "Shutting down" in server.log, "the stop to begin")
        late.unlink(missing_ok=True)
        until((server.directory / "wait.began ended").exists, "the job to end")
        assert not late.exists(), "no job has begun since"
    assert server.wait_until_ended(within=40) == 0
    server.environment["DUETIME_ROLE"] = "scheduler"
    server.start()
    server.wait_until_ready()
    assert [run["outcome"] for run in server.runs(schedule_id)] == ["success"]


@pytest.mark.parametrize(
    "signals", [(signal.SIGTERM, signal.SIGTERM), (signal.SIGINT, signal.SIGINT), (signal.SIGTERM, signal.SIGINT)]
)
def test_a_second_signal_cuts_the_stop_short(start: Callable[..., Server], signals: tuple[signal.Signals, ...]) -> None:
    server = start(DUETIME_DRAIN_TIMEOUT="600")
    schedule_id = begin(server, "wait", seconds=3600)
    with socket.create_connection(("127.0.0.1", server.client.base_url.port)) as open_one:
        open_one.sendall(UNFINISHED)
        stops_within(server, MARGIN + BUSY, *signals)
    goes_back_and_is_counted(server, schedule_id)


def test_a_stop_takes_no_longer_when_the_database_is_gone(start: Callable[..., Server], tmp_path: Path) -> None:
    local = LocalDatabase(tmp_path / "own")
    url = asyncio.run(local.start())
    try:
        server = start(DATABASE_URL=url.text, DUETIME_DRAIN_TIMEOUT="0.5")
        begin(server, "wait", seconds=3600)
    finally:
        asyncio.run(local.stop())
    until(lambda: server.get("/health/ready").status_code == 503, "the outage to be seen")
    stops_within(server, 0.5 + MARGIN + BUSY, signal.SIGTERM)


PROGRAM = """
import asyncio, sys, threading
from duetime import Duetime, Settings, TaskRegistry

registry = TaskRegistry()


def hang(): threading.Event().wait()


async def swallow():
    while True:
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            pass


async def main():
    for function in (hang, swallow):
        registry.add(function, name=function.__name__)
    async with Duetime(Settings(database_url=sys.argv[1], drain_timeout=0.2), registry=registry) as duetime:
        for function in (hang, swallow):
            await duetime.scheduler.add_job(function.__name__)
        while len(duetime.scheduler._running_jobs) < 2:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.1)

asyncio.run(main())
print("ended")
"""


async def test_a_program_of_one_s_own_ends_although_its_jobs_do_not(database: DatabaseUrl) -> None:
    program = await asyncio.create_subprocess_exec(
        sys.executable, "-c", PROGRAM, database.text, stdout=asyncio.subprocess.PIPE
    )
    try:
        async with asyncio.timeout(20):
            output, _ = await program.communicate()
    finally:
        if program.returncode is None:
            program.kill()
            await program.wait()
    assert output.decode().strip() == "ended"


# -- a database that does not answer any more --------------------------------------------------------------------------


@contextmanager
def black_hole(database: DatabaseUrl) -> Iterator[tuple[DatabaseUrl, Callable[[], None]]]:
    """Yield an address where the database answers until the function is called, and then nobody does."""
    listener = socket.create_server(("127.0.0.1", 0))
    ends: list[socket.socket] = [listener]
    is_dark = threading.Event()

    def connect() -> socket.socket:
        if database.host and database.host.startswith("/"):
            there = socket.socket(socket.AF_UNIX)
            there.connect(f"{database.host}/.s.PGSQL.{database.port or 5432}")
            return there
        return socket.create_connection((database.host or "127.0.0.1", database.port or 5432))

    def pass_on(source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                if not is_dark.is_set():
                    sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)

    def accept() -> None:
        with suppress(OSError):
            while True:
                here, _ = listener.accept()
                there = connect()
                ends.extend((here, there))
                for pair in ((here, there), (there, here)):
                    threading.Thread(target=pass_on, args=pair, daemon=True).start()

    accepting = threading.Thread(target=accept, daemon=True)
    accepting.start()
    try:
        yield replace(database, host="127.0.0.1", port=listener.getsockname()[1]), is_dark.set
    finally:
        for end in ends:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()
        accepting.join()


async def test_a_stop_takes_no_longer_when_the_database_says_nothing(
    database: DatabaseUrl, caplog: pytest.LogCaptureFixture
) -> None:
    began = asyncio.Event()

    async def work() -> None:
        began.set()
        await asyncio.sleep(3600)

    loop = asyncio.get_running_loop()
    with black_hole(database) as (address, go_dark):
        duetime = Duetime(Settings(database_url=address.text, drain_timeout=0.3), registry=tasks(work))
        async with duetime:
            await duetime.scheduler.configure_task("work")
            await duetime.scheduler.add_job("work")
            await eventually(began.is_set)
            go_dark()
            waiting = asyncio.create_task(duetime.scheduler.get_schedules())
            await asyncio.sleep(0)
            stopping = loop.time()
        assert loop.time() - stopping < 0.3 + MARGIN + BUSY
        await asyncio.wait([waiting])
        assert isinstance(waiting.exception(), Exception)
    assert "did not stop in time" not in caplog.text


async def test_an_application_that_is_cancelled_does_not_wait_for_its_jobs(database: DatabaseUrl) -> None:
    began = asyncio.Event()

    async def work() -> None:
        began.set()
        await asyncio.sleep(3600)

    async def application() -> None:
        duetime = Duetime(Settings(database_url=database.text, drain_timeout=600), registry=tasks(work))
        async with duetime:
            await duetime.scheduler.configure_task("work")
            await duetime.scheduler.add_job("work")
            await asyncio.Event().wait()

    running = asyncio.create_task(application())
    await eventually(began.is_set)
    running.cancel()
    await asyncio.wait([running], timeout=20)
    assert running.cancelled()


async def test_the_drain_begins_when_it_is_asked_for_and_the_end_waits_for_the_rest(database: DatabaseUrl) -> None:
    began, let_go = asyncio.Event(), asyncio.Event()

    async def work() -> None:
        began.set()
        await let_go.wait()

    duetime = Duetime(Settings(database_url=database.text, drain_timeout=600), registry=tasks(work))
    async with duetime:
        await duetime.scheduler.configure_task("work")
        first = await duetime.scheduler.add_job("work")
        await eventually(began.is_set)
        duetime.begin_stop()
        duetime.begin_stop()
        second = await duetime.scheduler.add_job("work")
        let_go.set()
        await eventually(lambda: not duetime._scheduler._running_jobs)
        assert [job.id for job in await duetime.scheduler.get_jobs()] == [second]
    assert first != second
