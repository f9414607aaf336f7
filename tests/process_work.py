"""Functions that tests run in worker processes; they import nothing, so a process has them at once."""

from __future__ import annotations

import os
import time


def where() -> int:
    """Return the process that this runs in."""
    return os.getpid()


def double(number: int) -> int:
    return 2 * number


def fails() -> None:
    raise ValueError("not in here")


def leaves() -> None:
    raise SystemExit(3)


def dies() -> None:
    os._exit(3)


def hangs() -> None:
    time.sleep(60)
