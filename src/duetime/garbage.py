"""Python's garbage collector, kept from holding up the event loop while thousands of jobs begin (promise 7).

A full collection looks at every object of the process, which in an application with its libraries takes 60 to 120 ms,
and thousands of new jobs bring several of them, one after the other.
"""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator
from contextlib import contextmanager

YOUNG = 10_000
"""New objects after which the collector looks at them; Python's own number is 700 or 2,000."""

_lock = threading.Lock()
_users = 0
_before: tuple[int, int, int] | None = None
_has_frozen = False


@contextmanager
def calm_collector() -> Iterator[None]:
    """Leave the objects that are there now out of collections, and have those begin less often, while the block runs.

    It is for the whole process, and undone with the last block that ends. What the application has decided itself
    stays: a collector that is off or has frozen objects, and a higher threshold.
    """
    _begin()
    try:
        yield
    finally:
        _end()


def _begin() -> None:
    global _users, _before, _has_frozen
    with _lock:
        _users += 1
        if _users > 1 or not gc.isenabled():
            return
        if gc.get_freeze_count() == 0:
            gc.freeze()
            _has_frozen = True
        young, middle, old = gc.get_threshold()
        if 0 < young < YOUNG:
            _before = (young, middle, old)
            gc.set_threshold(YOUNG, middle, old)


def _end() -> None:
    global _users, _before, _has_frozen
    with _lock:
        _users -= 1
        if _users:
            return
        if _before is not None and gc.get_threshold()[0] == YOUNG:
            gc.set_threshold(*_before)
        if _has_frozen:
            gc.unfreeze()
        _before, _has_frozen = None, False
