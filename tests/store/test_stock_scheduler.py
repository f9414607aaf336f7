"""Our store and broker under the stock ``AsyncScheduler``: somebody on raw 4.0.0a6 changes two imports."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import timedelta
from itertools import pairwise
from typing import Any

import asyncpg
import pytest
from apscheduler import (
    AsyncScheduler,
    Event,
    JobLookupError,
    JobOutcome,
    ScheduleLookupError,
    SchedulerRole,
    TaskDefaults,
)
from apscheduler.serializers.pickle import PickleSerializer
from apscheduler.triggers.date import DateTrigger
from apscheduler.triggers.interval import IntervalTrigger
from sqlalchemy.ext.asyncio import AsyncEngine

from duetime.attempts import Retry
from duetime.broker import PostgresEventBroker
from duetime.options import TaskOptions
from duetime.settings import DatabaseUrl
from duetime.store import PostgresDataStore

from ..matrix.servers import past_the_pooler
from ..waiting import eventually
from .parts import ago, engine_of, expire, names, silent_broker, sqlalchemy_url

calls: list[Any] = []


async def tick() -> None:
    calls.append("tick")


async def double(number: int) -> int:
    return 2 * number


def fails(text: str) -> None:
    raise ValueError(text)


@pytest.fixture(autouse=True)
def no_calls() -> None:
    calls.clear()


@pytest.fixture
async def engine(database: DatabaseUrl) -> AsyncIterator[AsyncEngine]:
    """An engine of the application's own."""
    async with engine_of(database) as engine:
        yield engine


def broker_beside(engine: AsyncEngine, **options: Any) -> PostgresEventBroker:
    """Return a broker for the engine's database, which needs the direct address where the engine goes to a pooler."""
    url = DatabaseUrl.parse(engine.url.render_as_string(hide_password=False))
    direct = past_the_pooler(url)
    if direct == url:
        return PostgresEventBroker.from_async_sqla_engine(engine, **options)
    return PostgresEventBroker(direct.text, **options)


def stock(engine: AsyncEngine, **options: Any) -> AsyncScheduler:
    return AsyncScheduler(PostgresDataStore(engine), broker_beside(engine), **options)


@asynccontextmanager
async def running(*schedulers: AsyncScheduler) -> AsyncIterator[None]:
    async with AsyncExitStack() as stack:
        for scheduler in schedulers:
            await stack.enter_async_context(scheduler)
            await scheduler.start_in_background()
            assert isinstance(scheduler.event_broker, PostgresEventBroker)
            await scheduler.event_broker.wait_listening()
        yield


async def fires(connection: asyncpg.Connection, state: str = "succeeded", schema: str = "duetime") -> int:
    found: int = await connection.fetchval(f"select count(*) from {schema}.fires where state = $1", state)  # noqa: S608
    return found


async def test_a_schedule_of_five_a_second_fires_on_and_on(engine: AsyncEngine, connection: asyncpg.Connection) -> None:
    scheduler = stock(engine)
    async with running(scheduler):
        schedule_id = await scheduler.add_schedule(tick, IntervalTrigger(microseconds=200_000))
        await eventually(lambda: len(calls) >= 5)
        schedule = await scheduler.get_schedule(schedule_id)
    assert schedule.last_fire_time is not None
    times = [row[0] for row in await connection.fetch("select fire_time from duetime.fires order by fire_time")]
    gaps = {later - earlier for earlier, later in pairwise(times)}
    assert gaps == {timedelta(milliseconds=200)}, "each fire once, none left out"


@pytest.mark.parametrize("form", ["text", "url"])
async def test_the_store_takes_an_address_instead_of_an_engine(
    database: DatabaseUrl, connection: asyncpg.Connection, form: str
) -> None:
    url = sqlalchemy_url(database)
    text = url.render_as_string(hide_password=False)
    scheduler = AsyncScheduler(PostgresDataStore(text if form == "text" else url), PostgresEventBroker(database.text))
    async with running(scheduler):
        assert await scheduler.run_job(double, args=[4]) == 8
    await eventually(lambda: no_sessions_but_ours(connection))


async def no_sessions_but_ours(connection: asyncpg.Connection) -> bool:
    """Return whether nobody else is connected to the test's database."""
    others: int = await connection.fetchval(
        "select count(*) from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()"
    )
    return others == 0


async def test_the_stock_keywords_have_their_stock_meaning(
    engine: AsyncEngine, empty_database: DatabaseUrl, database: DatabaseUrl, connection: asyncpg.Connection
) -> None:
    store = PostgresDataStore(engine, schema="elsewhere", serializer=PickleSerializer())
    scheduler = AsyncScheduler(store, broker_beside(engine, channel="elsewhere"))
    async with running(scheduler):
        await scheduler.add_schedule(tick, IntervalTrigger(seconds=100), id="kept", args=[])
        await eventually(lambda: fires(connection, schema="elsewhere"))
    stored = await connection.fetchval("select trigger from elsewhere.schedules")
    assert stored.startswith(b"\x80"), "a pickle"
    assert await connection.fetchval("select count(*) from duetime.schedules") == 0
    again = PostgresDataStore(engine, schema="elsewhere", serializer=PickleSerializer(), start_from_scratch=True)
    scheduler = AsyncScheduler(again, broker_beside(engine))
    async with running(scheduler):
        with pytest.raises(ScheduleLookupError):
            await scheduler.get_schedule("kept")


async def test_jobs_run_and_their_results_are_read(engine: AsyncEngine) -> None:
    scheduler = stock(engine)
    async with running(scheduler):
        assert await scheduler.run_job(double, args=[21]) == 42
        with pytest.raises(Exception, match="no such luck"):
            await scheduler.run_job(fails, args=["no such luck"], job_executor="threadpool")
        job_id = await scheduler.add_job(double, args=[2], result_expiration_time=60)
        for _ in range(2):
            result = await scheduler.get_job_result(job_id)
            assert result is not None
            assert (result.outcome, result.return_value) == (JobOutcome.success, 4)
        unwanted = await scheduler.add_job(double, args=[2])
        await eventually(lambda: _is_gone(scheduler, unwanted))
        with pytest.raises(JobLookupError):
            await scheduler.get_job_result(unwanted, wait=False)


async def _is_gone(scheduler: AsyncScheduler, job_id: Any) -> bool:
    return job_id not in {job.id for job in await scheduler.get_jobs()}


async def test_events_of_one_scheduler_reach_the_other(engine: AsyncEngine) -> None:
    first, second = stock(engine), stock(engine)
    heard: list[Event] = []
    async with running(first, second):
        second.subscribe(heard.append)
        schedule_id = await first.add_schedule(tick, DateTrigger(ago(-3600)))
        await first.remove_schedule(schedule_id)
        await eventually(lambda: len(heard) >= 3)
        assert names(heard) == ["TaskUpdated", "ScheduleAdded", "ScheduleRemoved"]
        assert heard[1].schedule_id == schedule_id  # type: ignore[attr-defined]


async def test_a_result_that_another_scheduler_made_reaches_who_waits_for_it(engine: AsyncEngine) -> None:
    asking, working = stock(engine, role="scheduler"), stock(engine, role="worker")
    async with running(asking, working):
        assert await asking.run_job(double, args=[3]) == 6


async def test_every_one_of_many_awaited_results_reaches_who_waits_for_it(engine: AsyncEngine) -> None:
    asking = stock(engine, role="scheduler", task_defaults=TaskDefaults(max_running_jobs=None))
    working = stock(engine, role="worker")
    async with running(asking, working):
        results = await asyncio.gather(*(asking.run_job(double, args=[n]) for n in range(200)))
    assert results == [2 * n for n in range(200)]


async def test_two_schedulers_share_the_fires_and_double_none(
    engine: AsyncEngine, connection: asyncpg.Connection
) -> None:
    async with running(*(stock(engine, task_defaults=TaskDefaults(max_running_jobs=None)) for _ in range(2))) as _:
        scheduler = stock(engine, task_defaults=TaskDefaults(max_running_jobs=None))
        async with scheduler:
            for number in range(100):
                await scheduler.add_schedule(tick, DateTrigger(ago(1)), id=f"s{number}")
        await eventually(lambda: len(calls) >= 100)
        await eventually(lambda: _all_done(connection))
    assert len(calls) == 100
    assert await fires(connection) == 100


async def _all_done(connection: asyncpg.Connection) -> bool:
    pending: int = await connection.fetchval("select count(*) from duetime.jobs")
    return pending == 0


async def test_a_fire_with_jitter_runs_when_its_delay_is_over(
    engine: AsyncEngine, connection: asyncpg.Connection
) -> None:
    scheduler = stock(engine)
    async with running(scheduler):
        await scheduler.add_schedule(tick, DateTrigger(ago()), id="jittered", max_jitter=0.8)
        await eventually(lambda: fires(connection))
    run = await connection.fetchrow("select started_at, due_at from duetime.runs")
    assert run["started_at"] >= run["due_at"] - timedelta(milliseconds=20)


async def test_a_failed_attempt_is_made_again_when_its_wait_is_over(
    engine: AsyncEngine, connection: asyncpg.Connection
) -> None:
    options = TaskOptions(retry=Retry(max_attempts=3, backoff=0.1, jitter=0))
    scheduler = stock(engine)
    async with running(scheduler):
        await scheduler.add_job(fails, args=["again"], metadata=options.to_metadata())
        await eventually(lambda: connection.fetchval("select count(*) = 3 from duetime.runs"))
        await eventually(lambda: _all_done(connection))


async def test_an_attempt_that_became_due_while_the_answer_was_on_its_way_is_made(
    engine: AsyncEngine, connection: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stock job loop has no poll: nothing else would wake it."""
    options = TaskOptions(retry=Retry(max_attempts=2, backoff=1, jitter=0))
    scheduler = stock(engine)
    claim = PostgresDataStore._claim_rows

    async def answered_late(store: PostgresDataStore, *arguments: Any) -> Any:
        answer, lost = await claim(store, *arguments)
        if (due := answer[0]["next_due"]) is not None:
            await eventually(lambda: store.database.clock.wait_for(due) < 0)
        return answer, lost

    monkeypatch.setattr(PostgresDataStore, "_claim_rows", answered_late)
    async with running(scheduler):
        await scheduler.add_job(fails, args=["again"], metadata=options.to_metadata())
        await eventually(lambda: _all_done(connection))
    assert await connection.fetchval("select count(*) from duetime.runs") == 2


async def test_a_job_of_a_vanished_worker_is_taken_over_when_its_lease_ends(
    engine: AsyncEngine, connection: asyncpg.Connection
) -> None:
    gone = stock(engine, role="scheduler", identity="gone")
    async with gone:
        await gone.add_job(double, args=[1], metadata=TaskOptions().to_metadata())
        [job] = await gone.data_store.acquire_jobs("gone", timedelta(seconds=1))
    scheduler = stock(engine)
    async with running(scheduler):
        await eventually(lambda: connection.fetchval("select count(*) = 2 from duetime.runs"))
    runs = await connection.fetch("select job_id, outcome from duetime.runs order by id")
    assert [tuple(run) for run in runs] == [(job.id, "abandoned"), (job.id, "success")]


async def test_a_schedule_of_a_vanished_scheduler_is_taken_over_when_its_claim_ends(
    engine: AsyncEngine, connection: asyncpg.Connection
) -> None:
    gone = stock(engine, identity="gone")
    async with gone:
        await gone.add_schedule(tick, DateTrigger(ago(1)))
        assert len(await gone.data_store.acquire_schedules("gone", timedelta(seconds=1), 9)) == 1
    async with running(stock(engine)):
        await eventually(lambda: fires(connection))
    assert calls == ["tick"]


@pytest.mark.parametrize("what", ["schedule", "job"])
async def test_what_was_added_while_nobody_listened_is_found_when_the_connection_is_back(
    engine: AsyncEngine, connection: asyncpg.Connection, what: str
) -> None:
    scheduler, other = stock(engine), stock(engine)
    async with running(scheduler), other:
        await scheduler.configure_task(tick)
        broker = scheduler.event_broker
        assert isinstance(broker, PostgresEventBroker)
        listening = broker.connect = _Closed(broker._open)
        await connection.execute(
            "select pg_terminate_backend(pid) from pg_stat_activity where pid = any($1)",
            [broker._connection.get_server_pid()],  # type: ignore[union-attr]
        )
        await eventually(lambda: broker._connection is None)
        if what == "schedule":
            await other.add_schedule(tick, DateTrigger(ago(1)))
        else:
            await other.add_job(tick)
        listening.open.set()
        await eventually(lambda: bool(calls))


@pytest.mark.parametrize("role", ["scheduler", "both"])
async def test_what_no_notification_told_of_is_found_by_the_poll(
    engine: AsyncEngine, connection: asyncpg.Connection, role: str
) -> None:
    """Promise 5, for the stock loops too: they would wait for an event for ever."""
    store = PostgresDataStore(engine, poll_interval=timedelta(seconds=1))
    scheduler = AsyncScheduler(store, broker_beside(engine), role=SchedulerRole[role])
    unheard = AsyncScheduler(PostgresDataStore(engine), silent_broker())
    async with running(scheduler), unheard:
        await eventually(lambda: store._alarm is not None)
        await unheard.add_schedule(tick, DateTrigger(ago(1)))
        await eventually(lambda: connection.fetchval("select count(*) = 1 from duetime.fires"))
        if role == "both":
            await unheard.add_job(tick)
            await eventually(lambda: calls == ["tick"] * 2)


class _Closed:
    """A way to the listening connection that the test opens."""

    def __init__(self, connect: Any) -> None:
        self.open = asyncio.Event()
        self._connect = connect

    async def __call__(self) -> asyncpg.Connection:
        await self.open.wait()
        broker = self._connect.__self__
        broker.connect = None
        return await self._connect()


async def test_the_application_keeps_its_engine(database: DatabaseUrl, connection: asyncpg.Connection) -> None:
    async with engine_of(database, pool_size=1, max_overflow=0) as engine:
        async with running(stock(engine)):
            pass
        async with engine.connect() as mine:
            assert (await mine.exec_driver_sql("select 1")).scalar() == 1
        assert engine.pool.checkedout() == 0  # type: ignore[attr-defined]


async def test_a_paused_schedule_stays_paused_and_an_expired_claim_does_not_matter(
    engine: AsyncEngine, connection: asyncpg.Connection
) -> None:
    scheduler = stock(engine)
    async with running(scheduler):
        schedule_id = await scheduler.add_schedule(tick, IntervalTrigger(seconds=3600), paused=True)
        await scheduler.unpause_schedule(schedule_id)
        await eventually(lambda: len(calls) == 1)
        await scheduler.pause_schedule(schedule_id)
        assert (await scheduler.get_schedule(schedule_id)).paused
        await expire(connection, "schedules")
    assert calls == ["tick"]
