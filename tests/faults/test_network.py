"""A network that breaks, or swallows: the connections that are lost are given up, and others are made."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import asyncpg
import pytest
from apscheduler.triggers.date import DateTrigger

from duetime.errors import StoreUnavailable
from duetime.settings import DatabaseUrl

from ..store.network import Network
from ..store.parts import ago
from ..waiting import eventually
from .parts import (
    CALL_TIMEOUT,
    MARGIN,
    a_node,
    add_often,
    done,
    is_whole,
    measured,
    works,
)

BACK_WITHIN = 2.0 + 2 * MARGIN
"""Seconds within which work resumes, on a busy machine; the promise is two."""


async def cut(network: Network) -> None:
    await network.cut()


async def stall(network: Network) -> None:
    network.stall()


async def black_hole(network: Network) -> None:
    network.black_hole()


WAYS: list[Callable[[Network], Awaitable[None]]] = [cut, stall, black_hole]


@pytest.mark.parametrize("way", WAYS, ids=lambda way: str(way.__name__))
async def test_an_outage_of_the_network_is_waited_for_and_nothing_is_lost_or_doubled(
    database: DatabaseUrl, connection: asyncpg.Connection, way: Callable[[Network], Awaitable[None]]
) -> None:
    loop = asyncio.get_running_loop()
    async with Network(database) as network, a_node(network.url) as duetime:
        await add_often(duetime)
        await way(network)
        for _ in range(3):
            began = loop.time()
            with pytest.raises(StoreUnavailable):
                await duetime.scheduler.add_schedule("neighbour", DateTrigger(ago()), id="maybe")
            assert loop.time() - began < CALL_TIMEOUT + MARGIN
            began = loop.time()
            readiness = await duetime.service.readiness()
            assert (readiness.ready, readiness.database) == (False, "unreachable")
            assert loop.time() - began < 2 + MARGIN
        await asyncio.sleep(2)  # the loops are at it again and again by now
        before = len(done)
        await network.mend()
        back_at = loop.time()
        await works(duetime)
        took = loop.time() - back_at
        measured(f"first success after {way.__name__}", took)
        await eventually(lambda: len(done) > before + 1)
        measured(f"first fire after {way.__name__}", loop.time() - back_at)
        assert took < BACK_WITHIN
        await is_whole(duetime, connection)


async def test_connections_that_are_half_open_are_given_up(
    database: DatabaseUrl, connection: asyncpg.Connection
) -> None:
    loop = asyncio.get_running_loop()
    async with Network(database) as network, a_node(network.url) as duetime:
        await add_often(duetime)
        for _ in range(3):
            network.half_open()
            began = loop.time()
            await works(duetime)
            measured("first success after half open", loop.time() - began)
            before = len(done)
            await eventually(lambda: len(done) > before + 1)  # noqa: B023 - asked within this round
            took = loop.time() - began
            measured("first fire after half open", took)
            assert took < BACK_WITHIN
        await is_whole(duetime, connection)
