"""Group commit: calls that come while a statement is under way share the next one."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

T = TypeVar("T")
R = TypeVar("R")


@dataclass(slots=True)
class _Entry(Generic[T, R]):
    item: T
    deadline: float | None
    outcome: asyncio.Future[R] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class GroupCommit(Generic[T, R]):
    """Runs ``write`` for one batch at a time; a batch holds whatever was submitted since the last one began.

    A call that comes when nothing is under way starts at once, so a lone call waits for nobody. A cancelled caller
    leaves the batch if it has not begun, and otherwise lets it finish: nothing is half written.

    :param write: writes the items and returns one outcome each, in order; an exception as an outcome is raised to
        that item's caller. It is given the batch's latest deadline (loop time; None: for ever).
    """

    def __init__(
        self, write: Callable[[Sequence[T], float | None], Awaitable[Sequence[R | BaseException]]], *, largest: int
    ) -> None:
        self._write = write
        self._largest = largest
        self._waiting: list[_Entry[T, R]] = []
        self._writer: asyncio.Task[None] | None = None

    async def submit(self, item: T, *, deadline: float | None = None) -> R:
        """Write the item with the next batch and return its outcome once it is committed.

        :raises TimeoutError: at the deadline; the item is then either not written, or it was being written
        """
        entry: _Entry[T, R] = _Entry(item, deadline)
        self._waiting.append(entry)
        if self._writer is None:
            # The writer belongs to no caller: it must not inherit one's context or cancellation.
            self._writer = asyncio.get_running_loop().create_task(
                self._run(), name="duetime group commit", context=contextvars.Context()
            )
        try:
            if deadline is None:  # as for each job that ends
                return await entry.outcome
            async with asyncio.timeout_at(deadline):
                return await entry.outcome
        finally:
            if not entry.outcome.done() or entry.outcome.cancelled():
                self._waiting = [other for other in self._waiting if other is not entry]

    async def _run(self) -> None:
        try:
            while self._waiting:
                batch, self._waiting = self._waiting[: self._largest], self._waiting[self._largest :]
                deadlines = [entry.deadline for entry in batch]
                latest = None if None in deadlines else max(d for d in deadlines if d is not None)
                try:
                    outcomes: Sequence[R | BaseException] = await self._write([e.item for e in batch], latest)
                except Exception as exc:  # the callers get it; the writer goes on with the next batch
                    outcomes = [exc] * len(batch)
                except asyncio.CancelledError:
                    for entry in (*batch, *self._waiting):
                        entry.outcome.cancel()
                    raise
                for entry, outcome in zip(batch, outcomes, strict=True):
                    if entry.outcome.done():
                        continue
                    if isinstance(outcome, BaseException):
                        entry.outcome.set_exception(outcome)
                    else:
                        entry.outcome.set_result(outcome)
        finally:
            self._writer = None

    async def drain(self) -> None:
        """Wait until nothing is waiting or under way."""
        while self._writer is not None:
            await asyncio.wait([self._writer])
