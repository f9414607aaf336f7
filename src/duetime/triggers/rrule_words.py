"""A recurrence rule in plain English."""

from __future__ import annotations

from datetime import UTC, datetime

from .cron import runs
from .rrule_text import Rule
from .wording import DAY_NAMES, MONTH_NAMES, day_words, every, listed, plural

_UNITS = {
    "YEARLY": "year",
    "MONTHLY": "month",
    "WEEKLY": "week",
    "DAILY": "day",
    "HOURLY": "hour",
    "MINUTELY": "minute",
    "SECONDLY": "second",
}
_MOST_TIMES = 8


def rrule_words(rule: Rule, start: datetime) -> str:
    """Return what a rule that begins at that clock time says; parts without a short wording are quoted."""
    end = ""
    if rule.count is not None:
        end = f", {rule.count} time{'s' if rule.count > 1 else ''} from {day_words(start)}"
    elif rule.interval > 1:
        end = f", counted from {day_words(start)}"
    if rule.until is not None:
        until = rule.until.astimezone(UTC) if rule.until.tzinfo else rule.until
        end += f", until {day_words(until)} at {until:%H:%M}" + (" (UTC)" if rule.until.tzinfo else "")
    times = _times(rule, start)
    if times is not None and (day := _nth_weekday(rule)):
        return f"{every(rule.interval, _UNITS[rule.freq])}{times}, on {day} of the month{end}"
    if times is None or any(rule.by(name) for name in ("BYSETPOS", "BYWEEKNO", "BYYEARDAY")):
        return f"rrule {rule.text!r} from {day_words(start)} at {start:%H:%M}"
    rhythm = every(rule.interval, _UNITS[rule.freq])
    return ", ".join(part for part in (f"{rhythm}{times}", _days(rule, start)) if part) + end


def _nth_weekday(rule: Rule) -> str:
    """Return "the 1st weekday (Monday to Friday)" for a rule that says so and nothing else, or an empty string."""
    workdays = tuple((day, 0) for day in range(5))
    if rule.freq != "MONTHLY" or rule.days != workdays or len(positions := rule.by("BYSETPOS")) != 1:
        return ""
    if any(rule.by(name) for name in ("BYMONTH", "BYMONTHDAY")):
        return ""
    which = "last" if positions[0] == -1 else _ordinal(abs(positions[0]))
    return f"the {which} weekday (Monday to Friday)" + (" from the end" if positions[0] < -1 else "")


def _times(rule: Rule, start: datetime) -> str | None:
    if rule.freq in ("HOURLY", "MINUTELY", "SECONDLY"):
        given = [name for name in ("BYHOUR", "BYMINUTE", "BYSECOND") if rule.by(name)]
        if given:
            return None
        return f" at minute {start.minute}" if rule.freq == "HOURLY" else ""
    hours = rule.by("BYHOUR") or (start.hour,)
    minutes = rule.by("BYMINUTE") or (start.minute,)
    seconds = rule.by("BYSECOND") or (start.second,)
    if len(hours) * len(minutes) * len(seconds) > _MOST_TIMES:
        return None
    times = [
        f"{hour:02}:{minute:02}" + (f":{second:02}" if seconds != (0,) else "")
        for hour in hours
        for minute in minutes
        for second in seconds
    ]
    return f" at {listed(times)}"


def _days(rule: Rule, start: datetime) -> str:
    parts = []
    month_days = rule.by("BYMONTHDAY")
    months = rule.by("BYMONTH")
    if not rule.days and not month_days:
        if rule.freq == "WEEKLY":
            parts.append(f"on {DAY_NAMES[start.weekday()]}")
        elif rule.freq in ("MONTHLY", "YEARLY"):
            month_days = (start.day,)
            months = months or ((start.month,) if rule.freq == "YEARLY" else ())
    if month_days:
        counted = [day for day in month_days if day > 0]
        words = [f"day{plural(counted)} {listed(map(str, counted))}"] if counted else []
        words += [
            "the last day" if day == -1 else f"the {_ordinal(-day)} day from the end" for day in month_days if day < 0
        ]
        parts.append(f"on {listed(words)} of the month")
    if rule.days:
        if all(not which for _, which in rule.days):
            spans = runs(sorted(day for day, _ in rule.days))
            words = [DAY_NAMES[a] if a == b else f"{DAY_NAMES[a]} to {DAY_NAMES[b]}" for a, b in spans]
            parts.append(f"if that is {listed(words, 'or')}" if month_days else f"on {listed(words)}")
        else:
            of = "year" if rule.freq == "YEARLY" and not months else "month"
            parts.append(f"on {listed(_which(day, which) for day, which in rule.days)} of the {of}")
    if months:
        parts.append(f"in {listed(MONTH_NAMES[month - 1] for month in months)}")
    return " ".join(parts)


def _which(day: int, which: int) -> str:
    name = DAY_NAMES[day]
    if not which:
        return f"every {name}"
    if which > 0:
        return f"the {_ordinal(which)} {name}"
    return f"the last {name}" if which == -1 else f"the {_ordinal(-which)} {name} from the end"


def _ordinal(number: int) -> str:
    ending = {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th") if number // 10 % 10 != 1 else "th"
    return f"{number}{ending}"
