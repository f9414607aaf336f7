"""Looking ahead on a copy: the next fire times, and whether there are any."""

from __future__ import annotations

from contextlib import suppress
from copy import deepcopy
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

from duetime.errors import TriggerNeverFires

from .cron import field_values, has_date
from .zones import UTC_ZONE

MAX_STEPS = 20_000
"""Steps of the single triggers inside one look ahead; then it ends with what it has found."""

MAX_UPCOMING = 1_000
"""Fire times that one look ahead returns at most."""

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
class _Steps:
    left: int = MAX_STEPS


class _Counted(Trigger):
    """A working copy of a single trigger that cannot run for long, however it was made."""

    __slots__ = ("inner", "steps")

    def __init__(self, inner: Trigger, steps: _Steps) -> None:
        self.inner = inner
        self.steps = steps

    def next(self) -> datetime | None:
        self.steps.left -= 1
        if self.steps.left < 0:
            raise MaxIterationsReached
        if isinstance(self.inner, CalendarIntervalTrigger) and _leaves_the_calendar(self.inner):
            return None
        try:
            moment = self.inner.next()
            if moment is None:
                return None
            shown_in = self.inner.timezone if isinstance(self.inner, CronTrigger) else moment.tzinfo
            # By way of UTC, so that a clock time that does not exist (CronTrigger gives some) shows as the instant
            # that it stands for.
            return moment.astimezone(UTC).astimezone(shown_in)
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


def working_copy(trigger: Trigger, *, after: datetime | None = None, steps: _Steps | None = None) -> Trigger:
    """Return a copy to look ahead with; at most ``MAX_STEPS`` steps can be made in it.

    With ``after`` it begins near that instant (never later) where the kind of trigger allows to get there at
    once.
    """
    steps = steps or _Steps()
    if type(trigger) is AndTrigger or type(trigger) is OrTrigger:
        if after is not None and isinstance(trigger, AndTrigger):
            after -= trigger.threshold + timedelta(seconds=1)
        state = trigger.__getstate__()
        members: list[Trigger] = []
        pending: list[datetime | None] = []
        for index, member in enumerate(trigger.triggers):
            if not state["next_fire_times"]:
                members.append(working_copy(member, after=after, steps=steps))
                continue
            moment = state["next_fire_times"][index]
            late = after is not None and moment is not None and moment <= after
            members.append(working_copy(member, after=after if late else None, steps=steps))
            pending.append(members[-1].next() if late else moment)
        return with_members(type(trigger), {**state, "next_fire_times": pending}, members)
    if type(trigger) is CronTrigger:
        state = trigger.__getstate__()
        last = state["last_fire_time"]
        if not has_date(field_values(trigger), (last or state["start_time"]).date()):
            return _Counted(_spent(), steps)
        if after is not None and after >= state["start_time"] and (last is None or after > last):
            state["last_fire_time"] = after.replace(microsecond=0)
        return _Counted(restored(type(trigger), state), steps)
    if type(trigger) is IntervalTrigger:
        state = trigger.__getstate__()
        weeks, days, hours, minutes, seconds, microseconds = state["interval"]
        step = timedelta(days, seconds, microseconds, 0, minutes, hours, weeks)
        base = state["last_fire_time"] or state["start_time"]
        if after is not None:
            # IntervalTrigger adds to the wall clock of its start's zone, and so does this. A clock time that
            # the zone skips stands for a later instant; three hours are more than a change of the clock.
            margin = timedelta(0) if base.tzinfo in (UTC, UTC_ZONE) else timedelta(hours=3)
            whole_steps = (after.astimezone(base.tzinfo) - base - margin) // step
            if whole_steps > 0:
                state["last_fire_time"] = base + whole_steps * step
        return _Counted(restored(type(trigger), state), steps)
    if type(trigger) is DateTrigger or type(trigger) is CalendarIntervalTrigger:
        return _Counted(restored(type(trigger), trigger.__getstate__()), steps)
    return _Counted(deepcopy(trigger), steps)


def _spent() -> DateTrigger:
    trigger = DateTrigger(datetime.now(UTC))
    trigger.next()
    return trigger


def upcoming(trigger: Trigger, count: int = 5, *, after: datetime | None = None) -> list[datetime]:
    """Return the next fire times of the trigger from where it stands, in its zone; the trigger does not move.

    :param count: how many, at most 1,000
    :param after: only times later than this instant; None for all that the trigger has still to give

    Fewer come back when the trigger ends, raises, or has not found more within 20,000 steps. A trigger of a
    stored schedule has already given out the schedule's ``next_fire_time``.
    """
    times: list[datetime] = []
    # Where looking ahead fails, firing fails too, and the scheduler says so on the schedule.
    with suppress(Exception):
        copy = working_copy(trigger, after=after)
        while len(times) < min(count, MAX_UPCOMING):
            moment = copy.next()
            if moment is None:
                break
            if after is None or moment > after:
                times.append(moment)
    return times


def never_fires(trigger: Trigger) -> bool:
    """Return whether the trigger, from where it stands, has no fire time at all.

    True also for an ``and`` whose members do not agree within 20,000 steps. The trigger itself does not move.
    """
    return not upcoming(trigger, 1)


def check_fires(trigger: Trigger) -> None:
    """Do nothing if the trigger has a fire time.

    :raises TriggerNeverFires: saying why there is none
    """
    try:
        if working_copy(trigger).next() is not None:
            return
    except MaxIterationsReached:
        raise TriggerNeverFires(
            f"expected members of an 'and' trigger that fire together, got none that agree within "
            f"{MAX_STEPS:,} steps. Make the frequent members coarser, or write it as one cron expression.",
            details=[{"where": "trigger", "problem": f"no common fire time within {MAX_STEPS:,} steps"}],
        ) from None
    raise TriggerNeverFires(
        "expected a trigger with at least one fire time, got one that never fires. Check dates that do not "
        "exist (31 February), an end in the past or before the start, and members that exclude each other.",
        details=[{"where": "trigger", "problem": "it never fires"}],
    )
