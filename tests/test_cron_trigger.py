"""Cron and calendar intervals of our own, against brute force, against cronsim, and where APScheduler's are wrong."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from itertools import islice, pairwise
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from apscheduler.abc import Trigger
from apscheduler.triggers.calendarinterval import CalendarIntervalTrigger
from apscheduler.triggers.combining import OrTrigger
from apscheduler.triggers.cron import CronTrigger
from apscheduler.triggers.date import DateTrigger
from cronsim import CronSim, CronSimError
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from duetime.errors import InvalidTrigger, TriggerNeverFires, UnreadableValue
from duetime.serializer import TypedJSONSerializer
from duetime.triggers import CalendarInterval, Cron, describe, parse_json, to_json
from duetime.triggers.clock import OnFold, OnGap, first_change, offset_at

BERLIN = ZoneInfo("Europe/Berlin")
ZONES = [
    "Europe/Berlin",
    "America/New_York",
    "Australia/Lord_Howe",  # half an hour
    "Africa/Casablanca",  # during Ramadan the other way round
    "Asia/Tehran",  # at midnight
    "America/St_Johns",  # at 00:01, and two hours in 1988
    "Pacific/Apia",  # without 30 December 2011
    "America/Santiago",
    "Europe/Dublin",  # negative in winter
    "Antarctica/Troll",  # two hours
    "Africa/Cairo",
    "Asia/Gaza",
]
ODD_CHANGES = {"Australia/Lord_Howe", "America/St_Johns"}
unhurried = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow], max_examples=300)


def fires(trigger: Trigger, count: int) -> list[datetime]:
    given_out = islice(iter(trigger.next, None), count)
    return [fire.astimezone(UTC) for fire in given_out if fire is not None]


def local(trigger: Trigger, count: int, tz: ZoneInfo = BERLIN) -> list[str]:
    return [f"{fire.astimezone(tz):%m-%d %H:%M%z}"[:-2] for fire in fires(trigger, count)]


def changes(tz: ZoneInfo, first: int = 1970, last: int = 2100) -> Iterator[datetime]:
    """Yield the first instant after each change of a zone's offset."""
    step = timedelta(hours=6)
    instant = datetime(first, 1, 1, tzinfo=UTC)
    while instant.year < last:
        if offset_at(instant, tz) != offset_at(instant + step, tz):
            yield first_change(instant, instant + step, tz)
        instant += step


# --- the faults of CronTrigger 4.0.0a6 (FACTS: "Cron and DST")


def stock_and_own(expression: str, start: datetime) -> tuple[CronTrigger, Cron]:
    fields = dict(zip(("minute", "hour", "day", "month", "day_of_week"), expression.split(), strict=True))
    stock = CronTrigger(**fields, start_time=start, timezone=BERLIN)
    return stock, Cron(expression, start_time=start, timezone=BERLIN)


@pytest.mark.parametrize(
    ("expression", "start", "wrong", "right"),
    [
        ("0 0 * * *", datetime(2027, 3, 28, tzinfo=BERLIN), ["03-28", "03-30"], ["03-28", "03-29"]),
        ("59 0 * * *", datetime(2027, 3, 28, tzinfo=BERLIN), ["03-28", "03-30"], ["03-28", "03-29"]),
        ("0 0 * * mon", datetime(2027, 3, 22, tzinfo=BERLIN), ["03-22", "04-05"], ["03-22", "03-29"]),
    ],
)
def test_the_first_hour_after_spring_forward_is_not_lost(
    expression: str, start: datetime, wrong: list[str], right: list[str]
) -> None:
    stock, own = stock_and_own(expression, start)
    assert [text[:5] for text in local(stock, 2)] == wrong
    assert [text[:5] for text in local(own, 2)] == right


def test_a_month_that_begins_after_the_change_is_not_lost() -> None:
    # In Cairo and Amman summer time has begun on a Thursday or Friday, so in some years on the last day of March.
    amman = ZoneInfo("Asia/Amman")
    own = Cron("0 0 1 * *", start_time=datetime(2016, 3, 1, tzinfo=amman), timezone=amman)
    assert [text[:5] for text in local(own, 3, amman)] == ["03-01", "04-01", "05-01"]


def test_a_time_that_does_not_exist_is_no_fire_time() -> None:
    stock, own = stock_and_own("30 2 * * *", datetime(2027, 3, 27, 12, tzinfo=BERLIN))
    reported = stock.next()
    assert reported is not None
    assert f"{reported:%H:%M}" == "02:30"
    assert local(own, 2) == ["03-28 03:00+02", "03-29 02:30+02"]


def test_a_time_of_day_that_comes_twice_fires_once() -> None:
    stock, own = stock_and_own("30 2 * * *", datetime(2027, 10, 31, tzinfo=BERLIN))
    assert local(stock, 2) == ["10-31 02:30+02", "10-31 02:30+01"]
    assert local(own, 2) == ["10-31 02:30+02", "11-01 02:30+01"]


# --- the policies


@pytest.mark.parametrize(
    ("expression", "on_gap", "expected"),
    [
        ("30 2 * * *", None, ["03-28 03:00+02", "03-29 02:30+02"]),
        ("30 2 * * *", "skip", ["03-29 02:30+02", "03-30 02:30+02"]),
        ("0,15,30 2,3 28 * *", None, ["03-28 03:00+02", "03-28 03:15+02"]),  # three times in the gap are one
        ("0 2-4 * * *", None, ["03-28 03:00+02", "03-28 04:00+02"]),
        ("30 * * * *", None, ["03-28 01:30+01", "03-28 03:30+02"]),
        ("30 * * * *", "shift", ["03-28 01:30+01", "03-28 03:00+02", "03-28 03:30+02"]),
        ("*/30 2 * * *", None, ["03-29 02:00+02", "03-29 02:30+02"]),
        ("*/45 30 2 * * *", None, ["03-29 02:30+02", "03-29 02:30+02"]),
        ("0 30 2 * * *", None, ["03-28 03:00+02", "03-29 02:30+02"]),
    ],
)
def test_times_in_a_gap(expression: str, on_gap: OnGap | None, expected: list[str]) -> None:
    start = datetime(2027, 3, 28, 1, 15, tzinfo=BERLIN)
    trigger = Cron(expression, timezone="Europe/Berlin", on_gap=on_gap, start_time=start)
    assert local(trigger, len(expected)) == expected


@pytest.mark.parametrize(
    ("expression", "on_fold", "expected"),
    [
        ("30 2 * * *", None, ["10-31 02:30+02", "11-01 02:30+01"]),
        ("30 2 * * *", "last", ["10-31 02:30+01", "11-01 02:30+01"]),
        ("30 2 * * *", "both", ["10-31 02:30+02", "10-31 02:30+01", "11-01 02:30+01"]),
        ("0,30 2,3 * * *", None, ["10-31 02:00+02", "10-31 02:30+02", "10-31 03:00+01"]),
        ("0,30 2,3 * * *", "last", ["10-31 02:00+01", "10-31 02:30+01", "10-31 03:00+01"]),
        ("30 * * * *", None, ["10-31 01:30+02", "10-31 02:30+02", "10-31 02:30+01", "10-31 03:30+01"]),
        ("30 * * * *", "first", ["10-31 01:30+02", "10-31 02:30+02", "10-31 03:30+01"]),
        ("*/30 2 * * *", None, ["10-31 02:00+02", "10-31 02:30+02", "10-31 02:00+01", "10-31 02:30+01"]),
    ],
)
def test_times_that_come_twice(expression: str, on_fold: OnFold | None, expected: list[str]) -> None:
    start = datetime(2027, 10, 31, 1, 15, tzinfo=BERLIN)
    trigger = Cron(expression, timezone="Europe/Berlin", on_fold=on_fold, start_time=start)
    assert local(trigger, len(expected)) == expected


def test_a_rhythm_keeps_its_pace_over_every_change_of_the_clock() -> None:
    trigger = Cron("*/20 * * * *", timezone="Europe/Berlin", start_time=datetime(2027, 3, 28, tzinfo=UTC))
    assert {after - before for before, after in pairwise(fires(trigger, 24 * 3 * 300))} == {timedelta(minutes=20)}


def test_a_gap_that_ends_within_a_minute_is_exact_to_the_second() -> None:
    # Liberia went from -00:44:30 to UTC.
    trigger = Cron("30 0 7 1 *", timezone="Africa/Monrovia", start_time=datetime(1972, 1, 1, tzinfo=UTC))
    assert fires(trigger, 1) == [datetime(1972, 1, 7, 0, 44, 30, tzinfo=UTC)]


def test_fire_times_are_whole_seconds_also_the_first_and_may_be_the_start_itself() -> None:
    start = datetime(2026, 6, 3, 12, 0, 0, 250_000, tzinfo=UTC)
    assert fires(Cron("* * * * * *", start_time=start), 1) == [datetime(2026, 6, 3, 12, 0, 1, tzinfo=UTC)]
    assert fires(Cron("* * * * *", start_time=datetime(2026, 6, 3, 12, 0, tzinfo=UTC)), 1) == [
        datetime(2026, 6, 3, 12, 0, tzinfo=UTC)
    ]


# --- against brute force


def some_field(rng: random.Random, low: int, high: int, stars: float) -> str:
    if rng.random() < stars:
        return rng.choice(["*", f"*/{rng.randint(2, high)}"])
    # Not 7-7/2, which cronsim reads as 7/2.
    first = rng.randint(low, high - 1)
    return rng.choice(
        [
            str(first),
            f"{first}-{rng.randint(first, high)}",
            f"{first}-{rng.randint(first + 1, high)}/{rng.randint(1, 5)}",
            ",".join(str(rng.randint(low, high)) for _ in range(3)),
        ]
    )


def matches(trigger: Cron, wall: datetime) -> bool:
    return all(
        number in trigger.values[name].numbers
        for name, number in (
            ("minute", wall.minute),
            ("hour", wall.hour),
            ("day", wall.day),
            ("month", wall.month),
            ("day_of_week", wall.weekday()),
        )
    )


def brute(trigger: Cron, tz: ZoneInfo, change: datetime, start: datetime, end: datetime) -> list[datetime]:
    """Look at every minute from start to end, with one change of the clock in between."""
    found: set[datetime] = set()
    before, after = offset_at(change - timedelta(seconds=1), tz), offset_at(change, tz)
    minute = timedelta(minutes=1)
    instant = start
    while instant < end:
        wall = instant.astimezone(tz)
        twice = wall.replace(fold=0).utcoffset() != wall.replace(fold=1).utcoffset()
        wanted = {"first": (0,), "last": (1,), "both": (0, 1)}[trigger.policy.on_fold]
        if matches(trigger, wall) and (not twice or wall.fold in wanted):
            found.add(instant)
        instant += minute
    if trigger.policy.on_gap == "shift" and after > before:
        wall = (change + before).replace(tzinfo=None)
        while wall < (change + after).replace(tzinfo=None):
            if matches(trigger, wall):
                found.add(change)
            wall += minute
    return sorted(found)


@pytest.mark.parametrize("name", ZONES)
def test_around_every_change_of_the_clock_the_fires_are_those_that_looking_at_every_minute_finds(name: str) -> None:
    rng = random.Random(name)
    tz = ZoneInfo(name)
    seen = 0
    for change in changes(tz):
        seen += 1
        for _ in range(2):
            expression = (
                f"{some_field(rng, 0, 59, 0.4)} {some_field(rng, 0, 5, 0.5)} "
                f"{rng.choice(['*', '*', '1-31/2'])} * {rng.choice(['*', '*', 'mon-sat'])}"
            )
            start, end = change - timedelta(hours=3), change + timedelta(hours=4)
            trigger = Cron(
                expression,
                timezone=name,
                on_gap=rng.choice(["shift", "skip", None]),
                on_fold=rng.choice(["first", "last", "both", None]),
                start_time=start,
                end_time=end - timedelta(seconds=1),
            )
            expected = brute(trigger, tz, change, start, end)
            assert fires(trigger, 1000) == expected, (expression, trigger, change)
            # The same from the middle: what comes next does not depend on what was before.
            middle = start + timedelta(minutes=rng.randint(0, 400))
            later = Cron(
                expression,
                timezone=name,
                on_gap=trigger.policy.on_gap,
                on_fold=trigger.policy.on_fold,
                start_time=middle,
                end_time=end - timedelta(seconds=1),
            )
            assert fires(later, 1) == [fire for fire in expected if fire >= middle][:1]
    assert seen > 10


# --- against cronsim, which does as Debian's cron


def simulated(expression: str, start: datetime, tz: ZoneInfo, count: int) -> list[datetime]:
    # cronsim gives times later than its start, and one in a gap as often as the expression names it.
    found: list[datetime] = []
    for fire in CronSim(expression, (start - timedelta(seconds=1)).astimezone(tz)):
        instant = fire.astimezone(UTC)
        if not found or instant > found[-1]:
            found.append(instant)
        if len(found) == count:
            break
    return found


def test_random_expressions_fire_as_cronsim_says() -> None:
    rng = random.Random(1970)
    compared = passed_over = 0
    while compared < 1500:
        days = rng.choice(["* * {}", "{} * *", "{} {} *", "* {} {}", "* * *"])
        fields = [some_field(rng, 0, 59, 0.3), some_field(rng, 0, 23, 0.4), *days.split()]
        for index, (low, high) in ((2, (1, 28)), (3, (1, 12)), (4, (0, 6))):
            if fields[index] == "{}":
                fields[index] = some_field(rng, low, high, 0.1)
        expression = " ".join(fields)
        name = rng.choice([*ZONES, "UTC", "Asia/Kolkata"])
        tz = ZoneInfo(name)
        start = datetime(1970, 1, 2, tzinfo=UTC) + timedelta(seconds=rng.randrange(130 * 365 * 86_400 // 60) * 60)
        if rng.random() < 0.5:  # near a change of the clock
            year = rng.randint(1975, 2095)
            start = rng.choice([*changes(tz, year, year + 1), start]) - timedelta(hours=rng.randint(1, 30))
        try:
            expected = simulated(expression, start, tz, 6)
        except CronSimError:
            continue
        trigger = Cron(expression, timezone=name, start_time=start)
        rhythm = trigger.policy.on_gap == "skip"
        if rhythm and not all(matches(trigger, fire.astimezone(tz)) for fire in expected):
            passed_over += 1  # cronsim gives 01:00 for a rhythm of 00:00 where midnight is in the gap
            continue
        if rhythm and name in ODD_CHANGES:
            continue  # cronsim goes on in whole hours: after a change of half an hour it misses half of the next one
        assert fires(trigger, 6) == expected, (expression, name, start)
        compared += 1
    assert passed_over < 50


def test_random_expressions_with_seconds_fire_as_cronsim_says() -> None:
    rng = random.Random(6)
    for _ in range(200):
        expression = " ".join(
            [some_field(rng, 0, 59, 0.3), some_field(rng, 0, 59, 0.3), some_field(rng, 0, 23, 0.5), "* * *"]
        )
        start = datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=rng.randrange(10**9))
        assert fires(Cron(expression, start_time=start), 6) == simulated(expression, start, ZoneInfo("UTC"), 6)


# --- calendar intervals


@unhurried
@given(
    st.tuples(st.integers(0, 2), st.integers(0, 14), st.integers(0, 3), st.integers(0, 40)).filter(any),
    st.dates(date(1970, 1, 1), date(2090, 1, 1)),
    st.times().map(lambda clock: (clock.hour, clock.minute, clock.second)),
    st.sampled_from(ZONES),
)
def test_a_calendar_interval_fires_as_apschedulers_does_but_for_times_in_a_gap(
    interval: tuple[int, int, int, int], start: date, clock: tuple[int, int, int], name: str
) -> None:
    amounts = dict(zip(("years", "months", "weeks", "days"), interval, strict=True))
    named: dict[str, Any] = amounts | dict(zip(("hour", "minute", "second"), clock, strict=True))
    if name == "Pacific/Apia":  # APScheduler fires for the day that Apia never had
        days = fires(CalendarIntervalTrigger(**named, start_date=start, timezone=UTC), 40)
        assume(date(2011, 12, 30) not in {fire.date() for fire in days})
    stock = CalendarIntervalTrigger(**named, start_date=start, timezone=ZoneInfo(name))
    own = CalendarInterval(**named, start_date=start, timezone=name, on_gap="skip")
    assert fires(own, 40) == fires(stock, 40)


def test_a_day_that_a_zone_never_had_is_passed_over_and_the_rhythm_kept() -> None:
    settings_: dict[str, Any] = {"start_date": date(2010, 11, 25), "timezone": "Pacific/Apia", "on_gap": "skip"}
    yearly = CalendarInterval(years=1, months=1, days=5, **settings_)
    assert [fire.astimezone(ZoneInfo("Pacific/Apia")).date() for fire in fires(yearly, 3)] == [
        date(2010, 11, 25),
        date(2013, 2, 4),
        date(2014, 3, 9),
    ]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, ["03-27 02:30+01", "03-28 03:00+02", "03-29 02:30+02"]),
        ({"on_gap": "skip"}, ["03-27 02:30+01", "03-29 02:30+02"]),
        ({"start_date": date(2027, 10, 31)}, ["10-31 02:30+02", "11-01 02:30+01"]),
        ({"start_date": date(2027, 10, 31), "on_fold": "last"}, ["10-31 02:30+01", "11-01 02:30+01"]),
        ({"start_date": date(2027, 10, 31), "on_fold": "both"}, ["10-31 02:30+02", "10-31 02:30+01", "11-01 02:30+01"]),
    ],
)
def test_a_calendar_interval_over_a_change_of_the_clock(options: dict[str, Any], expected: list[str]) -> None:
    settings_ = {"start_date": date(2027, 3, 27), "timezone": "Europe/Berlin", **options}
    assert local(CalendarInterval(days=1, hour=2, minute=30, **settings_), len(expected)) == expected


def test_a_calendar_interval_ends() -> None:
    weekly = CalendarInterval(weeks=1, start_date=date(2026, 6, 1), end_date=date(2026, 6, 15))
    assert len(fires(weekly, 9)) == 3
    assert len(fires(CalendarInterval(years=2, start_date=date(9996, 2, 29)), 9)) == 1
    with pytest.raises(InvalidTrigger, match="at least a day"):
        CalendarInterval(hour=9)
    with pytest.raises(InvalidTrigger, match="on or after the start"):
        CalendarInterval(days=1, start_date=date(2026, 6, 1), end_date=date(2026, 5, 1))


# --- both kinds


OWN: list[Trigger] = [
    Cron("30 2 * * *", timezone="Europe/Berlin", start_time=datetime(2027, 10, 30, tzinfo=UTC), on_fold="both"),
    Cron("*/7 0-3 * * mon-sat", timezone="Africa/Cairo", start_time=datetime(2027, 4, 29, tzinfo=UTC)),
    Cron({"day": "last sun", "hour": "2-3"}, timezone="Europe/Berlin", start_time=datetime(2027, 1, 1, tzinfo=UTC)),
    Cron({"year": "2028", "week": 10}, start_time=datetime(2027, 1, 1, tzinfo=UTC)),
    Cron("0 9 29 2 *", end_time=datetime(2036, 3, 1, tzinfo=UTC), start_time=datetime(2027, 1, 1, tzinfo=UTC)),
    CalendarInterval(days=3, hour=2, timezone="Europe/Berlin", start_date=date(2027, 10, 1), on_fold="both"),
    CalendarInterval(months=1, start_date=date(2027, 1, 31), end_date=date(2028, 1, 31), on_gap="skip"),
    OrTrigger([Cron("*/20 2 * * *", timezone="Europe/Berlin", start_time=datetime(2027, 10, 31, tzinfo=UTC))]),
]


@pytest.mark.parametrize("trigger", OWN, ids=repr)
@pytest.mark.parametrize("fired", [0, 1, 2])
def test_a_trigger_goes_on_from_the_store_where_it_stood(trigger: Trigger, fired: int) -> None:
    trigger = copy.deepcopy(trigger)
    fires(trigger, fired)
    serializer = TypedJSONSerializer()
    stored = serializer.deserialize(serializer.serialize(trigger))
    assert serializer.serialize(stored) == serializer.serialize(trigger)
    assert fires(stored, 30) == fires(trigger, 30)


def test_the_stored_form_stays_readable() -> None:
    stored = (
        (
            b'{"$trigger":["duetime.cron",{"version":1,"fields":["*","*","*","*","mon-fri","9","0","0"],'
            b'"timezone":{"$zone":"Europe/Berlin"},"on_gap":"shift","on_fold":"first",'
            b'"start_time":{"$datetime":"2026-06-03T12:00:00+00:00"},"end_time":null,'
            b'"last_fire_time":{"$datetime":"2026-06-04T07:00:00+00:00"}}]}'
        ),
        (
            b'{"$trigger":["duetime.calendar_interval",{"version":1,"interval":[0,0,0,1],"time":[9,0,0],'
            b'"start_date":{"$date":"2026-06-01"},"end_date":null,"timezone":{"$zone":"Europe/Berlin"},"on_gap":"shift",'
            b'"on_fold":"first","last_date":{"$date":"2026-06-04"},'
            b'"last_fire_time":{"$datetime":"2026-06-04T07:00:00+00:00"}}]}'
        ),
    )
    for text in stored:
        trigger = TypedJSONSerializer().deserialize(text)
        assert TypedJSONSerializer().serialize(trigger) == text
        assert trigger.next() == datetime(2026, 6, 5, 7, tzinfo=UTC)
    with pytest.raises(UnreadableValue, match="newer release"):
        TypedJSONSerializer().deserialize(stored[0].replace(b'"version":1', b'"version":2'))


def test_rows_with_apschedulers_triggers_are_read_as_they_were_written() -> None:
    # What 0.1.0 stored for {"type": "cron", "expression": "0 9 * * mon-fri", "timezone": "Europe/Berlin"}.
    stored = (
        b'{"$trigger":["cron",{"version":1,"timezone":{"$zone":"Europe/Berlin"},'
        b'"fields":["*","*","*","*","mon-fri","9","0","0"],"start_time":{"$datetime":["2026-06-03T14:00:01",'
        b'"Europe/Berlin"]},"end_time":null,"last_fire_time":{"$datetime":["2026-06-04T09:00:00","Europe/Berlin"]}}]}'
    )
    trigger = TypedJSONSerializer().deserialize(stored)
    assert type(trigger) is CronTrigger
    assert trigger.next() == datetime(2026, 6, 5, 7, tzinfo=UTC)
    assert to_json(trigger) == {"type": "cron", "expression": "0 9 * * mon-fri", "timezone": "Europe/Berlin"}


def test_apschedulers_or_keeps_the_order_of_our_fire_times_in_a_repeated_hour() -> None:
    # By the clock on the wall 02:40 comes before 02:50, whichever hour they are of.
    start = datetime(2027, 10, 31, tzinfo=UTC)
    members: list[Trigger] = [
        Cron("50 2 * * *", timezone="Europe/Berlin", start_time=start),
        Cron("40 2 * * *", timezone="Europe/Berlin", start_time=start, on_fold="last"),
        Cron("50 0 * * *", start_time=start),
        parse_json({"type": "date", "run_at": "2027-10-31T02:50:00+02:00", "timezone": "Europe/Berlin"}),
    ]
    assert local(OrTrigger(members), 2) == ["10-31 02:50+02", "10-31 02:40+01"]
    stock = [Cron("50 0 * * *", start_time=start), DateTrigger(datetime(2027, 10, 31, 2, 50, tzinfo=BERLIN))]
    assert local(OrTrigger(stock), 2) == ["10-31 02:50+02", "10-31 02:50+02"]


JSON = [
    {"type": "cron", "expression": "30 2 * * *", "timezone": "Europe/Berlin", "on_gap": "skip"},
    {"type": "cron", "expression": "30 2 * * *", "timezone": "Europe/Berlin", "on_fold": "both"},
    {"type": "cron", "expression": "30 * * * *", "timezone": "Europe/Berlin", "on_gap": "shift", "on_fold": "last"},
    {"type": "cron", "fields": {"day": "2nd fri", "hour": "9", "minute": "0", "second": "0"}, "timezone": "UTC"},
    {"type": "calendar_interval", "days": 2, "hour": 2, "start_date": "2027-03-28", "timezone": "Europe/Berlin"},
    {"type": "calendar_interval", "months": 1, "start_date": "2027-03-28", "timezone": "UTC", "on_gap": "skip"},
]


@pytest.mark.parametrize("data", JSON, ids=str)
def test_the_json_of_a_trigger_says_what_is_unusual_about_it_and_nothing_else(data: dict[str, Any]) -> None:
    now = datetime(2027, 3, 20, tzinfo=UTC)
    assert to_json(parse_json(data, now=now), now=now) == data


def test_the_shortest_expression_never_changes_what_happens_when_the_clock_changes() -> None:
    # 0,30 is */30, and that would be a rhythm.
    data = to_json(parse_json({"type": "cron", "expression": "0,30 2 * * *", "timezone": "Europe/Berlin"}))
    assert data["expression"] == "*/30 2 * * *"
    assert (data["on_gap"], data["on_fold"]) == ("shift", "first")
    assert parse_json(data).policy == ("shift", "first")  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"on_gap": "skip"}, "every day at 02:30 (Europe/Berlin), not at a time that the clock skips"),
        (
            {"on_fold": "both"},
            "every day at 02:30 (Europe/Berlin), both times where the clock shows a time twice",
        ),
        ({"on_gap": "shift", "on_fold": "first"}, "every day at 02:30 (Europe/Berlin)"),
    ],
)
def test_words_say_what_is_unusual_when_the_clock_changes(options: dict[str, Any], words: str) -> None:
    assert describe(Cron("30 2 * * *", timezone="Europe/Berlin", **options)) == words


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"expression": "0 0 30 2 *"}, ["there is no day 30 in February", "last"]),
        ({"expression": "0 0 31 4,6 *"}, ["there is no day 31 in April or June"]),
        ({"fields": {"week": 53, "month": 6}}, ["month 6, ISO week 53", "40 years"]),
        ({"fields": {"year": 2025}}, ["year 2025"]),
        (
            {"fields": {"day": "last sun", "month": 3, "hour": 2}, "timezone": "Europe/Berlin", "on_gap": "skip"},
            ["never fires"],
        ),
    ],
)
def test_an_impossible_expression_is_refused_with_the_reason(data: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(TriggerNeverFires) as refused:
        parse_json({"type": "cron", **data}, now=datetime(2026, 6, 3, tzinfo=UTC))
    assert all(word in refused.value.message for word in words), refused.value.message


@pytest.mark.parametrize(
    ("data", "where", "words"),
    [
        ({"expression": "@daily", "on_gap": "shif"}, "trigger.on_gap", "did you mean 'shift'?"),
        ({"expression": "@daily", "on_fold": "twice"}, "trigger.on_fold", "'first', 'last' or 'both'"),
    ],
)
def test_an_unknown_policy_is_refused_with_the_known_ones(data: dict[str, Any], where: str, words: str) -> None:
    with pytest.raises(InvalidTrigger) as refused:
        parse_json({"type": "cron", **data})
    assert refused.value.details[0]["where"] == where
    assert words in refused.value.message
    with pytest.raises(InvalidTrigger, match="did you mean 'shift'"):
        Cron("@daily", on_gap="shif")  # type: ignore[arg-type]
    with pytest.raises(InvalidTrigger, match="did you mean 'hour'"):
        Cron({"hours": 9})
