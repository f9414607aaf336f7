"""Holidays and blackouts: a trigger without the fire times that fall on them."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterable, Mapping
from datetime import UTC, date, datetime, timedelta, tzinfo
from functools import lru_cache
from typing import Any, NamedTuple

from apscheduler import MaxIterationsReached
from apscheduler.abc import Trigger
from apscheduler.triggers.interval import IntervalTrigger

from duetime.errors import InvalidTrigger

from .clock import change_at, offsets
from .cron_trigger import check_version, part
from .holiday_calendars import HolidayCalendar
from .moving import forward, goes_forward
from .zones import UTC_ZONE, in_zone, zone

MAX_EXCLUSIONS = 1_000

MAX_PASSED = 1_000
"""Exclusions in a row that a search passes over; then there is no fire time left."""

MAX_STEPS = 20_000
"""Excluded fire times in a row of a trigger that cannot be moved on at once."""

MAX_YEARS = 20
"""Years in which a search finds holidays and nothing else; then there is no fire time left. Calendars end some day: a
trigger that only fires on holidays would fire from then on, or be looked for through centuries of them."""

_INSTANT = timedelta(microseconds=1)
_YEARLY = re.compile(r"(?:--)?(\d{2})-(\d{2})")

Exclusion = str | Mapping[str, Any]
"""``2026-12-24`` (a day), ``12-25`` (that day of every year), ``{"from": …, "to": …}`` with days (both included) or
times (``to`` is not), or ``{"holidays": "DE"}`` with what else a :class:`HolidayCalendar` has."""


class Excluding(Trigger):
    """Fires as another trigger does, but not on excluded days and at excluded times.

    :param inner: the trigger whose fire times are looked at; it moves along
    :param exclude: at most 1,000 of ``"2026-12-24"``, ``"12-25"`` (every year), ``{"from": "2026-12-27", "to":
        "2027-01-03"}`` (both days included), ``{"from": "2026-06-01T22:00", "to": "2026-06-02T06:00"}`` (``to`` not
        included), ``{"holidays": "DE", "subdivision": "BY"}`` (public holidays, of next year by the rules of then)
    :param timezone: the zone whose days are meant; that of the inner trigger, if it has one
    :raises InvalidTrigger: naming the place of an exclusion that is none. Whether there is such a calendar of holidays
        is looked up by the first :meth:`next`, which raises the same
    """

    __slots__ = ("_ends", "_starts", "_yearly", "calendars", "exclude", "inner", "timezone")

    def __init__(self, inner: Trigger, exclude: Iterable[Exclusion], *, timezone: str | tzinfo | None = None) -> None:
        tz = zone(timezone) if isinstance(timezone, str) else timezone
        own = None if isinstance(inner, IntervalTrigger) else getattr(inner, "timezone", None)
        self._set(inner, list(exclude), own or tz or UTC_ZONE)

    def _set(self, inner: Trigger, exclude: list[Exclusion], tz: tzinfo) -> None:
        if not isinstance(inner, Trigger):
            raise InvalidTrigger(f"expected a trigger to exclude times of, got {type(inner).__name__}.")
        if len(exclude) > MAX_EXCLUSIONS:
            raise InvalidTrigger(
                f"expected at most {MAX_EXCLUSIONS:,} exclusions, got {len(exclude):,}. Join days that follow each "
                f"other into {{'from': …, 'to': …}}.",
                details=[{"where": "trigger.exclude", "problem": f"more than {MAX_EXCLUSIONS:,}"}],
            )
        self.inner = inner
        self.timezone = tz
        frozen = tuple(_frozen(item, f"trigger.exclude[{index}]") for index, item in enumerate(exclude))
        normal, self._starts, self._ends, self._yearly, self.calendars = _compiled(frozen, tz)
        self.exclude: list[Exclusion] = [_thawed(item) for item in normal]

    def next(self) -> datetime | None:
        """Return the next fire time of the inner trigger that is not excluded, or None."""
        jumps = goes_forward(self.inner)
        years: set[int] = set()
        for _ in range(MAX_PASSED if jumps else MAX_STEPS):
            fire = self.inner.next()
            if fire is None:
                return None
            end = self._excluded_until(fire, years)
            if end is None:
                return fire
            if len(years) > MAX_YEARS:
                return None
            if jumps:
                forward(self.inner, end - _INSTANT)
        if jumps:
            return None
        raise MaxIterationsReached

    @property
    def is_ready(self) -> bool:
        """Whether a few hundred steps are made at once, as no calendar of holidays has to be loaded for them."""
        return all(calendar.is_ready for calendar in self.calendars)

    def exclusion_of(self, fire: datetime) -> tuple[Exclusion, str | None] | None:
        """Return the first exclusion that a fire falls on, and the name of the holiday if it is one; None: on none.

        :raises InvalidTrigger: if a calendar of holidays cannot be had
        """
        day = fire.astimezone(self.timezone).date()
        for index, item in enumerate(self.exclude):
            _, meaning = _read(item, self.timezone, f"trigger.exclude[{index}]")
            if isinstance(meaning, HolidayCalendar):
                if name := meaning.holiday(day):
                    return item, name
            elif isinstance(meaning, _Yearly):
                if meaning == (day.month, day.day):
                    return item, None
            elif meaning.start <= fire < meaning.end:
                return item, None
        return None

    def _excluded_until(self, fire: datetime, years: set[int]) -> datetime | None:
        """Return the first instant (UTC) after the exclusion that a fire falls on, or None if it falls on none.

        :param years: is given the year of a holiday that the fire falls on
        """
        fire = fire.astimezone(UTC)
        position = bisect_right(self._starts, fire) - 1
        if position >= 0 and fire < self._ends[position]:
            return self._ends[position]
        if self._yearly or self.calendars:
            day = fire.astimezone(self.timezone).date()
            is_holiday = any(calendar.holiday(day) for calendar in self.calendars)
            if is_holiday:
                years.add(day.year)
            if is_holiday or (day.month, day.day) in self._yearly:
                return _begin(day + timedelta(days=1), self.timezone)
        return None

    def __getstate__(self) -> dict[str, Any]:
        return {"version": 1, "inner": self.inner, "exclude": self.exclude, "timezone": self.timezone}

    def __setstate__(self, state: dict[str, Any]) -> None:
        check_version(state, 1)
        self._set(state["inner"], part(state, "exclude", list), part(state, "timezone", tzinfo))

    def __repr__(self) -> str:
        return f"Excluding({self.inner!r}, {self.exclude!r}, timezone={str(self.timezone)!r})"


class _Span(NamedTuple):
    """From an instant (UTC) until another one, which is not included."""

    start: datetime
    end: datetime


class _Yearly(NamedTuple):
    """A day of every year."""

    month: int
    day: int


class _Compiled(NamedTuple):
    """Exclusions in their normal form, the starts and ends of their spans, the days of every year, and calendars."""

    normal: tuple[_Item, ...]
    starts: list[datetime]
    ends: list[datetime]
    yearly: frozenset[tuple[int, int]]
    calendars: tuple[HolidayCalendar, ...]


_Item = str | tuple[tuple[str, Any], ...]


def _frozen(item: Exclusion, where: str) -> _Item:
    if isinstance(item, str):
        return item
    try:
        frozen = tuple((name, tuple(value) if isinstance(value, list) else value) for name, value in item.items())
        hash(frozen)
    except (TypeError, AttributeError):
        raise _wrong(item, where) from None
    return frozen


def _thawed(item: _Item) -> Exclusion:
    if isinstance(item, str):
        return item
    return {name: list(value) if isinstance(value, tuple) else value for name, value in item}


@lru_cache(maxsize=64)  # a stored trigger is read again for each fire
def _compiled(exclude: tuple[_Item, ...], tz: tzinfo) -> _Compiled:
    normals: list[_Item] = []
    spans: list[_Span] = []
    yearly: set[_Yearly] = set()
    calendars: dict[HolidayCalendar, None] = {}
    for index, item in enumerate(exclude):
        where = f"trigger.exclude[{index}]"
        normal, meaning = _read(item if isinstance(item, str) else dict(item), tz, where)
        normals.append(_frozen(normal, where))
        if isinstance(meaning, _Span):
            spans.append(meaning)
        elif isinstance(meaning, _Yearly):
            yearly.add(meaning)
        else:
            calendars[meaning] = None
    return _Compiled(tuple(normals), *_merged(spans), frozenset(yearly), tuple(calendars))


def _begin(day: date, tz: tzinfo) -> datetime:
    """Return the first instant (UTC) of a day: right after the gap where the clock skips midnight."""
    midnight = datetime(day.year, day.month, day.day)  # noqa: DTZ001
    before, after = offsets(midnight, tz)
    return change_at(midnight, tz, before, after).at if before < after else (midnight - before).replace(tzinfo=UTC)


def _read(item: Exclusion, tz: tzinfo, where: str) -> tuple[Exclusion, _Span | _Yearly | HolidayCalendar]:
    """Return an exclusion in its normal form, and what it means."""
    if isinstance(item, str) and (match := _YEARLY.fullmatch(item)):
        month, day = int(match[1]), int(match[2])
        try:
            date(2000, month, day)
        except ValueError:
            raise _wrong(item, where) from None
        return f"{month:02}-{day:02}", _Yearly(month, day)
    try:
        if isinstance(item, str):
            only = date.fromisoformat(item)
            return only.isoformat(), _Span(_begin(only, tz), _begin(only + timedelta(days=1), tz))
        if "holidays" in item:
            calendar = HolidayCalendar.of(item)
            return calendar.exclusion(), calendar
        start, end = (_edge(item[name]) for name in ("from", "to"))
        if isinstance(start, datetime) and isinstance(end, datetime):
            span = _Span(in_zone(start, tz).astimezone(UTC), in_zone(end, tz).astimezone(UTC))
        elif not isinstance(start, datetime) and not isinstance(end, datetime):
            span = _Span(_begin(start, tz), _begin(end + timedelta(days=1), tz))
        else:
            raise ValueError("a day and a time")
    except (ValueError, TypeError, KeyError, OverflowError):
        raise _wrong(item, where) from None
    if span.start >= span.end:
        problem = f"expected 'from' before 'to', got {start.isoformat()} and {end.isoformat()}"
        raise InvalidTrigger(f"{where}: {problem}.", details=[{"where": where, "problem": problem}])
    return {"from": start.isoformat(), "to": end.isoformat()}, span


def _edge(text: str) -> date | datetime:
    try:
        return date.fromisoformat(text)
    except ValueError:
        return datetime.fromisoformat(text)


def not_an_exclusion(item: object) -> str:
    """Return what was expected in the place of something that is no exclusion."""
    if isinstance(item, Mapping) and "holidays" in item:
        return (
            f"expected {{'holidays': 'DE'}} with the name of a country or a financial market, and if need be the texts "
            f"'subdivision': 'BY' and 'categories': ['public'], and 'observed': false, got {item!r:.120}"
        )
    return (
        f"expected a day ('2026-12-24'), a day of every year ('12-25'), {{'from': …, 'to': …}} with two days or two "
        f"times, or {{'holidays': 'DE'}}, got {item!r:.80}"
    )


def _wrong(item: object, where: str) -> InvalidTrigger:
    problem = not_an_exclusion(item)
    return InvalidTrigger(f"{where}: {problem}.", details=[{"where": where, "problem": problem}])


def _merged(spans: list[_Span]) -> tuple[list[datetime], list[datetime]]:
    """Return the starts and the ends of the spans, ascending, those that overlap or touch being one."""
    starts: list[datetime] = []
    ends: list[datetime] = []
    for start, end in sorted(spans):
        if ends and start <= ends[-1]:
            ends[-1] = max(ends[-1], end)
        else:
            starts.append(start)
            ends.append(end)
    return starts, ends
