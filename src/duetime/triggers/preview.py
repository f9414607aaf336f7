"""Looking ahead on a copy: the next fire times, and whether there are any."""

from __future__ import annotations

from contextlib import suppress
from copy import deepcopy
from datetime import UTC, datetime, timedelta, tzinfo

from apscheduler import MaxIterationsReached
from apscheduler.abc import Trigger
from apscheduler.triggers.calendarinterval import CalendarIntervalTrigger
from apscheduler.triggers.combining import AndTrigger, OrTrigger
from apscheduler.triggers.cron import CronTrigger
from apscheduler.triggers.date import DateTrigger
from apscheduler.triggers.interval import IntervalTrigger

from duetime.errors import TriggerNeverFires

from .calendar_trigger import CalendarInterval
from .cron import field_values, has_date
from .cron_trigger import Cron
from .excluding import Excluding
from .limiting import Limited
from .moving import Counted, Steps, forward, restored, with_members
from .rrule_trigger import RRule
from .zones import UTC_ZONE

MAX_STEPS = 20_000
"""Steps of the single triggers inside one look ahead; then it ends with what it has found."""

MAX_UPCOMING = 1_000
"""Fire times that one look ahead returns at most."""


def working_copy(trigger: Trigger, *, after: datetime | None = None, steps: Steps | None = None) -> Trigger:
    """Return a copy to look ahead with, which gives times in UTC; at most ``MAX_STEPS`` steps can be made in it.

    With ``after`` it begins near that instant (never later) where the kind of trigger allows to get there at
    once.
    """
    steps = steps or Steps(MAX_STEPS)
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
            pending.append(members[-1].next() if late else moment and moment.astimezone(UTC))
        return with_members(type(trigger), {**state, "next_fire_times": pending}, members)
    if type(trigger) is CronTrigger:
        state = trigger.__getstate__()
        if not has_date(field_values(trigger), (state["last_fire_time"] or state["start_time"]).date()):
            return Counted(_spent(), steps, keeps_zone=False)
    if isinstance(trigger, Excluding):
        inner = working_copy(trigger.inner, after=after, steps=steps)
        return restored(Excluding, {**trigger.__getstate__(), "inner": inner})
    if isinstance(trigger, Limited):
        # What is passed over would not be counted.
        inner = working_copy(trigger.inner, after=after if trigger.max_fires is None else None, steps=steps)
        return restored(Limited, {**trigger.__getstate__(), "inner": inner})
    copy = restored(type(trigger), trigger.__getstate__()) if type(trigger) in _PLAIN else deepcopy(trigger)
    if after is not None:
        forward(copy, after)
    return Counted(copy, steps, keeps_zone=shown_zone(copy) is None)


# Their state holds nothing that changes.
_PLAIN = (DateTrigger, IntervalTrigger, CronTrigger, CalendarIntervalTrigger, Cron, CalendarInterval, RRule)


def _spent() -> DateTrigger:
    trigger = DateTrigger(datetime.now(UTC))
    trigger.next()
    return trigger


def shown_zone(trigger: Trigger) -> tzinfo | None:
    """Return the zone that a trigger's times are shown in: its own, or the one that its members share.

    UTC for members of several zones; None for a class of the application's own, whose times say it themselves.
    """
    if type(trigger) is DateTrigger:
        return trigger.run_time.tzinfo
    if type(trigger) is IntervalTrigger:
        return trigger.start_time.tzinfo
    if isinstance(trigger, (CronTrigger, CalendarIntervalTrigger, Cron, CalendarInterval, RRule, Excluding)):
        return trigger.timezone
    if isinstance(trigger, Limited):
        return shown_zone(trigger.inner)
    if isinstance(trigger, (AndTrigger, OrTrigger)):
        zones = [shown_zone(member) for member in trigger.triggers]
        return zones[0] if len(set(zones)) == 1 else UTC_ZONE
    return None


def upcoming(trigger: Trigger, count: int = 5, *, after: datetime | None = None) -> list[datetime]:
    """Return the next fire times of the trigger from where it stands, in its zone; the trigger does not move.

    :param count: how many, at most 1,000
    :param after: only times later than this instant; None for all that the trigger has still to give

    Fewer come back when the trigger ends, raises, or has not found more within 20,000 steps. A trigger of a
    stored schedule has already given out the schedule's ``next_fire_time``.
    """
    times: list[datetime] = []
    zone = shown_zone(trigger)
    # Where looking ahead fails, firing fails too, and the scheduler says so on the schedule.
    with suppress(Exception):
        copy = working_copy(trigger, after=after)
        while len(times) < min(count, MAX_UPCOMING):
            moment = copy.next()
            if moment is None:
                break
            if after is None or moment > after:
                times.append(moment.astimezone(zone) if zone else moment)
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
        "exist (31 February), an end in the past or before the start, members that exclude each other, and "
        "exclusions that leave nothing.",
        details=[{"where": "trigger", "problem": "it never fires"}],
    )
