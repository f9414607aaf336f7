"""Holidays and blackouts."""

from __future__ import annotations

import copy
import json
from datetime import UTC, date, datetime, timedelta
from typing import Any

import pytest
from apscheduler import MaxIterationsReached
from apscheduler.abc import Trigger
from apscheduler.triggers.combining import OrTrigger
from apscheduler.triggers.interval import IntervalTrigger
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from duetime.errors import InvalidTrigger, TriggerNeverFires, UnknownTimeZone, UnreadableValue
from duetime.serializer import TypedJSONSerializer
from duetime.store.slow_plans import is_quick, is_stock
from duetime.triggers import CalendarInterval, Cron, Excluding, RRule, describe, parse_json, to_json, upcoming

from .test_cron_trigger import fires

NOW = datetime(2026, 12, 23, 12, tzinfo=UTC)  # a Wednesday
unhurried = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

DAILY = {"type": "cron", "expression": "0 9 * * *", "timezone": "Europe/Berlin"}


def times(data: dict[str, Any], count: int) -> list[str]:
    return [f"{fire:%m-%d %H:%M}" for fire in upcoming(parse_json(data, now=NOW), count)]


@pytest.mark.parametrize(
    ("exclude", "expected"),
    [
        (["2026-12-24"], ["12-25 09:00", "12-26 09:00"]),
        (["2026-12-24", "2026-12-25", "2026-12-27"], ["12-26 09:00", "12-28 09:00"]),
        (["12-24", "--12-25", "01-01"], ["12-26 09:00", "12-27 09:00"]),
        ([{"from": "2026-12-24", "to": "2027-01-03"}], ["01-04 09:00", "01-05 09:00"]),
        ([{"from": "2026-12-24T09:00", "to": "2026-12-25T09:00"}], ["12-25 09:00", "12-26 09:00"]),
        ([{"from": "2026-12-24T08:00:01Z", "to": "2026-12-25T08:00:01Z"}], ["12-24 09:00", "12-26 09:00"]),
        ([{"from": "2026-12-01", "to": "2026-12-25"}, "2026-12-22"], ["12-26 09:00"]),
        ([{"from": "2026-12-20", "to": "2026-12-26"}, {"from": "2026-12-25", "to": "2026-12-27"}], ["12-28 09:00"]),
    ],
)
def test_a_trigger_does_not_fire_on_what_is_excluded(exclude: list[Any], expected: list[str]) -> None:
    assert times({**DAILY, "exclude": exclude}, len(expected)) == expected


@pytest.mark.parametrize(
    "form",
    [
        {"type": "interval", "hours": 24, "start": "2026-12-01T09:00"},
        {"type": "calendar_interval", "days": 1, "hour": 9, "start_date": "2026-12-01"},
        {"type": "rrule", "rrule": "FREQ=DAILY", "start": "2026-12-01T09:00"},
        {"type": "or", "triggers": [{**DAILY, "timezone": "Asia/Tokyo", "expression": "0 17 * * *"}, DAILY]},
        {"type": "and", "triggers": [DAILY, {**DAILY, "expression": "0 * * * *"}]},
    ],
    ids=lambda form: str(form["type"]),
)
def test_every_recurring_form_has_exclusions_in_its_zone(form: dict[str, Any]) -> None:
    data = {**form, "timezone": "Europe/Berlin", "exclude": ["2026-12-24", {"from": "2026-12-26", "to": "2026-12-31"}]}
    fires_ = [fire.astimezone(UTC) for fire in upcoming(parse_json(data, now=NOW), 2)]
    assert fires_ == [datetime(2026, 12, 25, 8, tzinfo=UTC), datetime(2027, 1, 1, 8, tzinfo=UTC)]
    again = to_json(parse_json(data, now=NOW), now=NOW)
    assert (again["timezone"], again["exclude"]) == (data["timezone"], data["exclude"])
    assert upcoming(parse_json(again, now=NOW), 9) == upcoming(parse_json(data, now=NOW), 9)


def test_a_member_of_a_combination_has_exclusions_of_its_own() -> None:
    members = [{**DAILY, "exclude": ["12-24"]}, {**DAILY, "expression": "0 10 * * *"}]
    assert times({"type": "or", "triggers": members}, 2) == ["12-24 10:00", "12-25 09:00"]


def test_the_days_excluded_are_those_of_the_zone_and_may_have_23_or_25_hours() -> None:
    hourly = Cron("0 * * * *", timezone="Europe/Berlin", start_time=datetime(2027, 3, 27, 22, tzinfo=UTC))
    assert fires(Excluding(hourly, ["2027-03-28"]), 2) == [
        datetime(2027, 3, 27, 22, tzinfo=UTC),
        datetime(2027, 3, 28, 22, tzinfo=UTC),
    ]
    # Cairo's clock skips midnight of 30 April 2027.
    cairo = Cron("*/30 * * * *", timezone="Africa/Cairo", start_time=datetime(2027, 4, 29, 21, 30, tzinfo=UTC))
    assert fires(Excluding(cairo, ["2027-04-30"]), 2) == [
        datetime(2027, 4, 29, 21, 30, tzinfo=UTC),
        datetime(2027, 4, 30, 21, tzinfo=UTC),
    ]


@pytest.mark.parametrize(
    "inner",
    [
        IntervalTrigger(seconds=1, start_time=NOW),
        Cron("* * * * * *", start_time=NOW),
        RRule("FREQ=SECONDLY", start_time=NOW),
        OrTrigger([Cron("* * * * * *", start_time=NOW), IntervalTrigger(seconds=1, start_time=NOW)]),
    ],
    ids=repr,
)
def test_a_long_blackout_is_not_walked_through(inner: Trigger, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = 0
    step = type(inner).next

    def counted(trigger: Trigger) -> datetime | None:
        nonlocal asked
        asked += 1
        return step(trigger)

    monkeypatch.setattr(type(inner), "next", counted)
    trigger = Excluding(inner, [{"from": "2026-12-01", "to": "2036-12-24"}, "12-25", "2036-12-26"])
    assert trigger.next() == datetime(2036, 12, 27, tzinfo=UTC)
    assert asked < 10


def test_a_day_whose_midnight_lies_within_a_gap_begins_after_the_gap() -> None:
    # Toronto's clock went from 23:30 to 00:30.
    inner = Cron("*/30 * * * *", timezone="America/Toronto", start_time=datetime(1919, 3, 31, 4, tzinfo=UTC))
    trigger = Excluding(inner, ["1919-03-31"])
    assert fires(trigger, 2) == [datetime(1919, 3, 31, 4, tzinfo=UTC), datetime(1919, 4, 1, 4, tzinfo=UTC)]


@unhurried
@given(
    st.sets(st.dates(date(2027, 1, 1), date(2027, 3, 31)), max_size=20),
    st.sets(st.sampled_from(["01-01", "01-06", "02-28", "02-29", "03-31"])),
    st.lists(
        st.tuples(st.integers(0, 90 * 24), st.integers(1, 200)).map(
            lambda pair: (datetime(2027, 1, 1) + timedelta(hours=pair[0]), timedelta(hours=pair[1]))  # noqa: DTZ001
        ),
        max_size=3,
    ),
    st.sampled_from(["Europe/Berlin", "Africa/Cairo", "UTC"]),
)
def test_what_is_left_is_exactly_what_is_not_excluded(
    days: set[date], yearly: set[str], periods: list[tuple[datetime, timedelta]], zone: str
) -> None:
    exclude = [*map(str, days), *yearly]
    spans = [{"from": start.isoformat(), "to": (start + length).isoformat()} for start, length in periods]
    start, end = datetime(2027, 1, 1, tzinfo=UTC), datetime(2027, 4, 1, tzinfo=UTC)
    inner = Cron("0 */5 * * *", timezone=zone, start_time=start, end_time=end)
    trigger = Excluding(copy.deepcopy(inner), [*exclude, *spans])

    def is_left(fire: datetime) -> bool:
        wall = fire.astimezone(trigger.timezone).replace(tzinfo=None)
        return not (
            wall.date() in days
            or f"{wall:%m-%d}" in yearly
            or any(since <= wall < since + length for since, length in periods)
        )

    assert fires(trigger, 1000) == [fire for fire in fires(inner, 1000) if is_left(fire)]


def test_a_trigger_with_exclusions_goes_on_from_the_store_where_it_stood() -> None:
    stored = (
        b'{"$trigger":["duetime.excluding",{"version":1,"inner":{"$trigger":["duetime.cron",{"version":1,'
        b'"fields":["*","*","*","*","*","9","0","0"],"timezone":{"$zone":"Europe/Berlin"},"on_gap":"shift",'
        b'"on_fold":"first","start_time":{"$datetime":"2026-12-23T12:00:00+00:00"},"end_time":null,'
        b'"last_fire_time":{"$datetime":"2026-12-25T08:00:00+00:00"}}]},'
        b'"exclude":["2026-12-24",{"from":"2026-12-26","to":"2026-12-28"}],"timezone":{"$zone":"Europe/Berlin"}}]}'
    )
    trigger = parse_json({**DAILY, "exclude": ["2026-12-24", {"from": "2026-12-26", "to": "2026-12-28"}]}, now=NOW)
    trigger.next()
    assert TypedJSONSerializer().serialize(trigger) == stored
    assert TypedJSONSerializer().deserialize(stored).next() == datetime(2026, 12, 29, 8, tzinfo=UTC)


@pytest.mark.parametrize(
    "trigger",
    [
        Cron("0 9 * * *", start_time=NOW),
        CalendarInterval(days=1, start_date=date(2026, 12, 1)),
        RRule("FREQ=DAILY", start_time=NOW),
        Excluding(Cron("0 9 * * *", start_time=NOW), ["12-25", {"from": "2026-12-27", "to": "2026-12-28"}]),
    ],
    ids=lambda trigger: type(trigger).__name__,
)
@pytest.mark.parametrize("damage", [None, 5, "x", [], ["x"], {"a": 1}, b"", datetime(2026, 1, 1, tzinfo=UTC)])
def test_a_damaged_state_is_found_when_it_is_read_or_does_no_harm(trigger: Trigger, damage: Any) -> None:
    serializer = TypedJSONSerializer()
    for name in trigger.__getstate__():
        form = json.loads(serializer.serialize(trigger))
        form["$trigger"][1][name] = json.loads(serializer.serialize({"it": damage}))["it"]
        try:
            broken = serializer.deserialize(json.dumps(form).encode())
        except UnreadableValue:
            continue
        describe(broken)
        to_json(broken)
        upcoming(broken, 2)


def test_looking_ahead_does_not_move_a_trigger_with_exclusions() -> None:
    for form in (DAILY, {"type": "or", "triggers": [DAILY]}):
        trigger = parse_json({**form, "exclude": ["12-24"]}, now=NOW)
        assert len(upcoming(trigger, 5, after=NOW + timedelta(days=400))) == 5
        assert len(upcoming(trigger, 5)) == 5
        assert trigger.next() == datetime(2026, 12, 25, 8, tzinfo=UTC)


def test_exclusions_in_words() -> None:
    exclude = ["2026-12-24", "12-25", {"from": "2026-12-27", "to": "2027-01-03"}]
    assert describe(parse_json({**DAILY, "exclude": exclude}, now=NOW), now=NOW) == (
        "every day at 09:00 (Europe/Berlin), except 2026-12-24, 25 December of every year and 2026-12-27 to 2027-01-03"
    )
    many = [f"2027-01-{day:02}" for day in range(1, 20)]
    assert describe(parse_json({**DAILY, "exclude": many}, now=NOW), now=NOW).endswith("2027-01-07 and 12 more")


@pytest.mark.parametrize(
    ("exclude", "where", "words"),
    [
        (["christmas"], "trigger.exclude[0]", "'christmas'"),
        (["12-25", "13-01"], "trigger.exclude[1]", "'13-01'"),
        (["2026-02-30"], "trigger.exclude[0]", "'2026-02-30'"),
        ([20261224], "trigger.exclude[0]", "20261224"),
        ([{"from": "2026-12-24"}], "trigger.exclude[0]", "{'from': …, 'to': …}"),
        ([{"from": "2026-12-24", "to": "2026-12-25T09:00"}], "trigger.exclude[0]", "two days or two times"),
        ([{"from": "2026-12-25", "to": "2026-12-24"}], "trigger.exclude[0]", "'from' before 'to'"),
        (["2026-12-24"] * 1001, "trigger.exclude", "1000"),
    ],
)
def test_a_wrong_exclusion_is_refused_with_its_place(exclude: list[Any], where: str, words: str) -> None:
    with pytest.raises(InvalidTrigger) as refused:
        parse_json({**DAILY, "exclude": exclude}, now=NOW)
    assert [detail["where"] for detail in refused.value.details] == [where]
    assert words in refused.value.message


@pytest.mark.parametrize(
    "data",
    [
        {"type": "cron", "expression": "0 9 25 12 *", "exclude": ["12-25"]},
        {**DAILY, "end": "2026-12-30", "exclude": [{"from": "2026-12-01", "to": "2026-12-31"}]},
        {
            "type": "interval",
            "seconds": 1,
            "end": "2027-01-01",
            "exclude": [{"from": "2026-12-01", "to": "2027-01-01"}],
        },
    ],
)
def test_exclusions_that_leave_nothing_are_refused(data: dict[str, Any]) -> None:
    with pytest.raises(TriggerNeverFires, match="exclusions that leave nothing"):
        parse_json(data, now=NOW)


def test_an_unknown_zone_of_exclusions_is_refused() -> None:
    for form in ({"type": "interval", "hours": 1}, {"type": "or", "triggers": [DAILY]}):
        with pytest.raises(UnknownTimeZone):
            parse_json({**form, "timezone": "Europe/Berln", "exclude": ["12-25"]})


class Ticker(Trigger):
    """An application's own trigger, which cannot be moved on at once."""

    def __init__(self) -> None:
        self.moment = NOW

    def next(self) -> datetime:
        self.moment += timedelta(seconds=1)
        return self.moment

    def __getstate__(self) -> Any:
        return self.moment

    def __setstate__(self, state: Any) -> None:
        self.moment = state


def test_a_trigger_of_the_applications_own_is_walked_through_so_far_and_no_further() -> None:
    def until(end: datetime) -> Excluding:
        return Excluding(Ticker(), [{"from": NOW.isoformat(), "to": end.isoformat()}])

    assert until(NOW + timedelta(hours=1)).next() == NOW + timedelta(hours=1)
    with pytest.raises(MaxIterationsReached):
        until(NOW + timedelta(days=1)).next()


def test_the_planner_makes_quick_plans_of_triggers_whose_search_is_short() -> None:
    daily, leap = RRule("FREQ=DAILY", start_time=NOW), RRule("FREQ=DAILY;BYMONTH=2;BYMONTHDAY=29", start_time=NOW)
    cron = Cron("0 9 * * *")
    assert [is_quick(each) for each in (cron, daily, leap)] == [True, True, False]
    assert [is_quick(Excluding(each, ["12-25"])) for each in (cron, leap, Ticker())] == [True, False, False]
    assert [is_stock(each) for each in (cron, leap, Excluding(leap, []))] == [True, True, True]
    assert not is_stock(Excluding(Ticker(), []))
