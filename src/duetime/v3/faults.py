"""What v3 is known to do otherwise than its user would think, as the cause of a difference."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

from .model import Finding, V3And, V3CalendarInterval, V3Cron, V3Date, V3Interval, V3Job, V3Or, V3Trigger, V3Zone
from .rules import release_of

_NEAR = timedelta(hours=26)
"""How far from a change of the clocks a cron trigger's fires can be wrong: the rest of that day, and a little more."""

_LONGEST_LOOK = timedelta(days=800)
_END_OF_PYTZ = datetime(2037, 12, 31, tzinfo=UTC)


def known_faults(job: V3Job) -> tuple[Finding, ...]:
    """Return what can be said of the job's trigger before its fires are compared, each with the severity ``note``.

    Codes: ``jitter_left_out``, ``or_feeds_interval``, ``or_loses_date``, ``and_hangs``.
    """
    return tuple(_of_trigger(job.trigger))


def explain(
    job: V3Job, moment: datetime, *, before: datetime | None = None, release: str | None = None
) -> Finding | None:
    """Return why v3 fires, or does not fire, at that moment, where another scheduler does otherwise; None if unknown.

    Codes: those of :func:`known_faults`, and ``clock_change`` (the zone's clocks change there), ``after_2037`` (pytz
    knows no changes from then on), ``overridden`` (the stored next_run_time, which the trigger would not say).

    :param moment: where the difference is
    :param before: the last fire before it on which both agree; an interval's sum can be wrong from a change since then
    """
    if job.next_run_time is not None and moment == job.next_run_time:
        return Finding(
            "overridden",
            "The stored next_run_time is the next fire in v3, whether or not the trigger would say so.",
            "note",
        )
    for where in _zones(job.trigger):
        if where.flavour == "pytz" and moment > _END_OF_PYTZ and (release or release_of(job)) != "3.11":
            return Finding("after_2037", f"pytz has no changes of the clocks of {where.name} after 2037.", "note")
        if change := _change(where, before or moment, moment):
            way = "forward" if change[1] > timedelta(0) else "back"
            return Finding(
                "clock_change",
                f"The clocks of {where.name} go {way} at {change[0]:%Y-%m-%d %H:%M} UTC. {_WHAT[way]}",
                "note",
            )
    return next((found for found in _of_trigger(job.trigger) if found.code != "jitter_left_out"), None)


_WHAT = {
    "forward": "There v3 fires at another time than the trigger says, or leaves fires of that day or the next out.",
    "back": "There v3 fires in one of the two hours only, or in both, or an hour off, depending on its release and on "
    "the kind of the zone.",
}


def _of_trigger(trigger: V3Trigger) -> Iterator[Finding]:
    if getattr(trigger, "jitter", None):
        yield Finding(
            "jitter_left_out",
            "Fires are compared without jitter. v3 adds it at random, from 0 up (3.6: in both directions), and an "
            "interval's adds up from fire to fire.",
            "note",
        )
    if isinstance(trigger, V3Or) and len(trigger.triggers) > 1:
        if any(isinstance(member, V3Interval) for member in trigger.triggers):
            yield Finding(
                "or_feeds_interval",
                "v3 counts an interval in an Or from the last fire of any member, so the others move it.",
                "note",
            )
        if any(isinstance(member, V3Date) for member in trigger.triggers):
            yield Finding(
                "or_loses_date", "v3 loses a date in an Or as soon as any other member has fired before it.", "note"
            )
    if isinstance(trigger, V3And) and len(trigger.triggers) > 1:
        yield Finding(
            "and_hangs",
            "After its first fire, v3 never returns from an And whose members differ in their next fires, and its "
            "scheduler stands still; with a date in it, it ends.",
            "note",
        )
    if isinstance(trigger, V3And | V3Or):
        for member in trigger.triggers:
            yield from _of_trigger(member)


def _zones(trigger: V3Trigger) -> Iterator[V3Zone]:
    if isinstance(trigger, V3Interval | V3Cron | V3CalendarInterval):
        yield trigger.timezone
    elif isinstance(trigger, V3And | V3Or):
        for member in trigger.triggers:
            yield from _zones(member)


def _change(where: V3Zone, start: datetime, end: datetime) -> tuple[datetime, timedelta] | None:
    """Return the last change of the clocks from a day before the start to a day after the end, and by how much."""
    first = max(start, end - _LONGEST_LOOK).astimezone(UTC) - _NEAR
    late = end.astimezone(UTC) + _NEAR
    while late > first:
        early = max(first, late - timedelta(days=10))
        if found := _change_between(where, early, late):
            return found
        late = early
    return None


def _change_between(where: V3Zone, early: datetime, late: datetime) -> tuple[datetime, timedelta] | None:
    def offset(moment: datetime) -> timedelta:
        return moment.astimezone(where.tzinfo).utcoffset() or timedelta(0)

    before, after = offset(early), offset(late)
    if before == after:
        return None
    while late - early > timedelta(minutes=1):
        middle = early + (late - early) / 2
        if offset(middle) == after:
            late = middle
        else:
            early = middle
    return late.replace(second=0, microsecond=0), after - before
