"""Behind a pooler in transaction mode that cannot be told by its address, all works, if not all at once."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from dataclasses import replace
from datetime import timedelta
from typing import Any

import asyncpg
import pytest
from apscheduler import ConflictPolicy, TaskAdded
from apscheduler.triggers.date import DateTrigger
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

from duetime import Duetime, Settings
from duetime.broker import PostgresEventBroker
from duetime.options import Overlap, TaskOptions
from duetime.settings import DatabaseUrl
from duetime.store import PostgresDataStore, scheduler_transaction
from duetime.store.driver import connect_for_the_store

from ..matrix.servers import a_pooler
from ..waiting import eventually
from .parts import a_job, a_schedule, a_store, a_task, ago, engine_of, started, tasks

needs_a_pooler = pytest.mark.debian("pgbouncer")

done: list[str] = []


async def work(name: str = "work") -> None:
    done.append(name)


@pytest.fixture(autouse=True)
def nothing_done() -> None:
    done.clear()


@pytest.fixture(scope="session")
def pooler(server: DatabaseUrl) -> Iterator[DatabaseUrl]:
    """A pooler of these tests' own, which hands each transaction to another session."""
    with a_pooler(server) as url:
        yield url


@pytest.fixture
def pooled(pooler: DatabaseUrl, database: DatabaseUrl) -> DatabaseUrl:
    """The address through it as somebody may have it: nothing in it says that it is a pooler's."""
    return replace(pooler, database=database.database, statement_cache_size=None)


@pytest.fixture
async def engine(pooler: DatabaseUrl, database: DatabaseUrl) -> AsyncIterator[AsyncEngine]:
    """An application's engine through it, with the arguments that the documentation gives."""
    async with engine_of(replace(pooler, database=database.database)) as engine:
        yield engine


@pytest.fixture
def direct(server: DatabaseUrl, database: DatabaseUrl) -> DatabaseUrl:
    """The way past every pooler."""
    return replace(server, database=database.database)


def a_node(url: DatabaseUrl, **settings: Any) -> Duetime:
    values: dict[str, Any] = {"database_url": url.text, "poll_interval": 1, **settings}
    return Duetime(Settings(**values), registry=tasks(work, work=TaskOptions(overlap=Overlap.allow)))


@needs_a_pooler
async def test_nodes_run_each_fire_once_without_a_failed_statement(
    pooled: DatabaseUrl, connection: asyncpg.Connection, caplog: pytest.LogCaptureFixture
) -> None:
    async with AsyncExitStack() as stack:
        nodes = [await stack.enter_async_context(a_node(pooled, node_name=f"node-{n}")) for n in range(3)]
        await asyncio.gather(
            *(nodes[n % 3].scheduler.add_schedule("work", DateTrigger(ago()), args=[f"s{n}"]) for n in range(150)),
            *(nodes[n % 3].scheduler.add_job("work", args=[f"j{n}"]) for n in range(60)),
        )

        async def all_is_recorded() -> bool:
            row = await connection.fetchrow(
                "select (select count(*) from duetime.jobs) as jobs, (select count(*) from duetime.runs) as runs,"
                " (select count(*) from duetime.fires where state = 'succeeded') as fires"
            )
            return tuple(row) == (0, 210, 150)

        await eventually(all_is_recorded)
    assert len(done) == len(set(done)) == 210
    assert "does not answer" not in caplog.text


@needs_a_pooler
async def test_the_schema_is_made_through_it(pooler: DatabaseUrl, empty_database: DatabaseUrl) -> None:
    async with a_store(replace(pooler, database=empty_database.database, statement_cache_size=None)) as store:
        await store.add_task(a_task())
        await store.add_schedule(a_schedule("s"), ConflictPolicy.exception)
        assert [schedule.id for schedule in await store.get_schedules()] == ["s"]


@needs_a_pooler
async def test_a_node_says_that_it_does_not_hear_the_others_and_finds_their_work_by_its_poll(
    pooled: DatabaseUrl, direct: DatabaseUrl, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    async with a_node(pooled, role="worker") as duetime:
        await eventually(lambda: "does not hear other nodes" in caplog.text)
        assert not duetime._broker.is_listening
        async with a_node(direct, role="scheduler") as other:
            await other.scheduler.add_schedule("work", DateTrigger(ago()), args=["of another node"])
            await eventually(lambda: done == ["of another node"])
    assert caplog.text.count("does not hear other nodes") == 1


@needs_a_pooler
async def test_a_node_that_does_not_hear_of_a_new_definition_of_a_task_comes_to_know_it_all_the_same(
    pooled: DatabaseUrl, direct: DatabaseUrl
) -> None:
    grace = timedelta(minutes=5)
    async with a_node(pooled, lease_duration=1.5, call_timeout=1, look_ahead=0.5) as duetime, a_store(direct) as other:
        await duetime.scheduler.configure_task("work")
        await other.add_task(a_task(misfire_grace_time=grace))

        async def is_known() -> bool:
            return (await duetime._scheduler.store.get_task("work")).misfire_grace_time == grace

        await eventually(is_known)


@needs_a_pooler
async def test_a_broker_with_a_connection_of_its_own_says_that_it_hears_nothing(
    pooled: DatabaseUrl, direct: DatabaseUrl, caplog: pytest.LogCaptureFixture
) -> None:
    async with AsyncExitStack() as stack:
        for url, hears in ((pooled, False), (direct, True)):
            broker = PostgresEventBroker(url.text)
            await broker.start(stack, logging.getLogger("tests"))
            await broker.wait_listening()
            assert broker.is_listening is hears
    assert caplog.text.count("does not hear other nodes") == 1


@needs_a_pooler
async def test_a_statement_that_takes_long_is_left_to_its_end(
    pooled: DatabaseUrl, connection: asyncpg.Connection
) -> None:
    """The server cannot be asked after it: what a pooler gives its clients are numbers of its own."""
    await connection.execute("create sequence times")
    async with a_store(pooled) as store:
        await store.database.query("select nextval('times'), pg_sleep(2.5)", deadline=None)
    assert await connection.fetchval("select last_value from times") == 1


@needs_a_pooler
async def test_what_a_session_schedules_is_there_when_it_commits_and_not_when_it_rolls_back(
    engine: AsyncEngine, direct: DatabaseUrl, connection: asyncpg.Connection
) -> None:
    await connection.execute("create table orders (name text)")
    async with a_node(direct) as duetime:
        for name, kept in (("kept", True), ("dropped", False)) * 5:
            async with AsyncSession(engine) as session:
                await session.execute(text("insert into orders values (:name)"), {"name": name})
                async with scheduler_transaction(session):
                    await duetime.scheduler.add_schedule("work", DateTrigger(ago()), args=[name])
                await (session.commit() if kept else session.rollback())
        await eventually(lambda: len(done) == 5)
    assert await connection.fetch("select distinct name from orders") == [("kept",)]
    assert await connection.fetchval("select count(*) from duetime.fires") == 5
    assert done == ["kept"] * 5


@needs_a_pooler
async def test_the_store_works_on_an_engine_through_it_and_hears_past_it(
    engine: AsyncEngine, direct: DatabaseUrl
) -> None:
    store = PostgresDataStore(engine)
    heard: list[TaskAdded] = []
    broker = PostgresEventBroker(direct.text)
    async with started(store, broker), a_store(direct) as other:
        broker.subscribe(heard.append, {TaskAdded})
        await broker.wait_listening()
        assert broker.is_listening, "what other nodes do is heard, though the store goes through a pooler"
        await store.add_task(a_task())
        await asyncio.gather(
            *(store.add_schedule(a_schedule(f"s{n}"), ConflictPolicy.exception) for n in range(50)),
            *(store.add_job(a_job()) for _ in range(50)),
        )
        assert len(await other.get_schedules()) == 50
        assert len(await other.get_jobs()) == 50
        assert heard


async def test_a_statement_of_another_process_in_the_same_session_is_not_taken_for_ours(direct: DatabaseUrl) -> None:
    """asyncpg numbers its statements from 1 in each process, so under our number there may be anything."""
    connection = await connect_for_the_store(direct)
    stranger = await asyncpg.connect(**direct.asyncpg_arguments())
    try:
        number = int((await stranger.prepare("select 1")).get_name().strip("_").rpartition("_")[2], 16)
        for each in range(number, number + 20):
            await connection.execute(f"prepare __asyncpg_stmt_{each:x}__ as select 'wrong'")
        assert await connection.fetchval("select 'right'") == "right"
    finally:
        await stranger.close()
        await connection.close()
