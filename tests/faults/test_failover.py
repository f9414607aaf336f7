"""A standby takes over: it is read-only until it is promoted, and then it is where the work goes on."""

from __future__ import annotations

import asyncio

import pytest
from apscheduler.triggers.date import DateTrigger

from duetime.errors import StoreUnavailable

from ..store.network import Network
from ..store.parts import ago
from ..waiting import eventually
from .parts import CALL_TIMEOUT, MARGIN, a_node, add_often, connected, is_whole, measured, works
from .servers import IMMEDIATE, OwnServer


async def test_work_goes_on_when_the_standby_is_promoted() -> None:
    loop = asyncio.get_running_loop()
    primary = OwnServer()
    standby: OwnServer | None = None
    try:
        # No answer to a commit before the standby has it: nothing is lost with the primary.
        await primary.start()
        standby = await primary.copy()
        await standby.start()
        await primary.administer("alter system set synchronous_standby_names = '*'", "select pg_reload_conf()")
        async with Network(primary.url) as network, a_node(network.url) as duetime:
            await add_often(duetime)
            await primary.stop(IMMEDIATE)
            await network.lead_to(standby.url)
            for _ in range(2):
                began = loop.time()
                with pytest.raises(StoreUnavailable):
                    await duetime.scheduler.add_schedule("neighbour", DateTrigger(ago()), id="never")
                assert loop.time() - began < CALL_TIMEOUT + MARGIN
            async with connected(standby.url) as connection:
                assert await connection.fetchval("select pg_promote()")
                promoted_at = loop.time()
                await works(duetime)
                measured("first success after a promotion", loop.time() - promoted_at)
                await is_whole(duetime, connection)
            await eventually(lambda: duetime._scheduler.store.database.outage is None)
    finally:
        await primary.remove()
        if standby is not None:
            await standby.remove()
