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
from anyio import CancelScope
from sqlalchemy.ext.asyncio import AsyncEngine

from ..errors import InvalidSettings
from ..settings import DatabaseUrl

_GOODBYE = 0.15
"""Seconds that closing a connection may take."""


class Connections(Protocol):
    """Where the store gets its connections from."""

    def acquire(self) -> AbstractAsyncContextManager[asyncpg.Connection]:
        """Lend a connection in autocommit; one whose block fails with a transient error, or is cancelled, is dropped.

        The caller limits the time, connecting included.
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
    """A few connections of our own, apart from the application's pool: its exhaustion is not ours.

    Less than a pool, because less is needed, and each statement pays for it: no reset query, no wrapper. The
    connection used last is lent first, so that a quiet store uses one, whose statements are prepared.

    :param url: where to connect, or an async function that says it (the embedded PostgreSQL knows once it runs)
    :param size: connections at most; they are opened when needed
    """

    def __init__(self, url: DatabaseUrl | Callable[[], Awaitable[DatabaseUrl]], *, size: int = 4) -> None:
        self._url = url
        self._free: list[asyncpg.Connection] = []
        self._lent: set[asyncpg.Connection] = set()
        self._places = asyncio.Semaphore(size)

    @asynccontextmanager
    async def acquire(self) -> AsyncIterator[asyncpg.Connection]:
        """Lend a connection; see :class:`Connections`."""
        async with self._places:
            connection = self._take_free() or await self._connect()
            self._lent.add(connection)
            try:
                yield connection
            except BaseException as error:
                # A connection that failed is not asked to say goodbye: it may be a black hole.
                if is_transient(error) or isinstance(error, asyncio.CancelledError):
                    connection.terminate()
                raise
            finally:
                if connection in self._lent:  # else close() has come in between
                    self._lent.discard(connection)
                    if not connection.is_closed():
                        self._free.append(connection)

    def _take_free(self) -> asyncpg.Connection | None:
        while self._free:
            connection = self._free.pop()
            if not connection.is_closed():
                return connection
        return None

    async def _connect(self) -> asyncpg.Connection:
        return await connect(self._url if isinstance(self._url, DatabaseUrl) else await self._url())

    async def close(self) -> None:
        """Close all connections; statements under way fail."""
        connections = [*self._free, *self._lent]
        self._free.clear()
        self._lent.clear()
        await asyncio.gather(*map(_close, connections))


async def _close(connection: asyncpg.Connection) -> None:
    """Say goodbye to the server, which may not be there any more: it has a moment to answer."""
    with suppress(OSError, TimeoutError, asyncpg.InterfaceError, asyncpg.PostgresError):
        await connection.close(timeout=_GOODBYE)


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
    async def acquire(self) -> AsyncIterator[asyncpg.Connection]:
        """Lend the driver connection behind a checked-out SQLAlchemy connection; see :class:`Connections`."""
        connection = await self._engine.connect()
        failure: BaseException | None = None
        try:
            raw = await connection.get_raw_connection()
            yield raw.driver_connection
        except BaseException as error:
            if is_transient(error) or isinstance(error, asyncio.CancelledError):
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

    async def close(self) -> None:
        """Do nothing: the engine belongs to the application."""


async def connect(url: DatabaseUrl) -> asyncpg.Connection:
    """Open a connection to the database's direct endpoint, outside any pool."""
    return await asyncpg.connect(**_arguments(url))


def _arguments(url: DatabaseUrl) -> dict[str, Any]:
    arguments = url.direct.asyncpg_arguments()
    arguments.setdefault("timeout", 10)
    return arguments
