"""One database: runs the named statements, again after transient failures, and remembers how it does."""

from __future__ import annotations

import asyncio
import contextvars
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from datetime import timedelta
from logging import Logger, getLogger
from typing import Any, TypeVar, cast

import asyncpg

from ..errors import StoreUnavailable
from .clock import DatabaseClock
from .connections import Connections, is_refusal, is_transient, of_the_driver
from .liveness import Liveness
from .opening import Opening, look
from .schema import migrate
from .statements import Statements
from .transactions import Transaction, current_transaction
from .unprepared import ask

T = TypeVar("T")
Row = Mapping[str, Any]
Fetch = Callable[..., Awaitable[Sequence[Row]]]

STATEMENT_TIMEOUT = 30.0
"""Seconds after which a statement that nobody's deadline ends is given up and tried on another connection."""

_FIRST_WAIT, _LONGEST_WAIT = 0.02, 1.0

_NO_SCHEMA = (asyncpg.UndefinedTableError, asyncpg.UndefinedFunctionError, asyncpg.InvalidSchemaNameError)


class Database:
    """Runs statements of one schema.

    :param connections: where connections come from
    :param schema: name of the schema; made, or brought to this release's version, before the first statement
    :param call_timeout: how long a call of user code may wait for the database
    :param from_scratch: erase what is stored before the first statement
    :ivar on_open: called with what was found when the schema was looked for
    :ivar outage: why the database last failed to answer; None while it answers
    :ivar clock: the database's clock
    """

    def __init__(
        self, connections: Connections, schema: str, *, call_timeout: timedelta, from_scratch: bool = False
    ) -> None:
        self.connections = connections
        self.schema = schema
        self.statements = Statements(schema)
        self.clock = DatabaseClock()
        self.outage: BaseException | None = None
        self.logger: Logger = getLogger(__name__)
        self._call_timeout = call_timeout.total_seconds()
        self._from_scratch = from_scratch
        self.on_open: Callable[[Opening | None], None] = lambda _: None
        self._migrated = False
        self._opened = 0  # how often the schema has been found, or made
        self._opening: asyncio.Task[None] | None = None
        self._liveness = Liveness(connections)
        self._closes_at: float | None = None
        self._under_way: set[asyncio.Timeout] = set()

    @property
    def is_open(self) -> bool:
        """Whether the schema has been found, or made."""
        return self._migrated

    def tell(self, logger: Logger) -> None:
        """Log to this logger from now on."""
        self.logger = self._liveness.logger = logger

    def close(self) -> None:
        """Leave nothing behind on the event loop."""
        self._liveness.close()
        if self._opening is not None:
            self._opening.cancel()

    def close_at(self, deadline: float | None) -> None:
        """Let no call, under way or to come, last longer than that, whatever its own deadline is.

        :param deadline: loop time; None: calls last as long as they want again
        """
        self._closes_at = deadline
        if deadline is None:
            return
        for timeout in self._under_way:
            when = timeout.when()
            if not timeout.expired() and (when is None or when > deadline):
                timeout.reschedule(deadline)

    def deadline(self) -> float:
        """Return when a user's call that begins now has to end, in loop time."""
        return asyncio.get_running_loop().time() + self._call_timeout

    def unavailable(self, what: str = "") -> StoreUnavailable:
        """Return the error for a call that has reached its deadline.

        :param what: a further sentence
        """
        cause = self.outage
        got = "no answer" if cause is None else f"{type(cause).__name__}: {cause}".rstrip(".")
        return StoreUnavailable(
            f"expected the database to answer within {self._call_timeout:g} s, got {got}. "
            f"{what or 'Check DATABASE_URL and the server, then try again.'}"
        )

    def refused(self, exc: BaseException) -> StoreUnavailable:
        """Return the error for a call that the server does not let us make."""
        return StoreUnavailable(
            f"expected a role that may use the schema {self.schema!r}, got {type(exc).__name__}: {exc}. Grant it "
            f"to the role of DATABASE_URL, then try again."
        )

    async def attempt(self, work: Callable[[asyncpg.Connection], Awaitable[T]], *, deadline: float | None) -> T:
        """Run ``work`` on a connection, again after transient failures, until it succeeds.

        :param deadline: loop time at which to give up; None: never
        :raises StoreUnavailable: at the deadline
        """
        return cast("T", await self._attempt(work, deadline=deadline))

    async def _attempt(
        self, work: Callable[[asyncpg.Connection], Awaitable[T]] | None, *, deadline: float | None
    ) -> T | None:
        """Do what :meth:`attempt` says; without work, see that the schema is there.

        :param deadline: loop time at which to give up; None: never
        :raises StoreUnavailable: at the deadline
        """
        loop = asyncio.get_running_loop()
        wait = 0.0
        while True:
            if self._closes_at is not None:
                deadline = self._closes_at if deadline is None else min(deadline, self._closes_at)
            has_begun, opened = False, 0
            remaining = STATEMENT_TIMEOUT if deadline is None else min(STATEMENT_TIMEOUT, deadline - loop.time())
            try:
                if remaining <= 0:
                    raise TimeoutError("no answer in time")
                async with asyncio.timeout(remaining) as timeout:
                    self._under_way.add(timeout)
                    try:
                        if not self._migrated:
                            await self._open_with_others()
                        outcome = None
                        has_begun, opened = True, self._opened
                        if work is not None:
                            async with self.connections.acquire() as connection:
                                with self._liveness.watching(connection):
                                    outcome = await work(connection)
                    finally:
                        self._under_way.discard(timeout)
            except _NO_SCHEMA as exc:
                if not has_begun:
                    raise
                # Somebody has dropped the schema: it is made anew, once for all that find it gone.
                self._migrated = self._migrated and self._opened != opened
                self._lost(exc)
            except Exception as exc:
                if is_refusal(exc):
                    self._lost(exc)
                    if deadline is not None:
                        raise self.refused(exc) from exc
                elif is_transient(exc):
                    self._lost(exc)
                else:
                    raise
            else:
                if self.outage is not None:
                    self.outage = None
                    self.logger.info("The database answers again")
                return outcome
            wait = min(_LONGEST_WAIT, wait * 2 or _FIRST_WAIT)
            if deadline is not None and loop.time() + wait >= deadline:
                raise self.unavailable() from self.outage
            await self._rest(wait)

    async def _rest(self, seconds: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds) as timeout:
                self._under_way.add(timeout)
                try:
                    await asyncio.Event().wait()
                finally:
                    self._under_way.discard(timeout)

    def _lost(self, exc: BaseException) -> None:
        if self.outage is None:
            self.logger.warning("The database does not answer (%s: %s); trying again", type(exc).__name__, exc)
        self.outage = exc

    async def _open_with_others(self) -> None:
        """Open the schema, once for all who wait for it; they go on together, and so share their first statements."""
        if self._opening is None or self._opening.done():
            # It belongs to no caller: it must not inherit one's context or deadline.
            self._opening = asyncio.get_running_loop().create_task(
                self._open(), name="duetime opening", context=contextvars.Context()
            )
            self._opening.add_done_callback(lambda task: None if task.cancelled() else task.exception())
        try:
            await asyncio.shield(self._opening)
        except asyncio.CancelledError:
            if not self._opening.cancelled():
                raise
            raise StoreUnavailable("expected an open store, got one that was closed meanwhile.") from None

    async def _open(self) -> None:
        async with asyncio.timeout(STATEMENT_TIMEOUT), self.connections.acquire() as connection:
            with self._liveness.watching(connection):
                opening = None if self._from_scratch else await look(connection, self.schema, self.clock)
                if opening is None:
                    await migrate(connection, self.schema, from_scratch=self._from_scratch)
                    self._from_scratch = False  # once: a second start must not erase what the first one stored
                    opening = await look(connection, self.schema, self.clock)
        self._migrated = True
        self._opened += 1
        if opening is not None and opening.is_pooled:
            self.connections.prepare_no_more()
        self.on_open(opening)

    async def open(self, *, deadline: float | None) -> None:
        """Connect and make sure that the schema is there.

        :param deadline: loop time at which to give up; None: never
        """
        if not self._migrated:
            await self._attempt(None, deadline=deadline)

    async def query(self, sql: str, *arguments: Any, deadline: float | None) -> list[Row]:
        """Run a statement and return its rows.

        A row with the columns ``began_at`` and ``told_at`` carries the database's time, from which the clock learns.

        :param deadline: loop time at which to give up; None: never
        """

        async def work(connection: asyncpg.Connection) -> list[Row]:
            asked_at = time.monotonic()
            rows: list[Row] = await connection.fetch(sql, *arguments)
            self.learn(rows, asked_at)
            return rows

        return await self.attempt(work, deadline=deadline)

    def learn(self, rows: Sequence[Row], asked_at: float) -> None:
        """Let the clock learn from an answer that carries the database's time; see :meth:`query`."""
        if rows and "told_at" in rows[0].keys():  # noqa: SIM118 - `in` looks at a record's values
            self.clock.learn(rows[0]["told_at"], asked_at, time.monotonic(), began=rows[0]["began_at"])

    async def fetch(self, name: str, *arguments: Any, deadline: float | None) -> list[Row]:
        """Run a named statement and return its rows; see :meth:`query`."""
        return await self.query(self.statements[name], *arguments, deadline=deadline)

    async def fetch_many(self, name: str, size: int, *arguments: Any, deadline: float | None) -> list[Row]:
        """Run a named statement for so many items and return its rows; see :meth:`query`."""
        return await self.query(self.statements.for_batch(name, size), *arguments, deadline=deadline)

    async def ask(self, name: str, values: Mapping[str, Any], *, deadline: float | None) -> Any:
        """Run a named statement of those that are not prepared, and return its JSON; see :func:`.unprepared.ask`.

        :param deadline: loop time at which to give up; None: never
        """

        async def work(connection: asyncpg.Connection) -> Any:
            return await ask(connection, self.statements[name], values)

        return await self.attempt(work, deadline=deadline)

    async def fetch_for_user(self, name: str, *arguments: Any) -> Sequence[Row]:
        """Run a named statement in the caller's transaction if there is one, else on its own, within the deadline."""
        transaction = current_transaction.get()
        if transaction is None:
            return await self.fetch(name, *arguments, deadline=self.deadline())
        await self.prepare()
        return await self.fetch_in(transaction, self.statements[name], *arguments)

    async def fetch_in(self, transaction: Transaction, statement: str, *arguments: Any) -> Sequence[Row]:
        """Run a statement in somebody else's transaction, within the deadline, and never again: the transaction ends.

        That it has lost against another transaction comes out as it is: the caller makes the whole of it again.

        :raises StoreUnavailable: at the deadline, or if the connection is lost or the server refuses for now
        """
        try:
            async with asyncio.timeout(self._call_timeout):
                return await transaction.fetch(statement, *arguments)
        except Exception as exc:
            cause = of_the_driver(exc)
            if not is_transient(exc) or isinstance(cause, asyncpg.TransactionRollbackError):
                raise
            got = "no answer" if isinstance(cause, TimeoutError) else f"{type(cause).__name__}: {cause}".rstrip(".")
            raise StoreUnavailable(
                f"expected the database to answer within {self._call_timeout:g} s in the caller's transaction, got "
                f"{got}. Nothing of the transaction is stored: roll it back, then make the whole of it again."
            ) from exc

    async def prepare(self) -> None:
        """Make sure that the schema is there before a statement runs in somebody else's transaction."""
        await self.open(deadline=self.deadline())
