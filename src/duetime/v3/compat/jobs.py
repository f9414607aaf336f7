"""Jobs: v3's calls, awaited, on schedules of APScheduler 4."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta, tzinfo
from typing import Any, Final, TextIO, cast

import attrs
from apscheduler import AsyncScheduler, CoalescePolicy, ConflictPolicy, Schedule
from apscheduler.abc import Trigger
from apscheduler.triggers.date import DateTrigger as StockDateTrigger

from ...errors import InvalidArguments, ScheduleExists, ScheduleNotFound, TriggerNeverFires, did_you_mean
from ...many import Drafts
from ...options import Overlap
from ...scheduler import DuetimeScheduler
from ...store.changing import ScheduleChanges, Update
from ...store.reads import NEVER_STORED, Reads
from ...store.rows import schedule_from
from ...triggers import describe
from . import listening
from .defaults import defaults_of, executor_of, only_store, own
from .meaning import going_on_after, trigger_of
from .moments import as_moment
from .options import MAX_INSTANCES, NAME, OVERLAP, call_of, checked_name, coalesce_of, grace_of, name_of, overlap_of
from .triggers import V3Said, jitter_of, made_of


class _Undefined:
    """Stands for an argument that is not given, where None means something."""

    def __repr__(self) -> str:
        return "<undefined>"


undefined: Final = _Undefined()

_CHANGES = (
    "func", "args", "kwargs", "name", "misfire_grace_time", "coalesce", "max_instances", "trigger", "executor",
    "next_run_time",
)  # fmt: skip


@dataclass(eq=False, slots=True)
class Job:
    """A job as it was when it was read. It does not follow what becomes of it; ask for it again.

    :ivar func_ref: name of its task
    :ivar next_run_time: aware, in the zone of its trigger; None: it is paused
    :ivar misfire_grace_time: seconds; None: never too late
    """

    id: str
    name: str
    func_ref: str
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    trigger: Trigger
    executor: str
    next_run_time: datetime | None
    misfire_grace_time: float | None
    coalesce: bool
    max_instances: int
    _scheduler: AsyncScheduler = field(repr=False)
    pending: bool = False

    async def modify(self, **changes: Any) -> Job:
        """Do what :func:`modify_job` does, and return the job as it is then."""
        return await modify_job(self._scheduler, self.id, **changes)

    async def reschedule(self, trigger: str | V3Said | Trigger | None = None, **trigger_args: Any) -> Job:
        """Do what :func:`reschedule_job` does, and return the job as it is then."""
        return await reschedule_job(self._scheduler, self.id, trigger=trigger, **trigger_args)

    async def pause(self) -> Job:
        """Do what :func:`pause_job` does, and return the job as it is then."""
        return await pause_job(self._scheduler, self.id)

    async def resume(self) -> Job | None:
        """Do what :func:`resume_job` does, and return the job as it is then; None if nothing is left of it."""
        return await resume_job(self._scheduler, self.id)

    async def remove(self) -> None:
        """Do what :func:`remove_job` does."""
        await remove_job(self._scheduler, self.id)

    def __eq__(self, other: object) -> bool:
        return self.id == other.id if isinstance(other, Job) else NotImplemented

    __hash__ = None  # type: ignore[assignment]

    def __str__(self) -> str:
        due = "paused" if self.next_run_time is None else f"next run at: {self.next_run_time:%Y-%m-%d %H:%M:%S %Z}"
        return f"{self.name} (trigger: {describe(self.trigger)}, {due})"


async def add_job(
    scheduler: AsyncScheduler,
    func: Callable[..., Any] | str,
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
    replace_existing: bool = False,
    **trigger_args: Any,
) -> Job:
    """Add a job, and return it once it is committed. The arguments mean what they mean in v3.

    :param func: a function; or ``module:name`` of one that is registered (``@task``): nothing is imported for a text
    :param trigger: ``date`` (default), ``interval``, ``cron``, ``calendarinterval``, a trigger of this module, or one
        of APScheduler 4, which is taken as it is
    :param id: default: a new one. The store outlives the process, so what is added at each start needs one
    :param misfire_grace_time: seconds a start may be late; None: without limit; default: 1, or as configured
    :param coalesce: whether the last of several due fires stands for all; default: True, or as configured
    :param max_instances: 1 (default, or as configured): a fire is skipped while the last one runs; more: they run
        beside each other, without a limit
    :param next_run_time: the first run, whatever the trigger says; None: the job is added paused
    :param executor: ``default``, ``auto``, ``async``, ``threadpool``, ``processpool``, or an alias that is configured
    :param replace_existing: put the job in the place of one with the same id
    :raises ScheduleExists: (a ConflictingIdError) if the id is taken and not to be replaced
    :raises TriggerNeverFires: if the trigger has no fire time left; v3 kept such a job as a paused one
    :raises NoEquivalent: if there is nothing here that means the same
    :raises UnknownTask: if a text names no registered task
    :raises InvalidTrigger, InvalidArguments: if an argument has no meaning
    """
    scheduler = own(scheduler)
    defaults = defaults_of(scheduler)
    only_store(jobstore)
    given = made_of(trigger, trigger_args, defaults.zone)
    made, jitter = _made(scheduler, given)
    task, call_args, call_kwargs = call_of(scheduler, func, args, kwargs)
    draft: dict[str, Any] = {
        "func_or_task_id": task,
        "trigger": made,
        "id": id,
        "args": call_args,
        "kwargs": call_kwargs,
        "paused": next_run_time is None,
        "max_jitter": jitter,
        "coalesce": coalesce_of(defaults.coalesce if isinstance(coalesce, _Undefined) else coalesce),
        "misfire_grace_time": grace_of(
            defaults.misfire_grace_time if isinstance(misfire_grace_time, _Undefined) else misfire_grace_time
        ),
        "metadata": {
            **overlap_of(defaults.max_instances if isinstance(max_instances, _Undefined) else max_instances),
            NAME: checked_name(name) if name is not None else name_of(func),
        },
    }
    if (chosen := executor_of(scheduler, executor)) is not None:
        draft["job_executor"] = chosen
    first: dict[str, Any] = {}
    if not isinstance(next_run_time, _Undefined) and next_run_time is not None:
        at = cast("datetime", as_moment(next_run_time, defaults.zone, "next_run_time"))
        first = {"trigger": going_on_after(made, at), "next_fire_time": at.astimezone(UTC)}
    [schedule] = await Drafts(scheduler.configure_task, scheduler.store.begun).schedules([draft])
    schedule = attrs.evolve(schedule, **{"trigger": made, **first})
    if schedule.next_fire_time is None:
        raise TriggerNeverFires(
            f"expected a job with a fire time, got one whose trigger has none left: {describe(schedule.trigger)}. v3 "
            f"kept such a job as a paused one that never ran; leave it out, or change its dates."
        )
    await _store(scheduler, schedule, replace_existing=replace_existing)
    return _job(scheduler, schedule)


async def _store(scheduler: DuetimeScheduler, schedule: Schedule, *, replace_existing: bool) -> None:
    if replace_existing:
        is_new = not await scheduler.store.get_schedules({schedule.id})
        await scheduler.store.add_schedule(schedule, ConflictPolicy.replace)
        if not is_new:  # of a new one the store tells
            listening.tell_added(scheduler, schedule.id)
        return
    try:
        await scheduler.store.add_schedule(schedule, ConflictPolicy.exception)
    except ScheduleExists:
        # v3 removes a job whose trigger has ended at once, so that its id is free again.
        stored = await scheduler.store.get_schedules({schedule.id})
        if any(_is_there(each) for each in stored):
            raise
        await scheduler.store.add_schedule(schedule, ConflictPolicy.replace)
        listening.tell_added(scheduler, schedule.id)


async def modify_job(scheduler: AsyncScheduler, job_id: str, jobstore: str | None = None, **changes: Any) -> Job:
    """Change a job in place, and return it.

    :param changes: ``func``, ``args``, ``kwargs``, ``name``, ``misfire_grace_time``, ``coalesce``, ``max_instances``,
        ``trigger`` (a trigger, not its alias), ``executor``, ``next_run_time`` (None: it is paused)
    :raises ScheduleNotFound: (v3's JobLookupError) if there is no such job
    :raises InvalidArguments: if something else is to be changed
    :raises NoEquivalent: if there is nothing here that means the same
    """
    scheduler = own(scheduler)
    only_store(jobstore)
    for name in changes:
        if name not in _CHANGES:
            hint = " The id may not be changed." if name == "id" else ""
            raise InvalidArguments(
                f"expected changes of {', '.join(_CHANGES)}, got {name!r}{did_you_mean(name, _CHANGES)}{hint}"
            )
    if "trigger" in changes and not isinstance(changes["trigger"], (V3Said, Trigger)):
        raise InvalidArguments(
            f"expected a trigger, got {changes['trigger']!r:.60}. reschedule_job() takes v3's alias and arguments."
        )
    job = await _change(scheduler, job_id, changes, is_new_rhythm=False)
    listening.tell_modified(scheduler, job_id)
    return job


async def reschedule_job(
    scheduler: AsyncScheduler,
    job_id: str,
    jobstore: str | None = None,
    trigger: str | V3Said | Trigger | None = None,
    **trigger_args: Any,
) -> Job:
    """Give a job another trigger, and return it; it begins anew with the trigger's first fire, also if it was paused.

    :raises ScheduleNotFound: (v3's JobLookupError) if there is no such job
    :raises TriggerNeverFires: if the trigger has no fire time left
    """
    scheduler = own(scheduler)
    only_store(jobstore)
    made = made_of(trigger, trigger_args, defaults_of(scheduler).zone)
    job = await _change(scheduler, job_id, {"trigger": made}, is_new_rhythm=True)
    listening.tell_modified(scheduler, job_id)
    return job


async def pause_job(scheduler: AsyncScheduler, job_id: str, jobstore: str | None = None) -> Job:
    """Stop a job from running until it is resumed, and return it.

    :raises ScheduleNotFound: (v3's JobLookupError) if there is no such job
    """
    return await modify_job(scheduler, job_id, jobstore, next_run_time=None)


async def resume_job(scheduler: AsyncScheduler, job_id: str, jobstore: str | None = None) -> Job | None:
    """Let a job run again and return it. What fell due while it was paused is passed over, but for a date, which is
    due at once, within its grace time.

    :returns: None if no fire time was left: then the job is removed
    :raises ScheduleNotFound: (v3's JobLookupError) if there is no such job
    """
    scheduler = own(scheduler)
    only_store(jobstore)
    stored = await _stored(scheduler, job_id)
    if stored.paused:
        is_date = isinstance(stored.trigger, StockDateTrigger)
        await scheduler.unpause_schedule(job_id, resume_from=None if is_date else "now")
    job = await get_job(scheduler, job_id)
    if job is None:
        await scheduler.store.remove_existing([job_id])
        return None
    listening.tell_modified(scheduler, job_id)
    return job


async def remove_job(scheduler: AsyncScheduler, job_id: str, jobstore: str | None = None) -> None:
    """Remove a job; what is queued or running of it goes on.

    :raises ScheduleNotFound: (v3's JobLookupError) if there is no such job, or if it has run for the last time
    """
    scheduler = own(scheduler)
    only_store(jobstore)
    await _stored(scheduler, job_id)
    if not await scheduler.store.remove_existing([job_id]):
        raise ScheduleNotFound(job_id)


async def remove_all_jobs(scheduler: AsyncScheduler, jobstore: str | None = None) -> None:
    """Remove all jobs: every schedule in the store, those of other doors too."""
    scheduler = own(scheduler)
    only_store(jobstore)
    await scheduler.store.remove_existing([schedule.id for schedule in await scheduler.store.get_schedules()])
    listening.tell_all_removed(scheduler)


async def get_job(scheduler: AsyncScheduler, job_id: str, jobstore: str | None = None) -> Job | None:
    """Return a job; None if there is none, or if it has run for the last time."""
    scheduler = own(scheduler)
    only_store(jobstore)
    found = await scheduler.store.get_schedules({job_id})
    return next((_job(scheduler, schedule) for schedule in found if _is_there(schedule)), None)


async def get_jobs(scheduler: AsyncScheduler, jobstore: str | None = None) -> list[Job]:
    """Return all jobs by their next run, the paused ones last: all schedules in the store, those of other doors too."""
    scheduler = own(scheduler)
    only_store(jobstore)
    jobs = [_job(scheduler, schedule) for schedule in await scheduler.store.get_schedules() if _is_there(schedule)]
    last = datetime.max.replace(tzinfo=UTC)
    return sorted(jobs, key=lambda job: (job.next_run_time or last, job.id))


async def print_jobs(scheduler: AsyncScheduler, jobstore: str | None = None, out: TextIO | None = None) -> None:
    """Print all jobs, one a line, as v3 did.

    :param out: default: standard output
    """
    jobs = await get_jobs(scheduler, jobstore)
    lines = (
        ["Jobstore default:", *(f"    {job}" for job in jobs)]
        if jobs
        else ["Jobstore default:", "    No scheduled jobs"]
    )
    (out or sys.stdout).write("".join(f"{line}\n" for line in lines))


async def _change(scheduler: DuetimeScheduler, job_id: str, changes: Mapping[str, Any], *, is_new_rhythm: bool) -> Job:
    """Write changes, again if somebody else has made some meanwhile or the job has fired, and return the job.

    :param is_new_rhythm: a new trigger begins with its own first fire, and ends a pause; else the next run stays
    """
    reads, writer = Reads(scheduler.store), ScheduleChanges(scheduler.store)
    while True:
        row = None if NEVER_STORED.search(job_id) else await reads.schedule(job_id)
        if row is None:
            raise ScheduleNotFound(job_id)
        stored = schedule_from(row, scheduler.store.serializer)
        if not _is_there(stored):
            raise ScheduleNotFound(job_id)
        changed = await _with_call(scheduler, stored, changes)
        changed = _with_options(scheduler, changed, changes)
        trigger, due, wakes = stored.trigger, stored.next_fire_time, is_new_rhythm
        if "trigger" in changes:
            trigger, jitter = _made(scheduler, changes["trigger"])
            changed = attrs.evolve(changed, max_jitter=cast("timedelta", jitter))
            if is_new_rhythm:
                due = trigger.next()
            elif due is not None:
                trigger = going_on_after(trigger, due)
        if changes.get("next_run_time") is not None:
            at = as_moment(changes["next_run_time"], defaults_of(scheduler).zone, "next_run_time")
            due, wakes = cast("datetime", at), True
            trigger = going_on_after(trigger, due)
        if due is None:
            raise TriggerNeverFires(
                "expected a trigger with a fire time left, got one without. Remove the job instead."
            )
        keeps = trigger is stored.trigger
        changed = attrs.evolve(changed, trigger=trigger, next_fire_time=due.astimezone(UTC))
        update = Update(
            changed, keeps_trigger=keeps, wants_position=not (keeps or wakes), detail={"fields": sorted(changes)}
        )
        if await writer.update(row, update) is None:
            continue
        if changes.get("next_run_time", undefined) is None:
            await scheduler.store.pause_schedule(job_id)
            changed = attrs.evolve(changed, paused=True)
        elif stored.paused and wakes:
            await scheduler.store.resume_schedule(job_id)
            changed = attrs.evolve(changed, paused=False)
        return _job(scheduler, changed)


async def _with_call(scheduler: DuetimeScheduler, stored: Schedule, changes: Mapping[str, Any]) -> Schedule:
    """Return the schedule with another function or other arguments, if these are changed."""
    if not changes.keys() & {"func", "args", "kwargs"}:
        return stored
    func = changes.get("func", stored.task_id)
    args, kwargs = changes.get("args", stored.args), changes.get("kwargs", stored.kwargs)
    task_id, args, kwargs = call_of(scheduler, func, args, kwargs, is_known="func" not in changes)
    if "func" not in changes:
        return attrs.evolve(stored, args=args, kwargs=kwargs)
    task = await scheduler.configure_task(task_id)
    return attrs.evolve(stored, task_id=task.id, job_executor=task.job_executor, args=args, kwargs=kwargs)


def _with_options(scheduler: DuetimeScheduler, schedule: Schedule, changes: Mapping[str, Any]) -> Schedule:
    metadata = dict(schedule.metadata)
    options: dict[str, Any] = {}
    if "name" in changes:
        metadata[NAME] = checked_name(changes["name"])
    if "max_instances" in changes:
        metadata.pop(MAX_INSTANCES, None)
        metadata |= overlap_of(changes["max_instances"])
    if "misfire_grace_time" in changes:
        options["misfire_grace_time"] = grace_of(changes["misfire_grace_time"])
    if "coalesce" in changes:
        options["coalesce"] = coalesce_of(changes["coalesce"])
    if "executor" in changes and (chosen := executor_of(scheduler, changes["executor"])) is not None:
        options["job_executor"] = chosen
    return attrs.evolve(schedule, metadata=metadata, **options)


def _made(scheduler: DuetimeScheduler, given: V3Said | Trigger) -> tuple[Trigger, timedelta | None]:
    """Return the trigger and its jitter."""
    if isinstance(given, Trigger):
        return given, None
    now = datetime.now(UTC) - scheduler.store.database.clock.host_offset
    return trigger_of(given.said, now), jitter_of(given.said)


async def _stored(scheduler: DuetimeScheduler, job_id: str) -> Schedule:
    """Return the schedule of a job.

    :raises ScheduleNotFound: if there is none, or if it has ended: v3 removes such a job at once
    """
    for schedule in await scheduler.store.get_schedules({job_id}):
        if _is_there(schedule):
            return schedule
    raise ScheduleNotFound(job_id)


def _is_there(schedule: Schedule) -> bool:
    return schedule.next_fire_time is not None


def _job(scheduler: DuetimeScheduler, schedule: Schedule) -> Job:
    due = None if schedule.paused else schedule.next_fire_time
    zone: tzinfo = getattr(schedule.trigger, "timezone", None) or defaults_of(scheduler).zone
    grace = schedule.misfire_grace_time
    skips = schedule.metadata.get(OVERLAP) == Overlap.skip
    return Job(
        id=schedule.id,
        name=str(schedule.metadata.get(NAME) or schedule.task_id.rpartition(":")[2]),
        func_ref=schedule.task_id,
        args=tuple(schedule.args),
        kwargs=dict(schedule.kwargs),
        trigger=schedule.trigger,
        executor=schedule.job_executor,
        next_run_time=None if due is None else due.astimezone(zone),
        misfire_grace_time=None if grace is None else grace.total_seconds(),
        coalesce=schedule.coalesce is not CoalescePolicy.all,
        max_instances=1 if skips else cast("int", schedule.metadata.get(MAX_INSTANCES, sys.maxsize)),
        _scheduler=scheduler,
    )
