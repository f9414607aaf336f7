"""Triggers from their state, and passing over fire times without walking through them."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, NoReturn, TypeVar

from apscheduler import MaxIterationsReached
from apscheduler.abc import Trigger
from apscheduler.triggers.calendarinterval import CalendarIntervalTrigger
from apscheduler.triggers.combining import AndTrigger, BaseCombiningTrigger, OrTrigger
from apscheduler.triggers.cron import CronTrigger
from apscheduler.triggers.date import DateTrigger
from apscheduler.triggers.interval import IntervalTrigger

from .calendar_trigger import CalendarInterval
from .cron_trigger import Cron
from .rrule_trigger import RRule
from .zones import UTC_ZONE

T = TypeVar("T", bound=Trigger)


def restored(cls: type[T], state: Any) -> T:
    """Return a new trigger of the class in that state."""
    trigger = cls.__new__(cls)
    trigger.__setstate__(state)
    return trigger


def with_members(cls: type[BaseCombiningTrigger], state: dict[str, Any], members: list[Trigger]) -> Trigger:
    """Return a new ``and``/``or`` trigger in that state with these members.

    APScheduler's own ``__setstate__`` imports and builds whatever class a member's state names, so it is
    given no members, and they are put in afterwards.
    """
    trigger = restored(cls, {**state, "triggers": []})
    trigger.triggers = members
    return trigger


@dataclass(slots=True)
class Steps:
    """Steps that may still be made in one look ahead."""

    left: int


class Counted(Trigger):
    """A working copy of a single trigger, which gives times in UTC and cannot run for long, however it was made."""

    __slots__ = ("inner", "keeps_zone", "steps")

    def __init__(self, inner: Trigger, steps: Steps, *, keeps_zone: bool) -> None:
        self.inner = inner
        self.steps = steps
        self.keeps_zone = keeps_zone

    def next(self) -> datetime | None:
        """Return the next fire time of the copy, or None when there is none.

        :raises MaxIterationsReached: when no steps are left
        """
        self.steps.left -= 1
        if self.steps.left < 0:
            raise MaxIterationsReached
        if isinstance(self.inner, CalendarIntervalTrigger) and _leaves_the_calendar(self.inner):
            return None
        try:
            moment = self.inner.next()
            # APScheduler's and/or compare times of one zone by the clock on the wall, which goes back once a year.
            return moment if moment is None or self.keeps_zone else moment.astimezone(UTC)
        except OverflowError:  # past the year 9999
            return None

    def __getstate__(self) -> NoReturn:
        raise NotImplementedError("a working copy is never stored")

    def __setstate__(self, state: Any) -> NoReturn:
        raise NotImplementedError("a working copy is never stored")


def _leaves_the_calendar(trigger: CalendarIntervalTrigger) -> bool:
    # CalendarIntervalTrigger 4.0.0a6 looks for a valid date for ever once it has passed the year 9999. A
    # valid date comes at the latest with the second leap year.
    last = trigger.__getstate__()["last_fire_date"]
    return last is not None and last.year + 8 * (trigger.years + trigger.months // 12 + 1) > 9999


def goes_forward(trigger: Trigger) -> bool:
    """Return whether :func:`forward` gets this trigger to any instant at once."""
    if isinstance(trigger, (AndTrigger, OrTrigger)):
        return all(goes_forward(member) for member in trigger.triggers)
    if isinstance(trigger, Counted):
        return goes_forward(trigger.inner)
    # The times of a DateTrigger and a CalendarIntervalTrigger are few.
    known = (Cron, CalendarInterval, RRule, CronTrigger, IntervalTrigger, DateTrigger, CalendarIntervalTrigger)
    return isinstance(trigger, known)


def forward(trigger: Trigger, after: datetime) -> None:
    """Move a trigger on to near that instant, where its kind allows to get there at once.

    Its next fire time may still lie before the instant, but no later one is passed over.
    """
    if isinstance(trigger, (Cron, CalendarInterval, RRule)):
        trigger.forward(after)
    elif isinstance(trigger, Counted):
        forward(trigger.inner, after)
    elif type(trigger) is CronTrigger:
        state = trigger.__getstate__()
        last = state["last_fire_time"]
        if after >= state["start_time"] and (last is None or after > last):
            state["last_fire_time"] = after.replace(microsecond=0)
            trigger.__setstate__(state)
    elif type(trigger) is IntervalTrigger:
        _forward_interval(trigger, after)
    elif type(trigger) is AndTrigger or type(trigger) is OrTrigger:
        if isinstance(trigger, AndTrigger):
            after -= trigger.threshold + timedelta(seconds=1)
        pending = trigger._next_fire_times
        for index, member in enumerate(trigger.triggers):
            if not pending:
                forward(member, after)
            elif (moment := pending[index]) is not None and moment <= after:
                forward(member, after)
                pending[index] = member.next()


def _forward_interval(trigger: IntervalTrigger, after: datetime) -> None:
    state = trigger.__getstate__()
    base = state["last_fire_time"] or state["start_time"]
    # IntervalTrigger adds to the wall clock of its start's zone, and so does this. A clock time that
    # the zone skips stands for a later instant; three hours are more than a change of the clock.
    margin = timedelta(0) if base.tzinfo in (UTC, UTC_ZONE) else timedelta(hours=3)
    step = interval_of(trigger)
    whole_steps = (after.astimezone(base.tzinfo) - base - margin) // step
    if whole_steps > 0:
        state["last_fire_time"] = base + whole_steps * step
        trigger.__setstate__(state)


def interval_of(trigger: IntervalTrigger) -> timedelta:
    """Return the length of an interval, also of one that was read from the store."""
    weeks, days, hours, minutes, seconds, microseconds = trigger.__getstate__()["interval"]
    return timedelta(days, seconds, microseconds, 0, minutes, hours, weeks)
