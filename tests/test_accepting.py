"""The servers of tests leave nothing open, whenever they are closed: a leak would fail some later test."""

from __future__ import annotations

import asyncio
import gc
import socket
import warnings

import pytest

from .accepting import Acceptor


async def _never(_reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
    await asyncio.Event().wait()


async def _close_after(rounds: int) -> None:
    acceptor = Acceptor(listener := socket.create_server(("127.0.0.1", 0)), _never)
    with socket.create_connection(listener.getsockname()):
        for _ in range(rounds):
            await asyncio.sleep(0)
        await acceptor.close()


@pytest.mark.parametrize("rounds", range(8))
def test_a_server_that_is_closed_at_any_moment_leaves_nothing_open(rounds: int) -> None:
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        asyncio.run(_close_after(rounds))
        gc.collect()
    assert [str(each.message) for each in told] == []
