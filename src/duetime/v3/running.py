"""Planning a whole table: rows in, records out, in order, in as many processes as are worth it and in flat memory."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from duetime.errors import DuetimeError, MigrationFailed

from .model import V3Row
from .planning import Context, plan
from .preparing import Told, pool, processes_for, told_here
from .reading import Allowed, read

BATCH = 200
"""Rows that a process is given at once."""

_WAITING = 3
"""Batches for each process that are under way or done and not yet written."""

Record = dict[str, Any]


def _plan_there(rows: Sequence[V3Row]) -> list[Record]:
    return plan_rows(rows, *told_here())


def plan_rows(rows: Sequence[V3Row], context: Context, allowed: Allowed) -> list[Record]:
    """Return the records of rows."""
    return [plan(read(row, allowed), context).record for row in rows]


async def planned(
    source: AsyncIterator[list[V3Row]], count: int, told: Told, done: Callable[[int], None] = lambda _rows: None
) -> AsyncIterator[list[Record]]:
    """Yield the records of all rows of a source, in order.

    :param count: about how many rows there are
    :param told: with the instant that counts as now, the same in all processes
    :param done: told how many rows more have been planned
    :raises MigrationFailed: if one of the processes was ended
    :raises DuetimeError: what reading the source raised, after the records of what was read before
    """
    workers = processes_for(count)
    if workers == 1:
        context, allowed = told.context(), told.allow()
        async for rows in source:
            yield await asyncio.to_thread(plan_rows, rows, context, allowed)
            done(len(rows))
        return
    waiting: deque[Future[list[Record]]] = deque()
    failure: DuetimeError | None = None
    planners = pool(told, workers)
    try:
        try:
            async for rows in source:
                waiting.append(planners.submit(_plan_there, rows))
                if len(waiting) >= workers * _WAITING:
                    records = await asyncio.wrap_future(waiting.popleft())
                    yield records
                    done(len(records))
        except DuetimeError as exc:  # what was read before is told all the same
            failure = exc
        while waiting:
            records = await asyncio.wrap_future(waiting.popleft())
            yield records
            done(len(records))
    except BrokenProcessPool as exc:
        raise MigrationFailed(
            "expected the processes that plan the rows to go on, but one was ended, perhaps for want of memory. Run "
            "the command again; what was printed so far is right."
        ) from exc
    finally:
        planners.shutdown(wait=True, cancel_futures=True)
    if failure is not None:
        raise failure
