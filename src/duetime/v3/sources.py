"""Where v3's rows are: a table in PostgreSQL, SQLite, MySQL or MariaDB, read in order and in batches."""

from __future__ import annotations

import asyncio
import math
import sqlite3
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self, TypeAlias, TypeVar
from urllib.parse import quote

import anyio.to_thread
import asyncpg
import sqlalchemy.exc
from sqlalchemy import Column, Float, LargeBinary, MetaData, Select, Table, Unicode, create_engine, func, select
from sqlalchemy.dialects.postgresql import asyncpg as asyncpg_dialect
from sqlalchemy.engine import URL, Engine, make_url
from sqlalchemy.pool import QueuePool
from sqlalchemy.sql.dml import UpdateBase

from duetime.database_url import DatabaseUrl
from duetime.errors import (
    DuetimeError,
    InvalidSettings,
    InvalidSource,
    NotAV3Table,
    SourceRefused,
    SourceUnavailable,
)

from .model import V3Row
from .pickles import MAX_PICKLE

BATCH_BYTES = 8 * 1024 * 1024
"""Bytes of states that are fetched at once; of one that is longer than any job's, only the beginning is."""

CONNECT_TIMEOUT = 15
"""Seconds that connecting may take, where the address does not say."""

Statement: TypeAlias = Select[Any] | UpdateBase
_Answer = TypeVar("_Answer")

_COLUMNS = {"id": "text", "next_run_time": "number", "job_state": "bytes"}
_EXAMPLES = "postgresql://user:password@host/database, sqlite:///jobs.sqlite or mysql://user:password@host/database"


def open_source(url: str, table: str = "apscheduler_jobs") -> V3Source:
    """Return v3's table in that database, to be used with ``async with``.

    :param url: the address as v3's ``SQLAlchemyJobStore`` has it, with whatever driver; the driver is chosen here
    :param table: the table's name, if it was given another one; with its schema as ``schema.table``
    :raises InvalidSource: if the address is none of PostgreSQL, SQLite, MySQL or MariaDB, or its driver is missing
    """
    schema, _, name = table.rpartition(".")
    if not name:
        raise InvalidSource(f"expected the name of v3's table, such as apscheduler_jobs, got {table!r}.")
    try:
        parsed = make_url(url)
    except (sqlalchemy.exc.ArgumentError, ValueError):
        # Nothing of the text is shown: there is no telling which part of it is a password.
        raise InvalidSource(f"expected the address of v3's database, such as {_EXAMPLES}, got another text.") from None
    system = parsed.drivername.partition("+")[0].lower()
    if system in ("postgresql", "postgres"):
        database: _Database = _Postgres(url)
    elif system == "sqlite":
        database = _Threaded("sqlite", _sqlite(parsed), f"sqlite:///{parsed.database}")
    elif system in ("mysql", "mariadb"):
        database = _Threaded("mysql", _mysql(parsed), parsed.render_as_string(hide_password=True))
    else:
        raise InvalidSource(
            f"expected the address of v3's database, such as {_EXAMPLES}, got one that begins with {system!r:.40}. "
            f"Copy the table apscheduler_jobs into one of these databases first."
        )
    return V3Source(database, name, schema or None)


class V3Source:
    """v3's table in its database.

    :ivar kind: ``postgresql``, ``sqlite`` or ``mysql``
    :ivar address: of the database, without its password
    :ivar table: for statements of SQLAlchemy: ``id``, ``next_run_time``, ``job_state``
    """

    def __init__(self, database: _Database, name: str, schema: str | None) -> None:
        self._database = database
        self.kind = database.kind
        self.address = database.address
        self.table = Table(
            name,
            MetaData(),
            Column("id", Unicode(191), primary_key=True),
            Column("next_run_time", Float(25)),
            Column("job_state", LargeBinary),
            schema=schema,
        )

    async def __aenter__(self) -> Self:
        """Return it; the database is connected to by the first statement."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close its connections."""
        await self._database.close()

    async def check(self) -> None:
        """See that the table is there, can be read, and has v3's columns.

        :raises NotAV3Table: if it is not there, or has others
        :raises SourceRefused: if the database does not let this user in, or not read it
        :raises SourceUnavailable: if the database cannot be reached
        """
        columns = self.table.c
        kinds = await self._database.kinds(select(columns.id, columns.next_run_time, columns.job_state).limit(0), self)
        for (name, wanted), found in zip(_COLUMNS.items(), kinds, strict=True):
            if found != wanted:
                raise NotAV3Table(
                    f"expected a table of APScheduler 3 in {self.address}, got {self.table.fullname!r}, whose column "
                    f"{name} is not of {wanted}. Pass the name of v3's table with --table."
                )

    async def count(self) -> int:
        """Return how many rows the table has."""
        ((found,),) = await self.run(select(func.count()).select_from(self.table))
        return int(found)

    async def rows(self, batch: int = 1000) -> AsyncIterator[list[V3Row]]:
        """Yield all rows in the order of their ids, as the database compares them.

        Each batch is a statement of its own, so memory stays flat and no transaction is held open. Rows that v3 changes
        in the meantime are seen as they are when their batch is read. Of a state that is longer than any job's, only
        the beginning is fetched.

        :param batch: rows at once, at most; fewer if their states are long
        """
        columns = self.table.c
        length = func.length(columns.job_state) if self.kind == "sqlite" else func.octet_length(columns.job_state)
        after: Any = None
        while True:
            listing = select(columns.id, length).order_by(columns.id).limit(batch)
            listed = await self.run(listing if after is None else listing.where(columns.id > after))
            if not listed:
                return
            for last in _ends(listed):
                state = func.substr(columns.job_state, 1, MAX_PICKLE + 1)
                rows = select(columns.id, columns.next_run_time, state).order_by(columns.id).where(columns.id <= last)
                found = await self.run(rows if after is None else rows.where(columns.id > after))
                after = last
                if found:
                    yield [_row(*each) for each in found]

    async def run(self, statement: Statement) -> Sequence[Sequence[Any]]:
        """Run one statement of SQLAlchemy in a transaction of its own, and return its rows.

        :raises NotAV3Table: as :meth:`check`; so the others
        """
        return await self._database.run(statement, self)


def _ends(listed: Sequence[Sequence[Any]]) -> list[Any]:
    """Return the last ids of the parts whose states may be fetched at once."""
    ends, size = [], 0
    for before, (_, length) in zip([None, *(row[0] for row in listed)], listed, strict=False):
        size += min(length or 0, MAX_PICKLE + 1)
        if size > BATCH_BYTES and before is not None:
            ends.append(before)
            size = min(length or 0, MAX_PICKLE + 1)
    return [*ends, listed[-1][0]]


def _row(id: Any, next_run_time: Any, job_state: Any) -> V3Row:  # noqa: A002 - the column's name
    state = job_state.encode("utf-8", "surrogateescape") if isinstance(job_state, str) else bytes(job_state or b"")
    return V3Row(
        id.decode("utf-8", "replace") if isinstance(id, bytes) else str(id),
        None if next_run_time is None else _seconds(next_run_time),
        state,
    )


def _seconds(found: Any) -> float:
    """Return a number; of what is none, as SQLite takes it in any column, one that equals no time."""
    try:
        return float(found)
    except (TypeError, ValueError):
        return math.nan


class _Database(Protocol):
    kind: str
    address: str

    async def run(self, statement: Statement, source: V3Source) -> Sequence[Sequence[Any]]: ...

    async def kinds(self, statement: Statement, source: V3Source) -> list[str]:
        """Return of what the columns are that the statement gives: ``text``, ``number``, ``bytes`` or another word."""
        ...

    async def close(self) -> None: ...


class _Postgres:
    """PostgreSQL over asyncpg: one connection, opened when it is needed, and again after it was lost."""

    kind = "postgresql"

    def __init__(self, url: str) -> None:
        try:
            self._url = DatabaseUrl.parse(url)
        except InvalidSettings as exc:
            raise InvalidSource(exc.message) from None
        self.address = self._url.redacted
        self._connection: asyncpg.Connection | None = None
        self._turn = asyncio.Lock()
        self._dialect = asyncpg_dialect.dialect()  # type: ignore[no-untyped-call]

    async def _connected(self) -> asyncpg.Connection:
        if self._connection is None or self._connection.is_closed():
            # No prepared statements are kept: a pooler may be between.
            arguments = {"timeout": CONNECT_TIMEOUT, **self._url.asyncpg_arguments(), "statement_cache_size": 0}
            self._connection = await asyncpg.connect(**arguments)
        return self._connection

    def _compiled(self, statement: Statement) -> tuple[str, list[Any]]:
        compiled = statement.compile(dialect=self._dialect)
        return str(compiled), [compiled.params[name] for name in compiled.positiontup or ()]

    async def run(self, statement: Statement, source: V3Source) -> Sequence[Sequence[Any]]:
        text, values = self._compiled(statement)
        async with self._turn:
            try:
                connection = await self._connected()
                async with connection.transaction():
                    return [tuple(row) for row in await connection.fetch(text, *values)]
            except _FAILURES as exc:
                self._drop(exc)
                raise _postgres_error(exc, source) from exc

    async def kinds(self, statement: Statement, source: V3Source) -> list[str]:
        text, _ = self._compiled(statement)
        text = text.partition("\n LIMIT")[0]  # which is a parameter
        async with self._turn:
            try:
                connection = await self._connected()
                async with connection.transaction():
                    prepared = await connection.prepare(f"{text} LIMIT 0")
                    await prepared.fetch()
                    return [_PG_KINDS.get(column.type.name, column.type.name) for column in prepared.get_attributes()]
            except _FAILURES as exc:
                self._drop(exc)
                raise _postgres_error(exc, source) from exc

    async def close(self) -> None:
        if self._connection is not None:
            try:
                await self._connection.close(timeout=2)
            except _FAILURES:
                self._connection.terminate()

    def _drop(self, exc: BaseException) -> None:
        """Have a new connection next time, unless the server only said no: asyncpg may not know that it is lost."""
        if self._connection is not None and not isinstance(exc, asyncpg.PostgresError):
            self._connection.terminate()
            self._connection = None


_FAILURES = (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError, TimeoutError)

_PG_KINDS = {
    "varchar": "text",
    "text": "text",
    "float8": "number",
    "float4": "number",
    "numeric": "number",
    "bytea": "bytes",
}


def _postgres_error(exc: BaseException, source: V3Source) -> DuetimeError:
    if isinstance(exc, asyncpg.UndefinedTableError | asyncpg.UndefinedColumnError | asyncpg.InvalidSchemaNameError):
        return _no_table(exc, source)
    if isinstance(exc, asyncpg.InsufficientPrivilegeError | asyncpg.InvalidAuthorizationSpecificationError):
        return _refused(exc, source)
    return _unavailable(exc, source)


class _Threaded:
    """SQLite, MySQL or MariaDB by a driver that blocks, in threads."""

    def __init__(self, kind: str, engine: Engine, address: str) -> None:
        self.kind = kind
        self.address = address
        self._engine = engine

    async def run(self, statement: Statement, source: V3Source) -> Sequence[Sequence[Any]]:
        def work() -> Sequence[Sequence[Any]]:
            with self._engine.begin() as connection:
                result = connection.execute(statement)
                return [tuple(row) for row in result] if result.returns_rows else []

        return await self._in_thread(work, source)

    async def kinds(self, statement: Statement, source: V3Source) -> list[str]:
        await self.run(statement, source)  # which says what is wrong better than the look at the columns

        def work() -> list[str]:
            table = source.table
            columns = sqlalchemy.inspect(self._engine).get_columns(table.name, schema=table.schema)
            types = {column["name"]: column["type"] for column in columns}
            return [_kind_of(types[name]) for name in _COLUMNS]

        return await self._in_thread(work, source)

    async def _in_thread(self, work: Callable[[], _Answer], source: V3Source) -> _Answer:
        try:
            return await anyio.to_thread.run_sync(work)
        except (sqlalchemy.exc.DBAPIError, sqlite3.Error, OSError, sqlalchemy.exc.TimeoutError) as exc:
            raise self._error(exc, source) from exc
        except (TypeError, ValueError, RuntimeError) as exc:  # an option that the driver does not know, or cannot do
            raise InvalidSource(f"expected an address that the driver understands, got {self.address}: {exc}") from exc

    def _error(self, exc: BaseException, source: V3Source) -> DuetimeError:
        cause = getattr(exc, "orig", None) or exc
        number = cause.args[0] if cause.args and isinstance(cause.args[0], int) else None
        text = str(cause).lower()
        if number in _MYSQL_NO_TABLE or (number is None and any(word in text for word in _SQLITE_NO_TABLE)):
            return _no_table(cause, source)
        if number in _MYSQL_REFUSED:
            return _refused(cause, source)
        return _unavailable(cause, source)

    async def close(self) -> None:
        await anyio.to_thread.run_sync(self._engine.dispose)


_MYSQL_NO_TABLE = frozenset({1146, 1054})
_MYSQL_REFUSED = frozenset({1044, 1045, 1142, 1143, 1227, 1698})
_SQLITE_NO_TABLE = ("no such table", "no such column", "not a database", "unknown database")


def _kind_of(column: Any) -> str:
    try:
        python = column.python_type
    except NotImplementedError:
        return str(column)
    if python is str:
        return "text"
    if python is bytes:
        return "bytes"
    return "number" if issubclass(python, int | float) or python.__name__ == "Decimal" else python.__name__


def _sqlite(url: URL) -> Engine:
    path = url.database
    if not path or path == ":memory:":
        raise InvalidSource("expected the address of a file, such as sqlite:///jobs.sqlite, got one of no file.")
    if path.startswith("file:"):
        path = path.removeprefix("file:").partition("?")[0]

    def connect() -> sqlite3.Connection:
        # Never made anew: a wrong path would be an empty database.
        address = f"file:{quote(str(Path(path).absolute()))}?mode=rw"
        return sqlite3.connect(address, uri=True, timeout=30, check_same_thread=False)

    return create_engine("sqlite://", creator=connect, poolclass=QueuePool, pool_size=1)


def _mysql(url: URL) -> Engine:
    arguments = {} if "connect_timeout" in url.query else {"connect_timeout": CONNECT_TIMEOUT}
    try:
        return create_engine(url.set(drivername="mysql+pymysql"), connect_args=arguments, pool_size=1)
    except ModuleNotFoundError as exc:
        raise InvalidSource(
            f"expected the driver for MySQL and MariaDB to be installed, got none ({exc}). "
            f"Install it: pip install 'duetime[migrate]'."
        ) from None


def _no_table(exc: BaseException, source: V3Source) -> NotAV3Table:
    return NotAV3Table(
        f"expected a table of APScheduler 3, {source.table.fullname!r}, in {source.address}, got none: {exc!s:.200}. "
        f"Pass the address as v3's job store has it, and the table's name with --table if it is another one."
    )


def _refused(exc: BaseException, source: V3Source) -> SourceRefused:
    return SourceRefused(
        f"expected to be let in to read {source.table.fullname!r} in {source.address}, got: {exc!s:.200}. Pass the "
        f"address with a user that may read and change the table, as v3's own does."
    )


def _unavailable(exc: BaseException, source: V3Source) -> SourceUnavailable:
    return SourceUnavailable(
        f"expected the database of APScheduler 3 at {source.address} to answer, got {type(exc).__name__}: "
        f"{exc!s:.200}. See that it runs and can be reached from here, and run the command again."
    )
