"""Sessions that are killed, sessions that the application keeps to itself, and calls that are cancelled half-way."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import pytest
from apscheduler import AsyncScheduler, ConflictPolicy
from apscheduler.triggers.date import DateTrigger

from duetime.broker import PostgresEventBroker
from duetime.errors import StoreUnavailable
from duetime.settings import DatabaseUrl
from duetime.store import PostgresDataStore

from ..matrix.servers import past_the_pooler
from ..store.parts import engine_of
from ..waiting import eventually
from .parts import (
    CALL_TIMEOUT,
    MARGIN,
    a_node,
    add_often,
    done,
    is_ready,
    is_whole,
    later,
    measured,
    settled,
    work,
    works,
)

OTHERS = (
    "select count(pg_terminate_backend(pid)) from pg_stat_activity"
    " where datname = current_database() and pid <> pg_backend_pid()"
)


@pytest.mark.parametrize("kill", [OTHERS, OTHERS.replace("terminate", "cancel")], ids=["connections", "statements"])
async def test_what_is_killed_again_and_again_costs_nothing(
    database: DatabaseUrl, connection: asyncpg.Connection, kill: str
) -> None:
    loop = asyncio.get_running_loop()
    async with a_node(database) as duetime:
        await add_often(duetime)
        added: list[str] = []
        until = loop.time() + 2.5
        while loop.time() < until:
            await connection.execute(kill)
            name = f"added-{len(added)}"
            await duetime.scheduler.add_schedule(
                "work", DateTrigger(datetime.now(UTC)), args=[name], id=name, conflict_policy=ConflictPolicy.exception
            )
            added.append(name)
            await asyncio.sleep(0.02)
        began = loop.time()
        await works(duetime)
        measured("first success after the last connection was killed", loop.time() - began)
        await eventually(lambda: set(added) <= set(done))
        assert [name for name in added if done.count(name) != 1] == []
        await is_whole(duetime, connection)


async def test_a_listening_connection_that_is_killed_costs_a_moment(
    database: DatabaseUrl, connection: asyncpg.Connection
) -> None:
    """Another node adds what this one has to hear of; its poll is far away."""
    loop = asyncio.get_running_loop()
    async with a_node(database, poll_interval=60) as duetime, a_node(database, role="scheduler") as other:
        await works(other)
        for number in range(3):
            await eventually(lambda: duetime._broker.is_listening)
            listening = duetime._broker._connection
            assert listening is not None
            assert await connection.fetchval("select pg_terminate_backend($1)", listening.get_server_pid())
            name = f"told-{number}"
            began = loop.time()
            await other.scheduler.add_job("work", args=[name])
            await eventually(lambda: name in done)  # noqa: B023 - asked within this round
            measured("a job of another node, after the listener was killed", loop.time() - began)
        await works(duetime)


async def test_notifications_that_are_lost_cost_no_more_than_the_poll_interval(
    database: DatabaseUrl, connection: asyncpg.Connection
) -> None:
    async with a_node(database, poll_interval=1) as duetime:
        await duetime.scheduler.data_store.get_task("work")
        # Written as another node does whose notifications do not arrive.
        store = PostgresDataStore(database.text)
        quiet = AsyncScheduler(store, PostgresEventBroker("", channel="elsewhere", connect=_never))
        async with quiet:
            task = await duetime.scheduler.data_store.get_task("work")
            await quiet.add_job(task.id, args=["quiet job"])
            await quiet.add_schedule(task.id, DateTrigger(datetime.now(UTC)), args=["quiet schedule"], id="quiet")
        await eventually(lambda: {"quiet job", "quiet schedule"} <= set(done))
        await eventually(lambda: settled(connection))


async def _never() -> Any:
    await asyncio.Event().wait()


async def test_a_pool_that_the_application_has_exhausted_does_not_stop_work(database: DatabaseUrl) -> None:
    async with (
        engine_of(database, pool_size=1, max_overflow=0) as engine,
        a_node(database) as duetime,
        engine.connect(),
    ):
        await works(duetime)


async def test_a_store_on_an_exhausted_pool_fails_in_time_and_goes_on_when_there_is_a_place(
    database: DatabaseUrl,
) -> None:
    loop = asyncio.get_running_loop()
    done.clear()
    async with engine_of(database, pool_size=1, max_overflow=0, pool_timeout=0.5) as engine:
        store = PostgresDataStore(engine, call_timeout=timedelta(seconds=CALL_TIMEOUT))
        async with AsyncScheduler(store, PostgresEventBroker.from_async_sqla_engine(engine)) as stock:
            await stock.configure_task("work", func=work)
            await stock.start_in_background()
            await stock.add_job("work", args=["before"])
            await eventually(lambda: "before" in done)
            async with engine.connect():
                for _ in range(2):
                    began = loop.time()
                    with pytest.raises(StoreUnavailable):
                        await stock.add_job("work", args=["during"])
                    assert loop.time() - began < CALL_TIMEOUT + MARGIN
            await stock.add_job("work", args=["after"])
            await eventually(lambda: "after" in done)
            assert stock.state.name == "started"


async def test_sessions_that_the_server_ends_when_they_are_idle_cost_nothing(
    database: DatabaseUrl, connection: asyncpg.Connection
) -> None:
    for setting in ("idle_session_timeout", "idle_in_transaction_session_timeout"):
        await connection.execute(f"alter database {database.database} set {setting} = '100ms'")
    async with a_node(database) as duetime:
        await add_often(duetime)
        for _ in range(4):
            await asyncio.sleep(0.3)
            await works(duetime)
        async with asyncio.timeout(20):
            # A pooler refuses to pass on what a session is to do.
            way = past_the_pooler(database)
            fresh = await asyncpg.connect(**way.asyncpg_arguments(), server_settings={"idle_session_timeout": "0"})
        await is_whole(duetime, fresh)
        await fresh.close()


@pytest.mark.parametrize(
    "settings",
    [
        {"statement_timeout": "'20ms'"},
        {"lock_timeout": "'1ms'", "deadlock_timeout": "'1ms'"},
        {"default_transaction_isolation": "serializable"},
        {"default_transaction_isolation": "'repeatable read'"},
        {"transaction_timeout": "'20ms'"},
        {
            "client_min_messages": "error",
            "bytea_output": "escape",
            "datestyle": "'German'",
            "intervalstyle": "iso_8601",
        },
        {"search_path": "''", "timezone": "'Asia/Kathmandu'"},
        {"plan_cache_mode": "force_generic_plan", "enable_indexscan": "off"},
    ],
    ids=lambda settings: ",".join(f"{key}={value}" for key, value in settings.items()),
)
async def test_settings_of_the_database_cost_nothing(
    database: DatabaseUrl, connection: asyncpg.Connection, settings: dict[str, str]
) -> None:
    for name, value in settings.items():
        if await connection.fetchval("select current_setting($1, true) is not null", name):  # else this server is older
            await connection.execute(f"alter database {database.database} set {name} = {value}")
    async with a_node(database, call_timeout=10) as duetime, a_node(database, call_timeout=10) as other:
        await add_often(duetime)
        names = [f"one-{number}" for number in range(40)]
        await asyncio.gather(
            *(
                node.scheduler.add_schedule("work", DateTrigger(datetime.now(UTC)), args=[name], id=name)
                for number, name in enumerate(names)
                for node in [duetime if number % 2 else other]
            )
        )
        await eventually(lambda: set(names) <= set(done))
        assert [name for name in names if done.count(name) != 1] == []
        await is_whole(duetime, connection)


async def test_locks_that_others_hold_are_waited_for_and_calls_end_in_time(
    database: DatabaseUrl, connection: asyncpg.Connection
) -> None:
    loop = asyncio.get_running_loop()
    async with a_node(database) as duetime:
        await add_often(duetime)
        async with connection.transaction():
            await connection.execute("lock table duetime.schedules, duetime.jobs, duetime.fires in exclusive mode")
            for _ in range(2):
                began = loop.time()
                with pytest.raises(StoreUnavailable):
                    await duetime.scheduler.add_schedule("work", DateTrigger(later(0)), id="never", args=["never"])
                assert loop.time() - began < CALL_TIMEOUT + MARGIN
        began = loop.time()
        await works(duetime)
        measured("first success after a lock", loop.time() - began)
        await is_whole(duetime, connection)


async def test_a_call_that_is_cancelled_anywhere_leaves_nothing_half_done(
    database: DatabaseUrl, connection: asyncpg.Connection
) -> None:
    async with a_node(database, role="scheduler", look_ahead=0) as duetime:
        scheduler = duetime.scheduler
        await scheduler.add_schedule("work", DateTrigger(later(3600)), id="there")
        outcomes: set[bool] = set()
        for number in range(60):
            name = f"cancelled-{number}"
            for call in (
                scheduler.add_schedule("work", DateTrigger(later(3600)), id=name),
                scheduler.add_job("work", args=[name]),
                scheduler.remove_schedule("there" if number == 59 else f"cancelled-{number - 1}"),
                scheduler.pause_schedule("there") if number < 59 else asyncio.sleep(0),
            ):
                task = asyncio.ensure_future(call)
                for _ in range(number % 30):
                    await asyncio.sleep(0)
                await asyncio.sleep(0.0002 * (number % 7))
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task
                outcomes.add(task.cancelled())
        assert outcomes == {True, False}, "some of the calls were in time"
        # What was said to be stored is, and everything that is there is whole.
        assert await connection.fetchval("select count(*) from duetime.schedules where acquired_by is not null") == 0
        await scheduler.add_schedule("work", DateTrigger(later(0)), id="last")
        await eventually(
            lambda: connection.fetchval("select count(*) > 0 from duetime.fires where schedule_id = 'last'")
        )
    async with a_node(database) as duetime:
        await eventually(lambda: settled(connection))
        jobs = [name for name in done if name.startswith("cancelled")]
        assert len(jobs) == len(set(jobs)), "none ran twice"
        await works(duetime)


async def test_many_handlers_that_wait_for_a_database_that_is_away_all_end_in_time(database: DatabaseUrl) -> None:
    loop = asyncio.get_running_loop()

    async def fresh() -> None:
        """A task whose definition is not in memory."""

    async with a_node(database, fresh) as duetime:
        await works(duetime)
        gone = replace(database, database="gone")
        duetime._connections._url = gone.direct
        await duetime._connections.close()
        duetime._scheduler.store._tasks.clear()
        began = loop.time()
        outcomes = await asyncio.gather(
            *(duetime.scheduler.add_schedule("fresh", DateTrigger(later(0))) for _ in range(20)), return_exceptions=True
        )
        assert loop.time() - began < CALL_TIMEOUT + MARGIN
        assert {type(outcome) for outcome in outcomes} == {StoreUnavailable}
        duetime._connections._url = database.direct
        await works(duetime)


async def test_a_schema_that_is_dropped_under_way_is_made_anew(
    database: DatabaseUrl, connection: asyncpg.Connection
) -> None:
    async with a_node(database) as duetime:
        await works(duetime)
        for _ in range(5):
            await connection.execute("drop schema duetime cascade")
            await works(duetime)
        await is_ready(duetime)
