"""What tests of the cut-over put together: tables of v3, a node that carries over, and crashes in the middle."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import asyncpg
import pytest
import sqlalchemy as sa
from apscheduler import Schedule
from apscheduler.triggers.date import DateTrigger
from apscheduler.triggers.interval import IntervalTrigger
from sqlalchemy.engine import Engine

from duetime.scheduler import DuetimeScheduler
from duetime.settings import DatabaseUrl
from duetime.store.driver import StoreConnection
from duetime.v3.cutover import Prepare, Prepared
from duetime.v3.model import V3Row

from ..store.parts import node, tasks

TABLE = (
    "create table {name} (id varchar(191) not null primary key, next_run_time double precision, job_state {bytes} not "
    "null)"
)
KINDS = ("same", "postgresql", "sqlite")
"""Where v3's table is: in Duetime's database, in another one of PostgreSQL, in a file."""


class V3Side:
    """A table of v3 to look at and to write into, beside what is tested."""

    def __init__(self, url: str, *, database: DatabaseUrl | None, path: Path | None) -> None:
        self.url = url
        self._database, self._path = database, path

    async def run(self, sql: str, *arguments: Any) -> list[tuple[Any, ...]]:
        """Run one statement; ``?`` stands for an argument."""
        if self._path is not None:
            with sqlite3.connect(self._path) as connection:
                found = connection.execute(sql, arguments).fetchall()
            connection.close()
            return found
        assert self._database is not None
        for number in range(len(arguments)):
            sql = sql.replace("?", f"${number + 1}", 1)
        connection = await asyncpg.connect(**self._database.asyncpg_arguments())
        try:
            return [tuple(row) for row in await connection.fetch(sql, *arguments)]
        finally:
            await connection.close()

    async def create(self, name: str = "apscheduler_jobs") -> None:
        """Make the table as v3 does."""
        kind = "blob" if self._path is not None else "bytea"
        await self.run(TABLE.format(name=name, bytes=kind))

    async def put(self, rows: Iterable[V3Row]) -> None:
        """Store rows as v3 does."""
        for row in rows:
            await self.run("insert into apscheduler_jobs values (?, ?, ?)", row.id, row.next_run_time, row.job_state)

    async def rows(self) -> dict[str, V3Row]:
        """Return all rows."""
        found = await self.run("select id, next_run_time, job_state from apscheduler_jobs")
        return {row[0]: V3Row(row[0], row[1], bytes(row[2])) for row in found}


@asynccontextmanager
async def v3_side(kind: str, database: DatabaseUrl, folder: Path) -> AsyncIterator[V3Side]:
    """Lend an empty table of v3."""
    path = folder / "jobs.sqlite" if kind == "sqlite" else None
    other = replace(database, database=f"{database.database}_v3") if kind == "postgresql" else database
    if kind == "postgresql":
        await _administer(database, f"create database {other.database}")
    side = V3Side(f"sqlite:///{path}" if path else other.text, database=None if path else other, path=path)
    await side.create()
    try:
        yield side
    finally:
        if kind == "postgresql":
            await _administer(database, f"drop database {other.database} with (force)")


async def _administer(database: DatabaseUrl, statement: str) -> None:
    connection = await asyncpg.connect(**database.asyncpg_arguments())
    try:
        await connection.execute(statement)
    finally:
        await connection.close()


def work() -> None:
    """Do nothing."""


@asynccontextmanager
async def carrier(database: DatabaseUrl) -> AsyncIterator[DuetimeScheduler]:
    """Lend the scheduler of a process that carries over and runs nothing."""
    scheduler = node(database, tasks(work))
    try:
        yield scheduler
    finally:
        await scheduler.store.database.connections.close()
        scheduler.store.database.close()


def preparing(scheduler: DuetimeScheduler, *, left: Iterable[str] = ()) -> Prepare:
    """Return what plans rows whose pickles nobody reads: hourly jobs; those that are left are for a person."""
    review = {*left}

    async def prepare(rows: Sequence[V3Row]) -> list[Prepared]:
        task = await scheduler.configure_task("work")
        return [
            Prepared("review", ("unknown_task: nobody knows it.",), None)
            if row.id in review
            else Prepared("convert", (), a_schedule_of(row, task.id, task.job_executor, task.metadata))
            for row in rows
        ]

    return prepare


def a_schedule_of(row: V3Row, task_id: str, executor: str, metadata: dict[str, Any]) -> Schedule:
    """Return an hourly schedule that is next due when v3's row is; a date for an id that begins with ``once``."""
    paused = row.next_run_time is None
    first = datetime.now(UTC) + timedelta(days=1) if row.next_run_time is None else instant(row.next_run_time)
    trigger = DateTrigger(first) if row.id.startswith("once") else IntervalTrigger(hours=1, start_time=first)
    return Schedule(
        id=row.id,
        task_id=task_id,
        trigger=trigger,
        paused=paused,
        next_fire_time=first,
        job_executor=executor,
        metadata=metadata,
    )


def instant(seconds: float) -> datetime:
    return datetime.fromtimestamp(0, UTC) + timedelta(seconds=round(seconds, 6))


def a_row(name: str, due_in: float | None = 3600.0) -> V3Row:
    """Return a row whose pickle nobody reads."""
    due = None if due_in is None else round(time.time() + due_in, 6)
    return V3Row(name, due, f"the state of {name}".encode())


class Crash(BaseException):
    """Stands for ``kill -9``: nothing of the process comes to pass after it."""


@dataclass
class Crashes:
    """Where to crash, and how many places there were.

    :ivar at: before the statement of this number, from 1 on; 0: nowhere
    :ivar seen: statements so far
    """

    at: int = 0
    seen: int = 0

    def step(self) -> None:
        """Count a statement, and crash if it is the one."""
        self.seen += 1
        if self.seen == self.at:
            raise Crash


@contextmanager
def crashing(monkeypatch: pytest.MonkeyPatch, at: int) -> Iterator[Crashes]:
    """Crash before one of the statements, of either database, ``begin`` and ``commit`` among them."""
    crashes = Crashes(at)

    def before(*_arguments: Any) -> None:
        crashes.step()

    async def fetch(self: Any, query: str, *arguments: Any, **options: Any) -> Any:
        crashes.step()
        return await asyncpg.Connection.fetch(self, query, *arguments, **options)

    real_execute = asyncpg.Connection.execute

    async def execute(self: Any, query: str, *arguments: Any, **options: Any) -> Any:
        if "rollback" not in query.lower():
            crashes.step()
        return await real_execute(self, query, *arguments, **options)

    with monkeypatch.context() as patched:
        patched.setattr(StoreConnection, "fetch", fetch)
        patched.setattr(StoreConnection, "execute", execute, raising=False)
        sa.event.listen(Engine, "before_cursor_execute", before)
        sa.event.listen(Engine, "commit", before)
        try:
            yield crashes
        finally:
            sa.event.remove(Engine, "before_cursor_execute", before)
            sa.event.remove(Engine, "commit", before)


async def schedules(connection: asyncpg.Connection) -> dict[str, asyncpg.Record]:
    """Return all schedules of Duetime's."""
    return {row["id"]: row for row in await connection.fetch("select * from duetime.schedules")}


async def migrated(connection: asyncpg.Connection) -> dict[str, asyncpg.Record]:
    """Return what is known of rows that were carried over."""
    return {row["id"]: row for row in await connection.fetch("select * from duetime.v3_migrated")}


async def breath() -> None:
    """Let what was started go on."""
    await asyncio.sleep(0)
