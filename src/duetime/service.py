"""The verbs. Every door (REST, CLI, later MCP and dashboard) calls these and nothing else."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar
from uuid import UUID

from apscheduler import AsyncScheduler, CoalescePolicy, ConflictPolicy, DeserializationError, RunState
from apscheduler.abc import Trigger
from pydantic_core import to_jsonable_python

from . import records
from .commands import FireQuery, NewJob, NewSchedule, PageRequest, RunQuery, ScheduleOptions, ScheduleQuery
from .errors import DuetimeError, InvalidRequest, RunNotFound, ScheduleNotFound
from .store import PostgresDataStore
from .store.adding import check_schedule_id
from .store.reads import MAX_LIMIT, NEVER_STORED, Reads, decode_cursor, encode_cursor
from .store.rows import ENGINE, TAGS, schedule_from
from .store.slow_plans import is_stock
from .tasks import METADATA_PREFIX, TaskOptions, TaskRegistry, storable
from .triggers import describe, parse, to_json, upcoming

R = TypeVar("R", bound=records.Record)

UPCOMING = 5
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
    ) -> None:
        self._scheduler = scheduler
        self._store = store
        self._registry = registry
        self._problem = problem
        self._reads = Reads(store)

    # -- schedules ----------------------------------------------------------------------------------------------------

    async def add(self, new: NewSchedule) -> records.Schedule:
        """Store a schedule and return it once it is committed (promise 1).

        A date in the past is allowed and runs at once; the record's ``note`` says so.

        :raises UnknownTask: if no such task is registered
        :raises InvalidArguments: if the arguments do not fit the task function
        :raises InvalidTrigger: if the trigger has no meaning, an unknown time zone, or never fires
        :raises ScheduleExists: if the id is taken
        :raises InvalidScheduleId: if the id cannot be stored
        :raises ArgumentsTooLarge: if the arguments are too large to be stored
        :raises StoreUnavailable: if the database does not answer in time; nothing half is stored
        """
        if new.id is not None:
            check_schedule_id(new.id)
        task = self._registry.find(new.task)
        args, kwargs = task.bind(new.args, new.kwargs)
        trigger = parse(new.trigger, now=self._now())
        options = _stock_options(new.options)
        schedule_id = await self._scheduler.add_schedule(
            task.func,
            trigger,
            id=new.id,
            args=storable(args),
            kwargs=storable(kwargs),
            paused=new.paused,
            metadata=_metadata(new),
            conflict_policy=ConflictPolicy.exception,
            **options,
        )
        row = await self._reads.schedule(schedule_id)
        if row is None:
            raise ScheduleNotFound(schedule_id)  # somebody has removed it already
        return self._schedule(row, note=await self._past_note(schedule_id, new, trigger))

    async def _past_note(self, schedule_id: str, new: NewSchedule, trigger: Trigger) -> str | None:
        """Return what is to be said of a date that has passed already."""
        run_time: datetime | None = getattr(trigger, "run_time", None)
        if run_time is None or run_time > self._now() or new.paused:
            return None
        fires = await self._reads.fires(limit=1, schedule_id=schedule_id)
        if fires and fires[0]["fire_time"] == run_time and fires[0]["created_at"] < self._now() - timedelta(seconds=5):
            return (
                f"The ledger already has the fire of {run_time.isoformat()} for this id, and a fire exists once: it "
                f"does not run again. Use another id, or run the schedule by request."
            )
        return f"Its date, {run_time.isoformat()}, lies in the past: it runs at once."

    async def get(self, schedule_id: str) -> records.Schedule:
        """Return a schedule.

        :raises ScheduleNotFound: if it is not stored
        """
        row = await self._reads.schedule(_storable_id(schedule_id))
        if row is None:
            raise ScheduleNotFound(schedule_id)
        return self._schedule(row)

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
        )
        # Describing and previewing two hundred triggers takes longer than the event loop may be held (promise 7).
        return await asyncio.to_thread(_page, rows, limit, self._schedule, lambda row: (row["id"],))

    async def remove(self, schedule_id: str) -> None:
        """Remove a schedule; its fires and runs stay readable, and work that is queued or running goes on.

        :raises ScheduleNotFound: if it is not stored
        """
        if await self._reads.schedule(_storable_id(schedule_id)) is None:
            raise ScheduleNotFound(schedule_id)
        await self._scheduler.remove_schedule(schedule_id)

    async def pause(self, schedule_id: str) -> records.Schedule:
        """Stop a schedule from firing until it is resumed, and return it.

        :raises ScheduleNotFound: if it is not stored
        """
        await self._scheduler.pause_schedule(schedule_id)
        return await self.get(schedule_id)

    async def resume(self, schedule_id: str) -> records.Schedule:
        """Let a schedule fire again, from its next fire time on; what fell due while it was paused is passed over.

        An active schedule stays as it is.

        :raises ScheduleNotFound: if it is not stored
        """
        schedule = await self.get(schedule_id)
        if schedule.state is records.ScheduleState.active:
            return schedule  # to resume it would pass over a fire that is due just now
        await self._scheduler.unpause_schedule(schedule_id, resume_from="now")
        return await self.get(schedule_id)

    async def run_schedule(self, schedule_id: str) -> records.Job:
        """Run a schedule's task once, now, beside its fire times, and return the job.

        :raises ScheduleNotFound: if it is not stored
        """
        job_id = await self._store.run_schedule(schedule_id)
        [fire] = await self._reads.fires(limit=1, schedule_id=schedule_id, job_id=job_id)
        return _new_job(job_id, fire["task"], fire["fire_time"], schedule_id)

    # -- jobs ---------------------------------------------------------------------------------------------------------

    async def add_job(self, new: NewJob) -> records.Job:
        """Run a task once, now, and return the job once it is committed.

        :raises UnknownTask: if no such task is registered
        :raises InvalidArguments: if the arguments do not fit the task function
        """
        task = self._registry.find(new.task)
        args, kwargs = task.bind(new.args, new.kwargs)
        job_id = await self._scheduler.add_job(task.func, args=storable(args), kwargs=storable(kwargs))
        return _new_job(job_id, task.name, self._now())

    async def jobs(self, query: PageRequest) -> records.Page[records.Job]:
        """Return a page of the queued and running jobs, by the time they are due.

        :raises InvalidCursor: if ``after`` is not a cursor of this list
        """
        cursor = decode_cursor(query.after, datetime, UUID)
        limit = _clamp(query)
        rows = await self._reads.jobs(limit=limit + 1, after=(cursor[0], cursor[1]) if cursor else None)
        return _page(rows, limit, _job, lambda row: (row["run_at"], row["id"]))

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
        if reason is None and state is not RunState.started:
            reason = self._problem() or f"the scheduler is {state.name}"
        return records.Readiness(
            ready=reason is None,
            reason=reason,
            scheduler=state.name,
            database=database,
            node=self._scheduler.identity,
        )

    # -- rows to records ----------------------------------------------------------------------------------------------

    def _now(self) -> datetime:
        """Return the database's time, as far as it is known."""
        return datetime.now(UTC) - self._store.database.clock.host_offset

    def _task_name(self, name: str | None) -> str | None:
        return None if name is None else self._registry.find(name).name

    def _schedule(self, row: Mapping[str, Any], note: str | None = None) -> records.Schedule:
        paused, broken = row["paused"], row["broken_reason"]
        try:
            schedule = schedule_from(row, self._store.serializer)
        except DeserializationError as exc:
            # What cannot be read is shown as such, so that it can be removed or replaced.
            return records.Schedule(
                **_common(row),
                args=[],
                kwargs={},
                trigger={"type": "unreadable"},
                description="unreadable",
                state=records.ScheduleState.broken,
                broken_reason=broken or str(exc),
                overlap="",
            )
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
            "coalesce": schedule.coalesce.name,
            "misfire_grace_time": _seconds(schedule.misfire_grace_time),
            "max_jitter": _seconds(schedule.max_jitter),
            "result_ttl": _seconds(schedule.job_result_expiration_time),
            "executor": schedule.job_executor,
        }
        return records.Schedule(
            **_common(row),
            args=list(_plain(schedule.args)),
            kwargs=_plain(schedule.kwargs),
            trigger=to_json(schedule.trigger),
            description=describe(schedule.trigger),
            state=state,
            broken_reason=broken,
            upcoming=times,
            overlap=task_options.overlap,
            options=options,
            tags=schedule.metadata.get(TAGS, []),
            metadata={key: value for key, value in schedule.metadata.items() if not key.startswith(METADATA_PREFIX)},
            note=note,
        )


def _common(row: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "id": row["id"],
        "task": row["task_id"],
        "next_fire_time": row["next_fire_time"],
        "last_fire_time": row["last_fire_time"],
        "engine": row["engine"],
        "created_at": row["created_at"],
        "updated_at": row["updated_at"],
    }


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
    return records.Job(
        id=row["id"],
        task=row["task_id"],
        schedule_id=row["schedule_id"],
        fire_time=row["fire_time"],
        state=records.JobState.running if row["running"] else records.JobState.queued,
        attempt=row["attempt"],
        run_at=row["run_at"],
        node=row["acquired_by"],
        created_at=row["created_at"],
    )


def _stock_options(options: ScheduleOptions) -> dict[str, Any]:
    """Return the options that are APScheduler's own, as ``add_schedule`` takes them; what is not given is left out."""
    given: dict[str, Any] = {}
    if options.coalesce is not None:
        given["coalesce"] = CoalescePolicy[options.coalesce]
    if options.misfire_grace_time is not None:
        given["misfire_grace_time"] = options.misfire_grace_time
    if options.max_jitter is not None:
        given["max_jitter"] = options.max_jitter
    if options.result_ttl is not None:
        given["job_result_expiration_time"] = options.result_ttl
    return given


def _metadata(new: NewSchedule) -> dict[str, Any]:
    """Return the schedule's metadata: the caller's, and Duetime's own under its prefix."""
    reserved = [key for key in new.metadata if key.startswith(METADATA_PREFIX)]
    if reserved:
        raise InvalidRequest(
            f"expected metadata keys that do not begin with {METADATA_PREFIX!r}, which is Duetime's own, got "
            f"{', '.join(map(repr, reserved))}."
        )
    own: dict[str, Any] = {TAGS: new.tags, ENGINE: str(new.engine)}
    options = new.options
    if options.overlap is not None:
        own[f"{METADATA_PREFIX}overlap"] = str(options.overlap)
    if options.timeout is not None:
        own[f"{METADATA_PREFIX}timeout"] = options.timeout
    if options.retry is not None:
        own[f"{METADATA_PREFIX}retry"] = options.retry.model_dump()
    if options.on_crash is not None:
        own[f"{METADATA_PREFIX}on_crash"] = options.on_crash
    return {**new.metadata, **own}


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
