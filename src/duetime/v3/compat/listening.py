"""Listeners by event mask: v3's constants and event objects, made of what this process does and hears."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from inspect import isawaitable
from typing import Any, NoReturn
from weakref import WeakKeyDictionary

from apscheduler import (
    AsyncScheduler,
    Event,
    JobOutcome,
    JobReleased,
    ScheduleAdded,
    ScheduleRemoved,
    SchedulerStarted,
    SchedulerStopped,
)
from apscheduler.abc import Subscription

from ...errors import NoEquivalent
from ...scheduler import DuetimeScheduler
from .defaults import own

logger = logging.getLogger(__name__)

EVENT_SCHEDULER_STARTED = EVENT_SCHEDULER_START = 2**0
EVENT_SCHEDULER_SHUTDOWN = 2**1
EVENT_SCHEDULER_PAUSED = 2**2
EVENT_SCHEDULER_RESUMED = 2**3
EVENT_EXECUTOR_ADDED = 2**4
EVENT_EXECUTOR_REMOVED = 2**5
EVENT_JOBSTORE_ADDED = 2**6
EVENT_JOBSTORE_REMOVED = 2**7
EVENT_ALL_JOBS_REMOVED = 2**8
EVENT_JOB_ADDED = 2**9
EVENT_JOB_REMOVED = 2**10
EVENT_JOB_MODIFIED = 2**11
EVENT_JOB_EXECUTED = 2**12
EVENT_JOB_ERROR = 2**13
EVENT_JOB_MISSED = 2**14
EVENT_JOB_SUBMITTED = 2**15
EVENT_JOB_MAX_INSTANCES = 2**16
EVENT_ALL = 2**17 - 1

NOT_TOLD = {
    EVENT_SCHEDULER_PAUSED: ("EVENT_SCHEDULER_PAUSED", "a scheduler is not paused as a whole, schedules are"),
    EVENT_SCHEDULER_RESUMED: ("EVENT_SCHEDULER_RESUMED", "a scheduler is not paused as a whole, schedules are"),
    EVENT_EXECUTOR_ADDED: ("EVENT_EXECUTOR_ADDED", "the executors are always the same"),
    EVENT_EXECUTOR_REMOVED: ("EVENT_EXECUTOR_REMOVED", "the executors are always the same"),
    EVENT_JOBSTORE_ADDED: ("EVENT_JOBSTORE_ADDED", "there is one store"),
    EVENT_JOBSTORE_REMOVED: ("EVENT_JOBSTORE_REMOVED", "there is one store"),
    EVENT_JOB_SUBMITTED: ("EVENT_JOB_SUBMITTED", "jobs are claimed ahead of their time"),
    EVENT_JOB_MAX_INSTANCES: ("EVENT_JOB_MAX_INSTANCES", "a skipped fire has a ledger row (GET /fires?state=skipped)"),
}
"""Events that nobody is told of: bit → (name, why)."""

Callback = Callable[[Any], Any]


@dataclass(frozen=True, slots=True)
class SchedulerEvent:
    """Something that concerns the scheduler.

    :ivar code: one of the ``EVENT_`` constants
    :ivar alias: always None; v3: of a job store or an executor
    """

    code: int
    alias: str | None = None


@dataclass(frozen=True, slots=True)
class JobEvent(SchedulerEvent):
    """Something that was done to a job.

    :ivar job_id: id of the job, which is that of its schedule
    """

    job_id: str = ""
    jobstore: str = "default"


class JobError(Exception):
    """What a job has raised, as far as an event tells: its type and its text.

    :ivar type_name: name of the exception's class
    """

    def __init__(self, type_name: str, text: str) -> None:
        super().__init__(text)
        self.type_name = type_name


@dataclass(frozen=True, slots=True)
class JobExecutionEvent(JobEvent):
    """How a run of a job has ended.

    :ivar scheduled_run_time: when it was due
    :ivar exception: stands for what the job raised
    :ivar traceback: always None: the node's log has it
    """

    scheduled_run_time: datetime | None = None
    exception: JobError | None = None
    traceback: None = None

    @property
    def retval(self) -> NoReturn:
        """Raise: an event does not carry what a job returned.

        :raises NoEquivalent: always
        """
        raise NoEquivalent(
            "expected a listener that does without retval: what a job returns stays in the database, for as long as "
            "its result_ttl says. Have the task itself do what the listener did with it."
        )


@dataclass(slots=True)
class _Listener:
    callback: Callback
    mask: int
    subscription: Subscription = field(repr=False)


_tellings: set[asyncio.Task[None]] = set()
_listeners: WeakKeyDictionary[AsyncScheduler, list[_Listener]] = WeakKeyDictionary()


def add_listener(scheduler: AsyncScheduler, callback: Callback, mask: int = EVENT_ALL) -> None:
    """Call ``callback`` with each event whose bit is in the mask, on the event loop. It may be ``async def``.

    Runs (``EVENT_JOB_EXECUTED``, ``_ERROR``, ``_MISSED``) are told by the process that made them, as in v3.
    ``EVENT_JOB_MISSED`` is told of those that were found too late when they were to start; of what fell due while
    nobody was up there is a ledger row only. ``EVENT_JOB_REMOVED`` comes for a job that has run for the last time when
    it is cleaned up. ``EVENT_JOB_MODIFIED`` and ``EVENT_ALL_JOBS_REMOVED`` are told of calls of this module in this
    process.

    :param mask: default: all of which somebody is told
    :raises NoEquivalent: if the mask names one of which nobody is told; ``EVENT_ALL`` names none
    """
    scheduler = own(scheduler)
    if mask != EVENT_ALL and (unknown := [said for bit, said in NOT_TOLD.items() if mask & bit]):
        listed = "; ".join(f"{name} ({why})" for name, why in unknown)
        raise NoEquivalent(f"expected events that there are, got {listed}. Leave them out of the mask.")

    def hear(event: Event) -> Any:
        made = _made(scheduler, event)
        return callback(made) if made is not None and made.code & mask else None

    kinds = {SchedulerStarted, SchedulerStopped, ScheduleAdded, ScheduleRemoved}
    if mask & (EVENT_JOB_EXECUTED | EVENT_JOB_ERROR | EVENT_JOB_MISSED):
        kinds.add(JobReleased)  # which costs something for each job, once somebody wants it
    subscription = scheduler.event_broker.subscribe(hear, kinds)
    _listeners.setdefault(scheduler, []).append(_Listener(callback, mask, subscription))


def remove_listener(scheduler: AsyncScheduler, callback: Callback) -> None:
    """Call ``callback`` no more; nothing happens if it is no listener."""
    kept = []
    for listener in _listeners.get(scheduler, []):
        if listener.callback == callback:
            listener.subscription.unsubscribe()
        else:
            kept.append(listener)
    _listeners[scheduler] = kept


def tell_added(scheduler: DuetimeScheduler, job_id: str) -> None:
    """Tell listeners of a job that took the place of another."""
    _tell(scheduler, JobEvent(EVENT_JOB_ADDED, job_id=job_id))


def tell_modified(scheduler: DuetimeScheduler, job_id: str) -> None:
    """Tell listeners of a job that was changed."""
    _tell(scheduler, JobEvent(EVENT_JOB_MODIFIED, job_id=job_id))


def tell_all_removed(scheduler: DuetimeScheduler) -> None:
    """Tell listeners that no job is left."""
    _tell(scheduler, SchedulerEvent(EVENT_ALL_JOBS_REMOVED))


def _tell(scheduler: DuetimeScheduler, event: SchedulerEvent) -> None:
    for listener in list(_listeners.get(scheduler, ())):
        if event.code & listener.mask:
            telling = asyncio.get_running_loop().create_task(_call(listener.callback, event))
            _tellings.add(telling)
            telling.add_done_callback(_tellings.discard)


async def _call(callback: Callback, event: SchedulerEvent) -> None:
    try:
        outcome = callback(event)
        if isawaitable(outcome):
            await outcome
    except Exception:  # what is told of has been done
        logger.exception("A listener failed on %s", event)


def _made(scheduler: DuetimeScheduler, event: Event) -> SchedulerEvent | None:
    """Return v3's event; None if v3 had none, or it is another process that would tell of it."""
    match event:
        case SchedulerStarted():
            return SchedulerEvent(EVENT_SCHEDULER_STARTED)
        case SchedulerStopped():
            return SchedulerEvent(EVENT_SCHEDULER_SHUTDOWN)
        case ScheduleAdded(schedule_id=job_id) if job_id:
            return JobEvent(EVENT_JOB_ADDED, job_id=job_id)
        case ScheduleRemoved(schedule_id=job_id) if job_id:
            return JobEvent(EVENT_JOB_REMOVED, job_id=job_id)
        case JobReleased(schedule_id=str(job_id), scheduler_id=node) if node == scheduler.identity:
            return _ended(event, job_id)
    return None


def _ended(event: JobReleased, job_id: str) -> JobExecutionEvent | None:
    codes = {
        JobOutcome.success: EVENT_JOB_EXECUTED,
        JobOutcome.error: EVENT_JOB_ERROR,
        JobOutcome.missed_start_deadline: EVENT_JOB_MISSED,
    }
    code = codes.get(event.outcome)
    if code is None:
        return None
    error = None
    if event.exception_type is not None:
        error = JobError(event.exception_type, event.exception_message or "")
    return JobExecutionEvent(
        code,
        job_id=job_id,
        scheduled_run_time=event.scheduled_start,
        exception=error,
    )
