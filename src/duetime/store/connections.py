"""Connections to PostgreSQL for single statements in autocommit, and what to think of their failures.

Hot statements run on the driver's own connection: one statement, one round trip, no BEGIN and COMMIT around it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from typing import Any, Protocol

import asyncpg
import sqlalchemy.exc
from sqlalchemy.ext.asyncio import AsyncEngine

from ..errors import InvalidSettings
from ..settings import DatabaseUrl


class Connections(Protocol):
    """Where the store gets its connections from."""

    def acquire(self, timeout: float) -> AbstractAsyncContextManager[asyncpg.Connection]:
        """Lend a connection in autocommit; it is discarded if the block fails with a transient error.

        :param timeout: seconds to wait for a connection, connecting included
        """

    async def close(self) -> None:
        """Close what belongs to the store."""


def is_transient(error: BaseException) -> bool:
    """Return whether the same statement may succeed when it is tried again.

    That is: the connection or the server went away or is not there yet, resources ran out, the server is read-only
    for now, or the transaction lost against another one.
    """
    if isinstance(error, sqlalchemy.exc.DBAPIError):
        cause = error.orig.__cause__ if error.orig else None
        return error.connection_invalidated or cause is None or is_transient(cause)
    if isinstance(error, asyncpg.ClientConfigurationError | asyncpg.UnsupportedClientFeatureError):
        return False
    if isinstance(error, asyncpg.InterfaceError):
        # The driver's word for "closed" and "busy"; its words for wrong arguments are not transient.
        return "the server expects" not in str(error)
    return isinstance(
        error,
        OSError
        | TimeoutError
        | sqlalchemy.exc.TimeoutError
        | asyncpg.InternalClientError
        | asyncpg.PostgresConnectionError
        | asyncpg.InsufficientResourcesError
        | asyncpg.OperatorInterventionError
        | asyncpg.TransactionRollbackError
        | asyncpg.ReadOnlySQLTransactionError
        | asyncpg.LockNotAvailableError
        | asyncpg.InvalidCachedStatementError
        | asyncpg.InvalidAuthorizationSpecificationError
        | asyncpg.InvalidCatalogNameError,
    )


class DirectConnections:
    """A small pool of our own, apart from the application's: its exhaustion is not ours.

    :param url: where to connect, or an async function that says it (the embedded PostgreSQL knows once it runs)
    :param size: connections at most; they are opened when needed and closed after five idle minutes
    """

    def __init__(self, url: DatabaseUrl | Callable[[], Awaitable[DatabaseUrl]], *, size: int = 4) -> None:
        self._url = url
        self._size = size
        self._pool: asyncpg.Pool | None = None
        self._opening = asyncio.Lock()

    async def _open(self) -> asyncpg.Pool:
        async with self._opening:
            if self._pool is None:
                url = self._url if isinstance(self._url, DatabaseUrl) else await self._url()
                pool = asyncpg.create_pool(**_arguments(url), min_size=0, max_size=self._size, reset=_nothing_to_reset)
                self._pool = await pool
        return self._pool

    @asynccontextmanager
    async def acquire(self, timeout: float) -> AsyncIterator[asyncpg.Connection]:
        """Lend a connection; see :class:`Connections`."""
        async with asyncio.timeout(timeout):
            pool = self._pool or await self._open()
            connection = await pool.acquire()
        try:
            yield connection
        except BaseException as error:
            # A connection that failed is not asked to say goodbye: it may be a black hole.
            if is_transient(error) or isinstance(error, asyncio.CancelledError):
                with suppress(asyncpg.InterfaceError):
                    connection.terminate()
            raise
        finally:
            with suppress(asyncpg.InterfaceError):
                await asyncio.shield(pool.release(connection))

    async def close(self) -> None:
        """Close the pool at once; statements under way fail."""
        if self._pool is not None:
            self._pool.terminate()
            self._pool = None


class EngineConnections:
    """Connections of an application's own SQLAlchemy engine, with its URL, arguments and event hooks."""

    def __init__(self, engine: AsyncEngine) -> None:
        if engine.dialect.name != "postgresql" or engine.dialect.driver != "asyncpg":
            raise InvalidSettings(
                f"expected an engine for PostgreSQL over asyncpg (postgresql+asyncpg://…), got "
                f"{engine.dialect.name}+{engine.dialect.driver}."
            )
        self._engine = engine

    @asynccontextmanager
    async def acquire(self, timeout: float) -> AsyncIterator[asyncpg.Connection]:
        """Lend the driver connection behind a checked-out SQLAlchemy connection; see :class:`Connections`."""
        async with asyncio.timeout(timeout):
            connection = await self._engine.connect()
        try:
            raw = await connection.get_raw_connection()
            yield raw.driver_connection
        except BaseException as error:
            if is_transient(error) or isinstance(error, asyncio.CancelledError):
                with suppress(Exception):
                    await asyncio.shield(connection.invalidate(error))
            raise
        finally:
            with suppress(OSError, asyncpg.InterfaceError, sqlalchemy.exc.SQLAlchemyError):
                await asyncio.shield(connection.close())

    async def close(self) -> None:
        """Do nothing: the engine belongs to the application."""


async def connect(url: DatabaseUrl) -> asyncpg.Connection:
    """Open a connection to the database's direct endpoint, outside any pool."""
    return await asyncpg.connect(**_arguments(url))


def _arguments(url: DatabaseUrl) -> dict[str, Any]:
    arguments = url.direct.asyncpg_arguments()
    arguments.setdefault("timeout", 10)
    return arguments


async def _nothing_to_reset(_connection: asyncpg.Connection) -> None:
    """Spare the reset query of each check-in: our statements leave no session state behind."""
