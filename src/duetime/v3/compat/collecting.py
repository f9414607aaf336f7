"""``@scheduled_job``: jobs that are written down while modules are imported, and added when the scheduler starts."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

from apscheduler import AsyncScheduler, SchedulerStarted
from apscheduler.abc import Trigger

from ...tasks import reference
from .defaults import own
from .jobs import Job, _Undefined, add_job, undefined
from .triggers import V3Said

logger = logging.getLogger(__name__)

F = TypeVar("F", bound=Callable[..., Any])

_collected: WeakKeyDictionary[AsyncScheduler, list[tuple[Callable[..., Any], dict[str, Any]]]] = WeakKeyDictionary()


def scheduled_job(
    scheduler: AsyncScheduler,
    trigger: str | V3Said | Trigger | None = None,
    args: Iterable[Any] | None = None,
    kwargs: Mapping[str, Any] | None = None,
    id: str | None = None,  # noqa: A002 - v3's name for it
    name: str | None = None,
    misfire_grace_time: int | _Undefined | None = undefined,
    coalesce: bool | _Undefined = undefined,
    max_instances: int | _Undefined = undefined,
    next_run_time: datetime | str | _Undefined | None = undefined,
    jobstore: str = "default",
    executor: str = "default",
    **trigger_args: Any,
) -> Callable[[F], F]:
    """Have the decorated function added as a job when the scheduler has started; it replaces one of the same id. ::

        @scheduled_job(duetime.scheduler, "cron", day_of_week="0-4", hour=9)
        async def digest() -> None: ...

    It is added in the background. What is wrong with it is logged as an error, and the others are added; to see it at
    once, await :func:`add_scheduled_jobs` in the lifespan.

    :param scheduler: ``duetime.scheduler``, which is there before it has started
    :param id: default: ``module:function``. A function with several such jobs needs one for each
    """
    scheduler = own(scheduler)
    options = {
        "trigger": trigger,
        "args": args,
        "kwargs": kwargs,
        "id": id,
        "name": name,
        "misfire_grace_time": misfire_grace_time,
        "coalesce": coalesce,
        "max_instances": max_instances,
        "next_run_time": next_run_time,
        "jobstore": jobstore,
        "executor": executor,
        **trigger_args,
    }

    def decorate(func: F) -> F:
        if scheduler not in _collected:
            _collected[scheduler] = []

            async def start(_event: SchedulerStarted) -> None:
                await _add(scheduler, is_patient=True)

            scheduler.event_broker.subscribe(start, {SchedulerStarted})
        _collected[scheduler].append((func, {**options, "id": id or reference(func)}))
        return func

    return decorate


async def add_scheduled_jobs(scheduler: AsyncScheduler) -> list[Job]:
    """Add what ``@scheduled_job`` has collected and nobody has added yet, and return the jobs.

    :raises DuetimeError: what :func:`add_job` raises; the ones before are added, the ones after wait for the next call
    """
    return await _add(own(scheduler), is_patient=False)


async def _add(scheduler: AsyncScheduler, *, is_patient: bool) -> list[Job]:
    waiting = _collected.get(scheduler, [])
    added: list[Job] = []
    for item in list(waiting):
        func, options = item
        try:
            added.append(await add_job(scheduler, func, replace_existing=True, **options))
        except Exception:
            if not is_patient:
                raise
            logger.exception(
                "The job %r could not be added; the next start of the scheduler tries again", options["id"]
            )
            continue
        if item in waiting:
            waiting.remove(item)
    return added
