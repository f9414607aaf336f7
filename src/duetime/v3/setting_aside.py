"""v3's own table, as far as it is changed: rows are parked, deleted and put back, never while v3 may have them.

What v3 does decides what is safe (``schedulers/base.py`` of 3.6 to 3.11, ``_process_jobs``). It takes the time, reads
the rows that are due, gives each to its executor, and only then moves the row on or deletes it. A row that is gone by
then raises ``JobLookupError`` out of the loop, and v3 fires nothing any more. So a row that is due belongs to v3 until
v3 has moved it on; one that is not due is in nobody's hands.

A *parked* row has no ``next_run_time`` in its column while its pickle still has one. v3 never selects it and never
writes that itself, so it tells for good that it was us.
"""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar
from uuid import uuid4

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine, make_url
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.pool import NullPool

from ..errors import SourceUnavailable, V3NotChangeable
from ..settings import DatabaseUrl
from ..store.driver import connect
from .model import V3Row

T = TypeVar("T")

LOCK_TIMEOUT = 0.5
"""Seconds that v3 may have to wait because we wait for its table; its default grace time is one second."""

_LOCK_ATTEMPTS = 20


@dataclass(frozen=True, slots=True)
class Parked:
    """What became of rows that were to be parked.

    :ivar ids: those that are parked
    :ivar now: by the clock that decided
    """

    ids: frozenset[str]
    now: float


class V3Table:
    """The table of one job store of v3.

    :ivar source: which it is, without user and password, the same text each time
    :ivar dialect: ``postgresql``, ``sqlite`` or ``mysql``
    """

    def __init__(self, url: str, engine: Engine | AsyncEngine, table: str) -> None:
        self._engine = engine
        schema, _, name = table.rpartition(".")
        self.dialect = engine.dialect.name
        self.name, self.schema = name, schema or None
        self.source = f"{_place(url)}?table={table}"
        self._rows = sa.Table(
            name,
            sa.MetaData(),
            sa.Column("id", sa.Unicode(191), primary_key=True),
            sa.Column("next_run_time", sa.Float(25)),
            sa.Column("job_state", sa.LargeBinary),
            schema=self.schema,
        )

    @property
    def makes_v3_wait(self) -> bool:
        """Whether v3 cannot read a row while it is being parked, however late the commit is."""
        return self.dialect == "postgresql"

    async def run(self, work: Callable[[Connection], T]) -> T:
        """Do the work in a transaction of its own.

        :raises SourceUnavailable: if the database does not answer
        """
        try:
            if isinstance(self._engine, AsyncEngine):
                async with self._engine.begin() as connection:
                    return await connection.run_sync(work)
            return await asyncio.to_thread(self._run, self._engine, work)
        except (sa.exc.OperationalError, sa.exc.InterfaceError, OSError) as exc:
            raise SourceUnavailable(
                f"expected the database of {self.source} to answer, got {_said(exc)}. Check the address and the "
                f"server; what was begun is taken up again by the same command."
            ) from exc

    def _run(self, engine: Engine, work: Callable[[Connection], T]) -> T:
        if self.dialect != "sqlite":
            with engine.begin() as connection:
                return work(connection)
        with engine.connect() as connection:  # in autocommit: sqlite3 would begin only with the first write
            connection.exec_driver_sql("begin immediate")
            outcome = work(connection)  # what fails is rolled back as the connection is closed
            connection.exec_driver_sql("commit")
            return outcome

    async def close(self) -> None:
        """Close the connections."""
        if isinstance(self._engine, AsyncEngine):
            await self._engine.dispose()
        else:
            self._engine.dispose()

    async def check_changeable(self) -> None:
        """Find out, changing nothing, whether rows may be changed, deleted and put back.

        :raises V3NotChangeable: if not
        """
        rows = self._rows

        def try_all(connection: Connection) -> None:
            connection.execute(sa.update(rows).where(sa.false()).values(next_run_time=None))
            connection.execute(sa.delete(rows).where(sa.false()))
            nothing = sa.select(rows).where(sa.false())
            connection.execute(sa.insert(rows).from_select(["id", "next_run_time", "job_state"], nothing))

        try:
            await self.run(try_all)
        except (sa.exc.DBAPIError, SourceUnavailable) as exc:
            cause = exc.__cause__ if isinstance(exc, SourceUnavailable) and exc.__cause__ else exc
            if isinstance(exc, SourceUnavailable) and not _is_refusal(cause):
                raise
            raise V3NotChangeable(
                f"expected a role that may update, delete and insert rows of {self.name}, got {_said(cause)}. Grant it "
                f"that, or name another user in --from. Nothing was changed."
            ) from exc

    async def full_name(self) -> str:
        """Return the quoted name of a PostgreSQL table with its schema, as anybody can use it."""

        def look(connection: Connection) -> str:
            preparer = connection.dialect.identifier_preparer
            found = connection.exec_driver_sql(
                "select n.nspname, c.relname from pg_class c join pg_namespace n on n.oid = c.relnamespace "
                "where c.oid = to_regclass($1)",
                (preparer.format_table(self._rows),),
            ).one()
            return ".".join('"' + part.replace('"', '""') + '"' for part in found)

        return await self.run(look)

    async def is_locked(self, key: int) -> bool:
        """Return whether somebody in the same PostgreSQL database holds an advisory lock."""
        return not await self.run(
            lambda connection: connection.execute(sa.select(sa.func.pg_try_advisory_xact_lock(key))).scalar()
        )

    async def found(self, ids: Sequence[str]) -> dict[str, V3Row]:
        """Return those of the rows that are there."""
        return await self.run(lambda connection: self._found(connection, ids))

    def _found(self, connection: Connection, ids: Sequence[str], *, lock: bool = False) -> dict[str, V3Row]:
        rows = self._rows
        query = sa.select(rows).where(rows.c.id.in_(list(ids)))
        if lock and self.dialect != "sqlite":
            query = query.with_for_update()
        return {row.id: V3Row(row.id, row.next_run_time, bytes(row.job_state)) for row in connection.execute(query)}

    async def present(self, ids: Iterable[str]) -> set[str]:
        """Return which ids are there."""
        wanted = [*ids]
        rows = self._rows

        def look(connection: Connection) -> set[str]:
            there: set[str] = set()
            for at in range(0, len(wanted), 500):
                query = sa.select(rows.c.id).where(rows.c.id.in_(wanted[at : at + 500]))
                there.update(connection.execute(query).scalars())
            return there

        return await self.run(look)

    async def count(self) -> int:
        """Return how many rows there are."""
        return await self.run(
            lambda connection: connection.execute(sa.select(sa.func.count()).select_from(self._rows)).scalar_one()
        )

    async def now(self) -> float:
        """Return the time by the clock that decides what is due."""
        return await self.run(self._now)

    def _now(self, connection: Connection) -> float:
        if self.dialect == "postgresql":
            return float(
                connection.exec_driver_sql("select extract(epoch from clock_timestamp())::float8").scalar_one()
            )
        if self.dialect == "sqlite":
            return time.time()
        return float(connection.exec_driver_sql("select unix_timestamp(sysdate(6))").scalar_one())

    # -- parking ------------------------------------------------------------------------------------------------------

    async def park(self, rows: Sequence[V3Row], *, margin: float | None) -> Parked:
        """Park those of the rows that are as they were read and not in v3's hands.

        :param margin: seconds that must be left until a row is due; None: v3 is stopped, and any row will do
        :raises V3NotChangeable: if the table stays locked by somebody else
        """
        for attempt in range(_LOCK_ATTEMPTS):
            try:
                parked = await self.run(lambda connection: self._park(connection, rows, margin))
                break
            except (sa.exc.DBAPIError, SourceUnavailable) as exc:
                if not _is_locked(exc) or attempt == _LOCK_ATTEMPTS - 1:
                    if _is_locked(exc):
                        raise locked(self.name, _LOCK_ATTEMPTS * (LOCK_TIMEOUT + 0.2)) from exc
                    raise
            await asyncio.sleep(0.2)
        if margin is None or self.makes_v3_wait or not parked.ids:
            return parked
        # Without a lock that readers wait for, the commit has to have been in time too. What was not is given back.
        now = await self.now()
        late = [
            row for row in rows if row.id in parked.ids and row.next_run_time is not None and row.next_run_time <= now
        ]
        if late:
            await self.unpark(late)
        return Parked(parked.ids - {row.id for row in late}, now)

    def _park(self, connection: Connection, rows: Sequence[V3Row], margin: float | None) -> Parked:
        if margin is not None and self.dialect == "postgresql":
            # v3 reads without a lock. This one makes it wait, so nothing that is about to go is read meanwhile.
            connection.exec_driver_sql(f"set local lock_timeout = '{int(LOCK_TIMEOUT * 1000)}ms'")
            name = connection.dialect.identifier_preparer.format_table(self._rows)
            connection.exec_driver_sql(f"lock table {name} in access exclusive mode")
        there = self._found(connection, [row.id for row in rows], lock=True)
        now = self._now(connection)
        ids = [row.id for row in rows if there.get(row.id) == row and is_free(row, now, margin)]
        if ids:
            column = self._rows.c.id
            connection.execute(sa.update(self._rows).where(column.in_(ids)).values(next_run_time=None))
        return Parked(frozenset(ids), now)

    async def unpark(self, rows: Sequence[V3Row]) -> set[str]:
        """Give parked rows the ``next_run_time`` that they are given here; return which were still parked."""
        return await self.run(lambda connection: self._unpark(connection, rows))

    def _unpark(self, connection: Connection, rows: Sequence[V3Row]) -> set[str]:
        there = self._found(connection, [row.id for row in rows], lock=True)
        table, done = self._rows, set()
        for row in rows:
            if is_parked(there.get(row.id), row):
                done.add(row.id)
                if row.next_run_time is not None:
                    connection.execute(
                        sa.update(table).where(table.c.id == row.id).values(next_run_time=row.next_run_time)
                    )
        return done

    async def remove_parked(self, rows: Sequence[V3Row]) -> set[str]:
        """Delete rows that are parked; return the ids of those that v3's application has written again meanwhile."""

        def work(connection: Connection) -> set[str]:
            there = self._found(connection, [row.id for row in rows], lock=True)
            gone = [row.id for row in rows if is_parked(there.get(row.id), row)]
            if gone:
                connection.execute(sa.delete(self._rows).where(self._rows.c.id.in_(gone)))
            return there.keys() - set(gone)

        return await self.run(work)

    async def put_back(self, rows: Sequence[V3Row]) -> set[str]:
        """Insert rows, parked; return the ids of those that could not be, because another row has the id."""

        def work(connection: Connection) -> set[str]:
            there = self._found(connection, [row.id for row in rows], lock=True)
            new = [row for row in rows if row.id not in there]
            if new:
                values = [{"id": row.id, "next_run_time": None, "job_state": row.job_state} for row in new]
                connection.execute(sa.insert(self._rows), values)
            return {row.id for row in rows if row.id in there and not is_parked(there[row.id], row)}

        return await self.run(work)


def is_free(row: V3Row, now: float, margin: float | None) -> bool:
    """Return whether v3 cannot be at work on a row; see :meth:`V3Table.park`."""
    return margin is None or row.next_run_time is None or row.next_run_time > now + margin


def is_parked(there: V3Row | None, row: V3Row) -> bool:
    """Return whether what is there is the row without its ``next_run_time``."""
    return there is not None and there.next_run_time is None and there.job_state == row.job_state


def locked(name: str, seconds: float) -> V3NotChangeable:
    """Return the error for a table that somebody keeps locked."""
    return V3NotChangeable(
        f"expected to lock {name} for a moment, got no turn in {seconds:g} s: a long "
        f"transaction reads or changes it. End that, then give the same command again."
    )


@asynccontextmanager
async def open_table(url: str, table: str = "apscheduler_jobs") -> AsyncIterator[V3Table]:
    """Lend v3's table.

    :param url: SQLAlchemy's address of a PostgreSQL, SQLite, MySQL or MariaDB database
    :param table: its name, with a schema and a dot before it if need be
    """
    opened = V3Table(url, _engine(url), table)
    try:
        yield opened
    finally:
        await opened.close()


def _engine(url: str) -> Engine | AsyncEngine:
    if _is_postgres(url):
        address = DatabaseUrl.parse(url)
        # A pooler may be between, whose session has another one's prepared statement under any name that is not ours.
        arguments = {
            "async_creator_fn": lambda **_: connect(address),
            "prepared_statement_cache_size": 0,
            "prepared_statement_name_func": lambda: f"duetime_{uuid4().hex}",
        }
        return create_async_engine("postgresql+asyncpg://", connect_args=arguments, pool_size=2)
    made = make_url(url)
    if made.get_backend_name() == "sqlite":
        return sa.create_engine(made, poolclass=NullPool, isolation_level="AUTOCOMMIT")
    # Whatever driver v3 has: this one is pure Python.
    made = made.set(drivername="mysql+pymysql")
    return sa.create_engine(made, pool_pre_ping=True, isolation_level="READ COMMITTED")


def _is_postgres(url: str) -> bool:
    return url.startswith(("postgres:", "postgresql:", "postgresql+", "postgres+"))


def _place(url: str) -> str:
    """Return where a database is, without user and password, in the same words each time."""
    if _is_postgres(url):
        address = DatabaseUrl.parse(url).direct
        return f"postgresql://{address.host or ''}:{address.port}/{address.database}"
    made = make_url(url)
    if made.get_backend_name() == "sqlite":
        path = (made.database or "").removeprefix("file:").partition("?")[0]
        return f"sqlite:///{Path(path).resolve()}"
    return f"mysql://{made.host or ''}:{made.port or 3306}/{made.database}"


def _cause(exc: BaseException) -> BaseException:
    """Return the driver's own error."""
    while True:
        inner = exc.orig if isinstance(exc, sa.exc.DBAPIError) else exc.__cause__
        if not isinstance(inner, BaseException):
            return exc
        exc = inner


def _said(exc: BaseException) -> str:
    cause = _cause(exc)
    return f"{type(cause).__name__}: {str(cause).strip().rstrip('.')}"


def _is_locked(exc: BaseException) -> bool:
    cause = _cause(exc)
    if isinstance(cause, sqlite3.OperationalError):
        return "locked" in str(cause)
    if type(cause).__name__ == "LockNotAvailableError" or getattr(cause, "sqlstate", None) == "55P03":
        return True
    number = cause.args[0] if cause.args else None
    return type(cause).__module__.startswith("pymysql") and number in (1205, 1213)


def _is_refusal(exc: BaseException) -> bool:
    cause = _cause(exc)
    if isinstance(cause, sqlite3.OperationalError):
        return "readonly" in str(cause) or "no such" in str(cause)
    number = cause.args[0] if cause.args else None
    return type(cause).__module__.startswith("pymysql") and number in (1142, 1143, 1044, 1045, 1290)
