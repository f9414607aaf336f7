"""Where task functions run, and that nothing they do gets further than their own job."""

from __future__ import annotations

import asyncio
import builtins
import os
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import pytest
from anyio import BrokenWorkerProcess
from apscheduler import Job, current_job
from pydantic import BaseModel

from duetime.errors import InvalidArguments, InvalidTask, TaskAborted, TaskTimeout, UnknownExecutor, UnknownTask
from duetime.execution import Executors, Unavailable
from duetime.options import TaskOptions
from duetime.tasks import TaskRegistry

from . import process_work
from .waiting import eventually


class Node:
    """A node's executors and registry."""

    def __init__(self, executors: Executors, registry: TaskRegistry) -> None:
        self.executors = executors
        self._registry = registry

    async def run(
        self, func: Callable[..., Any], *args: Any, executor: str = "auto", timeout: float | None = None, **kwargs: Any
    ) -> Any:
        """Register the function and run a job of it, as the scheduler does."""
        task = self._registry.add(func, name=getattr(func, "__name__", "callable"))
        options = TaskOptions(timeout=None if timeout is None else timedelta(seconds=timeout))
        job = Job(task_id=task.name, executor=executor, args=args, kwargs=kwargs, metadata=options.to_metadata())
        token = current_job.set(job)
        try:
            return await self.executors[executor].run_job(func, job)
        finally:
            current_job.reset(token)


@pytest.fixture
async def node() -> AsyncIterator[Node]:
    registry = TaskRegistry()
    executors = Executors(registry)
    async with AsyncExitStack() as stack:
        for executor in executors.values():
            await executor.start(stack)
        yield Node(executors, registry)
    executors.coroutines.end()


EVERYWHERE = ["auto", "async", "threadpool"]

# -- where -----------------------------------------------------------------------------------------------------------


async def test_a_coroutine_function_runs_on_the_event_loop_and_a_plain_one_in_a_thread(node: Node) -> None:
    async def on_the_loop() -> threading.Thread:
        await asyncio.sleep(0)
        return threading.current_thread()

    def in_a_thread() -> threading.Thread:
        return threading.current_thread()

    assert await node.run(on_the_loop) is threading.main_thread()
    assert await node.run(in_a_thread) is not threading.main_thread()
    assert await node.run(in_a_thread, executor="threadpool") is not threading.main_thread()
    assert await node.run(in_a_thread, executor="async") is threading.main_thread(), "who asks for it gets it"


async def test_a_plain_function_that_waits_does_not_hold_the_event_loop(node: Node) -> None:
    """It waits for what only the event loop does: on the loop this would never end."""
    open_door = threading.Event()

    def waits() -> str:
        return "in" if open_door.wait(10) else "locked out"

    waiting = asyncio.create_task(node.run(waits))
    asyncio.get_running_loop().call_soon(open_door.set)
    assert await waiting == "in"


async def test_callable_objects_partials_and_functions_that_return_awaitables_run_where_they_belong(node: Node) -> None:
    class Called:
        __name__ = "called"

        async def __call__(self) -> threading.Thread:
            return threading.current_thread()

    async def coroutine(number: int = 0) -> int:
        return number

    def returns_an_awaitable() -> Any:
        return coroutine(4)

    assert await node.run(Called()) is threading.main_thread()
    assert await node.run(partial(coroutine, 3)) == 3
    assert await node.run(returns_an_awaitable) == 4
    assert await node.run(returns_an_awaitable, executor="async") == 4


async def test_a_coroutine_function_that_is_sent_to_a_thread_fails_instead_of_not_running(node: Node) -> None:
    async def never_runs() -> None:
        """It would be made and thrown away."""

    with pytest.raises(InvalidTask, match="Use the executor 'auto' or 'async'"):
        await node.run(never_runs, executor="threadpool")


@pytest.mark.parametrize("executor", EVERYWHERE)
async def test_a_function_finds_its_own_job(node: Node, executor: str) -> None:
    def of_mine() -> str:
        return current_job.get().task_id

    assert await node.run(of_mine, executor=executor) == "of_mine"


# -- arguments -------------------------------------------------------------------------------------------------------


class Order(BaseModel):
    number: int
    due: datetime


@dataclass
class Address:
    street: str


async def test_stored_arguments_become_what_the_annotations_say(node: Node) -> None:
    seen: list[Any] = []

    async def ship(order: Order, to: Address, *labels: str, express: bool = False) -> None:
        seen.extend([order, to, labels, express])

    await node.run(ship, {"number": "4", "due": "2026-06-01T12:00:00Z"}, {"street": "x"}, "a", "b", express=True)
    due = datetime(2026, 6, 1, 12, tzinfo=UTC)
    assert seen == [Order(number=4, due=due), Address("x"), ("a", "b"), True]


async def test_arguments_that_no_longer_fit_fail_with_each_of_them_named(node: Node) -> None:
    def ship(number: int, street: str) -> None:
        raise AssertionError("not called")

    with pytest.raises(InvalidArguments) as caught:
        await node.run(ship, "four", city="Bonn")
    assert {detail["where"] for detail in caught.value.details} == {"0", "street", "city"}


async def test_a_function_that_nobody_registered_gets_its_arguments_as_they_are(node: Node) -> None:
    job = Job(task_id="unregistered", executor="auto", args=("4",))  # type: ignore[arg-type]
    assert await node.executors["auto"].run_job(lambda number: number, job) == "4"


# -- how it can end --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("executor", EVERYWHERE)
async def test_an_error_of_the_function_comes_out_as_it_is(node: Node, executor: str) -> None:
    def fails() -> None:
        raise KeyError("lost")

    with pytest.raises(KeyError, match="lost"):
        await node.run(fails, executor=executor)


@pytest.mark.parametrize("executor", EVERYWHERE)
@pytest.mark.parametrize("name", ["SystemExit", "KeyboardInterrupt", "GeneratorExit", "BaseException"])
async def test_what_would_end_a_process_is_a_failure_of_the_job(node: Node, executor: str, name: str) -> None:
    def ends() -> None:
        raise getattr(builtins, name)("away")

    with pytest.raises(TaskAborted, match=rf"expected ends to return or raise an error, got {name}\("):
        await node.run(ends, executor=executor)


@pytest.mark.parametrize("name", ["SystemExit", "KeyboardInterrupt", "BaseException"])
async def test_what_would_end_the_event_loop_is_a_failure_of_the_job(node: Node, name: str) -> None:
    async def ends() -> None:
        await asyncio.sleep(0)
        raise getattr(builtins, name)("away")

    with pytest.raises(TaskAborted, match=rf"got {name}\(away\)"):
        await node.run(ends)


async def test_a_task_that_cancels_itself_has_failed_and_was_not_cancelled(node: Node) -> None:
    async def cancels() -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        await asyncio.sleep(0)

    async def raises() -> None:
        raise asyncio.CancelledError

    def in_a_thread() -> None:
        raise asyncio.CancelledError

    for function in (cancels, raises, in_a_thread):
        with pytest.raises(TaskAborted, match="it cancelled itself"):
            await node.run(function)


@pytest.mark.parametrize("executor", EVERYWHERE)
async def test_stop_iteration_is_a_failure_like_any_other(node: Node, executor: str) -> None:
    def stops() -> None:
        next(iter(()))

    with pytest.raises((RuntimeError, StopIteration)):
        await node.run(stops, executor=executor)


async def test_an_exception_without_a_text_does_not_hide_what_happened(node: Node) -> None:
    class Mute(BaseException):
        def __str__(self) -> str:
            raise RuntimeError("no text")

    def ends() -> None:
        raise Mute

    with pytest.raises(TaskAborted, match="got Mute"):
        await node.run(ends)


async def test_a_job_whose_options_cannot_be_read_fails_with_that(node: Node) -> None:
    job = Job(task_id="x", executor="auto", metadata={"duetime.retry": "often"})
    with pytest.raises(ValueError, match="Retry"):
        await node.executors["auto"].run_job(lambda: None, job)


async def test_a_function_that_this_node_does_not_have_fails_with_the_reason(node: Node) -> None:
    job = Job(task_id="x", executor="auto")
    with pytest.raises(UnknownTask, match="expected the name of a registered task, got 'x'"):
        await node.executors["auto"].run_job(Unavailable(UnknownTask("x", [])), job)


async def test_an_unknown_executor_fails_its_job_and_names_the_known_ones(node: Node) -> None:
    assert set(node.executors) == {"auto", "async", "threadpool", "processpool"}
    job = Job(task_id="x", executor="gpu")
    with pytest.raises(UnknownExecutor, match="one of the executors async, auto, processpool, threadpool, got 'gpu'"):
        await node.executors["gpu"].run_job(lambda: None, job)
    assert "gpu" not in node.executors


# -- time-outs and cancellation --------------------------------------------------------------------------------------


async def test_a_coroutine_is_cancelled_at_its_time_out(node: Node) -> None:
    ended: list[str] = []

    async def sleeps() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            ended.append("cancelled")
            raise

    with pytest.raises(TaskTimeout, match=r"expected sleeps to end within 0\.01 s, and it did not"):
        await node.run(sleeps, timeout=0.01)
    assert ended == ["cancelled"]


async def test_a_time_out_of_the_functions_own_is_not_taken_for_the_jobs(node: Node) -> None:
    async def gives_up() -> None:
        async with asyncio.timeout(0):
            await asyncio.Event().wait()

    with pytest.raises(TimeoutError) as caught:
        await node.run(gives_up, timeout=60)
    assert not isinstance(caught.value, TaskTimeout)


async def test_a_thread_is_left_behind_at_its_time_out_and_its_result_dropped(node: Node) -> None:
    open_door, gone = threading.Event(), threading.Event()

    def waits() -> str:
        open_door.wait(10)
        gone.set()
        return "too late"

    with pytest.raises(TaskTimeout):
        await node.run(waits, timeout=0.01)
    assert not gone.is_set()
    open_door.set()
    await eventually(gone.is_set)


async def test_threads_that_were_left_behind_take_no_place_from_others(node: Node) -> None:
    open_door = threading.Event()

    def waits() -> None:
        open_door.wait(10)

    def quick() -> str:
        return "done"

    try:
        outcomes = await asyncio.gather(*(node.run(waits, timeout=0.01) for _ in range(50)), return_exceptions=True)
        assert {type(outcome) for outcome in outcomes} == {TaskTimeout}
        assert await node.run(quick) == "done"
    finally:
        open_door.set()


async def test_a_job_that_is_cancelled_cancels_its_function(node: Node) -> None:
    begun, ended = asyncio.Event(), asyncio.Event()

    async def sleeps() -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    job = asyncio.create_task(node.run(sleeps))
    await begun.wait()
    job.cancel()
    await asyncio.wait([job])
    assert job.cancelled()
    assert ended.is_set()


async def test_a_function_that_swallows_its_cancellation_does_not_hold_its_job(node: Node) -> None:
    begun, open_door = asyncio.Event(), asyncio.Event()

    async def stubborn() -> None:
        begun.set()
        while not open_door.is_set():
            try:
                await open_door.wait()
            except asyncio.CancelledError:
                continue

    with pytest.raises(TaskTimeout):
        await node.run(stubborn, timeout=0.01)
    assert node.executors.coroutines.left == 1
    open_door.set()
    await eventually(lambda: node.executors.coroutines.left == 0)


# -- worker processes ------------------------------------------------------------------------------------------------


async def test_a_worker_process_runs_functions_and_whatever_they_do_stays_in_it(node: Node) -> None:
    async def run(func: Callable[..., Any], *args: Any, timeout: float | None = None) -> Any:
        return await node.run(func, *args, executor="processpool", timeout=timeout)

    assert await run(process_work.where) != os.getpid()
    assert await run(process_work.double, "4") == 8
    with pytest.raises(ValueError, match="not in here"):
        await run(process_work.fails)
    with pytest.raises(TaskAborted, match="SystemExit"):
        await run(process_work.leaves)
    with pytest.raises(BrokenWorkerProcess):
        await run(process_work.dies)
    assert await run(process_work.double, 5) == 10, "the next one gets another process"


async def test_a_worker_process_is_killed_at_a_time_out(node: Node) -> None:
    await node.run(process_work.where, executor="processpool")  # it is there, and its start takes no part in this
    with pytest.raises(TaskTimeout):
        await node.run(process_work.hangs, executor="processpool", timeout=0.1)
    assert await node.run(process_work.double, 5, executor="processpool") == 10


async def test_a_function_that_cannot_be_sent_to_a_process_fails_its_job(node: Node) -> None:
    def nested() -> None:
        """Cannot be pickled."""

    with pytest.raises((AttributeError, TypeError), match="pickle"):
        await node.run(nested, executor="processpool")
