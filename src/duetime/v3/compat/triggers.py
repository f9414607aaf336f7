"""v3's triggers by v3's arguments, and what each is here.

``CronTrigger``, ``IntervalTrigger`` and the others take the arguments of v3's classes of that name and mean what v3
means by them: a weekday 0 is Monday, the first fire of an interval comes after one interval, a time zone that is left
out is the machine's. What is kept is what they say (``said``, a :class:`~duetime.v3.model.V3Trigger`); it becomes a
trigger of APScheduler 4 when a job is made of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import UTC, date, datetime, timedelta, tzinfo
from typing import Any

from apscheduler.abc import Trigger

from ...errors import InvalidArguments, InvalidTrigger, NoEquivalent, did_you_mean
from ..cron_fields import FIELDS
from ..model import V3And, V3CalendarInterval, V3Cron, V3Date, V3Interval, V3Or, V3Trigger
from ..spelling import complete, spelled_here
from .moments import as_moment, as_v3_zone, as_zone

Moment = datetime | date | str


class V3Said:
    """A trigger that was said in v3's words."""

    said: V3Trigger

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.said!r})"


class DateTrigger(V3Said):
    """Once, at ``run_date``; now if it is left out.

    :param run_date: a datetime, a day (its midnight), or text of the form ``2026-06-01 09:00:00``
    :param timezone: of a run_date without an offset; default: the machine's
    """

    def __init__(self, run_date: Moment | None = None, timezone: str | tzinfo | None = None) -> None:
        tz = as_zone(timezone)
        self.said = V3Date(as_moment(run_date, tz, "run_date") or datetime.now(tz))


class IntervalTrigger(V3Said):
    """Every so many weeks, days, hours, minutes and seconds; every second if nothing is said.

    :param start_date: the first fire; default: one interval from now. In the past, it sets the rhythm
    :param end_date: no fire after this
    :param timezone: of times without an offset; default: that of start_date or end_date, else the machine's
    :param jitter: seconds by which a fire is delayed at most
    """

    def __init__(
        self,
        weeks: float = 0,
        days: float = 0,
        hours: float = 0,
        minutes: float = 0,
        seconds: float = 0,
        start_date: Moment | None = None,
        end_date: Moment | None = None,
        timezone: str | tzinfo | None = None,
        jitter: float | None = None,
    ) -> None:
        try:
            interval = timedelta(weeks=weeks, days=days, hours=hours, minutes=minutes, seconds=seconds)
        except (TypeError, OverflowError) as exc:
            raise InvalidTrigger(f"expected an interval of numbers of weeks, days and so on, got: {exc}.") from None
        if interval < timedelta(0):
            raise InvalidTrigger(f"expected an interval that is longer than zero, got {interval}.")
        tz = _zone(timezone, start_date, end_date)
        interval = interval or timedelta(seconds=1)
        start = as_moment(start_date, tz, "start_date") or datetime.now(UTC).astimezone(tz) + interval
        self.said = V3Interval(interval, start, as_moment(end_date, tz, "end_date"), as_v3_zone(tz), jitter)


class CronTrigger(V3Said):
    """At the times that fit all fields. Weekdays are 0 (Monday) to 6 (Sunday), or ``mon`` to ``sun``.

    A field that is left out is ``*`` if a smaller one is given, and its lowest value if not.

    :param start_date: no fire before this
    :param end_date: no fire after this
    :param timezone: default: that of start_date or end_date, else the machine's
    :param jitter: seconds by which a fire is delayed at most
    """

    def __init__(
        self,
        year: int | str | None = None,
        month: int | str | None = None,
        day: int | str | None = None,
        week: int | str | None = None,
        day_of_week: int | str | None = None,
        hour: int | str | None = None,
        minute: int | str | None = None,
        second: int | str | None = None,
        start_date: Moment | None = None,
        end_date: Moment | None = None,
        timezone: str | tzinfo | None = None,
        jitter: float | None = None,
    ) -> None:
        given = dict(
            zip(FIELDS, (year, month, day, week, day_of_week, hour, minute, second), strict=True),
        )
        fields = complete(given)
        for name, text in fields.items():
            spelled_here(name, text)
        tz = _zone(timezone, start_date, end_date)
        self.said = V3Cron(
            fields,
            as_moment(start_date, tz, "start_date"),
            as_moment(end_date, tz, "end_date"),
            as_v3_zone(tz),
            jitter,
            frozenset(name for name, value in given.items() if value is None),
        )

    @classmethod
    def from_crontab(cls, expr: str, timezone: str | tzinfo | None = None) -> CronTrigger:
        """Return the trigger of five fields: minute, hour, day, month, weekday, which is 0 for *Monday*, as in v3.

        :raises InvalidTrigger: if there are not five
        """
        values = expr.split()
        if len(values) != 5:
            raise InvalidTrigger(f"expected a crontab expression of five fields, got {len(values)}: {expr!r:.100}.")
        minute, hour, day, month, day_of_week = values
        return cls(minute=minute, hour=hour, day=day, month=month, day_of_week=day_of_week, timezone=timezone)


class CalendarIntervalTrigger(V3Said):
    """Every so many years, months, weeks and days from ``start_date``, at a time of day (v3.11).

    :param start_date: the first day; default: today
    :param timezone: default: the machine's
    """

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
        start_date: date | str | None = None,
        end_date: date | str | None = None,
        timezone: str | tzinfo | None = None,
        jitter: float | None = None,
    ) -> None:
        tz = as_zone(timezone)
        first = _day(start_date, "start_date") or datetime.now(UTC).astimezone().date()
        self.said = V3CalendarInterval(
            years, months, weeks, days, hour, minute, second, first, _day(end_date, "end_date"), as_v3_zone(tz), jitter
        )


class _Combining(V3Said):
    kind: Callable[..., V3Trigger]

    def __init__(self, triggers: Iterable[V3Said], jitter: float | None = None) -> None:
        members = list(triggers)
        for member in members:
            if not isinstance(member, V3Said):
                raise InvalidArguments(
                    f"expected members that are triggers of duetime.v3.compat, got {type(member).__name__}. "
                    f"Combine triggers of APScheduler 4 with its own AndTrigger and OrTrigger."
                )
        self.said = type(self).kind(tuple(member.said for member in members), jitter)


class AndTrigger(_Combining):
    """The instants that all members have in common."""

    kind = V3And


class OrTrigger(_Combining):
    """The earliest instant of any member."""

    kind = V3Or


BY_ALIAS: dict[str, type[V3Said]] = {
    "date": DateTrigger,
    "interval": IntervalTrigger,
    "cron": CronTrigger,
    "calendarinterval": CalendarIntervalTrigger,
    "and": AndTrigger,
    "or": OrTrigger,
}


def made_of(trigger: str | V3Said | Trigger | None, arguments: dict[str, Any], tz: tzinfo) -> V3Said | Trigger:
    """Return the trigger of v3's arguments ``trigger`` and ``**trigger_args``.

    :param trigger: alias (None: ``date``), or a trigger, which is returned as it is and takes no notice of arguments
    :param tz: the scheduler's zone, for a trigger that is given by alias and has none
    :raises InvalidTrigger: if there is none of that alias, or it does not take the arguments
    """
    if isinstance(trigger, (V3Said, Trigger)):
        return trigger
    if trigger is not None and not isinstance(trigger, str):
        raise InvalidTrigger(
            f"expected a trigger or one of {', '.join(BY_ALIAS)}, got {type(trigger).__name__}. A trigger of "
            f"APScheduler 3 cannot be here: the two releases have one name, so no process has both."
        )
    alias = trigger or "date"
    kind = BY_ALIAS.get(alias)
    if kind is None:
        raise InvalidTrigger(
            f"expected one of {', '.join(BY_ALIAS)}, got {alias!r:.60}{did_you_mean(alias, BY_ALIAS)} "
            f"Triggers of plug-ins have no equivalent; pass a trigger."
        )
    if not issubclass(kind, _Combining):
        arguments = {"timezone": tz, **arguments}
    try:
        return kind(**arguments)
    except TypeError as exc:
        raise InvalidTrigger(f"expected the arguments of v3's {alias!r} trigger, got: {exc}.") from None


def jitter_of(said: V3Trigger) -> timedelta | None:
    """Return by how much a job's fires are delayed at most.

    :raises NoEquivalent: if a member of a combined trigger has a jitter of its own
    """
    for member in getattr(said, "triggers", ()):
        if jitter_of(member):
            raise NoEquivalent(
                "expected no jitter in the members of a combined trigger, because it belongs to the schedule here. "
                "Give it to the combined trigger."
            )
    jitter = getattr(said, "jitter", None)
    return timedelta(seconds=jitter) if jitter else None


def _zone(given: str | tzinfo | None, *moments: object) -> tzinfo:
    if given:
        return as_zone(given)
    for moment in moments:
        if isinstance(moment, datetime) and moment.tzinfo is not None:
            return as_zone(moment.tzinfo)
    return as_zone(None)


def _day(given: date | str | None, name: str) -> date | None:
    if isinstance(given, str):
        try:
            return date.fromisoformat(given)
        except ValueError:
            raise InvalidTrigger(f"expected {name} as a day such as 2026-06-01, got {given!r:.60}.") from None
    return given.date() if isinstance(given, datetime) else given
