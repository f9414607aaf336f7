"""From what the plan says of a row to the schedule that is written for it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any, cast

from apscheduler import CoalescePolicy, Schedule, Task

from ..scheduler import DuetimeScheduler
from .allowing import Allowed
from .cutover import Prepare, Prepared
from .model import V3Row
from .planning import Carried, Context, Planned, plan
from .preparing import Told, pool, processes_for, told_here
from .reading import read

FIRES = 3
"""Fires of each job that are compared once more before it is carried over."""

_WORTH_SHARING = 200
"""Rows of a batch that are worth to be planned in several processes."""


@dataclass(frozen=True, slots=True)
class _Plan:
    """What a cut-over has to know of a planned row; plain data, so that another process can say it.

    :ivar task: name of the task
    :ivar carried: without its task, which no process can hand to another
    """

    verdict: str
    reasons: tuple[str, ...]
    task: str
    carried: Carried | None


Plans = Callable[[Sequence[V3Row]], Awaitable[list[_Plan]]]


def preparer(scheduler: DuetimeScheduler, context: Context, allowed: Allowed, plans: Plans | None = None) -> Prepare:
    """Return what plans rows for :func:`~duetime.v3.cutover.cutover`, as ``plan`` does.

    The tasks' definitions are stored when the first row wants them.

    :param plans: where rows are planned; default: in a thread. See :func:`in_processes`
    """
    drafts = _Schedules(scheduler)

    async def in_a_thread(rows: Sequence[V3Row]) -> list[_Plan]:
        return await asyncio.to_thread(_plans, rows, context, allowed)

    async def prepare(rows: Sequence[V3Row]) -> list[Prepared]:
        return [
            Prepared(
                each.verdict,
                each.reasons,
                None if each.carried is None else await drafts.schedule(each.task, each.carried),
            )
            for each in await (plans or in_a_thread)(rows)
        ]

    return prepare


@asynccontextmanager
async def in_processes(told: Told, context: Context, allowed: Allowed) -> AsyncIterator[Plans]:
    """Lend what plans rows in as many processes as there are processors, once a batch is worth it.

    Until they have started, and if one of them ends, rows are planned in a thread.
    """
    workers = max(2, processes_for(10_000))
    planners: ProcessPoolExecutor | None = None
    begun: list[Future[None]] = []

    async def plans(rows: Sequence[V3Row]) -> list[_Plan]:
        nonlocal planners
        if len(rows) >= _WORTH_SHARING:
            if planners is None:
                planners = pool(replace(told, now=context.now), workers)
                begun.extend(planners.submit(_is_begun) for _ in range(workers))
            if all(each.done() and each.exception() is None for each in begun):
                size = -(-len(rows) // workers)
                try:
                    shares = [planners.submit(_plan_there, rows[at : at + size]) for at in range(0, len(rows), size)]
                    return [each for share in shares for each in await asyncio.wrap_future(share)]
                except BrokenProcessPool:
                    pass
        return await asyncio.to_thread(_plans, rows, context, allowed)

    try:
        yield plans
    finally:
        if planners is not None:
            planners.shutdown(wait=True, cancel_futures=True)


def _is_begun() -> None:
    """Do nothing, in a process that has begun."""


def _plan_there(rows: Sequence[V3Row]) -> list[_Plan]:
    return _plans(rows, *told_here())


def _plans(rows: Sequence[V3Row], context: Context, allowed: Allowed) -> list[_Plan]:
    return [_plan(plan(read(row, allowed), context)) for row in rows]


def _plan(planned: Planned) -> _Plan:
    carried = planned.definition
    task = "" if carried is None else carried.task.name
    bare = None if carried is None else replace(carried, task=cast("Any", None))
    return _Plan(planned.verdict, tuple(planned.record["reasons"]), task, bare)


class _Schedules:
    """Makes schedules of definitions, and asks for each task once."""

    def __init__(self, scheduler: DuetimeScheduler) -> None:
        self._scheduler = scheduler
        self._tasks: dict[str, Task] = {}

    async def schedule(self, name: str, carried: Carried) -> Schedule:
        if (task := self._tasks.get(name)) is None:
            task = self._tasks[name] = await self._scheduler.configure_task(name)
        options: dict[str, Any] = {
            "coalesce": CoalescePolicy.latest,
            "misfire_grace_time": task.misfire_grace_time,
            "max_jitter": None,
            "job_result_expiration_time": timedelta(0),
            **carried.options,
        }
        # One that is paused has no time of v3's; it needs one all the same, or it would count as finished.
        first = carried.trigger.next() if carried.next_fire_time is None else carried.next_fire_time
        return Schedule(
            id=carried.id,
            task_id=task.id,
            trigger=carried.trigger,
            args=carried.args,
            kwargs=carried.kwargs,
            paused=carried.paused,
            job_executor=task.job_executor,
            metadata={**task.metadata, **carried.metadata},
            next_fire_time=cast("datetime", first),
            **options,
        )
