"""Fixtures: one embedded PostgreSQL for the whole run, and in it a database of its own for each test."""

from __future__ import annotations

import asyncio
import itertools
import os
from collections import Counter
from collections.abc import AsyncIterator, Generator, Iterator
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from duetime.local import LocalDatabase
from duetime.settings import DatabaseUrl
from duetime.store.schema import migrate

from .matrix.selection import reason_to_go_past, reason_to_leave_out
from .template import TEMPLATE

_numbers = itertools.count(1)


# What the end of the run tells: tests by the reason for what was done with them.
_left_out: dict[str, list[str]] = {}
_past_the_pooler: dict[str, list[str]] = {}


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option of the runs of ``make matrix``."""
    parser.addoption(
        "--matrix",
        choices=["server", "versions"],
        help="leave out what need not run on each server: for other versions of packages less than for servers alone",
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what a run of ``make matrix`` need not repeat."""
    matrix = config.getoption("--matrix")
    if matrix is None:
        return
    kept, left = [], []
    for item in items:
        reason = reason_to_leave_out(
            item.nodeid, getattr(item, "fixturenames", ()), other_versions=matrix == "versions"
        )
        if reason is None:
            kept.append(item)
        else:
            left.append(item)
            _left_out.setdefault(reason, []).append(item.nodeid)
    items[:] = kept
    config.hook.pytest_deselected(items=left)


def pytest_deselected(items: list[pytest.Item]) -> None:
    """Remember the tests that were left out because they need a Debian package."""
    remembered = {nodeid for nodeids in _left_out.values() for nodeid in nodeids}
    for item in items:
        if item.get_closest_marker("debian") and item.nodeid not in remembered:
            _left_out.setdefault("needs a Debian package (.ci/run installs it and runs them)", []).append(item.nodeid)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Make what a test has logged text that one process can tell another: some log halves of surrogate pairs."""
    report = yield
    report.sections = [(name, text.encode("utf-8", "backslashreplace").decode()) for name, text in report.sections]
    return report


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Hand on what a process of a run that is shared among several has to tell."""
    output = getattr(session.config, "workeroutput", None)
    if output is not None:
        output["told"] = (_left_out, _past_the_pooler)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Take in what such a process has told. Each has left out the same tests, and run others than the others."""
    left_out, past_the_pooler = getattr(node, "workeroutput", {}).get("told", ({}, {}))
    _left_out.update(left_out)
    for reason, nodeids in past_the_pooler.items():
        _past_the_pooler.setdefault(reason, []).extend(nodeids)


def pytest_report_header() -> list[str]:
    """Say which versions are tested, and on which server if it is not the embedded one."""
    names = ("anyio", "asyncpg", "sqlalchemy", "pydantic", "fastapi", "starlette")
    given = {name: os.environ.get(name) for name in ("DUETIME_TEST_SERVER", "DUETIME_TEST_POOLER")}
    return [
        "with: " + ", ".join(f"{name} {version(name)}" for name in names),
        *(f"{name}: {DatabaseUrl.parse(value).redacted}" for name, value in given.items() if value),
    ]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say which tests were left out, and which went past the pooler, and why."""
    for what, tests in (("left out", _left_out), ("past the pooler", _past_the_pooler)):
        for reason, nodeids in tests.items():
            terminalreporter.section(f"{what}: {reason}")
            for file, count in Counter(nodeid.partition("::")[0] for nodeid in nodeids).items():
                terminalreporter.line(f"{file}: {count}")


async def _administer(server: DatabaseUrl, *statements: str) -> None:
    connection = await asyncpg.connect(**server.asyncpg_arguments())
    try:
        for statement in statements:
            await connection.execute(statement)
    finally:
        await connection.close()


async def _make_template(server: DatabaseUrl) -> None:
    await _administer(server, f"drop database if exists {TEMPLATE} with (force)", f"create database {TEMPLATE}")
    connection = await asyncpg.connect(**replace(server, database=TEMPLATE).asyncpg_arguments())
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
def way_to_the_server(server: DatabaseUrl, request: pytest.FixtureRequest) -> DatabaseUrl:
    """The way to the server that the test takes: through the pooler of DUETIME_TEST_POOLER, where there is one.

    ``matrix/selection.py`` says which tests go past it.
    """
    given = os.environ.get("DUETIME_TEST_POOLER")
    if not given:
        return server
    if reason := reason_to_go_past(request.node.nodeid):
        _past_the_pooler.setdefault(reason, []).append(request.node.nodeid)
        return server
    return DatabaseUrl.parse(given)


@pytest.fixture
async def empty_database(server: DatabaseUrl, way_to_the_server: DatabaseUrl) -> AsyncIterator[DatabaseUrl]:
    """A database without anything in it."""
    name = f"t{os.getpid()}_{next(_numbers)}"
    await _administer(server, f"create database {name}")
    yield replace(way_to_the_server, database=name)
    await _administer(server, f"drop database {name} with (force)")


@pytest.fixture
async def database(server: DatabaseUrl, way_to_the_server: DatabaseUrl) -> AsyncIterator[DatabaseUrl]:
    """A database with Duetime's schema, empty."""
    name = f"t{os.getpid()}_{next(_numbers)}"
    await _administer(server, f"create database {name} template {TEMPLATE}")
    yield replace(way_to_the_server, database=name)
    await _administer(server, f"drop database {name} with (force)")


@pytest.fixture
async def connection(server: DatabaseUrl, database: DatabaseUrl) -> AsyncIterator[asyncpg.Connection]:
    """A plain connection to the test's database, past any pooler, to look at what is stored."""
    connection = await asyncpg.connect(**replace(server, database=database.database).asyncpg_arguments())
    yield connection
    await connection.close()
