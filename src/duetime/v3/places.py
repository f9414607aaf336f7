"""Where rows come from and go to: v3's table and Duetime's, in one database or in two."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import TypeVar
from uuid import uuid4

import asyncpg

from .. import builtin
from ..broker import PostgresEventBroker
from ..errors import SourceUnavailable, V3MigrationRunning
from ..local import LocalDatabase
from ..scheduler import DuetimeScheduler, build_scheduler
from ..settings import Settings
from ..store.connections import DirectConnections, is_transient
from ..store.transactions import scheduler_transaction
from ..tasks import TaskRegistry, registry
from .migrated import Migrated
from .setting_aside import V3Table, open_table

T = TypeVar("T")

_LOCK = 0x76335F6D69677261
"""Key of the advisory lock that one migration at a time holds."""

PATIENCE = 30.0
"""Seconds for which a database that has gone away is waited for."""

_GONE = (SourceUnavailable, asyncpg.PostgresError, asyncpg.InterfaceError, OSError)


@dataclass(slots=True)
class Places:
    """Both ends of a migration.

    :ivar is_same: whether both are one database, which one transaction can change
    :ivar patience: seconds for which a database that has gone away is waited for
    """

    scheduler: DuetimeScheduler
    table: V3Table
    migrated: Migrated
    is_same: bool
    patience: float = PATIENCE

    @property
    def node(self) -> str:
        """Which process does it."""
        return self.scheduler.identity

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[asyncpg.Connection]:
        """Lend a connection to Duetime's database."""
        async with self.scheduler.store.database.connections.acquire() as connection:
            yield connection

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[asyncpg.Connection]:
        """Lend a connection in a transaction, in which the store's verbs write too."""
        async with self.connection() as connection, connection.transaction(), scheduler_transaction(connection):
            yield connection

    async def fetch(self, name: str, *arguments: object) -> list[asyncpg.Record]:
        """Run one statement on its own."""
        async with self.connection() as connection:
            return await self.migrated.fetch(connection, name, *arguments)

    async def again(self, work: Callable[[int], Awaitable[T]]) -> T:
        """Do the work, again while a database is away; it is told which attempt this is, from 0 on."""
        ends = time.monotonic() + self.patience
        attempt, wait = 0, 0.05
        while True:
            try:
                return await work(attempt)
            except _GONE as exc:
                is_away = isinstance(exc, SourceUnavailable) or is_transient(exc)
                if not is_away or time.monotonic() + wait > ends:
                    raise
            await asyncio.sleep(wait)
            attempt, wait = attempt + 1, min(1.0, wait * 2)

    async def tell(self, connection: asyncpg.Connection, rows: Sequence[asyncpg.Record]) -> None:
        """Wake the nodes for schedules that are live from now on, of which each row says when it is ``due``."""
        due = [(row["due"], row["schedule_id"]) for row in rows if row["due"] is not None]
        if due:
            moment, schedule_id = min(due)
            await self.scheduler.store.tell_due(connection, schedule_id, moment)


@asynccontextmanager
async def open_scheduler(settings: Settings, registry: TaskRegistry = registry) -> AsyncIterator[DuetimeScheduler]:
    """Lend a scheduler that stores schedules, and runs nothing; the embedded PostgreSQL is started if that is meant."""
    builtin.register(registry)
    local = LocalDatabase(settings.data_dir) if settings.database is None else None
    connections: DirectConnections | None = None
    try:
        url = settings.database or await local.start()  # type: ignore[union-attr] # there is one of the two
        connections = DirectConnections(url, size=settings.pool_size)
        broker = PostgresEventBroker("", channel=settings.schema_name, shares=connections)
        scheduler = build_scheduler(settings, connections, broker, registry)
        try:
            yield scheduler
        finally:
            scheduler.store.database.close()
    finally:
        if connections is not None:
            await connections.close()
        if local is not None:
            await local.stop()


@asynccontextmanager
async def open_places(url: str, scheduler: DuetimeScheduler, table: str, *, exclusive: bool) -> AsyncIterator[Places]:
    """Lend both ends.

    :param exclusive: refuse if another migration is at work, and keep others out
    :raises V3MigrationRunning: if another one is
    :raises SourceUnavailable: if v3's database does not answer
    """
    database = scheduler.store.database
    await database.open(deadline=database.deadline())
    async with AsyncExitStack() as stack:
        v3 = await stack.enter_async_context(open_table(url, table))
        if exclusive:
            await stack.enter_async_context(_alone(scheduler))
        name = await _name_if_same(scheduler, v3)
        migrated = Migrated(database.schema, v3.source, table=name or "", batch=uuid4(), node=scheduler.identity)
        yield Places(scheduler, v3, migrated, is_same=name is not None)


@asynccontextmanager
async def _alone(scheduler: DuetimeScheduler) -> AsyncIterator[None]:
    """Hold the lock for as long as the block lasts.

    In a transaction, so that a pooler does not give it to others. Should it be lost, nothing worse comes of it than
    two migrations that get into each other's way: each step checks what it changes.
    """
    # One of its own: however few the pool has, the work has them all.
    async with scheduler.store.database.connections.probe() as connection, connection.transaction():
        await connection.execute("set local idle_in_transaction_session_timeout = 0")
        if not await connection.fetchval("select pg_try_advisory_xact_lock($1)", _LOCK):
            raise V3MigrationRunning(
                "expected to be the only migration from APScheduler 3 at work on this database, and another one is. "
                "Wait until it has ended; the rest is taken up by the same command."
            )
        yield


async def _name_if_same(scheduler: DuetimeScheduler, v3: V3Table) -> str | None:
    """Return the full name of v3's table if it is in Duetime's database, and Duetime's role may change it.

    Addresses can be written in many ways; an advisory lock is seen in its own database only.
    """
    if v3.dialect != "postgresql":
        return None
    key = secrets.randbits(62)
    async with scheduler.store.database.connections.acquire() as connection:
        async with connection.transaction():
            await connection.execute("select pg_advisory_xact_lock($1)", key)
            if not await v3.is_locked(key):
                return None
        name = await v3.full_name()
        transaction = connection.transaction()
        await transaction.start()
        try:
            for statement in (
                f"delete from {name} where false",  # noqa: S608 - the name is quoted, and the server's own
                f"insert into {name} select * from {name} where false",  # noqa: S608
            ):
                await connection.execute(statement)
        except asyncpg.InsufficientPrivilegeError:
            return None  # then v3's own role changes its table, in steps
        finally:
            await transaction.rollback()
        return name
