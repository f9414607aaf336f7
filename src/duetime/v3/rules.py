"""When v3 fires: the next fire times by its own rules, faults included.

The rules are those of a process that is on time: each fire is calculated a moment after the one before. Jitter is
random, so it is left out; an interval's jitter, which v3 adds up from fire to fire, is left out too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from math import ceil
from typing import Any

from .clocks import Clock, clock_of, native
from .cron_fields import FIELDS, HIGHEST, Following, following
from .model import V3And, V3CalendarInterval, V3Cron, V3Date, V3Interval, V3Job, V3Or, V3Trigger, V3Unknown, V3Zone

MAX_STEPS = 20_000
"""Steps that are looked at for one fire of a cron trigger; its next fire is hundreds of years away after them."""

MAX_ROUNDS = 1_000
"""Rounds in which the members of an And may agree; v3 itself goes on for ever."""

Next = Callable[[datetime | None, datetime], datetime | None]
"""Takes the fire before, or None, and the time that it is; returns the next fire."""


class Hangs(Exception):
    """v3 never returns from this calculation, and its scheduler stands still."""


@dataclass(frozen=True, slots=True)
class Walk:
    """The fires of a job by v3's rules.

    :ivar fires: in UTC, in the order in which v3 has them; a fault can make one earlier than the one before
    :ivar end: why there are not more: None, ``ended``, ``hangs`` (v3's scheduler stands still then), ``unknown`` (a
        trigger that cannot be read)
    """

    fires: list[datetime]
    end: str | None


def v3_fire_times(job: V3Job, count: int, *, release: str | None = None, now: datetime | None = None) -> list[datetime]:
    """Return the next fires of the job by v3's own rules, in UTC; see :func:`v3_walk`."""
    return v3_walk(job, count, release=release, now=now).fires


def v3_walk(job: V3Job, count: int, *, release: str | None = None, now: datetime | None = None) -> Walk:
    """Return the next fires of the job by v3's own rules, in UTC, and why there are not more.

    They begin with the stored ``next_run_time``, which is a fire even if the trigger would not say so; a paused job has
    none.

    :param release: such as ``3.10.4``, the one that runs the job; None: see :func:`release_of`
    :param now: begin with what v3 calculates at that time instead, as when a paused job is resumed
    """
    numbers = (release or release_of(job)).split(".")
    following_fire = _rule(job.trigger, (int(numbers[0]), int(numbers[1])))
    if following_fire is None:
        return Walk([job.next_run_time.astimezone(UTC)] if job.next_run_time and now is None else [], "unknown")
    where = zone_of_trigger(job.trigger)
    own = where if isinstance(job.trigger, V3Interval | V3Cron | V3CalendarInterval) else None
    fires: list[datetime] = []
    end = None
    try:
        if now is not None:
            fire = following_fire(None, now.astimezone(UTC) if own is None else _in_zone(now, own))
        else:
            fire = job.next_run_time and native(job.next_run_time, where)
        while len(fires) < count:
            if fire is None:
                end = "ended"
                break
            fires.append(fire.astimezone(UTC))
            if len(fires) < count:
                fire = following_fire(fire, fire)
    except Hangs:
        end = "hangs"
    except OverflowError:  # after the year 9999
        end = "ended"
    return Walk(fires, end)


def release_of(job: V3Job) -> str:
    """Return the release whose rules are taken when nobody says which one runs the job.

    Zones of pytz and of its shim are of 3.10 and before; the others are taken to be of 3.11, although 3.9 and 3.10 have
    them too, for their scheduler's own zone with tzlocal 5 or where the application passed one.
    """
    where = zone_of_trigger(job.trigger)
    return "3.10" if where is not None and where.flavour in ("pytz", "shim") else "3.11"


def zone_of_trigger(trigger: V3Trigger) -> V3Zone | None:
    """Return the trigger's zone, or that of its first member that has one."""
    if isinstance(trigger, V3Interval | V3Cron | V3CalendarInterval):
        return trigger.timezone
    if isinstance(trigger, V3And | V3Or):
        return next((where for member in trigger.triggers if (where := zone_of_trigger(member))), None)
    return None


def _in_zone(moment: datetime, where: V3Zone) -> datetime:
    """``datetime.now(zone)`` at that moment."""
    return native(moment.astimezone(where.tzinfo), where)


def _rule(trigger: V3Trigger, release: tuple[int, int]) -> Next | None:
    if isinstance(trigger, V3Date):
        run_date = trigger.run_date
        return lambda before, now: run_date if before is None else None
    if isinstance(trigger, V3Interval):
        clock = clock_of(trigger.timezone, release, of_cron=False)
        return _interval_by_timestamps(trigger, clock) if clock.by_utc else _interval_by_sums(trigger, clock)
    if isinstance(trigger, V3Cron):
        return _Cron(trigger, clock_of(trigger.timezone, release, of_cron=True)).next
    if isinstance(trigger, V3CalendarInterval):
        return _calendar_interval(trigger)
    if isinstance(trigger, V3Unknown):
        return None
    members = [_rule(member, release) for member in trigger.triggers]
    known = [member for member in members if member is not None]
    if len(known) < len(members):
        return None
    return _all_of(known) if isinstance(trigger, V3And) else _any_of(known)


def _all_of(members: list[Next]) -> Next:
    def find(before: datetime | None, now: datetime) -> datetime | None:
        seen: list[datetime] | None = None
        for _ in range(MAX_ROUNDS):
            fires = [member(before, now) for member in members]
            known = [fire for fire in fires if fire is not None]
            if len(known) < len(fires):
                return None
            if min(known) == max(known):
                return known[0]
            if before is not None and known == seen:
                raise Hangs  # after a fire, what the members say does not depend on the time
            seen, now = known, max(known)
        raise Hangs

    return find


def _any_of(members: list[Next]) -> Next:
    def find(before: datetime | None, now: datetime) -> datetime | None:
        # The fire of one member is what all of them go on from: that moves an interval, and ends a date.
        fires = [fire for member in members if (fire := member(before, now)) is not None]
        return min(fires) if fires else None

    return find


def _interval_by_sums(trigger: V3Interval, clock: Clock) -> Next:
    """Up to 3.10: the length is added as the zone's class adds, and the sum put right, or not."""
    length = trigger.interval
    start = native(trigger.start_date, trigger.timezone)
    end = trigger.end_date and native(trigger.end_date, trigger.timezone)
    seconds = length.total_seconds()

    def find(before: datetime | None, now: datetime) -> datetime | None:
        if before is not None:
            fire = before + length
        elif start > now:
            fire = start
        else:
            fire = start + length * ceil((now - start).total_seconds() / seconds)
        return clock.settled(fire) if end is None or fire <= end else None

    return find


def _interval_by_timestamps(trigger: V3Interval, clock: Clock) -> Next:
    """From 3.11 on: seconds since 1970, as floating-point numbers."""
    seconds = trigger.interval.total_seconds()
    start = native(trigger.start_date, trigger.timezone)
    first = start.timestamp()
    end = None if trigger.end_date is None else trigger.end_date.timestamp()

    def find(before: datetime | None, now: datetime) -> datetime | None:
        if before is not None:
            fire = before.timestamp() + seconds
        elif start > now:
            fire = first
        else:
            fire = first + seconds * ceil((now.timestamp() - first) / seconds)
        return clock.here(datetime.fromtimestamp(fire, UTC)) if end is None or fire <= end else None

    return find


def _calendar_interval(trigger: V3CalendarInterval) -> Next:
    zone = trigger.timezone.tzinfo
    days = timedelta(days=trigger.days + 7 * trigger.weeks)

    def following_date(before: date) -> date:
        year, month = before.year, before.month
        for _ in range(MAX_ROUNDS):
            month += trigger.months
            year += trigger.years + (month - 1) // 12
            month = (month - 1) % 12 + 1
            try:
                return date(year, month, before.day) + days
            except ValueError:
                continue  # the month has no such day
        raise Hangs

    def find(before: datetime | None, now: datetime) -> datetime | None:
        day = trigger.start_date if before is None else following_date(before)
        while trigger.end_date is None or day <= trigger.end_date:
            wall = datetime(  # noqa: DTZ001 - a clock's, in the next line
                day.year, day.month, day.day, trigger.hour, trigger.minute, trigger.second
            )
            fire = wall.replace(tzinfo=zone).astimezone(UTC).astimezone(zone)
            if fire.replace(tzinfo=None, fold=0) == wall:
                return fire
            day = following_date(fire.date())  # a gap: the day that it is after it counts
        return None

    return find


class _Cron:
    """Goes through the fields from the largest to the smallest, and back to a larger one where none fits."""

    def __init__(self, trigger: V3Cron, clock: Clock) -> None:
        self.clock = clock
        self.steps: list[Following] = [following(name, trigger.fields[name]) for name in FIELDS]
        self.start = trigger.start_date and native(trigger.start_date, trigger.timezone)
        self.end = trigger.end_date and native(trigger.end_date, trigger.timezone)

    def next(self, before: datetime | None, now: datetime) -> datetime | None:
        """Return the first moment after the fire before that fits, or the first from now on."""
        clock, steps, end = self.clock, self.steps, self.end
        begin = clock.rounded_up(self._from(now)) if before is None else clock.after(before)
        moment, index = clock.here(begin), 0
        for _ in range(MAX_STEPS):
            value = _value(moment, index)
            found = steps[index](value, moment)
            if found is None:
                moment, index = self._increased(moment, index - 1)
            elif found > value:
                if index in (3, 4):  # week and weekday are not set, but found by going on day by day
                    moment, index = self._increased(moment, index)
                else:
                    moment = clock.at(_cut(moment, index, found), moment.fold)
                    index += 1
            else:
                index += 1
            if end is not None and moment > end:
                return None
            if index < 0:
                return None
            if index == 8:
                return moment
        return None

    def _from(self, now: datetime) -> datetime:
        if self.start is None:
            return now
        if self.clock.by_utc:
            return self.clock.here(max(now.astimezone(UTC), self.start.astimezone(UTC)))
        return max(now, self.start)

    def _increased(self, moment: datetime, index: int) -> tuple[datetime, int]:
        """Return the moment with that field, or a larger one if it is at its highest, one higher; smaller reset."""
        while index >= 0:
            if index in (3, 4):
                index -= 1
                continue
            value = _value(moment, index)
            highest = _length_of_month(moment) if index == 2 else HIGHEST[FIELDS[index]]
            if value < highest:
                length = _cut(moment, index, value + 1) - moment.replace(tzinfo=None, fold=0)
                if self.clock.by_utc:
                    return self.clock.plus(moment, length), index
                return self.clock.settled(moment + length), index
            index -= 1
        return moment, index


def _value(moment: datetime, index: int) -> int:
    if index == 3:
        return moment.isocalendar()[1]
    if index == 4:
        return moment.weekday()
    return _READ[index](moment)


_READ: tuple[Callable[[Any], int], ...] = (
    lambda moment: moment.year,
    lambda moment: moment.month,
    lambda moment: moment.day,
    lambda moment: moment.isocalendar()[1],
    lambda moment: moment.weekday(),
    lambda moment: moment.hour,
    lambda moment: moment.minute,
    lambda moment: moment.second,
)


def _cut(moment: datetime, index: int, value: int) -> datetime:
    """Return the clock's time with that field set, and the smaller ones at their lowest."""
    fields = [moment.year, moment.month, moment.day, moment.hour, moment.minute, moment.second]
    place = index if index < 3 else index - 2
    fields[place] = value
    for smaller in range(place + 1, 6):
        fields[smaller] = 1 if smaller < 3 else 0
    return datetime(*fields)  # type: ignore[arg-type]  # noqa: DTZ001


def _length_of_month(moment: datetime) -> int:
    following_month = moment.replace(tzinfo=None, day=28) + timedelta(days=4)
    return (following_month - timedelta(days=following_month.day)).day
