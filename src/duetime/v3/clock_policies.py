"""The zones of v3's triggers under an IANA name, and what a change of the clock means for a cron trigger of v3."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta, tzinfo
from functools import lru_cache

from duetime.errors import DuetimeError
from duetime.triggers import Cron
from duetime.triggers.clock import ClockChange, OnFold, OnGap, first_change, offset_at

from .model import V3Zone

_LIKE_FIXED = {
    timedelta(hours=3, minutes=30): "Asia/Tehran",
    timedelta(hours=4, minutes=30): "Asia/Kabul",
    timedelta(hours=5, minutes=30): "Asia/Kolkata",
    timedelta(hours=5, minutes=45): "Asia/Kathmandu",
    timedelta(hours=6, minutes=30): "Asia/Yangon",
    timedelta(hours=8, minutes=45): "Australia/Eucla",
    timedelta(hours=9, minutes=30): "Australia/Darwin",
    -timedelta(hours=9, minutes=30): "Pacific/Marquesas",
}
"""Zones whose clocks do not change, for fixed offsets that have no name of their own."""

_HALF_A_DAY = timedelta(hours=12)
_MOST_LOOKED_AT = 200


def zone_text(zone: V3Zone) -> tuple[str | None, str | None]:
    """Return the IANA name of a zone and what is to be said of it; no name if there is none for it."""
    if zone.name is not None:
        return zone.name, None
    offset = zone.tzinfo.utcoffset(None)
    if offset is None:
        return None, f"expected a time zone with an IANA name or of a fixed offset, got {zone.tzinfo!r}."
    hours = offset / timedelta(hours=1)
    if hours == 0:
        return "UTC", None
    if hours == int(hours) and -12 <= hours <= 14:
        return f"Etc/GMT{-int(hours):+d}", None  # POSIX counts these west of Greenwich
    if offset in _LIKE_FIXED:
        name = _LIKE_FIXED[offset]
        return name, (
            f"its zone is the fixed offset {zone.tzinfo}, which has no IANA name; {name} has that offset all year."
        )
    return None, (
        f"expected a time zone with an IANA name, got the fixed offset {zone.tzinfo}. Choose the zone whose clock it "
        f"means, and add the schedule by hand."
    )


@lru_cache(maxsize=1024)
def changes(zone: tzinfo, start: datetime, end: datetime) -> tuple[ClockChange, ...]:
    """Return the changes of a zone's clock between two instants (UTC), ascending."""
    found = []
    low, before = start, offset_at(start, zone)
    while low < end:
        high = min(low + _HALF_A_DAY, end)
        after = offset_at(high, zone)
        if after != before:
            found.append(ClockChange(first_change(low, high, zone), before, after))
            before = after
        low = high
    return tuple(found)


def policy_like_v3(
    times: Mapping[str, str], zone: V3Zone, now: datetime, fires_twice: bool
) -> tuple[OnGap | None, OnFold | None]:
    """Return the policies under which a cron trigger's times are v3's wherever v3's are right; None: any will do.

    A time of day that the clock skips was moved by v3 past the gap, so it is ``shift``; but where the time that it was
    moved to is one of the trigger's anyway, the trigger says a rhythm and v3 fired once: ``skip``. A repeated time of
    day counts once: v3 on pytz took the ``last``; v3 on zoneinfo fired twice, which is a fault, and the ``first``
    counts. Where the clock's next turn is one of the trigger's times too, it is a rhythm, and counts ``both``.

    :param times: the fields ``hour``, ``minute`` and ``second``
    :param now: changes of the clock are looked for in the two years after this
    :param fires_twice: whether v3 knew a repeated time from its first turn
    """
    return _policy(times["hour"], times["minute"], times["second"], zone.tzinfo, now.year, fires_twice)


@lru_cache(maxsize=4096)
def _policy(
    hour: str, minute: str, second: str, zone: tzinfo, year: int, fires_twice: bool
) -> tuple[OnGap | None, OnFold | None]:
    begin = datetime(year, 1, 1, tzinfo=UTC)
    try:
        coming = _wall_changes(zone, begin)
        cron = Cron({"hour": hour, "minute": minute, "second": second}, start_time=begin)
    except (DuetimeError, OverflowError, ValueError):
        return None, None
    gap: OnGap | None = None
    fold: OnFold | None = None
    for start, length, is_gap in coming:
        inside = _inside(cron, start, length)
        if not inside:
            continue
        goes_on = all(cron.match(each + length) == each + length for each in inside)
        if is_gap:
            gap = "skip" if goes_on and gap != "shift" else "shift"
        elif goes_on:
            fold = fold or "both"
        else:
            fold = "first" if fires_twice else "last"
    return gap, fold


@lru_cache(maxsize=1024)
def _wall_changes(zone: tzinfo, begin: datetime) -> tuple[tuple[datetime, timedelta, bool], ...]:
    """Return, of the changes of three years, the clock time at which each begins, its length, and if it is a gap."""
    found = changes(zone, begin, begin + timedelta(days=3 * 366))
    return tuple((each.start, each.end - each.start, each.after > each.before) for each in found)


def _inside(cron: Cron, start: datetime, length: timedelta) -> list[datetime]:
    """Return the clock times of a trigger in a stretch of the clock."""
    found: list[datetime] = []
    wall = start
    while len(found) < _MOST_LOOKED_AT:
        match = cron.match(wall)
        if match is None or match >= start + length:
            break
        found.append(match)
        wall = match + timedelta(seconds=1)
    return found
