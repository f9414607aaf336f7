"""A node in a process of its own, with tasks that write down what they do; started by a test.

Takes one argument, an order as JSON:

``settings``   keywords of :class:`duetime.Settings`
``diary``      file that the tasks write into, one line of JSON for each beginning and end
``skew``       seconds that this process's clock is wrong by

The diary is a file, and not a table, because a line that was written stays whatever becomes of the process, the network
or the database. It has the machine's time, also where the node's clock is wrong.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from apscheduler import current_job
from time_machine import escape_hatch, travel

from duetime import Duetime, Retry, Settings, current_attempt, task
from duetime.errors import StoreUnavailable


class Diary:
    """What the tasks of this process do, for the test to read."""

    def __init__(self, path: str, node: str, real_time: Callable[[], float]) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        self._node = node
        self._real_time = real_time

    def write(self, what: str, **values: Any) -> None:
        """Write one line, whole, whatever happens next."""
        line = {"what": what, "node": self._node, "pid": os.getpid(), "at": self._real_time(), **values}
        os.write(self._file, json.dumps(line).encode() + b"\n")

    def job(self, what: str, **values: Any) -> None:
        """Write what the job at hand does."""
        job = current_job.get()
        due = job.scheduled_fire_time
        self.write(
            what,
            task=job.task_id,
            job=str(job.id),
            schedule=job.schedule_id,
            due=None if due is None else due.timestamp(),
            fire_time=None if due is None else (due - job.jitter).timestamp(),
            **values,
        )


async def work(seconds: float = 0, until: str | None = None) -> None:
    """Begin, and end after a time, or when a file is there."""
    diary.job("began")
    try:
        await asyncio.sleep(seconds)
        while until is not None and not Path(until).exists():  # noqa: ASYNC110 - another process makes it
            await asyncio.sleep(0.01)
    except asyncio.CancelledError:
        diary.job("cancelled")
        raise
    diary.job("ended")


@task(name="work", overlap="allow")
async def unlimited(seconds: float = 0, until: str | None = None) -> None:
    """Work, as often at once as is asked for."""
    await work(seconds, until)


@task(name="alone")
async def alone(seconds: float = 0, until: str | None = None) -> None:
    """Work, but not while the last job of the same schedule does."""
    await work(seconds, until)


@task(name="once", overlap="allow", on_crash="abandon")
async def once(seconds: float = 0, until: str | None = None) -> None:
    """Work, at most once."""
    await work(seconds, until)


@task(name="in_turn", overlap="buffer_all")
async def in_turn(seconds: float = 0, until: str | None = None) -> None:
    """Work, after the last job of the same schedule has ended."""
    await work(seconds, until)


@task(name="in_turn_once", overlap="buffer_all", on_crash="abandon")
async def in_turn_once(seconds: float = 0, until: str | None = None) -> None:
    """Work, after the last job of the same schedule has ended, at most once."""
    await work(seconds, until)


@task(name="one", overlap="allow", max_running_jobs=1)
async def one(seconds: float = 0, until: str | None = None) -> None:
    """Work, one at a time over all nodes."""
    await work(seconds, until)


@task(name="three", overlap="allow", max_running_jobs=3)
async def three(seconds: float = 0, until: str | None = None) -> None:
    """Work, three at a time over all nodes."""
    await work(seconds, until)


@task(name="unlucky", overlap="allow", retry=Retry(max_attempts=3, backoff=0.2, jitter=0))
async def unlucky() -> None:
    """Fail twice, and succeed with the third attempt."""
    diary.job("began")
    seen = Path(order["diary"]).parent / f"attempts-{current_job.get().id}"
    with seen.open("a") as attempts:
        attempts.write("x")
    if seen.stat().st_size < 3:
        diary.job("failed")
        raise RuntimeError("not yet")
    diary.job("ended")


@task(name="attempts", overlap="allow")
async def attempts(until: str) -> None:
    """Write down what is known of the attempt, and end when a file is there."""
    attempt = current_attempt()
    diary.job("began", number=attempt.number, last_error=attempt.last_error)
    while not Path(until).exists():  # noqa: ASYNC110 - another process makes it
        await asyncio.sleep(0.01)


@task(name="thread", overlap="allow")
def in_thread(seconds: float = 0) -> None:
    """Work in a thread."""
    diary.job("began")
    time.sleep(seconds)
    diary.job("ended")


async def main() -> None:
    """Run the node until it is told to end."""
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    duetime = Duetime(Settings(**order["settings"]))
    async with duetime:
        scheduler = duetime.scheduler
        for each in (unlimited, alone, once, in_turn, in_turn_once, one, three, unlucky, attempts, in_thread):
            while True:
                with suppress(StoreUnavailable):  # the database may be away at that moment, and for longer than a call
                    await scheduler.configure_task(each)
                    break
        await duetime._broker.wait_listening()
        diary.write("ready")
        await stop.wait()


if __name__ == "__main__":
    order = json.loads(sys.argv[1])
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    real_time: Callable[[], float] = time.time
    if order["skew"]:
        travel(time.time() + order["skew"], tick=True).start()
        real_time = escape_hatch.time.time
    diary = Diary(order["diary"], order["settings"]["node_name"], real_time)
    asyncio.run(main())
