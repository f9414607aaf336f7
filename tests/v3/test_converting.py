"""What a trigger of v3 is in Duetime's JSON."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta, timezone
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from duetime.triggers import parse_json, upcoming
from duetime.v3.converting import Form, convert
from duetime.v3.model import (
    V3And,
    V3CalendarInterval,
    V3Cron,
    V3Date,
    V3Interval,
    V3Or,
    V3Trigger,
    V3Unknown,
    V3Zone,
)

from .jobs import cron, interval, utc, zone

NOW = utc("2026-11-25T10:00")
MONDAY = utc("2026-11-30T08:00")


def spec(trigger: V3Trigger, first: datetime | None = None, release: str | None = None) -> dict[str, Any]:
    form = convert(trigger, first, NOW, release)
    assert form.spec is not None, form.findings
    return form.spec


def codes(form: Form) -> set[str]:
    return {each.code for each in form.findings}


def severities(form: Form) -> set[str]:
    return {each.severity for each in form.findings}


@pytest.mark.parametrize(
    ("v3", "ours"),
    [
        ("0", "mon"),
        ("6", "sun"),
        ("0-4", "mon-fri"),
        ("1-5", "tue-sat"),
        ("mon-fri", "mon-fri"),
        ("*/2", "mon,wed,fri,sun"),
        ("0-4/2", "mon,wed,fri"),
        ("2/3", "wed,sat"),
        ("5,sun", "sat,sun"),
        ("TUE", "tue"),
        ("*", "*"),
    ],
)
def test_weekdays_keep_their_meaning_and_not_their_number(v3: str, ours: str) -> None:
    assert spec(cron(day_of_week=v3, hour="9"))["expression"] == f"0 9 * * {ours}"


def test_what_five_fields_cannot_say_is_said_by_fields() -> None:
    made = spec(cron(year="2027-2030", week="10-50/10", day="2nd fri,last", hour="9", second="30"), None)
    assert made["fields"] == {
        "year": "2027-2030",
        "week": "10-50/10",
        "day": "2nd fri,last",
        "hour": "9",
        "minute": "0",
        "second": "30",
    }


def test_a_default_week_is_any_week_although_smaller_fields_are_given() -> None:
    made = spec(cron(year="2027", hour="9"), utc("2027-01-01T08:00"))
    times = upcoming(parse_json(made, now=NOW), 2)
    assert [each.astimezone().date().isoformat() for each in times] == ["2027-01-01", "2027-01-02"]


def test_an_interval_starts_at_the_stored_time_in_utc_and_so_goes_on_in_its_phase() -> None:
    made = spec(interval("2011-10-01T02:30", hours=5, minutes=1), utc("2026-11-25T12:34:56.789"))
    assert made == {"type": "interval", "hours": 5, "minutes": 1, "start": "2026-11-25T12:34:56.789000+00:00"}


def test_a_paused_interval_keeps_the_phase_of_its_start_date() -> None:
    made = spec(interval("2026-11-01T02:30", hours=5))
    first = upcoming(parse_json(made, now=NOW), 1)[0]
    assert (first - utc("2026-11-01T02:30")) % timedelta(hours=5) == timedelta(0)


def test_the_microseconds_of_an_interval_are_kept() -> None:
    made = spec(interval("2026-11-01T02:30", seconds=1, milliseconds=500), MONDAY)
    times = upcoming(parse_json(made, now=NOW), 3)
    assert times[2] - times[0] == timedelta(seconds=3)


def test_the_end_is_inclusive_as_in_v3() -> None:
    made = spec(interval("2026-11-30T08:00", "2026-11-30T10:00", hours=1), MONDAY)
    assert len(upcoming(parse_json(made, now=NOW), 10)) == 3
    made = spec(cron(end_date="2026-12-01T08:00", hour="9"), MONDAY)
    assert upcoming(parse_json(made, now=NOW), 10) == [MONDAY, utc("2026-12-01T08:00")]


def test_a_time_that_somebody_has_set_comes_first_and_the_triggers_times_follow() -> None:
    own = utc("2026-11-27T10:11:12.5")
    form = convert(cron(day_of_week="0", hour="9"), own, NOW)
    assert form.spec is not None
    assert form.stored is not None
    assert upcoming(parse_json(form.spec, now=NOW), 3) == [own, MONDAY, MONDAY + timedelta(days=7)]
    assert form.stored["type"] == "cron", "the schedule that is stored has its own next fire time"
    assert codes(form) == {"own_next_run_time"}
    assert severities(form) == {"note"}


def test_a_time_that_was_put_off_passes_over_the_triggers_times_before_it() -> None:
    own = MONDAY + timedelta(days=7)
    assert upcoming(parse_json(spec(cron(day_of_week="0", hour="9"), own), now=NOW), 1) == [own]


def test_a_date_is_the_stored_time() -> None:
    assert spec(V3Date(MONDAY), MONDAY) == {"type": "date", "run_at": "2026-11-30T08:00:00+00:00"}
    form = convert(V3Date(MONDAY), NOW, NOW)
    assert form.spec == {"type": "date", "run_at": NOW.isoformat()}
    assert codes(form) == {"own_next_run_time"}


def test_a_date_in_a_repeated_hour_is_the_stored_time_whatever_the_zones_are() -> None:
    folded = datetime(2027, 10, 31, 2, 30, fold=1, tzinfo=ZoneInfo("Europe/Berlin"))
    for first in (folded, folded.astimezone(UTC)):
        form = convert(V3Date(folded), first, NOW)
        assert form.spec == {"type": "date", "run_at": "2027-10-31T01:30:00+00:00"}
        assert form.findings == []


def test_a_trigger_that_has_ended_fires_at_the_stored_time_once_more() -> None:
    late = utc("2026-12-05T08:00")
    for trigger in (
        cron(end_date="2026-12-01T08:00", hour="9"),
        interval("2026-11-30T08:00", "2026-12-01T08:00", days=1),
    ):
        form = convert(trigger, late, NOW)
        assert form.spec == {"type": "date", "run_at": late.isoformat()}
        assert codes(form) == {"last_fire"}


def test_a_paused_trigger_that_has_ended_is_nothing() -> None:
    form = convert(cron(end_date="2026-11-01T08:00", hour="9"), None, NOW)
    assert form.ended
    assert form.spec is None


def test_a_paused_trigger_that_never_fires_is_nothing() -> None:
    assert convert(cron(month="2", day="30"), None, NOW).ended


@pytest.mark.parametrize(
    ("fields", "policy"),
    [
        ({"hour": "9"}, {}),
        ({"hour": "2", "minute": "30"}, {"on_gap": "shift", "on_fold": "first"}),
        ({"hour": "*", "minute": "30"}, {"on_gap": "skip", "on_fold": "both"}),
        ({"hour": "0-5", "minute": "30"}, {"on_gap": "skip", "on_fold": "both"}),
        ({"hour": "1,2", "minute": "0"}, {"on_gap": "shift", "on_fold": "first"}),
    ],
)
def test_the_policies_for_changes_of_the_clock_are_those_that_keep_v3s_right_times(
    fields: dict[str, str], policy: dict[str, str]
) -> None:
    made = spec(cron(None, **fields))
    assert {name: made[name] for name in ("on_gap", "on_fold") if name in made} == policy


def test_under_pytz_v3_took_the_second_turn_of_a_repeated_time() -> None:
    assert spec(cron(zone(flavour="pytz"), hour="2", minute="30"))["on_fold"] == "last"


def test_a_zone_without_changes_of_the_clock_needs_no_policy() -> None:
    assert spec(cron(zone("Asia/Kolkata"), hour="2")) == {
        "type": "cron",
        "expression": "0 2 * * *",
        "timezone": "Asia/Kolkata",
    }


@pytest.mark.parametrize(
    ("offset", "name"),
    [
        (timedelta(hours=2), "Etc/GMT-2"),
        (-timedelta(hours=3), "Etc/GMT+3"),
        (timedelta(0), "UTC"),
        (timedelta(hours=5, minutes=30), "Asia/Kolkata"),
    ],
)
def test_fixed_offsets_have_a_name_of_the_same_offset(offset: timedelta, name: str) -> None:
    fixed = V3Zone(None, timezone(offset), "pytz")
    made = spec(V3Cron(cron(hour="9").fields, None, None, fixed))
    assert made["timezone"] == name
    assert upcoming(parse_json(made, now=NOW), 1)[0].utcoffset() == offset


def test_an_offset_that_no_zone_has_is_for_a_person() -> None:
    odd = V3Zone(None, timezone(timedelta(hours=1, minutes=7)), "pytz")
    form = convert(V3Cron(cron(hour="9").fields, None, None, odd), MONDAY, NOW)
    assert form.spec is None
    assert severities(form) == {"review"}


def test_jitter_is_said_with_what_differs() -> None:
    form = convert(cron(hour="9", jitter="120"), MONDAY, NOW, "3.6.3")
    assert form.jitter == 120
    assert [each for each in form.findings if "before the planned time" in each.text]
    form = convert(interval("2026-11-30T08:00", jitter=5, hours=1), MONDAY, NOW, "3.11.3")
    assert [each for each in form.findings if "drifted" in each.text]


def test_a_calendar_interval_counts_on_from_the_day_of_the_stored_time() -> None:
    trigger = V3CalendarInterval(0, 1, 0, 0, 9, 0, 0, date(2026, 1, 31), None, zone())
    made = spec(trigger, utc("2026-12-31T08:00"))
    assert made["start_date"] == "2026-12-31"
    assert made["on_gap"] == "skip"
    assert upcoming(parse_json(made, now=NOW), 2)[1] == utc("2027-01-31T08:00")


def test_a_calendar_interval_whose_time_somebody_has_set_goes_on_an_interval_later() -> None:
    trigger = V3CalendarInterval(0, 0, 0, 2, 9, 0, 0, date(2026, 1, 1), None, zone())
    own = utc("2026-12-01T05:00")
    times = upcoming(parse_json(spec(trigger, own), now=NOW), 2)
    assert times == [own, utc("2026-12-03T08:00")]


def test_an_or_of_crons_is_carried_over() -> None:
    made = convert(V3Or((cron(hour="9"), cron(day_of_week="5", hour="11"))), MONDAY, NOW)
    assert severities(made) <= {"note"}
    assert made.spec is not None
    assert made.spec["type"] == "or"


@pytest.mark.parametrize(
    ("trigger", "code"),
    [
        (V3Or((cron(hour="9"), interval("2026-01-01T00:00", hours=5))), "or_with_interval"),
        (V3Or((cron(hour="9"), V3Date(utc("2027-05-05T05:05")))), "or_with_date"),
        (V3And((cron(hour="9"), cron(day_of_week="0", hour="9"))), "and_trigger"),
        (V3Or((cron(hour="9"), cron(hour="11", jitter="5"))), "member_jitter"),
        (V3Or((cron(hour="9"), V3And((cron(hour="9"), cron(hour="9,10"))))), "or_with_interval"),
    ],
)
def test_combinations_that_v3_gets_wrong_are_for_a_person(trigger: V3Trigger, code: str) -> None:
    form = convert(trigger, MONDAY, NOW)
    assert code in codes(form)
    assert "review" in severities(form)
    assert form.spec is not None, "what Duetime would do is shown"


def test_a_date_of_an_or_that_has_been_is_left_out() -> None:
    form = convert(V3Or((cron(hour="9"), V3Date(utc("2026-05-05T05:05")))), MONDAY, NOW)
    assert severities(form) <= {"note"}
    assert form.spec is not None
    assert form.spec["type"] == "cron"


def test_a_trigger_of_the_application_is_for_a_person() -> None:
    form = convert(V3Unknown("shop:OddMinutes"), MONDAY, NOW)
    assert form.spec is None
    assert codes(form) == {"own_trigger"}


@pytest.mark.parametrize(
    "trigger",
    [
        cron(minute="garbage"),
        cron(day_of_week="9"),
        cron(day_of_week="fri-mon"),
        cron(day_of_week="*/0"),
        interval("2026-01-01T00:00", days=999_999),
        interval("2026-01-01T00:00", microseconds=1),
        V3Interval(timedelta(-1), NOW, None, zone()),
        cron(zone("Europe/Berlin"), hour=",".join(["1"] * 400)),
    ],
)
def test_what_duetime_cannot_say_is_for_a_person(trigger: V3Trigger) -> None:
    form = convert(trigger, MONDAY, NOW)
    assert form.spec is None
    assert "review" in severities(form)
