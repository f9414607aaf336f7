"""The garbage collector while Duetime runs: calm, and afterwards as it was."""

from __future__ import annotations

import gc
import subprocess
import sys
from collections.abc import Iterator

import pytest

from duetime import Duetime, Settings
from duetime.garbage import YOUNG, calm_collector

from .store.parts import tasks


@pytest.fixture(autouse=True)
def as_it_was() -> Iterator[None]:
    threshold = gc.get_threshold()
    yield
    gc.enable()
    gc.unfreeze()
    gc.set_threshold(*threshold)


def test_what_is_there_is_left_out_and_put_back() -> None:
    gc.set_threshold(700, 10, 10)
    with calm_collector():
        assert gc.get_freeze_count() > 10_000
        assert gc.get_threshold() == (YOUNG, 10, 10)
        with calm_collector():
            pass
        assert gc.get_freeze_count() > 10_000, "until the last one ends"
    assert gc.get_freeze_count() == 0
    assert gc.get_threshold() == (700, 10, 10)


def test_garbage_is_still_collected() -> None:
    with calm_collector():
        gc.collect()
        circle: list[object] = []
        circle.append(circle)
        del circle
        assert gc.collect() >= 1


def test_what_the_application_has_decided_stays() -> None:
    gc.set_threshold(50_000, 5, 5)
    gc.freeze()
    frozen = gc.get_freeze_count()
    with calm_collector():
        assert gc.get_threshold() == (50_000, 5, 5)
    assert gc.get_freeze_count() == frozen
    assert gc.get_threshold() == (50_000, 5, 5)


def test_what_it_decides_meanwhile_stays_too() -> None:
    gc.set_threshold(700, 10, 10)
    with calm_collector():
        gc.set_threshold(3_000, 10, 10)
    assert gc.get_threshold() == (3_000, 10, 10)


def test_a_collector_that_is_off_is_left_alone() -> None:
    gc.disable()
    with calm_collector():
        assert gc.get_freeze_count() == 0
        assert not gc.isenabled()


@pytest.mark.parametrize("tune_gc", [True, False])
async def test_a_running_node_has_it_so_if_it_may(tune_gc: bool) -> None:
    gc.set_threshold(700, 10, 10)
    # Nobody listens there: it is about a node that runs, whether or not it has its database.
    settings = Settings(database_url="postgresql://nobody@127.0.0.1:1/none", tune_gc=tune_gc)
    async with Duetime(settings, registry=tasks()):
        assert (gc.get_freeze_count() > 0) == tune_gc
        assert gc.get_threshold()[0] == (YOUNG if tune_gc else 700)
    assert gc.get_threshold()[0] == 700


_BURST = """
import gc, time
from duetime import Duetime
from duetime.garbage import calm_collector
longest = 0.0
def watch(phase, info, began=[0.0]):
    global longest
    if phase == "start":
        began[0] = time.perf_counter()
    else:
        longest = max(longest, time.perf_counter() - began[0])
def burst():
    global longest
    longest = 0.0
    kept = [[each] for each in range(300_000)]
    return longest
gc.callbacks.append(watch)
before = burst()
with calm_collector():
    during = burst()
print(before / during)
"""


def test_many_new_objects_no_longer_bring_a_look_at_all_others() -> None:
    """In a process of its own, which has what an application with Duetime has; the two are compared in one run."""
    found = subprocess.run([sys.executable, "-c", _BURST], check=True, capture_output=True, text=True)
    assert float(found.stdout) > 1.5, "the longest pause without, divided by that with"
