"""v3's triggers as triggers of APScheduler 4 that fire at the same times, the faults of v3 aside.

On the days on which the clock changes v3 loses fires or makes them twice; ``Cron`` and ``CalendarInterval`` do not.
What a change of the clock means to them otherwise is what it means to the schedules that are made of v3's rows.
"""

from __future__ import annotations

from copy import deepcopy
from datetime import UTC, datetime, timedelta
from typing import Any

from apscheduler.abc import Trigger
from apscheduler.triggers.combining import AndTrigger, OrTrigger
from apscheduler.triggers.date import DateTrigger
from apscheduler.triggers.interval import IntervalTrigger

from ...errors import NoEquivalent
from ...triggers import CalendarInterval, Cron
from ...triggers.moving import forward, interval_of, restored
from ...triggers.zones import UTC_ZONE
from ..clock_policies import policy_like_v3
from ..model import V3And, V3CalendarInterval, V3Cron, V3Date, V3Interval, V3Or, V3Trigger
from ..spelling import spelled_here

_INSTANT = timedelta(microseconds=1)


def trigger_of(said: V3Trigger, now: datetime) -> Trigger:
    """Return a trigger whose fires are those that v3 has from ``now`` on.

    A start in the past sets the rhythm; what lay before now is not made up for, but for a date, and for the days of a
    calendar interval, the first of which v3 takes as it is.

    :param now: aware
    :raises NoEquivalent: if there is none
    """
    match said:
        case V3Date():
            return DateTrigger(said.run_date.astimezone(UTC_ZONE))
        case V3Interval():
            start = said.start_date.astimezone(UTC_ZONE)
            if start < now:
                start += -((start - now) // said.interval) * said.interval
            return _interval(said.interval, start, said.end_date)
        case V3Cron():
            fields = {name: spelled_here(name, text) for name, text in said.fields.items()}
            start = now if said.start_date is None else max(now, said.start_date)
            gap, fold = policy_like_v3(fields, said.timezone, now, fires_twice=True)
            return Cron(
                fields,
                timezone=said.timezone.tzinfo,
                on_gap=gap,
                on_fold=fold,
                start_time=start,
                end_time=said.end_date,
            )
        case V3CalendarInterval():
            return CalendarInterval(
                years=said.years,
                months=said.months,
                weeks=said.weeks,
                days=said.days,
                hour=said.hour,
                minute=said.minute,
                second=said.second,
                start_date=said.start_date,
                end_date=said.end_date,
                timezone=said.timezone.tzinfo,
                on_gap="skip",
            )
        case V3And():
            return AndTrigger([trigger_of(member, now) for member in said.triggers])
        case V3Or():
            return OrTrigger([trigger_of(member, now) for member in said.triggers])
    raise NoEquivalent(f"expected one of v3's own triggers, got {said!r:.100}.")


def going_on_after(trigger: Trigger, moment: datetime) -> Trigger:
    """Return the trigger as it stands when its schedule is due at ``moment``, whatever it would say itself: as in v3,
    an interval is counted from there, and the others go on with what comes after.

    :param trigger: is left as it is
    :param moment: aware
    :raises NoEquivalent: if nobody knows what comes after: of a combined trigger that has begun
    """
    moment = moment.astimezone(UTC)
    if isinstance(trigger, DateTrigger):
        return _spent(DateTrigger(moment.astimezone(UTC_ZONE)))
    if isinstance(trigger, IntervalTrigger):
        end = trigger.__getstate__()["end_time"]
        return _spent(_interval(interval_of(trigger), moment.astimezone(UTC_ZONE), end))
    if isinstance(trigger, Cron):
        state = trigger.__getstate__()
        return restored(Cron, {**state, "start_time": moment + _INSTANT, "last_fire_time": None})
    if isinstance(trigger, CalendarInterval):
        years, months, weeks, days = trigger.interval
        day = moment.astimezone(trigger.timezone).date()
        made = CalendarInterval(
            years=years,
            months=months,
            weeks=weeks,
            days=days,
            hour=trigger.time.hour,
            minute=trigger.time.minute,
            second=trigger.time.second,
            start_date=day,
            end_date=None if trigger.end_date is None else max(trigger.end_date, day),
            timezone=trigger.timezone,
            on_gap=trigger.policy.on_gap,
            on_fold=trigger.policy.on_fold,
        )
        return _spent(made)
    if isinstance(trigger, (AndTrigger, OrTrigger)) and not trigger._next_fire_times:
        made_up: Trigger = deepcopy(trigger)
        forward(made_up, moment)
        return made_up
    raise NoEquivalent(
        f"expected a date, interval, cron or calendarinterval trigger to be given a next run time of its own, got "
        f"{type(trigger).__name__}. Add the job again with next_run_time and replace_existing=True."
    )


def _spent(trigger: Trigger) -> Trigger:
    """Return the trigger after its first fire."""
    trigger.next()
    return trigger


def _interval(interval: timedelta, start: datetime, end: datetime | None) -> IntervalTrigger:
    # In UTC: IntervalTrigger adds the interval to the wall clock of its start's zone, which goes back once a year.
    parts: dict[str, Any] = {
        "days": interval.days,
        "seconds": interval.seconds,
        "microseconds": interval.microseconds,
    }
    if end is not None:
        parts["end_time"] = end.astimezone(UTC_ZONE)
    return IntervalTrigger(**parts, start_time=start)
