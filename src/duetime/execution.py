"""Executors: where task functions run, within their time-out, so that nothing they do ends the scheduler.

Every failure leaves an executor as an ``Exception``: the stock scheduler lets ``SystemExit`` and
``KeyboardInterrupt`` of a job end the process, and a plain ``def`` block the event loop (4.0.0a6,
``_schedulers/async_.py``, ``_run_job``; ``executors/async_.py``).
"""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from functools import partial
from inspect import isawaitable, iscoroutinefunction, unwrap
from typing import Any

from anyio import CapacityLimiter, to_process, to_thread
from apscheduler import Job
from apscheduler.abc import JobExecutor

from .errors import TaskAborted, TaskTimeout, UnknownExecutor
from .tasks import AUTO_EXECUTOR, TaskOptions, TaskRegistry


class Unavailable:
    """Stands in for a task function that this node does not have; calling it raises what is wrong."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def __call__(self, *_args: Any, **_kwargs: Any) -> None:
        raise self.error


class TaskExecutor(JobExecutor):
    """Base of the executors: binds the arguments, keeps the time-out, and turns every end into a result or an error."""

    def __init__(self, registry: TaskRegistry) -> None:
        self._registry = registry

    async def run_job(self, func: Callable[..., Any], job: Job) -> Any:
        """Run the job's function and return what it returns.

        :raises TaskTimeout: after the task's ``timeout``
        :raises TaskAborted: if the function raised something that would end a process or a task
        :raises InvalidArguments: if the stored arguments no longer fit the function
        """
        if isinstance(func, Unavailable):
            raise func.error
        args, kwargs = job.args, job.kwargs
        if registered := self._registry.get(job.task_id):
            args, kwargs = registered.bind(args, kwargs)
        timeout = TaskOptions.from_metadata(job.metadata).timeout
        seconds = None if timeout is None else timeout.total_seconds()
        running = asyncio.current_task()
        scope = asyncio.timeout(seconds)
        try:
            async with scope:
                return await self.call(partial(func, *args, **kwargs))
        except TimeoutError:
            if scope.expired():
                raise TaskTimeout(f"expected {job.task_id} to end within {seconds:g} s, and it did not.") from None
            raise
        except asyncio.CancelledError:
            if running is not None and running.cancelling():
                raise
            raise TaskAborted(f"expected {job.task_id} to return or raise an error, and it cancelled itself.") from None
        except Exception:
            raise
        except BaseException as exc:
            raise TaskAborted(
                f"expected {job.task_id} to return or raise an error, got {type(exc).__name__}({exc})."
            ) from exc

    @abstractmethod
    async def call(self, function: partial[Any]) -> Any:
        """Call the function, whose arguments are in place, and return what it returns."""


class LoopExecutor(TaskExecutor):
    """Runs functions on the event loop and awaits what they return. A plain ``def`` blocks the loop while it runs."""

    async def call(self, function: partial[Any]) -> Any:
        """Call on the event loop."""
        outcome = function()
        return await outcome if isawaitable(outcome) else outcome


class ThreadExecutor(TaskExecutor):
    """Runs functions in threads. A thread cannot be stopped: at a time-out its result is dropped.

    :param max_workers: threads at once
    """

    def __init__(self, registry: TaskRegistry, *, max_workers: int = 40) -> None:
        super().__init__(registry)
        self._max_workers = max_workers

    async def start(self, exit_stack: AsyncExitStack) -> None:
        """Make the limit of threads."""
        self._limiter = CapacityLimiter(self._max_workers)

    async def call(self, function: partial[Any]) -> Any:
        """Call in a thread."""
        return await to_thread.run_sync(function, limiter=self._limiter, abandon_on_cancel=True)


class ProcessExecutor(TaskExecutor):
    """Runs functions in worker processes, which are killed at a time-out. Functions and arguments must be picklable.

    :param max_workers: processes at once
    """

    def __init__(self, registry: TaskRegistry, *, max_workers: int = 4) -> None:
        super().__init__(registry)
        self._max_workers = max_workers

    async def start(self, exit_stack: AsyncExitStack) -> None:
        """Make the limit of processes; they are started when needed."""
        self._limiter = CapacityLimiter(self._max_workers)

    async def call(self, function: partial[Any]) -> Any:
        """Call in a worker process."""
        return await to_process.run_sync(function, cancellable=True, limiter=self._limiter)


class AutoExecutor(ThreadExecutor):
    """Awaits ``async def`` functions on the event loop and runs all others in threads (promise 7)."""

    async def call(self, function: partial[Any]) -> Any:
        """Call where the function belongs."""
        target = unwrap(function.func)
        if iscoroutinefunction(target) or iscoroutinefunction(getattr(target, "__call__", None)):  # noqa: B004
            return await function()
        outcome = await super().call(function)
        return await outcome if isawaitable(outcome) else outcome


class _MissingExecutor(TaskExecutor):
    def __init__(self, registry: TaskRegistry, name: str, known: Mapping[str, JobExecutor]) -> None:
        super().__init__(registry)
        self._error = UnknownExecutor(
            f"expected one of the executors {', '.join(sorted(known))}, got {name!r}. Name one of them in "
            f"@task(executor=…), or give this node that executor."
        )

    async def run_job(self, func: Callable[..., Any], job: Job) -> Any:
        raise self._error

    async def call(self, function: partial[Any]) -> Any:
        raise self._error


class Executors(dict[str, JobExecutor]):
    """The executors of a node by name. A job that names another one fails with a reason.

    Cures 4.0.0a6: an unknown executor dropped the job without releasing it, and left it running for ever.
    """

    def __init__(self, registry: TaskRegistry) -> None:
        super().__init__(
            {
                AUTO_EXECUTOR: AutoExecutor(registry),
                "async": LoopExecutor(registry),
                "threadpool": ThreadExecutor(registry),
                "processpool": ProcessExecutor(registry),
            }
        )
        self._registry = registry

    def __missing__(self, name: str) -> JobExecutor:
        return _MissingExecutor(self._registry, name, self)
