"""The text of an RRULE (RFC 5545, 3.3.10), checked part by part."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from functools import lru_cache
from math import prod
from typing import Any

from dateutil import rrule as dateutil_rrule

from duetime.errors import InvalidTrigger, did_you_mean

FREQUENCIES = ("YEARLY", "MONTHLY", "WEEKLY", "DAILY", "HOURLY", "MINUTELY", "SECONDLY")
"""From the longest to the shortest; dateutil's numbers for them are their positions."""

WEEKDAYS = ("MO", "TU", "WE", "TH", "FR", "SA", "SU")

MAX_COUNT = 10_000
"""Occurrences that COUNT may ask for: they are counted one by one from the start."""

MAX_INTERVAL = 10_000

MAX_TIMES = 1_440
"""Times of day that BYHOUR, BYMINUTE and BYSECOND may give together."""

# Name → lowest, highest, whether it may be counted from the end (and is never 0).
_NUMBERS = {
    "BYMONTH": (1, 12, False),
    "BYMONTHDAY": (1, 31, True),
    "BYYEARDAY": (1, 366, True),
    "BYWEEKNO": (1, 53, True),
    "BYHOUR": (0, 23, False),
    "BYMINUTE": (0, 59, False),
    "BYSECOND": (0, 59, False),
    "BYSETPOS": (1, 366, True),
}
PARTS = ("FREQ", "INTERVAL", "COUNT", "UNTIL", "WKST", "BYDAY", *_NUMBERS)

_UNTIL = re.compile(r"(\d{8})(?:T(\d{6})(Z?))?")
_DAY = re.compile(r"([+-]?\d{1,2})?(MO|TU|WE|TH|FR|SA|SU)")

# RFC 5545: what a part must not be combined with.
_FORBIDDEN = {
    "BYMONTHDAY": ("WEEKLY",),
    "BYYEARDAY": ("MONTHLY", "WEEKLY", "DAILY"),
    "BYWEEKNO": ("MONTHLY", "WEEKLY", "DAILY", "HOURLY", "MINUTELY", "SECONDLY"),
    # Allowed by the RFC, but of no use that BYMINUTE and BYSECOND do not have.
    "BYSETPOS": ("HOURLY", "MINUTELY", "SECONDLY"),
}


@dataclass(frozen=True, slots=True)
class Rule:
    """What an RRULE says.

    :ivar numbers: the BY… parts of numbers, each sorted
    :ivar days: BYDAY as (number of the weekday, Monday being 0; which one of the period, or 0 for each)
    :ivar until: the last instant (UTC), or the last clock time (naive) in the trigger's zone
    """

    text: str
    freq: str
    interval: int
    count: int | None
    until: datetime | None
    week_start: int
    days: tuple[tuple[int, int], ...]
    numbers: dict[str, tuple[int, ...]]

    def by(self, name: str) -> tuple[int, ...]:
        """Return the numbers of a BY… part, empty when it is not given."""
        return self.numbers.get(name, ())

    @property
    def limits_dates(self) -> bool:
        """Whether parts other than BYDAY leave out days, so that the next one may be years away."""
        return any(self.by(name) for name in ("BYMONTH", "BYMONTHDAY", "BYYEARDAY", "BYWEEKNO")) or any(
            which for _, which in self.days
        )

    def dateutil_days(self) -> dict[str, Any]:
        """Return the parts that choose days, as dateutil's arguments; a part that is not given is None."""
        weekdays = [dateutil_rrule.weekday(day, which or None) for day, which in self.days]
        named = {name.lower(): self.by(name) or None for name in ("BYMONTH", "BYMONTHDAY", "BYYEARDAY", "BYWEEKNO")}
        return {**named, "byweekday": weekdays or None, "wkst": self.week_start}


class _Wrong(Exception):
    def __init__(self, part: str, problem: str) -> None:
        super().__init__(problem)
        self.part = part
        self.problem = problem


@lru_cache(maxsize=512)
def parse_rule(text: str) -> Rule:
    """Return what the text says.

    :raises InvalidTrigger: naming the part, what it may be and what came
    """
    try:
        return _parse(text)
    except _Wrong as exc:
        raise InvalidTrigger(
            f"expected an RRULE such as 'FREQ=WEEKLY;BYDAY=MO,FR', got {text[:120]!r}: {exc.problem}",
            details=[{"where": f"trigger.rrule.{exc.part}".rstrip("."), "problem": exc.problem}],
        ) from None


def _parse(text: str) -> Rule:
    given: dict[str, str] = {}
    body = text.strip().upper().removeprefix("RRULE:").rstrip(";")
    for name in ("DTSTART", "EXDATE", "RDATE", "EXRULE"):
        if name in body:
            instead = {"DTSTART": "'start' and 'timezone'", "EXDATE": "'exdate'"}.get(name, "an 'or' of triggers")
            raise _Wrong("", f"the rule alone belongs here; give {name} as {instead}")
    for pair in body.split(";"):
        name, equals, value = (each.strip() for each in pair.partition("="))
        if not equals or not value:
            raise _Wrong("", f"expected parts of the form NAME=VALUE with ';' between, got {pair[:40]!r}")
        if name not in PARTS:
            raise _Wrong("", f"unknown part {name[:20]!r}{did_you_mean(name, PARTS)} It has {', '.join(PARTS)}")
        if name in given:
            raise _Wrong(name, f"{name} is given twice")
        given[name] = value
    if "FREQ" not in given:
        raise _Wrong("FREQ", f"FREQ is missing; it is one of {', '.join(FREQUENCIES)}")
    freq = given["FREQ"]
    if freq not in FREQUENCIES:
        hint = did_you_mean(freq, FREQUENCIES)
        raise _Wrong("FREQ", f"expected FREQ to be one of {', '.join(FREQUENCIES)}, got {freq[:20]!r}{hint}")
    numbers = {name: _numbers(name, given[name]) for name in _NUMBERS if name in given}
    days = _days(given["BYDAY"], freq, numbers) if "BYDAY" in given else ()
    for name, frequencies in _FORBIDDEN.items():
        if name in numbers and freq in frequencies:
            raise _Wrong(name, f"{name} cannot be combined with FREQ={freq}")
    if "BYSETPOS" in numbers and not days and len(numbers) == 1:
        raise _Wrong("BYSETPOS", "BYSETPOS needs another BY… part to choose from")
    times = [len(numbers.get(name, (0,))) for name in ("BYHOUR", "BYMINUTE", "BYSECOND")]
    if freq not in ("HOURLY", "MINUTELY", "SECONDLY") and prod(times) > MAX_TIMES:
        raise _Wrong("BYSECOND", f"expected at most {MAX_TIMES:,} times a day, got {prod(times):,}; use FREQ=SECONDLY")
    if "COUNT" in given and "UNTIL" in given:
        raise _Wrong("UNTIL", "COUNT and UNTIL cannot both be given")
    if given.get("WKST", "MO") not in WEEKDAYS:
        raise _Wrong("WKST", f"expected WKST to be one of {', '.join(WEEKDAYS)}, got {given['WKST'][:20]!r}")
    return Rule(
        text=";".join(f"{name}={value}" for name, value in given.items()),
        freq=freq,
        interval=_whole("INTERVAL", given["INTERVAL"], 1, MAX_INTERVAL) if "INTERVAL" in given else 1,
        count=_whole("COUNT", given["COUNT"], 1, MAX_COUNT) if "COUNT" in given else None,
        until=_until(given["UNTIL"]) if "UNTIL" in given else None,
        week_start=WEEKDAYS.index(given.get("WKST", "MO")),
        days=days,
        numbers=numbers,
    )


def _whole(name: str, text: str, low: int, high: int) -> int:
    if not re.fullmatch(r"[+-]?\d{1,9}", text) or not low <= int(text) <= high:
        raise _Wrong(name, f"expected {name} to be a number from {low} to {high}, got {text[:20]!r}")
    return int(text)


def _numbers(name: str, text: str) -> tuple[int, ...]:
    low, high, both_ways = _NUMBERS[name]
    found = set()
    for item in text.split(","):
        number = _whole(name, item, -high if both_ways else low, high)
        if number == 0 and both_ways:
            raise _Wrong(name, f"expected {name} to be a number from 1 to {high}, or from -1 to -{high}, got 0")
        found.add(number)
    return tuple(sorted(found))


def _days(text: str, freq: str, numbers: dict[str, tuple[int, ...]]) -> tuple[tuple[int, int], ...]:
    found = set()
    for item in text.split(","):
        match = _DAY.fullmatch(item)
        if match is None:
            raise _Wrong(
                "BYDAY", f"expected weekdays such as MO, 1MO or -1FR, got {item[:20]!r}{did_you_mean(item, WEEKDAYS)}"
            )
        which = int(match[1] or 0)
        if match[1] and not 1 <= abs(which) <= 53:
            raise _Wrong("BYDAY", f"expected the number of a weekday to be 1 to 53, or -1 to -53, got {item[:20]!r}")
        if which and (freq not in ("YEARLY", "MONTHLY") or "BYWEEKNO" in numbers):
            raise _Wrong(
                "BYDAY", f"{item} needs FREQ=MONTHLY, or FREQ=YEARLY without BYWEEKNO; write {match[2]} for every one"
            )
        found.add((WEEKDAYS.index(match[2]), which))
    return tuple(sorted(found))


def _until(text: str) -> datetime:
    match = _UNTIL.fullmatch(text)
    try:
        if match is None:
            raise ValueError
        day = datetime.strptime(match[1], "%Y%m%d")  # noqa: DTZ007 - naive is what it is
        if match[2] is None:
            return datetime.combine(day, time(23, 59, 59))
        moment = datetime.strptime(match[1] + match[2], "%Y%m%d%H%M%S")  # noqa: DTZ007
        return moment.replace(tzinfo=UTC) if match[3] else moment
    except ValueError:
        raise _Wrong(
            "UNTIL", f"expected UNTIL to be a day or a time such as 20261231 or 20261231T235959Z, got {text[:20]!r}"
        ) from None


def first_day(rule: Rule, start: date, target: date) -> date:
    """Return a day, at or before the target, from which the rule goes on as from its start.

    That is whole intervals after the start, and at least one before the target: the first year, month or week may be
    one that is not whole.
    """
    if rule.freq == "YEARLY":
        periods = (target.year - start.year) // rule.interval - 1
        return date(start.year + periods * rule.interval, 1, 1) if periods > 0 else start
    if rule.freq == "MONTHLY":
        behind = (target.year - start.year) * 12 + target.month - start.month
        periods = behind // rule.interval - 1
        months = start.year * 12 + start.month - 1 + periods * rule.interval
        return date(months // 12, months % 12 + 1, 1) if periods > 0 else start
    length = rule.interval * (7 if rule.freq == "WEEKLY" else 1)
    periods = (target - start).days // length - 1
    return start + timedelta(days=periods * length) if periods > 0 else start
