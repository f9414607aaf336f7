"""Cron as a trigger of our own: right on the days on which the clock changes."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta, tzinfo
from types import NoneType
from typing import Any

from apscheduler.abc import Trigger

from duetime.errors import InvalidTrigger

from .clock import OnFold, OnGap, Policy, checked_policy, following
from .cron import KINDS, Days, FieldValues, default_policy, expression_of, parse_expression, parse_field, parse_fields
from .zones import UTC_ZONE, in_zone, zone

_INSTANT = timedelta(microseconds=1)


class Cron(Trigger):
    """Fires at the times of a zone's clock and calendar that fit all fields of a cron expression.

    Where both a day of the month and a weekday are limited, both must fit. Fire times are whole seconds. They are
    given in UTC: APScheduler's ``AndTrigger`` and ``OrTrigger`` compare times of one zone by the clock on the wall,
    which goes back once a year.

    :param expression: five fields (minute hour day month weekday), six with the second first, or ``@daily`` and
        the like; or fields by name: ``{"day": "2nd fri", "hour": 9}``
    :param timezone: the zone, or its IANA name; UTC by default
    :param on_gap: what becomes of a time that the clock skips: ``shift`` (fires right after the gap) or ``skip``
    :param on_fold: what becomes of a time that the clock shows twice: ``first``, ``last`` or ``both``

    Without ``on_gap`` and ``on_fold`` they are what Vixie cron does: ``skip`` and ``both`` if the hour, the minute
    or the second begins with ``*`` (a rhythm), ``shift`` and ``first`` otherwise (times of day).

    :param start_time: no fire before this (aware, or in the trigger's zone); now by default
    :param end_time: no fire after this
    :raises InvalidTrigger: naming each wrong field; UnknownTimeZone is one of them
    """

    __slots__ = (
        "_clock",
        "_days",
        "_last",
        "_texts",
        "end_time",
        "fields",
        "policy",
        "start_time",
        "timezone",
        "values",
    )

    def __init__(
        self,
        expression: str | Mapping[str, str | int],
        *,
        timezone: str | tzinfo = UTC_ZONE,
        on_gap: OnGap | None = None,
        on_fold: OnFold | None = None,
        start_time: datetime | None = None,
        end_time: datetime | None = None,
    ) -> None:
        fields = parse_expression(expression) if isinstance(expression, str) else parse_fields(expression)
        tz = zone(timezone) if isinstance(timezone, str) else timezone
        usual = default_policy(fields)
        self._set(
            {name: parse_field(name, fields.get(name, "*")) for name in KINDS},
            tz,
            checked_policy(on_gap or usual.on_gap, on_fold or usual.on_fold),
            in_zone(start_time, tz) if start_time else datetime.now(UTC),
            in_zone(end_time, tz) if end_time else None,
            None,
        )

    def _set(
        self,
        values: dict[str, FieldValues],
        tz: tzinfo,
        policy: Policy,
        start_time: datetime,
        end_time: datetime | None,
        last: datetime | None,
        texts: list[str] | None = None,
    ) -> None:
        self.values = values
        self.timezone = tz
        self.policy = policy
        self.start_time = start_time.astimezone(UTC)
        self.end_time = end_time.astimezone(UTC) if end_time else None
        self._last = last
        self._texts = texts or [str(each) for each in values.values()]
        self._days = Days(values)
        self._clock = tuple(sorted(values[name].numbers) for name in ("hour", "minute", "second"))

    @property
    def default_policy(self) -> Policy:
        """What ``on_gap`` and ``on_fold`` are for the shortest expression of this trigger when they are left out."""
        return default_policy({name: str(values) for name, values in self.values.items()})

    def next(self) -> datetime | None:
        """Return the next fire time, in UTC, or None when there is none within 40 years."""
        after = self._last if self._last is not None else self.start_time - _INSTANT
        try:
            fire = following(after, self.timezone, self.match, self.policy)
        except OverflowError:  # past the year 9999
            return None
        if fire is None or (self.end_time is not None and fire > self.end_time):
            return None
        self._last = fire
        return fire

    def forward(self, after: datetime) -> None:
        """Pass over all fire times up to and including that instant."""
        after = after.astimezone(UTC)
        if after >= self.start_time and (self._last is None or after > self._last):
            self._last = after

    def match(self, wall: datetime) -> datetime | None:
        """Return the first clock time (naive, whole seconds) at or after the given one that fits all fields."""
        day = self._days.first(wall.date())
        if day is None:
            return None
        if day == wall.date():
            clock = self._time_from(wall.hour, wall.minute, wall.second)
            if clock is not None:
                return datetime(day.year, day.month, day.day, *clock)  # noqa: DTZ001
            day = self._days.first(day + timedelta(days=1))
            if day is None:
                return None
        hours, minutes, seconds = self._clock
        return datetime(day.year, day.month, day.day, hours[0], minutes[0], seconds[0])  # noqa: DTZ001

    def _time_from(self, hour: int, minute: int, second: int) -> tuple[int, int, int] | None:
        hours, minutes, seconds = self._clock
        position = bisect_left(hours, hour)
        if position < len(hours) and hours[position] == hour:
            minute_position = bisect_left(minutes, minute)
            if minute_position < len(minutes) and minutes[minute_position] == minute:
                second_position = bisect_left(seconds, second)
                if second_position < len(seconds):
                    return hour, minute, seconds[second_position]
                minute_position += 1
            if minute_position < len(minutes):
                return hour, minutes[minute_position], seconds[0]
            position += 1
        return (hours[position], minutes[0], seconds[0]) if position < len(hours) else None

    def __getstate__(self) -> dict[str, Any]:
        return {
            "version": 1,
            "fields": list(self._texts),
            "timezone": self.timezone,
            "on_gap": self.policy.on_gap,
            "on_fold": self.policy.on_fold,
            "start_time": self.start_time,
            "end_time": self.end_time,
            "last_fire_time": self._last,
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        check_version(state, 1)
        self._set(
            {name: parse_field(name, text) for name, text in zip(KINDS, state["fields"], strict=True)},
            part(state, "timezone", tzinfo),
            checked_policy(state["on_gap"], state["on_fold"]),
            part(state, "start_time", datetime),
            part(state, "end_time", datetime, NoneType),
            part(state, "last_fire_time", datetime, NoneType),
            state["fields"],
        )

    def __repr__(self) -> str:
        expression = expression_of(self.values)
        fields = {name: str(values) for name, values in self.values.items() if not values.is_any}
        return (
            f"Cron({expression or fields!r}, timezone={str(self.timezone)!r}, on_gap={self.policy.on_gap!r}, "
            f"on_fold={self.policy.on_fold!r})"
        )


def part(state: Mapping[str, Any], name: str, *kinds: type) -> Any:
    """Return a part of a stored state, so that a damaged row is found when it is read, not when it fires.

    :raises InvalidTrigger: if it is of another kind
    """
    value = state[name]
    if not isinstance(value, kinds):
        known = " or ".join(kind.__name__ for kind in kinds)
        raise InvalidTrigger(f"expected {name!r} of a stored trigger to be {known}, got {type(value).__name__}.")
    return value


def check_version(state: Mapping[str, Any], known: int) -> None:
    """Do nothing if a stored state is of a version that this release reads.

    :raises InvalidTrigger: saying that a newer release wrote it
    """
    if state["version"] > known:
        raise InvalidTrigger(
            f"expected a stored trigger of version {known} or lower, got version {state['version']}. A newer release "
            f"of Duetime wrote it: bring this one up to date."
        )
