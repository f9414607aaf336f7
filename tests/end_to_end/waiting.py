"""Waiting for what a running server does, with a deadline."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

PATIENCE = 30.0
"""Seconds after which something that should have happened has not. Generous, because it costs nothing when all is
well, and a busy machine is no failure."""


def until(question: Callable[[], T | None], what: str, *, within: float = PATIENCE) -> T:
    """Ask again and again until the answer is true, and return it; fail at the deadline, telling the last answer."""
    deadline = time.monotonic() + within
    while not (answer := question()):
        if time.monotonic() > deadline:
            raise AssertionError(f"expected {what} within {within:g} s, last got {answer!r}")
        time.sleep(0.03)
    return answer
