"""Connections to PostgreSQL for single statements in autocommit, and what to think of their failures.

Hot statements run on the driver's own connection: one statement, one round trip, no BEGIN and COMMIT around it.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from typing import Protocol
from weakref import WeakSet

import asyncpg
import sqlalchemy.exc

from ..settings import DatabaseUrl
from .driver import connect_for_the_store, refuses_settings

STAGGER = 1.0
"""Seconds after which another attempt to connect is begun beside one that hangs: the network may be back, and the
attempt that was lost in it not."""

_MOST_ATTEMPTS = 10

_PATIENCE = 0.01
"""Seconds that anybody waits at least for a connection that is lent before another one is opened."""

_GOODBYE = 0.15
"""Seconds that closing a connection may take."""


Step = Callable[[asyncpg.Connection], Awaitable[object]]
"""Something that is done on a connection."""


class Connections(Protocol):
    """Where the store gets its connections from."""

    def acquire(self) -> AbstractAsyncContextManager[asyncpg.Connection]:
        """Lend a connection in autocommit; one whose block fails with a transient error, or is cancelled, is dropped.

        The caller limits the time, connecting included.
        """

    def probe(self) -> AbstractAsyncContextManager[asyncpg.Connection]:
        """Lend a connection that has just been opened, or at least not been in use, to ask how the database does."""

    async def warm(self, count: int, steps: Sequence[Step]) -> None:
        """Have ``count`` connections open on which the steps were taken, so that work finds them ready."""

    def prepare_no_more(self) -> None:
        """Use no prepared statements from now on, because a pooler is between, unless somebody has said how many."""

    async def close(self) -> None:
        """Close what belongs to the store."""


def is_transient(error: BaseException) -> bool:
    """Return whether the same statement may succeed when it is tried again.

    That is: the connection or the server went away or is not there yet, resources ran out, the server is read-only
    for now, or the transaction lost against another one.
    """
    if isinstance(error, sqlalchemy.exc.DBAPIError):
        cause = of_the_driver(error)
        return error.connection_invalidated or cause is error or is_transient(cause)
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
        | asyncpg.InvalidCatalogNameError
        # A disk or a storage layer that fails (Neon's, while it moves); a standby that is promoted; a pooler that has
        # given the session to somebody else.
        | asyncpg.PostgresSystemError
        | asyncpg.InternalServerError
        | asyncpg.ObjectNotInPrerequisiteStateError
        | asyncpg.InvalidTransactionStateError
        | asyncpg.InvalidSQLStatementNameError
        | asyncpg.DuplicatePreparedStatementError,
    )


def of_the_driver(error: BaseException) -> BaseException:
    """Return what the driver has raised, of which SQLAlchemy may have made an error of its own."""
    cause = error.orig.__cause__ if isinstance(error, sqlalchemy.exc.DBAPIError) and error.orig else None
    return cause or error


def is_refusal(error: BaseException) -> bool:
    """Return whether the server has understood and does not let us: somebody has to grant it first."""
    return isinstance(error, asyncpg.InsufficientPrivilegeError)


# After these the connection is as good as before.
_PASSING = (
    asyncpg.TransactionRollbackError,
    asyncpg.LockNotAvailableError,
    asyncpg.QueryCanceledError,
    asyncpg.InvalidCachedStatementError,
    asyncpg.DiskFullError,
)


def breaks(error: BaseException) -> bool:
    """Return whether a connection that a statement has failed on with this error is of no use any more."""
    if isinstance(error, asyncio.CancelledError):
        return True  # the answer of the statement is still to come
    return is_transient(error) and not isinstance(error, _PASSING)


class DirectConnections:
    """Connections to one database, opened when they are needed; see :class:`~.connections.Connections`.

    Less than a pool, because less is needed, and each statement pays for it: no reset query, no wrapper. A quiet store
    uses one connection, the one that listens for notifications too: so each look at the database, if only the poll,
    also tells whether the way to hear of others is still open. Who finds all connections lent waits for one, and for a
    new one that is opened when that takes longer than opening would.

    :param url: where to connect, or an async function that says it (the embedded PostgreSQL knows once it runs)
    :param size: connections at most
    """

    def __init__(self, url: DatabaseUrl | Callable[[], Awaitable[DatabaseUrl]], *, size: int = 4) -> None:
        self._url = url
        self.size = size
        self._free: list[asyncpg.Connection] = []
        self._lent: set[asyncpg.Connection] = set()
        self._places = asyncio.Semaphore(size)
        self._home: asyncpg.Connection | None = None
        # Who waits for a connection, and since when.
        self._waiting: deque[tuple[asyncio.Future[asyncpg.Connection], float]] = deque()
        self._changed = asyncio.Event()
        self._supplying: asyncio.Task[None] | None = None
        self._attempts: set[asyncio.Task[asyncpg.Connection]] = set()
        self._connect_time = 0.0
        # Whether the server at the address refuses settings: it is a pooler.
        self._is_plain = False
        # When there was a connection again after there had been none.
        self._opened_at = 0.0
        self._warm: WeakSet[asyncpg.Connection] = WeakSet()
        self._prepares = True
        self._may_prepare_no_more = True

    @asynccontextmanager
    async def acquire(self, *, first: bool = False) -> AsyncIterator[asyncpg.Connection]:
        """Lend a connection; see :class:`Connections`.

        :param first: before all others that wait
        """
        async with self._places:
            connection = self._take_free() or await self._wait(first=first)
            self._lent.add(connection)
            try:
                yield connection
            except BaseException as error:
                # A connection that failed is not asked to say goodbye: it may be a black hole.
                if breaks(error):
                    connection.terminate()
                raise
            finally:
                self._take_back(connection)

    @asynccontextmanager
    async def probe(self) -> AsyncIterator[asyncpg.Connection]:
        """Lend a connection that was opened just now, beside all others, and keep it if there is a place for it."""
        connection = await self._connect(await self._address())
        try:
            yield connection
        except BaseException:
            connection.terminate()
            raise
        self._adopt(connection)

    async def warm(self, count: int, steps: Sequence[Step]) -> None:
        """Have ``count`` connections open on which the steps were taken, so that work finds them ready."""
        lacking = min(count, self.size) - sum(not each.is_closed() for each in self._warm)
        if lacking > 0:
            # The one that listens is in everybody's use: it is lent again after each step.
            home = self._home if self._home in self._free and self._home not in self._warm else None
            new = [self._warm_new(steps) for _ in range(lacking - (home is not None))]
            await asyncio.gather(*new, *(() if home is None else (self._warm_between(home, steps),)))

    async def _warm_new(self, steps: Sequence[Step]) -> None:
        async with self.probe() as connection:
            for step in steps:
                await step(connection)
            self._warm.add(connection)

    async def _warm_between(self, connection: asyncpg.Connection, steps: Sequence[Step]) -> None:
        for step in steps:
            if connection not in self._free:
                continue  # it is at work, which makes it ready too
            self._free.remove(connection)
            self._lent.add(connection)
            try:
                await step(connection)
            except BaseException as error:
                if breaks(error):
                    connection.terminate()
                raise
            finally:
                self._take_back(connection)
        self._warm.add(connection)

    def _take_back(self, connection: asyncpg.Connection) -> None:
        if connection in self._lent:  # else close() has come in between
            self._lent.discard(connection)
            self._give(connection)

    async def listen(self, channel: str, receive: Callable[..., None]) -> asyncpg.Connection:
        """Listen for notifications on one of the connections, which is lent before the others from then on."""
        async with self.acquire(first=True) as connection:
            await connection.add_listener(channel, receive)
            self._home = connection
            return connection

    def _take_free(self) -> asyncpg.Connection | None:
        free = self._free = [each for each in self._free if not each.is_closed()]
        if not free:
            return None
        if self._home in free:
            free.remove(self._home)
            return self._home
        return free.pop()

    def _give(self, connection: asyncpg.Connection) -> None:
        """Hand a connection to the one who has waited longest, or keep it for the next one."""
        if connection.is_closed():
            if self._waiting:
                self._supply()
            return
        self._changed.set()
        while self._waiting:
            waiter, _ = self._waiting.popleft()
            if not waiter.done():
                self._lent.add(connection)
                waiter.set_result(connection)
                return
        self._free.append(connection)

    # -- opening ------------------------------------------------------------------------------------------------------

    async def _wait(self, *, first: bool) -> asyncpg.Connection:
        loop = asyncio.get_running_loop()
        waiter: asyncio.Future[asyncpg.Connection] = loop.create_future()
        entry = (waiter, loop.time())
        if first:
            self._waiting.appendleft(entry)
        else:
            self._waiting.append(entry)
        self._supply()
        try:
            return await waiter
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled() and waiter.exception() is None:
                # It came at the moment when nobody wanted it any more.
                self._lent.discard(waiter.result())
                self._give(waiter.result())
            raise
        finally:
            with suppress(ValueError):
                self._waiting.remove(entry)

    def _supply(self) -> None:
        self._changed.set()
        if self._supplying is None:
            self._supplying = asyncio.get_running_loop().create_task(self._open_for_all(), name="duetime connecting")
            self._supplying.add_done_callback(self._supplied)

    def _supplied(self, task: asyncio.Task[None]) -> None:
        self._supplying = None
        if task.cancelled():
            return
        if (error := task.exception()) is not None:
            for _ in range(len(self._waiting)):
                self._fail(error)
        elif self._waiting:
            self._supply()

    async def _open_for_all(self) -> None:
        """Open connections for as long as somebody waits for one."""
        url = await self._address()
        now = asyncio.get_running_loop().time
        while self._waiting:
            if not self._attempts and not self._lent:
                self._attempt(url)
            wait = STAGGER
            if len(self._attempts) < len(self._waiting) and self._connect_time:
                # One that is lent, or that is being opened, may come free before another could be opened.
                _, since = self._waiting[len(self._attempts)]
                patience = max(_PATIENCE, 1.5 * self._connect_time)
                wait = max(0.0, max(since, self._opened_at) + patience - now())
            if not await self._change(wait) and len(self._attempts) < _MOST_ATTEMPTS:
                self._attempt(url)

    async def _change(self, seconds: float) -> bool:
        """Wait until somebody comes or is served, but no longer than that, and return whether it came to pass."""
        self._changed.clear()
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                return await self._changed.wait()
        return False

    def _attempt(self, url: DatabaseUrl) -> None:
        attempt = asyncio.get_running_loop().create_task(self._connect(url))
        self._attempts.add(attempt)
        attempt.add_done_callback(self._attempted)

    def _attempted(self, attempt: asyncio.Task[asyncpg.Connection]) -> None:
        self._attempts.discard(attempt)
        self._changed.set()
        if attempt.cancelled():
            return
        if (error := attempt.exception()) is not None:
            self._fail(error)
        else:
            if not self._lent and not self._free:
                self._opened_at = asyncio.get_running_loop().time()
            self._adopt(attempt.result())

    def _adopt(self, connection: asyncpg.Connection) -> None:
        """Take a new connection in, if there is a place: after a time of hanging, more may come than were wanted."""
        if self._waiting or len(self._lent) + len(self._free) < self.size:
            self._give(connection)
        else:
            connection.terminate()

    def _fail(self, error: BaseException) -> None:
        """Tell the one who has waited longest that it cannot be done; he tries again if he has the time."""
        while self._waiting:
            waiter, _ = self._waiting.popleft()
            if not waiter.done():
                waiter.set_exception(error)
                return

    def prepare_no_more(self) -> None:
        """Use no prepared statements from now on; see :meth:`Connections.prepare_no_more`."""
        if self._may_prepare_no_more:
            self._prepares = False
            for connection in (*self._free, *self._lent):
                connection.prepare_no_more()

    async def _address(self) -> DatabaseUrl:
        return self._url if isinstance(self._url, DatabaseUrl) else await self._url()

    async def _connect(self, url: DatabaseUrl) -> asyncpg.Connection:
        began = time.monotonic()
        plans = not self._is_plain
        try:
            connection = await connect_for_the_store(url, plans=plans)
        except asyncpg.PostgresError as exc:
            if not (plans and refuses_settings(exc)):
                raise
            self._is_plain = True
            connection = await connect_for_the_store(url, plans=False)
        self._connect_time = time.monotonic() - began
        self._may_prepare_no_more = url.statement_cache_size is None
        if not self._prepares:
            connection.prepare_no_more()
        return connection

    # -- the end ------------------------------------------------------------------------------------------------------

    async def close(self) -> None:
        """Close all connections; statements under way fail."""
        opening = [task for task in (*self._attempts, self._supplying) if task is not None]
        for task in opening:
            task.cancel()
        if opening:
            await asyncio.wait(opening)
        connections = [*self._free, *self._lent]
        self._free.clear()
        self._lent.clear()
        self._home = None
        await asyncio.gather(*map(say_goodbye, connections))


async def say_goodbye(connection: asyncpg.Connection) -> None:
    """Close a connection. The server may not be there any more: it has a moment to answer."""
    with suppress(OSError, TimeoutError, asyncpg.InterfaceError, asyncpg.PostgresError):
        await connection.close(timeout=_GOODBYE)
