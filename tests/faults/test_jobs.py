"""Jobs that do what no job should: each ends with an outcome and a reason, and the others run."""

from __future__ import annotations

import asyncio
import math
import re
import threading
from collections.abc import AsyncIterator, Coroutine, Iterator
from datetime import UTC, datetime
from typing import Any

import asyncpg
import pytest
from apscheduler import current_job
from apscheduler.triggers.date import DateTrigger

from duetime.errors import ArgumentsTooLarge, StoreUnavailable, UnsupportedValue
from duetime.options import TaskOptions
from duetime.settings import DatabaseUrl

from ..store.parts import ago
from ..waiting import eventually
from .parts import a_node, add_neighbours, done, later, settled, works


class Evil:
    """Raises whatever way it is looked at."""

    def _raise(self, *_args: Any, **_kwargs: Any) -> Any:
        raise LookupError("do not look")

    __class__ = property(_raise)
    __repr__ = __str__ = __len__ = __iter__ = __eq__ = __bool__ = __hash__ = __reduce__ = __getstate__ = _raise


class Fatal(Exception):
    """Ends whoever asks for its text."""

    def __str__(self) -> str:
        raise SystemExit("no text")

    __repr__ = __str__


class Endless(Exception):
    def __str__(self) -> str:
        return str(self)


async def raises_fatal() -> None:
    raise Fatal


async def raises_endless() -> None:
    raise Endless


async def raises_ten_megabytes() -> None:
    raise ValueError("x" * 10_000_000)


async def raises_a_group() -> None:
    raise ExceptionGroup("several", [ValueError("one"), ExceptionGroup("more", [KeyError("two")])])


async def raises_a_group_of_ends() -> None:
    raise BaseExceptionGroup("ends", [SystemExit(1), KeyboardInterrupt(), asyncio.CancelledError()])


async def recurses() -> None:
    await recurses()


def recurses_in_a_thread() -> None:
    recurses_in_a_thread()


async def raises_a_circle() -> None:
    first, second = ValueError("first"), ValueError("second")
    first.__cause__, second.__cause__ = second, first
    raise first


async def raises_generator_exit() -> None:
    raise GeneratorExit


async def raises_stop_async_iteration() -> None:
    raise StopAsyncIteration


async def raises_a_database_error() -> None:
    raise asyncpg.ConnectionDoesNotExistError("the application's own database")


async def raises_store_unavailable() -> None:
    raise StoreUnavailable("somebody else's")


async def raises_evil() -> None:
    raise ValueError(Evil())


async def cancels_its_task() -> None:
    task = asyncio.current_task()
    assert task is not None
    task.cancel()
    await asyncio.sleep(10)


def cancels_its_task_without_waiting() -> None:
    task = asyncio.current_task()
    assert task is not None
    task.cancel()


async def spoils_its_job() -> None:
    job = current_job.get()
    job.metadata.clear()
    job.metadata["duetime.retry"] = "often"
    raise ValueError("spoilt")


FAILURES = [
    (raises_fatal, "Fatal|TaskAborted"),
    (raises_endless, "Endless"),
    (raises_ten_megabytes, "ValueError: xxx"),
    (raises_a_group, "ExceptionGroup: several"),
    (raises_a_group_of_ends, "TaskAborted: .*ends"),
    (recurses, "RecursionError"),
    (recurses_in_a_thread, "RecursionError"),
    (raises_a_circle, "ValueError: first"),
    (raises_generator_exit, "TaskAborted: .*GeneratorExit"),
    (raises_stop_async_iteration, "StopAsyncIteration"),
    (raises_a_database_error, "ConnectionDoesNotExistError"),
    (raises_store_unavailable, "StoreUnavailable"),
    (raises_evil, "ValueError"),
    (cancels_its_task, "TaskAborted: .*cancelled itself"),
    (cancels_its_task_without_waiting, ""),
    (spoils_its_job, "ValueError: spoilt"),
]


@pytest.mark.parametrize("keeps_result", [False, True], ids=["", "kept"])
async def test_a_job_that_ends_badly_fails_with_the_reason(
    database: DatabaseUrl, connection: asyncpg.Connection, keeps_result: bool
) -> None:
    functions = [function for function, _ in FAILURES]
    async with a_node(database, *functions) as duetime:
        jobs = {
            function.__name__: await duetime.scheduler.add_job(
                function.__name__,
                result_expiration_time=60 if keeps_result else 0,
                job_executor="async" if function is cancels_its_task_without_waiting else "auto",
            )
            for function in functions
        }
        await eventually(await add_neighbours(duetime))
        await eventually(lambda: settled(connection))
        runs = {row["task_id"]: row for row in await connection.fetch("select * from duetime.runs")}
        for function, reason in FAILURES:
            run = runs[function.__name__]
            if reason:
                assert run["outcome"] == "error", dict(run)
                assert re.search(reason, run["error"]), dict(run)
            if keeps_result:
                assert await duetime.scheduler.get_job_result(jobs[function.__name__]) is not None
        await works(duetime)


unawaited: list[Coroutine[Any, Any, Any]] = []


async def returns_evil() -> Any:
    return Evil()


async def returns_a_coroutine() -> Any:
    async def inner() -> str:
        return "inner"

    coroutine = inner()
    unawaited.append(coroutine)
    return coroutine


def generates() -> Iterator[int]:
    yield 1


async def generates_asynchronously() -> AsyncIterator[int]:
    yield 1


async def returns_itself() -> Any:
    circle: list[Any] = []
    circle.append(circle)
    return circle


async def returns_depth() -> Any:
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    return deep


async def returns_odd_values() -> Any:
    return [math.nan, math.inf, -math.inf, 10**5000, "\ud800", "\x00", {"$tuple": 1}, {1: {2}}, b"\xff"]


RESULTS = [
    (returns_evil, "could not be stored"),
    (returns_a_coroutine, "could not be stored"),
    (generates, "could not be stored"),
    (generates_asynchronously, "could not be stored"),
    (returns_itself, "could not be stored"),
    (returns_depth, "could not be stored"),
    (returns_odd_values, None),
]


async def test_a_result_that_cannot_be_stored_costs_nothing_but_itself(
    database: DatabaseUrl, connection: asyncpg.Connection
) -> None:
    async with a_node(database, *(function for function, _ in RESULTS)) as duetime:
        jobs = {
            function.__name__: await duetime.scheduler.add_job(function.__name__, result_expiration_time=60)
            for function, _ in RESULTS
        }
        await eventually(await add_neighbours(duetime))
        await eventually(lambda: settled(connection))
        runs = {row["task_id"]: row for row in await connection.fetch("select * from duetime.runs")}
        for function, reason in RESULTS:
            run = runs[function.__name__]
            assert run["outcome"] == "success", dict(run)
            assert (run["error"] is None) if reason is None else reason in run["error"], dict(run)
        result = await duetime.scheduler.get_job_result(jobs["returns_odd_values"])
        assert result is not None
        assert math.isnan(result.return_value[0])
        assert result.return_value[1:] == (await returns_odd_values())[1:]
    for coroutine in unawaited:
        coroutine.close()


async def returns_what_it_gets(value: Any) -> Any:
    return value


async def test_odd_arguments_come_back_as_they_are(database: DatabaseUrl) -> None:
    async with a_node(database, returns_what_it_gets) as duetime:
        odd: list[Any] = [math.inf, 10**5000, "\ud800\x00", {"$tuple": [{1}]}, -0.0, "", [], {"": None}]
        for value in odd:
            assert await duetime.scheduler.run_job("returns_what_it_gets", args=[value]) == value


async def test_arguments_that_cannot_be_stored_are_refused(database: DatabaseUrl) -> None:
    async with a_node(database, returns_what_it_gets) as duetime:
        odd: list[Any] = [object(), Evil(), lambda: None, b"x" * 1_000_000]
        for value in odd:
            for call in (
                duetime.scheduler.add_job("returns_what_it_gets", args=[value]),
                duetime.scheduler.add_schedule("returns_what_it_gets", DateTrigger(ago()), args=[value]),
            ):
                with pytest.raises((UnsupportedValue, ArgumentsTooLarge)):
                    await call
        await works(duetime)


async def test_a_job_that_blocks_its_thread_for_ever_holds_nobody_up(
    database: DatabaseUrl, connection: asyncpg.Connection
) -> None:
    never = threading.Event()

    def blocks() -> None:
        never.wait()

    options = {"blocks": TaskOptions(timeout=later(0.2) - datetime.now(UTC))}
    async with a_node(database, blocks, options=options) as duetime:
        for _ in range(60):
            await duetime.scheduler.add_job("blocks")
        await works(duetime)
        await eventually(lambda: settled(connection))
        assert await connection.fetchval("select count(*) from duetime.runs where outcome = 'timeout'") == 60
    never.set()


async def test_a_task_that_is_removed_while_its_jobs_are_queued_fails_or_runs_them(
    database: DatabaseUrl, connection: asyncpg.Connection
) -> None:
    async def gone() -> None:
        done.append("gone")

    async with a_node(database, gone, role="scheduler") as duetime:
        await duetime.scheduler.add_job("gone")
        await duetime.scheduler.data_store.remove_task("gone")
    async with a_node(database) as duetime:
        await works(duetime)
        await eventually(lambda: settled(connection))
        run = await connection.fetchrow("select outcome, error from duetime.runs where task_id = 'gone'")
        assert run["outcome"] == "error"
        assert "UnknownTask" in run["error"]


async def test_a_subscriber_that_fails_costs_nothing(database: DatabaseUrl) -> None:
    def fails(_event: Any) -> None:
        done.append("subscriber")
        raise LookupError("subscriber")

    async def hangs(_event: Any) -> None:
        await asyncio.Event().wait()

    async with a_node(database) as duetime:
        duetime.scheduler.subscribe(fails)
        duetime.scheduler.subscribe(hangs)
        await works(duetime)
        assert "subscriber" in done
