"""The scheduler: APScheduler's ``AsyncScheduler``, built from Duetime's parts and kept running.

The stock loops stay. What is overridden here of 4.0.0a6 (``_schedulers/async_.py``):

- ``_check_initialized``: a call made while the scheduler starts, or starts again after a crash, failed at once; here it
  goes to the store, which waits for the database within the call's deadline;
- ``_get_task_callable``: a function that cannot be found ended the scheduler, at every start; here that job fails with
  the reason (promise 4), and only registered functions and the application's own modules are ever resolved (promise 9);
- ``pause_schedule`` and ``unpause_schedule`` wrote back a whole row that was read before, losing other changes;
- ``add_schedule("name", …)`` made a task without a function out of any text;
- ``get_job_result`` and ``run_job`` waited for ever for a notification that was lost, and took an attempt that is made
  again for the end of the job.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from importlib import import_module
from types import FunctionType
from typing import Any, Literal, Self
from uuid import UUID, uuid4

import attrs
from apscheduler import (
    AsyncScheduler,
    ConflictPolicy,
    Job,
    JobCancelled,
    JobDeadlineMissed,
    JobLookupError,
    JobOutcome,
    JobReleased,
    JobResult,
    RunState,
    Schedule,
    SchedulerRole,
    Task,
    TaskDefaults,
)
from apscheduler._decorators import TASK_PARAMETERS_KEY
from apscheduler._utils import unset
from apscheduler.abc import Trigger

from .attempts import attempt_at_hand
from .broker import PostgresEventBroker
from .errors import InvalidTask, UnknownTask
from .execution import Executors, Unavailable, Unresolved
from .many import Drafts
from .options import ON_FAILURE, TaskOptions
from .settings import Settings
from .store.connections import Connections
from .store.finishing import error_text
from .store.node import NodeDataStore
from .store.postgres import is_implied, is_of_the_database
from .tasks import AUTO_EXECUTOR, RegisteredTask, TaskRegistry, reference

logger = logging.getLogger(__name__)


STOP_MARGIN = 0.8
"""Seconds after the drain time within which a node has stopped."""

_LAST_WORDS = 0.45
"""Seconds after the drain time within which the last statements are made."""


def new_identity(node_name: str) -> str:
    """Return a name for one start of this process that no other start has: ``host:pid:random``."""
    return f"{node_name}:{os.getpid()}:{uuid4().hex[:8]}"


@dataclass(frozen=True, slots=True)
class Declared:
    """What ``@task`` says of a function for APScheduler.

    :ivar executor: name of its executor
    :ivar misfire_grace_time: how late a start may be; None: no limit
    """

    executor: str
    misfire_grace_time: timedelta | None


def declared(task: RegisteredTask) -> Declared:
    """Return what a registered function's decorator says; the stock defaults for one without a decorator."""
    said: Any = getattr(task.func, TASK_PARAMETERS_KEY, None)
    if said is None:
        return Declared(AUTO_EXECUTOR, None)
    return Declared(
        AUTO_EXECUTOR if said.job_executor is unset else said.job_executor,
        None if said.misfire_grace_time is unset else said.misfire_grace_time,
    )


@attrs.define(eq=False, repr=False)
class DuetimeScheduler(AsyncScheduler):
    """An ``AsyncScheduler`` that runs registered tasks; APScheduler 4's documentation applies to it."""

    registry: TaskRegistry = attrs.field(kw_only=True, factory=TaskRegistry)
    task_modules: tuple[str, ...] = attrs.field(kw_only=True, default=())
    _configured: dict[Any, Task] = attrs.field(init=False, factory=dict)

    @property
    def store(self) -> NodeDataStore:
        """The data store, as what it is."""
        assert isinstance(self.data_store, NodeDataStore)  # noqa: S101 - build_scheduler() makes it so
        return self.data_store

    def _check_initialized(self) -> None:
        """Let calls through while the scheduler starts: the store waits for the database itself."""

    def _get_task_callable(self, task: Task) -> Callable[..., Any]:
        """Return the task's function, or a stand-in that finds it, or fails with the reason, when it is run."""
        if registered := self.registry.get(task.id):
            return registered.func
        return Unresolved(partial(self._find, task))

    def _find(self, task: Task) -> Callable[..., Any]:
        try:
            return self._resolve(task)
        except UnknownTask as exc:
            return Unavailable(exc)
        except BaseException as exc:  # whatever importing an application's module raises is this job's failure
            reason = f"{task.id} ({error_text(exc)})"
            return Unavailable(UnknownTask(reason, [each.name for each in self.registry]))

    def _resolve(self, task: Task) -> Callable[..., Any]:
        """Look a stored reference up inside the application's task modules, and nowhere else (promise 9)."""
        module_name, _, qualname = (task.func or "").partition(":")
        if not (qualname and self._is_own(module_name)):
            raise UnknownTask(task.id, [each.name for each in self.registry])
        found: Any = import_module(module_name)
        if registered := self.registry.get(task.id):  # the import has registered it
            return registered.func
        for name in qualname.split("."):
            found = getattr(found, name)
        if not callable(found):
            raise TypeError(f"{task.func} is not callable")
        # What a module of the application has imported (`os.system`) is not the application's.
        if not self._is_own(getattr(found, "__module__", None) or ""):
            raise UnknownTask(task.id, [each.name for each in self.registry])
        return self.registry.add(found).func

    def _is_own(self, module_name: str) -> bool:
        return any(module_name == each or module_name.startswith(f"{each}.") for each in self.task_modules)

    async def configure_task(self, func_or_task_id: Any, **options: Any) -> Task:
        """Add or update a task definition; see APScheduler's documentation.

        A text is the name of a registered task. A function that is not registered is registered by its reference.

        :raises UnknownTask: if the text names no registered task
        :raises InvalidTask: if the function could not be found again after a restart (a lambda, a nested function)
        """
        # What was asked for before, and has not changed since, is what it would be again: each added schedule asks.
        key = func_or_task_id if not options and isinstance(func_or_task_id, str | FunctionType) else None
        if key is None or (task := self._configured.get(key)) is None or not self.store.has(task):
            token = is_implied.set(not options.keys() - {"func"})
            try:
                task = await self._configure_task(func_or_task_id, **options)
            finally:
                is_implied.reset(token)
            if key is not None:
                self._configured[key] = task
        await self._know_hook(task.metadata)
        return task

    async def _know_hook(self, metadata: Mapping[str, Any]) -> None:
        """Store the definition of the task that is run when one with this metadata fails: its options are needed then.

        One that is not registered here is left to a node that has it.
        """
        name = metadata.get(ON_FAILURE)
        if isinstance(name, str) and not self.store.knows(name) and self.registry.get(name):
            await self.configure_task(name)

    async def _configure_task(self, func_or_task_id: Any, **options: Any) -> Task:
        func = options.pop("func", None)
        if isinstance(func_or_task_id, str):
            if callable(func):
                registered = self._register(func, func_or_task_id, options.get("metadata", unset))
            else:
                registered = self.registry.find(func_or_task_id)
        elif callable(func_or_task_id):
            declared = getattr(func_or_task_id, TASK_PARAMETERS_KEY, None)
            if declared is not None and isinstance(declared.id, str):
                registered = self._register(func_or_task_id, declared.id, declared.metadata)
            else:
                registered = self._register(func_or_task_id, None, unset)
        else:
            return await super().configure_task(func_or_task_id, **options)
        declared = getattr(registered.func, TASK_PARAMETERS_KEY, None)
        if declared is not None and declared.id == registered.name:  # the decorator says the rest
            return await super().configure_task(registered.func, **options)
        given = options.pop("metadata", unset)
        metadata = {**registered.options.to_metadata(), **({} if given is unset else given)}
        return await super().configure_task(registered.name, func=registered.func, metadata=metadata, **options)

    def _register(self, func: Callable[..., Any], name: str | None, metadata: Any) -> RegisteredTask:
        """Return the registered task of a function, registering it if this node has not.

        :raises DuplicateTask: if the name belongs to another function
        """
        key = name or reference(func)
        present = self.registry.get(key)
        if present and present.func is func:
            return present
        if name is None and "<" in key:
            raise InvalidTask(
                f"expected a function that is found again after a restart, got {key}. Move it to the top level of a "
                f"module, or give it a name with @task(name=…)."
            )
        given = {} if metadata is unset else metadata
        options = TaskOptions.from_metadata({**TaskOptions().to_metadata(), **given})
        return self.registry.add(func, name=None if key == reference(func) else key, options=options)

    async def add_schedule(self, func_or_task_id: Any, trigger: Trigger, **options: Any) -> str:
        """Add a schedule; see APScheduler's documentation. An application's own trigger does not hold the event loop.

        :raises InvalidTrigger: if the trigger does not say when it is due first, or not in time
        """
        if isinstance(trigger, Trigger):
            trigger = await self.store.begun(trigger)
        if isinstance(metadata := options.get("metadata"), Mapping):
            await self._know_hook(metadata)
        return await super().add_schedule(func_or_task_id, trigger, **options)

    async def add_schedules(
        self,
        schedules: Iterable[Mapping[str, Any] | Schedule],
        *,
        conflict_policy: ConflictPolicy = ConflictPolicy.do_nothing,
    ) -> list[str]:
        """Store many schedules in one statement, all of them or none, and return their ids once they are committed. ::

            await scheduler.add_schedules(
                [
                    {"func_or_task_id": send_sms, "trigger": DateTrigger(at), "kwargs": {"to": to, "text": text}}
                    for to, at in recipients
                ]
            )

        Inside :func:`~duetime.scheduler_transaction` they are written by the caller's transaction.

        :param schedules: of each the arguments of :meth:`add_schedule` by name, with its defaults, or an
            ``apscheduler.Schedule``
        :param conflict_policy: what becomes of an id that is taken: ``do_nothing`` (default, as for
            :meth:`add_schedule`) keeps the stored schedule, ``replace`` replaces it, ``exception`` stores none
        :raises InvalidArguments: naming the one that is not a schedule, and what is wrong with it
        :raises UnknownTask: if a text names no registered task
        :raises ScheduleExists: if an id is taken, or given twice, and the policy is ``exception``
        :raises StoreUnavailable: if the database does not answer in time
        """
        made = await Drafts(self.configure_task, self.store.begun).schedules(schedules)
        if made:
            await self.store.add_schedules(made, conflict_policy)
        return [schedule.id for schedule in made]

    async def pause_schedule(self, id: str) -> None:  # noqa: A002 - the stock signature
        """Stop the schedule from firing until it is resumed.

        :raises ScheduleNotFound: if it is not stored
        """
        await self.store.pause_schedule(id)

    async def unpause_schedule(
        self,
        id: str,  # noqa: A002 - the stock signature
        *,
        resume_from: datetime | Literal["now"] | None = None,
    ) -> None:
        """Let a paused schedule fire again.

        :param resume_from: pass over fire times before this; ``"now"``: what fell due while it was paused; None
            (the stock default): make up for it, as the schedule's coalesce policy says
        :raises ScheduleNotFound: if it is not stored
        """
        start = datetime.now(UTC) - self.store.database.clock.host_offset if resume_from == "now" else resume_from
        await self.store.resume_schedule(id, resume_from=start)

    async def get_job_result(self, job_id: UUID, *, wait: bool = True) -> JobResult | None:
        """Return a job's result, when it has ended for good; None if it kept none.

        It is the notification that ends the wait; a lost one costs at most the poll interval (promise 5).

        :param wait: False: raise at once when there is no result yet
        :raises apscheduler.JobLookupError: if there is neither the job nor a result
        """
        ended = asyncio.Event()

        def listen(event: JobReleased) -> None:
            if event.job_id == job_id:
                ended.set()

        has_waited = False
        with self.event_broker.subscribe(listen, {JobReleased}):
            while True:
                ended.clear()
                is_going = bool(await self.data_store.get_jobs([job_id]))
                if result := await self.data_store.get_job_result(job_id):
                    return result
                if has_waited and not is_going:
                    return None
                if not (is_going and wait):
                    raise JobLookupError(job_id)
                has_waited = True
                with suppress(TimeoutError):
                    async with asyncio.timeout(self.store.poll_interval.total_seconds()):
                        await ended.wait()

    async def run_job(self, func_or_task_id: Any, **options: Any) -> Any:
        """Run a task now, on whichever node, and return what it returns, after retries if there are any.

        :param options: those of :meth:`add_job`
        :raises Exception: what the last attempt raised, as the serializer keeps it
        :raises apscheduler.JobCancelled: if the job was cancelled
        :raises apscheduler.JobDeadlineMissed: if it could not start in time
        """
        job_id = await self.add_job(func_or_task_id, result_expiration_time=timedelta(minutes=15), **options)
        result = await self.get_job_result(job_id)
        if result is not None and result.exception is not None:
            raise result.exception
        match result and result.outcome:
            case JobOutcome.success:
                return result and result.return_value
            case JobOutcome.cancelled:
                raise JobCancelled
            case JobOutcome.missed_start_deadline:
                raise JobDeadlineMissed
        raise JobLookupError(job_id)

    async def _run_job(self, job: Job, func: Callable[..., Any], executor: str) -> None:
        """Run the job, which from now on counts as begun: what cuts it short is not taken for a job never started."""
        attempt_at_hand.set(self.store.attempt(job))  # in the job's own task, and so in its context
        running = asyncio.current_task()
        assert running is not None  # noqa: S101 - a coroutine runs in a task
        if self.store.begin(job, running.cancel):
            await super()._run_job(job, func, executor)
            return
        try:
            await self.store.release_job(self.identity, job, JobResult.from_job(job, JobOutcome.cancelled))
        finally:
            self._running_jobs.remove(job)

    def begin_anew(self) -> None:
        """Make ready for another start, after a crash, under a new identity: what was said under the old one, and is
        still on its way to the database, must not touch what is claimed from now on.

        It also frees the places of jobs that the crash ended before they began, which stay counted in 4.0.0a6.
        """
        self._running_jobs.clear()
        self.identity = self.store.identity = new_identity(self.identity.rsplit(":", 2)[0])

    async def stop(self) -> None:
        """Begin to stop: nothing new is claimed, and running jobs are cancelled and go back into the queue."""
        self.store.stopping = True
        await super().stop()


def build_scheduler(
    settings: Settings, connections: Connections, broker: PostgresEventBroker, registry: TaskRegistry
) -> DuetimeScheduler:
    """Return a scheduler of these parts, not started."""
    identity = new_identity(settings.node_name)
    store = NodeDataStore(
        "postgresql://",
        schema=settings.schema_name,
        call_timeout=settings.call_timeout,
        connections=connections,
        max_arguments_bytes=settings.max_arguments_bytes,
        history_max_age=settings.history_max_age,
        history_max_fires=settings.history_max_fires,
        identity=identity,
        works=settings.role != "scheduler",
        look_ahead=settings.look_ahead,
        poll_interval=settings.poll_interval,
        lease_duration=settings.lease_duration,
        capacity=settings.max_concurrent_jobs,
    )
    return DuetimeScheduler(
        store,
        broker,
        identity=identity,
        role=SchedulerRole[settings.role],
        max_concurrent_jobs=settings.max_concurrent_jobs,
        job_executors=Executors(registry),
        task_defaults=TaskDefaults(
            job_executor=AUTO_EXECUTOR, max_running_jobs=None, metadata=TaskOptions().to_metadata()
        ),
        cleanup_interval=settings.cleanup_interval,
        lease_duration=settings.lease_duration,
        logger=logging.getLogger("duetime.apscheduler"),
        registry=registry,
        task_modules=settings.task_modules,
    )


class Supervisor:
    """Keeps a scheduler running for as long as the block lasts: a crash is logged and followed by a new start.

    At the end of the block nothing new is started, running jobs get the drain time to end, and what has not ended by
    then is cancelled and goes back into the queue.

    :param drain_timeout: how long running jobs may go on at the end; the whole end takes no longer than that and
        :data:`STOP_MARGIN`
    :ivar crashes: how often the scheduler has ended by itself
    :ivar last_crash: why it last did
    """

    def __init__(self, scheduler: DuetimeScheduler, *, drain_timeout: timedelta) -> None:
        self.scheduler = scheduler
        self._drain_timeout = drain_timeout.total_seconds()
        self.crashes = 0
        self.last_crash: BaseException | None = None
        self._task: asyncio.Task[None] | None = None
        self._giving_back: asyncio.Task[None] | None = None
        self._drained_at = 0.0
        self._is_cut_short = asyncio.Event()

    async def __aenter__(self) -> Self:
        self._giving_back = None
        self._is_cut_short.clear()
        self.scheduler.store.database.close_at(None)
        self._start()
        return self

    def _start(self) -> None:
        self._task = asyncio.create_task(self._run(), name="duetime scheduler")
        self._task.add_done_callback(self._has_ended)

    def _has_ended(self, task: asyncio.Task[None]) -> None:
        """Start the scheduler again if somebody has cancelled it: a job that cancels whatever it finds is no reason for
        the others not to run."""
        if not task.cancelled() or task is not self._task or self._giving_back is not None:
            return
        self.crashes += 1
        self.last_crash = asyncio.CancelledError("somebody has cancelled the scheduler's task")
        logger.error("The scheduler was cancelled (%d crashes so far); it starts again", self.crashes)
        # Later, because an event loop that ends cancels it too, and does not get to it then.
        asyncio.get_running_loop().call_later(0.2, self._start_again)

    def _start_again(self) -> None:
        if self._task is not None and self._task.done() and self._giving_back is None:
            self.scheduler.begin_anew()
            self._start()

    def begin_stop(self) -> None:
        """Claim and start nothing from now on: the drain time begins. The end of the block waits for the rest of it.

        May be called on the event loop at any time, and any number of times.
        """
        if self._giving_back is not None or self._task is None:
            return
        store = self.scheduler.store
        store.stopping = True
        self._drained_at = asyncio.get_running_loop().time() + self._drain_timeout
        self._giving_back = asyncio.create_task(store.stop_claiming(), name="duetime giving back")

    def cut_short(self) -> None:
        """Give running jobs no more time than they have had."""
        self.begin_stop()
        self._is_cut_short.set()

    async def __aexit__(self, exc_type: type[BaseException] | None, *_exc_info: object) -> None:
        if exc_type is not None and issubclass(exc_type, asyncio.CancelledError):
            self.cut_short()  # the application is cancelled, and does not get to its end otherwise
        self.begin_stop()
        task, giving_back, self._task = self._task, self._giving_back, None
        if task is None or giving_back is None:
            return
        loop = asyncio.get_running_loop()
        database = self.scheduler.store.database
        if self.scheduler.state is RunState.started:
            await self._drain()
            database.close_at(max(loop.time(), self._drained_at) + _LAST_WORDS)
            await self.scheduler.stop()
        else:  # still connecting, or between two starts
            database.close_at(loop.time() + _LAST_WORDS)
            task.cancel()
        _, going = await asyncio.wait([task, giving_back], timeout=STOP_MARGIN)
        if task in going:
            logger.error("The scheduler did not stop in time; what it has claimed stays so until the leases end")
            task.cancel()
        elif not task.cancelled() and (error := task.exception()):
            logger.error("The scheduler did not stop cleanly", exc_info=error)
        if isinstance(executors := self.scheduler.job_executors, Executors):
            executors.coroutines.end()

    async def _drain(self) -> None:
        """Wait until no job is running, for as long as the drain time lasts and nobody cuts it short."""
        remaining = max(0.0, self._drained_at - asyncio.get_running_loop().time())
        idle = asyncio.create_task(self.scheduler.store.wait_until_idle(remaining))
        cut_short = asyncio.create_task(self._is_cut_short.wait())
        try:
            await asyncio.wait([idle, cut_short], return_when=asyncio.FIRST_COMPLETED)
        finally:
            cut_short.cancel()
            idle.cancel()
        if not (idle.done() and not idle.cancelled() and idle.result()):
            what = "They are cut short" if cut_short.done() else f"They had {self._drain_timeout:g} s"
            logger.warning("Jobs are still running. %s: they are cancelled", what)

    async def _run(self) -> None:
        wait = 0.0
        while True:
            started = asyncio.get_running_loop().time()
            try:
                async with self.scheduler:
                    await self.scheduler.run_until_stopped()
            except Exception as exc:
                self.crashes += 1
                self.last_crash = exc
                if asyncio.get_running_loop().time() - started > 60:
                    wait = 0.0
                # When the database does again what it is asked for, work resumes at once (promise 6).
                wait = min(1.5 if is_of_the_database(exc) else 30.0, wait * 2 or 0.2)
                logger.exception("The scheduler crashed (%d so far); it starts again in %.1f s", self.crashes, wait)
                await asyncio.sleep(wait)
                self.scheduler.begin_anew()
            else:
                return
