"""Fixtures: real server processes, databases for them, and a sink for what their jobs do."""

from __future__ import annotations

import asyncio
import itertools
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from duetime.database_url import DatabaseUrl

from .server import Server, closing
from .sink import Sink, running_sink

_numbers = itertools.count(1)

Sql = Callable[..., list[Any]]


@pytest.fixture(scope="module")
def own_database(server: DatabaseUrl) -> Iterator[DatabaseUrl]:
    """A database without anything in it, for all tests of a module."""
    name = f"e{os.getpid()}_{next(_numbers)}"
    run_sql(server, f"create database {name}")
    yield replace(server, database=name)
    run_sql(server, f"drop database {name} with (force)")


def run_sql(database: DatabaseUrl, statement: str, *arguments: Any) -> list[Any]:
    """Run one statement and return its rows."""

    async def run() -> list[Any]:
        connection = await asyncpg.connect(**database.asyncpg_arguments())
        try:
            found: list[Any] = await connection.fetch(statement, *arguments)
            return found
        finally:
            await connection.close()

    return asyncio.run(run())


@pytest.fixture(scope="module")
def sink_of_the_module() -> Iterator[Sink]:
    with running_sink() as sink:
        yield sink


@pytest.fixture
def sink(sink_of_the_module: Sink) -> Iterator[Sink]:
    """What jobs of the module send to; a test that fails while it is held leaves it open for the next."""
    yield sink_of_the_module
    sink_of_the_module.let_go()


@pytest.fixture
def new_server(tmp_path: Path) -> Iterator[Callable[..., Server]]:
    """Makes servers in directories of their own, not started; all are gone after the test."""
    servers: list[Server] = []

    def make(*command: str, **environment: str) -> Server:
        # The space is meant: people have such directories.
        directory = tmp_path / f"server {len(servers) + 1}"
        directory.mkdir()
        servers.append(Server(directory, *command, environment=environment))
        return servers[-1]

    with closing(servers):
        yield make


APPLICATIONS = Path(__file__).with_name("applications")


def copy_application(name: str, directory: Path) -> None:
    """Put an application of these tests where a server finds it."""
    directory.mkdir(parents=True, exist_ok=True)
    shutil.copy(APPLICATIONS / f"{name}.py", directory)
