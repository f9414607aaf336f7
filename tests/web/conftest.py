from __future__ import annotations

from collections.abc import AsyncIterator

import httpx
import pytest

from .door import DoorRuntime, client_of, served


@pytest.fixture
def runtime() -> DoorRuntime:
    return DoorRuntime()


@pytest.fixture
async def client(runtime: DoorRuntime) -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(served(runtime)) as client:
        yield client
