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
import time
from collections.abc import Awaitable, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack
from contextvars import ContextVar
from datetime import UTC, datetime, timedelta
from functools import partial
from logging import Logger, getLogger
from typing import Any, TypeVar, cast
from uuid import UUID, uuid4

import asyncpg
import attrs
from anyio import move_on_after
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
from apscheduler.abc import EventBroker, Serializer, Trigger
from apscheduler.datastores.sqlalchemy import SQLAlchemyDataStore
from sqlalchemy.engine import URL
from sqlalchemy.ext.asyncio import AsyncEngine

from ..broker import DEAF, PostgresEventBroker
from ..errors import (
    InvalidSettings,
    InvalidTrigger,
    JobNotFound,
    ScheduleNotFound,
    StoreUnavailable,
)
from ..options import takes_turns
from ..records import RunOutcome
from ..serializer import TypedJSONSerializer
from ..settings import DatabaseUrl
from . import cancelling, finishing, rows
from .adding import Put, ScheduleWriter, check_durations, check_size, earliest, possible_ids, refused
from .announcing import announce, message, messages
from .breathing import Breath
from .cancelling import BY_REQUEST, Cancelled
from .connections import Connections, DirectConnections
from .database import Database, Row
from .engine import EngineConnections
from .finishing import MAX_ERROR_LENGTH, Finish, FinishWriter, error_text
from .opening import Opening
from .planning import (
    STEPS_ON_THE_LOOP,
    BegunTrigger,
    BrokenTrigger,
    Plan,
    PlannedFire,
    PlannedTrigger,
    StuckTrigger,
    TooFarBehind,
    plan,
)
from .releasing import Hold, Release
from .resuming import first_from
from .retention import Retention
from .slow_plans import Patience, SlowPlan, SlowPlans, is_quick
from .transactions import current_transaction
from .unprepared import interval_text

R = TypeVar("R")

LARGEST_CLAIM = 1000
"""Schedules or jobs that one statement claims at most, unless the caller says less."""

_ENDING = 0.02
"""Seconds after which is asked again for a job that was just ending."""

_CLOCK_IS_KNOWN_TO = timedelta(seconds=0.5)
"""How well this node knows the database's clock, at least."""

START_TIMEOUT = 60.0
"""Seconds that start() waits for the database."""

_LAST_WRITES = 1.0
"""Seconds that the end waits for what is being written."""


is_implied: ContextVar[bool] = ContextVar("duetime_is_implied", default=False)
"""Whether a task is defined by the way, because somebody uses it: then a definition that is there is kept."""


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
    :param poll_interval: how long a loop waits at most before it looks for work without having been woken; default 30
        seconds
    :param max_arguments_bytes: bytes that the serialized arguments of a schedule or job may have; default no limit
    :param history_max_age: how long fires and runs are kept; default for ever
    :param history_max_fires: how many fires of a schedule are kept; default all
    """

    schema: str | None = attrs.field(kw_only=True, default="duetime")
    serializer: Serializer = attrs.field(kw_only=True, factory=TypedJSONSerializer)
    call_timeout: timedelta = attrs.field(kw_only=True, default=timedelta(seconds=10))
    connections: Connections = attrs.field(kw_only=True, default=None)
    poll_interval: timedelta = attrs.field(kw_only=True, default=timedelta(seconds=30))
    max_arguments_bytes: int | None = attrs.field(kw_only=True, default=None)
    history_max_age: timedelta | None = attrs.field(kw_only=True, default=None)
    history_max_fires: int | None = attrs.field(kw_only=True, default=None)

    database: Database = attrs.field(init=False)
    """Runs the statements."""
    # The broker and the logger of calls that come before start(), which gives the real ones.
    _event_broker: EventBroker = attrs.field(init=False, factory=lambda: PostgresEventBroker(""))
    _logger: Logger = attrs.field(init=False, factory=lambda: getLogger(__name__))
    _tasks: dict[str, Task] = attrs.field(init=False, factory=dict)
    # Whether _tasks has all that are stored; only as long as the broker hears what other nodes add.
    _has_all_tasks: bool = attrs.field(init=False, default=False)
    _putting: dict[str, tuple[Task, asyncio.Future[None]]] = attrs.field(init=False, factory=dict)
    _joined: set[str] = attrs.field(init=False, factory=set)
    _looking_up: asyncio.Lock = attrs.field(init=False, factory=asyncio.Lock)
    _holds: dict[str, Hold] = attrs.field(init=False, factory=dict)
    # Of each job that was claimed here and has not ended: the number of its attempt, and the scheduler that claimed it.
    _attempts: dict[UUID, int] = attrs.field(init=False, factory=dict)
    _claimants: dict[UUID, str] = attrs.field(init=False, factory=dict)
    # Of these, those that the database has been asked to put back into the queue, or may put back when it is asked
    # whether they begin; and that have not been claimed anew since, which may come before the answer does. By what
    # stands for the question.
    _leaving: dict[UUID, object] = attrs.field(init=False, factory=dict)
    # Of those whose earlier attempt has failed: how.
    _last_errors: dict[UUID, str] = attrs.field(init=False, factory=dict)
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
        self.database.on_open = self._opened
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

    async def _uncut(self, claim: Awaitable[R]) -> R:
        """Run a statement that claims something."""
        return await claim

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
        self._attempts.clear()
        self._claimants.clear()
        self._leaving.clear()
        self._last_errors.clear()
        self._event_broker = event_broker
        self._logger = logger
        self.database.tell(logger)
        if isinstance(event_broker, PostgresEventBroker) and event_broker.on_hint is None:
            event_broker.on_hint = self._hint
            exit_stack.callback(setattr, event_broker, "on_hint", None)
        exit_stack.push_async_callback(self.connections.close)
        exit_stack.callback(self.database.close)
        exit_stack.push_async_callback(self._write_to_the_end)
        if isinstance(event_broker, PostgresEventBroker) and event_broker.shares is not None:
            exit_stack.callback(event_broker.stop_listening)  # else it would miss its connection, and warn
        exit_stack.callback(self._silence)
        exit_stack.callback(self._slow_plans.cancel)
        if self._close_on_exit and isinstance(self._engine, AsyncEngine):
            exit_stack.push_async_callback(self._engine.dispose)
        if not isinstance(event_broker, PostgresEventBroker) or not event_broker.is_listening:
            self._has_all_tasks = False
        await self._open()

    async def _write_to_the_end(self) -> None:
        """Let what is being written be written, though its caller is gone: else it would open connections after us."""
        with move_on_after(_LAST_WRITES, shield=True):
            await asyncio.gather(self._adding.drain(), self._finishing.drain())

    async def _open(self) -> None:
        await self.database.open(deadline=asyncio.get_running_loop().time() + START_TIMEOUT)

    def _opened(self, opening: Opening | None) -> None:
        """Take note of what was found in the database, if this node hears of what changes from now on."""
        broker = self._event_broker
        if opening is not None and isinstance(broker, PostgresEventBroker) and broker.shares is not None:
            # It listens on one of the connections that this was asked on.
            if opening.is_pooled and not broker.is_deaf:
                self._logger.warning(DEAF)
            broker.is_deaf = opening.is_pooled
        if opening is not None and self._is_told():
            self._tasks = {task.id: task for task in opening.tasks}
            self._has_all_tasks = opening.has_all_tasks

    def _forget_what_may_have_changed(self) -> None:
        """Read the tasks anew when they are needed, where nobody tells this node when they change."""
        if isinstance(self._event_broker, PostgresEventBroker) and self._event_broker.is_deaf:
            self._tasks.clear()

    def _is_told(self) -> bool:
        """Return whether this node hears what the others change."""
        return isinstance(self._event_broker, PostgresEventBroker) and self._event_broker.is_listening

    def _hint(self, event: Event | None) -> None:
        """Take note of what another node did; None: of whatever it may have done while nobody listened."""
        if event is None:
            if self.database.is_open:  # else nothing has been read yet that could be out of date
                self._tasks.clear()
                self._has_all_tasks = False
                self._nudge_loops()
        elif isinstance(event, TaskUpdated | TaskRemoved | TaskAdded):
            self._tasks.pop(event.task_id, None)
            self._has_all_tasks = False

    # -- tasks --------------------------------------------------------------------------------------------------------

    async def add_task(self, task: Task) -> None:
        """Store the task's definition, replacing an older one; concurrent calls with the same one store it once.

        :raises UnsupportedValue: if an option cannot be stored, or is longer than schedules of the task may have it
        """
        check_durations(misfire_grace_time=task.misfire_grace_time)
        while under_way := self._putting.get(task.id):
            definition, other = under_way
            if definition != task:
                await asyncio.wait([other])
                continue
            self._joined.add(task.id)
            try:
                return await asyncio.shield(other)
            except asyncio.CancelledError:
                if not other.cancelled():
                    raise
        ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._putting[task.id] = (task, ended)
        try:
            await self._put_task(task)
            ended.set_result(None)
            if task.id in self._joined:
                for _ in range(2):  # in the same round as the others: all share the statement that comes next
                    await asyncio.sleep(0)
        except BaseException as exc:
            if isinstance(exc, asyncio.CancelledError):
                ended.cancel()
            else:
                ended.set_exception(exc)
                ended.exception()  # it is raised here, whether or not anybody waits for it
            raise
        finally:
            self._joined.discard(task.id)
            del self._putting[task.id]

    async def _put_task(self, task: Task) -> None:
        event = TaskUpdated(task_id=task.id)
        # Outside the caller's transaction: other calls rely on the definition whether or not that one commits.
        channel, payload = self._message([event])
        grace = task.misfire_grace_time
        values = {
            "id": task.id,
            "func": task.func,
            "job_executor": task.job_executor,
            "max_running_jobs": task.max_running_jobs,
            "misfire_grace_time": None if grace is None else interval_text(grace),
            "metadata": json.dumps(task.metadata),
            "channel": channel,
            "payload": payload,
            "keep": is_implied.get() and task.id not in self._tasks,
        }
        with refused("a task"):
            row = await self.database.ask("put_task", values, deadline=self.database.deadline())
        if row["added"] is None:
            return  # another node has defined it at this moment; it is read when it is needed
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

    def knows(self, task_id: str) -> bool:
        """Return whether the task's definition is stored, as far as that is in memory."""
        return task_id in self._tasks

    def has(self, task: Task) -> bool:
        """Return whether this definition is the one that is stored, as far as that is in memory."""
        return self._tasks.get(task.id) is task

    async def get_task(self, task_id: str) -> Task:
        """Return the task's definition, from memory when it is known.

        :raises apscheduler.TaskLookupError: if there is none
        """
        if task := self._tasks.get(task_id):
            return task
        await self.database.prepare()
        if task := self._tasks.get(task_id):  # the opening has found it
            return task
        if self._has_all_tasks and is_implied.get() and self._is_told():
            raise TaskLookupError(task_id)
        deadline = self.database.deadline()  # of the wait for the others too
        try:
            async with asyncio.timeout_at(deadline):
                await self._looking_up.acquire()  # the first calls of many handlers at once ask once
        except TimeoutError as exc:
            raise self.database.unavailable() from (self.database.outage or exc)
        try:
            if task := self._tasks.get(task_id):
                return task
            found = await self.database.fetch("tasks", task_id, deadline=deadline)
        finally:
            self._looking_up.release()
        readable = self._read_tasks(found)
        if not readable:  # what cannot be read is defined anew by whoever wants it
            raise TaskLookupError(task_id)
        self._tasks[task_id] = readable[0]
        return readable[0]

    async def get_tasks(self) -> list[Task]:
        """Return all tasks that can be read, sorted by id, with the number of their running jobs."""
        return self._read_tasks(await self._user_fetch("tasks", None))

    def _read_tasks(self, found: Iterable[Row]) -> list[Task]:
        tasks = []
        for row in found:
            try:
                tasks.append(rows.task_from(row))
            except DeserializationError as exc:
                self._logger.error("The definition of task %r cannot be used: %s", row["id"], exc)
        return tasks

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
        if isinstance(schedule.trigger, BegunTrigger):
            schedule = attrs.evolve(schedule, trigger=schedule.trigger.real)
        put = await self._adding.put(schedule, conflict_policy)
        if put.added or conflict_policy is ConflictPolicy.replace:
            await self._put(schedule, put)

    async def begun(self, trigger: Trigger) -> Trigger:
        """Find out a new trigger's first time, and return what yields it, to be given to :meth:`add_schedule`.

        What an application's own trigger does there may take for ever: it happens in a thread, within the deadline.

        :raises InvalidTrigger: if the trigger yields something else than an aware datetime, or nothing in time
        """
        if is_quick(trigger):
            return trigger
        try:
            async with asyncio.timeout_at(self.database.deadline()):
                first: Any = await self._patience.run(lambda _beat: trigger.next())
        except (BrokenTrigger, TimeoutError) as exc:
            reason = str(exc) or "no answer in time"
            raise InvalidTrigger(f"expected a trigger that says when it is due, got: {reason}.") from exc
        if not (first is None or (isinstance(first, datetime) and first.tzinfo is not None)):
            raise InvalidTrigger(f"expected a trigger that yields an aware datetime, got {first!r:.200}.")
        return BegunTrigger(trigger, first)

    async def _put(self, schedule: Schedule, put: Put) -> None:
        """Tell this node of a schedule that was stored."""
        event = _added(schedule) if put.added else _updated(schedule)
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
        stored = [
            (schedule, put)
            for schedule, put in zip(schedules, outcomes, strict=True)
            if put.added or conflict_policy is ConflictPolicy.replace
        ]
        broker = self._event_broker
        if isinstance(broker, PostgresEventBroker) and not broker.has_subscribers(ScheduleAdded):
            # An event for each would cost more than its row; the loop only wants to know of the first one that is due.
            first = earliest([schedule for schedule, put in stored if put.added])
            for event in first:
                self._hint(event)
            await self._emit(first)
            stored = [(schedule, put) for schedule, put in stored if not put.added]
        for schedule, put in stored:
            await self._put(schedule, put)

    async def add_missing_schedules(self, schedules: Sequence[Schedule]) -> list[bool]:
        """Store those of the schedules whose ids are free, and say of each whether it was stored.

        :raises StoreUnavailable: if the database does not answer within ``call_timeout``
        """
        outcomes = await self._adding.put_all(schedules, ConflictPolicy.do_nothing)
        return [put.added for put in outcomes]

    async def tell_due(self, connection: asyncpg.Connection, schedule_id: str, due: datetime) -> None:
        """Wake the other nodes, by the caller's transaction, for what is due then; unless they wake by themselves."""
        event = ScheduleAdded(schedule_id=schedule_id, task_id="", next_fire_time=due)
        channel, payload = self._message([event])
        if payload:
            await connection.fetch(self.database.statements["tell_added"], channel, payload, due)

    async def remove_schedules(self, ids: Iterable[str]) -> None:
        """Remove the schedules of the given ids; ids that are not stored are passed over. History stays."""
        await self.remove_existing(ids)

    async def remove_existing(self, ids: Iterable[str], *, revision: UUID | None = None) -> list[str]:
        """Remove the schedules of the given ids, and return which there were. History stays.

        :param revision: only if the schedule is still in this revision
        """
        wanted = possible_ids(ids)
        if not wanted:
            return []
        told = [ScheduleRemoved(schedule_id=each, task_id="", finished=False) for each in wanted]
        removed = await self._change("remove_schedules", wanted, *self._message(told), revision)
        await self._emit(
            ScheduleRemoved(schedule_id=row["id"], task_id=row["task_id"], finished=False) for row in removed
        )
        return [row["id"] for row in removed]

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
        claim = self._loop_fetch("acquire_schedules", scheduler_id, lease_duration, limit, look_ahead)
        found = await self._uncut(claim)
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
                self._holds[schedule_id] = Hold(outcome)
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
        release = Release.of(results, self._holds, self.serializer, self._claims)
        queued_hint = JobAdded(job_id=uuid4(), task_id="", schedule_id=None)
        write = release.write(self.database, scheduler_id, self._job_lease(), self._message([queued_hint]))
        row = await self._uncut(write)
        await self._released(scheduler_id, release.plans, row)

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
        if self._alarm is None:  # that of the job loop wakes both
            self._set_alarm(None, None)
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
        if not await self.pause_schedules([schedule_id]):
            raise ScheduleNotFound(schedule_id)

    async def pause_schedules(self, schedule_ids: Iterable[str], *, revision: UUID | None = None) -> list[str]:
        """Stop schedules from firing until they are resumed, in one statement, and return which there were.

        :param revision: only if the schedule is still in this revision
        """
        events = [
            ScheduleUpdated(schedule_id=each, task_id="", next_fire_time=None) for each in possible_ids(schedule_ids)
        ]
        if not events:
            return []
        found = await self._change(
            "pause_schedules", [event.schedule_id for event in events], *self._message(events), revision
        )
        await self._emit(
            ScheduleUpdated(schedule_id=row["id"], task_id=row["task_id"], next_fire_time=None) for row in found
        )
        return [row["id"] for row in found]

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
                next_fire_time = await self._patience.run(partial(first_from, schedule, resume_from))
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
                resume_from,
            )
            if changed:
                self._hint(event)
                await self._emit([event])
                return

    async def run_schedule(self, schedule_id: str) -> UUID:
        """Make one job of the schedule now, beside its fire times, and return the job's id.

        :raises ScheduleNotFound: if it is not stored
        """
        if not possible_ids([schedule_id]):
            raise ScheduleNotFound(schedule_id)
        if not self.database.clock.is_known:
            await self._user_fetch("time")
        job_id = uuid4()
        event = JobAdded(job_id=job_id, task_id="", schedule_id=schedule_id)
        # The ledger has one row for an instant, so an attempt that is made again, because the answer to the first was
        # lost, has to name the same one: the job of the first may have ended already.
        instant = self.database.clock.now()
        while True:
            found = await self.database.fetch_for_user(
                "run_schedule", schedule_id, job_id, instant, *self._message([event])
            )
            if not found:
                raise ScheduleNotFound(schedule_id)
            if found[0]["made"] or job_id in found[0]["holders"]:
                break
            if found[0]["holders"]:  # it is another fire's; when it is not seen yet, it is looked for again
                instant += timedelta(microseconds=1)
        event = attrs.evolve(event, task_id=found[0]["task_id"])
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
        with refused("a job"):
            await self._write_jobs(*arrays, *self._message([event]))
        self._hint(event)
        await self._emit([event])

    async def _write_jobs(self, *arguments: Any) -> None:
        """Queue jobs, in the caller's transaction if there is one; once, however often the answer is lost."""
        if current_transaction.get() is not None:
            await self.database.fetch_for_user("add_jobs", *arguments)
            return
        statements = iter(("add_jobs",))

        async def work(connection: asyncpg.Connection) -> None:
            await connection.fetch(self.database.statements[next(statements, "add_jobs_again")], *arguments)

        await self.database.attempt(work, deadline=self.database.deadline())

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
        waiting = {job.id: job for job, _ in claimed if job.schedule_id is not None and takes_turns(job.metadata)}
        starts = await self._settle(scheduler_id, waiting.values()) if waiting else set()
        return [job for job, _ in claimed if job.id not in waiting or job.id in starts]

    async def _settle(self, scheduler_id: str, jobs: Iterable[Job]) -> set[UUID]:
        """Decide what becomes of claimed jobs that have to take turns, and return which of them begin now.

        The others are no longer claimed: they wait in the queue for their turn, or have been skipped.
        """
        starts: set[UUID] = set()
        undecided = {job.id: job for job in jobs}
        asked = self._may_leave(undecided)
        channel, _ = self._message([])
        while undecided:
            again: dict[UUID, Job] = {}
            try:
                found = await self._loop_fetch("settle_jobs", scheduler_id, list(undecided), channel)
            except asyncpg.PostgresError:
                self._stay(undecided, asked)
                raise
            verdicts = {row["job_id"]: row for row in found}
            for job in undecided.values():
                verdict = verdicts[job.id]["verdict"] if job.id in verdicts else "lost"
                if verdict == "start":
                    starts.add(job.id)
                    self._leaving.pop(job.id, None)
                elif verdict == "again":
                    again[job.id] = job
                elif verdict == "skip":
                    await self._skip(scheduler_id, job, verdicts[job.id]["reason"])
                else:
                    self._has_left(job.id, asked)
            if undecided := again:
                await asyncio.sleep(_ENDING)
        return starts

    async def _skip(self, scheduler_id: str, job: Job, reason: str) -> None:
        """Record that a fire was skipped, because the job of an earlier one had not ended."""
        finish = Finish.of(scheduler_id, job, JobResult.from_job(job, JobOutcome.cancelled), self._attempts.get(job.id))
        finish.skipped = reason
        await self._finishing.put(finish, deadline=None)
        self._let_go(job.id)

    def _set_alarm(self, due: datetime | None, expiry: datetime | None) -> None:
        """Wake the loops when a queued job is due or a lease ends, and at the latest when they are to poll: the stock
        loops wait for events, and the time of a retry or of a fire with jitter, the end of a vanished worker's lease,
        and a notification that was lost, are none."""
        clock = self.database.clock
        waits = [self.poll_interval.total_seconds()]
        if expiry is not None:
            waits.append(max(0.05, clock.wait_for(expiry)))
        # What was due and was not claimed waits for a place of its task, and a job that ends is an event: it is not
        # what the database says is next. That may have become due while the answer was on its way.
        if due is not None:
            waits.append(max(0.0, clock.wait_for(due)))
        self._silence()
        self._alarm = asyncio.get_running_loop().call_later(min(waits), self._nudge_loops)

    def _silence(self) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None

    def _nudge_loops(self) -> None:
        """Make this process's scheduler look for work."""
        self._alarm = None
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
        how many were claimed.

        A job that this node still has from an earlier claim is not returned: its lease had ended, it was queued again,
        and has come back. What runs here goes on as the new attempt; see :meth:`_finish`.
        """
        answer, lost = await self._claim_rows(scheduler_id, lease_duration, look_ahead, limit)
        found = [*lost, *(row for row in answer if row["id"] is not None)]
        still_here = {
            each
            for each in self._attempts.keys() - self._leaving.keys()
            if self._claimants.get(each, scheduler_id) == scheduler_id
        }
        for row in found:
            self._attempts[row["id"]] = row["attempt"]
            self._claimants[row["id"]] = scheduler_id
            self._leaving.pop(row["id"], None)
            if row["last_error"] is not None:
                self._last_errors[row["id"]] = row["last_error"]
        new = [row for row in found if row["id"] not in still_here]
        readable, unreadable = self._read_jobs(sorted(new, key=lambda row: (row["run_at"], row["id"])))
        for row, exc in unreadable:
            job = rows.job_from({**row, "args": b"[]", "kwargs": b"{}", "metadata": "{}"}, TypedJSONSerializer())
            result = JobResult.from_job(job, JobOutcome.deserialization_failed, exception=exc)
            await self.release_job(scheduler_id, job, result)
            await self._emit([JobDeserializationFailed(job_id=row["id"], exception=exc)])
        wanted = [(job, row) for job, row in readable if row["cancel_requested_at"] is None]
        for job, row in readable:
            if row["cancel_requested_at"] is not None:  # its node has given it back before it heard of it
                await self._end_cancelled(scheduler_id, job, row["cancel_reason"])
        await self._emit(JobAcquired.from_job(job, scheduler_id=scheduler_id) for job, _ in wanted)
        return wanted, answer[0], len(found)

    async def _end_cancelled(self, scheduler_id: str, job: Job, reason: str | None) -> None:
        """Record that a claimed job was cancelled before it began."""
        result = JobResult.from_job(job, JobOutcome.cancelled)
        finish = Finish.of(scheduler_id, job, result, self._attempts.get(job.id))
        finish.cancelled = reason or BY_REQUEST
        await self._finish(finish)

    async def cancel_job(self, job_id: UUID, reason: str = BY_REQUEST) -> Cancelled:
        """Cancel a job, at once if nobody has claimed it; else its node is asked to.

        The node cancels it as soon as the notification gets there, or at the latest when it next renews its leases. A
        function in a thread cannot be stopped: its job ends, its result is dropped, and it goes on. Under the stock
        scheduler a job that runs goes on to its end, but makes no further attempt.

        :raises JobNotFound: if it is not queued and not running
        """
        told = (*self._message([cancelling.ended(job_id)]), self._message([cancelling.asked(job_id)])[1])
        [row] = await self._user_fetch("cancel_job", job_id, reason, *told)
        if not row["is_there"] and row["last_outcome"] != RunOutcome.cancelled:
            # It may have waited for what has ended the job, without seeing how: a statement that begins now does.
            [row] = await self._user_fetch("cancel_job", job_id, reason, *told)
        if not row["is_there"] and row["last_outcome"] != RunOutcome.cancelled:
            raise JobNotFound(job_id, row["last_outcome"])
        if row["acquired_by"] is not None:
            self._hint(cancelling.asked(job_id, row["task_id"]))
            return Cancelled(is_ended=False, node=row["acquired_by"])
        if row["is_there"]:
            await self._emit([cancelling.ended(job_id, row["task_id"], row["schedule_id"])])
        return Cancelled(is_ended=True, node=None)

    async def _claim_rows(self, scheduler_id: str, *arguments: Any) -> tuple[Sequence[Row], Sequence[Row]]:
        """Return the rows of a claim, and those of earlier attempts at it whose answers were lost: nobody else would
        know of these jobs until their leases end."""
        statements = self.database.statements
        attempts = 0

        async def work(connection: asyncpg.Connection) -> tuple[Sequence[Row], Sequence[Row]]:
            nonlocal attempts
            attempts += 1
            lost: Sequence[Row] = []
            if attempts > 1:
                lost = await connection.fetch(statements["lost_claims"], scheduler_id, self._known_jobs())
            asked_at = time.monotonic()
            answer = await connection.fetch(statements["acquire_jobs"], scheduler_id, *arguments)
            self.database.learn(answer, asked_at)
            return answer, lost

        return await self._uncut(self.database.attempt(work, deadline=None))

    def _known_jobs(self) -> list[UUID]:
        """Return the jobs that are claimed here, as far as that is known."""
        return list(self._attempts)

    async def extend_acquired_job_leases(self, scheduler_id: str, job_ids: set[UUID], duration: timedelta) -> None:
        """Extend the leases of those of the jobs that are still this scheduler's."""
        if job_ids:
            await self._loop_fetch("extend_jobs", scheduler_id, list(job_ids), duration)

    def _let_go(self, job_id: UUID) -> None:
        """Take note that a job is no longer claimed here."""
        self._attempts.pop(job_id, None)
        self._claimants.pop(job_id, None)
        self._leaving.pop(job_id, None)
        self._last_errors.pop(job_id, None)

    def _may_leave(self, jobs: Iterable[UUID]) -> object:
        """Take note that jobs may go back into the queue, and return what stands for the question."""
        asked = object()
        self._leaving.update(dict.fromkeys(jobs, asked))
        return asked

    def _stay(self, jobs: Iterable[UUID], asked: object) -> None:
        """Take note that jobs have not gone back: the database has refused it."""
        for each in jobs:
            if self._leaving.get(each) is asked:
                del self._leaving[each]

    def _has_left(self, job_id: UUID, asked: object) -> None:
        """Take note that a job has gone back into the queue, unless it was claimed anew before that was known."""
        if self._leaving.get(job_id) is asked:
            self._let_go(job_id)

    async def release_job(self, scheduler_id: str, job: Job, result: JobResult) -> None:
        """Record how an attempt ended: run, fire and result, in one statement that other endings share.

        A failed attempt that the task's retry policy wants made again goes back into the queue under the same id.
        """
        await self._finish(Finish.of(scheduler_id, job, result, self._attempts.get(job.id)))

    async def _finish(self, finish: Finish, *, deadline: float | None = None) -> None:
        job = finish.job
        is_written = await self._finishing.put(finish, deadline=deadline)
        # Whether the job has come back to this node before the answer did.
        while finish.attempt is not None and (attempt := self._attempts.get(job.id)) not in (None, finish.attempt):
            if is_written or finish.retry_after is not None:
                # That is its next attempt, for which it goes back into the queue: it has not begun here. It is let go
                # first, because it may come back before the answer does.
                self._let_go(job.id)
                hint = JobAdded(job_id=job.id, task_id=job.task_id, schedule_id=job.schedule_id)
                message = self._message([hint])
                claim = finish.scheduler_id, [job.id], self._until_now()
                await self.database.fetch("give_back_jobs", *claim, *message, deadline=deadline)
                self._hint(hint)
                break
            finish.attempt = attempt  # the claim had been lost: it is the new attempt that has ended
            is_written = await self._finishing.put(finish, deadline=deadline)
        else:
            self._let_go(job.id)
        if finish.retry_after is not None:
            self._hint(JobAdded(job_id=job.id, task_id=job.task_id, schedule_id=job.schedule_id))
        for event in finish.consequences():
            self._hint(event)
        if finish.has_paused:
            await self._tell_paused(job.schedule_id, job.task_id)
        await self._tell_finished(finish)

    def _until_now(self) -> datetime:
        """Return a time of the database's that no claim made so far is later than, and hardly one that is yet to come:
        a lost statement is made again after a second at the earliest."""
        return self.database.clock.now() + _CLOCK_IS_KNOWN_TO

    async def _tell_paused(self, schedule_id: str | None, task_id: str) -> None:
        self._logger.warning("Schedule %s is paused: too many of its fires in a row have failed", schedule_id)
        if schedule_id is not None:
            await self._emit([finishing.failing(schedule_id, task_id)])

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
                    outcome=JobOutcome.cancelled if row["is_cancelled"] else JobOutcome.abandoned,
                )
            else:
                event = JobAdded(job_id=row["id"], task_id=row["task_id"], schedule_id=row["schedule_id"])
                self._hint(event)
            await self._emit([event])
            if row["has_hook"]:
                self._hint(JobAdded(job_id=uuid4(), task_id="", schedule_id=None))
            if row["is_paused"]:
                self._hint(finishing.failing(row["schedule_id"], row["task_id"]))
                await self._tell_paused(row["schedule_id"], row["task_id"])
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
            retention = Retention(
                self._user_fetch, self.database.clock, max_age=self.history_max_age, max_fires=self.history_max_fires
            )
            await retention.clean()
        except StoreUnavailable as exc:
            self._logger.warning("The clean-up has to wait: %s", exc)
        except asyncpg.PostgresError:  # what is not cleaned up today is tomorrow, and everything else goes on
            self._logger.exception("The clean-up failed")


def _added(schedule: Schedule) -> ScheduleAdded:
    return ScheduleAdded(schedule_id=schedule.id, task_id=schedule.task_id, next_fire_time=schedule.next_fire_time)


def _updated(schedule: Schedule) -> ScheduleUpdated:
    return ScheduleUpdated(schedule_id=schedule.id, task_id=schedule.task_id, next_fire_time=schedule.next_fire_time)


def is_of_the_database(error: BaseException) -> bool:
    """Return whether it is the database that did not do what it was asked for."""
    if isinstance(error, BaseExceptionGroup):
        return all(map(is_of_the_database, error.exceptions))
    return isinstance(error, asyncpg.PostgresError)
