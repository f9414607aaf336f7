"""The one parser of triggers: JSON to fire times and back, in words, and ahead of time."""

from __future__ import annotations

import copy
from datetime import UTC, date, datetime, time, timedelta, timezone
from itertools import pairwise
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from apscheduler.abc import Trigger
from apscheduler.triggers.calendarinterval import CalendarIntervalTrigger
from apscheduler.triggers.combining import AndTrigger, OrTrigger
from apscheduler.triggers.cron import CronTrigger
from apscheduler.triggers.date import DateTrigger
from apscheduler.triggers.interval import IntervalTrigger
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter

from duetime.errors import InvalidTrigger, TriggerNeverFires, UnknownTimeZone
from duetime.triggers import TriggerSpec, describe, never_fires, parse, parse_json, to_json, upcoming

BERLIN = ZoneInfo("Europe/Berlin")
# A busy machine is no reason to fail.
unhurried = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

NOW = datetime(2026, 6, 3, 12, 0, 0, 250_000, tzinfo=UTC)  # a Wednesday


def times(data: dict[str, Any], count: int = 5, now: datetime = NOW) -> list[str]:
    """The next fire times as text without the zone."""
    return [f"{moment:%Y-%m-%d %H:%M:%S}" for moment in upcoming(parse_json(data, now=now), count)]


def cron(expression: str, timezone: str = "UTC", **more: Any) -> dict[str, Any]:
    return {"type": "cron", "expression": expression, "timezone": timezone, **more}


def weekdays(expression: str) -> str:
    """The weekdays on which a cron trigger fires, such as ``"mon tue"``."""
    fires = upcoming(parse_json(cron(f"0 0 * * {expression}"), now=datetime(2026, 6, 1, tzinfo=UTC)), 7)
    week = [fire for fire in fires if fire < datetime(2026, 6, 8, tzinfo=UTC)]
    return " ".join(f"{fire:%a}".lower() for fire in week)


# --- date


@pytest.mark.parametrize(
    ("data", "instant"),
    [
        ({"run_at": "2026-06-10T09:00:00Z"}, datetime(2026, 6, 10, 9, tzinfo=UTC)),
        ({"run_at": "2026-06-10T09:00:00+02:00"}, datetime(2026, 6, 10, 7, tzinfo=UTC)),
        ({"run_at": "2026-06-10T09:00:00"}, datetime(2026, 6, 10, 9, tzinfo=UTC)),
        ({"run_at": "2026-06-10 09:00", "timezone": "Europe/Berlin"}, datetime(2026, 6, 10, 7, tzinfo=UTC)),
        ({"run_at": "2026-06-10T07:00Z", "timezone": "Europe/Berlin"}, datetime(2026, 6, 10, 7, tzinfo=UTC)),
        ({"run_at": "2026-06-10"}, datetime(2026, 6, 10, tzinfo=UTC)),
        # A time that the clock skips, and one that it has twice.
        ({"run_at": "2026-03-29T02:30", "timezone": "Europe/Berlin"}, datetime(2026, 3, 29, 1, 30, tzinfo=UTC)),
        ({"run_at": "2026-10-25T02:30", "timezone": "Europe/Berlin"}, datetime(2026, 10, 25, 0, 30, tzinfo=UTC)),
        ({"run_at": "1999-01-01T00:00:00Z"}, datetime(1999, 1, 1, tzinfo=UTC)),
    ],
)
def test_a_date_fires_once_at_its_instant_even_in_the_past(data: dict[str, Any], instant: datetime) -> None:
    trigger = parse_json({"type": "date", **data}, now=NOW)
    fire = trigger.next()
    # Python holds a time that its zone has twice unequal to the same instant in any other zone.
    assert fire is not None
    assert (fire.astimezone(UTC), trigger.next()) == (instant, None)


def test_a_date_is_shown_in_the_zone_it_was_given_in() -> None:
    data = {"type": "date", "run_at": "2026-06-10T07:00Z", "timezone": "Europe/Berlin"}
    assert [str(fire) for fire in upcoming(parse_json(data))] == ["2026-06-10 09:00:00+02:00"]


# --- interval


def test_an_interval_fires_first_now_and_counts_elapsed_time_over_a_change_of_the_clock() -> None:
    # IntervalTrigger 4.0.0a6 adds to the wall clock of its start's zone: here it would lose an hour.
    for start in (datetime(2026, 10, 25, 1, 30, tzinfo=BERLIN), "2026-10-25T01:30:00+02:00"):
        trigger = parse_json({"type": "interval", "minutes": 30, "start": start}, now=NOW)
        fires = [fire.astimezone(UTC) for _ in range(6) if (fire := trigger.next())]
        assert fires[0] == datetime(2026, 10, 24, 23, 30, tzinfo=UTC)
        assert {after - before for before, after in pairwise(fires)} == {timedelta(minutes=30)}
    assert upcoming(parse_json({"type": "interval", "hours": 1}, now=NOW), 2) == [NOW, NOW + timedelta(hours=1)]


@pytest.mark.parametrize(
    ("start", "first"),
    [
        ("2026-06-03T11:59:30", "2026-06-03 11:59:30"),  # a caller's "now", half a minute on its way
        ("2026-06-03T11:55:00", "2026-06-03 12:05:00"),
        ("2026-01-01T00:05:00", "2026-06-03 12:05:00"),
        ("0001-01-01T00:05:00", "2026-06-03 12:05:00"),
        ("2026-06-04T00:01:00", "2026-06-04 00:01:00"),
    ],
)
def test_an_interval_keeps_the_rhythm_of_a_start_in_the_past_without_firing_what_has_been(
    start: str, first: str
) -> None:
    assert times({"type": "interval", "minutes": 10, "start": start}, 1) == [first]


def test_an_interval_ends_with_its_end_included() -> None:
    data = {"type": "interval", "days": 0.5, "start": "2026-06-04T00:00", "end": "2026-06-05T00:00:00Z"}
    assert times(data) == ["2026-06-04 00:00:00", "2026-06-04 12:00:00", "2026-06-05 00:00:00"]


# --- cron


@pytest.mark.parametrize(
    ("text", "days"),
    [
        ("*", "mon tue wed thu fri sat sun"),
        ("0", "sun"),
        ("7", "sun"),
        ("1", "mon"),
        ("SUN", "sun"),
        ("1-5", "mon tue wed thu fri"),
        ("1-5/2", "mon wed fri"),
        ("mon-fri/2", "mon wed fri"),
        ("*/2", "tue thu sat sun"),
        ("0-6/2", "tue thu sat sun"),
        ("2/2", "tue thu sat"),
        ("fri-mon", "mon fri sat sun"),
        ("5-1", "mon fri sat sun"),
        ("5-7", "fri sat sun"),
        ("0-7", "mon tue wed thu fri sat sun"),
        ("sun-tue", "mon tue sun"),
        ("sat-wed/2", "mon wed sat"),
        ("mon,3,fri-sat", "mon wed fri sat"),
    ],
)
def test_weekdays_mean_what_cron_means(text: str, days: str) -> None:
    assert weekdays(text) == days


@pytest.mark.parametrize(
    ("expression", "fires"),
    [
        ("* * * * * *", ["2026-06-03 12:00:01", "2026-06-03 12:00:02"]),
        ("*/20 * * * * *", ["2026-06-03 12:00:20", "2026-06-03 12:00:40"]),
        ("* * * * *", ["2026-06-03 12:01:00", "2026-06-03 12:02:00"]),
        ("*/40 * * * *", ["2026-06-03 12:40:00", "2026-06-03 13:00:00"]),
        ("*/60 * * * *", ["2026-06-03 13:00:00", "2026-06-03 14:00:00"]),
        ("10/25 * * * *", ["2026-06-03 12:10:00", "2026-06-03 12:35:00"]),
        ("10-40/25 * * * *", ["2026-06-03 12:10:00", "2026-06-03 12:35:00"]),
        ("05 09 * * *", ["2026-06-04 09:05:00", "2026-06-05 09:05:00"]),
        ("0 9 last * *", ["2026-06-30 09:00:00", "2026-07-31 09:00:00"]),
        ("0 9 28,L feb *", ["2027-02-28 09:00:00", "2028-02-28 09:00:00"]),
        ("0 0 1 jan-dec/6 *", ["2026-07-01 00:00:00", "2027-01-01 00:00:00"]),
        ("0 0 29 2 *", ["2028-02-29 00:00:00", "2032-02-29 00:00:00"]),
        ("0 0 29 2 mon", ["2044-02-29 00:00:00", "2072-02-29 00:00:00"]),
        ("0 0 13 * fri", ["2026-11-13 00:00:00", "2027-08-13 00:00:00"]),  # both must fit
        ("@hourly", ["2026-06-03 13:00:00", "2026-06-03 14:00:00"]),
        ("@daily", ["2026-06-04 00:00:00", "2026-06-05 00:00:00"]),
        ("@Weekly", ["2026-06-07 00:00:00", "2026-06-14 00:00:00"]),
        ("@monthly", ["2026-07-01 00:00:00", "2026-08-01 00:00:00"]),
        ("@yearly", ["2027-01-01 00:00:00", "2028-01-01 00:00:00"]),
    ],
)
def test_cron_expressions_fire_when_they_say(expression: str, fires: list[str]) -> None:
    assert times(cron(expression), 2) == fires


@pytest.mark.parametrize(
    ("fields", "fires"),
    [
        ({"hour": 9}, ["2026-06-04 09:00:00", "2026-06-05 09:00:00"]),
        ({"day": "2nd fri", "hour": "9", "minute": "30"}, ["2026-06-12 09:30:00", "2026-07-10 09:30:00"]),
        ({"day": "last sun, 1"}, ["2026-06-28 00:00:00", "2026-07-01 00:00:00"]),
        ({"day": "5th mon"}, ["2026-06-29 00:00:00", "2026-08-31 00:00:00"]),
        ({"week": 53, "day_of_week": "thu"}, ["2026-12-31 00:00:00", "2032-12-30 00:00:00"]),
        ({"year": "2030-2040/10"}, ["2030-01-01 00:00:00", "2040-01-01 00:00:00"]),
    ],
)
def test_cron_fields_by_name_fire_when_they_say(fields: dict[str, Any], fires: list[str]) -> None:
    assert times({"type": "cron", "fields": fields}, 2) == fires


def test_a_cron_expression_is_read_in_its_zone() -> None:
    trigger = parse_json(cron("0 9 * * mon-fri", "Europe/Berlin"), now=NOW)
    assert trigger.next() == datetime(2026, 6, 4, 7, tzinfo=UTC)
    assert [str(fire) for fire in upcoming(trigger, 1)] == ["2026-06-05 09:00:00+02:00"]


def test_the_first_cron_fire_is_on_a_whole_second_whatever_the_start() -> None:
    # CronTrigger 4.0.0a6 hands on the microseconds of the start, and works the first fire out in the start's zone.
    start = datetime(2026, 6, 3, 5, 0, 0, 1, tzinfo=timezone(timedelta(hours=-7)))
    stock = CronTrigger(second="*", start_time=start, timezone=BERLIN)
    assert stock.next() == start
    assert times(cron("* * * * * *", "Europe/Berlin", start=start.isoformat()), 1, start) == ["2026-06-03 14:00:01"]
    assert times(cron("0 14 * * *", "Europe/Berlin"), 1, start) == ["2026-06-04 14:00:00"]


def test_start_and_end_limit_a_cron_trigger_and_are_read_in_its_zone() -> None:
    data = cron("0 9 * * *", "Europe/Berlin", start="2026-06-10T09:00", end="2026-06-11T09:00")
    assert times(data) == ["2026-06-10 09:00:00", "2026-06-11 09:00:00"]
    assert times(cron("0 9 * * *", start="2020-01-01T00:00"), 1) == ["2026-06-04 09:00:00"]


FIELD_VALUES = {
    "second": st.sets(st.integers(0, 59), min_size=1),
    "minute": st.sets(st.integers(0, 59), min_size=1),
    "hour": st.sets(st.integers(0, 23), min_size=1),
    "day": st.sets(st.integers(1, 31), min_size=4),
    "month": st.sets(st.integers(1, 12), min_size=3),
    "day_of_week": st.sets(st.integers(0, 6), min_size=2),
}


@unhurried
@given(st.fixed_dictionaries(FIELD_VALUES), st.sampled_from([1, 2, 3, 7, 15, 20]))
def test_fires_are_exactly_the_times_that_fit_all_fields(allowed: dict[str, set[int]], step: int) -> None:
    # Even numbers of steps are frequent in real expressions, and take another way through the code.
    allowed["minute"] = set(range(min(allowed["minute"]), 60, step))
    numbers = {name: ",".join(map(str, sorted(values))) for name, values in allowed.items()}
    expression = "{second} {minute} {hour} {day} {month} {day_of_week}".format(**numbers)

    day = NOW.date()
    expected: list[str] = []
    while len(expected) < 3:
        if (
            day.day in allowed["day"]
            and day.month in allowed["month"]
            and day.isoweekday() % 7 in allowed["day_of_week"]
        ):
            expected += [
                f"{day} {time(hour, minute, second)}"
                for hour in sorted(allowed["hour"])
                for minute in sorted(allowed["minute"])
                for second in sorted(allowed["second"])
                if datetime.combine(day, time(hour, minute, second), UTC) >= NOW
            ][:3]
        day += timedelta(days=1)
        if day.year > 2200:
            return
    assert times(cron(expression), 3) == expected[:3]

    trigger = parse_json(cron(expression), now=NOW)
    assert times(to_json(trigger, now=NOW), 3) == expected[:3]
    assert describe(trigger, now=NOW)


@pytest.mark.parametrize(
    ("given_expression", "normal"),
    [
        ("0,15,30,45 * * * *", "*/15 * * * *"),
        ("00 9 * * 1-5", "0 9 * * mon-fri"),
        ("0 9-17/2 * * 0,6", "0 9-17/2 * * sat,sun"),
        ("0 0 * * * *", "0 * * * *"),
        ("5 0 0 1,2,3,9 */3 *", "5 0 0 1-3,9 */3 *"),
        ("0 9 * * 0-7", "0 9 * * *"),
        ("0 9 L,1 * *", "0 9 1,last * *"),
    ],
)
def test_the_json_of_a_cron_trigger_is_its_shortest_expression(given_expression: str, normal: str) -> None:
    data = to_json(parse_json(cron(given_expression, "Europe/Berlin"), now=NOW), now=NOW)
    assert data == {"type": "cron", "expression": normal, "timezone": "Europe/Berlin"}


# --- calendar interval


@pytest.mark.parametrize(
    ("data", "fires"),
    [
        ({"days": 1, "hour": 9}, ["2026-06-04 09:00:00", "2026-06-05 09:00:00"]),
        ({"days": 1, "hour": 15}, ["2026-06-03 15:00:00", "2026-06-04 15:00:00"]),
        ({"months": 1, "start_date": "2020-01-31"}, ["2026-07-31 00:00:00", "2026-08-31 00:00:00"]),
        ({"weeks": 2, "start_date": "1970-01-05", "second": 5}, ["2026-06-08 00:00:05", "2026-06-22 00:00:05"]),
        ({"years": 1, "start_date": "2024-02-29"}, ["2028-02-29 00:00:00", "2032-02-29 00:00:00"]),
        ({"months": 1, "start_date": "2026-08-15", "end_date": "2026-08-20"}, ["2026-08-15 00:00:00"]),
    ],
)
def test_a_calendar_interval_keeps_its_rhythm_and_never_fires_what_has_been(
    data: dict[str, Any], fires: list[str]
) -> None:
    assert times({"type": "calendar_interval", **data}, 2) == fires


def test_a_calendar_interval_keeps_the_time_of_day_over_a_change_of_the_clock() -> None:
    data = {"type": "calendar_interval", "days": 1, "hour": 9, "start_date": "2026-10-24", "timezone": "Europe/Berlin"}
    assert [str(fire) for fire in upcoming(parse_json(data, now=NOW), 2)] == [
        "2026-10-24 09:00:00+02:00",
        "2026-10-25 09:00:00+01:00",
    ]


# --- and, or


def test_or_fires_at_every_time_of_every_member_once() -> None:
    data = {"type": "or", "triggers": [cron("0 9 * * *"), cron("0 9,10 * * *")]}
    assert times(data, 3) == ["2026-06-04 09:00:00", "2026-06-04 10:00:00", "2026-06-05 09:00:00"]


def test_and_fires_when_all_members_agree_within_the_threshold() -> None:
    every_third = {"type": "calendar_interval", "days": 3, "hour": 9, "start_date": "2026-06-01"}
    data: dict[str, Any] = {"type": "and", "triggers": [cron("0 9 * * *"), every_third]}
    assert times(data, 2) == ["2026-06-04 09:00:00", "2026-06-07 09:00:00"]
    data["triggers"][0] = cron("1 9 * * *")
    with pytest.raises(TriggerNeverFires, match="20,000 steps"):
        parse_json(data, now=NOW)
    assert times({**data, "threshold": 60}, 1) == ["2026-06-04 09:00:00"]


def nested(levels: int) -> dict[str, Any]:
    data: dict[str, Any] = {"type": "interval", "minutes": 1}
    for level in range(levels):
        data = {"type": "or" if level % 2 else "and", "triggers": [data]}
    return data


def test_combinations_are_bounded() -> None:
    assert len(times(nested(5), 2)) == 2
    with pytest.raises(InvalidTrigger, match="5 levels"):
        parse_json(nested(6))
    with pytest.raises(InvalidTrigger, match="at most 20"):
        parse_json({"type": "or", "triggers": [cron("@daily")] * 21})
    crowd = {"type": "or", "triggers": [cron("@daily")] * 20}
    with pytest.raises(InvalidTrigger, match="at most 100 triggers"):
        parse_json({"type": "or", "triggers": [crowd] * 6})
    with pytest.raises(InvalidTrigger):
        parse_json(nested(5_000))


# --- what is refused, and how


@pytest.mark.parametrize(
    ("data", "where", "words"),
    [
        ({}, "trigger", ["'type'", "date, interval, cron"]),
        ([], "trigger", ["dictionary"]),
        ("every day", "trigger", ["dictionary"]),
        ({"type": "crn"}, "trigger", ["'crn'", "did you mean 'cron'?"]),
        ({"type": "custom", "class": "x.Y"}, "trigger", ["application's own"]),
        ({"type": "interval", "minuts": 5}, "trigger.minuts", ["did you mean 'minutes'?"]),
        ({"type": "date", "date": "2026-01-01", "run_at": "2026-01-01"}, "trigger.date", ["unknown in a 'date'"]),
        ({"type": "date"}, "trigger.run_at", ["required"]),
        ({"type": "date", "run_at": "soon"}, "trigger.run_at", ["ISO 8601", "'soon'"]),
        ({"type": "date", "run_at": 1750000000}, "trigger.run_at", ["ISO 8601"]),
        ({"type": "date", "run_at": "1750000000"}, "trigger.run_at", ["ISO 8601"]),
        ({"type": "interval"}, "trigger", ["at least a millisecond"]),
        ({"type": "interval", "seconds": -5}, "trigger.seconds", ["greater than or equal to 0"]),
        ({"type": "interval", "seconds": float("nan")}, "trigger.seconds", ["less than or equal"]),
        ({"type": "calendar_interval", "hour": 9}, "trigger", ["at least a day"]),
        ({"type": "calendar_interval", "days": 1, "hour": 24}, "trigger.hour", ["23"]),
        ({"type": "or", "triggers": []}, "trigger.triggers", ["at least 1"]),
        (
            {"type": "or", "triggers": [cron("@daily"), {"type": "cron", "expresion": "x"}]},
            "trigger.triggers[1].expresion",
            ["did you mean 'expression'?"],
        ),
        (cron("61 * * * *"), "trigger.expression.minute", ["minute", "0 to 59", "61"]),
        (cron("* 24 * * *"), "trigger.expression.hour", ["hour", "0 to 23", "24"]),
        (cron("* * 0 * *"), "trigger.expression.day", ["day of month", "1 to 31", "0"]),
        (cron("* * * 13 *"), "trigger.expression.month", ["month", "1 to 12", "13"]),
        (cron("* * * jam *"), "trigger.expression.month", ["'jam', did you mean 'jan'?"]),
        (cron("* * * * 8"), "trigger.expression.day_of_week", ["weekday", "0 to 7", "8"]),
        (cron("* * * * moo"), "trigger.expression.day_of_week", ["'moo', did you mean 'mon'?"]),
        (cron("60 * * * * *"), "trigger.expression.second", ["second", "0 to 59", "60"]),
        (cron("*/0 * * * *"), "trigger.expression.minute", ["step", "'*/0'"]),
        (cron("1-*/2 * * * *"), "trigger.expression.minute", ["'1-*/2'"]),
        (cron("-5 * * * *"), "trigger.expression.minute", ["'-5'"]),
        (cron("1, * * * *"), "trigger.expression.minute", ["''"]),
        (cron("* 22-2 * * *"), "trigger.expression.hour", ["'22-23,0-2'"]),
        (cron("9 * * *"), "trigger.expression", ["5 fields", "6", "got 4"]),
        (cron(""), "trigger.expression", ["got 0"]),
        (cron("@dayly"), "trigger.expression", ["'@dayly', did you mean '@daily'?"]),
        ({"type": "cron", "fields": {"hour": 25}}, "trigger.fields.hour", ["0 to 23"]),
        ({"type": "cron", "fields": {"day": "6th fri"}}, "trigger.fields.day", ["'6th fri'"]),
        ({"type": "cron", "fields": {"hour": "1," * 600}}, "trigger.fields.hour", ["500 characters"]),
        ({"type": "cron", "fields": {}}, "trigger.fields", ["at least one of year"]),
        ({"type": "cron", "fields": {"hours": 1}}, "trigger.fields.hours", ["did you mean 'hour'?"]),
    ],
)
def test_a_wrong_trigger_is_refused_with_the_place_and_what_was_expected(
    data: Any, where: str, words: list[str]
) -> None:
    with pytest.raises(InvalidTrigger) as refused:
        parse_json(data, now=NOW)
    assert [detail["where"] for detail in refused.value.details] == [where]
    assert all(word in refused.value.message for word in words)


def test_all_wrong_fields_are_named_at_once() -> None:
    with pytest.raises(InvalidTrigger) as refused:
        parse_json(cron("61 25 * * moo"))
    assert [detail["where"] for detail in refused.value.details] == [
        "trigger.expression.minute",
        "trigger.expression.hour",
        "trigger.expression.day_of_week",
    ]


def test_a_wrong_member_is_named_by_its_place() -> None:
    data = {"type": "or", "triggers": [cron("@daily"), {"type": "and", "triggers": [cron("0 9 * * moo")]}]}
    with pytest.raises(InvalidTrigger) as refused:
        parse_json(data)
    assert refused.value.details[0]["where"] == "trigger.triggers[1].triggers[0].expression.day_of_week"
    with pytest.raises(UnknownTimeZone) as unknown:
        parse_json({"type": "or", "triggers": [cron("@daily", "Mars/Base")]})
    assert unknown.value.details[0]["where"] == "trigger.triggers[0].timezone"


def test_cron_takes_an_expression_or_fields_and_not_both() -> None:
    for data in ({"type": "cron"}, cron("@daily", fields={"hour": 1})):
        with pytest.raises(InvalidTrigger, match="either 'expression' or 'fields'"):
            parse_json(data)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("europe/berlin", "did you mean 'Europe/Berlin'?"),
        ("Europe/Berln", "did you mean 'Europe/Berlin'?"),
        ("../etc/passwd", "IANA name"),
        ("Europe", "IANA name"),
        ("", "IANA name"),
        ("posix/UTC", "IANA name"),
        ("localtime", "IANA name"),
        ("U\x00TC", "IANA name"),
    ],
)
def test_an_unknown_time_zone_is_refused_with_the_closest_name(name: str, hint: str) -> None:
    for data in (
        cron("@daily", name),
        {"type": "date", "run_at": "2026-01-01", "timezone": name},
        {"type": "calendar_interval", "days": 1, "timezone": name},
    ):
        with pytest.raises(UnknownTimeZone) as refused:
            parse_json(data)
        assert hint in refused.value.message
        assert refused.value.code == "unknown_time_zone"


@pytest.mark.parametrize(
    "data",
    [
        cron("0 0 31 2 *"),
        cron("0 0 30 feb mon"),
        cron("0 0 31 4,6,9,11 *"),
        {"type": "cron", "fields": {"week": 53, "month": 6}},
        {"type": "cron", "fields": {"year": 2025}},
        {"type": "cron", "fields": {"year": "2027,2029", "month": 2, "day": 29}},
        {"type": "cron", "fields": {"month": "4", "day": "5th fri", "year": "2028"}},
        cron("@daily", end="2026-06-03T23:59"),
        cron("@daily", start="2027-01-02", end="2027-01-01"),
        {"type": "interval", "hours": 1, "end": "2026-06-01"},
        {"type": "interval", "hours": 1, "start": "2027-01-02", "end": "2027-01-01"},
        {"type": "calendar_interval", "months": 1, "start_date": "2020-01-15", "end_date": "2026-06-01"},
        {"type": "calendar_interval", "days": 1, "start_date": "2027-01-15", "end_date": "2027-01-14"},
        {"type": "or", "triggers": [cron("0 0 31 2 *"), cron("0 0 30 2 *")]},
        {"type": "and", "triggers": [cron("@daily"), cron("0 0 31 2 *")]},
        {"type": "and", "triggers": [cron("* * * * * *"), cron("30 0 0 1 1 *")]},
    ],
)
def test_a_trigger_that_never_fires_is_refused(data: dict[str, Any]) -> None:
    with pytest.raises(TriggerNeverFires) as refused:
        parse_json(data, now=NOW)
    assert refused.value.code == "trigger_never_fires"


@pytest.mark.parametrize(
    "fields",
    [
        {"month": 2, "day": 31},
        {"month": "4,6", "day": "31"},
        {"month": 6, "week": 53},
        {"day": "5th fri", "month": 2, "year": "2026-2035"},
    ],
)
def test_dates_that_do_not_exist_are_found_without_a_search_through_all_years(
    fields: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def searched(trigger: CronTrigger) -> None:
        raise AssertionError("CronTrigger tries every month, or every day, up to the year 9999")

    monkeypatch.setattr(CronTrigger, "next", searched)
    with pytest.raises(TriggerNeverFires):
        parse_json({"type": "cron", "fields": fields}, now=NOW)
    assert upcoming(CronTrigger(**fields, start_time=NOW, timezone=UTC)) == []


def test_times_beyond_the_calendar_are_refused() -> None:
    for data in (
        {"type": "date", "run_at": "9999-12-31T23:59:59-05:00"},
        {"type": "date", "run_at": "0001-01-01T00:00:00+05:00"},
        cron("@daily", start="9999-12-31T23:59:59-05:00"),
    ):
        with pytest.raises(InvalidTrigger, match="years 1 and 9999"):
            parse_json(data)


# --- specs and JSON


def test_a_validated_spec_parses_as_its_json_does() -> None:
    spec = TypeAdapter[Any](TriggerSpec).validate_json('{"type": "cron", "expression": "0 9 * * 1-5/2"}')
    assert upcoming(parse(spec, now=NOW)) == upcoming(parse_json(cron("0 9 * * 1-5/2"), now=NOW))


def test_every_example_in_the_api_reference_is_a_trigger_that_fires() -> None:
    schema = TypeAdapter[Any](TriggerSpec).json_schema()
    examples = [
        example
        for name, model in schema["$defs"].items()
        if name.endswith("TriggerSpec")
        for example in model["examples"]
    ]
    assert {example["type"] for example in examples} == set(schema["discriminator"]["mapping"])
    for example in examples:
        assert not never_fires(parse_json(example))


START = datetime(2026, 6, 10, 8, 30, tzinfo=BERLIN)

BUILT_IN_CODE: list[Trigger] = [
    DateTrigger(START),
    DateTrigger(datetime(2020, 1, 1, tzinfo=UTC)),
    IntervalTrigger(minutes=5, start_time=START),
    IntervalTrigger(days=1, hours=-1, start_time=START, end_time=START + timedelta(days=2)),
    IntervalTrigger(seconds=1, microseconds=500_000, start_time=START),
    CronTrigger(start_time=START, timezone=BERLIN),
    CronTrigger(hour="*/3", day_of_week="*/2", start_time=START, timezone=BERLIN),
    CronTrigger(day="2nd fri,last", hour=9, start_time=START, timezone=BERLIN),
    CronTrigger(week="*/2", year="2026-2030", minute="7/13", start_time=START, timezone=BERLIN),
    CronTrigger(second="*/7", month="jun-aug", start_time=START, timezone=ZoneInfo("UTC")),
    CronTrigger(hour=9, start_time=START, timezone=timezone(timedelta(hours=-3))),
    CronTrigger(day_of_week="sat-mon,3", start_time=START, timezone=UTC, end_time=START + timedelta(days=4)),
    CronTrigger(year=2026, second="*", start_time=START, timezone=BERLIN),
    CronTrigger(week=30, start_time=START, timezone=BERLIN),
    CronTrigger.from_crontab("5 4 * * sun", start_time=START, timezone=BERLIN),
    CalendarIntervalTrigger(months=1, days=3, hour=9, start_date=date(2026, 7, 1), timezone=BERLIN),
    CalendarIntervalTrigger(weeks=2, start_date=date(2026, 7, 1), end_date=date(2026, 7, 20), timezone=BERLIN),
    OrTrigger([DateTrigger(START), IntervalTrigger(hours=1, start_time=START)]),
    AndTrigger(
        [
            CronTrigger(minute="*/5", start_time=START, timezone=UTC),
            OrTrigger([CronTrigger(minute="*/3", start_time=START, timezone=UTC)]),
        ],
        threshold=2,
    ),
]


@pytest.mark.parametrize("trigger", BUILT_IN_CODE, ids=repr)
def test_a_stock_trigger_however_built_goes_through_json_and_fires_the_same(trigger: Trigger) -> None:
    used = copy.deepcopy(trigger)
    used.next()
    for given_trigger in (trigger, used):  # a trigger read from the store lacks the arguments it was made with
        data = to_json(given_trigger, now=NOW)
        assert upcoming(parse_json(data, now=NOW), 10) == upcoming(trigger, 10)
        assert to_json(parse_json(data, now=NOW), now=NOW) == data


class Moon(Trigger):
    """An application's own trigger."""

    def __init__(self) -> None:
        self.left = 3

    def next(self) -> datetime | None:
        if self.left == 1:
            raise RuntimeError("eclipse")
        self.left -= 1
        return NOW + timedelta(days=28 * (3 - self.left))

    def __getstate__(self) -> Any:
        return {"left": self.left}

    def __setstate__(self, state: Any) -> None:
        self.left = state["left"]

    def __repr__(self) -> str:
        return "Moon()"


def test_a_trigger_of_another_class_has_a_readable_form_only() -> None:
    data = to_json(OrTrigger([Moon()]))
    assert data == {
        "type": "or",
        "triggers": [{"type": "custom", "class": "test_triggers.Moon", "repr": "Moon()"}],
    } or (data["triggers"][0]["class"].endswith("test_triggers.Moon"))
    with pytest.raises(InvalidTrigger, match="application's own"):
        parse_json(data)
    odd_zone = CronTrigger(hour=9, timezone=timezone(timedelta(hours=5, minutes=45)))
    assert to_json(odd_zone)["type"] == "custom"


# --- looking ahead


@pytest.mark.parametrize("trigger", [*BUILT_IN_CODE, Moon(), OrTrigger([Moon()])], ids=repr)
def test_looking_ahead_never_moves_the_trigger(trigger: Trigger) -> None:
    before = copy.deepcopy(trigger)
    upcoming(trigger, 3)
    upcoming(trigger, 3, after=START)
    never_fires(trigger)
    describe(trigger)
    to_json(trigger)
    assert trigger.next() == before.next()


def test_looking_ahead_goes_on_from_where_the_trigger_stands() -> None:
    trigger = parse_json(cron("@daily"), now=NOW)
    trigger.next()
    assert [str(fire.date()) for fire in upcoming(trigger, 2)] == ["2026-06-05", "2026-06-06"]


def test_looking_ahead_ends_where_the_trigger_ends_or_fails() -> None:
    assert len(upcoming(parse_json(cron("@daily", end="2026-06-05T00:00"), now=NOW), 5)) == 2
    assert len(upcoming(Moon(), 5)) == 2
    assert upcoming(parse_json(cron("@daily"), now=NOW), 0) == []


FAR_BEHIND = datetime(2000, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    "trigger",
    [
        CronTrigger(second="*", start_time=FAR_BEHIND, timezone=UTC),
        IntervalTrigger(seconds=1, start_time=FAR_BEHIND),
        IntervalTrigger(seconds=1, start_time=FAR_BEHIND.astimezone(BERLIN)),
        OrTrigger([CronTrigger(second="*", start_time=FAR_BEHIND, timezone=UTC), DateTrigger(FAR_BEHIND)]),
        AndTrigger([CronTrigger(second="*", start_time=FAR_BEHIND, timezone=UTC)], threshold=0),
    ],
    ids=repr,
)
@pytest.mark.parametrize("fired", [False, True])
def test_looking_ahead_from_an_instant_does_not_walk_there(trigger: Trigger, *, fired: bool) -> None:
    trigger = copy.deepcopy(trigger)
    if fired:
        trigger.next()
    first = NOW.replace(microsecond=0) + timedelta(seconds=1)
    assert upcoming(trigger, 3, after=NOW) == [first + timedelta(seconds=n) for n in range(3)]


def test_looking_ahead_from_an_instant_pairs_the_members_of_an_and_as_walking_there_does() -> None:
    members: list[Trigger] = [
        CronTrigger(second=second, start_time=FAR_BEHIND, timezone=ZoneInfo("UTC")) for second in (0, 30)
    ]
    trigger = AndTrigger(members, threshold=30)
    after = datetime(2000, 1, 1, 0, 2, 10, tzinfo=UTC)
    walked = [fire for fire in upcoming(trigger, 10) if fire > after]
    assert upcoming(trigger, 1, after=after) == walked[:1]


class Ticker(Trigger):
    """Fires every second, and counts how often it is asked."""

    asked = 0

    def __init__(self, first: datetime) -> None:
        self.following = first

    def next(self) -> datetime:
        Ticker.asked += 1
        self.following += timedelta(seconds=1)
        return self.following

    def __getstate__(self) -> Any:
        return {"following": self.following}

    def __setstate__(self, state: Any) -> None:
        self.following = state["following"]


def test_looking_ahead_asks_the_members_a_bounded_number_of_times(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Ticker, "asked", 0)
    pair = AndTrigger([Ticker(NOW), Ticker(NOW + timedelta(seconds=0.5))], threshold=0, max_iterations=100_000)
    assert upcoming(OrTrigger([pair]), 5) == []
    assert 1_000 < Ticker.asked <= 20_000


@unhurried
@given(
    st.integers(1, 400_000),
    st.datetimes(datetime(2026, 1, 1), datetime(2026, 12, 31)),  # noqa: DTZ001
    st.integers(0, 50_000_000),
)
def test_looking_ahead_from_an_instant_finds_what_walking_there_finds(
    minutes: int, start: datetime, seconds: int
) -> None:
    trigger = IntervalTrigger(minutes=minutes, start_time=start.replace(tzinfo=BERLIN))
    after = start.replace(tzinfo=UTC) + timedelta(seconds=min(seconds, minutes * 60 * 1000))
    walked = [fire for fire in upcoming(trigger, 1000) if fire > after][:3]
    if len(walked) == 3:
        assert upcoming(trigger, 3, after=after) == walked


def test_looking_ahead_shows_a_skipped_clock_time_as_the_instant_it_is() -> None:
    trigger = parse_json(cron("30 2 29 3 *", "Europe/Berlin"), now=datetime(2026, 3, 1, tzinfo=UTC))
    fire = upcoming(trigger, 1)[0]
    assert fire.astimezone(UTC).astimezone(BERLIN).replace(tzinfo=None) == fire.replace(tzinfo=None)


def test_looking_ahead_is_bounded_for_triggers_that_never_end_their_search() -> None:
    # CalendarIntervalTrigger 4.0.0a6 looks for ever for a date after the year 9999.
    assert upcoming(CalendarIntervalTrigger(years=1, start_date=date(9990, 7, 1), timezone=UTC), 20)
    assert upcoming(CronTrigger(month=2, day=31, timezone=UTC), 5) == []
    assert never_fires(CronTrigger(month=2, day=31, timezone=UTC))
    assert len(upcoming(IntervalTrigger(weeks=100_000, start_time=START), 10)) < 10
    assert len(upcoming(IntervalTrigger(seconds=1, start_time=START), 10**9)) == 1000


# --- in words


@pytest.mark.parametrize(
    ("expression", "sentence"),
    [
        ("* * * * * *", "every second"),
        ("*/10 * * * * *", "every 10 seconds"),
        ("* * * * *", "every minute"),
        ("10 * * * * *", "every minute at second 10"),
        ("*/5 * * * *", "every 5 minutes"),
        ("0 * * * *", "every hour"),
        ("15 * * * *", "every hour at minute 15"),
        ("*/40 * * * *", "every hour at minutes 0 and 40"),
        ("*/5 * * * mon", "every 5 minutes, every Monday (Europe/Berlin)"),
        ("0 9 * * *", "every day at 09:00 (Europe/Berlin)"),
        ("30 5 9 * * *", "every day at 09:05:30 (Europe/Berlin)"),
        ("0 9 * * mon-fri", "at 09:00, Monday to Friday (Europe/Berlin)"),
        ("0 9 * * 1-5/2", "at 09:00, Monday, Wednesday and Friday (Europe/Berlin)"),
        ("0 9 * * 0", "at 09:00, every Sunday (Europe/Berlin)"),
        ("0 9 * * sat,sun", "at 09:00, every Saturday and Sunday (Europe/Berlin)"),
        ("30 9,13,17 * * *", "every day at 09:30, 13:30 and 17:30 (Europe/Berlin)"),
        ("*/5 9-17 * * *", "every 5 minutes from 09:00 to 17:55 (Europe/Berlin)"),
        ("* 9-17 * * *", "every minute from 09:00 to 17:59 (Europe/Berlin)"),
        ("0 9-17 * * *", "every hour from 09:00 to 17:00 (Europe/Berlin)"),
        ("*/30 8,12,18 * * *", "every day at 08:00, 08:30, 12:00, 12:30, 18:00 and 18:30 (Europe/Berlin)"),
        ("*/10 8,12,18 * * *", "every 10 minutes in the hours 8, 12 and 18 (Europe/Berlin)"),
        ("0 */2 * * *", "every 2 hours from 00:00 (Europe/Berlin)"),
        ("0 9 1 * *", "at 09:00, on day 1 of the month (Europe/Berlin)"),
        ("0 9 1,15 jan,jul *", "at 09:00, on days 1 and 15 of the month, in January and July (Europe/Berlin)"),
        ("0 9 */2 * *", "at 09:00, on days 1, 3, 5 and so on to 31 of the month (Europe/Berlin)"),
        ("0 9 1-3,last * *", "at 09:00, on days 1 to 3 and the last day of the month (Europe/Berlin)"),
        ("0 9 13 * fri", "at 09:00, on day 13 of the month if that is Friday (Europe/Berlin)"),
        ("0 9 * jan-mar *", "at 09:00, in January to March (Europe/Berlin)"),
        ("*/7 * * * *", "cron '*/7 * * * *' (Europe/Berlin)"),
    ],
)
def test_a_cron_expression_in_words(expression: str, sentence: str) -> None:
    assert describe(parse_json(cron(expression, "Europe/Berlin"), now=NOW), now=NOW) == sentence


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (
            {"type": "date", "run_at": "2027-01-05T09:00", "timezone": "Asia/Tokyo"},
            "once, on Tuesday, 5 January 2027 at 09:00 (Asia/Tokyo)",
        ),
        ({"type": "interval", "minutes": 5}, "every 5 minutes"),
        ({"type": "interval", "days": 1}, "every day"),
        ({"type": "interval", "minutes": 90}, "every 1 hour and 30 minutes"),
        ({"type": "interval", "days": 10}, "every 10 days"),
        ({"type": "interval", "seconds": 0.5}, "every 0.5 seconds"),
        (
            {"type": "interval", "weeks": 2, "start": "2027-01-01", "end": "2027-03-01T00:00:05Z"},
            "every 2 weeks, from Friday, 1 January 2027 at 00:00 (UTC), until Monday, 1 March 2027 at 00:00:05 (UTC)",
        ),
        (
            cron("@daily", start="2027-01-01"),
            "every day at 00:00 (UTC), from Friday, 1 January 2027 at 00:00 (UTC)",
        ),
        (
            {"type": "calendar_interval", "months": 1, "hour": 9, "start_date": "2026-07-31"},
            "every month at 09:00 (UTC), counted from 31 July 2026",
        ),
        (
            {"type": "calendar_interval", "years": 1, "days": 2, "start_date": "2026-07-31", "end_date": "2030-01-01"},
            "every 1 year and 2 days at 00:00 (UTC), counted from 31 July 2026, until 1 January 2030",
        ),
        (
            {"type": "cron", "fields": {"day": "2nd fri, last sun", "hour": 9, "week": "1-20"}},
            "at 09:00, on the 2nd Friday and the last Sunday of the month, in ISO weeks 1 to 20 (UTC)",
        ),
        (
            {"type": "cron", "fields": {"year": "2028-2030", "minute": "*/7"}},
            "cron with year 2028-2030, minute */7, second 0 (UTC)",
        ),
        (
            {"type": "or", "triggers": [cron("@daily"), {"type": "interval", "days": 10}]},
            "at each of: (every day at 00:00 (UTC)); (every 10 days)",
        ),
        (
            {"type": "and", "threshold": 90, "triggers": [cron("@daily"), cron("@hourly")]},
            "when all agree within 1 minute and 30 seconds: (every day at 00:00 (UTC)); (every hour)",
        ),
    ],
)
def test_a_trigger_in_words(data: dict[str, Any], sentence: str) -> None:
    assert describe(parse_json(data, now=NOW), now=NOW) == sentence


@pytest.mark.parametrize("trigger", [*BUILT_IN_CODE, Moon()], ids=repr)
def test_every_trigger_has_words_even_as_read_from_the_store(trigger: Trigger) -> None:
    assert describe(copy.deepcopy(trigger)) == describe(trigger)
