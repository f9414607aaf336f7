"""Between the clock on the wall and the instant: times that a zone skips, and times that it has twice."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta, tzinfo
from typing import Literal, NamedTuple, get_args

from duetime.errors import InvalidTrigger, did_you_mean

OnGap = Literal["shift", "skip"]
"""A clock time that the zone skips: at the first instant after the gap, or not at all."""

OnFold = Literal["first", "last", "both"]
"""A clock time that the zone has twice: the first time, the second time, or both times."""

_SECOND = timedelta(seconds=1)


class ClockChange(NamedTuple):
    """One change of a zone's clock.

    :ivar at: the first instant (UTC) after the change
    :ivar before: offset from UTC before it
    :ivar after: offset from UTC after it
    """

    at: datetime
    before: timedelta
    after: timedelta

    @property
    def start(self) -> datetime:
        """The clock time at which the gap, or the repeated stretch, begins."""
        return (self.at + min(self.before, self.after)).replace(tzinfo=None)

    @property
    def end(self) -> datetime:
        """The first clock time after the gap, or after the repeated stretch."""
        return (self.at + max(self.before, self.after)).replace(tzinfo=None)


class Policy(NamedTuple):
    """What becomes of clock times in a gap, and of those that the zone has twice."""

    on_gap: OnGap
    on_fold: OnFold


def offset_at(instant: datetime, tz: tzinfo) -> timedelta:
    """Return the zone's offset from UTC at an instant (aware, UTC)."""
    return instant.astimezone(tz).utcoffset() or timedelta(0)


def offsets(naive: datetime, tz: tzinfo) -> tuple[timedelta, timedelta]:
    """Return what the zone's offset is at that clock time, by the rule before and by the rule after a change.

    They are the same but for a time in a gap (the first is smaller) and one that the zone has twice (it is larger).
    """
    first = naive.replace(tzinfo=tz, fold=0).utcoffset()
    last = naive.replace(tzinfo=tz, fold=1).utcoffset()
    return first or timedelta(0), last or timedelta(0)


def change_at(naive: datetime, tz: tzinfo, before: timedelta, after: timedelta) -> ClockChange:
    """Return the change that makes a clock time missing or ambiguous, its two :func:`offsets` being given."""
    old, new = sorted(((naive - before).replace(tzinfo=UTC), (naive - after).replace(tzinfo=UTC)))
    return ClockChange(first_change(old, new, tz), before, after)


def first_change(old: datetime, new: datetime, tz: tzinfo) -> datetime:
    """Return the first instant, to the second, with another offset than ``old`` has, ``new`` being such a one."""
    offset = offset_at(old, tz)
    low, high = 0, int((new - old).total_seconds())
    while high - low > 1:
        middle = (low + high) // 2
        if offset_at(old + middle * _SECOND, tz) == offset:
            low = middle
        else:
            high = middle
    return old + high * _SECOND


def instants(naive: datetime, tz: tzinfo, policy: Policy) -> tuple[datetime, ...]:
    """Return the instants (UTC, ascending) at which a zone's clock shows that time: none, one or two of them."""
    before, after = offsets(naive, tz)
    if before == after:
        return ((naive - before).replace(tzinfo=UTC),)
    if before < after:
        return (change_at(naive, tz, before, after).at,) if policy.on_gap == "shift" else ()
    first, last = (naive - before).replace(tzinfo=UTC), (naive - after).replace(tzinfo=UTC)
    return {"first": (first,), "last": (last,), "both": (first, last)}[policy.on_fold]


MAX_GAPS = 100
"""Times in a gap, one after another, that are passed over before a trigger counts as one that never fires."""


def following(
    after: datetime, tz: tzinfo, match: Callable[[datetime], datetime | None], policy: Policy
) -> datetime | None:
    """Return the first instant later than ``after`` (UTC) whose clock time ``match`` allows.

    :param match: gives the first clock time that fits, at or after the one it is given (naive, whole seconds)
    """
    wall = after.astimezone(tz)
    naive = wall.replace(tzinfo=None, fold=0)
    search = naive.replace(microsecond=0) + _SECOND
    before, since = offsets(naive, tz)
    if before <= since:
        # Of the times that come twice from here on, the first is nearer.
        return _found(search, tz, match, Policy(policy.on_gap, "last" if policy.on_fold == "last" else "first"))
    change = change_at(naive.replace(microsecond=0), tz, before, since)
    moments = []
    if policy.on_fold != "last":
        start = change.end if wall.fold else search
        moments.append(_found(start, tz, match, Policy(policy.on_gap, "first")))
    if policy.on_fold != "first":
        start = search if wall.fold else change.start
        moments.append(_found(start, tz, match, Policy(policy.on_gap, "last")))
    return min((moment for moment in moments if moment is not None), default=None)


def _found(
    search: datetime, tz: tzinfo, match: Callable[[datetime], datetime | None], policy: Policy
) -> datetime | None:
    # With "first" and with "last" the later of two clock times never comes earlier, so the first one is the one.
    for _ in range(MAX_GAPS):
        found = match(search)
        if found is None:
            return None
        before, since = offsets(found, tz)
        if before >= since:
            return (found - (since if policy.on_fold == "last" else before)).replace(tzinfo=UTC)
        change = change_at(found, tz, before, since)
        if policy.on_gap == "shift":
            return change.at
        search = change.end
    return None


def checked_policy(on_gap: str, on_fold: str) -> Policy:
    """Return the policy of these words.

    :raises InvalidTrigger: naming the nearest known word
    """
    for name, word, known in (("on_gap", on_gap, get_args(OnGap)), ("on_fold", on_fold, get_args(OnFold))):
        if word not in known:
            raise InvalidTrigger(
                f"expected {name} to be one of {', '.join(known)}, got {word!r:.60}{did_you_mean(str(word), known)}",
                details=[{"where": f"trigger.{name}", "problem": f"expected one of {', '.join(known)}"}],
            )
    return Policy(on_gap, on_fold)  # type: ignore[arg-type]
