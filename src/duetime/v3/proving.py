"""The next fire times by v3's own rules beside ours: each difference with its cause, and nothing equal that was not
compared."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta, tzinfo
from itertools import accumulate, pairwise
from typing import Any

from apscheduler.abc import Trigger

from duetime.triggers import upcoming
from duetime.triggers.clock import ClockChange
from duetime.triggers.zones import zone_name

from .clock_policies import changes
from .model import V3CalendarInterval, V3Cron, V3Date, V3Interval, V3Job, V3Or, V3Trigger, V3Zone
from .rules import v3_fire_times

V3_DST_FAULT = "v3_dst_fault"
"""v3 loses, moves or invents a fire when the clock changes."""

DELIBERATE_FIX = "deliberate_fix"
"""v3 does what it means to, and Duetime does something else on purpose."""

UNSUPPORTED = "unsupported"
"""Duetime has no such trigger."""

UNEXPLAINED = "unexplained"
"""None of these is known to be the cause: a person must look."""

CAUSES = (V3_DST_FAULT, DELIBERATE_FIX, UNSUPPORTED, UNEXPLAINED)

NO_CAUSE = (UNEXPLAINED, "no known fault of v3 and no known fix explains it.")

_DAY = timedelta(days=1)
_LONGEST_FOLD = timedelta(hours=3)
_UNCHANGING = V3Zone("UTC", UTC, "datetime")
_JOB = V3Job("", "", V3Date(datetime.min.replace(tzinfo=UTC)), "", (), {}, "", None, True, 1, None)
_STALE = "v3 goes on with an offset"


@dataclass(frozen=True, slots=True)
class Difference:
    """A fire that only one side has, or one that each side has at another time.

    :ivar v3: when v3 fires; None: it does not
    :ivar ours: when Duetime fires; None: it does not
    """

    v3: datetime | None
    ours: datetime | None
    cause: str
    text: str

    def record(self) -> dict[str, Any]:
        """Return it as it is printed."""
        return {
            "v3": None if self.v3 is None else self.v3.astimezone(UTC).isoformat(),
            "duetime": None if self.ours is None else self.ours.astimezone(UTC).isoformat(),
            "cause": self.cause,
            "text": self.text,
        }


def our_fire_times(
    trigger: Trigger, first: datetime | None, count: int, *, resumed: datetime | None = None
) -> list[datetime]:
    """Return the next fires of a schedule that is stored with this next fire time, as a node would make them.

    :param resumed: when it is resumed, if it is paused: what has passed by then is passed over
    """
    if first is None:
        return [each.astimezone(UTC) for each in upcoming(trigger, count, after=resumed)]
    later = upcoming(trigger, count - 1, after=first) if count > 1 else []
    return [first.astimezone(UTC), *(each.astimezone(UTC) for each in later)][:count]


def compare(
    trigger: V3Trigger,
    v3: Sequence[datetime],
    ours: Sequence[datetime],
    *,
    until: datetime | None,
    otherwise: tuple[str, str] = NO_CAUSE,
) -> list[Difference]:
    """Return all differences between two lists of fires, up to and including ``until``; None: all.

    :param v3: in the order in which v3 fires, which on some releases goes back when the clock does
    :param otherwise: cause and text of a difference that no change of the clock explains
    """
    ours_in, theirs_in = ([each for each in times if until is None or each <= until] for times in (ours, v3))
    if isinstance(trigger, V3Interval) and _adds_to_the_clock(trigger, v3):
        zone = _name(trigger.timezone.tzinfo)
        said = f"v3 adds the interval to the time on the clock of {zone}, which goes forward and back."
        otherwise = (V3_DST_FAULT, said)
    went_back = {each for each, latest in zip(v3, accumulate(v3, max), strict=True) if each < latest}
    found: list[Difference] = []
    for before, after, only_v3, only_ours in _segments(sorted(set(theirs_in)), ours_in):
        found += _explained(trigger, before, after, only_v3, only_ours, went_back, otherwise)
        if found[-1].text.startswith(_STALE):
            otherwise = found[-1].cause, found[-1].text  # it goes on with it
    return found


def _adds_to_the_clock(trigger: V3Interval, v3: Sequence[datetime]) -> bool:
    """Return whether every step of v3's is the interval on the clock, and one of them is not the interval in time.

    So did the releases before 3.11 in zones that are not pytz's.
    """
    zone, step = trigger.timezone.tzinfo, trigger.interval
    for earlier, later in pairwise(v3):
        if later - earlier == step:
            continue
        sums = [wall + step for wall in _walls(earlier, zone)]
        if later not in [moment for wall in sums for moment in _instants(wall, zone)]:
            return False
    return any(later - earlier != step for earlier, later in pairwise(v3))


def _walls(moment: datetime, zone: tzinfo) -> list[datetime]:
    """Return what the clock shows at a moment, and a time that it skips by which Python knows that moment, too."""
    wall = _wall(moment, zone)
    skipped = [wall - (each.after - each.before) for each in changes(zone, moment - _DAY, moment + _DAY)]
    return [wall, *(each for each in skipped if moment in _instants(each, zone))]


def _instants(wall: datetime, zone: tzinfo) -> list[datetime]:
    return [wall.replace(tzinfo=zone, fold=fold).astimezone(UTC) for fold in (0, 1)]


def _segments(
    v3: Sequence[datetime], ours: Sequence[datetime]
) -> Iterator[tuple[datetime | None, datetime | None, list[datetime], list[datetime]]]:
    """Yield the fires that only one side has, between two neighbouring fires that both have."""
    both = sorted(set(v3) & set(ours))
    left, right = 0, 0
    for before, after in pairwise([None, *both, None]):
        only_v3, only_ours = [], []
        while left < len(v3) and v3[left] != after:
            only_v3.append(v3[left])
            left += 1
        while right < len(ours) and ours[right] != after:
            only_ours.append(ours[right])
            right += 1
        left, right = left + 1, right + 1
        if only_v3 or only_ours:
            yield before, after, only_v3, only_ours


def _explained(
    trigger: V3Trigger,
    before: datetime | None,
    after: datetime | None,
    only_v3: list[datetime],
    only_ours: list[datetime],
    went_back: AbstractSet[datetime],
    otherwise: tuple[str, str],
) -> list[Difference]:
    zone = _zone(trigger)
    crons = list(_crons(trigger))
    if zone is None or not crons:
        return [*_paired(only_v3, only_ours, *otherwise)]
    moments = [*only_v3, *only_ours, *(each for each in (before, after) if each is not None)]
    # The clock has to change between the fires around, or so little before them that a time still comes twice; where
    # there is none after, within a day of the last.
    first, last = min(moments) - (_LONGEST_FOLD if before is not None else _DAY), max(moments)
    changed = [each for each in changes(zone, first, last + _DAY) if after is None or each.at <= last]
    # Duetime's time has to be right whatever v3 does: one that the fields say, or the first after the clock's gap.
    after_gaps = [each.at for each in changed if _ends_a_gap_with_a_time(each, crons)]
    if not all(_fits(each, zone, crons) or each in after_gaps for each in only_ours):
        return [*_paired(only_v3, only_ours, *otherwise)]
    if changed:
        return [*_by_the_clock(zone, crons, changed, went_back, only_v3, only_ours, otherwise)]
    is_pytz = all(each.timezone.flavour in ("pytz", "shim") for each in crons)
    if is_pytz and only_v3 and all(_fits_with_another_offset(each, zone, crons) for each in only_v3):
        # Zones of pytz keep an offset that they were given, and know no change of the clock after 2037.
        said = f"{_STALE} that the clock of {_name(zone)} does not have then."
        return [*_paired(only_v3, only_ours, V3_DST_FAULT, said)]
    return [*_paired(only_v3, only_ours, *otherwise)]


def _by_the_clock(
    zone: tzinfo,
    crons: Sequence[V3Cron],
    changed: Sequence[ClockChange],
    went_back: AbstractSet[datetime],
    only_v3: Sequence[datetime],
    only_ours: Sequence[datetime],
    otherwise: tuple[str, str],
) -> Iterator[Difference]:
    """Yield the differences around a change of the clock, each with what it is."""
    change = changed[0]
    turn = f"the clock of {_name(zone)} goes {'forward' if change.after > change.before else 'back'} at {change.at}"
    moved: list[datetime] = []
    for each in only_v3:
        if each in went_back:
            yield Difference(each, None, V3_DST_FAULT, f"{turn}: v3 goes back in time, to a fire that has been.")
        elif _fits(each, zone, crons) and _comes_twice(each, zone):
            yield Difference(each, None, DELIBERATE_FIX, f"{turn}: a time of day that it shows twice counts once.")
        elif _fits(each, zone, crons):
            yield Difference(each, None, *otherwise)
        else:
            moved.append(each)
    for one, other in _pairs(moved, only_ours):
        if one is None:
            said = f"v3 passes over {_wall_text(other, zone)}, which fits the trigger."
        elif other is None:
            said = f"v3 fires at {_wall_text(one, zone)}, which does not fit the trigger."
        elif _fits(other, zone, crons):
            said = f"v3 fires at {_wall_text(one, zone)} instead of {_wall_text(other, zone)}."
        else:
            said = f"v3 fires at {_wall_text(one, zone)}, and not right after the time that the clock skips."
        yield Difference(one, other, V3_DST_FAULT, f"{turn}: {said}")


def _pairs(
    only_v3: Sequence[datetime], only_ours: Sequence[datetime]
) -> Iterator[tuple[datetime | None, datetime | None]]:
    """Yield fires of both sides less than a day apart together, the others alone, in order."""
    left, right = 0, 0
    while left < len(only_v3) or right < len(only_ours):
        one = only_v3[left] if left < len(only_v3) else None
        other = only_ours[right] if right < len(only_ours) else None
        if one is not None and other is not None and abs(one - other) >= _DAY:
            one, other = (one, None) if one < other else (None, other)
        yield one, other
        left += one is not None
        right += other is not None


def _paired(only_v3: Sequence[datetime], only_ours: Sequence[datetime], cause: str, said: str) -> Iterator[Difference]:
    return (Difference(one, other, cause, said) for one, other in _pairs(only_v3, only_ours))


def _name(zone: tzinfo) -> str:
    return zone_name(zone) or str(zone)


def _fits_with_another_offset(moment: datetime, zone: tzinfo, crons: Sequence[V3Cron]) -> bool:
    """Return whether the trigger has that time under the offset of another season, and not under its own."""
    if _fits(moment, zone, crons):
        return False
    own = moment.astimezone(zone).utcoffset()
    seasons = {(moment + season * _DAY).astimezone(zone).utcoffset() for season in (-182, -91, 91, 182)}
    walls = [(moment + offset).replace(tzinfo=None) for offset in seasons if offset is not None and offset != own]
    return any(_first_wall(each, wall) == wall for wall in walls for each in crons)


def _zone(trigger: V3Trigger) -> tzinfo | None:
    """Return the zone whose clock a trigger goes by; of members, the one that they share."""
    if isinstance(trigger, (V3Cron, V3Interval, V3CalendarInterval)):
        return trigger.timezone.tzinfo
    if isinstance(trigger, V3Or):
        zones = {_zone(member) for member in trigger.triggers} - {None}
        return zones.pop() if len(zones) == 1 else None
    return None


def _crons(trigger: V3Trigger) -> Iterator[V3Cron]:
    if isinstance(trigger, V3Cron):
        yield trigger
    elif isinstance(trigger, V3Or):
        for member in trigger.triggers:
            yield from _crons(member)


def _wall(moment: datetime, zone: tzinfo) -> datetime:
    return moment.astimezone(zone).replace(tzinfo=None, fold=0)


def _wall_text(moment: datetime | None, zone: tzinfo) -> str:
    return "" if moment is None else f"{_wall(moment, zone):%Y-%m-%d %H:%M:%S}"


def _fits(moment: datetime, zone: tzinfo, crons: Sequence[V3Cron]) -> bool:
    """Return whether the clock on the wall shows a time of the trigger at that moment."""
    wall = _wall(moment, zone)
    return any(_first_wall(each, wall) == wall for each in crons)


def _ends_a_gap_with_a_time(change: ClockChange, crons: Sequence[V3Cron]) -> bool:
    """Return whether the clock skips a time of the trigger at that change."""
    found = [_first_wall(each, change.start) for each in crons] if change.after > change.before else []
    return any(each is not None and each < change.end for each in found)


def _first_wall(cron: V3Cron, wall: datetime) -> datetime | None:
    """Return the first clock time at or after one that v3's own rules allow, on a clock that does not change."""
    plain = replace(cron, timezone=_UNCHANGING, start_date=None, end_date=None, jitter=None)
    start = wall.replace(tzinfo=UTC) - timedelta(seconds=1)
    times = v3_fire_times(replace(_JOB, trigger=plain, next_run_time=start), 2, release=None)
    return times[1].replace(tzinfo=None) if len(times) == 2 else None


def _comes_twice(moment: datetime, zone: tzinfo) -> bool:
    wall = moment.astimezone(zone)
    return wall.replace(fold=0).utcoffset() != wall.replace(fold=1).utcoffset()
