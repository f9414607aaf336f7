"""Cron text: five or six fields checked one by one and put into the words that CronTrigger gets right.

CronTrigger 4.0.0a6 drops the steps of weekdays and of named ranges (``1-5/2`` runs Monday to Friday), refuses
steps that cron accepts (``*/60``), and counts weekdays from Monday in ``*/2`` but from Sunday in ``2``. So
every field is worked out here, and CronTrigger gets plain lists and ranges with names for weekdays.
"""

from __future__ import annotations

import re
from calendar import monthrange
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from functools import lru_cache
from itertools import pairwise
from typing import Any
from zoneinfo import ZoneInfo

from apscheduler.triggers.cron import CronTrigger

from duetime.errors import InvalidTrigger, did_you_mean

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
"""The fields of a CronTrigger, in its own order."""

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
        """Return the shortest text that both CronTrigger and this module read as exactly these values."""
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
    """Return the CronTrigger fields of a cron expression: five fields, six with the second first, or a macro.

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
    return _checked(dict(zip(_EXPRESSION_ORDER, values, strict=True)), f"in {expression[:120]!r}", "trigger.expression")


def parse_fields(fields: Mapping[str, str | int]) -> dict[str, str]:
    """Return fields given by name in the words that CronTrigger gets right.

    :raises InvalidTrigger: with one detail per wrong field
    """
    if not fields:
        raise InvalidTrigger(
            f"expected at least one of {', '.join(KINDS)} in the cron trigger's fields, got none.",
            details=[{"where": "trigger.fields", "problem": "empty"}],
        )
    return _checked({name: str(value) for name, value in fields.items()}, "in its fields", "trigger.fields")


def _checked(texts: Mapping[str, str], place: str, where: str) -> dict[str, str]:
    checked: dict[str, str] = {}
    problems: list[dict[str, Any]] = []
    for name, text in texts.items():
        try:
            checked[name] = str(parse_field(name, text))
        except ValueError as exc:
            problems.append({"where": f"{where}.{name}", "problem": str(exc)})
    if problems:
        listed = "; ".join(problem["problem"] for problem in problems)
        raise InvalidTrigger(f"expected a valid cron trigger, got {place}: {listed}", details=problems)
    return checked


def build_cron(
    fields: Mapping[str, str], *, timezone: ZoneInfo, start_time: datetime, end_time: datetime | None
) -> CronTrigger:
    """Return the trigger of fields that :func:`parse_expression` or :func:`parse_fields` gave.

    The one place where cron triggers are made. The start is handed over in the trigger's zone and rounded up
    to a whole second: the first fire of CronTrigger 4.0.0a6 keeps the start's microseconds and is worked out
    in the start's zone (APScheduler issue 1061).
    """
    start = start_time.astimezone(UTC)
    if start.microsecond:
        start = start.replace(microsecond=0) + timedelta(seconds=1)
    settings: dict[str, Any] = {**fields, "timezone": timezone, "end_time": end_time}
    return CronTrigger(**settings, start_time=start.astimezone(timezone))


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


def has_date(values: Mapping[str, FieldValues], start: date) -> bool:
    """Return whether any day on or after the start fits the year, month, day, week and weekday fields.

    Looks 40 years ahead, which covers the longest wait of the calendar (a 29 February on a given weekday,
    over a year 2100); years that are listed are looked at wherever they lie. CronTrigger itself would try
    every month, or every day, up to the year 9999: 0.2 to 1.8 seconds for ``0 0 31 2 *`` and the like.
    """
    years = values["year"]
    if years.is_any:
        candidates = list(range(start.year, min(start.year + 41, 9999 + 1)))
    else:
        candidates = sorted(year for year in years.numbers if year >= start.year)[:41]
    months = sorted(values["month"].numbers)
    return any(
        day >= start
        for year in candidates
        for month in months
        for day in _fitting_days(year, month, values)
        if day.weekday() in values["day_of_week"].numbers and day.isocalendar().week in values["week"].numbers
    )


def _fitting_days(year: int, month: int, values: Mapping[str, FieldValues]) -> Iterable[date]:
    length = monthrange(year, month)[1]
    days = {number for number in values["day"].numbers if number <= length}
    for special in values["day"].special:
        ordinal, _, name = special.partition(" ")
        if not name:
            days.add(length)
            continue
        same_weekday = [day for day in range(1, length + 1) if date(year, month, day).weekday() == WEEKDAYS.index(name)]
        position = -1 if ordinal == "last" else ORDINALS.index(ordinal)
        days.update(same_weekday[position:][:1])
    return (date(year, month, day) for day in sorted(days))
