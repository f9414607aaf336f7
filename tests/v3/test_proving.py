"""Fires by v3's rules beside ours: what counts as explained, and what does not."""

from __future__ import annotations

from datetime import date, datetime, timedelta

import pytest

from duetime.triggers import parse_json
from duetime.v3.converting import convert
from duetime.v3.model import V3CalendarInterval, V3Trigger
from duetime.v3.proving import (
    DELIBERATE_FIX,
    UNEXPLAINED,
    V3_DST_FAULT,
    Difference,
    compare,
    our_fire_times,
)

from .jobs import cron, interval, utc, zone
from .stored import Stored, stored_rows

HOUR = timedelta(hours=1)
DAY = timedelta(days=1)


def differences(trigger: V3Trigger, v3: list[datetime], count: int = 50) -> list[Difference]:
    """Compare what real v3 said with what becomes of the trigger."""
    form = convert(trigger, v3[0], v3[0] - DAY)
    assert form.stored is not None
    own = parse_json(form.stored, now=v3[0])
    return compare(trigger, v3, our_fire_times(own, v3[0], count), until=v3[-1])


def test_a_midnight_that_v3_loses_is_its_fault() -> None:
    # Real v3: daily at 00:00 in Berlin goes from 28 to 30 March 2027.
    v3 = [utc("2027-03-26T23:00"), utc("2027-03-27T23:00"), utc("2027-03-29T22:00"), utc("2027-03-30T22:00")]
    [lost] = differences(cron(hour="0"), v3)
    assert (lost.v3, lost.ours, lost.cause) == (None, utc("2027-03-28T22:00"), V3_DST_FAULT)
    assert "2027-03-29 00:00:00" in lost.text
    assert "goes forward" in lost.text


def test_a_first_of_the_month_that_v3_loses_days_after_the_change_is_its_fault() -> None:
    v3 = [utc("2027-02-28T23:00"), utc("2027-04-30T22:00")]
    [lost] = differences(cron(hour="0", day="1"), v3)
    assert (lost.ours, lost.cause) == (utc("2027-03-31T22:00"), V3_DST_FAULT)


def test_a_time_in_the_gap_is_one_difference_with_both_times() -> None:
    v3 = [utc("2027-03-27T01:30"), utc("2027-03-28T01:30"), utc("2027-03-29T00:30")]
    [moved] = differences(cron(hour="2", minute="30"), v3)
    assert (moved.v3, moved.ours, moved.cause) == (utc("2027-03-28T01:30"), utc("2027-03-28T01:00"), V3_DST_FAULT)


def test_a_time_of_day_that_fires_twice_in_v3_is_fixed_on_purpose() -> None:
    v3 = [utc("2027-10-30T00:30"), utc("2027-10-31T00:30"), utc("2027-10-31T01:30"), utc("2027-11-01T01:30")]
    [twice] = differences(cron(hour="2", minute="30"), v3)
    assert (twice.v3, twice.ours, twice.cause) == (utc("2027-10-31T01:30"), None, DELIBERATE_FIX)


def test_an_interval_on_the_clock_of_the_wall_is_v3s_fault() -> None:
    # Real v3.10.4 on zoneinfo: every 12 hours in Berlin.
    v3 = [utc(f"2027-03-{each}") for each in ("27T11:00", "27T23:00", "28T10:00", "28T22:00", "29T10:00")]
    found = differences(interval("2027-03-27T11:00", hours=12), v3)
    assert {each.cause for each in found} == {V3_DST_FAULT}
    assert len(found) == 3
    assert all(each.v3 and each.ours and each.ours - each.v3 == HOUR for each in found[:-1])


@pytest.mark.parametrize("off", [-HOUR, HOUR, DAY])
def test_a_difference_far_from_any_change_of_the_clock_is_unexplained(off: timedelta) -> None:
    v3 = [utc(f"2027-06-{day:02}T07:00") for day in range(1, 20)]
    v3[8] += off
    v3 = sorted(set(v3))
    assert {each.cause for each in differences(cron(hour="9"), v3)} == {UNEXPLAINED}


def test_a_wrong_time_of_ours_is_unexplained_although_the_clock_changes() -> None:
    v3 = [utc("2027-03-26T23:00"), utc("2027-03-27T23:00"), utc("2027-03-28T22:00"), utc("2027-03-29T22:00")]
    ours = [v3[0], v3[1], utc("2027-03-28T23:00"), v3[3]]
    found = compare(cron(hour="0"), v3, ours, until=None)
    assert {each.cause for each in found} == {UNEXPLAINED}


def test_an_interval_that_is_off_without_a_reason_is_unexplained() -> None:
    v3 = [utc(f"2027-06-01T{hour:02}:00") for hour in (1, 2, 3, 5, 6)]
    assert {each.cause for each in differences(interval("2027-06-01T01:00", hours=1), v3)} == {UNEXPLAINED}


def test_weekdays_by_the_wrong_number_are_unexplained_in_summer_and_over_a_change_of_the_clock() -> None:
    wrong = parse_json(
        {"type": "cron", "expression": "0 9 * * 0", "timezone": "Europe/Berlin"}, now=utc("2027-03-01T00:00")
    )
    v3 = [utc("2027-03-01T08:00") + week * 7 * DAY for week in range(4)] + [
        utc("2027-03-29T07:00"),
        utc("2027-04-05T07:00"),
    ]
    found = compare(cron(day_of_week="0", hour="9"), v3, our_fire_times(wrong, None, 6), until=v3[-1])
    assert UNEXPLAINED in {each.cause for each in found}


def test_a_calendar_interval_has_no_known_faults() -> None:
    trigger = V3CalendarInterval(0, 0, 0, 1, 2, 30, 0, date(2027, 3, 26), None, zone())
    v3 = [utc("2027-03-26T01:30"), utc("2027-03-27T01:30"), utc("2027-03-29T00:30")]
    assert differences(trigger, v3) == []


CONVERTED = ("CronTrigger", "IntervalTrigger", "DateTrigger", "CalendarIntervalTrigger")
RELEASES = ("3.6.3", "3.7.0", "3.8.1", "3.9.1", "3.10.4", "3.11.3")


def stored_of(release: str) -> list[Stored]:
    return [each for each in stored_rows(release) if each.asked["trigger"]["type"] in CONVERTED and each.fires]


def test_the_rows_are_there() -> None:
    assert all(len(stored_of(release)) > 300 for release in RELEASES)
