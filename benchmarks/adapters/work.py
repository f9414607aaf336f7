"""The work of every peer's jobs: note when they ran. In a module of its own, so that every peer finds it by name."""

from __future__ import annotations

import time

RAN: list[tuple[str, float, float]] = []
"""``(key, due, ran)`` of each run in this process; Unix times in seconds."""


async def note(key: str, due: float) -> None:
    """Note that the job of that key runs now."""
    RAN.append((key, due, time.time()))


def note_now(key: str, due: float) -> None:
    """Do the same for peers that call plain functions."""
    RAN.append((key, due, time.time()))


async def nothing() -> None:
    """The body of the recurring schedules of ``startup``, which never come due while it is measured."""
