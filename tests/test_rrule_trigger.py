"""Recurrence rules against dateutil, and where the clock changes."""

from __future__ import annotations

import copy
import random
from datetime import UTC, date, datetime, timedelta
from itertools import islice
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from dateutil import tz as dateutil_tz
from dateutil.rrule import rrulestr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from duetime.errors import InvalidTrigger, TriggerNeverFires
from duetime.serializer import TypedJSONSerializer
from duetime.triggers import RRule, describe, parse_json, to_json, upcoming
from duetime.triggers.rrule_text import FREQUENCIES, PARTS, WEEKDAYS

from .test_cron_trigger import ZONES, fires, local

BERLIN = ZoneInfo("Europe/Berlin")


def oracle(rule: str, start: datetime, tz: ZoneInfo, count: int) -> list[datetime]:
    """What dateutil says: clock times, moved out of gaps as RFC 5545 has it, in the order of the instants."""
    walls = islice(rrulestr(rule, dtstart=start), count + (200 if "MINUTELY" in rule or "HOURLY" in rule else 10))
    moved = (dateutil_tz.resolve_imaginary(wall.replace(tzinfo=tz)).astimezone(UTC) for wall in walls)
    return sorted(set(moved))[:count]


def random_rule(rng: random.Random) -> str:
    freq = rng.choice(["YEARLY", "MONTHLY", "WEEKLY", "DAILY", "HOURLY", "MINUTELY"])
    parts = [f"FREQ={freq}", f"INTERVAL={rng.choice([1, 1, 2, 3, 5, 12, 15, 90])}"]
    days = rng.sample(WEEKDAYS, rng.randint(1, 4))
    if rng.random() < 0.4:
        if freq in ("YEARLY", "MONTHLY") and rng.random() < 0.6:
            days = [f"{rng.choice(['1', '2', '-1', '+4'])}{day}" for day in days]
        parts.append(f"BYDAY={','.join(days)}")
    if rng.random() < 0.3:
        parts.append(f"BYMONTH={','.join(str(rng.randint(1, 12)) for _ in range(3))}")
    if rng.random() < 0.3 and freq != "WEEKLY":
        parts.append(f"BYMONTHDAY={rng.choice(['1', '15', '-1', '29,30,31', '-3,7,13'])}")
    if rng.random() < 0.15 and freq == "YEARLY":
        parts.append(rng.choice(["BYWEEKNO=1,20,53", "BYYEARDAY=1,100,-1"]))
    if rng.random() < 0.4 and freq not in ("HOURLY", "MINUTELY"):
        parts.append(f"BYHOUR={rng.choice(['0,1,2,3', '9', '2', '8,12,18'])}")
    if rng.random() < 0.3 and freq != "MINUTELY":
        parts.append(f"BYMINUTE={rng.choice(['0,30', '15', '0,10,20,59'])}")
    if rng.random() < 0.2 and freq in ("YEARLY", "MONTHLY", "WEEKLY") and len(parts) > 2:
        parts.append(f"BYSETPOS={rng.choice(['1', '-1', '1,-1', '2'])}")
    if rng.random() < 0.2:
        parts.append(f"COUNT={rng.randint(1, 30)}")
    elif rng.random() < 0.1:
        parts.append("UNTIL=20280601T000000")
    if rng.random() < 0.3:
        parts.append(f"WKST={rng.choice(WEEKDAYS)}")
    return ";".join(parts)


def test_random_rules_fire_as_dateutil_says_in_all_zones_and_from_anywhere() -> None:
    rng = random.Random(5545)
    compared = refused = few = 0
    while compared < 600:
        rule, name = random_rule(rng), rng.choice(ZONES)
        tz = ZoneInfo(name)
        start = datetime(2026, 1, 1) + timedelta(minutes=rng.randrange(365 * 1440))  # noqa: DTZ001
        if rng.random() < 0.3:
            start = start.replace(month=3, day=27, year=rng.randint(1971, 2090), hour=rng.randint(0, 3))
        try:
            trigger = RRule(rule, start_time=start, timezone=name)
        except InvalidTrigger:
            refused += 1
            continue
        shortcut = copy.deepcopy(trigger)
        found = fires(trigger, 60)
        wanted = int(rule.split("COUNT=")[1].split(";")[0]) if "COUNT" in rule else 60
        if not found or (len(found) < wanted and "UNTIL" not in rule):
            few += 1
            continue  # a rule of few occurrences, which dateutil follows up to the year 9999
        expected = oracle(rule, start, tz, 60)
        assert found == expected, (rule, start, name)
        compared += 1
        # The same without walking there, and after a stay in the store.
        if len(expected) > 5:
            after = expected[rng.randrange(len(expected) - 2)] + timedelta(seconds=rng.choice([0, 1, -1]))
            shortcut.forward(after)
            later = [fire for fire in expected if fire > after]
            assert fires(shortcut, len(later)) == later, (rule, start, name, after)
            resumed = RRule(rule, start_time=start, timezone=name)
            fires(resumed, 3)
            serializer = TypedJSONSerializer()
            resumed = serializer.deserialize(serializer.serialize(resumed))
            assert fires(resumed, 57) == expected[3:], (rule, start, name)
    assert (refused < 200, few < 200) == (True, True), (refused, few)


NOW = datetime(2026, 6, 3, 12, 0, 0, 250_000, tzinfo=UTC)  # a Wednesday


def rule(text: str, **more: Any) -> dict[str, Any]:
    return {"type": "rrule", "rrule": text, "start": "2026-06-01T09:00", "timezone": "Europe/Berlin", **more}


def days(data: dict[str, Any], count: int) -> list[str]:
    return [f"{fire:%m-%d %H:%M}" for fire in upcoming(parse_json(data, now=NOW), count)]


@pytest.mark.parametrize(
    ("data", "fires_"),
    [
        (rule("FREQ=WEEKLY"), ["06-08 09:00", "06-15 09:00"]),
        (rule("freq=weekly;byday=mo,fr"), ["06-05 09:00", "06-08 09:00"]),
        (rule("RRULE:FREQ=WEEKLY;INTERVAL=2;BYDAY=MO"), ["06-15 09:00", "06-29 09:00"]),
        (rule("FREQ=MONTHLY;BYDAY=1MO"), ["07-06 09:00", "08-03 09:00"]),
        (rule("FREQ=MONTHLY;BYDAY=MO,TU,WE,TH,FR;BYSETPOS=-1"), ["06-30 09:00", "07-31 09:00"]),
        (rule("FREQ=MINUTELY;INTERVAL=90;BYHOUR=9,10,11,12;BYDAY=MO"), ["06-08 09:00", "06-08 10:30", "06-08 12:00"]),
        (rule("FREQ=DAILY;COUNT=4"), ["06-04 09:00"]),  # one to three have been
        (rule("FREQ=DAILY;UNTIL=20260605T070000Z"), ["06-04 09:00", "06-05 09:00"]),
        (rule("FREQ=DAILY;UNTIL=20260605"), ["06-04 09:00", "06-05 09:00"]),
        (rule("FREQ=DAILY;UNTIL=20260605T085959"), ["06-04 09:00"]),
        (rule("FREQ=DAILY;COUNT=5", exdate=["2026-06-04"]), ["06-05 09:00"]),
        (rule("FREQ=DAILY", exdate=["2026-06-04T09:00", "2026-06-05T07:00:00Z"]), ["06-06 09:00", "06-07 09:00"]),
        (rule("FREQ=DAILY", exdate=["2026-06-04T10:00"]), ["06-04 09:00", "06-05 09:00"]),
        ({"type": "rrule", "rrule": "FREQ=HOURLY"}, ["06-03 13:00", "06-03 14:00"]),
        (rule("FREQ=YEARLY;BYMONTH=2;BYMONTHDAY=29;BYDAY=MO"), ["02-29 09:00"]),
    ],
)
def test_rules_fire_when_they_say_from_now_on(data: dict[str, Any], fires_: list[str]) -> None:
    more = ["COUNT" in data["rrule"] or "UNTIL" in data["rrule"]]
    assert days(data, len(fires_) + sum(more)) == fires_


def test_an_occurrence_in_a_gap_is_moved_by_its_length_and_keeps_its_place_in_the_order() -> None:
    # 02:15 and 02:30 are moved to 03:15 and 03:30, which are occurrences, too.
    text = "FREQ=DAILY;BYHOUR=2,3;BYMINUTE=10,30"
    start = datetime(2027, 3, 28, tzinfo=BERLIN)
    assert local(RRule(text, start_time=start, timezone=BERLIN), 4) == [
        "03-28 03:10+02",
        "03-28 03:30+02",
        "03-29 02:10+02",
        "03-29 02:30+02",
    ]
    mixed = RRule("FREQ=DAILY;BYHOUR=2,3;BYMINUTE=40;BYSECOND=0", start_time=start, timezone=BERLIN)
    assert local(mixed, 2) == ["03-28 03:40+02", "03-29 02:40+02"]
    overtaken = RRule("FREQ=HOURLY;INTERVAL=1;BYHOUR=2,3;BYMINUTE=5,55", start_time=start, timezone=BERLIN)
    assert local(overtaken, 3) == ["03-28 03:05+02", "03-28 03:55+02", "03-29 02:05+02"]


def test_a_time_that_comes_twice_counts_the_first_time() -> None:
    autumn = RRule("FREQ=DAILY;BYHOUR=2;BYMINUTE=30", start_time=datetime(2027, 10, 31, tzinfo=BERLIN), timezone=BERLIN)
    assert local(autumn, 2) == ["10-31 02:30+02", "11-01 02:30+01"]


def test_the_stored_form_stays_readable_in_the_middle_of_a_gap() -> None:
    trigger = RRule(
        "FREQ=DAILY;COUNT=9;BYHOUR=2,3;BYMINUTE=10,30",
        start_time=datetime(2027, 3, 28),  # noqa: DTZ001
        timezone="Europe/Berlin",
        exdates=[date(2027, 3, 30)],
    )
    fires(trigger, 1)
    stored = (
        b'{"$trigger":["duetime.rrule",{"version":1,"rule":"FREQ=DAILY;COUNT=9;BYHOUR=2,3;BYMINUTE=10,30",'
        b'"start":{"$datetime":"2027-03-28T00:00:00"},"timezone":{"$zone":"Europe/Berlin"},'
        b'"exdates":[{"$date":"2027-03-30"}],"wall":{"$datetime":"2027-03-28T03:10:00"},"taken":3,'
        b'"pending":[{"$datetime":"2027-03-28T01:10:00+00:00"},{"$datetime":"2027-03-28T01:30:00+00:00"}],'
        b'"last_fire_time":{"$datetime":"2027-03-28T01:10:00+00:00"}}]}'
    )
    assert TypedJSONSerializer().serialize(trigger) == stored
    expected = ["03-28 03:30+02", "03-29 02:10+02", "03-29 02:30+02", "03-29 03:10+02", "03-29 03:30+02"]
    assert local(TypedJSONSerializer().deserialize(stored), 9) == expected
    assert local(trigger, 9) == expected


@pytest.mark.parametrize(
    "text",
    [
        "FREQ=YEARLY;BYMONTH=2;BYMONTHDAY=30",
        "FREQ=DAILY;BYMONTH=2;BYMONTHDAY=30",
        "FREQ=MONTHLY;INTERVAL=12;BYMONTH=3",
        "FREQ=WEEKLY;INTERVAL=2;BYMONTH=2;BYDAY=MO;UNTIL=20270101",
        "FREQ=HOURLY;INTERVAL=36;BYHOUR=5",
        "FREQ=MINUTELY;BYMONTH=2;BYMONTHDAY=30",
        "FREQ=SECONDLY;BYMONTH=2;BYMONTHDAY=30",
        "FREQ=MINUTELY;INTERVAL=7;BYMONTH=2;BYMONTHDAY=30",
        "FREQ=MINUTELY;INTERVAL=15;BYMINUTE=1",
        "FREQ=DAILY;COUNT=2",
    ],
)
def test_a_rule_that_never_fires_is_refused_after_a_bounded_search(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    looked_at = 0
    take = RRule._take

    def counted(trigger: RRule) -> datetime | None:
        nonlocal looked_at
        try:
            return take(trigger)
        finally:
            if trigger._interval is not None:
                looked_at += trigger._interval.periods - trigger._interval.left

    monkeypatch.setattr(RRule, "_take", counted)
    with pytest.raises(TriggerNeverFires):
        parse_json(rule(text), now=NOW)
    assert looked_at < 20_000


@pytest.mark.parametrize(
    ("text", "part", "words"),
    [
        ("", "", ["NAME=VALUE"]),
        ("every monday", "", ["NAME=VALUE"]),
        ("BYDAY=MO", "FREQ", ["FREQ is missing", "YEARLY"]),
        ("FREQ=WEEKY", "FREQ", ["'WEEKY', did you mean 'WEEKLY'?"]),
        ("FREQ=WEEKLY;BYDYA=MO", "", ["'BYDYA', did you mean 'BYDAY'?"]),
        ("FREQ=WEEKLY;FREQ=DAILY", "FREQ", ["twice"]),
        ("FREQ=WEEKLY;BYDAY=MON", "BYDAY", ["'MON', did you mean 'MO'?"]),
        ("FREQ=WEEKLY;BYDAY=1MO", "BYDAY", ["FREQ=MONTHLY", "write MO"]),
        ("FREQ=MONTHLY;BYDAY=0MO", "BYDAY", ["1 to 53"]),
        ("FREQ=MONTHLY;BYMONTHDAY=32", "BYMONTHDAY", ["-31 to 31", "'32'"]),
        ("FREQ=MONTHLY;BYMONTHDAY=0", "BYMONTHDAY", ["got 0"]),
        ("FREQ=WEEKLY;BYMONTHDAY=1", "BYMONTHDAY", ["cannot be combined with FREQ=WEEKLY"]),
        ("FREQ=DAILY;BYHOUR=24", "BYHOUR", ["0 to 23", "'24'"]),
        ("FREQ=DAILY;BYHOUR=9.5", "BYHOUR", ["'9.5'"]),
        ("FREQ=DAILY;INTERVAL=0", "INTERVAL", ["1 to 10000"]),
        ("FREQ=DAILY;COUNT=10001", "COUNT", ["1 to 10000"]),
        ("FREQ=DAILY;COUNT=3;UNTIL=20270101", "UNTIL", ["cannot both"]),
        ("FREQ=DAILY;UNTIL=2027-01-01", "UNTIL", ["20261231T235959Z"]),
        ("FREQ=DAILY;UNTIL=20271301", "UNTIL", ["'20271301'"]),
        ("FREQ=DAILY;WKST=XX", "WKST", ["'XX'"]),
        ("FREQ=DAILY;BYSETPOS=1", "BYSETPOS", ["another BY"]),
        ("DTSTART:20260601T090000\nRRULE:FREQ=DAILY", "", ["'start' and 'timezone'"]),
        ("FREQ=DAILY;EXDATE=20260601", "", ["'exdate'"]),
        ("FREQ=MINUTELY;INTERVAL=7;BYHOUR=9", "INTERVAL", ["divides the day"]),
    ],
)
def test_a_wrong_rule_is_refused_with_its_part_and_what_was_expected(text: str, part: str, words: list[str]) -> None:
    with pytest.raises(InvalidTrigger) as refused:
        parse_json(rule(text))
    assert refused.value.details[0]["where"] == f"trigger.rrule.{part}".rstrip(".")
    assert all(word in refused.value.message for word in words), refused.value.message


def test_a_wrong_exdate_is_refused_with_its_place() -> None:
    with pytest.raises(InvalidTrigger, match=r"exdate\[1\].*'soon'"):
        parse_json(rule("FREQ=DAILY", exdate=["2026-12-24", "soon"]))


@pytest.mark.parametrize(
    "data",
    [
        rule("FREQ=WEEKLY;INTERVAL=2;BYDAY=MO,FR", start="2026-06-01T09:00:00"),
        rule("FREQ=DAILY;COUNT=100", start="2026-06-01T02:30:00", exdate=["2026-06-09", "2026-06-10T02:30:00"]),
        rule("FREQ=WEEKLY", start="2026-06-01T09:00:00", exclude=["12-25", {"from": "2026-07-01", "to": "2026-07-31"}]),
    ],
)
def test_the_json_of_a_rule_is_what_was_given(data: dict[str, Any]) -> None:
    assert to_json(parse_json(data, now=NOW), now=NOW) == data


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("FREQ=WEEKLY;BYDAY=MO,WE,FR", "every week at 09:00, on Monday, Wednesday and Friday"),
        ("FREQ=WEEKLY;INTERVAL=2", "every 2 weeks at 09:00, on Monday, counted from 1 June 2026"),
        ("FREQ=DAILY;COUNT=10", "every day at 09:00, 10 times from 1 June 2026"),
        ("FREQ=DAILY;BYHOUR=9,17;BYMINUTE=30", "every day at 09:30 and 17:30"),
        ("FREQ=MONTHLY;BYDAY=1MO,-1FR", "every month at 09:00, on the 1st Monday and the last Friday of the month"),
        ("FREQ=MONTHLY;BYMONTHDAY=1,15,-1", "every month at 09:00, on days 1 and 15 and the last day of the month"),
        ("FREQ=YEARLY;BYMONTH=12;BYMONTHDAY=24", "every year at 09:00, on day 24 of the month in December"),
        ("FREQ=YEARLY", "every year at 09:00, on day 1 of the month in June"),
        ("FREQ=MONTHLY;BYDAY=FR;BYMONTHDAY=13", "every month at 09:00, on day 13 of the month if that is Friday"),
        ("FREQ=HOURLY;INTERVAL=6", "every 6 hours at minute 0, counted from 1 June 2026"),
        (
            "FREQ=MONTHLY;BYDAY=MO,FR;BYSETPOS=1",
            "rrule 'FREQ=MONTHLY;BYDAY=MO,FR;BYSETPOS=1' from 1 June 2026 at 09:00",
        ),
        ("FREQ=DAILY;UNTIL=20270101T000000Z", "every day at 09:00, until 1 January 2027 at 00:00 (UTC)"),
    ],
)
def test_a_rule_in_words(text: str, words: str) -> None:
    assert describe(parse_json(rule(text), now=NOW)) == f"{words} (Europe/Berlin)"


def test_a_rule_that_began_long_ago_is_not_walked_through(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = 0
    take = RRule._take

    def counted(trigger: RRule) -> datetime | None:
        nonlocal taken
        taken += 1
        return take(trigger)

    monkeypatch.setattr(RRule, "_take", counted)
    for text in ("FREQ=SECONDLY", "FREQ=MINUTELY;INTERVAL=7", "FREQ=HOURLY;INTERVAL=5", "FREQ=DAILY", "FREQ=WEEKLY"):
        parse_json(rule(text, start="1971-01-01T00:00"), now=NOW).next()
    assert taken < 20


VALUES = ["MO", "1MO,-1FR", "SU,2", "1", "-1", "0", "5,7,9", "60", "366", "YEARLY", "DAILY", "MINUTELY", "20270101", ""]
PARTS_OF_RULES = st.tuples(st.sampled_from([*PARTS, "BYEASTER", "X"]), st.sampled_from(VALUES)).map("=".join)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow], max_examples=500)
@given(
    st.sampled_from(FREQUENCIES),
    st.lists(PARTS_OF_RULES, max_size=4).map(";".join) | st.text(max_size=40),
)
def test_any_text_is_a_rule_or_refused(freq: str, text: str) -> None:
    try:
        trigger = parse_json(rule(f"FREQ={freq};{text}"), now=NOW)
    except InvalidTrigger as exc:
        assert exc.message  # noqa: PT017
        return
    found = upcoming(trigger, 3)
    assert found == sorted(set(found))
    assert describe(trigger)
    assert upcoming(parse_json(to_json(trigger), now=NOW), 3) == found
