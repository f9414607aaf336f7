"""Every so many days, months or years at one time of day, as a trigger of our own."""

from __future__ import annotations

from datetime import UTC, date, datetime, time, timedelta, tzinfo
from types import NoneType
from typing import Any

from apscheduler.abc import Trigger

from duetime.errors import InvalidTrigger

from .clock import OnFold, OnGap, checked_policy, instants
from .cron_trigger import check_version, part
from .zones import UTC_ZONE, zone

MAX_DAYS_PASSED = 1_000
"""Days in a row without a fire, as their time lies in a gap, before the trigger counts as one that never fires."""


class CalendarInterval(Trigger):
    """Fires every so many years, months, weeks and days, always at the same time of day.

    A month that lacks the day is passed over, as in APScheduler's CalendarIntervalTrigger. Fire times are given in
    UTC (see :class:`~duetime.triggers.Cron`).

    :param start_date: the first day, from which the others are counted; today in the zone by default
    :param end_date: no fire after this day
    :param timezone: the zone, or its IANA name; UTC by default
    :param on_gap: on a day on which the clock skips the time: ``shift`` (fires right after the gap, the default) or
        ``skip``
    :param on_fold: on a day on which the clock shows the time twice: ``first`` (default), ``last`` or ``both``
    :raises InvalidTrigger: if the interval is zero, or the end lies before the start
    """

    __slots__ = ("_day", "_last", "end_date", "interval", "policy", "start_date", "time", "timezone")

    def __init__(
        self,
        *,
        years: int = 0,
        months: int = 0,
        weeks: int = 0,
        days: int = 0,
        hour: int = 0,
        minute: int = 0,
        second: int = 0,
        start_date: date | None = None,
        end_date: date | None = None,
        timezone: str | tzinfo = UTC_ZONE,
        on_gap: OnGap = "shift",
        on_fold: OnFold = "first",
    ) -> None:
        if min(years, months, weeks, days) < 0 or not (years or months or weeks or days):
            raise InvalidTrigger(
                "expected a calendar interval of at least a day, got none. Give one or more of years, months, weeks "
                "and days.",
                details=[{"where": "trigger", "problem": "the interval is zero"}],
            )
        tz = zone(timezone) if isinstance(timezone, str) else timezone
        start = start_date or datetime.now(tz).date()
        if end_date is not None and end_date < start:
            raise InvalidTrigger(f"expected an end on or after the start, {start}, got {end_date}. Move one of them.")
        self.interval = (years, months, weeks, days)
        self.time = time(hour, minute, second)
        self.start_date = start
        self.end_date = end_date
        self.timezone = tz
        self.policy = checked_policy(on_gap, on_fold)
        self._day: date | None = None
        self._last: datetime | None = None

    @property
    def day(self) -> date:
        """The day of the latest fire, or the first day."""
        return self._day or self.start_date

    def next(self) -> datetime | None:
        """Return the next fire time, in UTC, or None when there is none."""
        day = self.day
        for _ in range(MAX_DAYS_PASSED):
            if self.end_date is not None and day > self.end_date:
                return None
            try:
                moments = instants(datetime.combine(day, self.time), self.timezone, self.policy)
                fire = next((each for each in moments if self._last is None or each > self._last), None)
                if fire is not None:
                    self._day, self._last = day, fire
                    return fire
                day = self._after(day)
            except OverflowError:  # past the year 9999
                return None
        return None

    def falls_on(self, day: date) -> bool:
        """Return whether the trigger's rhythm, from where it stands, comes to that day."""
        reached = self.day
        for _ in range(MAX_DAYS_PASSED):
            if reached >= day:
                break
            reached = self._after(reached)
        return reached == day and (self.end_date is None or day <= self.end_date)

    def _after(self, day: date) -> date:
        years, months, weeks, days = self.interval
        year, month = day.year, day.month
        while True:
            month += months
            year += years + (month - 1) // 12
            month = (month - 1) % 12 + 1
            if year > 9999:
                raise OverflowError
            try:
                same_day = date(year, month, day.day)
            except ValueError:
                continue  # a month without that day
            return same_day + timedelta(weeks=weeks, days=days)

    def forward(self, after: datetime) -> None:
        """Pass over all fire times up to and including that instant, at once where the interval is one of days."""
        after = after.astimezone(UTC)
        if self._last is not None and after <= self._last:
            return
        years, months, weeks, days = self.interval
        day = self.day
        behind = after.astimezone(self.timezone).date() - day
        step = timedelta(weeks=weeks, days=days)
        if not (years or months) and behind > step:
            # A day less than what fits, as its time may be moved to the next day by a gap of a whole day.
            self._day = day + (behind // step - 1) * step
        self._last = after

    def __getstate__(self) -> dict[str, Any]:
        return {
            "version": 1,
            "interval": list(self.interval),
            "time": [self.time.hour, self.time.minute, self.time.second],
            "start_date": self.start_date,
            "end_date": self.end_date,
            "timezone": self.timezone,
            "on_gap": self.policy.on_gap,
            "on_fold": self.policy.on_fold,
            "last_date": self._day,
            "last_fire_time": self._last,
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        check_version(state, 1)
        years, months, weeks, days = map(int, state["interval"])
        if min(years, months, weeks, days) < 0 or not (years or months or weeks or days):
            raise InvalidTrigger("expected a stored calendar interval of at least a day, got none.")
        self.interval = (years, months, weeks, days)
        self.time = time(*state["time"])
        self.start_date = part(state, "start_date", date)
        self.end_date = part(state, "end_date", date, NoneType)
        self.timezone = part(state, "timezone", tzinfo)
        self.policy = checked_policy(state["on_gap"], state["on_fold"])
        self._day = part(state, "last_date", date, NoneType)
        last = part(state, "last_fire_time", datetime, NoneType)
        self._last = last.astimezone(UTC) if last else None

    def __repr__(self) -> str:
        amounts = zip(("years", "months", "weeks", "days"), self.interval, strict=True)
        given = ", ".join(f"{name}={amount}" for name, amount in amounts if amount)
        end = f", end_date={str(self.end_date)!r}" if self.end_date else ""
        return (
            f"CalendarInterval({given}, time={self.time.isoformat()!r}, start_date={str(self.start_date)!r}{end}, "
            f"timezone={str(self.timezone)!r}, on_gap={self.policy.on_gap!r}, on_fold={self.policy.on_fold!r})"
        )
