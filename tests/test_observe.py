"""The loop watchdog: what held the event loop is named, and nothing else is."""

from __future__ import annotations

import asyncio
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from duetime import Duetime, Settings
from duetime.observe import RECENT, LoopWatchdog, Snapshot
from duetime.settings import DatabaseUrl

from .store.parts import tasks
from .waiting import eventually

THRESHOLD = 0.1
LONG = 0.3


@asynccontextmanager
async def watching(threshold: float = THRESHOLD) -> AsyncIterator[LoopWatchdog]:
    watchdog = LoopWatchdog(threshold)
    watchdog.start()
    try:
        await asyncio.sleep(0.2)  # the first ping is answered, so the thread runs
        yield watchdog
    finally:
        watchdog.stop()


def waits() -> None:
    time.sleep(LONG)


def computes() -> None:
    end = time.monotonic() + LONG
    while time.monotonic() < end:
        pass


def keeps_the_interpreter() -> None:
    sum(range(40_000_000))


def reads_in_a_library() -> None:
    subprocess.run([sys.executable, "-c", f"import time; time.sleep({LONG})"], check=True)


@pytest.mark.parametrize("culprit", [waits, computes, keeps_the_interpreter, reads_in_a_library])
async def test_code_that_blocks_the_loop_is_named(
    culprit: Callable[[], None], caplog: pytest.LogCaptureFixture
) -> None:
    async def handler() -> None:
        culprit()

    async with watching() as watchdog:
        await asyncio.create_task(handler())
        await eventually(lambda: watchdog.snapshot().stalls)
        seen = watchdog.snapshot()
    [stall] = [each for each in seen.recent if culprit.__name__ in " ".join(each.where)]
    assert stall.duration >= THRESHOLD
    assert any(f"{culprit.__name__} ({__file__}:" in place for place in stall.where)
    assert "_run_once" not in " ".join(stall.where), "what is below the application's code is no news"
    assert seen.longest >= stall.duration
    assert seen.total >= stall.duration
    [line] = [record for record in caplog.records if culprit.__name__ in record.getMessage()]
    assert (line.name, line.levelno) == ("duetime.observe", logging.WARNING)


async def test_a_loop_that_waits_or_works_in_small_steps_is_left_alone(caplog: pytest.LogCaptureFixture) -> None:
    async with watching(threshold=1) as watchdog:
        for _ in range(20_000):
            await asyncio.sleep(0)
        await asyncio.sleep(0.5)
        assert watchdog.snapshot() == Snapshot()
    assert not caplog.records


async def test_a_process_that_was_stopped_blames_no_code() -> None:
    async with watching() as watchdog:
        stopper = f"kill -STOP {os.getpid()}; sleep 1; kill -CONT {os.getpid()}"
        process = await asyncio.create_subprocess_exec("sh", "-c", stopper)
        assert await process.wait() == 0
        await asyncio.sleep(0.3)  # the watchdog has looked at the loop since
        assert not [stall for stall in watchdog.snapshot().recent if stall.duration > 0.5]


async def test_a_stall_that_does_not_end_is_told_of_while_it_lasts(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("duetime.observe._PATIENCE", 0.3)
    told: list[str] = []

    def blocks_until_it_is_told_of() -> None:
        end = time.monotonic() + 20
        while not told and time.monotonic() < end:
            told.extend(record.getMessage() for record in caplog.records if "is blocked since" in record.getMessage())

    async with watching() as watchdog:
        blocks_until_it_is_told_of()
        await eventually(lambda: watchdog.snapshot().stalls)
    assert "blocks_until_it_is_told_of" in told[0]


async def test_only_the_last_stalls_are_kept_one_by_one() -> None:
    watchdog = LoopWatchdog(THRESHOLD)
    for number in range(RECENT + 5):
        watchdog._count(float(number), (str(number),))
    seen = watchdog.snapshot()
    assert (seen.stalls, seen.longest, len(seen.recent)) == (RECENT + 5, RECENT + 4, RECENT)
    assert seen.recent[-1].where == (str(RECENT + 4),)


@pytest.mark.parametrize("seconds", [0, THRESHOLD])
async def test_it_runs_as_long_as_duetime_does_unless_it_is_off(database: DatabaseUrl, seconds: float) -> None:
    def names() -> set[str]:
        return {thread.name for thread in threading.enumerate()}

    duetime = Duetime(Settings(database_url=database.text, stall_threshold=seconds), registry=tasks())
    async with duetime:
        assert ("duetime watchdog" in names()) == bool(seconds)
        if seconds:
            await asyncio.sleep(0.2)
            waits()
            await eventually(lambda: duetime.watchdog.snapshot().stalls)
    assert "duetime watchdog" not in names()


async def test_it_may_be_started_and_stopped_again() -> None:
    watchdog = LoopWatchdog(THRESHOLD)
    for round_number in (1, 2):
        watchdog.start()
        watchdog.start()
        await asyncio.sleep(0.2)
        waits()
        await eventually(lambda: watchdog.snapshot().stalls >= round_number)  # noqa: B023
        watchdog.stop()
        watchdog.stop()
