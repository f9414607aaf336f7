"""The schema: made by whichever node comes first, once, and never taken from a newer release."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace

import asyncpg
import pytest
from apscheduler import ConflictPolicy

from duetime.errors import InvalidSettings, SchemaTooNew
from duetime.settings import DatabaseUrl
from duetime.store import PostgresDataStore
from duetime.store import schema as schema_module
from duetime.store.schema import TABLES, migrate, migrations, quoted, version

from ..waiting import eventually
from .parts import a_schedule, a_store, a_task, ids, node, running, started, tasks

LATEST = migrations()[-1][0]


@pytest.fixture
async def empty(empty_database: DatabaseUrl) -> AsyncIterator[asyncpg.Connection]:
    """A connection to a database without anything in it."""
    connection = await asyncpg.connect(**empty_database.asyncpg_arguments())
    yield connection
    await connection.close()


async def tables(connection: asyncpg.Connection, schema: str = "duetime") -> set[str]:
    rows = await connection.fetch("select tablename from pg_tables where schemaname = $1", schema)
    return {row["tablename"] for row in rows}


async def test_an_empty_database_gets_every_table_and_the_version(empty: asyncpg.Connection) -> None:
    assert await version(empty, "duetime") == 0
    await migrate(empty, "duetime")
    assert await version(empty, "duetime") == LATEST
    assert await tables(empty) == {*TABLES, "schema_version"}


async def test_claims_are_never_compiled_whatever_the_session_says(empty: asyncpg.Connection) -> None:
    """PostgreSQL would do it each time, for 0.2 s, where the connection cannot say no: behind a pooler."""
    await migrate(empty, "duetime")
    [row] = await empty.fetch("select proconfig from pg_proc where oid = 'duetime.claim_jobs_v3'::regproc")
    assert "jit=off" in row["proconfig"]


async def test_a_second_migration_is_one_query_and_changes_nothing(empty: asyncpg.Connection) -> None:
    await migrate(empty, "duetime")
    before = await empty.fetch("select * from duetime.schema_version")
    queries: list[str] = []
    empty.add_query_logger(lambda record: queries.append(record.query))
    await migrate(empty, "duetime")
    await eventually(lambda: len(queries) > 0)  # the driver tells in the next round of the event loop
    assert queries == ['select max(version) from "duetime".schema_version']
    assert await empty.fetch("select * from duetime.schema_version") == before


async def test_nodes_that_start_together_on_an_empty_database_all_start(
    empty_database: DatabaseUrl, empty: asyncpg.Connection
) -> None:
    connections = [await asyncpg.connect(**empty_database.asyncpg_arguments()) for _ in range(8)]
    try:
        await asyncio.gather(*(migrate(connection, "duetime") for connection in connections))
    finally:
        for connection in connections:
            await connection.close()
    assert await empty.fetchval("select count(*) from duetime.schema_version") == len(migrations())


async def test_whole_nodes_that_start_together_on_an_empty_database_all_work(empty_database: DatabaseUrl) -> None:
    done: list[int] = []

    async def work(number: int) -> None:
        done.append(number)

    nodes = [node(empty_database, tasks(work)) for _ in range(4)]
    async with running(*nodes):
        await asyncio.gather(*(each.run_job("work", args=[number]) for number, each in enumerate(nodes)))
    assert sorted(done) == [0, 1, 2, 3]


async def test_a_database_of_a_newer_release_is_refused_and_not_touched(
    empty_database: DatabaseUrl, empty: asyncpg.Connection
) -> None:
    await migrate(empty, "duetime")
    await empty.execute("insert into duetime.schema_version (version) values ($1)", LATEST + 1)
    with pytest.raises(SchemaTooNew, match=f"expected schema 'duetime' at version {LATEST} or older, got version"):
        await migrate(empty, "duetime")
    with pytest.raises(SchemaTooNew):
        async with a_store(empty_database):
            pass
    assert await version(empty, "duetime") == LATEST + 1


async def test_a_migration_that_fails_leaves_nothing_behind(
    empty: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = (*migrations(), (LATEST + 1, "create table {schema}.half (id int); select 1 / 0"))
    monkeypatch.setattr(schema_module, "migrations", lambda: broken)
    with pytest.raises(asyncpg.DivisionByZeroError):
        await migrate(empty, "duetime")
    assert await tables(empty) == set()
    monkeypatch.undo()
    await migrate(empty, "duetime")
    assert await version(empty, "duetime") == LATEST


async def test_a_later_migration_is_applied_to_what_is_there(
    empty: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    await migrate(empty, "duetime")
    await empty.execute("insert into duetime.tasks (id, job_executor) values ('kept', 'auto')")
    later = (*migrations(), (LATEST + 1, "create table {schema}.later (id int)"))
    monkeypatch.setattr(schema_module, "migrations", lambda: later)
    await migrate(empty, "duetime")
    assert "later" in await tables(empty)
    assert await empty.fetchval("select id from duetime.tasks") == "kept"
    versions = [row[0] for row in await empty.fetch("select version from duetime.schema_version order by version")]
    assert versions == [number for number, _ in later]


async def test_migrations_are_numbered_without_a_gap() -> None:
    assert [number for number, _ in migrations()] == list(range(1, LATEST + 1))


async def test_from_scratch_leaves_what_is_not_ours(empty: asyncpg.Connection) -> None:
    await migrate(empty, "duetime")
    await empty.execute(
        "create table duetime.theirs (id int); insert into duetime.theirs values (1);"
        "create function duetime.theirs() returns int language sql as 'select 1';"
        "insert into duetime.tasks (id, job_executor) values ('ours', 'auto')"
    )
    await migrate(empty, "duetime", from_scratch=True)
    assert await empty.fetchval("select count(*) from duetime.tasks") == 0
    assert await empty.fetchval("select count(*) from duetime.theirs") == 1
    assert await empty.fetchval("select duetime.theirs()") == 1


async def test_from_scratch_works_on_an_empty_database(empty: asyncpg.Connection) -> None:
    await migrate(empty, "duetime", from_scratch=True)
    assert await version(empty, "duetime") == LATEST


async def test_a_schema_that_was_dropped_is_made_anew(database: DatabaseUrl, connection: asyncpg.Connection) -> None:
    async with a_store(database) as store:
        await store.add_task(a_task())
        await connection.execute("drop schema duetime cascade")
        await store.add_schedule(a_schedule("s"), ConflictPolicy.exception)
        assert ids(await store.get_schedules()) == ["s"]
        await connection.execute("drop schema duetime cascade")
        assert await store.get_schedules() == []


async def test_a_node_goes_on_when_its_schema_is_dropped(database: DatabaseUrl, connection: asyncpg.Connection) -> None:
    async def work() -> int:
        return 1

    scheduler = node(database, tasks(work))
    async with running(scheduler):
        assert await scheduler.run_job("work") == 1
        await connection.execute("drop schema duetime cascade")
        assert await scheduler.run_job("work") == 1


async def test_a_role_that_may_not_make_a_schema_uses_the_one_that_is_there(
    database: DatabaseUrl, connection: asyncpg.Connection
) -> None:
    role = f"guest_{database.database}"
    await connection.execute(
        f"create role {role} login password 'guest';"
        f"grant usage on schema duetime to {role};"
        f"grant all on all tables in schema duetime to {role};"
        f"grant all on all sequences in schema duetime to {role}"
    )
    try:
        async with a_store(replace(database, user=role, password="guest")) as store:
            await store.add_task(a_task())
            await store.add_schedule(a_schedule("s"), ConflictPolicy.exception)
            assert ids(await store.acquire_schedules("one", store.call_timeout, 9)) == ["s"]
    finally:
        await connection.execute(f"drop owned by {role}; drop role {role}")


@pytest.mark.parametrize("name", ["Duetime", "select", "x" * 63, "_1"])
async def test_a_schema_may_have_any_plain_name(
    database: DatabaseUrl, connection: asyncpg.Connection, name: str
) -> None:
    store = PostgresDataStore(database.text, schema=name)
    async with started(store):
        await store.add_task(a_task())
        await store.add_schedule(a_schedule("s"), ConflictPolicy.exception)
        assert ids(await store.acquire_schedules("one", store.call_timeout, 9)) == ["s"]
    assert await tables(connection, name) == {*TABLES, "schema_version"}
    assert await connection.fetchval("select count(*) from duetime.schedules") == 0


@pytest.mark.parametrize("name", ['a"b', "a b", "a;drop table x", "", "x" * 64, "ü", "1a", "a.b"])
def test_a_schema_name_that_is_none_is_refused(name: str) -> None:
    with pytest.raises(InvalidSettings, match="expected a schema name of letters, digits and underscores"):
        quoted(name)


def test_a_name_is_quoted() -> None:
    assert quoted("Select") == '"Select"'
