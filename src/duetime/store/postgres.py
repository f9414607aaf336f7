"""The data store: APScheduler's contract on PostgreSQL, in single statements by the database's clock.

Works under the stock ``AsyncScheduler`` with the stock constructor arguments. What it cures of 4.0.0a6
(``datastores/sqlalchemy.py``), each shown on the stock class by a test:

- a crash between ``add_job`` and ``release_schedules`` made two jobs for one fire, or left the schedule held for ever;
  here jobs ride with the release, in one statement that checks the claim (promise 2);
- a lost lease went unnoticed and an edited schedule was overwritten by the node that held it; here each change of a
  definition makes a new revision, and only the claimed revision can be released;
- an empty set of ids read everything; ``get_job_result`` deleted what it read; with expiry 0 nothing was kept of a run;
- due and leases were decided by each host's clock; a counter of running jobs drifted with every crash.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from logging import Logger, getLogger
from typing import Any, cast
from uuid import UUID, uuid4

import asyncpg
import attrs
from apscheduler import (
    ConflictPolicy,
    DeserializationError,
    Event,
    Job,
    JobAcquired,
    JobAdded,
    JobDeserializationFailed,
    JobOutcome,
    JobReleased,
    JobResult,
    Schedule,
    ScheduleAdded,
    ScheduleDeserializationFailed,
    ScheduleRemoved,
    ScheduleResult,
    ScheduleUpdated,
    Task,
    TaskAdded,
    TaskLookupError,
    TaskRemoved,
    TaskUpdated,
)
from apscheduler.abc import EventBroker, Serializer
from apscheduler.datastores.sqlalchemy import SQLAlchemyDataStore
from sqlalchemy.engine import URL
from sqlalchemy.ext.asyncio import AsyncEngine

from ..broker import PostgresEventBroker
from ..errors import InvalidSettings, InvalidTrigger, ScheduleNotFound, StoreUnavailable, UnsupportedValue
from ..serializer import TypedJSONSerializer
from ..settings import DatabaseUrl
from . import rows
from .adding import Put, ScheduleWriter, check_durations, check_size, possible_ids
from .announcing import announce, message, messages
from .breathing import Breath
from .connections import Connections, DirectConnections, EngineConnections
from .database import Database, Row
from .finishing import MAX_ERROR_LENGTH, Finish, FinishWriter, error_text
from .planning import (
    MAX_STEPS,
    STEPS_ON_THE_LOOP,
    BrokenTrigger,
    Plan,
    PlannedFire,
    PlannedTrigger,
    StuckTrigger,
    TooFarBehind,
    plan,
    times_after,
)
from .slow_plans import Beat, Patience, SlowPlan, SlowPlans, is_quick

LARGEST_CLAIM = 1000
"""Schedules or jobs that one statement claims at most, unless the caller says less."""

START_TIMEOUT = 60.0
"""Seconds that start() waits for the database."""


@dataclass(slots=True)
class _Hold:
    """A schedule that this store has claimed and not released."""

    plan: Plan
    fired: bool = False
    """Whether the scheduler's loop has made its job, which says that the release is the loop's and wants the plan."""


@attrs.define(eq=False, repr=False)
class PostgresDataStore(SQLAlchemyDataStore):
    """Stores tasks, schedules, jobs, fires and runs in PostgreSQL; takes the stock class's arguments.

    Calls made by user code (adding, removing, reading) end within ``call_timeout`` with a typed error when the
    database does not answer. Calls made by the scheduler's loops wait until it does.

    :param engine_or_url: an ``AsyncEngine`` on asyncpg, or a URL in any form that platforms give
        (``postgres://…?sslmode=require``). With a URL the store has a small pool of its own.
    :param schema: schema of the database that holds the tables; default ``duetime``
    :param serializer: default :class:`~duetime.serializer.TypedJSONSerializer`, which cannot run code
    :param start_from_scratch: erase everything that is stored, at start
    :param retry_settings: accepted for compatibility; see above for how calls are retried
    :param call_timeout: deadline of a call by user code; default 10 seconds
    :param connections: where connections come from, if not from ``engine_or_url``
    :param max_arguments_bytes: bytes that the serialized arguments of a schedule or job may have; default no limit
    """

    schema: str | None = attrs.field(kw_only=True, default="duetime")
    serializer: Serializer = attrs.field(kw_only=True, factory=TypedJSONSerializer)
    call_timeout: timedelta = attrs.field(kw_only=True, default=timedelta(seconds=10))
    connections: Connections = attrs.field(kw_only=True, default=None)
    max_arguments_bytes: int | None = attrs.field(kw_only=True, default=None)

    database: Database = attrs.field(init=False)
    """Runs the statements."""
    # The broker and the logger of calls that come before start(), which gives the real ones.
    _event_broker: EventBroker = attrs.field(init=False, factory=lambda: PostgresEventBroker(""))
    _logger: Logger = attrs.field(init=False, factory=lambda: getLogger(__name__))
    _tasks: dict[str, Task] = attrs.field(init=False, factory=dict)
    _looking_up: asyncio.Lock = attrs.field(init=False, factory=asyncio.Lock)
    _holds: dict[str, _Hold] = attrs.field(init=False, factory=dict)
    _attempts: dict[UUID, int] = attrs.field(init=False, factory=dict)
    _breath: Breath = attrs.field(init=False, factory=Breath)
    _patience: Patience = attrs.field(init=False, factory=Patience)
    _slow_plans: SlowPlans = attrs.field(init=False)
    _alarm: asyncio.TimerHandle | None = attrs.field(init=False, default=None)
    _nudging: asyncio.Task[None] | None = attrs.field(init=False, default=None)
    _adding: ScheduleWriter = attrs.field(init=False)
    _finishing: FinishWriter = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self.schema = self.schema or "duetime"
        if self.connections is None:
            self.connections = self._own_connections()
        if not isinstance(self.engine_or_url, AsyncEngine):
            # The stock class wants an engine for its table definitions; this one never connects.
            self.engine_or_url = URL.create("postgresql+asyncpg")
        self.database = Database(
            self.connections, self.schema, call_timeout=self.call_timeout, from_scratch=self.start_from_scratch
        )
        self._adding = ScheduleWriter(self.database, self.serializer, self._message, self.max_arguments_bytes)
        self._finishing = FinishWriter(self.database, self.serializer, self._messages)
        self._slow_plans = SlowPlans(self._patience, self._slow_plan_is_ready)
        super().__attrs_post_init__()

    def _own_connections(self) -> Connections:
        if isinstance(self.engine_or_url, AsyncEngine):
            return EngineConnections(self.engine_or_url)
        if isinstance(self.engine_or_url, (str, URL)):
            text = self.engine_or_url
            if isinstance(text, URL):
                text = text.render_as_string(hide_password=False)
            return DirectConnections(DatabaseUrl.parse(text))
        raise InvalidSettings(
            f"expected an AsyncEngine on asyncpg or a URL, got {type(self.engine_or_url).__name__}: a synchronous "
            f"engine would block the event loop."
        )

    def __repr__(self) -> str:
        return f"{type(self).__name__}(schema={self.schema!r})"

    def _message(self, events: Iterable[Event]) -> tuple[str, str]:
        return message(self._event_broker, events)

    def _messages(self, events: Iterable[Event]) -> tuple[str, list[str]]:
        return messages(self._event_broker, events)

    async def _emit(self, events: Iterable[Event]) -> None:
        await announce(self._event_broker, events)

    async def _loop_fetch(self, name: str, *arguments: Any) -> list[Row]:
        """Run a statement for one of the scheduler's loops, which wait for the database as long as it takes."""
        return await self.database.fetch(name, *arguments, deadline=None)

    async def _user_fetch(self, name: str, *arguments: Any) -> list[Row]:
        """Run a statement for a call of user code, within its deadline."""
        return await self.database.fetch(name, *arguments, deadline=self.database.deadline())

    # -- life cycle ---------------------------------------------------------------------------------------------------

    async def start(self, exit_stack: AsyncExitStack, event_broker: EventBroker, logger: Logger) -> None:
        """Make sure that the schema is there, and close the store's own connections at the end.

        :raises StoreUnavailable: if the database does not answer within a minute
        """
        self._holds.clear()
        self._event_broker = event_broker
        self._logger = self.database.logger = logger
        if isinstance(event_broker, PostgresEventBroker) and event_broker.on_hint is None:
            event_broker.on_hint = self._hint
            exit_stack.callback(setattr, event_broker, "on_hint", None)
        exit_stack.push_async_callback(self.connections.close)
        exit_stack.callback(self._silence)
        exit_stack.callback(self._slow_plans.cancel)
        if self._close_on_exit and isinstance(self._engine, AsyncEngine):
            exit_stack.push_async_callback(self._engine.dispose)
        await self._open()

    async def _open(self) -> None:
        await self.database.open(deadline=asyncio.get_running_loop().time() + START_TIMEOUT)

    def _hint(self, event: Event | None) -> None:
        """Take note of what another node did; None: of whatever it may have done while nobody listened."""
        if event is None:
            self._tasks.clear()
            self._nudge_loops()
        elif isinstance(event, TaskUpdated | TaskRemoved | TaskAdded):
            self._tasks.pop(event.task_id, None)

    # -- tasks --------------------------------------------------------------------------------------------------------

    async def add_task(self, task: Task) -> None:
        """Store the task's definition, replacing an older one."""
        event = TaskUpdated(task_id=task.id)
        # Outside the caller's transaction: other calls rely on the definition whether or not that one commits.
        with _refused("a task"):
            [row] = await self._user_fetch(
                "put_task",
                task.id,
                task.func,
                task.job_executor,
                task.max_running_jobs,
                task.misfire_grace_time,
                json.dumps(task.metadata),
                *self._message([event]),
            )
        self._tasks[task.id] = task
        await self._emit([TaskAdded(task_id=task.id) if row["added"] else event])

    async def remove_task(self, task_id: str) -> None:
        """Remove the task's definition.

        :raises apscheduler.TaskLookupError: if there is none
        """
        event = TaskRemoved(task_id=task_id)
        removed = await self._user_fetch("remove_task", task_id, *self._message([event]))
        self._tasks.pop(task_id, None)
        if not removed:
            raise TaskLookupError(task_id)
        await self._emit([event])

    async def get_task(self, task_id: str) -> Task:
        """Return the task's definition, from memory when it is known.

        :raises apscheduler.TaskLookupError: if there is none
        """
        if task := self._tasks.get(task_id):
            return task
        async with self._looking_up:  # the first calls of many handlers at once ask once
            if task := self._tasks.get(task_id):
                return task
            found = await self._user_fetch("tasks", task_id)
            if not found:
                raise TaskLookupError(task_id)
            task = self._tasks[task_id] = rows.task_from(found[0])
        return task

    async def get_tasks(self) -> list[Task]:
        """Return all tasks, sorted by id, with the number of their running jobs."""
        return [rows.task_from(row) for row in await self._user_fetch("tasks", None)]

    # -- schedules ----------------------------------------------------------------------------------------------------

    async def add_schedule(self, schedule: Schedule, conflict_policy: ConflictPolicy) -> None:
        """Store the schedule; returns after the commit (promise 1).

        Concurrent calls share a statement and its commit. Inside :func:`scheduler_transaction` it is written by the
        caller's transaction.

        :raises ScheduleExists: if the id is taken and the policy is ``exception``
        :raises InvalidScheduleId: if the id cannot be stored
        :raises ArgumentsTooLarge: if the arguments have more than ``max_arguments_bytes``
        :raises apscheduler.SerializationError: if an argument or the trigger has no stored form
        :raises StoreUnavailable: if the database does not answer within ``call_timeout``
        """
        put = await self._adding.put(schedule, conflict_policy)
        if put.added or conflict_policy is ConflictPolicy.replace:
            await self._put(schedule, put)

    async def _put(self, schedule: Schedule, put: Put) -> None:
        """Tell this node of a schedule that was stored."""
        event_class = ScheduleAdded if put.added else ScheduleUpdated
        event = event_class(schedule_id=schedule.id, task_id=schedule.task_id, next_fire_time=schedule.next_fire_time)
        self._hint(event)
        await self._emit([event])

    async def add_schedules(
        self, schedules: Sequence[Schedule], conflict_policy: ConflictPolicy = ConflictPolicy.exception
    ) -> None:
        """Store many schedules in one statement: all of them, or none; returns after the commit.

        :raises ScheduleExists: if an id is taken, or given twice, and the policy is ``exception``
        :raises StoreUnavailable: if the database does not answer within ``call_timeout``
        """
        outcomes = await self._adding.put_all(schedules, conflict_policy)
        for schedule, put in zip(schedules, outcomes, strict=True):
            if put.added or conflict_policy is ConflictPolicy.replace:
                await self._put(schedule, put)

    async def remove_schedules(self, ids: Iterable[str]) -> None:
        """Remove the schedules of the given ids; ids that are not stored are passed over. History stays."""
        wanted = possible_ids(ids)
        if not wanted:
            return
        told = [ScheduleRemoved(schedule_id=each, task_id="", finished=False) for each in wanted]
        removed = await self._change("remove_schedules", wanted, *self._message(told))
        await self._emit(
            ScheduleRemoved(schedule_id=row["id"], task_id=row["task_id"], finished=False) for row in removed
        )

    async def _change(self, name: str, schedule_ids: Sequence[str], *arguments: Any) -> Sequence[Row]:
        """Run a statement that stops schedules, and takes back what was claimed of them ahead of its time."""
        return await self.database.fetch_for_user(name, list(schedule_ids), *arguments)

    async def get_schedules(self, ids: set[str] | None = None) -> list[Schedule]:
        """Return the schedules of the given ids (none for an empty set), or all of them for None.

        A schedule that cannot be read is left out; a ``ScheduleDeserializationFailed`` event tells.
        """
        if ids is None:
            found = await self._user_fetch("all_schedules")
        else:
            found = await self._user_fetch("schedules", possible_ids(ids))
        schedules = []
        for row in found:
            try:
                schedules.append(rows.schedule_from(row, self.serializer))
            except DeserializationError as exc:
                await self._emit([ScheduleDeserializationFailed(schedule_id=row["id"], exception=exc)])
        return schedules

    async def acquire_schedules(self, scheduler_id: str, lease_duration: timedelta, limit: int) -> list[Schedule]:
        """Claim due schedules, decide what becomes of their fires, and return them with the decision made.

        A schedule that cannot be read, or whose fires cannot be worked out, is set aside as broken.
        """
        look_ahead = self._look_ahead()
        found = await self._loop_fetch("acquire_schedules", scheduler_id, lease_duration, limit, look_ahead)
        schedules: list[Schedule] = []
        broken: dict[str, str] = {}
        unreadable: list[tuple[str, DeserializationError]] = []
        breath = Breath()
        plans: dict[str, Plan | Exception] = {}
        for row in sorted(found, key=lambda row: (row["next_fire_time"], row["id"])):
            if row["id"] in self._slow_plans:
                continue  # the claim ended before its plan was made, and is this store's again
            try:
                made = self._plan(row, look_ahead)
            except DeserializationError as exc:
                broken[row["id"]] = f"it cannot be read: {exc}"
                unreadable.append((row["id"], exc))
            except Exception as exc:  # one schedule must not keep the others from firing (promise 4)
                plans[row["id"]] = exc
            else:
                if isinstance(made, Plan):
                    plans[row["id"]] = made
                else:
                    keep = partial(self._loop_fetch, "extend_schedules", scheduler_id, [row["id"]], lease_duration)
                    every = lease_duration.total_seconds() / 3
                    self._slow_plans.begin(row["id"], made, keep=keep, every=every)
            await breath.taken()
        for schedule_id, outcome in (plans | await self._slow_plans.take()).items():
            if isinstance(outcome, Plan):
                self._holds[schedule_id] = _Hold(outcome)
                schedules.append(outcome.schedule)
            else:
                broken[schedule_id] = f"its fires cannot be worked out: {error_text(outcome)}"
        if broken:
            reasons = [reason[:MAX_ERROR_LENGTH] for reason in broken.values()]
            await self._loop_fetch("set_aside", scheduler_id, list(broken), reasons)
            await self._emit(ScheduleDeserializationFailed(schedule_id=each, exception=exc) for each, exc in unreadable)
        return schedules

    def _plan(self, row: Row, look_ahead: timedelta) -> Plan | SlowPlan:
        """Decide what becomes of a claimed schedule's fires, or say how that is done off the event loop: where there
        are many to look at, or the trigger may take its time."""
        revision, now = row["revision"], row["now"]
        trigger = self.serializer.deserialize(row["trigger"])
        schedule = rows.schedule_from(row, self.serializer, trigger=PlannedTrigger(trigger))
        make = partial(plan, schedule, revision, now, freeze=self.serializer.serialize, look_ahead=look_ahead)
        if is_quick(trigger):
            try:
                return make(trigger=trigger, max_steps=STEPS_ON_THE_LOOP)
            except TooFarBehind:
                trigger = self.serializer.deserialize(row["trigger"])

        def give_up(reason: BrokenTrigger) -> Plan:
            return make(trigger=StuckTrigger(reason), freeze=lambda _: cast("bytes", row["trigger"]))

        return SlowPlan(lambda beat: make(trigger=trigger, beat=beat), give_up)

    def _slow_plan_is_ready(self, schedule_id: str) -> None:
        """Make the loop claim again: the plan is handed out with the next claim."""
        self._hint(ScheduleUpdated(schedule_id=schedule_id, task_id="", next_fire_time=datetime.fromtimestamp(0, UTC)))
        self._nudge_loops()

    def _look_ahead(self) -> timedelta:
        """Return how long before their time schedules are claimed."""
        return timedelta(0)

    async def release_schedules(self, scheduler_id: str, results: Sequence[ScheduleResult]) -> None:
        """Write jobs, ledger rows and next fire times of the given schedules in one statement, where they are ours.

        What a schedule's fires become was decided when it was claimed. A caller that is not the scheduler's loop, and
        so has made no job for the schedule, gets the times that it asks for instead, and no fires.
        """
        if not results:
            return
        updates: list[tuple[Any, ...]] = []
        fires: list[tuple[Any, ...]] = []
        plans: list[Plan] = []
        for result in results:
            hold = self._holds.pop(result.schedule_id, None)
            if hold is None or not hold.fired:
                trigger = result.trigger
                stored = None if isinstance(trigger, PlannedTrigger) else self.serializer.serialize(trigger)
                updates.append((result.schedule_id, None, stored, result.last_fire_time, result.next_fire_time, None))
                continue
            made = hold.plan
            plans.append(made)
            updates.append(
                (
                    made.schedule.id,
                    made.revision,
                    made.stored_trigger,
                    made.last_fire_time,
                    made.next_fire_time,
                    made.broken_reason and made.broken_reason[:MAX_ERROR_LENGTH],
                )
            )
            fires.extend(
                (
                    made.schedule.id,
                    fire.fire_time,
                    fire.run_time,
                    str(fire.state),
                    fire.reason,
                    fire.job_id,
                    fire.checks_overlap,
                    fire.start_deadline,
                    fire.job_id is not None and self._claims(made.schedule, fire),
                )
                for fire in made.fires
            )
        queued_hint = JobAdded(job_id=uuid4(), task_id="", schedule_id=None)
        arguments = (
            scheduler_id,
            *rows.columns(updates, 6),
            *rows.columns(fires, 9),
            self._job_lease(),
            *self._message([queued_hint]),
        )
        born = {fire[5]: fire[8] for fire in fires if fire[5] is not None}
        row = await self._release(scheduler_id, arguments, born)
        await self._released(scheduler_id, plans, row)

    async def _release(
        self, scheduler_id: str, arguments: tuple[Any, ...], born: Mapping[UUID, bool]
    ) -> dict[str, Any]:
        """Write a release.

        :param born: the ids of its jobs, and whether they are claimed as they are made
        """
        statement = self.database.statements["release_schedules"]
        attempts = 0

        async def work(connection: asyncpg.Connection) -> dict[str, Any]:
            nonlocal attempts
            attempts += 1
            [row] = await connection.fetch(statement, *arguments)
            outcome = dict(row)
            if attempts > 1 and born:
                # An earlier attempt may have been committed without an answer: its jobs are ours as well, but for
                # those that the job loop has claimed from the queue since.
                found = await connection.fetch(self.database.statements["jobs"], list(born))
                ours = [job for job in found if born[job["id"]] and job["acquired_by"] == scheduler_id]
                outcome["claimed"] = [job["id"] for job in ours if job["attempt"] == 1]
                outcome["queued"] = [job["id"] for job in found if job["acquired_by"] is None]
                outcome["leased_until"] = min((job["acquired_until"] for job in ours), default=None)
            return outcome

        return await self.database.attempt(work, deadline=None)

    def _claims(self, schedule: Schedule, fire: PlannedFire) -> bool:
        """Return whether this node claims the job of a fire for itself as it is made."""
        return False

    def _job_lease(self) -> timedelta:
        """Return the lease of jobs that are claimed as they are made."""
        return timedelta(seconds=30)

    async def _released(self, scheduler_id: str, plans: Sequence[Plan], row: Mapping[str, Any]) -> None:
        """Tell subscribers of this node what a release has done."""
        released, queued = set(row["released"]), {*row["queued"], *row["claimed"]}
        for made in plans:
            schedule = made.schedule
            if schedule.id not in released:
                continue
            await self._emit(
                JobAdded(job_id=fire.job_id, task_id=schedule.task_id, schedule_id=schedule.id)
                for fire in made.fires
                if fire.job_id is not None and fire.job_id in queued
            )
            await self._emit(
                [ScheduleUpdated(schedule_id=schedule.id, task_id=schedule.task_id, next_fire_time=made.next_fire_time)]
            )

    async def get_next_schedule_run_time(self) -> datetime | None:
        """Return when the next schedule is due that nobody holds, or when a claim on one ends, if that is sooner."""
        [row] = await self._loop_fetch("next_work")
        return min((time for time in (row["schedule_due"], row["schedule_expiry"]) if time is not None), default=None)

    async def extend_acquired_schedule_leases(
        self, scheduler_id: str, schedule_ids: set[str], duration: timedelta
    ) -> None:
        """Extend the claims on those of the schedules that are still this scheduler's."""
        if schedule_ids:
            await self._loop_fetch("extend_schedules", scheduler_id, list(schedule_ids), duration)

    async def pause_schedule(self, schedule_id: str) -> None:
        """Stop the schedule from firing until it is resumed; one statement, so no other change is lost.

        :raises ScheduleNotFound: if it is not stored
        """
        event = ScheduleUpdated(schedule_id=schedule_id, task_id="", next_fire_time=None)
        found = await self._change("pause_schedules", possible_ids([schedule_id]), *self._message([event]))
        if not found:
            raise ScheduleNotFound(schedule_id)
        await self._emit([attrs.evolve(event, task_id=found[0]["task_id"])])

    async def resume_schedule(self, schedule_id: str, *, resume_from: datetime | None = None) -> None:
        """Let a paused (or broken, repaired) schedule fire again.

        :param resume_from: fire times before this are passed over; None: what fell due meanwhile is made up for, as
            the schedule's coalesce policy says
        :raises ScheduleNotFound: if it is not stored
        :raises InvalidTrigger: if the trigger does not get to ``resume_from``
        """
        while True:
            found = await self.database.fetch_for_user("schedules", possible_ids([schedule_id]))
            if not found:
                raise ScheduleNotFound(schedule_id)
            schedule = rows.schedule_from(found[0], self.serializer)
            try:
                next_fire_time = await self._patience.run(partial(_first_from, schedule, resume_from))
            except BrokenTrigger as exc:
                raise InvalidTrigger(f"expected a trigger that goes on from {resume_from}, got: {exc}.") from exc
            event = ScheduleUpdated(schedule_id=schedule_id, task_id=schedule.task_id, next_fire_time=next_fire_time)
            changed = await self.database.fetch_for_user(
                "resume_schedule",
                schedule_id,
                found[0]["revision"],
                self.serializer.serialize(schedule.trigger),
                next_fire_time,
                *self._message([event]),
            )
            if changed:
                self._hint(event)
                await self._emit([event])
                return

    async def run_schedule(self, schedule_id: str) -> UUID:
        """Make one job of the schedule now, beside its fire times, and return the job's id.

        :raises ScheduleNotFound: if it is not stored
        """
        job_id = uuid4()
        event = JobAdded(job_id=job_id, task_id="", schedule_id=schedule_id)
        if not possible_ids([schedule_id]):
            raise ScheduleNotFound(schedule_id)
        try:
            made = await self.database.fetch_for_user("run_schedule", schedule_id, job_id, *self._message([event]))
        except asyncpg.UniqueViolationError:
            pass  # an earlier attempt of this very call was committed without an answer
        else:
            if not made:
                raise ScheduleNotFound(schedule_id)
            event = attrs.evolve(event, task_id=made[0]["task_id"])
        self._hint(event)
        await self._emit([event])
        return job_id

    # -- jobs ---------------------------------------------------------------------------------------------------------

    async def add_job(self, job: Job) -> None:
        """Queue a job; returns after the commit.

        The job that the scheduler's loop makes for a claimed schedule is left out: the schedule's jobs are written by
        its release, together with the ledger and the next fire time (promise 2).
        """
        if job.schedule_id is not None and (hold := self._holds.get(job.schedule_id)):
            hold.fired = True
            await self._breath.taken()
            return
        event = JobAdded(job_id=job.id, task_id=job.task_id, schedule_id=job.schedule_id)
        values = rows.job_values(job, self.serializer)
        check_size(values[2], values[3], self.max_arguments_bytes)
        check_durations(result_expiration_time=job.result_expiration_time)
        arrays = rows.columns([values], 11)
        with _refused("a job"):
            await self.database.fetch_for_user("add_jobs", *arrays, *self._message([event]))
        self._hint(event)
        await self._emit([event])

    async def get_jobs(self, ids: Iterable[UUID] | None = None) -> list[Job]:
        """Return the jobs of the given ids (none for no ids), or all of them for None, in the order of their time.

        A job that cannot be read is left out; a ``JobDeserializationFailed`` event tells.
        """
        found = await (self._user_fetch("all_jobs") if ids is None else self._user_fetch("jobs", list(ids)))
        readable, unreadable = self._read_jobs(found)
        await self._emit(JobDeserializationFailed(job_id=row["id"], exception=exc) for row, exc in unreadable)
        return [job for job, _ in readable]

    def _read_jobs(
        self, found: Iterable[Mapping[str, Any]]
    ) -> tuple[list[tuple[Job, Mapping[str, Any]]], list[tuple[Mapping[str, Any], DeserializationError]]]:
        readable, unreadable = [], []
        for row in found:
            try:
                readable.append(
                    (rows.job_from(row, self.serializer, clock_offset=self.database.clock.host_offset), row)
                )
            except DeserializationError as exc:
                unreadable.append((row, exc))
        return readable, unreadable

    async def acquire_jobs(self, scheduler_id: str, lease_duration: timedelta, limit: int | None = None) -> list[Job]:
        """Claim due jobs, oldest first, within the limits of their tasks; first those of vanished nodes are reaped.

        A job whose arguments cannot be read ends with the outcome ``deserialization_failed``.
        """
        await self._reap(None, default="retry")
        most = LARGEST_CLAIM if limit is None else limit
        claimed, answer, _ = await self._claim(scheduler_id, lease_duration, most, timedelta(0))
        self._set_alarm(answer["next_due"], answer["next_expiry"])
        return [job for job, _ in claimed]

    def _set_alarm(self, due: datetime | None, expiry: datetime | None) -> None:
        """Wake the loops when a queued job is due or a lease ends: the stock job loop waits for events, and the time of
        a retry or of a fire with jitter, and the end of a vanished worker's lease, are none."""
        clock = self.database.clock
        waits = [] if expiry is None else [max(0.05, clock.wait_for(expiry))]
        # A job that is due and was not claimed waits for a place of its task, and a job that ends is an event.
        if due is not None and (wait := clock.wait_for(due)) > 0:
            waits.append(wait)
        self._silence()
        if waits:
            self._alarm = asyncio.get_running_loop().call_later(min(waits), self._nudge_loops)

    def _silence(self) -> None:
        if self._alarm is not None:
            self._alarm.cancel()

    def _nudge_loops(self) -> None:
        """Make this process's scheduler look for work."""
        broker = self._event_broker
        if isinstance(broker, PostgresEventBroker):
            broker.nudge_workers()
            broker.nudge_schedulers()
        else:
            nudge = broker.publish_local(JobAdded(job_id=uuid4(), task_id="", schedule_id=None))
            self._nudging = asyncio.get_running_loop().create_task(nudge)

    async def _claim(
        self, scheduler_id: str, lease_duration: timedelta, limit: int, look_ahead: timedelta
    ) -> tuple[list[tuple[Job, Row]], Row, int]:
        """Claim queued jobs; return the readable ones with their rows, a row that says when the queue is due next, and
        how many were claimed."""
        answer = await self._loop_fetch("acquire_jobs", scheduler_id, lease_duration, look_ahead, limit)
        found = [row for row in answer if row["id"] is not None]
        for row in found:
            self._attempts[row["id"]] = row["attempt"]
        readable, unreadable = self._read_jobs(sorted(found, key=lambda row: (row["run_at"], row["id"])))
        for row, exc in unreadable:
            job = rows.job_from({**row, "args": b"[]", "kwargs": b"{}", "metadata": "{}"}, TypedJSONSerializer())
            result = JobResult.from_job(job, JobOutcome.deserialization_failed, exception=exc)
            await self.release_job(scheduler_id, job, result)
            await self._emit([JobDeserializationFailed(job_id=row["id"], exception=exc)])
        await self._emit(JobAcquired.from_job(job, scheduler_id=scheduler_id) for job, _ in readable)
        return readable, answer[0], len(found)

    async def extend_acquired_job_leases(self, scheduler_id: str, job_ids: set[UUID], duration: timedelta) -> None:
        """Extend the leases of those of the jobs that are still this scheduler's."""
        if job_ids:
            await self._loop_fetch("extend_jobs", scheduler_id, list(job_ids), duration)

    async def release_job(self, scheduler_id: str, job: Job, result: JobResult) -> None:
        """Record how an attempt ended: run, fire and result, in one statement that other endings share.

        A failed attempt that the task's retry policy wants made again goes back into the queue under the same id.
        """
        await self._finish(Finish.of(scheduler_id, job, result, self._attempts.get(job.id)))

    async def _finish(self, finish: Finish, *, deadline: float | None = None) -> None:
        await self._finishing.put(finish, deadline=deadline)
        job = finish.job
        self._attempts.pop(job.id, None)
        if finish.retry_after is not None:
            self._hint(JobAdded(job_id=job.id, task_id=job.task_id, schedule_id=job.schedule_id))
        await self._tell_finished(finish)

    async def _tell_finished(self, finish: Finish) -> None:
        """Tell this node; a job that waits for its next attempt is not released, it is in the queue again."""
        job = finish.job
        queued = JobAdded(job_id=job.id, task_id=job.task_id, schedule_id=job.schedule_id)
        await self._emit([finish.event() if finish.retry_after is None else queued])

    async def get_job_result(self, job_id: UUID) -> JobResult | None:
        """Return the job's result, any number of times until it expires, or None if there is none."""
        found = await self._user_fetch("job_result", job_id)
        return rows.result_from(found[0], self.serializer) if found else None

    async def _reap(self, scheduler_id: str | None, *, default: str) -> int:
        """End attempts of vanished nodes; with a scheduler's id, all that are claimed under it."""
        lost = await self._loop_fetch("reap_jobs", scheduler_id, default)
        for row in lost:
            event: Event
            if row["ends"]:
                event = JobReleased(
                    job_id=row["id"],
                    scheduler_id=row["acquired_by"],
                    task_id=row["task_id"],
                    schedule_id=row["schedule_id"],
                    scheduled_start=row["scheduled_fire_time"],
                    started_at=cast("datetime", None),
                    outcome=JobOutcome.abandoned,
                )
            else:
                event = JobAdded(job_id=row["id"], task_id=row["task_id"], schedule_id=row["schedule_id"])
                self._hint(event)
            await self._emit([event])
        return len(lost)

    async def reap_abandoned_jobs(self, scheduler_id: str) -> None:
        """End the attempts that are still claimed under this scheduler's identity, from before it was restarted."""
        await self._reap(scheduler_id, default="abandon")

    # -- clean-up -----------------------------------------------------------------------------------------------------

    async def cleanup(self) -> None:
        """Remove expired results and finished schedules, and end the attempts of vanished nodes, in small batches."""
        try:
            while len(await self._user_fetch("purge_results")) == 1000:
                pass
            while await self._reap(None, default="abandon") == 1000:
                pass
            while finished := await self._user_fetch("purge_finished_schedules"):
                await self._emit(
                    ScheduleRemoved(schedule_id=row["id"], task_id=row["task_id"], finished=True) for row in finished
                )
        except StoreUnavailable as exc:
            self._logger.warning("The clean-up has to wait: %s", exc)


def _first_from(schedule: Schedule, resume_from: datetime | None, beat: Beat) -> datetime | None:
    """Return the schedule's first fire time that is not before ``resume_from``, advancing its trigger to it.

    :param beat: called at each step
    :raises BrokenTrigger: if the trigger does not get there
    """
    fire_time = schedule.next_fire_time
    if resume_from is None or fire_time is None:
        return fire_time
    times = times_after(schedule.trigger, fire_time)
    steps = 0
    while fire_time is not None and fire_time < resume_from:
        if steps == 10 * MAX_STEPS:
            raise BrokenTrigger(f"its trigger is at {fire_time.isoformat()} after {steps} steps")
        steps += 1
        beat()
        fire_time = next(times)
    return fire_time


@contextmanager
def _refused(what: str) -> Iterator[None]:
    """Say in our words that PostgreSQL does not take a value (a NUL in a text, a name that is too long)."""
    try:
        yield
    except (asyncpg.DataError, asyncpg.IntegrityConstraintViolationError, ValueError) as exc:
        raise UnsupportedValue(f"expected {what} that PostgreSQL can store, got: {exc}.") from exc
