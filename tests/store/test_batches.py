"""Group commit: who shares a write, who waits for it, and what a failure or a cancellation leaves behind."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextvars import ContextVar

import pytest

from duetime.store.batches import GroupCommit

from ..waiting import eventually


class Writer:
    """Takes batches, one at a time, when the test lets it."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.deadlines: list[float | None] = []
        self.failure: Exception | None = None
        self.open = asyncio.Event()
        self.begun = asyncio.Event()

    async def __call__(self, items: Sequence[int], deadline: float | None) -> Sequence[int | BaseException]:
        self.batches.append(list(items))
        self.deadlines.append(deadline)
        self.begun.set()
        await self.open.wait()
        if self.failure is not None:
            raise self.failure
        return [ValueError(f"not {item}") if item < 0 else item * 10 for item in items]


async def under_way(commit: GroupCommit[int, int], writer: Writer, item: int = 1) -> asyncio.Task[int]:
    """Submit an item and wait until its batch has begun."""
    first = asyncio.create_task(commit.submit(item))
    await writer.begun.wait()
    return first


async def submitted(commit: GroupCommit[int, int], *items: int) -> list[asyncio.Task[int]]:
    """Submit items while a batch is under way."""
    tasks = [asyncio.create_task(commit.submit(item)) for item in items]
    await eventually(lambda: len(commit._waiting) == len(items))
    return tasks


async def test_a_lone_call_waits_for_nobody() -> None:
    writer = Writer()
    writer.open.set()
    commit = GroupCommit(writer, largest=10)
    assert await commit.submit(4) == 40
    assert await commit.submit(5) == 50
    assert writer.batches == [[4], [5]]


async def test_calls_that_come_while_a_write_is_under_way_share_the_next_one() -> None:
    writer = Writer()
    commit = GroupCommit(writer, largest=10)
    first = await under_way(commit, writer)
    others = await submitted(commit, 2, 3, 4)
    writer.open.set()
    assert await asyncio.gather(first, *others) == [10, 20, 30, 40]
    assert writer.batches == [[1], [2, 3, 4]]


async def test_a_batch_is_never_larger_than_the_limit() -> None:
    writer = Writer()
    commit = GroupCommit(writer, largest=2)
    first = await under_way(commit, writer)
    others = await submitted(commit, 2, 3, 4, 5, 6)
    writer.open.set()
    assert await asyncio.gather(first, *others) == [10, 20, 30, 40, 50, 60]
    assert writer.batches == [[1], [2, 3], [4, 5], [6]]


async def test_each_caller_gets_its_own_outcome() -> None:
    writer = Writer()
    commit = GroupCommit(writer, largest=10)
    first = await under_way(commit, writer)
    good, bad = await submitted(commit, 2, -3)
    writer.open.set()
    assert (await first, await good) == (10, 20)
    with pytest.raises(ValueError, match="not -3"):
        await bad


async def test_a_write_that_fails_fails_its_batch_and_not_the_next_one() -> None:
    writer = Writer()
    writer.failure = OSError("gone")
    writer.open.set()
    commit = GroupCommit(writer, largest=10)
    with pytest.raises(OSError, match="gone"):
        await commit.submit(1)
    writer.failure = None
    assert await commit.submit(2) == 20


async def test_a_cancelled_caller_leaves_a_batch_that_has_not_begun() -> None:
    writer = Writer()
    commit = GroupCommit(writer, largest=10)
    first = await under_way(commit, writer)
    leaver, stayer = await submitted(commit, 2, 3)
    leaver.cancel()
    await asyncio.wait([leaver])
    writer.open.set()
    assert (await first, await stayer) == (10, 30)
    assert writer.batches == [[1], [3]]


async def test_a_write_that_has_begun_goes_on_without_its_cancelled_caller() -> None:
    writer = Writer()
    commit = GroupCommit(writer, largest=10)
    first = await under_way(commit, writer)
    first.cancel()
    await asyncio.wait([first])
    writer.open.set()
    await commit.drain()
    assert writer.batches == [[1]]
    assert await commit.submit(2) == 20


async def test_a_caller_waits_no_longer_than_its_deadline() -> None:
    writer = Writer()
    commit = GroupCommit(writer, largest=10)
    first = await under_way(commit, writer)
    with pytest.raises(TimeoutError):
        await commit.submit(2, deadline=asyncio.get_running_loop().time())
    writer.open.set()
    await first
    assert writer.batches == [[1]], "what nobody waits for any more is not written"


async def test_a_batch_has_the_latest_deadline_of_its_callers() -> None:
    writer = Writer()
    commit = GroupCommit(writer, largest=2)
    first = await under_way(commit, writer)
    now = asyncio.get_running_loop().time()
    timed = [asyncio.create_task(commit.submit(item, deadline=now + 60 + item)) for item in (2, 3, 4)]
    timed.append(asyncio.create_task(commit.submit(5)))
    await eventually(lambda: len(commit._waiting) == 4)
    writer.open.set()
    await asyncio.gather(first, *timed)
    assert writer.deadlines == [None, now + 63, None], "None, for ever, is the latest of all"


async def test_the_write_runs_in_no_callers_context() -> None:
    variable: ContextVar[str] = ContextVar("variable", default="nobody's")
    seen: list[str] = []

    async def write(items: Sequence[int], _deadline: float | None) -> Sequence[int]:
        seen.append(variable.get())
        return items

    variable.set("the caller's")
    await GroupCommit(write, largest=1).submit(1)
    assert seen == ["nobody's"]


async def test_drain_waits_for_everything_that_was_submitted() -> None:
    writer = Writer()
    commit = GroupCommit(writer, largest=1)
    first = await under_way(commit, writer)
    others = await submitted(commit, 2, 3)
    draining = asyncio.create_task(commit.drain())
    writer.open.set()
    await draining
    assert [task.result() for task in (first, *others)] == [10, 20, 30]
