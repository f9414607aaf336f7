"""Connections of an application's own SQLAlchemy engine."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from contextvars import ContextVar
from typing import Any
from weakref import WeakSet

import asyncpg
import sqlalchemy.exc
from anyio import CancelScope
from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from ..errors import InvalidSettings
from .connections import Step, breaks
from .driver import know_arrays

# The driver connections that the pool has opened for the call at hand. SQLAlchemy, 2.0.44 for one, forgets one whose
# first questions to the server are cancelled, as when a call's time is over: it stays open until it is collected.
_opened: ContextVar[list[asyncpg.Connection] | None] = ContextVar("_opened", default=None)


def _note(connection: Any, _record: object) -> None:
    if (opened := _opened.get()) is not None:
        opened.append(connection.driver_connection)


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
        if not event.contains(engine.sync_engine, "connect", _note):
            # Before the listeners of SQLAlchemy's own, which ask the server several things.
            event.listen(engine.sync_engine, "connect", _note, insert=True)

    @asynccontextmanager
    async def acquire(self) -> AsyncIterator[asyncpg.Connection]:
        """Lend the driver connection behind a checked-out SQLAlchemy connection; see :class:`Connections`."""
        connection = await self._connect()
        failure: BaseException | None = None
        try:
            raw = await connection.get_raw_connection()
            driver: Any = raw.driver_connection
            if driver not in self._known:
                know_arrays(driver)
                self._known.add(driver)
            yield driver
        except BaseException as error:
            if breaks(error):
                failure = error
            raise
        finally:
            # To the end, and one after the other, or the application's pool has a dead connection in it.
            with CancelScope(shield=True):
                if failure is not None:
                    with suppress(Exception):
                        await connection.invalidate(failure)
                with suppress(OSError, asyncpg.InterfaceError, sqlalchemy.exc.SQLAlchemyError):
                    await connection.close()

    async def _connect(self) -> AsyncConnection:
        """Check a connection out; if that fails or is cancelled, nothing that it has opened stays open."""
        opened: list[asyncpg.Connection] = []
        token = _opened.set(opened)
        try:
            return await self._engine.connect()
        except BaseException:
            for each in opened:
                each.terminate()
            raise
        finally:
            _opened.reset(token)

    def probe(self) -> AbstractAsyncContextManager[asyncpg.Connection]:
        """Lend one of the pool's: only the application knows how to open another."""
        return self.acquire()

    async def warm(self, count: int, steps: Sequence[Step]) -> None:
        """Do nothing: how many connections are open is the application's choice."""

    def prepare_no_more(self) -> None:
        """Do nothing: the application has said in its engine's arguments how statements are run."""

    async def close(self) -> None:
        """Do nothing: the engine belongs to the application."""
