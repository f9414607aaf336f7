"""A node knows the database's time, whatever its own clock says."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta

import pytest
from time_machine import travel

from duetime.settings import DatabaseUrl
from duetime.store.clock import DatabaseClock

from ..store.parts import a_store

T0 = datetime(2027, 3, 28, 1, 0, tzinfo=UTC)
NEAR = 0.05
"""Seconds within which two readings of a clock one after the other agree, on a machine that is busy."""


def learned(*, round_trip: float = 0.02, since: float = 0, time_then: datetime = T0) -> DatabaseClock:
    """Return a clock that has learned one time, some seconds ago."""
    clock = DatabaseClock()
    answered_at = time.monotonic() - since
    clock.learn(time_then, answered_at - round_trip, answered_at)
    return clock


def test_before_the_database_has_said_anything_the_hosts_time_is_used() -> None:
    assert DatabaseClock().timestamp() == pytest.approx(time.time(), abs=NEAR)
    assert abs(DatabaseClock().host_offset) < timedelta(seconds=NEAR)


def test_the_answer_is_taken_to_be_from_the_middle_of_the_round_trip() -> None:
    clock = learned(round_trip=2)
    assert clock.timestamp() == pytest.approx(T0.timestamp() + 1, abs=NEAR)


def test_time_goes_on_from_there() -> None:
    assert learned(since=100, round_trip=0).now() - T0 == pytest.approx(
        timedelta(seconds=100), abs=timedelta(seconds=NEAR)
    )


def test_of_several_answers_the_quickest_counts() -> None:
    """The slow one was made at the end of its round trip, which nobody can know: it seems to be 0.25 s ahead."""
    clock = learned(round_trip=0.01)
    now = time.monotonic()
    clock.learn(T0, now - 0.5, now)
    assert clock.timestamp() == pytest.approx(T0.timestamp(), abs=NEAR)
    clock.learn(T0 + timedelta(seconds=0.2), now - 0.005, now)
    assert clock.timestamp() == pytest.approx(T0.timestamp() + 0.2, abs=NEAR)


@pytest.mark.parametrize("hours", [1, -1])
def test_an_answer_that_cannot_be_true_together_with_a_quicker_one_counts_at_once(hours: int) -> None:
    """The host was suspended, and its monotonic clock stood still; or the database's clock has been set."""
    clock = learned(round_trip=0.01)
    now = time.monotonic()
    clock.learn(T0 + timedelta(hours=hours), now - 0.5, now)
    assert clock.now() - T0 == pytest.approx(timedelta(hours=hours, seconds=0.25), abs=timedelta(seconds=NEAR))


def test_an_answer_is_forgotten_after_five_minutes_because_clocks_drift() -> None:
    clock = learned(round_trip=0.001, since=301)
    now = time.monotonic()
    clock.learn(T0, now - 0.5, now)
    assert clock.timestamp() == pytest.approx(T0.timestamp() + 0.25, abs=NEAR)


@pytest.mark.parametrize("skew", [-300, 300, 86_400])
def test_a_host_clock_that_is_set_changes_nothing_but_the_offset(skew: int) -> None:
    clock = learned(time_then=datetime.now(UTC), round_trip=0)
    before = clock.timestamp()
    with travel(time.time() + skew, tick=True):
        # time_machine's monotonic clock goes on as ever.
        assert clock.timestamp() == pytest.approx(before, abs=NEAR)
        assert clock.host_offset.total_seconds() == pytest.approx(skew, abs=NEAR)
        assert clock.wait_for(datetime.fromtimestamp(before + 5, UTC)) == pytest.approx(5, abs=NEAR)


async def test_each_answer_that_carries_the_databases_time_is_learned_from(database: DatabaseUrl) -> None:
    async with a_store(database) as store:
        with travel(time.time() + 300, tick=True):
            await store.database.fetch("next_work", deadline=None)
            assert store.database.clock.host_offset.total_seconds() == pytest.approx(300, abs=1)
