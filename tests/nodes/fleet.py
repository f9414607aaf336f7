"""Nodes in processes of their own: started, killed, stopped and woken; gone at the end, whatever happens."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from duetime.settings import DatabaseUrl

from ..waiting import WITHIN, eventually

ROOT = Path(__file__).parents[2]

# Lines that no node may ever write, whatever is done to it.
_ALARMS = re.compile(
    r"Exception in callback|exception was never retrieved|was never awaited|The scheduler crashed"
    r"|did not stop cleanly|ResourceWarning|Unclosed|Task was destroyed|internal error"
)


@dataclass
class NodeProcess:
    """One node, by its latest process."""

    name: str
    order: dict[str, Any]
    log: Path
    starts: int = 0
    is_stopped: bool = False
    _process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the process, and return before it does anything."""
        assert self._process is None
        self.starts += 1
        inherited = {k: v for k, v in os.environ.items() if not k.startswith(("DUETIME_", "PG", "DATABASE_URL"))}
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.nodes.program", json.dumps(self.order)],
                cwd=ROOT,
                env=inherited | {"PYTHONWARNINGS": "default::ResourceWarning"},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    @property
    def is_up(self) -> bool:
        """Whether the process is there; it may be stopped."""
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        """The process's id."""
        assert self._process is not None
        return self._process.pid

    def send(self, number: signal.Signals) -> None:
        """Send the process a signal."""
        assert self._process is not None
        self._process.send_signal(number)
        if number in (signal.SIGSTOP, signal.SIGCONT):
            self.is_stopped = number is signal.SIGSTOP

    def kill(self) -> None:
        """Do ``kill -9``."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()
        self._process = None
        self.is_stopped = False

    async def end(self) -> int:
        """Ask the process to end, and return its exit status."""
        process = self._process
        assert process is not None
        process.send_signal(signal.SIGTERM)
        try:
            status = await asyncio.to_thread(process.wait, WITHIN)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{self.name} did not end:\n{self.log.read_text()[-4000:]}") from None
        self._process = None
        return status


@dataclass
class Fleet:
    """Several nodes on one database, and what their tasks have written down."""

    database: DatabaseUrl
    directory: Path
    nodes: dict[str, NodeProcess] = field(default_factory=dict)
    # The diary as far as it has been read: a storm's is long, and this process also carries the nodes' traffic.
    _lines: list[dict[str, Any]] = field(default_factory=list)
    _read_to: int = 0

    def node(self, name: str, *, database: DatabaseUrl | None = None, skew: float = 0, **settings: Any) -> NodeProcess:
        """Return a node, not started.

        :param database: the way to the database, if not the direct one
        :param skew: seconds that the node's clock is wrong by
        """
        order = {
            "settings": {
                "database_url": (database or self.database).text,
                "node_name": name,
                # What a test waits for must come by a wake-up: the poll would be too late.
                "poll_interval": 60,
                **settings,
            },
            "diary": str(self.directory / "diary"),
            "skew": skew,
        }
        self.nodes[name] = NodeProcess(name, order, self.directory / f"{name}.log")
        return self.nodes[name]

    async def start(self, name: str, **options: Any) -> NodeProcess:
        """Start a new node, and return it when it is ready."""
        node = self.node(name, **options)
        node.start()
        await self.wait_until_ready(node)
        return node

    async def wait_until_ready(self, node: NodeProcess) -> None:
        """Return when the node's latest process is ready."""
        pid = node.pid

        def is_ready() -> bool:
            if not node.is_up:
                raise RuntimeError(f"{node.name} has ended:\n{node.log.read_text()[-4000:]}")
            return any(line["pid"] == pid for line in self.diary("ready"))

        await eventually(is_ready, within=2 * WITHIN)

    def diary(self, *kinds: str, **values: Any) -> list[dict[str, Any]]:
        """Return the lines of the diary of these kinds, with these values, in order."""
        path = self.directory / "diary"
        if not path.exists():
            return []
        with path.open("rb") as diary:
            diary.seek(self._read_to)
            written, _, _ = diary.read().rpartition(b"\n")
        if written:
            self._read_to += len(written) + 1
            self._lines += map(json.loads, written.splitlines())
        return [
            line
            for line in self._lines
            if line["what"] in kinds and all(line.get(name) == value for name, value in values.items())
        ]

    def alarms(self) -> list[str]:
        """Return the lines of the nodes' logs that tell of a bug."""
        found = []
        for node in self.nodes.values():
            text = node.log.read_text(errors="replace") if node.log.exists() else ""
            found += [f"{node.name}: {line}" for line in text.splitlines() if _ALARMS.search(line)]
        return found

    def close(self) -> None:
        """Kill what is still there."""
        for node in self.nodes.values():
            if node.is_up:
                node.kill()


@asynccontextmanager
async def fleet_on(database: DatabaseUrl, directory: Path) -> AsyncIterator[Fleet]:
    """Lend a fleet that is gone at the end of the block; fails if a node has logged what it never may."""
    fleet = Fleet(database, directory)
    try:
        yield fleet
    finally:
        fleet.close()
    assert not fleet.alarms(), "\n".join(fleet.alarms())
