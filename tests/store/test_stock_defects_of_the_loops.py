"""What scheduler, executors and broker cure of 4.0.0a6: each defect on the stock classes, and ours without it."""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
import threading
from base64 import b64encode
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import timedelta
from importlib.metadata import version
from logging import getLogger
from pathlib import Path
from typing import Any
from uuid import uuid4

import asyncpg
import attrs
import pytest
from apscheduler import (
    AsyncScheduler,
    Event,
    JobAdded,
    JobOutcome,
    JobReleased,
    SerializationError,
)
from apscheduler.abc import DataStore, EventBroker, Trigger
from apscheduler.datastores.sqlalchemy import SQLAlchemyDataStore
from apscheduler.eventbrokers.asyncpg import AsyncpgEventBroker
from apscheduler.eventbrokers.local import LocalEventBroker
from apscheduler.triggers.date import DateTrigger
from apscheduler.triggers.interval import IntervalTrigger
from sqlalchemy.ext.asyncio import AsyncEngine

from duetime.broker import PostgresEventBroker, decode
from duetime.errors import UnknownTask
from duetime.settings import DatabaseUrl
from duetime.store import PostgresDataStore
from duetime.store.connections import DirectConnections

from ..waiting import eventually
from .parts import a_job, a_task, ago, engine_of, node, running, silent_broker, started, tasks

here: list[Any] = []


@pytest.fixture(autouse=True)
def nothing_here() -> None:
    here.clear()


def where() -> None:
    here.append(threading.current_thread())


def neighbour() -> None:
    here.append("neighbour")


@pytest.fixture
async def engine(database: DatabaseUrl) -> AsyncIterator[AsyncEngine]:
    async with engine_of(database) as engine:
        yield engine


def stock(engine: AsyncEngine, broker: EventBroker | None = None, **options: Any) -> AsyncScheduler:
    return AsyncScheduler(SQLAlchemyDataStore(engine, schema="stock"), broker or LocalEventBroker(), **options)


@asynccontextmanager
async def started_stock(engine: AsyncEngine, broker: EventBroker | None = None) -> AsyncIterator[AsyncScheduler]:
    async with stock(engine, broker) as scheduler:
        await scheduler.start_in_background()
        yield scheduler


async def crash() -> None:
    """Wait until the stock scheduler has crashed, which cancels who has started it."""
    async with asyncio.timeout(10):
        await asyncio.Event().wait()


async def outcomes(connection: asyncpg.Connection) -> dict[str, str]:
    """Return how the jobs of each task ended with us, or why."""
    rows = await connection.fetch("select task_id, outcome, error from duetime.runs")
    return {row["task_id"]: row["error"] or row["outcome"] for row in rows}


# -- events ----------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:coroutine 'BaseEventBroker.publish_local' was never awaited")
async def test_with_the_newest_anyio_an_event_reaches_another_process_through_our_broker_only(
    database: DatabaseUrl, connection: asyncpg.Connection
) -> None:
    event = JobAdded(job_id=uuid4(), task_id="work", schedule_id=None)
    heard: dict[str, list[Event]] = {"stock": [], "ours": []}
    stock_pair = [AsyncpgEventBroker(database.text, channel="stock") for _ in range(2)]
    our_pair = [PostgresEventBroker(database.text) for _ in range(2)]
    drops: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: drops.append(context))
    async with started_brokers(*stock_pair, *our_pair):
        for broker in our_pair:
            await broker.wait_listening()
        for name, (_, receiver) in (("stock", stock_pair), ("ours", our_pair)):
            receiver.subscribe(heard[name].append)
        await stock_pair[0].publish(event)
        await our_pair[0].publish(event)
        await eventually(lambda: bool(heard["ours"]))
        if tuple(map(int, version("anyio").split(".")[:2])) < (4, 14):
            # With an older one the stock broker delivers, too.
            await eventually(lambda: heard == {"stock": [event], "ours": [event]})
            assert not drops
            return
        # The stock brokers have received it by now, each with the same outcome.
        await eventually(lambda: len(drops) == 2)
    assert heard == {"stock": [], "ours": [event]}
    assert {type(drop["exception"]).__name__ for drop in drops} == {"NoEventLoopError"}
    drops.clear()
    gc.collect()  # the coroutines that were to deliver it, here where they are expected


@asynccontextmanager
async def started_brokers(*brokers: EventBroker) -> AsyncIterator[None]:
    async with AsyncExitStack() as stack:
        for broker in brokers:
            await broker.start(stack, getLogger("tests"))
        yield


class Gadget:
    """A class that only somebody who can write to the channel wants to have built here."""

    def __setstate__(self, state: object) -> None:
        here.append(state)


async def test_a_class_that_a_notification_names_is_built_by_the_stock_broker_only(database: DatabaseUrl) -> None:
    body = f'{{"_apscheduler_json": ["{__name__}:Gadget", "built"]}}'
    stock_broker = AsyncpgEventBroker(database.text)
    stock_broker._logger = DummyLogger()  # type: ignore[assignment]
    stock_broker.reconstitute_event_str(f"JobAdded {b64encode(body.encode()).decode()}")
    assert here == ["built"]
    assert decode(f"JobAdded {body}") is None or here == ["built"]
    assert here == ["built"], "not a second time"


class DummyLogger:
    def exception(self, *_args: object, **_options: object) -> None:
        """Nobody wants to know."""


async def test_an_event_that_is_too_long_for_a_payload_fails_its_publisher_with_the_stock_broker_only(
    database: DatabaseUrl,
) -> None:
    event = JobReleased(
        job_id=uuid4(),
        scheduler_id="one",
        task_id="work",
        scheduled_start=ago(),
        started_at=ago(),
        outcome=JobOutcome.error,
        exception_message="x" * 10_000,
    )
    with pytest.raises(SerializationError, match="exceeds 7999 bytes"):
        await AsyncpgEventBroker(database.text).publish(event)
    message = PostgresEventBroker("").message([event])
    assert len(message.encode()) < 8000
    assert f'"{event.job_id}"' in message


async def test_an_idle_listening_connection_is_queried_again_and_again_by_the_stock_broker_only(
    database: DatabaseUrl, connection: asyncpg.Connection
) -> None:
    async def last_queries() -> set[str]:
        rows = await connection.fetch(
            "select query from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()"
        )
        return {row["query"].strip().lower().rstrip(";")[:6] for row in rows}

    stock_broker = AsyncpgEventBroker(database.text, max_idle_time=0.02)
    shared = DirectConnections(database)  # as a node has them; one of the broker's own is asked now and then, as stock
    our_broker = PostgresEventBroker("", shares=shared, max_idle_time=0.02)
    try:
        async with started_brokers(stock_broker, our_broker):
            await our_broker.wait_listening()
            await eventually(lambda: _equals(last_queries, {"select", "listen"}))
    finally:
        await shared.close()


async def _equals(ask: Any, answer: set[str]) -> bool:
    return bool(await ask() == answer)


# -- the loops -------------------------------------------------------------------------------------------------------


async def test_a_job_that_nobody_was_told_of_is_found_by_our_poll_only(
    engine: AsyncEngine, database: DatabaseUrl, connection: asyncpg.Connection
) -> None:
    ours = node(database, tasks(neighbour), poll_interval=0.1)
    async with started_stock(engine) as scheduler, running(ours):
        await scheduler.configure_task(neighbour)
        await ours.configure_task("neighbour")
        # As if the notification had been lost: written past both.
        async with silent_stores(engine) as (stock_store, our_store):
            await stock_store.add_job(a_job(f"{__name__}:neighbour", executor="async"))
            await our_store.add_job(a_job("neighbour"))
        await eventually(lambda: here == ["neighbour"])
        assert await connection.fetchval("select count(*) from stock.jobs where acquired_by is null") == 1


@asynccontextmanager
async def silent_stores(engine: AsyncEngine) -> AsyncIterator[tuple[DataStore, DataStore]]:
    """Lend stores that tell only themselves."""
    theirs, ours = SQLAlchemyDataStore(engine, schema="stock"), PostgresDataStore(engine)
    async with started(theirs), started(ours, silent_broker()):
        yield theirs, ours


@attrs.define
class Fragile(Trigger):
    """Raises when it is asked for its second fire time."""

    first: Any = None
    asked: int = 0

    def next(self) -> Any:
        self.asked += 1
        if self.asked > 1:
            raise ZeroDivisionError("no such day")
        return self.first

    def __getstate__(self) -> Any:
        return [self.first, self.asked]

    def __setstate__(self, state: Any) -> None:
        self.first, self.asked = state


async def test_a_trigger_that_raises_ends_the_stock_scheduler_only(
    engine: AsyncEngine, database: DatabaseUrl, connection: asyncpg.Connection
) -> None:
    async def fire_on_stock() -> None:
        async with started_stock(engine) as scheduler:
            await scheduler.add_schedule(neighbour, Fragile(ago(1)))
            await crash()

    with pytest.raises(ExceptionGroup) as caught:
        await fire_on_stock()
    assert caught.group_contains(UnboundLocalError, match="next_fire_time")

    here.clear()
    ours = node(database, tasks(neighbour))
    ours.store.serializer.register_trigger(Fragile)  # type: ignore[attr-defined]
    async with running(ours):
        await ours.add_schedule("neighbour", Fragile(ago(1)), id="fragile")
        await ours.add_schedule("neighbour", DateTrigger(ago(1)), id="sound")
        await eventually(lambda: here == ["neighbour", "neighbour"])
    reason = await connection.fetchval("select broken_reason from duetime.schedules where id = 'fragile'")
    assert reason == "its trigger raised ZeroDivisionError: no such day"


async def test_a_missing_function_ends_the_stock_scheduler_only(
    engine: AsyncEngine, database: DatabaseUrl, connection: asyncpg.Connection
) -> None:
    missing = a_task("missing", func="tests.store.nowhere:missing")

    async def run_on_stock() -> None:
        async with started_stock(engine) as scheduler:
            await scheduler.data_store.add_task(missing)
            await scheduler.data_store.add_job(a_job("missing", executor="async"))
            await crash()

    with pytest.raises(ExceptionGroup) as caught:
        await run_on_stock()
    assert caught.group_contains(LookupError, match="could not import module")

    ours = node(database, tasks(neighbour), task_modules=("tests.store",))
    async with running(ours):
        await ours.store.add_task(missing)
        await ours.store.add_job(a_job("missing"))
        await ours.add_job("neighbour")
        found = await eventually(lambda: _both(connection))
    assert found["neighbour"] == "success"
    assert "UnknownTask" in found["missing"]
    assert "ModuleNotFoundError" in found["missing"]


async def _both(connection: asyncpg.Connection) -> dict[str, str]:
    found = await outcomes(connection)
    return found if len(found) == 2 else {}


async def test_an_unknown_executor_drops_the_job_of_the_stock_scheduler_only(
    engine: AsyncEngine, database: DatabaseUrl, connection: asyncpg.Connection
) -> None:
    async with started_stock(engine) as scheduler:
        await scheduler.configure_task(neighbour)
        await scheduler.add_job(neighbour, job_executor="nowhere")
        await eventually(lambda: connection.fetchval("select acquired_by is not null from stock.jobs"))
        await scheduler.run_job(where, job_executor="threadpool")  # the loop has been round since
        assert await connection.fetchval("select running_jobs from stock.tasks where id like '%neighbour'") == 1
        assert await connection.fetchval("select count(*) from stock.jobs") == 1, "held, and nothing runs it"

    ours = node(database, tasks(neighbour))
    async with running(ours):
        await ours.add_job("neighbour", job_executor="nowhere")
        error = await eventually(lambda: connection.fetchval("select error from duetime.runs"))
        assert "expected one of the executors" in error
        assert await connection.fetchval("select count(*) from duetime.jobs") == 0


async def test_a_plain_function_blocks_the_event_loop_of_the_stock_scheduler_only(
    engine: AsyncEngine, database: DatabaseUrl
) -> None:
    async with started_stock(engine) as scheduler:
        await scheduler.run_job(where)
    ours = node(database, tasks(where))
    async with running(ours):
        await ours.run_job("where")
    on_stock, on_ours = here
    assert on_stock is threading.main_thread()
    assert on_ours is not threading.main_thread()


async def test_a_call_while_it_starts_fails_at_once_with_the_stock_scheduler_only(
    engine: AsyncEngine, database: DatabaseUrl
) -> None:
    with pytest.raises(RuntimeError, match="has not been initialized yet"):
        await stock(engine).add_schedule(neighbour, DateTrigger(ago(1)))
    ours = node(database, tasks(neighbour))
    await ours.add_schedule("neighbour", DateTrigger(ago(1)), id="early")
    assert (await ours.get_schedule("early")).id == "early"
    await ours.store.connections.close()


async def test_a_text_that_names_no_task_is_taken_for_one_by_the_stock_scheduler_only(
    engine: AsyncEngine, database: DatabaseUrl
) -> None:
    text = f"{__name__}:neighbour"
    async with stock(engine) as scheduler:
        await scheduler.add_schedule(text, DateTrigger(ago(-3600)))
        assert (await scheduler.data_store.get_task(text)).func is None, "it can never run"
    ours = node(database, tasks(neighbour))
    async with ours:
        with pytest.raises(UnknownTask, match="expected the name of a registered task"):
            await ours.add_schedule(text, DateTrigger(ago(-3600)))
        assert await ours.get_schedules() == []


async def test_a_change_made_while_a_schedule_is_paused_is_lost_by_the_stock_scheduler_only(
    engine: AsyncEngine, database: DatabaseUrl, connection: asyncpg.Connection
) -> None:
    """The other change comes after the stock method has read the row, and before it writes it back."""
    ours = node(database, tasks(neighbour))
    async with stock(engine) as theirs, ours:
        for scheduler, function, schema in ((theirs, neighbour, "stock"), (ours, "neighbour", "duetime")):
            trigger = IntervalTrigger(seconds=3600, start_time=ago(-3600))
            await scheduler.add_schedule(function, trigger, id="s", max_jitter=1)
            _change_after_each_read(scheduler.data_store, connection, schema)
            await scheduler.pause_schedule("s")
            await scheduler.get_schedule("s")  # for ours, which has not read
    assert await connection.fetchval("select max_jitter from stock.schedules") == timedelta(seconds=1), "lost"
    assert await connection.fetchval("select max_jitter from duetime.schedules") == timedelta(seconds=2), "kept"
    for schema in ("stock", "duetime"):
        assert await connection.fetchval(f"select paused from {schema}.schedules")  # noqa: S608 - a constant


def _change_after_each_read(store: DataStore, connection: asyncpg.Connection, schema: str) -> None:
    read = store.get_schedules
    is_changed = False

    async def get_schedules(ids: set[str] | None = None) -> Any:
        nonlocal is_changed
        found = await read(ids)
        if not is_changed:
            is_changed = True
            await connection.execute(f"update {schema}.schedules set max_jitter = interval '2 seconds'")  # noqa: S608
        return found

    store.get_schedules = get_schedules  # type: ignore[method-assign]


# -- what would end the process --------------------------------------------------------------------------------------


@pytest.mark.parametrize("raises", ["SystemExit", "KeyboardInterrupt"])
async def test_a_job_that_wants_to_end_the_process_ends_it_with_the_stock_scheduler_only(
    database: DatabaseUrl, connection: asyncpg.Connection, raises: str
) -> None:
    script = Path(__file__).with_name("ending_job.py")

    def run(side: str) -> subprocess.CompletedProcess[str]:
        arguments = [sys.executable, str(script), side, raises, database.text]
        return subprocess.run(arguments, capture_output=True, text=True, timeout=60, check=False)

    theirs, ours = await asyncio.gather(*(asyncio.to_thread(run, side) for side in ("stock", "ours")))
    assert "the neighbour ran" not in theirs.stdout
    assert theirs.returncode != 0
    assert ours.stdout == "the neighbour ran\n", ours.stderr
    assert ours.returncode == 0
    error = await connection.fetchval("select error from duetime.runs where task_id = 'ending'")
    assert error.startswith(f"TaskAborted: expected ending to return or raise an error, got {raises}(")
