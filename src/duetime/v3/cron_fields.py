"""The fields of v3's cron trigger: which value comes next, at or after the one at hand."""

from __future__ import annotations

import re
from calendar import monthrange
from collections.abc import Callable, Mapping
from datetime import datetime
from functools import lru_cache

FIELDS = ("year", "month", "day", "week", "day_of_week", "hour", "minute", "second")
"""From the largest to the smallest, the order in which v3 looks at them and gives them their defaults."""

LOWEST: Mapping[str, int] = {
    "year": 1970,
    "month": 1,
    "day": 1,
    "week": 1,
    "day_of_week": 0,
    "hour": 0,
    "minute": 0,
    "second": 0,
}
HIGHEST: Mapping[str, int] = {
    "year": 9999,
    "month": 12,
    "day": 31,
    "week": 53,
    "day_of_week": 6,
    "hour": 23,
    "minute": 59,
    "second": 59,
}
MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
WEEKDAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
POSITIONS = ("1st", "2nd", "3rd", "4th", "5th", "last")

Following = Callable[[int, datetime], int | None]
"""Takes the value at hand, and the moment that has it; returns the next value that fits, or None."""

_NUMBERS = re.compile(r"(?:\*|(?P<first>\d+)(?:-(?P<last>\d+))?)(?:/(?P<step>\d+))?")
_NAMES = re.compile(r"(?P<first>[a-z]{3})(?:-(?P<last>[a-z]{3}))?")
_POSITION = re.compile(rf"(?P<position>{'|'.join(POSITIONS)}) (?P<weekday>{'|'.join(WEEKDAYS)})")


@lru_cache(maxsize=4096)
def following(name: str, text: str) -> Following:
    """Return what finds the next value of that field, for an expression in v3's spelling.

    :raises ValueError: if it is none
    """
    ranges: list[range] = []
    positions: list[tuple[int, int]] = []
    last_day = False
    for part in text.split(","):
        if name == "day" and part == "last":
            last_day = True
        elif name == "day" and (position := _POSITION.fullmatch(part)):
            positions.append((POSITIONS.index(position["position"]), WEEKDAYS.index(position["weekday"])))
        else:
            ranges.append(_values(name, part))
    if name == "year":
        return lambda value, moment: _smallest(ranges, value)
    table = _table(ranges, HIGHEST[name])
    if name == "day":
        return _days(table, tuple(positions), last_day=last_day)
    return lambda value, moment: table[value]


def _values(name: str, part: str) -> range:
    lowest, highest = LOWEST[name], HIGHEST[name]
    if found := _NUMBERS.fullmatch(part):
        step = int(found["step"] or 1)
        first = lowest if found["first"] is None else int(found["first"])
        if found["last"] is not None:
            highest = int(found["last"])
        elif found["first"] is not None and found["step"] is None:
            highest = first
        if step >= 1 and lowest <= first and highest <= HIGHEST[name]:
            return range(first, highest + 1, step)
    elif (named := _NAMES.fullmatch(part)) and name in ("month", "day_of_week"):
        names = MONTHS if name == "month" else WEEKDAYS
        first, last = (names.index(named[end]) + lowest for end in (1, 2 if named[2] else 1))
        return range(first, last + 1)
    raise ValueError(f"expected an expression for {name} as APScheduler 3 writes it, got {part!r}")


def _smallest(ranges: list[range], value: int) -> int | None:
    found = [_at_or_after(values, value) for values in ranges]
    return min((each for each in found if each is not None), default=None)


def _at_or_after(values: range, value: int) -> int | None:
    if value <= values.start:
        return values.start if values else None
    next_one = value + (values.start - value) % values.step
    return next_one if next_one < values.stop else None


def _table(ranges: list[range], highest: int) -> tuple[int | None, ...]:
    fit = {value for values in ranges for value in values}
    table: list[int | None] = [None] * (highest + 2)
    for value in range(highest, -1, -1):
        table[value] = value if value in fit else table[value + 1]
    return tuple(table)


def _days(table: tuple[int | None, ...], positions: tuple[tuple[int, int], ...], *, last_day: bool) -> Following:
    """Days of the month, whose length counts, and days by their weekday."""

    def find(value: int, moment: datetime) -> int | None:
        first_weekday, length = monthrange(moment.year, moment.month)
        smallest = table[value]
        if smallest is not None and smallest > length:
            smallest = None
        if last_day and (smallest is None or length < smallest):
            smallest = length
        for position, weekday in positions:
            day = (weekday - first_weekday) % 7 + 1
            day += position * 7 if position < 5 else (length - day) // 7 * 7
            if value <= day <= length and (smallest is None or day < smallest):
                smallest = day
        return smallest

    return find
