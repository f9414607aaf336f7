"""Cron text: five or six fields, checked one by one, and what each of them allows."""

from __future__ import annotations

import re
from bisect import bisect_left
from calendar import monthrange
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import MAXYEAR, MINYEAR, date
from functools import lru_cache
from itertools import pairwise
from typing import Any

from apscheduler.triggers.cron import CronTrigger

from duetime.errors import InvalidTrigger, did_you_mean

from .clock import Policy
from .wording import MONTH_NAMES

WEEKDAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
ORDINALS = ("1st", "2nd", "3rd", "4th", "5th", "last")

MAX_FIELD_LENGTH = 500
"""Characters of one cron field."""

MACROS = {
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
    "@monthly": "0 0 1 * *",
    "@weekly": "0 0 * * sun",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@hourly": "0 * * * *",
}

_ITEM = re.compile(
    r"(?:(?P<star>\*)|(?P<first>[a-z]+|\d{1,4})(?:-(?P<last>[a-z]+|\d{1,4}))?)(?:/(?P<step>\d{1,4}))?",
    re.IGNORECASE,
)
_WEEKDAY_OF_MONTH = re.compile(rf"({'|'.join(ORDINALS)}) +({'|'.join(WEEKDAYS)})", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class _Kind:
    """A cron field: its name in APScheduler and in messages, its range, and the names of its values."""

    name: str
    label: str
    low: int
    high: int
    names: tuple[str, ...] = ()

    def number(self, token: str) -> int:
        """Return the number that a token stands for, Sunday being 0 (or 7) among the weekdays."""
        if token.isdecimal():
            value = int(token)
            highest = 7 if self.name == "day_of_week" else self.high
            if not self.low <= value <= highest:
                raise ValueError(f"{self.label}: expected {self.expected}, got {token}")
            return value
        if token.lower() not in self.names:
            raise ValueError(f"{self.label}: expected {self.expected}, got {token!r}{did_you_mean(token, self.names)}")
        index = self.names.index(token.lower())
        return (index + 1) % 7 if self.name == "day_of_week" else index + self.low

    @property
    def expected(self) -> str:
        """The field's range in words."""
        if self.name == "day_of_week":
            return "a weekday from 0 to 7 (0 and 7 are Sunday) or mon to sun"
        names = f" or {self.names[0]} to {self.names[-1]}" if self.names else ""
        extra = ", or 'last'" if self.name == "day" else ""
        return f"a number from {self.low} to {self.high}{names}{extra}"


KINDS = {
    kind.name: kind
    for kind in (
        _Kind("year", "year", 1970, 9999),
        _Kind("month", "month", 1, 12, MONTHS),
        _Kind("day", "day of month", 1, 31),
        _Kind("week", "ISO week", 1, 53),
        _Kind("day_of_week", "weekday", 0, 6, WEEKDAYS),
        _Kind("hour", "hour", 0, 23),
        _Kind("minute", "minute", 0, 59),
        _Kind("second", "second", 0, 59),
    )
}
"""The fields of a cron trigger, from the largest to the smallest, as CronTrigger has them."""

_LOWEST = {"month": "1", "day": "1", "hour": "0", "minute": "0", "second": "0"}
_LONGEST = {month: 29 if month == 2 else 30 if month in (4, 6, 9, 11) else 31 for month in range(1, 13)}
_DATES = ("year", "month", "day", "week", "day_of_week")
_EXPRESSION_ORDER = ("second", "minute", "hour", "day", "month", "day_of_week")


@dataclass(frozen=True, slots=True)
class FieldValues:
    """What one field allows: numbers (weekdays: Monday is 0) and, for the day, ``last`` or ``2nd fri``."""

    kind: _Kind
    numbers: frozenset[int]
    special: tuple[str, ...] = ()

    @property
    def is_any(self) -> bool:
        """Whether the field limits nothing."""
        return len(self.numbers) == self.kind.high - self.kind.low + 1

    def __str__(self) -> str:
        """Return the shortest text that says exactly these values, also to APScheduler's CronTrigger."""
        if self.is_any:
            return "*"
        return ",".join([*_numbers_text(self.kind, sorted(self.numbers)), *self.special])


def _numbers_text(kind: _Kind, numbers: list[int]) -> list[str]:
    if kind.name == "day_of_week":
        return [
            WEEKDAYS[first] if first == last else f"{WEEKDAYS[first]}-{WEEKDAYS[last]}" for first, last in runs(numbers)
        ]
    steps = {after - before for before, after in pairwise(numbers)}
    if len(steps) == 1 and (step := steps.pop()) > 1:
        to_the_end = numbers[0] == kind.low and numbers[-1] + step > kind.high
        if to_the_end and (len(numbers) > 2 or (kind.high - kind.low + 1) % step == 0):
            return [f"*/{step}"]
        if len(numbers) > 2:
            return [f"{numbers[0]}-{numbers[-1]}/{step}"]
    return [str(first) if first == last else f"{first}-{last}" for first, last in runs(numbers)]


def runs(numbers: Iterable[int]) -> list[tuple[int, int]]:
    """Return ascending numbers as (first, last) of neighbours; two neighbours alone stay two."""
    found: list[tuple[int, int]] = []
    for number in numbers:
        if found and number == found[-1][1] + 1:
            found[-1] = (found[-1][0], number)
        else:
            found.append((number, number))
    return [
        part
        for first, last in found
        for part in ([(first, last)] if last - first != 1 else [(first, first), (last, last)])
    ]


@lru_cache(maxsize=1024)
def parse_field(name: str, text: str) -> FieldValues:
    """Return what the text of one field allows.

    :raises ValueError: naming the field, its range and the value
    """
    kind = KINDS[name]
    if len(text) > MAX_FIELD_LENGTH:
        raise ValueError(f"{kind.label}: expected at most {MAX_FIELD_LENGTH} characters, got {len(text)}")
    numbers: set[int] = set()
    special: list[str] = []
    for item in text.strip().split(","):
        lowered = " ".join(item.lower().split())
        if name == "day" and lowered in ("last", "l"):
            special.append("last")
        elif name == "day" and _WEEKDAY_OF_MONTH.fullmatch(lowered):
            special.append(lowered)
        else:
            numbers |= _item_numbers(kind, lowered)
    return FieldValues(kind, frozenset(numbers), tuple(dict.fromkeys(special)))


def _item_numbers(kind: _Kind, item: str) -> set[int]:
    match = _ITEM.fullmatch(item)
    if match is None:
        raise ValueError(
            f"{kind.label}: expected '*', values, ranges or steps such as '*/5', with {kind.expected}, "
            f"got {item[:60]!r}"
        )
    step = int(match["step"]) if match["step"] else None
    if step == 0:
        raise ValueError(f"{kind.label}: expected a step of at least 1, got {item!r}")
    weekday = kind.name == "day_of_week"
    if match["star"]:
        first, last = kind.low, kind.high
    else:
        first = kind.number(match["first"])
        last = kind.number(match["last"] or match["first"])
        if step and not match["last"]:
            last = kind.high
        if last < first and weekday:
            last += 7  # fri-mon goes over the end of the week
        if last < first:
            raise ValueError(
                f"{kind.label}: expected the lower value first in a range, got {item!r}; write "
                f"'{first}-{kind.high},{kind.low}-{last}' to go over the end"
            )
    values = range(first, last + 1, step or 1)
    return {(value - 1) % 7 for value in values} if weekday else set(values)


def parse_expression(expression: str) -> dict[str, str]:
    """Return the fields of a cron expression by name: five, six with the second first, or a macro.

    :raises InvalidTrigger: with one detail per wrong field
    """
    text = expression.strip()
    if text.startswith("@"):
        if text.lower() not in MACROS:
            raise InvalidTrigger(
                f"expected one of {', '.join(MACROS)}, got {text[:60]!r}{did_you_mean(text.lower(), MACROS)}",
                details=[{"where": "trigger.expression", "problem": f"unknown macro {text[:60]!r}"}],
            )
        text = MACROS[text.lower()]
    values = text.split()
    if len(values) not in (5, 6):
        raise InvalidTrigger(
            f"expected a cron expression of 5 fields (minute hour day month weekday) or 6 (with the second "
            f"first), got {len(values)} in {expression[:120]!r}. Write '*' for a field that does not matter.",
            details=[{"where": "trigger.expression", "problem": f"{len(values)} fields instead of 5 or 6"}],
        )
    if len(values) == 5:
        values = ["0", *values]
    given = dict(zip(_EXPRESSION_ORDER, values, strict=True))
    _check(given, f"in {expression[:120]!r}", "trigger.expression")
    return given


def parse_fields(fields: Mapping[str, str | int]) -> dict[str, str]:
    """Return fields given by name, with those left out.

    A field left out is ``*`` when it is larger than the smallest one given, and its lowest value when it is
    smaller, as in APScheduler.

    :raises InvalidTrigger: with one detail per wrong field
    """
    known = [name for name in KINDS if fields.get(name) is not None]
    if unknown := [name for name in fields if name not in KINDS]:
        raise InvalidTrigger(
            f"expected cron fields from {', '.join(KINDS)}, got {unknown[0]!r}{did_you_mean(unknown[0], KINDS)}",
            details=[{"where": f"trigger.fields.{unknown[0]}", "problem": "unknown field"}],
        )
    if not known:
        raise InvalidTrigger(
            f"expected at least one of {', '.join(KINDS)} in the cron trigger's fields, got none.",
            details=[{"where": "trigger.fields", "problem": "empty"}],
        )
    given = {name: str(fields[name]) for name in known}
    _check(given, "in its fields", "trigger.fields")
    order = list(KINDS)
    for name in order[order.index(known[-1]) + 1 :]:
        given[name] = _LOWEST.get(name, "*")
    return given


def _check(texts: Mapping[str, str], place: str, where: str) -> None:
    problems: list[dict[str, Any]] = []
    for name, text in texts.items():
        try:
            parse_field(name, text)
        except ValueError as exc:
            problems.append({"where": f"{where}.{name}", "problem": str(exc)})
    if problems:
        listed = "; ".join(problem["problem"] for problem in problems)
        raise InvalidTrigger(f"expected a valid cron trigger, got {place}: {listed}", details=problems)


def default_policy(fields: Mapping[str, str]) -> Policy:
    """Return what becomes of times that a zone skips or has twice, when nothing else is said: as in Vixie cron.

    Where the hour, the minute or the second begins with ``*``, the fields say a rhythm, which goes on as time
    does: nothing is moved out of a gap, and a repeated hour has its fires again. Other fields say times of day:
    one in a gap is made up for right after it, and one that is repeated counts once, the first time.
    """
    rhythm = any(fields.get(name, "*").startswith("*") for name in ("hour", "minute", "second"))
    return Policy("skip", "both") if rhythm else Policy("shift", "first")


def field_values(trigger: CronTrigger) -> dict[str, FieldValues]:
    """Return what each field of any CronTrigger allows, however it was made, in the order year … second."""
    texts: list[str] = trigger.__getstate__()["fields"]
    values = {}
    for (name, kind), text in zip(KINDS.items(), texts, strict=True):
        if name == "day_of_week" and text.startswith("*/"):
            # CronTrigger counts these steps from Monday.
            values[name] = FieldValues(kind, frozenset(range(0, 7, int(text[2:]))))
        else:
            values[name] = parse_field(name, text)
    return values


def expression_of(values: Mapping[str, FieldValues]) -> str | None:
    """Return the cron expression of the fields, or None if five or six fields cannot say them."""
    day = values["day"]
    if not values["year"].is_any or not values["week"].is_any or any(" " in special for special in day.special):
        return None
    order = _EXPRESSION_ORDER if str(values["second"]) != "0" else _EXPRESSION_ORDER[1:]
    return " ".join(str(values[name]) for name in order)


class Days:
    """The days that fit the year, month, day, week and weekday fields."""

    __slots__ = ("_any_year", "_month", "_month_days", "_months", "_values", "_weekdays", "_weeks", "_years")

    def __init__(self, values: Mapping[str, FieldValues]) -> None:
        self._values = values["day"]
        self._any_year = values["year"].is_any
        self._years = [] if self._any_year else sorted(values["year"].numbers)
        self._months = sorted(values["month"].numbers)
        self._weekdays = values["day_of_week"].numbers
        self._weeks = None if values["week"].is_any else values["week"].numbers
        self._month: tuple[int, int] | None = None
        self._month_days: list[date] = []

    def first(self, start: date) -> date | None:
        """Return the first day on or after the start, or None.

        Looks 40 years ahead, which covers the longest wait of the calendar (a 29 February on a given weekday,
        over a year 2100); years that are listed are looked at wherever they lie, but at most 41 of them.
        """
        if self._any_year:
            years: Iterable[int] = range(max(start.year, MINYEAR), min(start.year + 41, MAXYEAR + 1))
        else:
            position = bisect_left(self._years, start.year)
            years = self._years[position : position + 41]
        for year in years:
            for month in self._months:
                if year == start.year and month < start.month:
                    continue
                for day in self._in_month(year, month):
                    if day >= start:
                        return day
        return None

    def _in_month(self, year: int, month: int) -> list[date]:
        if self._month != (year, month):
            self._month_days = [
                day
                for day in _fitting_days(year, month, self._values)
                if day.weekday() in self._weekdays and (self._weeks is None or day.isocalendar().week in self._weeks)
            ]
            self._month = (year, month)
        return self._month_days


def has_date(values: Mapping[str, FieldValues], start: date) -> bool:
    """Return whether any day on or after the start fits; CronTrigger 4.0.0a6 would look up to the year 9999."""
    return Days(values).first(start) is not None


def why_no_date(values: Mapping[str, FieldValues]) -> str:
    """Return why no day fits: a day that its months do not have, or fields that exclude each other."""
    day, month = values["day"], values["month"]
    longest = max(_LONGEST[number] for number in month.numbers)
    if day.numbers and not day.special and min(day.numbers) > longest:
        named = [MONTH_NAMES[number - 1] for number in sorted(month.numbers)]
        return f"there is no day {min(day.numbers)} in {' or '.join(named)}"
    limits = [f"{kind.kind.label} {kind}" for kind in values.values() if kind.kind.name in _DATES and not kind.is_any]
    return f"no day of the coming 40 years fits {', '.join(limits)}" if limits else "there are no days left"


def _fitting_days(year: int, month: int, values: FieldValues) -> Iterable[date]:
    length = monthrange(year, month)[1]
    days = {number for number in values.numbers if number <= length}
    for special in values.special:
        ordinal, _, name = special.partition(" ")
        if not name:
            days.add(length)
            continue
        same_weekday = [day for day in range(1, length + 1) if date(year, month, day).weekday() == WEEKDAYS.index(name)]
        position = -1 if ordinal == "last" else ORDINALS.index(ordinal)
        days.update(same_weekday[position:][:1])
    return (date(year, month, day) for day in sorted(days))
