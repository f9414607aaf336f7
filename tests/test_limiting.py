"""A trigger that ends by itself, wherever a trigger goes: into the store, into words, ahead of time."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from apscheduler.triggers.interval import IntervalTrigger

from duetime.errors import InvalidTrigger
from duetime.serializer import TypedJSONSerializer
from duetime.store.slow_plans import is_quick, is_stock
from duetime.triggers import Limited, describe, to_json, unlimited, upcoming

NOON = datetime(2026, 6, 1, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)


def hourly() -> IntervalTrigger:
    return IntervalTrigger(hours=1, start_time=NOON)


def test_it_ends_before_its_end_and_after_its_number() -> None:
    trigger = Limited(hourly(), until=NOON + 2 * HOUR)
    assert [trigger.next() for _ in range(4)] == [NOON, NOON + HOUR, None, None]
    assert trigger.reason == "it expired at 2026-06-01T14:00:00+00:00"
    trigger = Limited(hourly(), max_fires=2)
    assert [trigger.next() for _ in range(3)] == [NOON, NOON + HOUR, None]
    assert trigger.reason == "it has fired 2 times, and its max_fires is 2"


def test_it_comes_back_from_the_store_as_far_as_it_was() -> None:
    serializer = TypedJSONSerializer()
    trigger = Limited(hourly(), until=NOON + 9 * HOUR, max_fires=3)
    trigger.next()
    again = serializer.deserialize(serializer.serialize(trigger))
    assert isinstance(again, Limited)
    assert [again.next() for _ in range(3)] == [NOON + HOUR, NOON + 2 * HOUR, None]


def test_no_fire_time_is_lost_when_the_end_is_put_off() -> None:
    trigger = Limited(hourly(), until=NOON + HOUR)
    assert [trigger.next(), trigger.next()] == [NOON, None]
    trigger.until = NOON + 3 * HOUR
    assert [trigger.next(), trigger.next(), trigger.next()] == [NOON + HOUR, NOON + 2 * HOUR, None]


def test_what_is_passed_over_does_not_count() -> None:
    trigger = Limited(hourly(), max_fires=2)
    with trigger.uncounted():
        for _ in range(5):
            trigger.next()
    assert [trigger.next(), trigger.next(), trigger.next()] == [NOON + 5 * HOUR, NOON + 6 * HOUR, None]


def test_it_is_described_shown_and_previewed_as_what_it_limits() -> None:
    trigger = Limited(hourly(), until=NOON + 9 * HOUR, max_fires=3)
    assert to_json(trigger) == to_json(hourly())
    assert describe(trigger, now=NOON).startswith(describe(hourly(), now=NOON))
    assert "3 times" in describe(trigger, now=NOON)
    assert upcoming(trigger, 9) == [NOON, NOON + HOUR, NOON + 2 * HOUR]
    assert upcoming(trigger, 9, after=NOON) == [NOON + HOUR, NOON + 2 * HOUR]
    assert is_quick(trigger)
    assert is_stock(trigger)
    assert type(unlimited(trigger)) is IntervalTrigger


def test_a_limit_that_has_no_meaning_is_refused() -> None:
    with pytest.raises(InvalidTrigger):
        Limited(hourly(), max_fires=0)
    with pytest.raises(InvalidTrigger):
        Limited(hourly(), until=datetime(2026, 6, 1))  # noqa: DTZ001 - that is what is refused
