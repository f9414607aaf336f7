from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from apscheduler import Event

from duetime.settings import DatabaseUrl
from duetime.store import PostgresDataStore

from .parts import a_store, a_task


@pytest.fixture
async def events(database: DatabaseUrl, store: PostgresDataStore) -> AsyncIterator[list[Event]]:
    """What the store has told this process, in order."""
    seen: list[Event] = []
    subscription = store._event_broker.subscribe(seen.append)
    yield seen
    subscription.unsubscribe()


@pytest.fixture
async def store(database: DatabaseUrl) -> AsyncIterator[PostgresDataStore]:
    """A started store with the task ``work`` in it."""
    async with a_store(database) as store:
        await store.add_task(a_task())
        yield store
