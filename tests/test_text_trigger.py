"""Sentences that are understood as triggers, and those that are refused."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from duetime.errors import InvalidTrigger, UnknownTimeZone
from duetime.triggers import describe, parse_json, to_json, upcoming
from duetime.triggers.text import FORMS

from .test_docs import rows

BERLIN = ZoneInfo("Europe/Berlin")
NOW = datetime(2026, 6, 3, 12, 0, 0, 250_000, tzinfo=UTC)  # a Wednesday, 14:00 in Berlin
unhurried = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow], max_examples=500)


def text(words: str, timezone: str = "Europe/Berlin", **more: Any) -> dict[str, Any]:
    return {"type": "text", "text": words, "timezone": timezone, **more}


def times(words: str, count: int = 2, now: datetime = NOW) -> list[str]:
    return [
        f"{fire:%a %m-%d %H:%M:%S}".removesuffix(":00") for fire in upcoming(parse_json(text(words), now=now), count)
    ]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("in 2 hours", ["Wed 06-03 16:00:01"]),
        ("In 90 minutes.", ["Wed 06-03 15:30:01"]),
        ("in an hour and 30 minutes", ["Wed 06-03 15:30:01"]),
        ("half an hour from now", ["Wed 06-03 14:30:01"]),
        ("in 3 days at 9:00", ["Sat 06-06 09:00"]),
        ("in 2 weeks", ["Wed 06-17 14:00:01"]),
        ("in one month at noon", ["Fri 07-03 12:00"]),
        ("tomorrow at 9am", ["Thu 06-04 09:00"]),
        ("today at 17:30", ["Wed 06-03 17:30"]),
        ("the day after tomorrow at 9", ["Fri 06-05 09:00"]),
        ("on friday at 8 p.m.", ["Fri 06-05 20:00"]),
        ("on wednesday at 9:00", ["Wed 06-10 09:00"]),
        ("at 9:00 on wednesday", ["Wed 06-10 09:00"]),
        ("on thurs at 9:00", ["Thu 06-04 09:00"]),
        ("on wednesday at 15:00", ["Wed 06-03 15:00"]),
        ("next wednesday at 15:00", ["Wed 06-10 15:00"]),
        ("24 december at 18:00", ["Thu 12-24 18:00"]),
        ("on the 1st of june at 9", ["Tue 06-01 09:00"]),
        ("on 29 february at 9", ["Tue 02-29 09:00"]),
        ("december 24, 2027 at 6 pm", ["Fri 12-24 18:00"]),
        ("2026-12-24 at 18:00:30", ["Thu 12-24 18:00:30"]),
        ("2026-12-24T17:00Z", ["Thu 12-24 18:00"]),
    ],
)
def test_once(words: str, expected: list[str]) -> None:
    assert times(words) == expected


@pytest.mark.parametrize(
    ("words", "form"),
    [
        ("every 5 minutes", {"type": "interval", "minutes": 5, "start": NOW.isoformat()}),
        ("hourly", {"type": "interval", "hours": 1, "start": NOW.isoformat()}),
        ("every other hour", {"type": "interval", "hours": 2, "start": NOW.isoformat()}),
        ("every second", {"type": "interval", "seconds": 1, "start": NOW.isoformat()}),
        ("Every half hour", {"type": "interval", "minutes": 30, "start": NOW.isoformat()}),
        ("every hour at minute 15", "15 * * * *"),
        ("every weekday at 9:00", "0 9 * * mon-fri"),
        ("  every   weekday  at  09:00 ", "0 9 * * mon-fri"),
        ("weekdays at 9", "0 9 * * mon-fri"),
        ("every day at noon", "0 12 * * *"),
        ("every day at midnight", "0 0 * * *"),
        ("daily at 12:30 am", "30 0 * * *"),
        ("daily at 9:00 and 17:00", "0 9,17 * * *"),
        ("daily at 9 and 5 pm", "0 9,17 * * *"),
        ("every hour from 9 to 5 pm", "0 9-17 * * *"),
        ("mondays at 9", "0 9 * * mon"),
        ("every monday and friday at 9 am", "0 9 * * mon,fri"),
        ("each tues, thurs and saturday at 21:15", "15 21 * * tue,thu,sat"),
        ("monday through thursday at 9 o'clock", "0 9 * * mon-thu"),
        ("fri-mon at 9", "0 9 * * mon,fri-sun"),
        ("on fridays at 9", "0 9 * * fri"),
        ("on weekends at 10:30", "30 10 * * sat,sun"),
        ("at 9:00 on mondays", "0 9 * * mon"),
        ("at 9:00 every day", "0 9 * * *"),
        ("weekly on friday at 17:00", "0 17 * * fri"),
        ("on the 1st and 15th of the month at 9:00", "0 9 1,15 * *"),
        ("monthly on the 15th at 9", "0 9 15 * *"),
        ("1st of january and july at 9", "0 9 1 */6 *"),
        ("last day of the month at 18:00", "0 18 last * *"),
        ("every year on 24 december at 9:00", "0 9 24 12 *"),
        ("every 15 minutes on weekdays", "*/15 * * * mon-fri"),
        ("every 10 seconds between 8 and 18", "*/10 * 8-17 * * *"),
        ("every 2 hours between 8 and 18", "0 8-18/2 * * *"),
        ("every 2 hours from 22 to 6", "0 0,2,4,6,22 * * *"),
        ("every 30 minutes from 18 to midnight", "*/30 18-23 * * *"),
        ("0 9 * * mon-fri", "0 9 * * mon-fri"),
        ("@daily", "0 0 * * *"),
    ],
)
def test_again_and_again(words: str, form: Any) -> None:
    data = to_json(parse_json(text(words), now=NOW), now=NOW)
    if isinstance(form, dict):
        assert data == form
    else:
        assert data["expression"] == form
        assert data["timezone"] == "Europe/Berlin"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("first monday of the month at noon", ["Mon 07-06 12:00", "Mon 08-03 12:00"]),
        ("on the last friday of every month at 17:00", ["Fri 06-26 17:00", "Fri 07-31 17:00"]),
        ("2nd tuesday of january and july at 9", ["Tue 07-14 09:00", "Tue 01-12 09:00"]),
        ("first weekday of the month at 8:00", ["Wed 07-01 08:00", "Mon 08-03 08:00"]),
        ("last weekday of the month at 8:00", ["Tue 06-30 08:00", "Fri 07-31 08:00"]),
        ("every 3 days at 9:00", ["Thu 06-04 09:00", "Sun 06-07 09:00"]),
        ("every 3 days at 15:00", ["Wed 06-03 15:00", "Sat 06-06 15:00"]),
        ("every 2 weeks on monday at 9:00", ["Mon 06-08 09:00", "Mon 06-22 09:00"]),
        ("every other week on monday and thursday at 9", ["Thu 06-04 09:00", "Mon 06-15 09:00"]),
        ("every 2 weeks on wednesday at 15:00", ["Wed 06-03 15:00", "Wed 06-17 15:00"]),
        ("FREQ=WEEKLY;BYDAY=MO;BYHOUR=9;BYMINUTE=0;BYSECOND=0", ["Mon 06-08 09:00", "Mon 06-15 09:00"]),
    ],
)
def test_what_no_cron_expression_says(words: str, expected: list[str]) -> None:
    assert times(words) == expected


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("every 90 minutes between 8 and 18", "08:00 09:30 11:00 12:30 14:00 15:30 17:00"),
        ("every 90 minutes between 8:15 and 12:45 on weekdays", "08:15 09:45 11:15 12:45"),
        ("every 2 hours on thursdays between 9:30 am and 5:30 pm", "09:30 11:30 13:30 15:30 17:30"),
        ("every 7 minutes between 8 and 9", "08:00 08:07 08:14 08:21 08:28 08:35 08:42 08:49 08:56"),
        ("every 45 minutes from 22 to 1", "00:15 01:00 22:00 22:45 23:30"),
    ],
)
def test_a_rhythm_within_hours_is_counted_from_their_beginning_and_includes_their_end(
    words: str, expected: str
) -> None:
    thursday = [f"{fire:%H:%M}" for fire in upcoming(parse_json(text(words), now=NOW), 40) if fire.day == 4]
    assert " ".join(thursday) == expected


def test_times_of_day_and_rhythms_mean_over_a_change_of_the_clock_what_they_say() -> None:
    # As cron expressions, 2:00 and 2:30 is */30, a rhythm, and one half of every 90 minutes is times of day.
    spring = datetime(2027, 3, 27, 12, tzinfo=UTC)
    assert times("daily at 2:00 and 2:30", 3, spring) == ["Sun 03-28 03:00", "Mon 03-29 02:00", "Mon 03-29 02:30"]
    night = times("every 30 minutes between 1:30 and 4", 4, spring)
    assert night == ["Sun 03-28 01:30", "Sun 03-28 03:00", "Sun 03-28 03:30", "Sun 03-28 04:00"]
    autumn = times("every 90 minutes between 1 and 4", 4, datetime(2027, 10, 30, 12, tzinfo=UTC))
    assert autumn == ["Sun 10-31 01:00", "Sun 10-31 02:30", "Sun 10-31 02:30", "Sun 10-31 04:00"]


def test_hours_are_elapsed_time_and_days_keep_the_time_of_day() -> None:
    before = datetime(2027, 3, 27, 11, tzinfo=UTC)  # noon
    assert times("in 24 hours", 1, before) == ["Sun 03-28 13:00"]
    assert times("in 1 day", 1, before) == ["Sun 03-28 12:00"]


def test_the_zone_may_be_named_at_the_end() -> None:
    for words in ("every weekday at 9:00 in Asia/Tokyo", "every weekday at 9:00 (Asia/Tokyo)"):
        data = to_json(parse_json(text(words), now=NOW), now=NOW)
        assert data == {"type": "cron", "expression": "0 9 * * mon-fri", "timezone": "Asia/Tokyo"}
    assert to_json(parse_json(text("every day at 9 in utc"), now=NOW), now=NOW)["timezone"] == "UTC"
    with pytest.raises(UnknownTimeZone, match="did you mean 'Asia/Tokyo'"):
        parse_json(text("every weekday at 9:00 in Asia/Tokio"))


def test_a_sentence_may_have_exclusions_in_the_zone_that_it_names() -> None:
    data = text("every 90 minutes between 8 and 18 in Asia/Tokyo", exclude=["2026-06-04"])
    assert [str(fire) for fire in upcoming(parse_json(data, now=NOW), 1)] == ["2026-06-05 08:00:00+09:00"]


def test_what_was_understood_is_said() -> None:
    trigger = parse_json(text("first monday of the month at noon"), now=NOW)
    assert describe(trigger, now=NOW) == "at 12:00, on the 1st Monday of the month (Europe/Berlin)"
    assert to_json(trigger, now=NOW)["fields"]["day"] == "1st mon"


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.example)
def test_every_example_is_understood_and_by_its_own_form(form: Any) -> None:
    assert upcoming(parse_json(text(form.example), now=NOW), 1)
    first = next(each for each in FORMS if re.fullmatch(each.pattern, form.example.lower()))
    assert first is form


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("every weekday", ["nearest form is 'every weekday at 9:00'", "'cron', 'interval' or 'rrule'"]),
        ("tomorrow", ["nearest form is 'tomorrow at 9:00'"]),
        ("every wekday at 9:00", ["'wekday', did you mean 'weekday'?"]),
        ("evry monday at 9", ["'evry', did you mean 'every'?"]),
        ("first mondey of the month at 9", ["'mondey', did you mean 'monday'?"]),
        ("x", ["Forms: in 2 hours; "]),
        ("every day at 25:00", ["a time of day such as 9:00", "'25:00'"]),
        ("every day at 13 pm", ["1 to 12 with pm", "'13 pm'"]),
        ("today at 9:00", ["lies ahead", "write 'tomorrow at …'"]),
        ("on february 30 at 9:00", ["a day that exists", "'february 30'"]),
        ("on the 32nd of the month at 9", ["from 1 to 31"]),
        ("every year on 24 december 2027 at 9", ["without a year"]),
        ("next weekday at 9", ["nearest form is"]),
        ("every 45 seconds between 8 and 18", ["divides 60"]),
        ("every 0 minutes", ["at least 1"]),
        ("every hour at minute 60", ["0 to 59"]),
        ("every 1 minutes between 8:01 and 8:00 on mondays", ["over midnight"]),
        ("every 23 minutes between 0 and 24", ["divides 60"]),
        ("in 2 hours at 9:00", ["only with days"]),
        ("first weekend of the month at 9", ["such as saturday"]),
        ("2026-02-30T09:00", ["ISO 8601"]),
        ("9 9 9 9 mon tue", ["expected a valid cron trigger"]),
        ("FREQ=WEEKY", ["did you mean 'WEEKLY'?"]),
        ("in 9999 years", ["years 1 and 9999"]),
        ("every 999999 hours", ["a smaller number", "900000"]),
        ("every 999999 days at 9", ["a smaller number", "37000"]),
        ("5 minutes", ["nearest form is 'every 5 minutes'"]),
        ("second day", ["nearest form is"]),
        ("friday at 17:00", ["'every friday' for each week", "'on friday'"]),
        ("on friday at 9 and 17", ["'every friday' for each week"]),
        ("every hour between 9 and 5", ["'5 pm' or '5 am'"]),
        ("every hour from 9am to 5 o'clock", ["goes over midnight"]),
        ("every 30 minutes between 1 and 5 pm", ["am or pm with each time", "'1' before '5 pm'"]),
        ("every day at 7 and 8 p.m.", ["am or pm with each time"]),
        ("every 20 minutes between 8:10:30 and 18", ["full minutes", "'8:10:30'"]),
        ("fridays at 9, mondays at 10", ["known forms"]),
    ],
)
def test_a_sentence_that_is_not_understood_is_refused_with_what_to_say_instead(words: str, said: list[str]) -> None:
    with pytest.raises(InvalidTrigger) as refused:
        parse_json(text(words), now=NOW)
    assert all(each in refused.value.message for each in said), refused.value.message


def test_a_wrong_member_in_words_is_named_by_its_place() -> None:
    with pytest.raises(InvalidTrigger) as refused:
        parse_json({"type": "or", "triggers": [text("every day at 9:00"), text("every day at 25:00")]}, now=NOW)
    assert refused.value.details[0]["where"] == "trigger.triggers[1].text"


WORDS = sorted({word for form in FORMS for word in form.example.split()} | {",", "and", "(", "x", "24", "0", "31st"})


@unhurried
@given(st.lists(st.sampled_from(WORDS), min_size=1, max_size=30).map(" ".join) | st.text(max_size=300))
def test_any_words_are_a_trigger_or_refused(words: str) -> None:
    try:
        trigger = parse_json(text(words or "x"), now=NOW)
    except InvalidTrigger as exc:
        assert exc.message  # noqa: PT017
    else:
        assert describe(trigger, now=NOW)


def test_the_sentences_of_the_documentation_are_understood_as_it_says() -> None:
    seen = 0
    for sentences, forms in rows("http-api.md", "| Sentence | Understood as |"):
        for sentence in re.findall(r"`([^`]+)`", sentences):
            seen += 1
            kind = to_json(parse_json(text(sentence), now=NOW), now=NOW)["type"]
            assert f"`{kind}`" in forms, sentence
    assert seen > 15
