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
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from logging import Logger, getLogger
from typing import Any, TypeVar, cast
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
    SerializationError,
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
from ..errors import (
    ArgumentsTooLarge,
    InvalidArguments,
    InvalidScheduleId,
    InvalidSettings,
    ScheduleExists,
    ScheduleNotFound,
    StoreUnavailable,
    TaskTimeout,
    UnknownExecutor,
    UnknownTask,
    UnsupportedValue,
)
from ..records import FireState, RunOutcome
from ..serializer import TypedJSONSerializer
from ..settings import DatabaseUrl
from ..tasks import TaskOptions
from . import rows
from .batches import GroupCommit
from .connections import Connections, DirectConnections, EngineConnections, is_transient
from .planning import STEPS_ON_THE_LOOP, Plan, PlannedTrigger, TooFarBehind, plan
from .schema import migrate
from .statements import Statements
from .transactions import current_transaction

T = TypeVar("T")

MAX_ID_LENGTH = 500
MAX_RESULT_BYTES = 1024 * 1024
MAX_ERROR_LENGTH = 8000
STATEMENT_TIMEOUT = 30.0
"""Seconds after which a statement that nobody's deadline ends is given up and tried on another connection."""

_OUTCOMES: dict[JobOutcome, tuple[RunOutcome, FireState]] = {
    JobOutcome.success: (RunOutcome.success, FireState.succeeded),
    JobOutcome.error: (RunOutcome.error, FireState.failed),
    JobOutcome.missed_start_deadline: (RunOutcome.missed, FireState.missed),
    JobOutcome.deserialization_failed: (RunOutcome.unreadable, FireState.failed),
    JobOutcome.cancelled: (RunOutcome.cancelled, FireState.cancelled),
    JobOutcome.abandoned: (RunOutcome.abandoned, FireState.abandoned),
}
# What another attempt cannot mend.
_FINAL_ERRORS = (InvalidArguments, UnknownTask, UnknownExecutor)


@dataclass(slots=True)
class _Hold:
    """A schedule that this store has claimed and not released."""

    plan: Plan
    fired: bool = False
    """Whether the scheduler's loop has made its job, which says that the release is the loop's and wants the plan."""


@dataclass(slots=True)
class Finish:
    """How one attempt of a job ended, as the ``finish_jobs`` statement takes it."""

    job: Job
    scheduler_id: str
    result: JobResult
    attempt: int | None
    retry_after: timedelta | None = None
    """The attempt is not the last: the job waits this long for the next one."""
    options: TaskOptions = field(default_factory=TaskOptions)


def error_text(exception: BaseException) -> str:
    """Return an exception as ``Type: text``, safe for a text column."""
    text = f"{type(exception).__qualname__}: {exception}".removesuffix(": ")[:MAX_ERROR_LENGTH]
    return text.replace("\x00", "\\x00").encode("utf-8", "backslashreplace").decode()


def check_schedule_id(schedule_id: str) -> str:
    """Return the id if it can be stored.

    :raises InvalidScheduleId: if it is empty, longer than 500 characters, or not printable
    """
    if not 1 <= len(schedule_id) <= MAX_ID_LENGTH:
        raise InvalidScheduleId(
            f"expected a schedule id of 1 to {MAX_ID_LENGTH} characters, got one of {len(schedule_id)}. Leave it out to "
            f"get a new one."
        )
    if not schedule_id.isprintable():
        raise InvalidScheduleId(
            f"expected a schedule id of printable characters, got {schedule_id[:100]!a}. Leave it out to get a new one."
        )
    return schedule_id


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

    clock_offset: timedelta = attrs.field(init=False, default=timedelta(0))
    """Host time − database time, learnt from each claim."""
    outage: BaseException | None = attrs.field(init=False, default=None)
    """Why the database last failed to answer; None while it answers."""
    # The broker and the logger of calls that come before start(), which gives the real ones.
    _event_broker: EventBroker = attrs.field(init=False, factory=lambda: PostgresEventBroker(""))
    _logger: Logger = attrs.field(init=False, factory=lambda: getLogger(__name__))
    _statements: Statements = attrs.field(init=False)
    _migrated: bool = attrs.field(init=False, default=False)
    _migrating: asyncio.Lock = attrs.field(init=False, factory=asyncio.Lock)
    _tasks: dict[str, Task] = attrs.field(init=False, factory=dict)
    _holds: dict[str, _Hold] = attrs.field(init=False, factory=dict)
    _attempts: dict[UUID, int] = attrs.field(init=False, factory=dict)
    _adds: GroupCommit[tuple[Schedule, tuple[Any, ...], UUID, ConflictPolicy], bool] = attrs.field(init=False)
    _finishes: GroupCommit[Finish, None] = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self.schema = self.schema or "duetime"
        self._statements = Statements(self.schema)
        if self.connections is None:
            if isinstance(self.engine_or_url, AsyncEngine):
                self.connections = EngineConnections(self.engine_or_url)
            elif isinstance(self.engine_or_url, (str, URL)):
                text = self.engine_or_url
                if isinstance(text, URL):
                    text = text.render_as_string(hide_password=False)
                self.connections = DirectConnections(DatabaseUrl.parse(text))
            else:
                raise InvalidSettings(
                    f"expected an AsyncEngine on asyncpg or a URL, got {type(self.engine_or_url).__name__}: a "
                    f"synchronous engine would block the event loop."
                )
        if not isinstance(self.engine_or_url, AsyncEngine):
            # The stock class wants an engine for its table definitions; this one never connects.
            self.engine_or_url = URL.create("postgresql+asyncpg")
        self._adds = GroupCommit(self._write_schedules, largest=500)
        self._finishes = GroupCommit(self._write_finishes, largest=1000)
        super().__attrs_post_init__()

    def __repr__(self) -> str:
        return f"{type(self).__name__}(schema={self.schema!r})"

    # -- running statements -------------------------------------------------------------------------------------------

    def _deadline(self) -> float:
        """Return when a user's call that begins now has to end, in loop time."""
        return asyncio.get_running_loop().time() + self.call_timeout.total_seconds()

    async def _attempt(self, work: Callable[[asyncpg.Connection], Awaitable[T]], *, deadline: float | None) -> T:
        """Run ``work`` on a connection, again after transient failures, until it succeeds.

        :param deadline: loop time at which to give up; None: never
        :raises StoreUnavailable: at the deadline
        """
        loop = asyncio.get_running_loop()
        wait = 0.0
        while True:
            remaining = STATEMENT_TIMEOUT if deadline is None else deadline - loop.time()
            try:
                if remaining <= 0:
                    raise TimeoutError("no answer in time")
                async with self.connections.acquire(min(remaining, STATEMENT_TIMEOUT)) as connection:
                    async with asyncio.timeout(min(remaining, STATEMENT_TIMEOUT)):
                        if not self._migrated:
                            await self._migrate(connection)
                        outcome = await work(connection)
            except (asyncpg.UndefinedTableError, asyncpg.UndefinedFunctionError, asyncpg.InvalidSchemaNameError) as exc:
                if not self._migrated:
                    raise
                self._migrated = False  # somebody dropped the schema: make it anew
                self._lost(exc)
            except Exception as exc:
                if not is_transient(exc):
                    raise
                self._lost(exc)
            else:
                if self.outage is not None:
                    self.outage = None
                    self._logger.info("The database answers again")
                return outcome
            wait = min(1.0, wait * 2 or 0.02)
            if deadline is not None and loop.time() + wait >= deadline:
                cause = self.outage
                seconds = self.call_timeout.total_seconds()
                raise StoreUnavailable(
                    f"expected the database to answer within {seconds:g} s, got "
                    f"{type(cause).__name__}: {cause}. Check DATABASE_URL and the server, then try again."
                ) from cause
            await asyncio.sleep(wait)

    def _lost(self, exc: BaseException) -> None:
        if self.outage is None:
            self._logger.warning("The database does not answer (%s: %s); trying again", type(exc).__name__, exc)
        self.outage = exc

    async def _migrate(self, connection: asyncpg.Connection) -> None:
        async with self._migrating:
            if not self._migrated:
                await migrate(connection, self.schema or "duetime", from_scratch=self.start_from_scratch)
                self.start_from_scratch = False  # once: a second start must not erase what the first one stored
                self._migrated = True

    async def fetch(self, name: str, *arguments: Any, deadline: float | None) -> list[asyncpg.Record]:
        """Run a named statement and return its rows; for the store's own modules.

        :param deadline: loop time at which to give up; None: never
        """
        statement = self._statements[name]

        async def work(connection: asyncpg.Connection) -> list[asyncpg.Record]:
            rows: list[asyncpg.Record] = await connection.fetch(statement, *arguments)
            return rows

        return await self._attempt(work, deadline=deadline)

    async def query(self, sql: str, *arguments: Any) -> list[asyncpg.Record]:
        """Run a read query within the call's deadline and return its rows; for :mod:`duetime.store.reads`."""

        async def work(connection: asyncpg.Connection) -> list[asyncpg.Record]:
            found: list[asyncpg.Record] = await connection.fetch(sql, *arguments)
            return found

        return await self._attempt(work, deadline=self._deadline())

    async def _fetch_for_user(self, name: str, *arguments: Any) -> Sequence[Mapping[str, Any]]:
        """Run a named statement in the caller's transaction if there is one, else on its own."""
        transaction = current_transaction.get()
        if transaction is None:
            return await self.fetch(name, *arguments, deadline=self._deadline())
        if not self._migrated:
            await self._attempt(lambda connection: asyncio.sleep(0), deadline=self._deadline())
        return await transaction.fetch(self._statements[name], *arguments)

    # -- events -------------------------------------------------------------------------------------------------------

    def _message(self, events: Iterable[Event]) -> tuple[str, str]:
        """Return channel and payload for the ``pg_notify`` inside a statement; an empty payload tells nobody."""
        broker = self._event_broker
        if not isinstance(broker, PostgresEventBroker):
            return "", ""
        # In the caller's transaction nothing has happened until it commits, on this node either.
        everyone = current_transaction.get() is not None
        return broker.channel, broker.message(events, everyone=everyone)

    async def _emit(self, events: Iterable[Event]) -> None:
        """Deliver events on this node, after the statement that made the change has told the other nodes."""
        if current_transaction.get() is not None:
            return
        broker = self._event_broker
        for event in events:
            if isinstance(broker, PostgresEventBroker):
                broker.deliver(event)
            else:
                await broker.publish(event)

    # -- life cycle ---------------------------------------------------------------------------------------------------

    async def start(self, exit_stack: AsyncExitStack, event_broker: EventBroker, logger: Logger) -> None:
        """Make sure that the schema is there, and close the store's own connections at the end.

        :raises StoreUnavailable: if the database does not answer within a minute
        """
        self._event_broker = event_broker
        self._logger = logger
        if isinstance(event_broker, PostgresEventBroker) and event_broker.on_hint is None:
            event_broker.on_hint = self._hint
            exit_stack.callback(setattr, event_broker, "on_hint", None)
        exit_stack.push_async_callback(self.connections.close)
        if self._close_on_exit and isinstance(self._engine, AsyncEngine):
            exit_stack.push_async_callback(self._engine.dispose)
        await self._open()

    async def _open(self) -> None:
        deadline = asyncio.get_running_loop().time() + 60
        await self._attempt(lambda connection: asyncio.sleep(0), deadline=deadline)

    def _hint(self, event: Event | None) -> None:
        """Take note of what another node did; None: of whatever it may have done while nobody listened."""
        if event is None:
            self._tasks.clear()
        elif isinstance(event, TaskUpdated | TaskRemoved | TaskAdded):
            self._tasks.pop(event.task_id, None)

    # -- tasks --------------------------------------------------------------------------------------------------------

    async def add_task(self, task: Task) -> None:
        """Store the task's definition, replacing an older one."""
        event = TaskUpdated(task_id=task.id)
        # Outside the caller's transaction: other calls rely on the definition whether or not that one commits.
        [row] = await self.fetch(
            "put_task",
            task.id,
            task.func,
            task.job_executor,
            task.max_running_jobs,
            task.misfire_grace_time,
            json.dumps(task.metadata),
            *self._message([event]),
            deadline=self._deadline(),
        )
        self._tasks[task.id] = task
        await self._emit([TaskAdded(task_id=task.id) if row["added"] else event])

    async def remove_task(self, task_id: str) -> None:
        """Remove the task's definition.

        :raises apscheduler.TaskLookupError: if there is none
        """
        event = TaskRemoved(task_id=task_id)
        removed = await self.fetch("remove_task", task_id, *self._message([event]), deadline=self._deadline())
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
        found = await self.fetch("tasks", task_id, deadline=self._deadline())
        if not found:
            raise TaskLookupError(task_id)
        task = self._tasks[task_id] = rows.task_from(found[0])
        return task

    async def get_tasks(self) -> list[Task]:
        """Return all tasks, sorted by id, with the number of their running jobs."""
        return [rows.task_from(row) for row in await self.fetch("tasks", None, deadline=self._deadline())]

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
        check_schedule_id(schedule.id)
        values = rows.schedule_values(schedule, self.serializer)
        self._check_size(values[3], values[4])
        item = (schedule, values, uuid4(), conflict_policy)
        if transaction := current_transaction.get():
            if not self._migrated:
                await self._attempt(lambda connection: asyncio.sleep(0), deadline=self._deadline())
            [outcome] = await self._put_schedules([item], transaction.fetch)
            if isinstance(outcome, BaseException):
                raise outcome
            return
        deadline = self._deadline()
        try:
            added = await self._adds.submit(item, deadline=deadline)
        except TimeoutError as exc:
            raise StoreUnavailable(
                f"expected the database to answer within {self.call_timeout.total_seconds():g} s, got no answer. The "
                f"schedule {schedule.id!r} may have been stored or not: look before adding it again."
            ) from (self.outage or exc)
        event_class = ScheduleAdded if added else ScheduleUpdated
        if added or conflict_policy is ConflictPolicy.replace:
            event = event_class(
                schedule_id=schedule.id, task_id=schedule.task_id, next_fire_time=schedule.next_fire_time
            )
            self._hint(event)
            await self._emit([event])

    def _check_size(self, args: bytes, kwargs: bytes) -> None:
        size = len(args) + len(kwargs)
        if self.max_arguments_bytes is not None and size > self.max_arguments_bytes:
            raise ArgumentsTooLarge(
                f"expected arguments of at most {self.max_arguments_bytes} bytes, got {size}. Store the data elsewhere "
                f"and pass its key, or raise DUETIME_MAX_ARGUMENTS_BYTES."
            )

    async def _write_schedules(
        self,
        items: Sequence[tuple[Schedule, tuple[Any, ...], UUID, ConflictPolicy]],
        deadline: float | None,
    ) -> Sequence[bool | BaseException]:
        """Write a batch of concurrent calls: one statement for those that replace, one for the others."""

        async def fetch(statement: str, *arguments: Any) -> Sequence[Mapping[str, Any]]:
            async def work(connection: asyncpg.Connection) -> Sequence[Mapping[str, Any]]:
                found: Sequence[Mapping[str, Any]] = await connection.fetch(statement, *arguments)
                return found

            return await self._attempt(work, deadline=deadline)

        try:
            return await self._put_schedules(items, fetch)
        except (asyncpg.PostgresError, ValueError) as exc:
            if len(items) == 1:
                return [UnsupportedValue(f"expected a schedule that PostgreSQL can store, got: {exc}.")]
            # One of them cannot be stored: find out which, and store the others.
            alone = [await self._write_schedules([item], deadline) for item in items]
            return [outcome for [outcome] in alone]

    async def _put_schedules(
        self,
        items: Sequence[tuple[Schedule, tuple[Any, ...], UUID, ConflictPolicy]],
        fetch: Callable[..., Awaitable[Sequence[Mapping[str, Any]]]],
    ) -> list[bool | BaseException]:
        """Write schedules and return for each whether it is new, or why it is not stored."""
        outcomes: dict[int, bool | BaseException] = {}
        remaining = list(enumerate(items))
        while remaining:
            # A statement takes each id once, and either replaces or does not.
            replaces = remaining[0][1][3] is ConflictPolicy.replace
            batch, later, ids = [], [], set()
            for place, item in remaining:
                if (item[3] is ConflictPolicy.replace) == replaces and item[0].id not in ids:
                    ids.add(item[0].id)
                    batch.append((place, item))
                else:
                    later.append((place, item))
            remaining = later

            events = [
                ScheduleAdded(schedule_id=schedule.id, task_id=schedule.task_id, next_fire_time=schedule.next_fire_time)
                for _, (schedule, *_rest) in batch
                if schedule.next_fire_time is not None and not schedule.paused
            ]
            # One hint is enough to wake a node: that of the earliest.
            earliest = sorted(events, key=lambda event: event.next_fire_time or datetime.max.replace(tzinfo=UTC))[:1]
            arrays = rows.columns([(*values, revision) for _, (_, values, revision, _) in batch], 17)
            found = await fetch(
                self._statements["replace_schedules" if replaces else "add_schedules"],
                *arrays,
                *self._message(earliest),
            )
            by_id = {row["id"]: row for row in found}
            for place, (schedule, _, revision, policy) in batch:
                row = by_id[schedule.id]
                # The revision tells a schedule that an earlier, unanswered attempt of this call has stored.
                if row["added"] is not None or row["stored_revision"] == revision:
                    outcomes[place] = row["added"] is not False
                elif policy is ConflictPolicy.exception:
                    outcomes[place] = ScheduleExists(schedule.id)
                else:
                    outcomes[place] = False
        return [outcomes[place] for place in range(len(items))]

    async def remove_schedules(self, ids: Iterable[str]) -> None:
        """Remove the schedules of the given ids; ids that are not stored are passed over. History stays."""
        wanted = list(ids)
        if not wanted:
            return
        told = [ScheduleRemoved(schedule_id=each, task_id="", finished=False) for each in wanted]
        removed = await self._fetch_for_user("remove_schedules", wanted, *self._message(told))
        await self._emit(
            ScheduleRemoved(schedule_id=row["id"], task_id=row["task_id"], finished=False) for row in removed
        )

    async def get_schedules(self, ids: set[str] | None = None) -> list[Schedule]:
        """Return the schedules of the given ids (none for an empty set), or all of them for None.

        A schedule that cannot be read is left out; a ``ScheduleDeserializationFailed`` event tells.
        """
        wanted = None if ids is None else list(ids)
        found = await self.fetch("schedules", wanted, deadline=self._deadline())
        schedules = []
        for row in found:
            try:
                schedules.append(rows.schedule_from(row, self.serializer))
            except DeserializationError as exc:
                await self._emit([ScheduleDeserializationFailed(schedule_id=row["id"], exception=exc)])
        return schedules

    async def acquire_schedules(self, scheduler_id: str, lease_duration: timedelta, limit: int) -> list[Schedule]:
        """Claim due schedules, decide what becomes of their fires, and return them with the decision made.

        A schedule that cannot be read is set aside as broken.
        """
        found = await self.fetch("acquire_schedules", scheduler_id, lease_duration, limit, deadline=None)
        schedules: list[Schedule] = []
        broken: list[tuple[str, DeserializationError]] = []
        for row in sorted(found, key=lambda row: (row["next_fire_time"], row["id"])):
            self._learn_clock(row["now"])
            try:
                made = plan(
                    rows.schedule_from(row, self.serializer), row["revision"], row["now"], max_steps=STEPS_ON_THE_LOOP
                )
            except DeserializationError as exc:
                broken.append((row["id"], exc))
                continue
            except TooFarBehind:
                schedule = rows.schedule_from(row, self.serializer)
                made = await asyncio.to_thread(plan, schedule, row["revision"], row["now"])
            self._holds[row["id"]] = _Hold(made)
            schedules.append(attrs.evolve(made.schedule, trigger=PlannedTrigger(made.trigger)))
        if broken:
            reasons = [f"it cannot be read: {exc}"[:MAX_ERROR_LENGTH] for _, exc in broken]
            await self.fetch("set_aside", scheduler_id, [each for each, _ in broken], reasons, deadline=None)
            await self._emit(ScheduleDeserializationFailed(schedule_id=each, exception=exc) for each, exc in broken)
        return schedules

    def _learn_clock(self, database_time: datetime) -> None:
        self.clock_offset = datetime.now(UTC) - database_time

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
            broken_reason, stored = made.broken_reason, None
            try:
                stored = self.serializer.serialize(made.trigger)
            except SerializationError as exc:
                broken_reason = broken_reason or f"its trigger cannot be stored: {exc}"
            updates.append(
                (
                    made.schedule.id,
                    made.revision,
                    stored,
                    made.last_fire_time,
                    made.next_fire_time,
                    broken_reason and broken_reason[:MAX_ERROR_LENGTH],
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
                    fire.job_id is not None and self._claims(made.schedule),
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
        [row] = await self._release(scheduler_id, arguments, [fire[5] for fire in fires if fire[5]])
        await self._released(scheduler_id, plans, row)

    async def _release(
        self, scheduler_id: str, arguments: tuple[Any, ...], job_ids: list[UUID]
    ) -> list[dict[str, Any]]:
        statement = self._statements["release_schedules"]
        attempts = 0

        async def work(connection: asyncpg.Connection) -> list[dict[str, Any]]:
            nonlocal attempts
            attempts += 1
            [row] = await connection.fetch(statement, *arguments)
            outcome = dict(row)
            if attempts > 1 and job_ids:
                # An earlier attempt may have been committed without an answer: its jobs are ours as well.
                found = await connection.fetch(self._statements["jobs"], job_ids)
                outcome["claimed"] = [job["id"] for job in found if job["acquired_by"] == scheduler_id]
                outcome["queued"] = [job["id"] for job in found if job["acquired_by"] is None]
            return [outcome]

        return await self._attempt(work, deadline=None)

    def _claims(self, schedule: Schedule) -> bool:
        """Return whether this node claims the schedule's new jobs for itself as they are made."""
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
        [row] = await self.fetch("next_due", deadline=None)
        self._learn_clock(row["now"])
        return min((time for time in (row["next_due"], row["next_expiry"]) if time is not None), default=None)

    async def extend_acquired_schedule_leases(
        self, scheduler_id: str, schedule_ids: set[str], duration: timedelta
    ) -> None:
        """Extend the claims on those of the schedules that are still this scheduler's."""
        if schedule_ids:
            await self.fetch("extend_schedules", scheduler_id, list(schedule_ids), duration, deadline=None)

    async def pause_schedule(self, schedule_id: str) -> None:
        """Stop the schedule from firing until it is resumed; one statement, so no other change is lost.

        :raises ScheduleNotFound: if it is not stored
        """
        event = ScheduleUpdated(schedule_id=schedule_id, task_id="", next_fire_time=None)
        found = await self._fetch_for_user("pause_schedule", schedule_id, *self._message([event]))
        if not found:
            raise ScheduleNotFound(schedule_id)
        await self._emit([attrs.evolve(event, task_id=found[0]["task_id"])])

    async def resume_schedule(self, schedule_id: str, *, resume_from: datetime | None = None) -> None:
        """Let a paused (or broken, repaired) schedule fire again.

        :param resume_from: fire times before this are passed over; None: what fell due meanwhile is made up for, as
            the schedule's coalesce policy says
        :raises ScheduleNotFound: if it is not stored
        """
        while True:
            found = await self._fetch_for_user("schedules", [schedule_id])
            if not found:
                raise ScheduleNotFound(schedule_id)
            schedule = rows.schedule_from(found[0], self.serializer)
            next_fire_time = await asyncio.to_thread(_first_from, schedule, resume_from)
            event = ScheduleUpdated(schedule_id=schedule_id, task_id=schedule.task_id, next_fire_time=next_fire_time)
            changed = await self._fetch_for_user(
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
        made = await self._fetch_for_user("run_schedule", schedule_id, job_id, "request", *self._message([event]))
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
            return
        event = JobAdded(job_id=job.id, task_id=job.task_id, schedule_id=job.schedule_id)
        values = rows.job_values(job, self.serializer)
        self._check_size(values[2], values[3])
        arrays = rows.columns([values], 11)
        await self._fetch_for_user("add_jobs", *arrays, *self._message([event]))
        self._hint(event)
        await self._emit([event])

    async def get_jobs(self, ids: Iterable[UUID] | None = None) -> list[Job]:
        """Return the jobs of the given ids (none for no ids), or all of them for None, in the order of their time.

        A job that cannot be read is left out; a ``JobDeserializationFailed`` event tells.
        """
        wanted = None if ids is None else list(ids)
        found = await self.fetch("jobs", wanted, deadline=self._deadline())
        readable, unreadable = self._read_jobs(found)
        await self._emit(JobDeserializationFailed(job_id=row["id"], exception=exc) for row, exc in unreadable)
        return [job for job, _ in readable]

    def _read_jobs(
        self, found: Iterable[Mapping[str, Any]]
    ) -> tuple[list[tuple[Job, Mapping[str, Any]]], list[tuple[Mapping[str, Any], DeserializationError]]]:
        readable, unreadable = [], []
        for row in found:
            try:
                readable.append((rows.job_from(row, self.serializer, clock_offset=self.clock_offset), row))
            except DeserializationError as exc:
                unreadable.append((row, exc))
        return readable, unreadable

    async def acquire_jobs(self, scheduler_id: str, lease_duration: timedelta, limit: int | None = None) -> list[Job]:
        """Claim due jobs, oldest first, within the limits of their tasks; first those of vanished nodes are reaped.

        A job whose arguments cannot be read ends with the outcome ``deserialization_failed``.
        """
        await self._reap(None, default="retry")
        return await self._claim_jobs(scheduler_id, lease_duration, limit)

    async def _claim_jobs(self, scheduler_id: str, lease_duration: timedelta, limit: int | None) -> list[Job]:
        most = 1000 if limit is None else limit
        found = await self.fetch("acquire_jobs", scheduler_id, lease_duration, most, deadline=None)
        if found:
            self._learn_clock(found[0]["now"])
        for row in found:
            self._attempts[row["id"]] = row["attempt"]
        readable, unreadable = self._read_jobs(sorted(found, key=lambda row: (row["run_at"], row["id"])))
        for row, exc in unreadable:
            job = rows.job_from({**row, "args": b"[]", "kwargs": b"{}"}, TypedJSONSerializer())
            result = JobResult.from_job(job, JobOutcome.deserialization_failed, exception=exc)
            await self.release_job(scheduler_id, job, result)
            await self._emit([JobDeserializationFailed(job_id=row["id"], exception=exc)])
        jobs = [job for job, _ in readable]
        await self._emit(JobAcquired.from_job(job, scheduler_id=scheduler_id) for job in jobs)
        return jobs

    async def extend_acquired_job_leases(self, scheduler_id: str, job_ids: set[UUID], duration: timedelta) -> None:
        """Extend the leases of those of the jobs that are still this scheduler's."""
        if job_ids:
            await self.fetch("extend_jobs", scheduler_id, list(job_ids), duration, deadline=None)

    async def release_job(self, scheduler_id: str, job: Job, result: JobResult) -> None:
        """Record how an attempt ended: run, fire and result, in one statement that other endings share.

        A failed attempt that the task's retry policy wants made again goes back into the queue under the same id.
        """
        finish = Finish(
            job=job,
            scheduler_id=scheduler_id,
            result=result,
            attempt=self._attempts.get(job.id),
            options=TaskOptions.from_metadata(job.metadata),
        )
        error = result.exception
        if result.outcome is JobOutcome.error and not isinstance(error, _FINAL_ERRORS):
            finish.retry_after = finish.options.retry.delay(finish.attempt or 1)
        await self._finish(finish)

    async def _finish(self, finish: Finish, *, deadline: float | None = None) -> None:
        await self._finishes.submit(finish, deadline=deadline)
        job, result = finish.job, finish.result
        self._attempts.pop(job.id, None)
        if finish.retry_after is not None:
            self._hint(JobAdded(job_id=job.id, task_id=job.task_id, schedule_id=job.schedule_id))
        await self._emit([_job_released(finish.scheduler_id, job, result)])

    async def _write_finishes(
        self, finishes: Sequence[Finish], deadline: float | None
    ) -> Sequence[BaseException | None]:
        by_scheduler: dict[str, list[Finish]] = {}
        for finish in finishes:
            by_scheduler.setdefault(finish.scheduler_id, []).append(finish)
        for scheduler_id, group in by_scheduler.items():
            # A caller on another node may wait for a job whose result is kept.
            awaited = [
                _job_released(scheduler_id, finish.job, finish.result)
                for finish in group
                if finish.job.result_expiration_time > timedelta(0) and finish.retry_after is None
            ]
            arrays = rows.columns([self._finish_values(finish) for finish in group], 12)
            await self.fetch("finish_jobs", scheduler_id, *arrays, *self._message(awaited), deadline=deadline)
        return [None] * len(finishes)

    def _finish_values(self, finish: Finish) -> tuple[Any, ...]:
        result = finish.result
        outcome, fire_state = _OUTCOMES[result.outcome]
        error = None if result.exception is None else error_text(result.exception)
        if isinstance(result.exception, TaskTimeout):
            outcome = RunOutcome.timeout
        stored: dict[str, bytes | None] = {"exception": None, "return_value": None}
        if result.expires_at > result.finished_at:
            for name in stored:
                value = getattr(result, name)
                try:
                    text = None if value is None and name == "exception" else self.serializer.serialize(value)
                    if text is not None and len(text) > MAX_RESULT_BYTES:
                        raise UnsupportedValue(f"it has {len(text)} bytes, and {MAX_RESULT_BYTES} can be stored")
                    stored[name] = text
                except SerializationError as exc:
                    error = error or f"it ran, but its result could not be stored: {exc}"[:MAX_ERROR_LENGTH]
        elif result.outcome is JobOutcome.success:
            stored["return_value"] = None
        return (
            finish.job.id,
            finish.attempt,
            str(outcome),
            str(fire_state),
            result.started_at and result.started_at - self.clock_offset,
            result.finished_at - self.clock_offset,
            error,
            finish.retry_after,
            result.outcome.name,
            result.expires_at - self.clock_offset,
            stored["exception"],
            stored["return_value"],
        )

    async def get_job_result(self, job_id: UUID) -> JobResult | None:
        """Return the job's result, any number of times until it expires, or None if there is none."""
        found = await self.fetch("job_result", job_id, deadline=self._deadline())
        return rows.result_from(found[0], self.serializer) if found else None

    async def _reap(self, scheduler_id: str | None, *, default: str) -> int:
        """End attempts of vanished nodes; with a scheduler's id, all that are claimed under it."""
        lost = await self.fetch("reap_jobs", scheduler_id, default, deadline=None)
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
            while len(await self.fetch("purge_results", deadline=self._deadline())) == 1000:
                pass
            while await self._reap(None, default="abandon") == 1000:
                pass
            while finished := await self.fetch("purge_finished_schedules", deadline=self._deadline()):
                await self._emit(
                    ScheduleRemoved(schedule_id=row["id"], task_id=row["task_id"], finished=True) for row in finished
                )
        except StoreUnavailable as exc:
            self._logger.warning("The clean-up has to wait: %s", exc)


def _first_from(schedule: Schedule, resume_from: datetime | None) -> datetime | None:
    """Return the schedule's first fire time that is not before ``resume_from``, advancing its trigger to it."""
    fire_time = schedule.next_fire_time
    while resume_from is not None and fire_time is not None and fire_time < resume_from:
        fire_time = schedule.trigger.next()
    return fire_time


def _job_released(scheduler_id: str, job: Job, result: JobResult) -> JobReleased:
    error = result.exception
    return JobReleased(
        timestamp=result.finished_at,
        job_id=job.id,
        scheduler_id=scheduler_id,
        task_id=job.task_id,
        schedule_id=job.schedule_id,
        scheduled_start=cast("datetime", job.scheduled_fire_time),
        started_at=cast("datetime", result.started_at),
        outcome=result.outcome,
        exception_type=None if error is None else type(error).__qualname__,
        exception_message=None if error is None else error_text(error),
    )
