"""A short run of the benchmarks: ratios to raw APScheduler 4 and to the floor, with margins for a noisy machine.

Each bound is a fraction of what is measured on a quiet machine, so what fails here is a change in kind: a round trip
more for every job, a statement for each of a batch, a lock that lets one job through at a time.
"""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator

import pytest
from benchmarks.environments import python_of
from benchmarks.errors import PeerFailed
from benchmarks.lab import Case, Lab
from benchmarks.scale import SHORT
from benchmarks.server import Server
from benchmarks.suite import add, firing

from benchmarks import driver

ONE_OFFS = 500


async def _python_of(peer: str) -> str:
    """Return this environment's Python for what it has: then it is this tree that is measured."""
    return sys.executable if peer in ("duetime", "floor") else await python_of(peer)


@pytest.fixture
async def lab(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Lab]:
    monkeypatch.setattr(driver, "python_of", _python_of)
    async with Server(None) as server, Lab(server, SHORT) as lab:
        yield lab


async def recorded_per_second(lab: Lab, peer: str) -> float:
    fired = await firing.fire(lab, Case(peer), [0.0] * ONE_OFFS)
    fired.check()
    return fired.rates()["ran and recorded"][0]


async def test_a_burst_is_at_least_three_times_as_fast_as_with_the_stock_store(lab: Lab) -> None:
    try:
        await python_of("apscheduler4")
    except PeerFailed as exc:
        pytest.skip(f"raw APScheduler 4 {exc}")
    stock = await recorded_per_second(lab, "apscheduler4")
    assert await recorded_per_second(lab, "duetime") >= 3 * stock


async def test_adding_one_after_another_is_no_slower_than_a_fifth_of_a_plain_insert(lab: Lab) -> None:
    speed = {}
    for peer in ("floor", "duetime"):
        figures = await add.measure(lab, Case(peer, seconds=0.5))
        speed[peer] = figures["one after another"][0]
    assert speed["duetime"] >= 0.2 * speed["floor"]


async def test_every_one_off_of_a_burst_is_in_the_ledger_and_costs_at_most_two_round_trips(lab: Lab) -> None:
    fired = await firing.fire(
        lab, Case("duetime"), [0.0] * 200, counted=True, audit="select count(*) from duetime.fires"
    )
    fired.check()
    assert len(fired.runs) == 200
    assert fired.audited == 200
    assert 0 < fired.counts["round_trips"] <= 2 * 200
