"""Connections of an application's own SQLAlchemy engine."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from contextvars import ContextVar
from typing import Any
from weakref import WeakSet

import asyncpg
import sqlalchemy.exc
from anyio import CancelScope
from sqlalchemy import Engine, event
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
from sqlalchemy.pool import ConnectionPoolEntry

from ..errors import InvalidSettings
from .checkouts import Checkouts
from .connections import Step, breaks, say_goodbye
from .driver import know_arrays

# The driver connections that the pool has opened for the call at hand. SQLAlchemy, 2.0.44 for one, forgets one whose
# first questions to the server are cancelled, as when a call's time is over: it stays open until it is collected.
_opened: ContextVar[list[asyncpg.Connection] | None] = ContextVar("_opened", default=None)

_OPENED_AT = "duetime_opened_at"


def _note(connection: Any, record: ConnectionPoolEntry) -> None:
    record.info[_OPENED_AT] = time.monotonic()
    if (opened := _opened.get()) is not None:
        opened.append(connection.driver_connection)


def _end(connection: Any, _record: ConnectionPoolEntry) -> None:
    """End at once what the pool closes while it is asked for a connection: it waits for a goodbye for two seconds."""
    if _opened.get() is not None:
        connection.driver_connection.terminate()


class EngineConnections:
    """Connections of an application's own SQLAlchemy engine, with its URL, arguments and event hooks."""

    def __init__(self, engine: AsyncEngine) -> None:
        if engine.dialect.name != "postgresql" or engine.dialect.driver != "asyncpg":
            raise InvalidSettings(
                f"expected an engine for PostgreSQL over asyncpg (postgresql+asyncpg://…), got "
                f"{engine.dialect.name}+{engine.dialect.driver}."
            )
        self._engine = engine
        self._known: WeakSet[asyncpg.Connection] = WeakSet()
        # When a connection was last found to be lost: so may be all that were opened before, though nobody was told.
        self._lost_at = 0.0
        if not event.contains(engine.sync_engine, "connect", _note):
            # Before the listeners of SQLAlchemy's own, which ask the server several things.
            event.listen(engine.sync_engine, "connect", _note, insert=True)
            event.listen(engine.sync_engine, "close", _end)
        self._checkouts = Checkouts(engine.sync_engine, self.probe)

    @asynccontextmanager
    async def acquire(self) -> AsyncIterator[asyncpg.Connection]:
        """Lend the driver connection behind a checked-out SQLAlchemy connection; see :class:`Connections`."""
        connection, driver = await self._check_out()
        failure: BaseException | None = None
        try:
            if driver not in self._known:
                know_arrays(driver)
                self._known.add(driver)
            yield driver
        except BaseException as error:
            if breaks(error):
                failure = error
                if driver.is_closed():
                    self._lost_at = time.monotonic()
            raise
        finally:
            # To the end, and one after the other, or the application's pool has a dead connection in it.
            with CancelScope(shield=True):
                if failure is not None:
                    await _drop(connection, driver)
                else:
                    await _give_back(connection)

    async def _check_out(self) -> tuple[AsyncConnection, asyncpg.Connection]:
        """Check out a connection that is not lost, as far as anybody knows, and return the driver's own one with it."""
        while True:
            with self._checkouts.watching(object()):
                connection = await self._connect(self._engine)
            raw = await connection.get_raw_connection()
            driver: Any = raw.driver_connection
            if not driver.is_closed() and raw.info.get(_OPENED_AT, 0.0) >= self._lost_at:
                return connection, driver
            with CancelScope(shield=True):
                await _drop(connection, driver)

    async def _connect(self, engine: AsyncEngine) -> AsyncConnection:
        """Check a connection out; if that fails or is cancelled, nothing that it has opened stays open."""
        opened: list[asyncpg.Connection] = []
        token = _opened.set(opened)
        try:
            return await engine.connect()
        except BaseException:
            for each in opened:
                each.terminate()
            raise
        finally:
            _opened.reset(token)

    @asynccontextmanager
    async def probe(self) -> AsyncIterator[asyncpg.Connection]:
        """Lend a connection beside the pool's, which may all be lost, opened in the way that the pool opens its own."""
        engine = self._engine.sync_engine
        beside = AsyncEngine(Engine(engine.pool.recreate(), engine.dialect, engine.url))
        connection = await self._connect(beside)
        driver: Any = (await connection.get_raw_connection()).driver_connection
        try:
            yield driver
        except BaseException:
            driver.terminate()
            raise
        finally:
            with CancelScope(shield=True):
                await say_goodbye(driver)
                await _drop(connection, driver)

    async def warm(self, count: int, steps: Sequence[Step]) -> None:
        """Do nothing: how many connections are open is the application's choice."""

    def prepare_no_more(self) -> None:
        """Do nothing: the application has said in its engine's arguments how statements are run."""

    async def close(self) -> None:
        """Ask after connections no more. The engine belongs to the application."""
        self._checkouts.close()


async def _drop(connection: AsyncConnection, driver: asyncpg.Connection) -> None:
    """Give a connection back that is of no use any more, without asking a server that may not be there."""
    driver.terminate()  # else SQLAlchemy waits for an answer for two seconds
    with suppress(Exception):
        await connection.invalidate()
    await _give_back(connection)


async def _give_back(connection: AsyncConnection) -> None:
    with suppress(OSError, asyncpg.InterfaceError, sqlalchemy.exc.SQLAlchemyError):
        await connection.close()
