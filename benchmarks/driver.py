"""Drives one peer's process, in that peer's environment."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import signal
from contextlib import suppress
from typing import Any

from .environments import last_line, python_of
from .errors import PeerFailed
from .places import ROOT, cache

_numbers = itertools.count(1)

ANSWER_TIMEOUT = 120.0
"""Seconds after which a peer that doesn't answer counts as hanging."""


class Driver:
    """A peer's process; ``ask`` gives it an order and returns what it answers."""

    def __init__(self, peer: str, process: asyncio.subprocess.Process, log: str) -> None:
        self.peer = peer
        self._process = process
        self._log = cache("logs", log)
        self._orders = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[Any]] = {}
        self._reader = asyncio.create_task(self._read())
        self.about: dict[str, Any] = {}

    @classmethod
    async def start(cls, peer: str) -> Driver:
        """Start the peer's program.

        :raises PeerFailed: if its environment cannot be made, or the program does not answer
        """
        python = await python_of(peer)
        log = f"{peer}-{os.getpid()}-{next(_numbers)}.log"
        environment = {
            name: value for name, value in os.environ.items() if not name.startswith(("PG", "DUETIME_", "DATABASE_URL"))
        }
        with cache("logs", log).open("wb") as out:
            process = await asyncio.create_subprocess_exec(
                python,
                "-m",
                "benchmarks.adapters",
                peer,
                cwd=ROOT,
                env=environment | {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"},
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=out,
                limit=2**26,
                start_new_session=True,  # a Ctrl-C ends the run, and the run ends them
            )
        driver = cls(peer, process, log)
        try:
            driver.about = await driver.ask("hello", timeout=60)
        except BaseException:
            await driver.end()
            raise
        return driver

    async def ask(self, do: str, *, timeout: float = ANSWER_TIMEOUT, **arguments: Any) -> Any:
        """Give an order and return the answer.

        :param timeout: seconds to wait for it
        :raises PeerFailed: if the peer answers with an error, hangs, or has ended
        """
        number = next(self._orders)
        answer = self._waiting[number] = asyncio.get_running_loop().create_future()
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps({"id": number, "do": do, **arguments}).encode() + b"\n")
            await self._process.stdin.drain()
            return await asyncio.wait_for(answer, timeout)
        except TimeoutError:
            raise PeerFailed(f"hangs: no answer to {do!r} after {timeout:g} s") from None
        except OSError:
            raise PeerFailed(self._ended()) from None
        finally:
            self._waiting.pop(number, None)

    def _ended(self) -> str:
        return f"its process ended: {last_line(self._log)}"

    async def _read(self) -> None:
        assert self._process.stdout is not None
        async for line in self._process.stdout:
            answer = json.loads(line)
            waiting = self._waiting.get(answer["id"])
            if waiting is None or waiting.done():
                continue
            if "error" in answer:
                waiting.set_exception(PeerFailed(answer["error"][:300]))
            else:
                waiting.set_result(answer["result"])
        for waiting in self._waiting.values():
            if not waiting.done():
                waiting.set_exception(PeerFailed(self._ended()))

    @property
    def pid(self) -> int:
        """The process's id."""
        return self._process.pid

    async def kill(self) -> None:
        """Kill the process and those that it has started, as a crash of the machine would: nobody is asked."""
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        await self._process.wait()

    async def end(self) -> None:
        """End the process: asked first, then killed."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        try:
            await asyncio.wait_for(self._process.wait(), 5)
        except TimeoutError:
            self._process.kill()
            await self._process.wait()
        await self.kill()  # what it has started and left behind
        await asyncio.wait([self._reader])
