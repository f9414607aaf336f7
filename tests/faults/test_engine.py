"""An application's own engine whose pool is full of connections that the server, or the network, has lost."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import timedelta

import asyncpg
import pytest
from apscheduler import AsyncScheduler, CoalescePolicy
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.pool import QueuePool

from duetime.broker import PostgresEventBroker
from duetime.errors import StoreUnavailable
from duetime.settings import DatabaseUrl
from duetime.store import PostgresDataStore
from duetime.store.engine import EngineConnections

from ..store.network import Network
from ..store.parts import engine_of, every
from ..waiting import eventually
from .parts import CALL_TIMEOUT, connected, done, measured, settled, work
from .servers import KILL, OwnServer
from .test_sessions import OTHERS

CONNECTIONS = 20

PINGS = pytest.mark.parametrize("pings", [False, True], ids=["as they are", "pinged"])


@asynccontextmanager
async def a_scheduler(
    database: DatabaseUrl, *, call_timeout: float, pings: bool, connections: int = CONNECTIONS
) -> AsyncIterator[AsyncScheduler]:
    """Run a stock scheduler on an engine whose pool holds so many connections, all open and free."""
    done.clear()
    async with engine_of(database, pool_size=connections, pool_pre_ping=pings) as engine:
        store = PostgresDataStore(engine, call_timeout=timedelta(seconds=call_timeout))
        async with AsyncScheduler(store, PostgresEventBroker.from_async_sqla_engine(engine)) as scheduler:
            await scheduler.configure_task("work", func=work)
            await scheduler.start_in_background()
            await scheduler.add_job("work", args=["before"])
            await eventually(lambda: "before" in done)
            await fill(engine, connections)
            yield scheduler
            assert scheduler.state.name == "started"


async def fill(engine: AsyncEngine, connections: int) -> None:
    async with AsyncExitStack() as stack:
        for _ in range(connections):
            await stack.enter_async_context(engine.connect())


@PINGS
async def test_a_call_passes_over_all_connections_that_the_server_has_ended(
    pings: bool, database: DatabaseUrl, connection: asyncpg.Connection
) -> None:
    async with a_scheduler(database, call_timeout=CALL_TIMEOUT, pings=pings) as scheduler:
        await connection.execute(OTHERS)
        await scheduler.add_job("work", args=["after"])
        await eventually(lambda: "after" in done)


@PINGS
async def test_a_call_passes_over_all_connections_that_are_half_open_once_one_is_found_to_be(
    pings: bool,
    database: DatabaseUrl,
) -> None:
    loop = asyncio.get_running_loop()
    async with Network(database) as network, a_scheduler(network.url, call_timeout=15, pings=pings) as scheduler:
        network.half_open()
        began = loop.time()
        await scheduler.add_job("work", args=["after"])
        measured("a job added on a pool of half-open connections", loop.time() - began)
        await eventually(lambda: "after" in done)


@PINGS
async def test_a_call_on_a_network_that_swallows_ends_at_its_deadline(pings: bool, database: DatabaseUrl) -> None:
    """SQLAlchemy gives a connection that it drops two seconds to say goodbye."""
    loop = asyncio.get_running_loop()
    async with (
        Network(database) as network,
        a_scheduler(network.url, call_timeout=0.2, pings=pings, connections=1) as scheduler,
    ):
        network.black_hole()
        began = loop.time()
        with pytest.raises(StoreUnavailable):
            await scheduler.add_job("work", args=["during"])
        assert loop.time() - began < 1.5
        await network.mend()


@PINGS
async def test_work_resumes_when_a_network_that_swallowed_is_back(pings: bool, database: DatabaseUrl) -> None:
    loop = asyncio.get_running_loop()
    async with Network(database) as network, a_scheduler(network.url, call_timeout=15, pings=pings) as scheduler:
        network.black_hole()
        adding = asyncio.create_task(scheduler.add_job("work", args=["after"]))
        await asyncio.sleep(2.5)
        await network.mend()
        back_at = loop.time()
        await adding
        await eventually(lambda: "after" in done)
        measured("work on an engine's pool after a black hole", loop.time() - back_at)


@PINGS
async def test_a_pool_that_the_application_has_used_up_is_waited_for(pings: bool, database: DatabaseUrl) -> None:
    async with engine_of(database, pool_size=2, max_overflow=0, pool_pre_ping=pings) as engine:
        connections = EngineConnections(engine)
        await fill(engine, 2)  # so that they are known
        async with engine.connect() as one, engine.connect() as other:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(3), connections.acquire():
                    pass
            for each in (one, other):
                assert await each.scalar(text("select 1")) == 1
        async with connections.acquire() as driver:
            assert await driver.fetchval("select 1") == 1
        await connections.close()


async def test_a_pool_gets_back_what_was_asked_in_vain(database: DatabaseUrl) -> None:
    """None of the pool's places is lost."""
    async with Network(database) as network:
        options = {"pool_size": 3, "max_overflow": 0, "pool_pre_ping": True}
        async with engine_of(network.url, **options) as engine:
            connections = EngineConnections(engine)
            await fill(engine, 3)
            network.black_hole()
            for _ in range(3):
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(0.2), connections.acquire() as driver:
                        await driver.fetchval("select 1")
            pool = engine.pool
            assert isinstance(pool, QueuePool)
            assert pool.checkedout() == 0
            await network.mend()
            async with asyncio.timeout(15), AsyncExitStack() as stack:
                for _ in range(3):
                    driver = await stack.enter_async_context(connections.acquire())
                    assert await driver.fetchval("select 1") == 1
            await connections.close()


@PINGS
async def test_a_stock_scheduler_goes_on_when_its_server_was_killed_and_is_back(pings: bool, own: OwnServer) -> None:
    loop = asyncio.get_running_loop()
    async with a_scheduler(own.url, call_timeout=CALL_TIMEOUT, pings=pings) as scheduler:
        await scheduler.add_schedule("work", every(0.1), id="often", args=["often"], coalesce=CoalescePolicy.all)
        await eventually(lambda: done.count("often") > 3)
        await own.stop(KILL)
        with pytest.raises(StoreUnavailable):
            await scheduler.add_job("work", args=["during"])
        await own.start()
        before, back_at = len(done), loop.time()
        await eventually(lambda: len(done) > before)
        measured("first fire of a stock scheduler after kill -9", loop.time() - back_at)
        await scheduler.remove_schedule("often")
        async with connected(own.url) as connection:
            await eventually(lambda: settled(connection))
            runs = await connection.fetchval("select count(*) from duetime.runs where schedule_id = 'often'")
            fires = await connection.fetchval("select count(*) from duetime.fires where schedule_id = 'often'")
        assert fires == runs == done.count("often")
