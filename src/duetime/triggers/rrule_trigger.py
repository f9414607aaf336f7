"""Recurrence rules of calendars (RFC 5545) as a trigger: dateutil finds the clock times, the zone the instants."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator
from contextlib import suppress
from datetime import UTC, date, datetime, time, timedelta, tzinfo
from functools import lru_cache
from heapq import heappop, heappush
from types import NoneType
from typing import Any, Self, SupportsIndex

from apscheduler.abc import Trigger
from dateutil.rrule import DAILY, rrule

from duetime.errors import InvalidTrigger

from .clock import ClockChange, offset_at, offsets
from .cron_trigger import check_version, part
from .rrule_text import FREQUENCIES, Rule, first_day, parse_rule
from .zones import UTC_ZONE, in_zone, zone

MAX_EXDATES = 1_000

_UNIT = {"HOURLY": 3_600, "MINUTELY": 60, "SECONDLY": 1}
_DAY = 86_400
_LONGEST_GAP = timedelta(hours=25)
_NEVER = datetime(1, 1, 1)  # noqa: DTZ001 - a clock time

# Periods that are looked through for the next occurrence: more than 40 years of them, the longest wait of the
# calendar.
_PERIODS = {"YEARLY": 100, "MONTHLY": 600, "WEEKLY": 2_500}
_DAYS = 16_000


class _Exhausted(Exception):
    """No occurrence was found in as many periods as are looked through."""


class _CountedInterval(int):
    """An INTERVAL that ends dateutil's search.

    dateutil looks for the next occurrence up to the year 9999, which takes seconds for a day that does not exist. It
    adds the interval once for each period that it looks at, and so it can be counted.
    """

    left: int
    periods: int

    def __new__(cls, value: int, periods: int) -> Self:
        new = super().__new__(cls, value)
        new.left = new.periods = periods
        return new

    def _count(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise _Exhausted

    def reset(self) -> None:
        self.left = self.periods

    def __radd__(self, other: int) -> int:
        self._count()
        return int(other) + int(self)

    def __mul__(self, other: int) -> int:
        self._count()
        return int(self) * int(other)

    def __reduce_ex__(self, protocol: SupportsIndex) -> Any:
        return int, (int(self),)


class RRule(Trigger):
    """Fires at the occurrences of a recurrence rule (RFC 5545), by the clock of its zone.

    An occurrence at a time that the clock skips is moved forward by the length of the gap, and of a time that the
    clock shows twice the first counts: so says the RFC (3.3.5). Fire times are whole seconds, given in UTC (see
    :class:`~duetime.triggers.Cron`).

    :param rule: the rule, such as ``FREQ=WEEKLY;BYDAY=MO,FR``; not DTSTART and EXDATE, which are the next arguments
    :param start_time: DTSTART (aware, or in the trigger's zone): no fire before it, intervals and COUNT are counted
        from it, and what the rule leaves open (the time of day, the weekday) is taken from it; now by default. It is
        a fire time only if the rule says so.
    :param timezone: the zone, or its IANA name; UTC by default
    :param exdates: occurrences that are left out, though COUNT counts them: clock times in the trigger's zone, aware
        instants, or days; at most 1,000
    :raises InvalidTrigger: naming the part of the rule that is wrong
    """

    __slots__ = ("_exdates", "_interval", "_last", "_pending", "_taken", "_wall", "_walls", "rule", "start", "timezone")

    def __init__(
        self,
        rule: str,
        *,
        start_time: datetime | None = None,
        timezone: str | tzinfo = UTC_ZONE,
        exdates: Iterable[datetime | date] = (),
    ) -> None:
        tz = zone(timezone) if isinstance(timezone, str) else timezone
        start = start_time or datetime.now(UTC)
        if start.tzinfo is not None:
            start = start.astimezone(tz)
        walls = [
            each.astimezone(tz).replace(tzinfo=None) if isinstance(each, datetime) and each.tzinfo else each
            for each in exdates
        ]
        self._set(parse_rule(rule), start.replace(tzinfo=None, fold=0, microsecond=0), tz, walls)

    def _set(self, rule: Rule, start: datetime, tz: tzinfo, exdates: list[datetime | date]) -> None:
        if len(exdates) > MAX_EXDATES:
            raise InvalidTrigger(
                f"expected at most {MAX_EXDATES:,} exdates, got {len(exdates):,}. Split the schedule, or use 'exclude'."
            )
        if not all(isinstance(each, date) for each in exdates):
            raise InvalidTrigger("expected exdates that are datetimes and dates, got others.")
        self.rule = rule
        self.start = start
        self.timezone = tz
        self._exdates = frozenset(exdates)
        self._last: datetime | None = None  # the latest fire
        self._wall = _NEVER  # the latest clock time that was taken from the rule
        self._taken = 0
        self._pending: list[datetime] = []  # fires of the clock times that were taken, from a gap, as a heap
        self._walls: Iterator[datetime] | None = None
        self._interval: _CountedInterval | None = None
        if rule.freq in ("MINUTELY", "SECONDLY") and not self._has_daily_times:
            parts = ("BYHOUR", "BYMINUTE", "BYSECOND")[: 2 if rule.freq == "MINUTELY" else 3]
            if any(rule.by(part) for part in parts):
                raise InvalidTrigger(
                    f"expected an INTERVAL that divides the day in a rule with {', '.join(parts)}, got "
                    f"{rule.text!r:.120}. Choose such an interval, or leave these parts out.",
                    details=[{"where": "trigger.rrule.INTERVAL", "problem": "does not divide the day"}],
                )

    @property
    def exdates(self) -> list[datetime | date]:
        """The occurrences left out, as clock times (naive) and days, sorted."""
        return sorted(self._exdates, key=str)

    @property
    def start_time(self) -> datetime:
        """DTSTART, in the trigger's zone."""
        return in_zone(self.start, self.timezone)

    @property
    def is_bounded(self) -> bool:
        """Whether the next fire is found within a few milliseconds: not where single days of years are looked for."""
        return self.rule.freq in ("YEARLY", "MONTHLY") or not self.rule.limits_dates

    @property
    def _has_daily_times(self) -> bool:
        """Whether a rule of hours, minutes or seconds has the same times on every day."""
        unit = _UNIT.get(self.rule.freq)
        return unit is not None and _DAY % (self.rule.interval * unit) == 0

    def next(self) -> datetime | None:
        """Return the next fire time, in UTC, or None when there is none within 40 years."""
        while True:
            try:
                fire = self._following()
            except (_Exhausted, OverflowError):
                return None
            if fire is None:
                return None
            if self._last is None or fire > self._last:
                self._last = fire
                return fire

    def moves(self, wall: datetime, change: ClockChange) -> bool:
        """Return whether an occurrence at that clock time, right after a gap, is one that the gap has moved.

        False for rules of hours, minutes and seconds, which have an occurrence there anyway.
        """
        hours = self.rule.by("BYHOUR") or (self.start.hour,)
        return (
            self.rule.freq not in _UNIT
            and change.end <= wall < change.end + (change.after - change.before)
            and wall.hour not in hours
        )

    def _following(self) -> datetime | None:
        """Return the instant of the next occurrence that is not left out."""
        until = self.rule.until
        while True:
            # Of clock times in a gap the instants come later than those of the clock times right after it: they wait
            # until the rule has come as far as they are moved.
            if self._pending and self._wall >= self._pending[0].astimezone(self.timezone).replace(tzinfo=None):
                return heappop(self._pending)
            wall = self._take()
            if wall is None:
                return heappop(self._pending) if self._pending else None
            before, since = offsets(wall, self.timezone)
            instant = (wall - before).replace(tzinfo=UTC)
            if until is not None and (wall if until.tzinfo is None else instant) > until:
                return heappop(self._pending) if self._pending else None
            if self._is_left_out(wall):
                continue
            if not self._pending and before >= since:
                return instant
            heappush(self._pending, instant)

    def _is_left_out(self, wall: datetime) -> bool:
        return bool(self._exdates) and (wall in self._exdates or wall.date() in self._exdates)

    def _take(self) -> datetime | None:
        """Return the next clock time of the rule, or None at its end."""
        if self.rule.count is not None and self._taken >= self.rule.count:
            return None
        if self._walls is None:
            self._walls = self._walls_after(self._wall)
        if self._interval is not None:
            self._interval.reset()
        try:
            wall = next(self._walls, None)
        except ValueError:  # dateutil has found out that no hour fits
            return None
        if wall is not None:
            self._wall = wall
            self._taken += 1
        return wall

    def _walls_after(self, passed: datetime) -> Iterator[datetime]:
        """Yield the clock times of the rule later than ``passed``, ascending."""
        rule, start = self.rule, self.start
        periods = _PERIODS.get(rule.freq, _DAYS)
        unit = _UNIT.get(rule.freq)
        if unit is not None and self._has_daily_times:
            yield from self._daily_times(passed, periods)
            return
        first = start
        if unit is not None:
            self._interval = _CountedInterval(rule.interval, periods)
            steps = (passed - start) // timedelta(seconds=unit * rule.interval) if passed > start else 0
            first += steps * timedelta(seconds=unit * rule.interval)
            interval: int = self._interval
        else:
            self._interval = _CountedInterval(rule.interval, periods)
            interval = self._interval
            if passed > start and (day := first_day(rule, start.date(), passed.date())) != start.date():
                first = datetime.combine(day, time(0))
        times = _open_parts(rule, start)
        frequency: Any = FREQUENCIES.index(rule.freq)
        found = rrule(
            frequency,
            dtstart=first,
            interval=interval,
            bysetpos=rule.by("BYSETPOS") or None,
            **{**rule.dateutil_days(), **times},
        )
        for wall in found:
            if wall > passed and wall >= start:
                yield wall

    def _daily_times(self, passed: datetime, periods: int) -> Iterator[datetime]:
        rule, start = self.rule, self.start
        seconds = _seconds_of_day(
            _UNIT[rule.freq],
            rule.interval,
            (start.hour * 60 + start.minute) * 60 + start.second,
            *(rule.by(name) for name in ("BYHOUR", "BYMINUTE", "BYSECOND")),
        )
        if not seconds:
            return
        self._interval = _CountedInterval(1, periods)
        first = max(start, passed)
        days = rrule(
            DAILY, dtstart=datetime.combine(first.date(), time(0)), interval=self._interval, **rule.dateutil_days()
        )
        for day in days:
            position = 0
            if day <= first:
                position = bisect_left(seconds, int((first - day).total_seconds()))
            for index in range(position, len(seconds)):
                wall = day + timedelta(seconds=seconds[index])
                if wall > passed and wall >= start:
                    yield wall

    def forward(self, after: datetime) -> None:
        """Pass over all fire times up to and including that instant.

        With COUNT this walks through the occurrences, of which there are at most 10,000, and remembers how far it got.
        """
        after = after.astimezone(UTC)
        if self._last is not None and after <= self._last:
            return
        if self.rule.count is not None:
            with suppress(_Exhausted, OverflowError):
                while (fire := self._following()) is not None:
                    if fire > after:
                        heappush(self._pending, fire)
                        break
            self._last = after
            return
        wall = after.astimezone(self.timezone).replace(tzinfo=None, fold=0)
        if offset_at(after - _LONGEST_GAP, self.timezone) != offset_at(after, self.timezone):
            wall -= _LONGEST_GAP  # before it there may be clock times that are moved to after it
        if wall > max(self.start, self._wall):
            self._wall = wall
            self._walls = None
            self._pending = []
        self._last = after

    def __getstate__(self) -> dict[str, Any]:
        return {
            "version": 1,
            "rule": self.rule.text,
            "start": self.start,
            "timezone": self.timezone,
            "exdates": self.exdates,
            "wall": None if self._wall == _NEVER else self._wall,
            "taken": self._taken,
            "pending": sorted(self._pending),
            "last_fire_time": self._last,
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        check_version(state, 1)
        start, wall = part(state, "start", datetime), part(state, "wall", datetime, NoneType) or _NEVER
        exdates, pending = part(state, "exdates", list), part(state, "pending", list)
        self._set(parse_rule(state["rule"]), start.replace(tzinfo=None), part(state, "timezone", tzinfo), exdates)
        self._wall = wall.replace(tzinfo=None)
        self._taken = int(state["taken"])
        self._pending = [each.astimezone(UTC) for each in pending]
        self._last = part(state, "last_fire_time", datetime, NoneType)

    def __repr__(self) -> str:
        exdates = f", exdates={[str(each) for each in self.exdates]!r}" if self._exdates else ""
        return f"RRule({self.rule.text!r}, start_time={str(self.start)!r}, timezone={str(self.timezone)!r}{exdates})"


def _open_parts(rule: Rule, start: datetime) -> dict[str, Any]:
    """Return the times of day, and the days that the rule leaves open and the start says, as dateutil's arguments."""
    frequency = FREQUENCIES.index(rule.freq)
    parts: dict[str, Any] = {}
    for name, unit, own in (("BYHOUR", start.hour, 4), ("BYMINUTE", start.minute, 5), ("BYSECOND", start.second, 6)):
        parts[name.lower()] = rule.by(name) or (unit if frequency < own else None)
    days = ("BYWEEKNO", "BYYEARDAY", "BYMONTHDAY")
    if not rule.days and not any(rule.by(name) for name in days):
        if rule.freq == "YEARLY":
            parts["bymonthday"] = start.day
            if not rule.by("BYMONTH"):
                parts["bymonth"] = start.month
        elif rule.freq == "MONTHLY":
            parts["bymonthday"] = start.day
        elif rule.freq == "WEEKLY":
            parts["byweekday"] = start.weekday()
    return parts


@lru_cache(maxsize=16)  # up to 86,400 numbers each
def _seconds_of_day(
    unit: int, interval: int, start: int, hours: tuple[int, ...], minutes: tuple[int, ...], seconds: tuple[int, ...]
) -> tuple[int, ...]:
    """Return the times of day of a rule whose interval divides the day, as seconds since midnight."""
    begins = range(start // unit * unit % (interval * unit), _DAY, interval * unit)
    if unit == 1 and not (hours or minutes or seconds):
        return tuple(begins)
    found: set[int] = set()
    for at in begins:
        hour, minute, second = at // 3_600, at // 60 % 60, at % 60
        if hours and hour not in hours:
            continue
        if unit == 3_600:
            for each in minutes or (start // 60 % 60,):
                found.update(hour * 3_600 + each * 60 + last for last in seconds or (start % 60,))
        elif minutes and minute not in minutes:
            continue
        elif unit == 60:
            found.update(at + last for last in seconds or (start % 60,))
        elif not seconds or second in seconds:
            found.add(at)
    return tuple(sorted(found))
