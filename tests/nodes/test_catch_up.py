"""Several nodes that come up after a downtime: what becomes of the fires that fell due meanwhile."""

from __future__ import annotations

from collections import Counter
from datetime import timedelta
from typing import Any

import asyncpg
import pytest
from apscheduler import current_job

from duetime.options import CatchUp, Overlap, TaskOptions
from duetime.settings import DatabaseUrl

from ..store.parts import a_schedule, a_store, add, ago, every
from ..waiting import eventually
from .test_overlap import Work, all_have_ended, ledger, nodes, own_nodes

DOWN = 30


async def fell_due(database: DatabaseUrl, count: int, **options: Any) -> None:
    """Store a schedule that nobody was up to fire: ``count`` times, a second apart, the last one DOWN seconds ago."""
    first = ago(DOWN + count - 1)
    trigger = every(1, first)
    trigger.end_time = first + timedelta(seconds=count - 1, milliseconds=500)
    async with a_store(database) as desk:
        await add(desk, a_schedule("s", trigger, metadata=TaskOptions(**options).to_metadata()))


def states(fires: list[asyncpg.Record]) -> Counter[str]:
    return Counter(fire["state"] for fire in fires)


async def test_all_runs_every_one_once_and_in_order_over_the_nodes(
    database: DatabaseUrl, connection: asyncpg.Connection
) -> None:
    """Although the schedule's own overlap policy would skip all but the first."""
    await fell_due(database, 25, catch_up=CatchUp.all, overlap=Overlap.skip)
    work = Work()
    async with nodes(database, "a b c", work, TaskOptions()):
        await eventually(lambda: connection.fetchval("select count(*) = 24 from duetime.jobs where waits"))
        work.let_go.set()
        await eventually(lambda: all_have_ended(connection))
    fires = await ledger(connection)
    assert states(fires) == {"succeeded": 25}
    assert work.most == 1
    assert work.order == [fire["fire_time"].isoformat() for fire in fires]


async def test_all_may_run_them_at_once(database: DatabaseUrl, connection: asyncpg.Connection) -> None:
    await fell_due(database, 12, catch_up=CatchUp.all, catch_up_overlap=Overlap.allow)
    work = Work()
    async with nodes(database, "a b", work, TaskOptions()):
        await eventually(lambda: work.most == 12)
        work.let_go.set()
        await eventually(lambda: all_have_ended(connection))
    assert states(await ledger(connection)) == {"succeeded": 12}


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"catch_up": CatchUp.latest}, {"coalesced": 9, "succeeded": 1}),
        ({"catch_up": CatchUp.none}, {"missed": 10}),
        ({"catch_up": CatchUp.all, "catch_up_window": timedelta(seconds=DOWN + 4.9)}, {"missed": 5, "succeeded": 5}),
        ({"catch_up_window": timedelta(seconds=10)}, {"missed": 10}),
    ],
    ids=["latest", "none", "all within a window", "a window alone"],
)
async def test_each_fire_that_does_not_run_has_its_row_and_its_reason(
    database: DatabaseUrl, connection: asyncpg.Connection, options: dict[str, Any], expected: dict[str, int]
) -> None:
    ran: list[Any] = []

    async def work(_node: str) -> None:
        ran.append(current_job.get().scheduled_fire_time)

    await fell_due(database, 10, **options)
    async with own_nodes(database, "a b", work, TaskOptions()):
        await eventually(lambda: connection.fetchval("select count(*) = 10 from duetime.fires"))
        await eventually(lambda: all_have_ended(connection))
    fires = await ledger(connection)
    found = states(fires)
    if "catch_up_window" in options and "succeeded" in expected:  # the nodes took a moment to start
        assert found["missed"] >= expected["missed"]
        assert found["missed"] + found["succeeded"] == 10
    else:
        assert found == expected
    assert len(ran) == found["succeeded"]
    assert all(fire["reason"] for fire in fires if fire["state"] != "succeeded")
