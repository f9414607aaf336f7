"""What a look ahead says about changes of the clock."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

import pytest
from apscheduler.triggers.cron import CronTrigger

from duetime.triggers import parse_json, upcoming, upcoming_fires

SPRING = datetime(2027, 3, 27, 12, tzinfo=UTC)
AUTUMN = datetime(2027, 10, 30, 12, tzinfo=UTC)
GAP = "the clock goes from 02:00 to 03:00 on 28 March 2027"


def noted(data: dict[str, Any], now: datetime, count: int) -> list[tuple[str, str | None]]:
    trigger = parse_json({"timezone": "Europe/Berlin", **data}, now=now - timedelta(days=1))
    fires = upcoming_fires(trigger, count, after=now)
    assert [fire.fire_time for fire in fires] == upcoming(trigger, count, after=now)
    return [(f"{fire.fire_time:%d %H:%M%z}"[:-2], fire.note) for fire in fires]


def cron(expression: str, **more: Any) -> dict[str, Any]:
    return {"type": "cron", "expression": expression, **more}


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (
            cron("30 2 * * *"),
            [("28 03:00+02", f"{GAP}, and this fire is moved out of the gap"), ("29 02:30+02", None)],
        ),
        (cron("30 2 * * *", on_gap="skip"), [("29 02:30+02", f"{GAP}, so there is no fire at 02:30")]),
        (
            cron("0 9 * * *"),
            [("28 09:00+02", "the clock has gone forward by 1 hour since the fire before"), ("29 09:00+02", None)],
        ),
        # 03:00 is a time of the expression's own.
        (
            cron("0 2,3 28-30 * *"),
            [("28 03:00+02", "the clock has gone forward by 1 hour since the fire before"), ("29 02:00+02", None)],
        ),
        (
            cron("*/10 * 28 * *", start="2027-03-28T01:45"),
            [
                ("28 01:50+01", None),
                ("28 03:00+02", f"{GAP}, so there is no fire at 02:00, 02:10, 02:20, 02:30, 02:40 and others"),
            ],
        ),
        (
            {"type": "calendar_interval", "days": 1, "hour": 2, "minute": 30},
            [("28 03:00+02", f"{GAP}, and this fire is moved out of the gap"), ("29 02:30+02", None)],
        ),
        (
            {"type": "calendar_interval", "days": 1, "hour": 2, "minute": 30, "on_gap": "skip"},
            [("29 02:30+02", f"{GAP}, so there is no fire at 02:30")],
        ),
        (
            {"type": "calendar_interval", "days": 2, "hour": 2, "start_date": "2027-03-27", "on_gap": "skip"},
            [("29 02:00+02", "the clock has gone forward by 1 hour since the fire before")],
        ),
        (
            {"type": "rrule", "rrule": "FREQ=DAILY;BYHOUR=2;BYMINUTE=30;BYSECOND=0"},
            [("28 03:30+02", f"{GAP}, and this fire is moved out of the gap"), ("29 02:30+02", None)],
        ),
        (
            {"type": "or", "triggers": [cron("30 2 * * *", timezone="Europe/Berlin")], "exclude": ["2027-03-29"]},
            [("28 03:00+02", f"{GAP}, and this fire is moved out of the gap"), ("30 02:30+02", None)],
        ),
    ],
)
def test_in_spring_a_note_says_what_became_of_the_gap(data: dict[str, Any], expected: list[Any]) -> None:
    assert noted(data, SPRING, len(expected)) == expected


TWICE = "the clock shows 02:30 twice on this day, and this is the {} time"


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (
            cron("30 2 * * *"),
            [
                ("31 02:30+02", TWICE.format("first")),
                ("01 02:30+01", "the clock has gone back by 1 hour since the fire before"),
            ],
        ),
        (
            cron("30 2 * * *", on_fold="both"),
            [
                ("31 02:30+02", TWICE.format("first")),
                ("31 02:30+01", TWICE.format("second") + "; the clock has gone back by 1 hour since the fire before"),
                ("01 02:30+01", None),
            ],
        ),
        (cron("0 9 1 1 *"), [("01 09:00+01", "the clock has gone back by 1 hour since the fire before")]),
        (cron("0 9 1 6 *"), [("01 09:00+02", None), ("01 09:00+02", None)]),
    ],
)
def test_in_autumn_a_note_says_which_of_two_times_it_is(data: dict[str, Any], expected: list[Any]) -> None:
    assert noted(data, AUTUMN, len(expected)) == expected


def test_the_first_fire_has_a_note_if_it_is_moved_though_none_came_before() -> None:
    for data in (
        {"type": "cron", "expression": "30 2 * * *"},
        {"type": "rrule", "rrule": "FREQ=DAILY;BYHOUR=2;BYMINUTE=30;BYSECOND=0"},
    ):
        trigger = parse_json({**data, "timezone": "Europe/Berlin"}, now=SPRING)
        notes = [fire.note for fire in upcoming_fires(trigger, 2)]
        assert notes == [f"{GAP}, and this fire is moved out of the gap", None]
    for hour in (9, 3):
        daily = parse_json({"type": "cron", "expression": f"0 {hour} * * *", "timezone": "Europe/Berlin"}, now=SPRING)
        assert upcoming_fires(daily, 1)[0].note is None


def test_there_is_nothing_to_note_where_clocks_do_not_change() -> None:
    fires = upcoming_fires(parse_json({"type": "interval", "hours": 1}, now=SPRING), 100)
    assert [fire.note for fire in fires] == [None] * 100
    assert {after.fire_time - before.fire_time for before, after in pairwise(fires)} == {timedelta(hours=1)}


def test_triggers_of_apscheduler_have_notes_too() -> None:
    stock = CronTrigger(hour=9, timezone="Europe/Berlin", start_time=SPRING)
    notes = [fire.note for fire in upcoming_fires(stock, 2, after=SPRING)]
    assert notes == ["the clock has gone forward by 1 hour since the fire before", None]
