"""A trigger as one plain English sentence."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta, tzinfo
from itertools import pairwise

from apscheduler.abc import Trigger
from apscheduler.triggers.calendarinterval import CalendarIntervalTrigger
from apscheduler.triggers.combining import AndTrigger, OrTrigger
from apscheduler.triggers.cron import CronTrigger
from apscheduler.triggers.date import DateTrigger
from apscheduler.triggers.interval import IntervalTrigger

from .calendar_trigger import CalendarInterval
from .clock import Policy
from .cron import ORDINALS, WEEKDAYS, FieldValues, expression_of, field_values, runs
from .cron_trigger import Cron
from .excluding import Excluding, Exclusion
from .holiday_calendars import HolidayCalendar
from .limiting import Limited
from .rrule_trigger import RRule
from .rrule_words import rrule_words
from .wording import DAY_NAMES, MONTH_NAMES, day_words, duration, every, listed, plural
from .zones import zone_name

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
        return f"when all agree within {duration(trigger.threshold)}: {members}"
    if type(trigger) is DateTrigger:
        return f"once, on {_moment(trigger.run_time)}"
    if type(trigger) is IntervalTrigger:
        return _interval(trigger) + _limits(trigger, now)
    if type(trigger) is CronTrigger:
        return _cron(field_values(trigger), trigger.timezone) + _limits(trigger, now)
    if isinstance(trigger, Cron):
        policy = _policy(trigger.policy, trigger.default_policy)
        return _cron(trigger.values, trigger.timezone) + policy + _limits(trigger, now)
    if type(trigger) is CalendarIntervalTrigger:
        return _calendar_interval(trigger)
    if isinstance(trigger, RRule):
        words = rrule_words(trigger.rule, trigger.start)
        return f"{words} ({_zone(trigger.timezone)}){_except(map(str, trigger.exdates))}"
    if isinstance(trigger, Limited):
        times = (
            "" if trigger.max_fires is None else f", {trigger.max_fires:,} time{'s' if trigger.max_fires > 1 else ''}"
        )
        end = "" if trigger.until is None else f", until {_moment(trigger.until)}"
        return describe(trigger.inner, now=now) + times + end
    if isinstance(trigger, Excluding):
        return describe(trigger.inner, now=now) + _except(map(_except_words, trigger.exclude))
    if isinstance(trigger, CalendarInterval):
        return _calendar_interval(trigger) + _policy(trigger.policy, Policy("shift", "first"))
    return repr(trigger)[:500]


def _except(excluded: Iterable[str]) -> str:
    words = list(excluded)
    if len(words) > _MOST_LISTED:
        words = [*words[: _MOST_LISTED - 1], f"{len(words) - _MOST_LISTED + 1} more"]
    return f", except {listed(words)}" if words else ""


def _except_words(item: Exclusion) -> str:
    return f"on {exclusion_words(item)}" if "holidays" in item else exclusion_words(item)


def exclusion_words(item: Exclusion) -> str:
    """Return "25 December of every year" for "12-25", "public holidays of Germany" for {"holidays": "DE"}."""
    if not isinstance(item, str):
        return HolidayCalendar.of(item).words() if "holidays" in item else f"{item['from']} to {item['to']}"
    if len(item) == 5:
        return f"{int(item[3:])} {MONTH_NAMES[int(item[:2]) - 1]} of every year"
    return item


def _policy(policy: Policy, usual: Policy) -> str:
    """Return what is unusual about a trigger when the clock changes, or an empty string."""
    gap = {
        "skip": ", not at a time that the clock skips",
        "shift": ", a time that the clock skips is made up for",
    }
    fold = {
        "first": ", the first time where the clock shows a time twice",
        "last": ", the second time where the clock shows a time twice",
        "both": ", both times where the clock shows a time twice",
    }
    return (gap[policy.on_gap] if policy.on_gap != usual.on_gap else "") + (
        fold[policy.on_fold] if policy.on_fold != usual.on_fold else ""
    )


def _cron(values: Mapping[str, FieldValues], tz: tzinfo) -> str:
    zone = f" ({_zone(tz)})"
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
            return every(step, "second")
        if len(second.numbers) == 1:
            at = min(second.numbers)
            return "every minute" + (f" at second {at}" if at else "")
    if hour.is_any and second.numbers == {0}:
        if step := _step(minute, 60):
            return every(step, "minute")
        if minute.numbers == {0}:
            return "every hour"
        if len(minute.numbers) <= _MOST_LISTED:
            return f"every hour at minute{plural(minute.numbers)} {listed(map(str, sorted(minute.numbers)))}"
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
        return f"at {listed(times)}"
    if seconds != [0]:
        return ""
    step = _step(values["minute"], 60)
    if minutes == [0]:
        rhythm = "every hour"
    elif step:
        rhythm = every(step, "minute")
    else:
        return ""
    if hours[-1] - hours[0] == len(hours) - 1:
        return f"{rhythm} from {hours[0]:02}:00 to {hours[-1]:02}:{minutes[-1]:02}"
    if len(hours) <= _MOST_LISTED:
        return f"{rhythm} in the hours {listed(map(str, hours))}"
    if minutes == [0] and (hours_step := _step(values["hour"], 24)):
        return f"{every(hours_step, 'hour')} from 00:00"
    return ""


def _days(values: Mapping[str, FieldValues]) -> str:
    """Return the days, weeks, months and years the trigger is limited to, or an empty string."""
    parts = []
    day, weekday = values["day"], values["day_of_week"]
    weekdays = _spans(weekday, DAY_NAMES, 0)
    if not day.is_any:
        parts.append(_days_of_month(day) + (f" if that is {listed(weekdays, 'or')}" if not weekday.is_any else ""))
    elif not weekday.is_any:
        parts.append(listed(weekdays) if len(weekday.numbers) > 2 else f"every {listed(weekdays)}")
    if not values["week"].is_any:
        numbers = _spans(values["week"])
        parts.append(f"in ISO week{plural(values['week'].numbers)} {listed(numbers)}")
    if not values["month"].is_any:
        parts.append(f"in {listed(_spans(values['month'], MONTH_NAMES, 1))}")
    if not values["year"].is_any:
        parts.append(f"in the year{plural(values['year'].numbers)} {listed(_spans(values['year']))}")
    return ", ".join(parts)


def _days_of_month(day: FieldValues) -> str:
    named = ["the last day" if special == "last" else _weekday_of_month(special) for special in day.special]
    if not day.numbers:
        return f"on {listed(named)} of the month"
    numbered = f"day{plural(day.numbers)} {listed(_spans(day))}"
    return f"on {listed([numbered, *named])} of the month"


def _weekday_of_month(special: str) -> str:
    ordinal, _, weekday = special.partition(" ")
    word = ordinal if ordinal in ORDINALS else "last"
    return f"the {word} {DAY_NAMES[WEEKDAYS.index(weekday)]}"


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
    return f"every {duration(timedelta(days, seconds, microseconds, 0, minutes, hours, weeks), bare_one=True)}"


def _calendar_interval(trigger: CalendarIntervalTrigger | CalendarInterval) -> str:
    state = trigger.__getstate__()
    named = list(zip(("year", "month", "week", "day"), state["interval"], strict=True))
    given = [(unit, amount) for unit, amount in named if amount]
    if len(given) == 1:
        rhythm = every(given[0][1], given[0][0])
    else:
        rhythm = "every " + listed(f"{amount} {unit}{'s' if amount != 1 else ''}" for unit, amount in given)
    hour, minute, second = state["time"]
    clock = f"{hour:02}:{minute:02}" + (f":{second:02}" if second else "")
    end = f", until {day_words(state['end_date'])}" if state["end_date"] else ""
    zone = _zone(trigger.timezone)
    return f"{rhythm} at {clock} ({zone}), counted from {day_words(state['start_date'])}{end}"


def _limits(trigger: CronTrigger | IntervalTrigger | Cron, now: datetime) -> str:
    start, end = trigger.start_time, trigger.end_time
    if isinstance(trigger, Cron):  # which keeps them in UTC
        start, end = start.astimezone(trigger.timezone), end.astimezone(trigger.timezone) if end else None
    # The start of a trigger that was given none is the moment it was made, rounded up.
    text = f", from {_moment(start)}" if start > now + timedelta(seconds=1) else ""
    return text + (f", until {_moment(end)}" if end else "")


def _moment(moment: datetime) -> str:
    shown = moment.astimezone(UTC).astimezone(moment.tzinfo)
    clock = f"{shown:%H:%M}" + (f":{shown:%S}" if shown.second else "")
    return f"{DAY_NAMES[shown.weekday()]}, {day_words(shown)} at {clock} ({_zone(shown.tzinfo)})"


def _zone(tz: tzinfo | None) -> str:
    return zone_name(tz) or str(tz)
