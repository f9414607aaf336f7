"""v3's rows in each kind of database, and what is said when they cannot be read."""

from __future__ import annotations

import asyncio
import math
import socket
import sqlite3
import subprocess
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import asyncpg
import pymysql
import pytest

from duetime.errors import DuetimeError, InvalidSource, NotAV3Table, SourceRefused, SourceUnavailable
from duetime.settings import DatabaseUrl
from duetime.v3.model import V3Row
from duetime.v3.pickles import MAX_PICKLE
from duetime.v3.reading import read
from duetime.v3.sources import BATCH_BYTES, open_source

from ..waiting import eventually
from .stored import stored_rows

ROWS = [
    V3Row(f"{index:04}-{stored.row.id}"[:191], stored.row.next_run_time, stored.row.job_state)
    for index, stored in enumerate(stored_rows("3.11")[:700])
]
V3_TABLE = "CREATE TABLE {} (id VARCHAR(191) NOT NULL, next_run_time {}, job_state {} NOT NULL, PRIMARY KEY (id))"


async def all_rows(url: str, batch: int = 100, table: str = "apscheduler_jobs") -> list[V3Row]:
    async with open_source(url, table) as source:
        await source.check()
        return [row async for rows in source.rows(batch) for row in rows]


@pytest.fixture
def sqlite_file(tmp_path: Path) -> Path:
    """A SQLite file with v3's table and rows."""
    path = tmp_path / "jobs of v3.sqlite"
    with sqlite3.connect(path) as connection:
        connection.execute(V3_TABLE.format("apscheduler_jobs", "FLOAT", "BLOB"))
        connection.executemany(
            "INSERT INTO apscheduler_jobs VALUES (?, ?, ?)",
            [(row.id, row.next_run_time, row.job_state) for row in ROWS],
        )
    connection.close()
    return path


@pytest.fixture
async def in_postgres(empty_database: DatabaseUrl) -> AsyncIterator[asyncpg.Connection]:
    """A connection to a PostgreSQL database with v3's table and rows."""
    connection = await asyncpg.connect(**empty_database.asyncpg_arguments())
    await connection.execute(V3_TABLE.format("apscheduler_jobs", "DOUBLE PRECISION", "BYTEA"))
    await connection.executemany(
        "INSERT INTO apscheduler_jobs VALUES ($1, $2, $3)", [(row.id, row.next_run_time, row.job_state) for row in ROWS]
    )
    yield connection
    await connection.close()


async def test_sqlite_gives_all_rows_in_order_and_as_they_were(sqlite_file: Path) -> None:
    assert await all_rows(f"sqlite:///{sqlite_file}") == ROWS
    async with open_source(f"sqlite:///{sqlite_file}") as source:
        assert (await source.count(), source.kind) == (len(ROWS), "sqlite")


@pytest.mark.parametrize("scheme", ["postgresql", "postgres", "postgresql+psycopg2", "postgresql+asyncpg"])
async def test_postgresql_gives_all_rows_by_whatever_driver_v3s_address_names(
    scheme: str, empty_database: DatabaseUrl, in_postgres: asyncpg.Connection
) -> None:
    url = empty_database.text.replace("postgresql:", f"{scheme}:", 1)
    assert await all_rows(url) == ROWS
    async with open_source(url) as source:
        assert (await source.count(), source.kind) == (len(ROWS), "postgresql")
        assert "***" in source.address or empty_database.password is None


async def test_a_table_of_another_name_in_a_schema_is_read(
    empty_database: DatabaseUrl, in_postgres: asyncpg.Connection
) -> None:
    await in_postgres.execute('CREATE SCHEMA "Old Jobs"')
    await in_postgres.execute('ALTER TABLE apscheduler_jobs SET SCHEMA "Old Jobs"')
    await in_postgres.execute('ALTER TABLE "Old Jobs".apscheduler_jobs RENAME TO "my jobs"')
    assert await all_rows(empty_database.text, table="Old Jobs.my jobs") == ROWS


@pytest.mark.parametrize("batch", [1, 7, 5000])
async def test_the_size_of_the_batches_changes_nothing(batch: int, sqlite_file: Path) -> None:
    async with open_source(f"sqlite:///{sqlite_file}") as source:
        found = [rows async for rows in source.rows(batch)]
    assert max(map(len, found)) <= batch
    assert [row for rows in found for row in rows] == ROWS


async def test_rows_with_long_states_come_in_smaller_batches_and_too_long_ones_cut_off(sqlite_file: Path) -> None:
    whole = ROWS[0].job_state
    with sqlite3.connect(sqlite_file) as connection:
        connection.execute("DELETE FROM apscheduler_jobs")
        long = b"x" * (MAX_PICKLE + 100)
        for number in range(12):
            state = whole if number == 5 else long
            connection.execute("INSERT INTO apscheduler_jobs VALUES (?, 1.0, ?)", (f"{number:02}", state))
    connection.close()
    async with open_source(f"sqlite:///{sqlite_file}") as source:
        found = [rows async for rows in source.rows()]
    assert all(sum(len(row.job_state) for row in rows) <= BATCH_BYTES for rows in found)
    rows = [row for rows in found for row in rows]
    assert [row.id for row in rows] == [f"{number:02}" for number in range(12)]
    assert {len(row.job_state) for row in rows} == {len(whole), MAX_PICKLE + 1}
    assert [finding.code for finding in read(rows[0]).findings] == ["unreadable_pickle"]


async def test_rows_that_hands_have_changed_are_read_too(sqlite_file: Path) -> None:
    with sqlite3.connect(sqlite_file) as connection:
        connection.execute("DELETE FROM apscheduler_jobs")
        for id, state in ((b"\xff\x01", b"N."), (7, b"N."), ("text", "N."), ("ü☕", b"")):  # noqa: A001
            connection.execute("INSERT INTO apscheduler_jobs VALUES (?, 1, ?)", (id, state))
    connection.close()
    found = await all_rows(f"sqlite:///{sqlite_file}", batch=1)
    assert {(row.id, row.job_state) for row in found} == {
        ("7", b"N."),
        ("text", b"N."),
        ("ü☕", b""),
        ("\ufffd\x01", b"N."),
    }
    assert all(row.next_run_time == 1.0 for row in found)


async def test_a_time_that_is_no_number_is_read_as_one_that_equals_no_time(sqlite_file: Path) -> None:
    with sqlite3.connect(sqlite_file) as connection:
        connection.execute("UPDATE apscheduler_jobs SET next_run_time = 'soon' WHERE next_run_time IS NOT NULL")
    connection.close()
    found = await all_rows(f"sqlite:///{sqlite_file}")
    assert any(row.next_run_time is not None for row in found)
    assert all(row.next_run_time is None or math.isnan(row.next_run_time) for row in found)


async def refused(url: str, table: str = "apscheduler_jobs") -> DuetimeError:
    with pytest.raises(DuetimeError) as caught:
        await all_rows(url, table=table)
    assert caught.value.message.startswith("expected ")
    return caught.value


async def test_a_table_that_is_not_v3s_is_refused(empty_database: DatabaseUrl, sqlite_file: Path) -> None:
    connection = await asyncpg.connect(**empty_database.asyncpg_arguments())
    await connection.execute("CREATE TABLE apscheduler_jobs (id text, next_run_time timestamptz, job_state jsonb)")
    await connection.execute("CREATE TABLE other (id text)")
    await connection.close()
    with sqlite3.connect(sqlite_file) as plain:
        plain.execute("CREATE TABLE other (id INTEGER, next_run_time TEXT, job_state TEXT)")
    plain.close()
    for url, table in (
        (empty_database.text, "apscheduler_jobs"),
        (empty_database.text, "other"),
        (empty_database.text, "no_such_table"),
        (empty_database.text, "no_such_schema.apscheduler_jobs"),
        (f"sqlite:///{sqlite_file}", "other"),
        (f"sqlite:///{sqlite_file}", "no_such_table"),
    ):
        error = await refused(url, table)
        assert isinstance(error, NotAV3Table), error
        assert "--table" in error.message


async def test_a_file_that_is_no_database_or_is_not_there_is_refused_and_none_is_made(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("not a database " * 1000)
    assert isinstance(await refused(f"sqlite:///{tmp_path}/text"), NotAV3Table)
    assert isinstance(await refused(f"sqlite:///{tmp_path}/missing"), SourceUnavailable)
    assert not (tmp_path / "missing").exists()


async def test_a_user_without_the_right_to_read_is_told_so(
    empty_database: DatabaseUrl, in_postgres: asyncpg.Connection
) -> None:
    await in_postgres.execute("CREATE ROLE stranger LOGIN PASSWORD 'stranger'")
    try:
        url = empty_database.text.replace(f"//{empty_database.user}", "//stranger:stranger", 1)
        url = url.replace(f"user={empty_database.user}", "user=stranger")
        assert isinstance(await refused(url), SourceRefused)
    finally:
        await in_postgres.execute("DROP ROLE stranger")


@pytest.mark.parametrize(
    "url",
    ["", "nothing", "oracle://a/b", "sqlite://", "sqlite:///:memory:", "postgresql://", "mssql+pyodbc://u:geheim@h/d"],
)
def test_an_address_of_nothing_that_can_be_read_is_refused(url: str) -> None:
    with pytest.raises(InvalidSource) as caught:
        open_source(url)
    assert "geheim" not in str(caught.value)


async def test_a_server_that_does_not_answer_is_said_to_be_unavailable() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and nobody listens
        port = taken.getsockname()[1]
        for scheme in ("postgresql", "mysql"):
            error = await refused(f"{scheme}://user:geheim@127.0.0.1:{port}/jobs")
            assert isinstance(error, SourceUnavailable), error
            assert "geheim" not in error.message


async def test_a_database_that_goes_away_in_the_middle_raises_a_typed_error(
    empty_database: DatabaseUrl, in_postgres: asyncpg.Connection
) -> None:
    async with open_source(empty_database.text) as source:
        batches = source.rows(100)
        assert await anext(batches) == ROWS[:100]
        server = await asyncpg.connect(**replace(empty_database, database="postgres").asyncpg_arguments())
        await server.execute(f'ALTER DATABASE "{empty_database.database}" ALLOW_CONNECTIONS false')
        await server.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1", empty_database.database
        )
        with pytest.raises(SourceUnavailable, match="run the command again"):
            await anext(batches)
        await server.execute(f'ALTER DATABASE "{empty_database.database}" ALLOW_CONNECTIONS true')
        await server.close()
        assert await source.count() == len(ROWS)  # by a new connection


@dataclass
class MariaDB:
    """A server of the test's own."""

    port: int
    process: subprocess.Popen[bytes]

    def connect(self, **options: Any) -> pymysql.connections.Connection[Any]:
        return pymysql.connect(host="127.0.0.1", port=self.port, user="v3", password="v3", **options)

    @property
    def url(self) -> str:
        return f"mysql://v3:v3@127.0.0.1:{self.port}/jobs?charset=utf8mb4"


@pytest.fixture
def mariadb(tmp_path: Path) -> Iterator[MariaDB]:
    """MariaDB on a free port of the loopback interface, with v3's table and rows, ended with the test."""
    data = tmp_path / "data"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    setup = tmp_path / "setup.sql"
    setup.write_text("CREATE DATABASE jobs;\nCREATE USER v3 IDENTIFIED BY 'v3';\nGRANT ALL ON *.* TO v3;\n")
    install = ["mariadb-install-db", "--no-defaults", f"--datadir={data}", "--auth-root-authentication-method=normal"]
    subprocess.run([*install, "--user=root", "--skip-test-db"], check=True, capture_output=True)
    process = subprocess.Popen(
        [
            "/usr/sbin/mariadbd", "--no-defaults", "--user=root", f"--datadir={data}", f"--port={port}",
            "--bind-address=127.0.0.1", f"--socket={tmp_path}/s", f"--pid-file={tmp_path}/pid", f"--init-file={setup}",
            f"--log-error={tmp_path}/log",
            "--character-set-server=utf8mb4",
        ],
    )  # fmt: skip
    server = MariaDB(port, process)
    try:
        asyncio.run(eventually(lambda: _answers(server), within=60))
        with server.connect(database="jobs", autocommit=True) as connection, connection.cursor() as cursor:
            cursor.execute(V3_TABLE.format("apscheduler_jobs", "DOUBLE", "BLOB"))
            cursor.executemany(
                "INSERT INTO apscheduler_jobs VALUES (%s, %s, %s)",
                [(row.id, row.next_run_time, row.job_state) for row in ROWS],
            )
        yield server
    finally:
        process.kill()
        process.wait()


def _answers(server: MariaDB) -> bool:
    try:
        server.connect(database="jobs").close()
    except pymysql.Error:
        return False
    return True


@pytest.mark.debian("mariadb-server")
def test_mariadb_gives_all_rows_and_says_what_is_wrong(mariadb: MariaDB) -> None:
    found = asyncio.run(all_rows(mariadb.url))
    assert {row.id: row for row in found} == {row.id: row for row in ROWS}
    assert len(found) == len(ROWS)
    assert asyncio.run(all_rows(mariadb.url.replace("mysql:", "mysql+mysqldb:"), 5000)) == found
    for url, table, kind in (
        (mariadb.url, "no_such_table", NotAV3Table),
        (mariadb.url, "other.apscheduler_jobs", NotAV3Table),
        (mariadb.url.replace("v3:v3@", "v3:wrong@"), "apscheduler_jobs", SourceRefused),
        (mariadb.url.replace("/jobs", "/no_such"), "apscheduler_jobs", SourceUnavailable),
    ):
        error = asyncio.run(refused(url, table))
        assert isinstance(error, kind), error

    async def in_the_middle() -> None:
        async with open_source(mariadb.url) as source:
            async for _ in source.rows(100):
                mariadb.process.kill()
                mariadb.process.wait()

    with pytest.raises(SourceUnavailable):
        asyncio.run(in_the_middle())
