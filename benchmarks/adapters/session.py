"""The conversation between the driver and one peer: a JSON object a line, on standard input and output.

``{"id": 1, "do": "start", …}`` is answered by ``{"id": 1, "result": …}`` or ``{"id": 1, "error": "…"}``. Standard
library only, and uvicorn and FastAPI for ``serve``.
"""

from __future__ import annotations

import asyncio
import json
import os
import resource
import sys
import time
import traceback
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Self

from . import work
from .peer import Peer, Place


class Stalls:
    """Measures the longest time for which the event loop ran nothing else."""

    TICK = 0.001

    def __init__(self) -> None:
        self.longest = 0.0
        self._task: asyncio.Task[None] | None = None

    async def _watch(self) -> None:
        while True:
            before = time.monotonic()
            try:
                await asyncio.sleep(self.TICK)
            finally:  # the stall that is under way when the watch ends counts as well
                self.longest = max(self.longest, time.monotonic() - before - self.TICK)

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._watch())
        await asyncio.sleep(0)
        return self

    async def __aexit__(self, *_exc_info: object) -> None:
        assert self._task is not None
        self._task.cancel()
        await asyncio.wait([self._task])


def descendants(pid: int) -> Iterator[int]:
    """Yield the processes that a process has started, and those that they have: the workers of some peers."""
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in map(int, children.read_text().split()):
            yield child
            yield from descendants(child)


def cpu_of(pid: int) -> float:
    """Return the CPU seconds of a process; the kernel counts them in steps of 10 ms."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def memory_of(pid: int) -> float:
    """Return the MiB of a process that are in memory."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * resource.getpagesize() / 2**20


class Session:
    """Runs one peer on one event loop."""

    def __init__(self, adapter: type[Peer]) -> None:
        self._adapter = adapter
        self._peer: Peer | None = None
        self._serving: asyncio.Task[None] | None = None
        # The peer's own prints must not get between the lines.
        self._out = os.fdopen(os.dup(1), "w", buffering=1)
        os.dup2(2, 1)

    def run(self) -> None:
        """Answer until standard input ends."""
        asyncio.run(self._run())

    async def _run(self) -> None:
        reader = asyncio.StreamReader(limit=2**26)
        loop = asyncio.get_running_loop()
        await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
        while line := await reader.readline():
            order = json.loads(line)
            answer: dict[str, Any] = {"id": order.pop("id")}
            try:
                answer["result"] = await getattr(self, f"do_{order.pop('do')}")(**order)
            except Exception as exc:
                traceback.print_exc()
                answer["error"] = f"{type(exc).__name__}: {exc}"
            self._say(answer)
        # What a peer has not closed by now is closed by the end of this process.
        os._exit(0)

    def _say(self, answer: dict[str, Any]) -> None:
        self._out.write(json.dumps(answer) + "\n")
        self._out.flush()

    @property
    def peer(self) -> Peer:
        """The peer, once it was told where its database is."""
        assert self._peer is not None
        return self._peer

    async def do_hello(self) -> dict[str, Any]:
        versions = {}
        for package in self._adapter.packages:
            try:
                versions[package] = version(package)
            except PackageNotFoundError:
                versions[package] = "not installed"
        return {
            "versions": versions,
            "python": sys.version.split()[0],
            "pending": self._adapter.pending,
            "adds_while_running": self._adapter.adds_while_running,
            "registered": self._adapter.registered,
            "multiply": self._adapter.multiply,
            "starts_nothing": self._adapter.starts_nothing,
        }

    async def do_journal(self, path: str) -> None:
        """Keep what runs in a file too, which outlives this process."""
        work.keep(path)

    async def do_place(self, variant: str, **place: Any) -> None:
        self._peer = self._adapter(Place(**place), variant)

    async def do_install(self) -> None:
        await self.peer.install()

    async def do_open(self) -> None:
        await self.peer.open()

    async def do_close(self) -> None:
        await self.peer.close()

    async def do_start(self) -> None:
        await self.peer.start()

    async def do_add(self, n: int, callers: int, due: float, prefix: str) -> dict[str, float]:
        """Store one-offs; ``callers`` 0 is in bulk."""
        items = [(f"{prefix}{i}", due) for i in range(n)]
        async with Stalls() as stalls:
            began = time.perf_counter()
            if callers == 0:
                await self.peer.add_many(items)
            else:
                await self.peer.add_by(callers, items)
            seconds = time.perf_counter() - began
        return {"seconds": seconds, "stall": stalls.longest}

    async def do_add_for(self, seconds: float, callers: int, due: float, prefix: str) -> dict[str, float]:
        """Store one-offs for that long; return how many there were."""
        stored = 0

        async def caller(number: int) -> None:
            nonlocal stored
            i = 0
            while time.perf_counter() < until:
                await self.peer.add(f"{prefix}{number}-{i}", due)
                i += 1
                stored += 1
                await asyncio.sleep(0)  # a plain function would keep the other callers waiting for ever

        async with Stalls() as stalls:
            began = time.perf_counter()
            until = began + seconds
            await asyncio.gather(*(caller(number) for number in range(callers)))
            took = time.perf_counter() - began
        return {"seconds": took, "n": stored, "stall": stalls.longest}

    async def do_store(self, items: list[tuple[str, float]]) -> float:
        """Store one-offs with due times of their own, the fastest way; return when that was done (Unix time)."""
        await self.peer.add_many([(key, due) for key, due in items])
        return time.time()

    async def do_ran(self) -> int:
        return len(self.peer.ran())

    async def do_await(self, n: int, until: float) -> int:
        """Wait until ``n`` jobs have run here, or until that Unix time."""
        while len(self.peer.ran()) < n and time.time() < until:
            await asyncio.sleep(0.005)
        return len(self.peer.ran())

    async def do_take(self) -> list[work.Run]:
        """Return what ran, and forget it."""
        ran = self.peer.ran()
        taken, ran[:] = list(ran), []
        return taken

    async def do_usage(self) -> dict[str, float]:
        used = resource.getrusage(resource.RUSAGE_SELF)
        children = list(descendants(os.getpid()))
        return {
            "cpu": used.ru_utime + used.ru_stime + sum(map(cpu_of, children)),
            "memory": sum(map(memory_of, (os.getpid(), *children))),
        }

    async def do_page(self) -> float:
        began = time.perf_counter()
        await self.peer.page()
        return time.perf_counter() - began

    async def do_load(self, schedules: int) -> None:
        """Do what happens before ``serve`` begins to count: the imports, and what the application's module declares."""
        import fastapi
        import uvicorn.lifespan.on
        import uvicorn.loops.asyncio
        import uvicorn.protocols.http.h11_impl  # noqa: F401

        _ = fastapi.FastAPI
        self.peer.declare(schedules)

    async def do_serve(self, port: int) -> dict[str, float]:
        """Start a web application with the peer in its lifespan; return what starting did to it, once it is ready."""
        import uvicorn
        from fastapi import FastAPI

        ready: asyncio.Future[float] = asyncio.get_running_loop().create_future()

        async def rest() -> None:
            try:
                await self.peer.register_in_background()
            except Exception as exc:
                ready.set_exception(exc)
            else:
                ready.set_result(time.monotonic())

        @asynccontextmanager
        async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
            await self.peer.start_registering()
            registering = asyncio.create_task(rest())
            yield
            registering.cancel()

        app = FastAPI(lifespan=lifespan)

        @app.get("/health/live")
        async def live() -> dict[str, str]:
            return {"status": "live"}

        config = uvicorn.Config(app, host="127.0.0.1", port=port, log_level="warning", http="h11", loop="none")
        server = uvicorn.Server(config)
        async with Stalls() as stalls:
            began = time.monotonic()
            self._serving = asyncio.create_task(server.serve())
            done, _ = await asyncio.wait([ready, self._serving], return_when=asyncio.FIRST_COMPLETED)
            if ready not in done:
                raise RuntimeError("the application did not start; its log has the reason")
            ready_at = ready.result()
        return {"began": began, "ready": ready_at, "stall": stalls.longest}
