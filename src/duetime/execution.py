"""Executors: where task functions run, within their time-out, so that nothing they do ends the scheduler.

Every failure leaves an executor as an ``Exception``: the stock scheduler lets ``SystemExit`` and
``KeyboardInterrupt`` of a job end the process, and a plain ``def`` block the event loop (4.0.0a6,
``_schedulers/async_.py``, ``_run_job``; ``executors/async_.py``). And every job ends when it has to: a coroutine runs
in a task of its own, which is left to itself when it swallows its cancellation, and a function in a thread that the
end of the process does not wait for.
"""

from __future__ import annotations

import asyncio
import logging
from abc import abstractmethod
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from functools import lru_cache, partial
from inspect import isawaitable, iscoroutine, iscoroutinefunction, unwrap
from typing import Any

from anyio import CancelScope, CapacityLimiter, to_process
from apscheduler import Job
from apscheduler.abc import JobExecutor

from .attempts import Attempt, attempt_at_hand
from .errors import InvalidTask, TaskAborted, TaskTimeout, UnknownExecutor
from .options import TaskOptions
from .tasks import AUTO_EXECUTOR, TaskRegistry
from .threads import DaemonThreads, ThreadCall

logger = logging.getLogger(__name__)

CANCEL_GRACE = 0.25
"""Seconds that a cancelled coroutine has to clean up before its job ends without it."""


class Unavailable:
    """Stands in for a task function that this node does not have; calling it raises what is wrong."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def __call__(self, *_args: Any, **_kwargs: Any) -> None:
        raise self.error


class Unresolved:
    """Stands in for a task function whose module has to be imported first, which may take long and do anything.

    :param find: imports and returns it, or an :class:`Unavailable`
    """

    def __init__(self, find: Callable[[], Callable[..., Any]]) -> None:
        self._find = find

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._find()(*args, **kwargs)

    async def resolve(self) -> Callable[..., Any]:
        """Find the function, in a thread."""
        call = ThreadCall(self._find)
        call.start("duetime import")
        return await call.outcome


class Coroutines:
    """The coroutines of a node's jobs, each in a task of its own, so that none can hold its job or the node."""

    def __init__(self) -> None:
        self._left: dict[asyncio.Task[Any], Any] = {}

    @property
    def left(self) -> int:
        """How many have swallowed their cancellation and go on, although their jobs have ended."""
        return len(self._left)

    async def run(self, awaitable: Awaitable[Any]) -> Any:
        """Return what the awaitable returns.

        When this call is cancelled, so is the awaitable, once, and what has not ended ``CANCEL_GRACE`` later is left
        to itself.
        """
        loop = asyncio.get_running_loop()
        ended = loop.create_future()
        work = loop.create_task(_contained(awaitable, ended))
        try:
            await ended
        except asyncio.CancelledError:
            work.cancel()
            with CancelScope(shield=True):
                await asyncio.wait([work], timeout=CANCEL_GRACE)
            if work.done():
                _forget(work)
            else:
                self._left[work] = awaitable
                work.add_done_callback(self._end)
            raise
        return work.result()

    def _end(self, work: asyncio.Task[Any]) -> None:
        self._left.pop(work, None)
        _forget(work)

    def end(self) -> None:
        """End those that are left, whatever they catch: the node stops, and the process could not end before them."""
        for work, awaitable in list(self._left.items()):
            name = getattr(awaitable, "__qualname__", type(awaitable).__qualname__)
            logger.error("%s did not end when it was cancelled; it is closed", name)
            if close := getattr(awaitable, "close", None):
                try:
                    close()
                except BaseException as exc:  # whatever it raises instead of ending
                    logger.error("%s cannot be closed (%s)", name, type(exc).__name__)
            work.cancel()


def _is_coroutine_function(function: partial[Any]) -> bool:
    try:
        return _is_async(function.func)
    except TypeError:  # a callable without a hash
        return _is_async.__wrapped__(function.func)


@lru_cache(maxsize=1000)
def _is_async(func: Callable[..., Any]) -> bool:
    target = unwrap(func)
    return iscoroutinefunction(target) or iscoroutinefunction(getattr(target, "__call__", None))  # noqa: B004


async def _outcome_of(function: Callable[[], Any]) -> Any:
    outcome = function()
    return await outcome if isawaitable(outcome) else outcome


async def _contained(awaitable: Awaitable[Any], ended: asyncio.Future[None]) -> Any:
    """Await, and let nothing out of the task that the event loop would end the process for.

    :param ended: told of the end a moment before the task has ended
    """
    try:
        return await awaitable
    except (SystemExit, KeyboardInterrupt) as exc:
        raise _Ended(exc) from exc
    finally:
        if not ended.done():
            ended.set_result(None)


class _Ended(Exception):
    """Carries what would end the process out of a task."""

    def __init__(self, cause: BaseException) -> None:
        super().__init__(cause)
        self.cause = cause


def _forget(work: asyncio.Task[Any]) -> None:
    """Take note of a task's exception, which nobody else will."""
    if not work.cancelled():
        work.exception()


def _said(exception: BaseException) -> str:
    try:
        return f"{type(exception).__name__}({exception})"
    except BaseException:  # an exception whose text cannot be had
        return type(exception).__name__


class TaskExecutor(JobExecutor):
    """Base of the executors: binds the arguments, keeps the time-out, and turns every end into a result or an error.

    :param coroutines: where coroutines run; shared by a node's executors
    """

    def __init__(self, registry: TaskRegistry, coroutines: Coroutines | None = None) -> None:
        self._registry = registry
        self._coroutines = coroutines or Coroutines()

    async def run_job(self, func: Callable[..., Any], job: Job) -> Any:
        """Run the job's function and return what it returns.

        :raises TaskTimeout: after the task's ``timeout``
        :raises TaskAborted: if the function raised something that would end a process or a task
        :raises InvalidArguments: if the stored arguments no longer fit the function
        """
        timeout = TaskOptions.from_metadata(job.metadata).timeout
        try:
            if timeout is None:
                return await self._run(func, job)
            async with asyncio.timeout(timeout.total_seconds()) as scope:
                return await self._run(func, job)
        except TimeoutError:
            if timeout is not None and scope.expired():
                raise TaskTimeout(
                    f"expected {job.task_id} to end within {timeout.total_seconds():g} s, and it did not."
                ) from None
            raise
        except asyncio.CancelledError:
            running = asyncio.current_task()
            if running is not None and running.cancelling():
                raise
            raise TaskAborted(f"expected {job.task_id} to return or raise an error, and it cancelled itself.") from None
        except _Ended as ended:
            raise self._aborted(job, ended.cause) from ended.cause
        except Exception:
            raise
        except BaseException as exc:
            raise self._aborted(job, exc) from exc

    async def _run(self, func: Callable[..., Any], job: Job) -> Any:
        if isinstance(func, Unresolved):
            func = await func.resolve()
        if isinstance(func, Unavailable):
            raise func.error
        args, kwargs = job.args, job.kwargs
        if registered := self._registry.get(job.task_id):
            args, kwargs = registered.bind(args, kwargs)
        return await self.call(partial(func, *args, **kwargs))

    def _aborted(self, job: Job, exception: BaseException) -> TaskAborted:
        return TaskAborted(f"expected {job.task_id} to return or raise an error, got {_said(exception)}.")

    @abstractmethod
    async def call(self, function: partial[Any]) -> Any:
        """Call the function, whose arguments are in place, and return what it returns."""


class LoopExecutor(TaskExecutor):
    """Runs functions on the event loop and awaits what they return. A plain ``def`` blocks the loop while it runs."""

    async def call(self, function: partial[Any]) -> Any:
        """Call on the event loop."""
        if _is_coroutine_function(function):
            return await self._coroutines.run(function())
        # In a task of its own as well: it may cancel the task that it runs in, which must not be the job's.
        return await self._coroutines.run(_outcome_of(function))


class ThreadExecutor(TaskExecutor):
    """Runs functions in threads. A thread cannot be stopped: at a time-out its result is dropped.

    :param max_workers: threads at once
    """

    def __init__(self, registry: TaskRegistry, coroutines: Coroutines | None = None, *, max_workers: int = 40) -> None:
        super().__init__(registry, coroutines)
        self._max_workers = max_workers

        self._threads = DaemonThreads("duetime worker")

    @property
    def abandoned(self) -> int:
        """How many functions go on in threads although their jobs have ended."""
        return self._threads.abandoned

    async def start(self, exit_stack: AsyncExitStack) -> None:
        """Make the threads' limit; they are started when needed."""
        self._limiter = CapacityLimiter(self._max_workers)
        self._threads = DaemonThreads("duetime worker")
        exit_stack.callback(self._threads.close)

    async def call(self, function: partial[Any]) -> Any:
        """Call in a thread.

        :raises InvalidTask: if it is an ``async def``, which a thread would not run
        """
        outcome = await self._in_thread(function)
        if iscoroutine(outcome):
            outcome.close()
            raise InvalidTask(
                "expected a plain function for the executor 'threadpool', got an async def, which does not run there. "
                "Use the executor 'auto' or 'async'."
            )
        return outcome

    async def _in_thread(self, function: partial[Any]) -> Any:
        async with self._limiter:
            return await self._threads.run(function)


class ProcessExecutor(TaskExecutor):
    """Runs functions in worker processes, which are killed at a time-out. Functions and arguments must be picklable.

    :param max_workers: processes at once
    """

    def __init__(self, registry: TaskRegistry, coroutines: Coroutines | None = None, *, max_workers: int = 4) -> None:
        super().__init__(registry, coroutines)
        self._max_workers = max_workers

    async def start(self, exit_stack: AsyncExitStack) -> None:
        """Make the limit of processes; they are started when needed."""
        self._limiter = CapacityLimiter(self._max_workers)

    async def call(self, function: partial[Any]) -> Any:
        """Call in a worker process."""
        attempt = attempt_at_hand.get(None)
        if attempt is not None:  # context variables stay in this process
            function = partial(_in_attempt, attempt, function)
        return await to_process.run_sync(function, cancellable=True, limiter=self._limiter)


def _in_attempt(attempt: Attempt, function: Callable[[], Any]) -> Any:
    attempt_at_hand.set(attempt)
    return function()


class AutoExecutor(ThreadExecutor):
    """Awaits ``async def`` functions on the event loop and runs all others in threads (promise 7)."""

    async def call(self, function: partial[Any]) -> Any:
        """Call where the function belongs."""
        if _is_coroutine_function(function):
            return await self._coroutines.run(function())
        outcome = await self._in_thread(function)
        return await self._coroutines.run(outcome) if isawaitable(outcome) else outcome


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
        self.coroutines = Coroutines()
        super().__init__(
            {
                AUTO_EXECUTOR: AutoExecutor(registry, self.coroutines),
                "async": LoopExecutor(registry, self.coroutines),
                "threadpool": ThreadExecutor(registry, self.coroutines),
                "processpool": ProcessExecutor(registry, self.coroutines),
            }
        )
        self._registry = registry

    @property
    def abandoned_threads(self) -> int:
        """How many functions go on in threads although their jobs have timed out or were cancelled."""
        return sum(executor.abandoned for executor in self.values() if isinstance(executor, ThreadExecutor))

    def __missing__(self, name: str) -> JobExecutor:
        return _MissingExecutor(self._registry, name, self)
