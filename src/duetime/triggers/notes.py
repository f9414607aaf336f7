"""The next fire times of a trigger, with what the changes of the clock do to them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, tzinfo

from apscheduler.abc import Trigger
from apscheduler.triggers.combining import AndTrigger, OrTrigger

from .calendar_trigger import CalendarInterval
from .clock import ClockChange, first_change, offset_at, offsets
from .cron_trigger import Cron
from .describing import exclusion_words
from .excluding import Excluding
from .limiting import Limited
from .preview import MAX_UPCOMING, shown_zone, upcoming
from .rrule_trigger import RRule
from .wording import day_words, duration, listed

_LONGEST_LOOK_BACK = timedelta(days=100)
"""Two fires further apart than this may have several changes of the clock between them, of which nothing is said."""

_LONGEST_GAP = timedelta(hours=25)

_MOST_SKIPPED = 5

_MOST_LEFT_OUT = 5


@dataclass(frozen=True, slots=True)
class UpcomingFire:
    """A fire time that lies ahead.

    :ivar fire_time: in the trigger's zone
    :ivar note: what a change of the clock has to do with it, or the end of a calendar of holidays; or None
    :ivar left_out: the fire times that are left out before it, and why; or None
    """

    fire_time: datetime
    note: str | None = None
    left_out: str | None = None


def upcoming_fires(trigger: Trigger, count: int = 5, *, after: datetime | None = None) -> list[UpcomingFire]:
    """Return the next fire times of a trigger from where it stands, in its zone, with notes; it does not move.

    A note says when the clock has changed since the fire before, that a clock time comes twice, that a fire was
    moved out of a gap, that the clock skips a time, or that no holidays are known any more. Limits are those of
    :func:`~duetime.triggers.upcoming`.

    :param count: how many, at most 1,000
    :param after: only times later than this instant; None for all that the trigger has still to give
    """
    zone = shown_zone(trigger)
    fires = []
    before: datetime | None = after
    times = upcoming(trigger, count, after=after)
    left_out = _left_out(trigger, times, after)
    calendars = dict(_last_years(trigger)) if times else {}
    for moment, gone in zip(times, left_out, strict=True):
        tz = zone or moment.tzinfo or UTC
        instant = moment.astimezone(UTC)
        notes = list(_notes(trigger, before, instant, tz))
        for words, last in list(calendars.items()):
            if moment.year > last:
                notes.append(f"no {words} are known after {last}, so none is left out from here on")
                del calendars[words]
        fires.append(UpcomingFire(moment, "; ".join(notes) or None, gone))
        before = instant
    return fires


def why_left_out(trigger: Trigger, instant: datetime) -> str | None:
    """Return which exclusion leaves out a fire time of a trigger, in words; None if none does, or it is no fire time.

    Exclusions of the members of an ``and`` or ``or`` are not looked at.
    """
    if isinstance(trigger, Limited):
        return why_left_out(trigger.inner, instant)
    if not isinstance(trigger, Excluding):
        return None
    second = timedelta(seconds=1)
    for moment in upcoming(trigger.inner, 3, after=instant - second / 1000):
        if moment.astimezone(UTC) - instant < second and (found := trigger.exclusion_of(moment)):
            item, holiday = found
            return f"{holiday}, one of the {exclusion_words(item)}" if holiday else exclusion_words(item)
    return None


def _left_out(trigger: Trigger, times: Sequence[datetime], after: datetime | None) -> list[str | None]:
    """Return for each fire time which others are left out between it and the one before."""
    while isinstance(trigger, Limited):
        trigger = trigger.inner
    if not isinstance(trigger, Excluding) or not times:
        return [None] * len(times)
    words: list[dict[str, None]] = [{} for _ in times]
    position = 0
    for moment in upcoming(trigger.inner, MAX_UPCOMING, after=after):
        while position < len(times) and moment.astimezone(UTC) >= times[position].astimezone(UTC):
            position += 1
        if position == len(times):
            break
        if found := trigger.exclusion_of(moment):
            day = day_words(moment.astimezone(trigger.timezone))
            words[position][f"{day} ({found[1]})" if found[1] else day] = None
    return [_shortened(list(each)) for each in words]


def _shortened(days: list[str]) -> str | None:
    if not days:
        return None
    more = [f"{len(days) - _MOST_LEFT_OUT} more days"] if len(days) > _MOST_LEFT_OUT else []
    return f"left out before it: {listed([*days[:_MOST_LEFT_OUT], *more])}"


def _last_years(trigger: Trigger) -> Iterator[tuple[str, int]]:
    """Yield the calendars of holidays in a trigger, in words, and the last year that each of them knows."""
    if isinstance(trigger, (OrTrigger, AndTrigger)):
        for member in trigger.triggers:
            yield from _last_years(member)
    elif isinstance(trigger, Limited):
        yield from _last_years(trigger.inner)
    elif isinstance(trigger, Excluding):
        yield from ((calendar.words(), calendar.last_year) for calendar in trigger.calendars)
        yield from _last_years(trigger.inner)


def _notes(trigger: Trigger, before: datetime | None, fire: datetime, tz: tzinfo) -> Iterator[str]:
    wall = fire.astimezone(tz)
    naive = wall.replace(tzinfo=None, fold=0)
    first, last = offsets(naive, tz)
    if first > last:
        which = "second" if wall.fold else "first"
        yield f"the clock shows {naive:%H:%M} twice on this day, and this is the {which} time"
    is_first = before is None
    before = fire - _LONGEST_GAP if before is None else before.astimezone(UTC)
    if fire - before > _LONGEST_LOOK_BACK:
        return
    old, new = offset_at(before, tz), offset_at(fire, tz)
    if old == new:
        return
    change = ClockChange(first_change(before, fire, tz), old, new)
    if is_first and (new < old or not any(_is_moved(leaf, naive, change) for leaf in _leaves(trigger))):
        return
    if new < old:
        yield f"the clock has gone back by {duration(old - new)} since the fire before"
        return
    gap = f"the clock goes from {change.start:%H:%M} to {change.end:%H:%M} on {day_words(change.start)}"
    if any(_is_moved(leaf, naive, change) for leaf in _leaves(trigger)):
        yield f"{gap}, and this fire is moved out of the gap"
    elif skipped := sorted({time for leaf in _leaves(trigger) for time in _skipped(leaf, change)}):
        shown = [f"{time:%H:%M}" for time in skipped[:_MOST_SKIPPED]]
        more = ["others"] if len(skipped) > _MOST_SKIPPED else []
        yield f"{gap}, so there is no fire at {listed([*shown, *more], 'and')}"
    else:
        yield f"the clock has gone forward by {duration(new - old)} since the fire before"


def _leaves(trigger: Trigger) -> Iterator[Trigger]:
    if isinstance(trigger, (OrTrigger, AndTrigger)):
        for member in trigger.triggers:
            yield from _leaves(member)
    elif isinstance(trigger, (Excluding, Limited)):
        yield from _leaves(trigger.inner)
    else:
        yield trigger


def _is_moved(trigger: Trigger, wall: datetime, change: ClockChange) -> bool:
    """Return whether a fire at that clock time stands for one that the clock skips."""
    if isinstance(trigger, RRule):
        return trigger.moves(wall, change)
    if not isinstance(trigger, (Cron, CalendarInterval)) or wall != change.end or trigger.policy.on_gap != "shift":
        return False
    if isinstance(trigger, Cron):
        return trigger.match(wall) != wall and bool(_in_gap(trigger, change))
    return trigger.time != wall.time()


def _skipped(trigger: Trigger, change: ClockChange) -> list[datetime]:
    """Return the clock times of a trigger that the change skips."""
    if isinstance(trigger, Cron) and trigger.policy.on_gap == "skip":
        return _in_gap(trigger, change)
    if isinstance(trigger, CalendarInterval) and trigger.policy.on_gap == "skip":
        moment = datetime.combine(change.start.date(), trigger.time)
        return [moment] if change.start <= moment < change.end and trigger.falls_on(moment.date()) else []
    return []


def _in_gap(trigger: Cron, change: ClockChange) -> list[datetime]:
    found: list[datetime] = []
    moment = trigger.match(change.start)
    while moment is not None and moment < change.end and len(found) <= _MOST_SKIPPED:
        found.append(moment)
        moment = trigger.match(moment + timedelta(seconds=1))
    return found
