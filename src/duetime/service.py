"""The verbs. Every door (REST, CLI, later MCP and dashboard) calls these and nothing else."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, TypeVar
from uuid import UUID

from apscheduler import AsyncScheduler, ConflictPolicy, DeserializationError, RunState, Schedule
from apscheduler.abc import Trigger
from pydantic import ValidationError
from pydantic_core import to_jsonable_python

from . import records
from .backfilling import Backfills
from .changing import Changes, Revisions
from .commands import (
    Backfill,
    FireQuery,
    NewJob,
    NewSchedule,
    NewSchedules,
    PageRequest,
    RunQuery,
    ScheduleChange,
    ScheduleQuery,
    Selection,
)
from .defining import (
    EXPIRES_AT,
    HISTORY_MAX_AGE,
    HISTORY_MAX_FIRES,
    MAX_FIRES,
    OWNER,
    Definition,
    Problems,
    Rules,
    define,
    is_too_late,
)
from .errors import DuetimeError, InvalidRequest, PreconditionFailed, RunNotFound, ScheduleNotFound
from .execution import Executors
from .explaining import Explanations
from .options import METADATA_PREFIX, CatchUp, TaskOptions
from .previewing import Previews
from .store import PostgresDataStore
from .store.cancelling import BY_REQUEST
from .store.reads import MAX_LIMIT, NEVER_STORED, Reads, decode_cursor, encode_cursor
from .store.rows import TAGS, schedule_from
from .store.slow_plans import is_stock
from .tasks import TaskRegistry, storable
from .triggers import Limited, describe, parses_quickly, to_json, unlimited, upcoming

R = TypeVar("R", bound=records.Record)

UPCOMING = 5
MAX_PREVIEWED = 100
"""Fires that a preview shows at most."""

PING_TIMEOUT = 1.5
"""Seconds the readiness check waits for the database."""


class Service:
    """Schedules, fires, runs, jobs and tasks of one store.

    :param scheduler: writes schedules and jobs
    :param store: the scheduler's data store
    :param registry: the tasks that may be named
    :param problem: says why the scheduler does not run, when it does not
    """

    def __init__(
        self,
        scheduler: AsyncScheduler,
        store: PostgresDataStore,
        registry: TaskRegistry,
        problem: Callable[[], str | None] = lambda: None,
        rules: Rules = Rules(),  # noqa: B008 - immutable
    ) -> None:
        self._scheduler = scheduler
        self._store = store
        self._registry = registry
        self._problem = problem
        self._reads = Reads(store)
        self._rules = rules
        self._changes = Changes(scheduler, store, registry, self._reads, rules)
        self._explanations = Explanations(self._reads)
        self._backfills = Backfills(store, self._reads)
        self._previews = Previews(
            self._reads, registry, store.serializer, rules, store.max_arguments_bytes, self._schedule
        )

    # -- schedules ----------------------------------------------------------------------------------------------------

    async def add(self, new: NewSchedule) -> records.Schedule:
        """Store a schedule and return it once it is committed (promise 1).

        A date in the past is allowed and runs at once; the record's ``note`` says so.

        :raises UnknownTask: if no such task is registered
        :raises InvalidArguments: if the arguments do not fit the task function
        :raises InvalidTrigger: if the trigger has no meaning, an unknown time zone, never fires, or too often
        :raises InvalidOptions: if options, those of the task included, contradict each other or the trigger
        :raises InvalidSchedule: if several of these are wrong: it lists them all
        :raises ScheduleExists: if the id is taken
        :raises InvalidScheduleId: if the id cannot be stored
        :raises ArgumentsTooLarge: if the arguments are too large to be stored
        :raises StoreUnavailable: if the database does not answer in time; nothing half is stored
        """
        problems = Problems()
        make = partial(define, new, self._registry, self._now(), self._rules, problems)
        # Some first fires take a while to find, and how close together fires are is found out by looking at many of
        # them: the event loop has no time for that (promise 7).
        is_quick = self._rules.min_interval is None and parses_quickly(new.trigger)
        definition = make() if is_quick else await asyncio.to_thread(make)
        problems.raise_any()
        assert definition is not None  # noqa: S101 - else there is a problem
        schedule_id = await self._scheduler.add_schedule(
            definition.task.name,
            definition.trigger,
            id=new.id,
            args=definition.args,
            kwargs=definition.kwargs,
            paused=new.paused,
            metadata=definition.metadata,
            conflict_policy=ConflictPolicy.exception,
            **definition.options,
        )
        row = await self._reads.schedule(schedule_id)
        if row is None:
            raise ScheduleNotFound(schedule_id)  # somebody has removed it already
        grace_time = row["misfire_grace_time"]
        return await self._shown(row, await self._past_note(schedule_id, new, definition, _seconds(grace_time)))

    async def _past_note(
        self, schedule_id: str, new: NewSchedule, definition: Definition, grace_time: float | None
    ) -> str | None:
        """Return what is to be said of a date that has passed already."""
        run_time: datetime | None = getattr(unlimited(definition.trigger), "run_time", None)
        if run_time is None or run_time > self._now() or new.paused:
            return None
        fires = await self._reads.fires(limit=1, schedule_id=schedule_id)
        if fires and fires[0]["fire_time"] == run_time and fires[0]["created_at"] < self._now() - timedelta(seconds=5):
            return (
                f"The ledger already has the fire of {run_time.isoformat()} for this id, and a fire exists once: it "
                f"does not run again. Use another id, or run the schedule by request."
            )
        if is_too_late(definition, self._now() - run_time, grace_time):
            return f"Its date, {run_time.isoformat()}, lies too far in the past to run: its fire is missed."
        return f"Its date, {run_time.isoformat()}, lies in the past: it runs at once."

    async def preview(self, new: NewSchedule, *, fires: int = UPCOMING) -> records.Preview:
        """Return what a schedule would be and do, and everything that is wrong with it. Nothing is stored.

        :param fires: how many of the next fires are shown, at most 100
        """
        return await self._previews.of(new, self._now(), min(fires, MAX_PREVIEWED))

    async def update(
        self, schedule_id: str, change: ScheduleChange, *, revision: Revisions | None = None
    ) -> records.Schedule:
        """Change parts of a schedule, and return it. Its history stays, and so does its next fire time, unless the
        change gives it another trigger.

        :param revision: refuse the change if the schedule is in another revision (or in none of these) by now
        :raises ScheduleNotFound: if it is not stored
        :raises PreconditionFailed: if somebody has changed it since that revision
        :raises InvalidSchedule: if several things are wrong: it lists them all
        :raises ScheduleExists: if the new id is taken
        :raises UnknownTask, InvalidArguments, InvalidTrigger: as :meth:`add` does
        """
        return await self.get(await self._changes.update(schedule_id, change, self._now(), revision))

    async def add_all(self, new: NewSchedules) -> records.Bulk:
        """Store many schedules, all of them or none, and return their ids in the order in which they came.

        :raises InvalidSchedule: if something is wrong with any of them: it lists everything, with its place
        :raises ScheduleExists: if an id is taken
        """
        return _bulk(await self._changes.add_all(new.schedules, self._now()))

    async def remove_all(self, selection: Selection) -> records.Bulk:
        """Remove the chosen schedules, all of them or none, and return which; see :meth:`remove`.

        :raises InvalidRequest: if nothing says which are meant, one of the ids is not stored, or more than 10,000 are
        """
        wanted = await self._changes.chosen(selection)
        return _bulk(wanted if selection.dry_run else await self._store.remove_existing(wanted), selection.dry_run)

    async def pause_all(self, selection: Selection) -> records.Bulk:
        """Stop the chosen schedules from firing, those that are active, and return which; see :meth:`pause`.

        :raises InvalidRequest: as :meth:`remove_all` does
        """
        wanted = await self._changes.chosen(selection, "active")
        return _bulk(wanted if selection.dry_run else await self._store.pause_schedules(wanted), selection.dry_run)

    async def resume_all(self, selection: Selection) -> records.Bulk:
        """Let the chosen schedules fire again, those that are paused, and return which; see :meth:`resume`.

        :raises InvalidRequest: as :meth:`remove_all` does
        """
        return _bulk(await self._changes.resume_all(selection, self._now()), selection.dry_run)

    async def get(self, schedule_id: str) -> records.Schedule:
        """Return a schedule.

        :raises ScheduleNotFound: if it is not stored
        """
        row = await self._reads.schedule(_storable_id(schedule_id))
        if row is None:
            raise ScheduleNotFound(schedule_id)
        return await self._shown(row)

    async def schedules(self, query: ScheduleQuery) -> records.Page[records.Schedule]:
        """Return a page of the schedules that fit all filters, by id.

        :raises InvalidCursor: if ``after`` is not a cursor of this list
        :raises UnknownTask: if the task filter names no registered task
        :raises InvalidRequest: if a filter has characters that are never stored
        """
        _check_texts(query)
        cursor = decode_cursor(query.after, str)
        limit = _clamp(query)
        rows = await self._reads.schedules(
            limit=limit + 1,
            after=cursor[0] if cursor else None,
            task=self._task_name(query.task),
            tag=query.tag,
            state=query.state,
            engine=query.engine,
            due_before=query.due_before,
            search=query.search,
            owner=query.owner,
        )
        # Describing and previewing two hundred triggers takes longer than the event loop may be held (promise 7).
        return await asyncio.to_thread(_page, rows, limit, self._schedule, lambda row: (row["id"],))

    async def remove(self, schedule_id: str, *, revision: Revisions | None = None) -> None:
        """Remove a schedule; its fires and runs stay readable, and work that is queued or running goes on.

        :param revision: only if the schedule is still in this revision (or in one of these)
        :raises ScheduleNotFound: if it is not stored
        :raises PreconditionFailed: if somebody has changed it since that revision
        """
        expected = await self._changes.expected(schedule_id, revision)
        if not await self._store.remove_existing([schedule_id], revision=expected):
            raise ScheduleNotFound(schedule_id) if expected is None else PreconditionFailed(schedule_id)

    async def pause(self, schedule_id: str, *, revision: Revisions | None = None) -> records.Schedule:
        """Stop a schedule from firing until it is resumed, and return it.

        :param revision: only if the schedule is still in this revision (or in one of these)
        :raises ScheduleNotFound: if it is not stored
        :raises PreconditionFailed: if somebody has changed it since that revision
        """
        expected = await self._changes.expected(schedule_id, revision)
        if not await self._store.pause_schedules([schedule_id], revision=expected):
            raise ScheduleNotFound(schedule_id) if expected is None else PreconditionFailed(schedule_id)
        return await self.get(schedule_id)

    async def resume(self, schedule_id: str, *, revision: Revisions | None = None) -> records.Schedule:
        """Let a schedule fire again, from its next fire time on; what fell due while it was paused is passed over.

        An active schedule stays as it is.

        :param revision: only if the schedule is still in this revision (or in one of these)
        :raises ScheduleNotFound: if it is not stored
        :raises PreconditionFailed: if somebody has changed it since that revision
        """
        expected = await self._changes.expected(schedule_id, revision)
        schedule = await self.get(schedule_id)
        if schedule.state is records.ScheduleState.active:
            return schedule  # to resume it would pass over a fire that is due just now
        if expected is None:
            await self._scheduler.unpause_schedule(schedule_id, resume_from="now")
        else:
            await self._changes.resume(schedule_id, expected, self._now())
        return await self.get(schedule_id)

    async def run_schedule(self, schedule_id: str) -> records.Job:
        """Run a schedule's task once, now, beside its fire times, and return the job.

        :raises ScheduleNotFound: if it is not stored
        """
        job_id = await self._store.run_schedule(schedule_id)
        [fire] = await self._reads.fires(limit=1, schedule_id=schedule_id, job_id=job_id)
        return _new_job(job_id, fire["task"], fire["fire_time"], schedule_id)

    async def backfill(
        self, schedule_id: str, start: datetime, end: datetime, *, overlap: str = "buffer_all", dry_run: bool = False
    ) -> records.BackfillResult:
        """Make up for the fires of a schedule from ``start`` on and before ``end`` that have had no job.

        That are those that the ledger does not have, and those that were skipped, missed or coalesced. Asked again, it
        makes no second job for any of them.

        :param start, end: aware; the end not after now
        :param overlap: the policy of these jobs
        :param dry_run: only say how many they would be
        :raises ScheduleNotFound: if it is not stored
        :raises InvalidRequest: if the range is none, or there is no such policy
        :raises TooManyFires: if they are more than 10,000; the message has their number
        """
        try:
            wanted = Backfill(start=start, end=end, overlap=overlap, dry_run=dry_run)
        except ValidationError as exc:
            raise InvalidRequest(exc.errors()[0]["msg"].removeprefix("Value error, ")) from None
        return await self._backfills.of(await self._changes.row(schedule_id), wanted, self._now())

    # -- jobs ---------------------------------------------------------------------------------------------------------

    async def add_job(self, new: NewJob) -> records.Job:
        """Run a task once, now, and return the job once it is committed.

        :raises UnknownTask: if no such task is registered
        :raises InvalidArguments: if the arguments do not fit the task function
        """
        task = self._registry.find(new.task)
        args, kwargs = task.bind(new.args, new.kwargs)
        job_id = await self._scheduler.add_job(task.name, args=storable(args), kwargs=storable(kwargs))
        return _new_job(job_id, task.name, self._now())

    async def jobs(self, query: PageRequest) -> records.Page[records.Job]:
        """Return a page of the queued and running jobs, by the time they are due.

        :raises InvalidCursor: if ``after`` is not a cursor of this list
        """
        cursor = decode_cursor(query.after, datetime, UUID)
        limit = _clamp(query)
        rows = await self._reads.jobs(limit=limit + 1, after=(cursor[0], cursor[1]) if cursor else None)
        return _page(rows, limit, _job, lambda row: (row["run_at"], row["id"]))

    async def cancel_job(self, job_id: UUID, reason: str | None = None) -> records.Cancellation:
        """Cancel a job. One that is queued, or waits for its next attempt, has ended when this returns; one that a node
        has claimed is cancelled by that node, as soon as it hears of it. Asking again changes nothing.

        An ``async def`` is cancelled, a worker process is killed; a thread cannot be stopped: its job ends, and it goes
        on unheeded.

        :param reason: what the ledger says of it, at most 500 characters
        :raises JobNotFound: if no job of that id is queued or running
        :raises InvalidRequest: if the reason has characters that are never stored
        """
        said = "" if reason is None else reason.strip()[:500]
        if NEVER_STORED.search(said):
            raise InvalidRequest("expected a reason without NUL characters and lone surrogates.")
        done = await self._store.cancel_job(job_id, f"{BY_REQUEST}: {said}" if said else BY_REQUEST)
        state = records.CancelState.cancelled if done.is_ended else records.CancelState.requested
        return records.Cancellation(job_id=job_id, state=state, node=done.node)

    # -- history ------------------------------------------------------------------------------------------------------

    async def fires(self, query: FireQuery) -> records.Page[records.Fire]:
        """Return a page of the ledger, newest fire first.

        :raises InvalidCursor: if ``after`` is not a cursor of this list
        :raises InvalidRequest: if a filter has characters that are never stored
        """
        _check_texts(query)
        cursor = decode_cursor(query.after, datetime, str)
        limit = _clamp(query)
        rows = await self._reads.fires(
            limit=limit + 1,
            before=(cursor[0], cursor[1]) if cursor else None,
            schedule_id=query.schedule_id,
            state=query.state,
        )
        return _page(rows, limit, lambda row: records.Fire(**row), lambda row: (row["fire_time"], row["schedule_id"]))

    async def runs(self, query: RunQuery) -> records.Page[records.Run]:
        """Return a page of the runs, newest first.

        :raises InvalidCursor: if ``after`` is not a cursor of this list
        :raises UnknownTask: if the task filter names no registered task
        :raises InvalidRequest: if a filter has characters that are never stored
        """
        _check_texts(query)
        cursor = decode_cursor(query.after, int)
        limit = _clamp(query)
        rows = await self._reads.runs(
            limit=limit + 1,
            before=cursor[0] if cursor else None,
            schedule_id=query.schedule_id,
            task=self._task_name(query.task),
            outcome=query.outcome,
        )
        return _page(rows, limit, lambda row: records.Run(**row), lambda row: (row["id"],))

    async def explain(self, schedule_id: str, fire_time: datetime) -> records.Explanation:
        """Return why a schedule ran at an instant, or why it did not, from the ledger and what was done to it.

        :param fire_time: aware; whole seconds also mean a fire within that second
        :raises ScheduleNotFound: if there never was such a schedule, as far as is known
        """
        row = None if NEVER_STORED.search(schedule_id) else await self._reads.schedule(schedule_id)
        stored = None if row is None else await self._shown(row)
        return await self._explanations.of(schedule_id, fire_time.astimezone(UTC), self._now(), row, stored)

    async def run(self, run_id: int) -> records.Run:
        """Return a run.

        :raises RunNotFound: if there is none of that id
        """
        rows = await self._reads.runs(limit=1, run_id=run_id) if 0 < run_id < 2**63 else []
        if not rows:
            raise RunNotFound(f"expected the id of a stored run, got {run_id}. `GET /runs` lists them.")
        return records.Run(**rows[0])

    # -- the node -----------------------------------------------------------------------------------------------------

    async def tasks(self) -> list[records.Task]:
        """Return the registered tasks with the JSON Schema of their arguments, by name."""
        return [task.record() for task in self._registry]

    async def readiness(self) -> records.Readiness:
        """Say whether this node can do its work; answers within two seconds, whatever the database does."""
        database, reason = "ok", None
        try:
            async with asyncio.timeout(PING_TIMEOUT):
                await self._reads.ping()
        except (DuetimeError, TimeoutError) as exc:
            cause = self._store.database.outage or exc
            database, reason = "unreachable", f"the database does not answer ({type(cause).__name__}: {cause})"
        state = self._scheduler.state
        executors = self._scheduler.job_executors
        if reason is None and state is not RunState.started:
            reason = self._problem() or f"the scheduler is {state.name}"
        return records.Readiness(
            ready=reason is None,
            reason=reason,
            scheduler=state.name,
            database=database,
            node=self._scheduler.identity,
            abandoned_threads=executors.abandoned_threads if isinstance(executors, Executors) else 0,
            abandoned_coroutines=executors.coroutines.left if isinstance(executors, Executors) else 0,
        )

    # -- rows to records ----------------------------------------------------------------------------------------------

    def _now(self) -> datetime:
        """Return the database's time, as far as it is known."""
        return datetime.now(UTC) - self._store.database.clock.host_offset

    def _task_name(self, name: str | None) -> str | None:
        return None if name is None else self._registry.find(name).name

    async def _shown(self, row: Mapping[str, Any], note: str | None = None) -> records.Schedule:
        show = partial(self._schedule, row, note)
        # A calendar of holidays may have to be loaded, which takes longer than the event loop may be held (promise 7).
        return await asyncio.to_thread(show) if b"holidays" in row["trigger"] else show()

    def _schedule(self, row: Mapping[str, Any], note: str | None = None) -> records.Schedule:
        try:
            return self._readable(row, note)
        except (DeserializationError, ValueError, TypeError, OverflowError) as exc:
            # What cannot be read is shown as such, so that it can be removed or replaced.
            return records.Schedule(
                **{**_common(row), "engine": records.Engine.apscheduler},
                args=[],
                kwargs={},
                trigger={"type": "unreadable"},
                description="unreadable",
                state=records.ScheduleState.broken,
                broken_reason=row["broken_reason"] or str(exc),
                overlap="",
            )

    def _readable(self, row: Mapping[str, Any], note: str | None) -> records.Schedule:
        """Return the record of a schedule.

        :raises ValueError, TypeError, OverflowError, apscheduler.DeserializationError: if something in it cannot be
            read
        """
        paused, broken = row["paused"], row["broken_reason"]
        schedule = schedule_from(row, self._store.serializer)
        if broken is not None:
            state = records.ScheduleState.broken
        elif schedule.next_fire_time is None:
            state = records.ScheduleState.finished
        else:
            state = records.ScheduleState.paused if paused else records.ScheduleState.active
        times: list[datetime] = []
        if state is records.ScheduleState.active and schedule.next_fire_time is not None:
            # What an application's own trigger does when it is asked for times may take for ever: it is not asked.
            later = upcoming(schedule.trigger, UPCOMING - 1) if is_stock(schedule.trigger) else []
            zone = later[0].tzinfo if later else getattr(schedule.trigger, "timezone", UTC)
            times = [schedule.next_fire_time.astimezone(zone), *later]
        task_options = TaskOptions.from_metadata(schedule.metadata)
        options: dict[str, Any] = {
            **task_options.shown(),
            # Which of the two was given, the other one says the same.
            "catch_up": str(task_options.catch_up or schedule.coalesce.name),
            "coalesce": _coalesce(schedule, task_options),
            "misfire_grace_time": _seconds(schedule.misfire_grace_time),
            "max_jitter": _seconds(schedule.max_jitter),
            "result_ttl": _seconds(schedule.job_result_expiration_time),
            "executor": schedule.job_executor,
            "history_max_age": schedule.metadata.get(HISTORY_MAX_AGE, _seconds(self._store.history_max_age)),
            "history_max_fires": schedule.metadata.get(HISTORY_MAX_FIRES, self._store.history_max_fires),
        }
        return records.Schedule(
            **_common(row),
            args=list(_plain(schedule.args)),
            kwargs=_plain(schedule.kwargs),
            trigger=to_json(schedule.trigger),
            description=describe(schedule.trigger),
            state=state,
            broken_reason=broken,
            pause_reason=row["pause_reason"] if paused else None,
            upcoming=times,
            overlap=task_options.overlap,
            options=options,
            tags=schedule.metadata.get(TAGS, []),
            owner=schedule.metadata.get(OWNER),
            expires_at=schedule.metadata.get(EXPIRES_AT),
            max_fires=schedule.metadata.get(MAX_FIRES),
            finished_reason=_finished_reason(schedule.trigger) if state is records.ScheduleState.finished else None,
            metadata={key: value for key, value in schedule.metadata.items() if not key.startswith(METADATA_PREFIX)},
            note=note,
        )


def _coalesce(schedule: Schedule, options: TaskOptions) -> str:
    """Return the coalesce policy that counts: that of catch_up, if it has one."""
    own = options.catch_up
    return schedule.coalesce.name if own is None or own is CatchUp.none else str(own)


def _common(row: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "id": row["id"],
        "task": row["task_id"],
        "next_fire_time": row["next_fire_time"],
        "last_fire_time": row["last_fire_time"],
        "engine": row["engine"],
        "created_at": row["created_at"],
        "updated_at": row["updated_at"],
        "revision": str(row["revision"]),
    }


def _bulk(ids: Sequence[str], dry_run: bool = False) -> records.Bulk:
    return records.Bulk(count=len(ids), ids=list(ids), dry_run=dry_run)


def _finished_reason(trigger: Trigger) -> str:
    limits = trigger.run_out() if isinstance(trigger, Limited) else None
    return limits or "its trigger has no fire time left"


def _new_job(job_id: UUID, task: str, at: datetime, schedule_id: str | None = None) -> records.Job:
    return records.Job(
        id=job_id,
        task=task,
        schedule_id=schedule_id,
        fire_time=at if schedule_id else None,
        state=records.JobState.queued,
        attempt=0,
        run_at=at,
        created_at=at,
    )


def _job(row: Mapping[str, Any]) -> records.Job:
    waits = row["waits"]
    state = records.JobState.running if row["running"] else records.JobState.queued
    return records.Job(
        id=row["id"],
        task=row["task_id"],
        schedule_id=row["schedule_id"],
        fire_time=row["fire_time"],
        state=records.JobState.waiting if waits else state,
        attempt=row["attempt"],
        run_at=row["scheduled_fire_time"] or row["created_at"] if waits else row["run_at"],
        node=row["acquired_by"],
        last_error=row["last_error"],
        cancel_requested_at=row["cancel_requested_at"],
        cancel_reason=row["cancel_reason"],
        created_at=row["created_at"],
    )


def _seconds(duration: timedelta | None) -> float | None:
    return None if duration is None else duration.total_seconds()


def _plain(value: Any) -> Any:
    """Return stored arguments as JSON shows them."""
    return to_jsonable_python(value, fallback=str, bytes_mode="base64", inf_nan_mode="strings")


def _storable_id(schedule_id: str) -> str:
    """Return the id of a schedule that may be stored.

    :raises ScheduleNotFound: if no schedule can have this id
    """
    if NEVER_STORED.search(schedule_id):
        raise ScheduleNotFound(schedule_id)
    return schedule_id


def _check_texts(query: PageRequest) -> None:
    """Do nothing if PostgreSQL takes all texts of a query.

    :raises InvalidRequest: naming the first that it does not take
    """
    for name, value in query:
        if isinstance(value, str) and NEVER_STORED.search(value):
            raise InvalidRequest(
                f"expected {name} without NUL characters and lone surrogates, which nothing stored has, got "
                f"{value[:80]!a}."
            )


def _clamp(query: PageRequest) -> int:
    return min(query.limit, MAX_LIMIT)


def _page(
    rows: Sequence[Mapping[str, Any]],
    limit: int,
    record: Callable[[Mapping[str, Any]], R],
    key: Callable[[Mapping[str, Any]], tuple[Any, ...]],
) -> records.Page[R]:
    """Return a page of ``limit`` rows, from one row more than that."""
    shown = rows[:limit]
    following = encode_cursor(*key(shown[-1])) if len(rows) > limit else None
    return records.Page(items=[record(row) for row in shown], next=following)
