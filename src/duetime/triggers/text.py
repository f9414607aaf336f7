"""A trigger in plain English, for people and agents: understood as one of the other forms, or refused."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from datetime import datetime, time, timedelta
from difflib import get_close_matches
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo

from duetime.errors import InvalidTrigger

from .cron import WEEKDAYS, FieldValues, parse_field
from .specs import MAX_MEMBERS
from .text_exceptions import EXAMPLE, EXCEPT, left_out
from .text_times import (
    DATE,
    DAYS,
    MONTH_LIST,
    NUMBER,
    ONE_DAY,
    ORDINAL,
    TIME,
    TIMES,
    UNIT,
    clock,
    clocks,
    day_of_year,
    end_of_span,
    months,
    nearest_word,
    number,
    ordinal,
    refused,
    shifted,
    unit,
    weekdays,
)
from .zones import in_zone, zone

MAX_TEXT = 300

_DAY_MINUTES = 24 * 60
_DAYTIME = range(5, 20)
"""Hours in which clocks are not changed; the exceptions since 1970 are a dozen single changes."""
_ZONE = re.compile(r"(?:,? in|,? \(|,) ?((?:[A-Za-z_]+(?:/[A-Za-z0-9_+-]+){1,2})|UTC)\)?$", re.IGNORECASE)
_CRON = re.compile(r"(@\w+|[\d*][\w*/,-]*(?: [\w*/,#-]+){4,5})")
_CODES = ("MO", "TU", "WE", "TH", "FR", "SA", "SU")


class Now(NamedTuple):
    """When and where a text is read."""

    moment: datetime
    zone: ZoneInfo

    @property
    def timezone(self) -> dict[str, str]:
        """The member of a JSON form that says the zone."""
        return {"timezone": self.zone.key}


class Form(NamedTuple):
    """One kind of sentence: an example, what it looks like, and the JSON form that it is understood as."""

    example: str
    pattern: str
    build: Callable[[re.Match[str], Now], dict[str, Any]]


def understand(text: str, *, timezone: str, now: datetime) -> dict[str, Any]:
    """Return the JSON form of a trigger in plain English.

    A cron expression, an RRULE or a date in ISO 8601 are understood, too. Without a zone at its end ("in
    Europe/Berlin") the text is read in ``timezone``. Public holidays may be left out ("… except public holidays in
    Germany").

    :raises InvalidTrigger: with the nearest sentence that is understood
    """
    if len(text) > MAX_TEXT:
        raise refused(f"expected at most {MAX_TEXT} characters, got {len(text)}")
    said = " ".join(text.split()).rstrip(".! ")
    if (parts := EXCEPT.fullmatch(said)) is None:
        return _understood(text, said, timezone, now)
    place = parts["place"] or ""
    # "… except public holidays in Germany in Europe/Berlin"; "in DE/BY" has nothing before it that is a place.
    if end := _ZONE.search(place):
        place, timezone = place[: end.start()], end[1]
    exclusion = left_out(place, text)
    form = _understood(text, parts["when"], timezone, now)
    if form["type"] == "date":
        raise refused(f"expected times again and again that holidays are exceptions of, got {parts['when']!r:.80}")
    return {**form, "exclude": [exclusion]}


def _understood(text: str, said: str, timezone: str, now: datetime) -> dict[str, Any]:
    place = _ZONE.search(said)
    here = Now(now, zone("UTC" if place and place[1].upper() == "UTC" else place[1] if place else timezone))
    said = said[: place.start()] if place else said
    if _CRON.fullmatch(said):
        return {"type": "cron", "expression": said, **here.timezone}
    if "FREQ=" in said.upper():
        return {"type": "rrule", "rrule": said, **here.timezone}
    words = re.sub(r"\b(please|each)\b", lambda match: "every" if match[0] == "each" else "", said.lower())
    words = " ".join(re.sub(r"\b([ap])\.m\b\.?", r"\1m", words).split())
    words = re.sub(r"\bevery (day|weekday|weekend)s?\b", r"every \1", words)
    for form in FORMS:
        if match := re.fullmatch(form.pattern, words):
            return form.build(match, here)
    raise _not_understood(text, words)


def _not_understood(text: str, words: str) -> InvalidTrigger:
    examples = [*(form.example for form in FORMS), EXAMPLE]
    for word in re.findall(r"[a-z]{3,}", words):
        hint = nearest_word(word)
        if hint != "." and word not in hint and word not in " ".join(examples):
            raise refused(f"expected a sentence that is known, got {text[:80]!r} with the word {word!r}{hint[:-1]}?")
    says_except = re.search(r"(except|excluding|holidays?)", words)
    close = [EXAMPLE] if says_except else get_close_matches(words, examples, n=1, cutoff=0.4)
    nearest = f"The nearest form is {close[0]!r}." if close else f"Forms: {'; '.join(examples)}."
    problem = f"expected a time in one of the known forms, got {text[:80]!r}"
    return InvalidTrigger(
        f"{problem}. {nearest} Or give a 'cron', 'interval' or 'rrule' trigger.",
        details=[{"where": "trigger.text", "problem": f"{problem}. {nearest}"}],
    )


# -- once -------------------------------------------------------------------------------------------------------------


def _once(moment: datetime, here: Now) -> dict[str, Any]:
    return {"type": "date", "run_at": in_zone(moment, here.zone).isoformat(), **here.timezone}


def _in(match: re.Match[str], here: Now) -> dict[str, Any]:
    moment = here.moment.astimezone(here.zone)
    text = match["amounts"].replace("half an hour", "30 minutes")
    for amount, name in re.findall(rf"({NUMBER}) ({UNIT})", text):
        moment = shifted(moment, number(amount), unit(name))
    if match["time"]:
        if re.search(r"hour|hr|min|sec", text):
            raise refused(f"expected a time of day only with days, weeks, months or years, got {match[0]!r}")
        moment = datetime.combine(moment.date(), clock(match["time"]))
    elif moment.microsecond:
        moment = shifted(moment.replace(microsecond=0), 1, "second")
    return _once(moment, here)


def _day(match: re.Match[str], here: Now) -> dict[str, Any]:
    today = here.moment.astimezone(here.zone)
    at = clock(match["time"])
    if match["near"]:
        day = today.date() + timedelta(days={"today": 0, "tomorrow": 1, "the day after tomorrow": 2}[match["near"]])
        moment = datetime.combine(day, at)
        if in_zone(moment, here.zone) < here.moment:
            raise refused(f"expected a time that lies ahead, got {match[0]!r}, which has been; write 'tomorrow at …'")
        return _once(moment, here)
    if match["weekday"]:
        [wanted] = weekdays(match["weekday"])
        ahead = (wanted - today.weekday()) % 7
        moment = datetime.combine(today.date() + timedelta(days=ahead), at)
        if in_zone(moment, here.zone) < here.moment or (match["next"] and not ahead):
            moment += timedelta(days=7)
        return _once(moment, here)
    year, month, day_number = day_of_year(match["date"])
    if year is not None:
        return _once(datetime(year, month, day_number, at.hour, at.minute, at.second), here)  # noqa: DTZ001
    for candidate in range(today.year, today.year + 9):
        try:
            moment = datetime(candidate, month, day_number, at.hour, at.minute, at.second)  # noqa: DTZ001
        except ValueError:
            continue  # 29 February
        if in_zone(moment, here.zone) >= here.moment:
            return _once(moment, here)
    raise refused(f"expected a day that exists, got {match['date']!r}")


def _iso(match: re.Match[str], here: Now) -> dict[str, Any]:
    try:
        return _once(datetime.fromisoformat(match[0].upper()), here)
    except ValueError:
        raise refused(f"expected a date and time in ISO 8601, got {match[0]!r}") from None


# -- again and again ---------------------------------------------------------------------------------------------------


def _cron(
    times: Iterable[time], here: Now, fields: dict[str, str] | None = None, *, rhythm: bool = False
) -> dict[str, Any]:
    """Return the JSON form for times of day on the days that the fields say: one cron trigger, or an "or".

    :param rhythm: the times are those of "every … minutes", and what a change of the clock means to it is said alike
        for all of them; otherwise it is said as of times of day, even if they look like a rhythm (9:00 and 9:30)
    """
    times = list(times)
    policy = {"on_gap": "skip", "on_fold": "both"} if rhythm else {"on_gap": "shift", "on_fold": "first"}
    if all(at.hour in _DAYTIME for at in times):
        policy = {}  # it makes no difference, so it need not be said
    by_second: dict[tuple[int, ...], dict[int, set[int]]] = {}
    for at in times:
        by_second.setdefault((at.second,), {}).setdefault(at.hour, set()).add(at.minute)
    groups: list[dict[str, str]] = []
    for seconds, hours in by_second.items():
        shared: dict[frozenset[int], set[int]] = {}
        for hour, minutes in hours.items():
            shared.setdefault(frozenset(minutes), set()).add(hour)
        by_minute: dict[frozenset[int], set[int]] = {}
        for minute in sorted({each for minutes in hours.values() for each in minutes}):
            having = frozenset(hour for hour, minutes in hours.items() if minute in minutes)
            by_minute.setdefault(having, set()).add(minute)
        pairs = [(minutes, frozenset(of)) for minutes, of in shared.items()]
        if len(by_minute) < len(pairs):
            pairs = [(frozenset(minutes), of) for of, minutes in by_minute.items()]
        for some_minutes, some_hours in pairs:
            second, minute_text, hour_text = (
                _field(name, numbers)
                for name, numbers in (("second", seconds), ("minute", some_minutes), ("hour", some_hours))
            )
            groups.append({**(fields or {}), "hour": hour_text, "minute": minute_text, "second": second})
    if len(groups) > MAX_MEMBERS:
        raise refused(
            "expected times that fall on the same minutes of most hours, got too many different ones; choose a number "
            "of minutes that divides 60 or a whole number of hours, or leave out 'between'"
        )
    members = [{"type": "cron", "fields": group, **policy, **here.timezone} for group in groups]
    return members[0] if len(members) == 1 else {"type": "or", "triggers": members, **here.timezone}


def _field(name: str, numbers: Iterable[int]) -> str:
    return str(FieldValues(parse_field(name, "0").kind, frozenset(numbers)))


def _on(days: frozenset[int]) -> dict[str, str]:
    return {} if len(days) == 7 else {"day_of_week": ",".join(WEEKDAYS[day] for day in sorted(days))}


def _days_at(match: re.Match[str], here: Now) -> dict[str, Any]:
    day = match["days"]
    if re.fullmatch(ONE_DAY, day) and match["lead"] != "every ":
        raise refused(f"expected 'every {day}' for each week, or 'on {day}' with one time for once, got {match[0]!r}")
    return _cron(clocks(match["times"]), here, _on(weekdays(match["days"])))


def _hourly(match: re.Match[str], here: Now) -> dict[str, Any]:
    minute = int(match["minute"])
    if minute > 59:
        raise refused(f"expected a minute from 0 to 59, got {minute}")
    return {"type": "cron", "expression": f"{minute} * * * *", **here.timezone}


def _step(match: re.Match[str]) -> tuple[int, str]:
    if match["unit"] is None:
        return (30, "minute") if match["half"] else (1, "hour")
    return number(match["number"] or "1"), unit(match["unit"])


def _every(match: re.Match[str], here: Now) -> dict[str, Any]:
    amount, name = _step(match)
    if amount < 1:
        raise refused("expected a number of at least 1, got 0")
    days = weekdays(match["days"]) if match["days"] else frozenset(range(7))
    if not match["start"] and len(days) == 7:
        return {"type": "interval", f"{name}s": amount, **here.timezone}
    start, end = time(0), time(23, 59, 59)
    if match["start"]:
        start = clock(match["start"])
        end = end if match["end"] in ("24", "24:00", "midnight") else end_of_span(match["start"], match["end"])
        if start.second or (end.second and end != time(23, 59, 59)):
            raise refused(f"expected a span of full minutes, got {match['start']!r} and {match['end']!r}")
    if name == "second" and amount < 60:
        return _every_second(amount, start, end, days, here)
    minutes = amount * {"second": 1, "minute": 60, "hour": 3600}[name] // 60
    if name == "second" and amount % 60:
        raise refused(f"expected a number of seconds that divides 60, or whole minutes, got {amount}")
    first, last = start.hour * 60 + start.minute, end.hour * 60 + end.minute
    if last < first:
        if len(days) < 7:
            raise refused("expected a span within the day when weekdays are given, got one that goes over midnight")
        last += _DAY_MINUTES
    if minutes > last - first and minutes >= _DAY_MINUTES:
        raise refused(f"expected less than a day between two fires of a day, got {amount} {name}s")
    ats = (at % _DAY_MINUTES for at in range(first, last + 1, minutes))
    return _cron([time(at // 60, at % 60) for at in ats], here, _on(days), rhythm=True)


def _every_second(amount: int, start: time, end: time, days: frozenset[int], here: Now) -> dict[str, Any]:
    end_hour = 24 if end == time(23, 59, 59) else end.hour
    whole = start.minute == start.second == 0 and (end_hour == 24 or end.minute == end.second == 0)
    if 60 % amount or not whole or start.hour >= end_hour:
        raise refused(
            f"expected a number of seconds that divides 60 between full hours of one day, got {amount} seconds"
        )
    fields = {**_on(days), "hour": _field("hour", range(start.hour, end_hour)), "minute": "*"}
    return {"type": "cron", "fields": {**fields, "second": _field("second", range(0, 60, amount))}, **here.timezone}


def _start(here: Now, at: time) -> dict[str, Any]:
    today = here.moment.astimezone(here.zone).date()
    return {"start": datetime.combine(today, at).isoformat(), **here.timezone}


def _every_days(match: re.Match[str], here: Now) -> dict[str, Any]:
    amount, at = number(match["number"]), clock(match["time"])
    local = here.moment.astimezone(here.zone)
    first = local.date() if in_zone(datetime.combine(local.date(), at), here.zone) >= here.moment else None
    start = first or local.date() + timedelta(days=1)
    parts = {"hour": at.hour, "minute": at.minute, "second": at.second}
    named = {"type": "calendar_interval", "days": amount, **{name: value for name, value in parts.items() if value}}
    return {**named, "start_date": start.isoformat(), **here.timezone}


def _every_weeks(match: re.Match[str], here: Now) -> dict[str, Any]:
    days, at = weekdays(match["days"]), clock(match["time"])
    amount = number(match["number"] or "1")
    if amount == 1:
        return _cron([at], here, _on(days))
    codes = ",".join(_CODES[day] for day in sorted(days))
    # Counted from the first of these days that lies ahead.
    local = here.moment.astimezone(here.zone)
    ahead = next(
        day
        for day in range(8)
        if (local.weekday() + day) % 7 in days
        and in_zone(datetime.combine(local.date() + timedelta(days=day), at), here.zone) >= here.moment
    )
    start = datetime.combine(local.date() + timedelta(days=ahead), at)
    rule = f"FREQ=WEEKLY;INTERVAL={amount};BYDAY={codes}"
    return {"type": "rrule", "rrule": rule, "start": start.isoformat(), **here.timezone}


def _of_month(match: re.Match[str], here: Now) -> dict[str, Any]:
    which, at = ordinal(match["ordinal"]), clocks(match["times"])
    limited = {"month": ",".join(map(str, months(match["months"])))} if match["months"] else {}
    what = match["what"].removesuffix("s")
    if what == "day":
        return _cron(at, here, {"day": "last" if which == "last" else which[:-2], **limited})
    if what in ("weekday", "workday"):
        if len(at) > 1 or limited:
            raise refused("expected one time and no months with the first or last weekday of the month")
        position = -1 if which == "last" else int(which[0])
        rule = f"FREQ=MONTHLY;BYDAY=MO,TU,WE,TH,FR;BYSETPOS={position}"
        return {"type": "rrule", "rrule": rule, **_start(here, at[0])}
    if what == "weekend":
        raise refused(f"expected a weekday such as saturday, got {what!r}")
    days = ",".join(f"{which} {WEEKDAYS[day]}" for day in sorted(weekdays(what)))
    return _cron(at, here, {"day": days, **limited})


def _days_of_month(match: re.Match[str], here: Now) -> dict[str, Any]:
    days = sorted({int(each) for each in re.findall(r"\d+", match["days"])})
    if not 1 <= days[0] <= days[-1] <= 31:
        raise refused(f"expected days of the month from 1 to 31, got {match['days']!r}")
    limited = {"month": ",".join(map(str, months(match["months"])))} if match["months"] else {}
    return _cron(clocks(match["times"]), here, {"day": ",".join(map(str, days)), **limited})


def _yearly(match: re.Match[str], here: Now) -> dict[str, Any]:
    year, month, day = day_of_year(match["date"])
    if year is not None:
        raise refused(f"expected a day without a year in 'every year on', got {match['date']!r}")
    return _cron(clocks(match["times"]), here, {"month": str(month), "day": str(day)})


_AT = rf"(?:,? at|,? @|,)? ?(?P<times>{TIMES})"
_AT_ONE = rf"(?:,? at|,? @|,)? ?(?P<time>{TIME})"
_MONTHS_OF = rf"(?:of|in) (?:(?:the|every|a) month|(?P<months>{MONTH_LIST}))"
_NTH_DAYS = r"\d{1,2}(?:st|nd|rd|th)(?:(?:,| and|, and) (?:the )?\d{1,2}(?:st|nd|rd|th))*"
_CLOCK_UNIT = "secs?|seconds?|mins?|minutes?|hrs?|hours?"
_STEP = rf"(?:every (?:(?P<half>half(?: an)? hour)|(?:(?P<number>{NUMBER}) )?(?P<unit>{_CLOCK_UNIT}))|hourly)"
_SPAN = rf"(?: (?:between|from) (?P<start>{TIME}) (?:and|to|until|till) (?P<end>{TIME}))"
_ONLY = rf"(?:,? (?:on |every )?(?P<days>{DAYS}))"

FORMS: tuple[Form, ...] = (
    Form(
        "in 2 hours",
        rf"(?=in |.* from now)(?:in )?(?P<amounts>(?:{NUMBER} {UNIT}|half an hour)(?:,? (?:and )?{NUMBER} {UNIT})*)"
        rf"(?: from now)?(?: at (?P<time>{TIME}))?",
        _in,
    ),
    Form("2026-12-24T09:00", r"(?:on |at )?\d{4}-\d{2}-\d{2}[t ]\d{2}:\d{2}\S*", _iso),
    Form(
        "tomorrow at 9:00",
        rf"(?P<near>today|tomorrow|the day after tomorrow)(?P<weekday>)(?P<next>)(?P<date>){_AT_ONE}",
        _day,
    ),
    Form(
        "next monday at 9:00",
        rf"(?:on |this |(?P<next>next ))(?P<near>)(?P<date>)(?P<weekday>{ONE_DAY}){_AT_ONE}",
        _day,
    ),
    Form(
        "at 9:00 on monday",
        rf"at (?P<time>{TIME}),? (?:on |this |(?P<next>next ))(?P<near>)(?P<date>)(?P<weekday>{ONE_DAY})",
        _day,
    ),
    Form(
        "on 24 december at 9:00",
        rf"(?:on )?(?:the )?(?P<near>)(?P<weekday>)(?P<next>)(?P<date>{DATE}){_AT_ONE}",
        _day,
    ),
    Form("every 5 minutes", rf"{_STEP}(?P<start>)?(?P<end>)?(?P<days>)?", _every),
    Form("every 90 minutes between 8 and 18", rf"{_STEP}{_SPAN}{_ONLY}?", _every),
    Form("every 15 minutes on weekdays between 8 and 18", rf"{_STEP}{_ONLY}{_SPAN}?", _every),
    Form("every hour at minute 15", r"(?:every hour|hourly) at (?:minute |:)?(?P<minute>\d{1,2})", _hourly),
    Form("every weekday at 9:00", rf"(?P<lead>every |on )?(?P<days>{DAYS}){_AT}", _days_at),
    Form("daily at 9:00 and 17:00", rf"daily{_AT}", lambda match, here: _cron(clocks(match["times"]), here)),
    Form("at 9:00 on mondays", rf"at (?P<times>{TIMES}),? (?P<lead>every |on )(?P<days>{DAYS})", _days_at),
    Form("every 3 days at 9:00", rf"every (?P<number>{NUMBER}) days?{_AT_ONE}", _every_days),
    Form(
        "every 2 weeks on monday at 9:00",
        rf"(?:every (?:(?P<number>{NUMBER}) )?weeks?|weekly),? (?:on )?(?P<days>{DAYS}){_AT_ONE}",
        _every_weeks,
    ),
    Form(
        "first monday of the month at noon",
        rf"(?:every |on )?(?:the )?(?P<ordinal>{ORDINAL}) (?P<what>(?:{DAYS})) {_MONTHS_OF}{_AT}",
        _of_month,
    ),
    Form(
        "on the 1st and 15th of the month at 9:00",
        rf"(?:every month |monthly )?(?:on )?(?:the )?(?P<days>{_NTH_DAYS}) {_MONTHS_OF}{_AT}",
        _days_of_month,
    ),
    Form(
        "every month on the 15th at 9:00",
        rf"(?:every month|monthly) on (?:the )?(?P<days>{_NTH_DAYS})(?P<months>)?{_AT}",
        _days_of_month,
    ),
    Form(
        "every year on 24 december at 9:00",
        rf"(?:every year|yearly|annually) on (?:the )?(?P<date>{DATE}){_AT}",
        _yearly,
    ),
)
"""The sentences that are understood, in the order in which they are tried."""
