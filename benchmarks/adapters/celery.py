"""Celery on Redis: a worker of its own program (``celery worker``), with as many processes as there are cores.

Its jobs run in processes that the driver doesn't talk to, so what ran is read from the journal.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from celery import Celery
from celery.signals import worker_ready

from . import work
from .peer import Peer, moment

app = Celery("benchmark", broker=os.environ.get("BENCHMARK_BROKER"))
app.conf.broker_connection_retry_on_startup = True

if "BENCHMARK_JOURNAL" in os.environ:
    work.keep(os.environ["BENCHMARK_JOURNAL"])


@app.task(name="note", ignore_result=True)
def note(key: str, due: float) -> None:
    """Run the one-off."""
    work.note_now(key, due)


@worker_ready.connect  # type: ignore[untyped-decorator]
def ready(**_about: object) -> None:
    """Tell the adapter that the worker takes jobs."""
    work.write("ready", "", 0.0)


class Adapter(Peer):
    """Celery."""

    packages = ("celery", "kombu", "redis")
    pending = "return redis.call('llen', 'celery') + redis.call('hlen', 'unacked')"
    starts_nothing = (
        "its scheduler (`celery beat`) and its worker are programs of their own, nothing of it starts in an application"
    )

    async def install(self) -> None:
        """Nothing is needed."""

    async def open(self) -> None:
        app.conf.broker_url = self.place.redis_url
        self._worker: asyncio.subprocess.Process | None = None
        self._ran: list[work.Run] = []

    async def close(self) -> None:
        if self._worker is not None:
            self._worker.terminate()
            await self._worker.wait()

    async def add(self, key: str, due: float) -> None:
        note.apply_async((key, due), eta=moment(due))

    async def add_many(self, items: Sequence[tuple[str, float]]) -> None:
        await self.add_by(1, items)  # a plain function: callers cannot overlap

    async def start(self) -> None:
        asked = work.journal()
        path = asked or tempfile.mkstemp(prefix="journal-")[1]
        self._journal = Path(path).open(encoding="utf-8")  # noqa: ASYNC230, SIM115 - open as long as the worker runs
        self._journal.seek(0, os.SEEK_END)
        self._part, self._is_ready = "", False
        self._worker = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-m", "celery", "-A", __name__, "worker", "-n", f"worker{os.getpid()}@%h", "--loglevel", "WARNING"),
            env=os.environ | {"BENCHMARK_BROKER": self.place.redis_url, "BENCHMARK_JOURNAL": path},
            stdin=asyncio.subprocess.DEVNULL,
        )
        while not self._is_ready:
            if self._worker.returncode is not None:
                raise RuntimeError("its worker ended; the log has the reason")
            await asyncio.sleep(0.02)
            self.ran()
        if asked is None:
            os.unlink(path)  # all who write to it have it open

    def ran(self) -> list[work.Run]:
        *lines, self._part = (self._part + self._journal.read()).split("\n")
        for what, key, due, at in map(json.loads, lines):
            self._is_ready = self._is_ready or what == "ready"
            if what == "began":
                self._ran.append((key, due, at))
        return self._ran

    async def start_registering(self) -> None:
        raise NotImplementedError(self.starts_nothing)
