"""Words that sentences about triggers are made of."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import date, timedelta

DAY_NAMES = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
MONTH_NAMES = (
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
)


def day_words(day: date) -> str:
    """Return a day as "5 January 2027"."""
    return f"{day.day} {MONTH_NAMES[day.month - 1]} {day.year}"


def duration(length: timedelta, *, bare_one: bool = False) -> str:
    """Return a length of time in words: "1 hour and 30 minutes"; with ``bare_one`` "hour" for "1 hour"."""
    rest = length
    parts = []
    for unit, size in (
        ("week", timedelta(weeks=1)),
        ("day", timedelta(days=1)),
        ("hour", timedelta(hours=1)),
        ("minute", timedelta(minutes=1)),
    ):
        # Ten days are "10 days", not "1 week and 3 days"; seven are "1 week".
        if unit == "week" and rest % size:
            continue
        amount, rest = divmod(rest, size)
        if amount:
            parts.append(f"{amount} {unit}{'s' if amount != 1 else ''}")
    if rest or not parts:
        seconds = rest.total_seconds()
        parts.append(f"{seconds:.6f}".rstrip("0").rstrip(".") + f" second{'s' if seconds != 1 else ''}")
    if bare_one and len(parts) == 1:
        return parts[0].removeprefix("1 ")
    return listed(parts)


def every(step: int, unit: str) -> str:
    """Return "every 5 minutes", or "every minute" for 1."""
    return f"every {unit}" if step == 1 else f"every {step} {unit}s"


def plural(numbers: Iterable[int]) -> str:
    """Return "s" for more than one."""
    return "s" if len(list(numbers)) > 1 else ""


def listed(words: Iterable[str], last: str = "and") -> str:
    """Return "a, b and c"."""
    *before, end = words
    return f"{', '.join(before)} {last} {end}" if before else end
