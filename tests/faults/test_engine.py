"""An application's own engine whose pool is full of connections that the server, or the network, has lost."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import timedelta

import asyncpg
import pytest
from apscheduler import AsyncScheduler, CoalescePolicy
from sqlalchemy.ext.asyncio import AsyncEngine

from duetime.broker import PostgresEventBroker
from duetime.errors import StoreUnavailable
from duetime.settings import DatabaseUrl
from duetime.store import PostgresDataStore

from ..store.network import Network
from ..store.parts import engine_of, every
from ..waiting import eventually
from .parts import CALL_TIMEOUT, connected, done, measured, settled, work
from .servers import KILL, OwnServer
from .test_sessions import OTHERS

CONNECTIONS = 20


@asynccontextmanager
async def a_scheduler(
    database: DatabaseUrl, *, call_timeout: float, connections: int = CONNECTIONS
) -> AsyncIterator[AsyncScheduler]:
    """Run a stock scheduler on an engine whose pool holds so many connections, all open and free."""
    done.clear()
    async with engine_of(database, pool_size=connections) as engine:
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


async def test_a_call_passes_over_all_connections_that_the_server_has_ended(
    database: DatabaseUrl, connection: asyncpg.Connection
) -> None:
    async with a_scheduler(database, call_timeout=CALL_TIMEOUT) as scheduler:
        await connection.execute(OTHERS)
        await scheduler.add_job("work", args=["after"])
        await eventually(lambda: "after" in done)


async def test_a_call_passes_over_all_connections_that_are_half_open_once_one_is_found_to_be(
    database: DatabaseUrl,
) -> None:
    loop = asyncio.get_running_loop()
    async with Network(database) as network, a_scheduler(network.url, call_timeout=15) as scheduler:
        network.half_open()
        began = loop.time()
        await scheduler.add_job("work", args=["after"])
        measured("a job added on a pool of half-open connections", loop.time() - began)
        await eventually(lambda: "after" in done)


async def test_a_call_on_a_network_that_swallows_ends_at_its_deadline(database: DatabaseUrl) -> None:
    """SQLAlchemy gives a connection that it drops two seconds to say goodbye."""
    loop = asyncio.get_running_loop()
    async with Network(database) as network, a_scheduler(network.url, call_timeout=0.2, connections=1) as scheduler:
        network.black_hole()
        began = loop.time()
        with pytest.raises(StoreUnavailable):
            await scheduler.add_job("work", args=["during"])
        assert loop.time() - began < 1.5
        await network.mend()


async def test_a_stock_scheduler_goes_on_when_its_server_was_killed_and_is_back(own: OwnServer) -> None:
    loop = asyncio.get_running_loop()
    async with a_scheduler(own.url, call_timeout=CALL_TIMEOUT) as scheduler:
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
