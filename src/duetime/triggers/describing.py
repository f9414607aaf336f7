"""A trigger as one plain English sentence."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, date, datetime, timedelta, tzinfo
from itertools import pairwise

from apscheduler.abc import Trigger
from apscheduler.triggers.calendarinterval import CalendarIntervalTrigger
from apscheduler.triggers.combining import AndTrigger, OrTrigger
from apscheduler.triggers.cron import CronTrigger
from apscheduler.triggers.date import DateTrigger
from apscheduler.triggers.interval import IntervalTrigger

from .cron import ORDINALS, WEEKDAYS, FieldValues, expression_of, field_values, runs
from .zones import zone_name

_DAY_NAMES = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
_MONTH_NAMES = (
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

_MOST_LISTED = 8
"""A list of more times or numbers than this is no longer easier to read than the expression."""


def describe(trigger: Trigger, *, now: datetime | None = None) -> str:
    """Return the trigger as one plain English sentence, without a capital or a full stop.

    A start is mentioned while it lies ahead of ``now`` (aware; the real one by default).
    A cron expression without a short wording is quoted; a class of the application's own shows its ``repr``.
    """
    now = now or datetime.now(UTC)
    if type(trigger) is AndTrigger or type(trigger) is OrTrigger:
        members = "; ".join(f"({describe(member, now=now)})" for member in trigger.triggers)
        if isinstance(trigger, OrTrigger):
            return f"at each of: {members}"
        return f"when all agree within {_duration(trigger.threshold)}: {members}"
    if type(trigger) is DateTrigger:
        return f"once, on {_moment(trigger.run_time)}"
    if type(trigger) is IntervalTrigger:
        return _interval(trigger) + _limits(trigger, now)
    if type(trigger) is CronTrigger:
        return _cron(trigger) + _limits(trigger, now)
    if type(trigger) is CalendarIntervalTrigger:
        return _calendar_interval(trigger)
    return repr(trigger)[:500]


def _cron(trigger: CronTrigger) -> str:
    values = field_values(trigger)
    zone = f" ({_zone(trigger.timezone)})"
    days = _days(values)
    clock = _every(values)
    if clock:
        # Full hours and parts of them are the same in every zone but for a few, so the zone says nothing
        # here.
        return clock if not days else f"{clock}, {days}{zone}"
    clock = _times(values)
    if clock:
        if clock.startswith("at ") and not days:
            return f"every day {clock}{zone}"
        return f"{clock}, {days}{zone}" if days else f"{clock}{zone}"
    if expression := expression_of(values):
        return f"cron {expression!r}{zone}"
    fields = ", ".join(f"{name} {value}" for name, value in values.items() if str(value) != "*")
    return f"cron with {fields}{zone}"


def _every(values: Mapping[str, FieldValues]) -> str:
    """Return "every …" for a rhythm within the day that never breaks, or an empty string."""
    hour, minute, second = (values[name] for name in ("hour", "minute", "second"))
    if hour.is_any and minute.is_any:
        if step := _step(second, 60):
            return _count(step, "second")
        if len(second.numbers) == 1:
            at = min(second.numbers)
            return "every minute" + (f" at second {at}" if at else "")
    if hour.is_any and second.numbers == {0}:
        if step := _step(minute, 60):
            return _count(step, "minute")
        if minute.numbers == {0}:
            return "every hour"
        if len(minute.numbers) <= _MOST_LISTED:
            return f"every hour at minute{_s(minute.numbers)} {_listed(map(str, sorted(minute.numbers)))}"
    return ""


def _times(values: Mapping[str, FieldValues]) -> str:
    """Return the times of day, or an empty string if they are too many to say."""
    hours, minutes, seconds = (sorted(values[name].numbers) for name in ("hour", "minute", "second"))
    if len(hours) * len(minutes) * len(seconds) <= _MOST_LISTED:
        times = [
            f"{hour:02}:{minute:02}" + (f":{second:02}" if seconds != [0] else "")
            for hour in hours
            for minute in minutes
            for second in seconds
        ]
        return f"at {_listed(times)}"
    if seconds != [0]:
        return ""
    step = _step(values["minute"], 60)
    if minutes == [0]:
        rhythm = "every hour"
    elif step:
        rhythm = _count(step, "minute")
    else:
        return ""
    if hours[-1] - hours[0] == len(hours) - 1:
        return f"{rhythm} from {hours[0]:02}:00 to {hours[-1]:02}:{minutes[-1]:02}"
    if len(hours) <= _MOST_LISTED:
        return f"{rhythm} in the hours {_listed(map(str, hours))}"
    if minutes == [0] and (hours_step := _step(values["hour"], 24)):
        return f"{_count(hours_step, 'hour')} from 00:00"
    return ""


def _days(values: Mapping[str, FieldValues]) -> str:
    """Return the days, weeks, months and years the trigger is limited to, or an empty string."""
    parts = []
    day, weekday = values["day"], values["day_of_week"]
    weekdays = _spans(weekday, _DAY_NAMES, 0)
    if not day.is_any:
        parts.append(_days_of_month(day) + (f" if that is {_listed(weekdays, 'or')}" if not weekday.is_any else ""))
    elif not weekday.is_any:
        parts.append(_listed(weekdays) if len(weekday.numbers) > 2 else f"every {_listed(weekdays)}")
    if not values["week"].is_any:
        numbers = _spans(values["week"])
        parts.append(f"in ISO week{_s(values['week'].numbers)} {_listed(numbers)}")
    if not values["month"].is_any:
        parts.append(f"in {_listed(_spans(values['month'], _MONTH_NAMES, 1))}")
    if not values["year"].is_any:
        parts.append(f"in the year{_s(values['year'].numbers)} {_listed(_spans(values['year']))}")
    return ", ".join(parts)


def _days_of_month(day: FieldValues) -> str:
    named = ["the last day" if special == "last" else _weekday_of_month(special) for special in day.special]
    if not day.numbers:
        return f"on {_listed(named)} of the month"
    numbered = f"day{_s(day.numbers)} {_listed(_spans(day))}"
    return f"on {_listed([numbered, *named])} of the month"


def _weekday_of_month(special: str) -> str:
    ordinal, _, weekday = special.partition(" ")
    word = ordinal if ordinal in ORDINALS else "last"
    return f"the {word} {_DAY_NAMES[WEEKDAYS.index(weekday)]}"


def _spans(values: FieldValues, names: tuple[str, ...] = (), low: int = 0) -> list[str]:
    def word(number: int) -> str:
        return names[number - low] if names else str(number)

    numbers = sorted(values.numbers)
    steps = {after - before for before, after in pairwise(numbers)}
    if len(steps) == 1 and steps != {1} and len(numbers) > _MOST_LISTED:
        return [*map(word, numbers[:3]), f"so on to {word(numbers[-1])}"]
    return [word(first) if first == last else f"{word(first)} to {word(last)}" for first, last in runs(numbers)]


def _step(values: FieldValues, cycle: int) -> int | None:
    """Return the step of numbers that go round the whole cycle evenly from 0, 1 for all of them."""
    numbers = sorted(values.numbers)
    step = cycle // len(numbers)
    return step if len(numbers) > 1 and numbers == list(range(0, cycle, step)) and cycle % step == 0 else None


def _interval(trigger: IntervalTrigger) -> str:
    amounts = trigger.__getstate__()["interval"]
    weeks, days, hours, minutes, seconds, microseconds = amounts
    return f"every {_duration(timedelta(days, seconds, microseconds, 0, minutes, hours, weeks), bare_one=True)}"


def _calendar_interval(trigger: CalendarIntervalTrigger) -> str:
    state = trigger.__getstate__()
    named = list(zip(("year", "month", "week", "day"), state["interval"], strict=True))
    given = [(unit, amount) for unit, amount in named if amount]
    if len(given) == 1:
        rhythm = _count(given[0][1], given[0][0])
    else:
        rhythm = "every " + _listed(f"{amount} {unit}{'s' if amount != 1 else ''}" for unit, amount in given)
    hour, minute, second = state["time"]
    clock = f"{hour:02}:{minute:02}" + (f":{second:02}" if second else "")
    end = f", until {_day(state['end_date'])}" if state["end_date"] else ""
    zone = _zone(trigger.timezone)
    return f"{rhythm} at {clock} ({zone}), counted from {_day(state['start_date'])}{end}"


def _limits(trigger: CronTrigger | IntervalTrigger, now: datetime) -> str:
    start, end = trigger.start_time, trigger.end_time
    # The start of a trigger that was given none is the moment it was made, rounded up.
    text = f", from {_moment(start)}" if start > now + timedelta(seconds=1) else ""
    return text + (f", until {_moment(end)}" if end else "")


def _moment(moment: datetime) -> str:
    shown = moment.astimezone(UTC).astimezone(moment.tzinfo)
    clock = f"{shown:%H:%M}" + (f":{shown:%S}" if shown.second else "")
    return f"{_DAY_NAMES[shown.weekday()]}, {_day(shown)} at {clock} ({_zone(shown.tzinfo)})"


def _day(day: date) -> str:
    return f"{day.day} {_MONTH_NAMES[day.month - 1]} {day.year}"


def _zone(tz: tzinfo | None) -> str:
    return zone_name(tz) or str(tz)


def _duration(length: timedelta, *, bare_one: bool = False) -> str:
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
    return _listed(parts)


def _count(step: int, unit: str) -> str:
    return f"every {unit}" if step == 1 else f"every {step} {unit}s"


def _s(numbers: Iterable[int]) -> str:
    return "s" if len(list(numbers)) > 1 else ""


def _listed(words: Iterable[str], last: str = "and") -> str:
    *before, end = words
    return f"{', '.join(before)} {last} {end}" if before else end
