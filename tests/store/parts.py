"""The parts that tests of the store put together, and the steps that they take with them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import asyncpg
from apscheduler import CoalescePolicy, ConflictPolicy, Event, Job, Schedule, ScheduleResult, Task
from apscheduler.abc import DataStore, EventBroker, Trigger
from apscheduler.triggers.date import DateTrigger
from apscheduler.triggers.interval import IntervalTrigger
from sqlalchemy.engine import URL
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from duetime.broker import PostgresEventBroker
from duetime.options import TaskOptions
from duetime.scheduler import DuetimeScheduler, build_scheduler
from duetime.settings import DatabaseUrl, Settings
from duetime.store.connections import DirectConnections
from duetime.store.node import NodeDataStore
from duetime.store.postgres import PostgresDataStore
from duetime.tasks import TaskRegistry

from ..matrix.servers import past_the_pooler
from ..waiting import eventually

LEASE = timedelta(seconds=30)
logger = logging.getLogger("tests")


def sqlalchemy_url(database: DatabaseUrl) -> URL:
    """Return the address as SQLAlchemy's asyncpg dialect takes it; a socket's directory goes into the query."""
    on_socket = database.host is not None and database.host.startswith("/")
    return URL.create(
        "postgresql+asyncpg",
        username=database.user,
        password=database.password,
        host=None if on_socket else database.host,
        port=None if on_socket else database.port,
        database=database.database,
        query={"host": database.host, "port": str(database.port)} if on_socket and database.host else {},
    )


@asynccontextmanager
async def engine_of(database: DatabaseUrl, **options: Any) -> AsyncIterator[AsyncEngine]:
    """Lend an engine of the application's own; where the address says so, one that keeps no prepared statements."""
    if database.statement_cache_size == 0:
        options["connect_args"] = {
            "statement_cache_size": 0,
            "prepared_statement_cache_size": 0,
            "prepared_statement_name_func": lambda: f"tests_{uuid4().hex}",
            **options.get("connect_args", {}),
        }
    engine = create_async_engine(sqlalchemy_url(database), **options)
    try:
        yield engine
    finally:
        await engine.dispose()


@asynccontextmanager
async def started(store: DataStore, broker: EventBroker | None = None) -> AsyncIterator[list[Event]]:
    """Start a store as a scheduler does, and yield the events that it tells this process."""
    events: list[Event] = []
    async with AsyncExitStack() as stack:
        broker = broker or PostgresEventBroker("", connect=_never)
        await broker.start(stack, logger)
        broker.subscribe(events.append)
        await store.start(stack, broker, logger)
        yield events


def silent_broker() -> PostgresEventBroker:
    """Return a broker whose messages no node hears."""
    return PostgresEventBroker("", channel="nobody", connect=_never)


async def _never() -> Any:
    """Stand for a listening connection where a test wants none."""
    await asyncio.Event().wait()


@asynccontextmanager
async def a_store(database: DatabaseUrl, **options: Any) -> AsyncIterator[PostgresDataStore]:
    """Lend a started store with a pool of its own and without a listening connection."""
    store = PostgresDataStore(database.text, **options)
    async with started(store):
        yield store


def node(database: DatabaseUrl, registry: TaskRegistry, **settings: Any) -> DuetimeScheduler:
    """Return a node's scheduler as ``Duetime`` builds it, not started."""
    # Past a pooler, as the documentation says: through one, nothing is heard.
    broker = PostgresEventBroker(past_the_pooler(database).text, channel=settings.get("schema_name", "duetime"))
    return build_scheduler(
        Settings(database_url=database.text, **settings), DirectConnections(database), broker, registry
    )


@asynccontextmanager
async def running(*schedulers: DuetimeScheduler) -> AsyncIterator[None]:
    """Run the nodes, in this process, for as long as the block does."""
    async with AsyncExitStack() as stack:
        for scheduler in schedulers:
            await stack.enter_async_context(scheduler)
            await scheduler.start_in_background()
            assert isinstance(scheduler.event_broker, PostgresEventBroker)
            async with asyncio.timeout(10):
                await scheduler.event_broker.wait_listening()
        yield


def node_store(database: DatabaseUrl, identity: str, **options: Any) -> NodeDataStore:
    """Return the store of one node, not started."""
    return NodeDataStore("postgresql://", connections=DirectConnections(database), identity=identity, **options)


def ago(seconds: float = 0) -> datetime:
    """Return a time that has passed."""
    return datetime.now(UTC) - timedelta(seconds=seconds)


def a_task(name: str = "work", **options: Any) -> Task:
    """Return a task's definition with Duetime's default options."""
    values: dict[str, Any] = {
        "func": f"tests:{name}",
        "job_executor": "auto",
        "max_running_jobs": None,
        "metadata": TaskOptions().to_metadata(),
    }
    return Task(id=name, **{**values, **options})


def a_schedule(name: str, trigger: Trigger | None = None, **options: Any) -> Schedule:
    """Return a schedule of the task ``work`` that is due since a second."""
    trigger = trigger or DateTrigger(ago(1))
    values: dict[str, Any] = {
        "task_id": "work",
        "job_executor": "auto",
        "coalesce": CoalescePolicy.latest,
        "misfire_grace_time": None,
        "max_jitter": None,
        "metadata": TaskOptions().to_metadata(),
        "next_fire_time": trigger.next(),
    }
    return Schedule(id=name, trigger=trigger, **{**values, **options})


def a_job(task: str = "work", **options: Any) -> Job:
    """Return a job without a schedule."""
    return Job(**{"task_id": task, "executor": "auto", "metadata": TaskOptions().to_metadata(), **options})


def every(seconds: float, since: datetime | None = None) -> IntervalTrigger:
    """Return an interval whose first fire is ``since``, by default now."""
    microseconds = round(seconds * 1_000_000)
    return IntervalTrigger(microseconds=microseconds, start_time=since or ago())


def tasks(*functions: Callable[..., Any], **options: TaskOptions) -> TaskRegistry:
    """Return a registry with the given functions under their own names; ``options`` are by name."""
    registry = TaskRegistry()
    for function in functions:
        name = function.__name__
        registry.add(function, name=name, options=options.get(name))
    return registry


def names(events: Iterable[Event]) -> list[str]:
    """Return the kinds of events, in order."""
    return [type(event).__name__ for event in events]


async def told(events: list[Event], *kinds: str) -> list[Any]:
    """Return the events, and forget them, once they are of these kinds, in this order, and none else."""
    await eventually(lambda: len(events) >= len(kinds))
    heard = await all_of(events)
    assert names(heard) == list(kinds)
    return heard


async def all_of(events: list[Event]) -> list[Any]:
    """Return the events so far, and forget them; each is delivered in a task of its own."""
    for _ in range(3):
        await asyncio.sleep(0)
    heard = list(events)
    events.clear()
    return heard


async def add(store: PostgresDataStore, *schedules: Schedule) -> None:
    for schedule in schedules:
        await store.add_schedule(schedule, ConflictPolicy.exception)


async def fire(store: PostgresDataStore, scheduler: str = "one") -> list[Schedule]:
    """Do what the scheduler's loop does with due schedules."""
    schedules = await store.acquire_schedules(scheduler, LEASE, 100)
    for schedule in schedules:
        await store.add_job(a_job(schedule.task_id, schedule_id=schedule.id))
    await store.release_schedules(scheduler, [result_of(schedule) for schedule in schedules])
    return schedules


def result_of(schedule: Schedule, next_fire_time: datetime | None = None) -> ScheduleResult:
    assert schedule.next_fire_time is not None
    return ScheduleResult(
        schedule_id=schedule.id,
        task_id=schedule.task_id,
        trigger=schedule.trigger,
        last_fire_time=schedule.next_fire_time,
        next_fire_time=next_fire_time,
    )


async def expire(connection: asyncpg.Connection, table: str) -> None:
    """Let all claims in the table have ended."""
    past = "set acquired_until = now() - interval '1 minute' where acquired_until is not null"
    await connection.execute(f"update duetime.{table} {past}")


def ids(items: list[Any]) -> list[Any]:
    return [item.id for item in items]
