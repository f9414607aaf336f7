"""Threads that nobody waits for: the process ends although one of their functions never does.

AnyIO's and the standard library's worker threads are joined when the interpreter ends, so that one plain ``def`` task
that hangs would keep a stopped node from ending until the platform kills it.
"""

from __future__ import annotations

import asyncio
import ctypes
import threading
from collections.abc import Callable
from contextlib import suppress
from contextvars import copy_context
from queue import Empty, SimpleQueue
from typing import Any, Generic, TypeVar

T = TypeVar("T")

_IDLE = 10.0
"""Seconds after which a thread without work ends."""


class Interrupted(BaseException):
    """Raised inside a function that is no longer wanted; see :meth:`ThreadCall.interrupt`."""


class ThreadCall(Generic[T]):
    """One call of a function in a thread. Made on the event loop, in whose context variables the function runs.

    :ivar outcome: the function's result or error, on the event loop
    """

    def __init__(self, function: Callable[[], T]) -> None:
        self._loop = asyncio.get_running_loop()
        self._function = function
        self._context = copy_context()
        self._thread: int | None = None
        self._state = threading.Lock()
        self.outcome: asyncio.Future[T] = self._loop.create_future()

    def start(self, name: str) -> None:
        """Run the function in a thread of its own."""
        threading.Thread(target=self.run, name=name, daemon=True).start()

    def run(self) -> None:
        """Run the function in this thread."""
        with suppress(Interrupted):  # which may arrive a moment after the function's end
            self._run()

    def _run(self) -> None:
        result: Any = None
        error: BaseException | None = None
        self._thread = threading.get_ident()
        try:
            if not self.outcome.cancelled():
                result = self._context.run(self._function)
        except BaseException as exc:  # whatever it is, it is the call's outcome
            error = exc
        finally:
            with self._state:
                self._thread = None
        if isinstance(error, StopIteration):  # which no future can hold
            stopped, error = error, RuntimeError("the function raised StopIteration")
            error.__cause__ = stopped
        with suppress(RuntimeError):  # the event loop has ended before the function
            self._loop.call_soon_threadsafe(self._end, result, error)

    def _end(self, result: Any, error: BaseException | None) -> None:
        if self.outcome.done():
            return
        if error is None:
            self.outcome.set_result(result)
        else:
            self.outcome.set_exception(error)

    def interrupt(self) -> None:
        """Raise :class:`Interrupted` in the function, where it next runs Python code.

        Only for a call with a thread of its own: it may arrive late. A function that waits in C code, or catches
        everything, goes on.
        """
        with self._state:
            if self._thread is not None:
                ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(self._thread), ctypes.py_object(Interrupted))


class DaemonThreads:
    """Runs functions in threads, as many as are wanted at a time, and keeps idle ones for a few seconds.

    :param name: what the threads are called
    :ivar abandoned: functions that nobody waits for any more and that have not returned
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._calls: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._state = threading.Lock()
        self._idle = 0
        self._closed = False
        self.abandoned = 0

    async def run(self, function: Callable[[], T]) -> T:
        """Return what the function returns; when this call is cancelled, the function goes on unheeded."""
        call = ThreadCall(function)

        def work() -> None:
            try:
                call.run()
            finally:
                if call.outcome.cancelled():
                    with self._state:
                        self.abandoned -= 1

        self._submit(work)
        try:
            return await call.outcome
        except asyncio.CancelledError:
            if call.outcome.cancelled():
                with self._state:
                    self.abandoned += 1
            raise

    def _submit(self, work: Callable[[], None]) -> None:
        with self._state:
            is_taken = self._idle > 0
            self._idle -= is_taken
        self._calls.put(work)
        if not is_taken:
            threading.Thread(target=self._serve, name=self._name, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                work = self._calls.get(timeout=_IDLE)
            except Empty:
                with self._state:
                    if self._idle == 0:
                        continue  # a call was submitted a moment ago, and counts on this thread
                    self._idle -= 1
                return
            if work is None:
                return
            work()
            del work  # nor its arguments
            with self._state:
                if self._closed:
                    return
                self._idle += 1

    def close(self) -> None:
        """Let the threads end: idle ones now, the others with their function."""
        with self._state:
            self._closed = True
            idle, self._idle = self._idle, 0
        for _ in range(idle):
            self._calls.put(None)
