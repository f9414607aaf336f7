"""Which fires are due, what becomes of each, and when the schedule is due next.

The stock loop computes this itself, by the host's clock, on the event loop, and removes or crashes on a trigger that
raises (4.0.0a6, ``_schedulers/async_.py:978-988``). Here it is one pure function over a schedule and the database's
time; the loop only gets a :class:`PlannedTrigger`, which has no fire times left, and so makes one throw-away job.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from apscheduler import CoalescePolicy, Schedule
from apscheduler.abc import Trigger

from ..options import METADATA_PREFIX, SHORTEST_CATCH_UP_WINDOW, CatchUp, Overlap, TaskOptions
from ..records import FireState
from ..threads import Interrupted
from ..triggers import Limited
from .driver import new_id

MAX_FIRES = 1000
"""Jobs or coalesced ledger rows that one release of one schedule writes; what is more comes with the next release."""

STEPS_ON_THE_LOOP = 200
"""Fire times that are looked at on the event loop; a plan that needs more is made in a thread (promise 7)."""

MAX_STEPS = 5_000_000
"""Fire times that are looked at in one release; a schedule further behind gets there in several."""

CROWDED = timedelta(microseconds=20)
"""Fire times closer to each other than this, thousands in a row, are more than can be looked at while time goes on."""

_LOOKED_AT_FOR_CROWDING = 100_000

_ZERO = timedelta(0)


class BegunTrigger(Trigger):
    """Stands in for a new schedule's trigger, whose first time has been found out already.

    :ivar real: the trigger, which stands after its first time
    """

    def __init__(self, real: Trigger, first: datetime | None) -> None:
        self.real = real
        self._first = first

    def next(self) -> datetime | None:
        """Return the trigger's first time."""
        return self._first

    def __getstate__(self) -> Any:
        raise NotImplementedError("a stand-in is never stored")

    def __setstate__(self, state: Any) -> None:
        raise NotImplementedError("a stand-in is never stored")

    def __repr__(self) -> str:
        return repr(self.real)


class PlannedTrigger(Trigger):
    """What the scheduler loop is given in place of a schedule's trigger: the plan is made, nothing is left to do."""

    def __init__(self, real: Trigger) -> None:
        self.real = real

    def next(self) -> datetime | None:
        """Return None: the store already knows the schedule's next fire time."""
        return None

    def __getstate__(self) -> Any:
        return self.real.__getstate__()

    def __setstate__(self, state: Any) -> None:
        self.real.__setstate__(state)

    def __repr__(self) -> str:
        return repr(self.real)


@dataclass(frozen=True, slots=True)
class PlannedFire:
    """One due instant and what is to become of it."""

    fire_time: datetime
    run_time: datetime
    state: FireState
    reason: str | None = None
    start_deadline: datetime | None = None
    # An overlapping job is only looked for by the single fire of normal operation, see plan().
    checks_overlap: bool = True
    # Planned ahead of its time: whether it overlaps is seen when it starts, or by the release if that comes later.
    is_ahead: bool = False
    job_id: UUID | None = None
    # What is made up for has an overlap policy of its own.
    overlap: Overlap | None = None


@dataclass(slots=True)
class Plan:
    """The outcome of a claim: fires in ascending order, and how the schedule goes on."""

    schedule: Schedule
    revision: UUID
    trigger: Trigger
    # None: as it is stored already.
    stored_trigger: bytes | None = b""
    fires: list[PlannedFire] = field(default_factory=list)
    last_fire_time: datetime | None = None
    next_fire_time: datetime | None = None
    broken_reason: str | None = None


@dataclass(frozen=True, slots=True)
class _MakingUp:
    """How a schedule makes up for the fires that fell due while nobody was up.

    :ivar policy: which of several due fires run
    :ivar window: how far back they may lie; None: any distance
    :ivar overlap: the overlap policy of their jobs, if it is not the schedule's own
    :ivar reason: says of a fire outside the window why it does not run
    """

    policy: CoalescePolicy
    window: timedelta | None = None
    overlap: Overlap | None = None
    reason: str = ""

    @classmethod
    def of(cls, schedule: Schedule) -> _MakingUp:
        """Return what the schedule's options say; without any, its coalesce policy.

        :raises ValueError: if an option has no meaning
        """
        metadata = schedule.metadata
        if f"{METADATA_PREFIX}catch_up" not in metadata and f"{METADATA_PREFIX}catch_up_window" not in metadata:
            return cls(schedule.coalesce)
        options = TaskOptions.from_metadata(metadata)
        window = options.catch_up_window
        if options.catch_up is CatchUp.none:
            return cls(schedule.coalesce, SHORTEST_CATCH_UP_WINDOW, None, "and nothing is made up for (catch_up=none)")
        reason = f"outside its catch-up window of {window.total_seconds():g} s" if window else ""
        if options.catch_up is CatchUp.all:
            return cls(CoalescePolicy.all, window, options.catch_up_overlap, reason)
        return cls(CoalescePolicy.latest if options.catch_up else schedule.coalesce, window, None, reason)


def _jitter(schedule: Schedule, fire_time: datetime, following: datetime | None) -> timedelta:
    """Return the fire's delay: the same for the same fire, and never as far as the fire after it."""
    if not schedule.max_jitter:
        return _ZERO
    most = schedule.max_jitter
    if following is not None:
        most = min(most, following - fire_time - timedelta(microseconds=1))
    seed = f"{schedule.id}\n{fire_time.astimezone(UTC).isoformat()}"
    return most * random.Random(seed).random()  # noqa: S311 - spreads load, hides nothing


MAX_REPEATS = 100
"""Times in a row that a trigger may yield one instant again: it is one fire, as where APScheduler's ``OrTrigger``
compares the times of its members by the clock on the wall, which repeats an hour."""


class BrokenTrigger(Exception):
    """The trigger raised, went backwards, stood still or yielded no aware datetime."""


class StuckTrigger(Trigger):
    """Stands in for a trigger that does not move on."""

    def __init__(self, reason: BrokenTrigger) -> None:
        self._reason = reason

    def next(self) -> datetime | None:
        """Raise the reason."""
        raise self._reason

    def __getstate__(self) -> Any:
        raise NotImplementedError("a stand-in is never stored")

    def __setstate__(self, state: Any) -> None:
        raise NotImplementedError("a stand-in is never stored")


def _said(exception: BaseException) -> str:
    try:
        return f"{type(exception).__name__}: {exception}"
    except BaseException:  # an exception whose text cannot be had is a reason all the same (promise 4)
        return type(exception).__name__


def times_after(trigger: Trigger, first: datetime) -> Iterator[datetime | None]:
    """Yield the trigger's fire times after ``first``, in UTC and ascending, then None for ever.

    In UTC, because Python compares and adds times of one zone by the clock on the wall, which repeats an hour. An
    instant that comes several times in a row is one fire. Times
    up to ``first`` are passed over: the stored trigger of a schedule that was claimed ahead stands at the first fire
    that was ahead then, so that those can be taken back.

    :raises BrokenTrigger: when the trigger raises, does not advance, or yields something else
    """
    first = first.astimezone(UTC)
    last: datetime | None = None
    passed = repeats = 0
    while True:
        try:
            given = trigger.next()
            following = given.astimezone(UTC) if isinstance(given, datetime) and given.tzinfo is not None else None
        except (BrokenTrigger, Interrupted):
            raise
        except BaseException as exc:  # nor may it end the process
            raise BrokenTrigger(f"its trigger raised {_said(exc)}") from exc
        if given is None:
            yield None
            continue
        if following is None:
            raise BrokenTrigger(f"its trigger yielded {given!r} instead of an aware datetime")
        if following == last and repeats < MAX_REPEATS:
            repeats += 1
            continue
        if last is not None and following <= last:
            raise BrokenTrigger(f"its trigger yielded {following.isoformat()} after {last.isoformat()}")
        last, repeats = following, 0
        if following > first:
            yield following
            continue
        passed += 1
        if passed > MAX_FIRES:
            raise BrokenTrigger(f"its trigger yielded {following.isoformat()} after {first.isoformat()}")


def _unfrozen(_trigger: Trigger) -> bytes:
    return b""


class TooFarBehind(Exception):
    """The plan needs more steps than allowed; the trigger has moved and must be read anew."""


def plan(
    schedule: Schedule,
    revision: UUID,
    now: datetime,
    *,
    trigger: Trigger | None = None,
    freeze: Callable[[Trigger], bytes] = _unfrozen,
    look_ahead: timedelta = _ZERO,
    max_steps: int | None = None,
    beat: Callable[[], None] | None = None,
) -> Plan:
    """Decide what becomes of every fire of a claimed schedule that is due at ``now`` (the database's time).

    Of several due fires the schedule's coalesce policy picks the one that runs, and the others are recorded as
    coalesced; with ``all`` each runs, whether or not their jobs overlap. Its catch-up options come before that. A fire
    beyond its catch-up window or its grace time is recorded as missed. The trigger is advanced; nothing else changes.

    :param trigger: the schedule's trigger, where ``schedule.trigger`` is a stand-in for it
    :param freeze: serializes the trigger, at the first fire that is ahead
    :param look_ahead: fires that will be due within this are planned too; each of them runs
    :param beat: called at each step, to say that the trigger moves on
    :raises TooFarBehind: when ``max_steps`` are given and do not suffice
    """
    trigger = trigger or schedule.trigger
    result = Plan(schedule, revision, trigger, last_fire_time=schedule.last_fire_time)
    first = schedule.next_fire_time
    if first is None:  # nothing is due; only a caller outside the loop can hold such a schedule
        return result

    first = first.astimezone(UTC)
    making_up = _MakingUp.of(schedule)
    oldest = None if making_up.window is None else now - making_up.window
    lost: deque[datetime] = deque(maxlen=MAX_FIRES)
    lost_in_all = 0
    due: list[datetime] = []
    ahead: list[datetime] = []
    passed = 0  # coalesced fires too many for a ledger row each
    times = times_after(trigger, first)
    following: datetime | None = first
    try:
        for step in range(MAX_STEPS):
            if step == max_steps:
                raise TooFarBehind
            if beat is not None:
                beat()
            if step and step % _LOOKED_AT_FOR_CROWDING == 0 and following is not None:
                _check_crowding(first, following, step)
            if following is None or following > now + look_ahead or len(ahead) == MAX_FIRES:
                break
            if following > now:
                if not ahead:
                    # At the first step of all it stands where the stored one does.
                    result.stored_trigger = freeze(trigger) if step else None
                ahead.append(following)
            elif oldest is not None and following < oldest:
                lost.append(following)
                lost_in_all += 1
            elif making_up.policy is CoalescePolicy.all and len(due) == MAX_FIRES:
                _check_crowding(first, following, step)
                break  # still due: claimed again at once
            else:
                due.append(following)
                if len(due) > MAX_FIRES:
                    # The first runs with "earliest", the last with "latest": what is between is only counted.
                    del due[1 if making_up.policy is CoalescePolicy.earliest else 0]
                    passed += 1
            following = next(times)
    except BrokenTrigger as exc:
        result.broken_reason = str(exc)
        following = None

    if not ahead:
        result.stored_trigger = freeze(trigger)
    result.next_fire_time = following
    reached = ahead or due or lost
    result.last_fire_time = reached[-1] if reached else schedule.last_fire_time
    result.fires = _lost(lost, lost_in_all - len(lost), now, making_up.reason)
    if due:
        result.fires += _decide(schedule, making_up, due, ahead[0] if ahead else following, now, passed)
    for position, fire_time in enumerate(ahead):
        after = ahead[position + 1] if position + 1 < len(ahead) else following
        run_time = fire_time + _jitter(schedule, fire_time, after)
        deadline = None if schedule.misfire_grace_time is None else run_time + schedule.misfire_grace_time
        result.fires.append(
            PlannedFire(
                fire_time,
                run_time,
                FireState.pending,
                start_deadline=deadline,
                is_ahead=True,
                job_id=new_id(),
            )
        )
    if isinstance(trigger, Limited) and trigger.until is not None:
        result.fires = [_before(trigger.until, fire, now) for fire in result.fires]
    return result


def _before(end: datetime, fire: PlannedFire, now: datetime) -> PlannedFire:
    """Return the fire with what the end of its schedule makes of it: what has not begun by then does not."""
    if fire.state is not FireState.pending:
        return fire
    if max(fire.run_time, now) >= end:
        reason = f"it could not start before its schedule expired, at {end.astimezone(UTC).isoformat()}"
        return replace(fire, state=FireState.missed, reason=reason, job_id=None)
    return replace(fire, start_deadline=min(end, fire.start_deadline or end))


def _check_crowding(first: datetime, following: datetime, steps: int) -> None:
    """Refuse a trigger whose times would never reach the present.

    :raises BrokenTrigger: if the times are crowded
    """
    if following - first < steps * CROWDED:
        raise BrokenTrigger(
            f"its trigger yielded {steps} times between {first.isoformat()} and {following.isoformat()}: it would "
            f"never reach the present"
        )


def _lost(lost: Iterable[datetime], unlisted: int, now: datetime, why: str) -> list[PlannedFire]:
    """Return the fires that are not made up for: missed, the first of them with the number of those without a row."""
    more = f"; {unlisted} fires before it were missed without a row each" if unlisted else ""
    fires = []
    for fire_time in lost:
        reason = f"it fell due {(now - fire_time).total_seconds():.3f} s before a node came to it, {why}{more}"
        fires.append(PlannedFire(fire_time, fire_time, FireState.missed, reason))
        more = ""
    return fires


def _decide(
    schedule: Schedule,
    making_up: _MakingUp,
    due: list[datetime],
    following: datetime | None,
    now: datetime,
    passed: int,
) -> list[PlannedFire]:
    chosen = {CoalescePolicy.earliest: due[:1], CoalescePolicy.latest: due[-1:], CoalescePolicy.all: due}[
        making_up.policy
    ]
    runs = set(chosen)
    overlap = making_up.overlap
    if len(due) == 1 and due[0] >= now - SHORTEST_CATCH_UP_WINDOW:
        overlap = None  # a fire as any other
    more = f"; {passed} more fires were coalesced into it without a row each" if passed else ""
    fires: list[PlannedFire] = []
    for position, fire_time in enumerate(due):
        if fire_time not in runs:
            reason = f"{len(due) + passed} fires were due at once; the one at {chosen[0].isoformat()} stands for all"
            fires.append(PlannedFire(fire_time, fire_time, FireState.coalesced, reason))
            continue
        after = due[position + 1] if position + 1 < len(due) else following
        run_time = fire_time + _jitter(schedule, fire_time, after)
        deadline = None if schedule.misfire_grace_time is None else run_time + schedule.misfire_grace_time
        if deadline is not None and now > deadline:
            late = (now - run_time).total_seconds()
            grace = schedule.misfire_grace_time.total_seconds() if schedule.misfire_grace_time else 0
            reason = f"{late:.3f} s late, beyond its grace time of {grace:g} s{more}"
            fires.append(PlannedFire(fire_time, run_time, FireState.missed, reason, deadline))
        else:
            fires.append(
                PlannedFire(
                    fire_time,
                    run_time,
                    FireState.pending,
                    more.removeprefix("; ") or None,
                    deadline,
                    checks_overlap=len(chosen) == 1 and overlap is None,
                    job_id=new_id(),
                    overlap=overlap,
                )
            )
    return fires
