from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Iterator

import asyncpg
import pytest

from duetime.store.schema import migrate

from .servers import OwnServer, run

_numbers = itertools.count(1)


@pytest.fixture(scope="session")
def stoppable() -> Iterator[OwnServer]:
    """A server that only these tests use, and may stop."""
    server = OwnServer()
    try:
        yield server
    finally:
        asyncio.run(server.remove())


@pytest.fixture
async def own(stoppable: OwnServer) -> AsyncIterator[OwnServer]:
    """The same, running, with an empty database of Duetime's tables."""
    await stoppable.start()
    name = f"own{next(_numbers)}"
    admin = stoppable.admin
    await run(admin, f"create database {name}")
    stoppable.database = name
    connection = await asyncpg.connect(**stoppable.url.asyncpg_arguments())
    await migrate(connection, "duetime")
    await connection.close()
    yield stoppable
    await stoppable.start()
    await run(admin, f"drop database {name} with (force)")


@pytest.fixture
async def look(own: OwnServer) -> AsyncIterator[asyncpg.Connection]:
    """A plain connection, to look at what is stored before the server is stopped."""
    connection = await asyncpg.connect(**own.url.asyncpg_arguments())
    yield connection
    connection.terminate()
