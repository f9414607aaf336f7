"""Fixtures: one embedded PostgreSQL for the whole run, and in it a database of its own for each test."""

from __future__ import annotations

import asyncio
import itertools
import os
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path

import asyncpg
import pytest

from duetime.local import LocalDatabase
from duetime.settings import DatabaseUrl
from duetime.store.schema import migrate

_numbers = itertools.count(1)
_TEMPLATE = "duetime_template"


_left_out: list[str] = []


def pytest_deselected(items: list[pytest.Item]) -> None:
    """Remember the tests that were left out: they need a Debian package, or are the storm."""
    _left_out.extend(
        item.nodeid for item in items if item.get_closest_marker("debian") or item.get_closest_marker("chaos")
    )


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say which tests were left out."""
    if _left_out:
        terminalreporter.section(
            "left out: needs a Debian package (.ci/run installs it and runs them), or `make chaos`"
        )
        for nodeid in _left_out:
            terminalreporter.line(nodeid)


async def _administer(server: DatabaseUrl, *statements: str) -> None:
    connection = await asyncpg.connect(**server.asyncpg_arguments())
    try:
        for statement in statements:
            await connection.execute(statement)
    finally:
        await connection.close()


async def _make_template(server: DatabaseUrl) -> None:
    await _administer(server, f"drop database if exists {_TEMPLATE} with (force)", f"create database {_TEMPLATE}")
    connection = await asyncpg.connect(**replace(server, database=_TEMPLATE).asyncpg_arguments())
    try:
        await migrate(connection, "duetime")
    finally:
        await connection.close()


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DatabaseUrl]:
    """A PostgreSQL server: the embedded one, or that of DUETIME_TEST_SERVER (a superuser's URL)."""
    if given := os.environ.get("DUETIME_TEST_SERVER"):
        url = DatabaseUrl.parse(given)
        asyncio.run(_make_template(url))
        yield url
        return
    local = LocalDatabase(
        Path(tmp_path_factory.mktemp("server")), max_connections=300, server_settings={"fsync": "off"}
    )
    url = asyncio.run(local.start())
    try:
        asyncio.run(_make_template(url))
        yield url
    finally:
        asyncio.run(local.stop())


@pytest.fixture
async def empty_database(server: DatabaseUrl) -> AsyncIterator[DatabaseUrl]:
    """A database without anything in it."""
    name = f"t{os.getpid()}_{next(_numbers)}"
    await _administer(server, f"create database {name}")
    yield replace(server, database=name)
    await _administer(server, f"drop database {name} with (force)")


@pytest.fixture
async def database(server: DatabaseUrl) -> AsyncIterator[DatabaseUrl]:
    """A database with Duetime's schema, empty."""
    name = f"t{os.getpid()}_{next(_numbers)}"
    await _administer(server, f"create database {name} template {_TEMPLATE}")
    yield replace(server, database=name)
    await _administer(server, f"drop database {name} with (force)")


@pytest.fixture
async def connection(database: DatabaseUrl) -> AsyncIterator[asyncpg.Connection]:
    """A plain connection to the test's database, to look at what is stored."""
    connection = await asyncpg.connect(**database.asyncpg_arguments())
    yield connection
    await connection.close()
