"""The work of every peer's jobs: note when they ran. In a module of its own, so that every peer finds it by name.

Jobs whose key begins with ``held`` go on after that until :data:`HELD` seconds after their instant: they are what a
kill interrupts. With a journal all of it is in a file too, for what happens in processes that are killed or aren't
the driver's.
"""

from __future__ import annotations

import asyncio
import json
import os
import time

Run = tuple[str, float, float]
"""``(key, due, ran)``; Unix times in seconds."""

RAN: list[Run] = []
"""Each run in this process."""

HELD = 6.0

_journal: int | None = None
_path: str | None = None


def keep(path: str) -> None:
    """Write a line to this file, too, when a job begins, and when it ends."""
    global _journal, _path
    _path = path
    _journal = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)


def journal() -> str | None:
    """Return the file of the journal."""
    return _path


def write(what: str, key: str, due: float) -> None:
    """Write a line to the journal, if there is one. Lines of several processes don't mix."""
    if _journal is not None:
        os.write(_journal, json.dumps([what, key, due, time.time()]).encode() + b"\n")


def _begin(key: str, due: float) -> float:
    """Note that the job of that key runs now; return for how long it has to go on."""
    RAN.append((key, due, time.time()))
    write("began", key, due)
    return max(0.0, due + HELD - time.time()) if key.startswith("held") else 0.0


async def note(key: str, due: float) -> None:
    """Run the job of that key."""
    if rest := _begin(key, due):
        await asyncio.sleep(rest)
    write("ended", key, due)


def note_now(key: str, due: float) -> None:
    """Do the same for peers that call plain functions."""
    if rest := _begin(key, due):
        time.sleep(rest)
    write("ended", key, due)


async def nothing() -> None:
    """The body of the recurring schedules of ``startup``, which never come due while it is measured."""
