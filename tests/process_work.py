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


def hangs_as(path: str) -> None:
    with open(path, "w") as file:
        file.write(f"{os.getpid()}.")
    time.sleep(60)


def attempt() -> int:
    from duetime import current_attempt  # here, because the other functions need nothing

    return current_attempt().number
