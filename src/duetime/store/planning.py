"""Which fires are due, what becomes of each, and when the schedule is due next.

The stock loop computes this itself, by the host's clock, on the event loop, and removes or crashes on a trigger that
raises (4.0.0a6, ``_schedulers/async_.py:978-988``). Here it is one pure function over a schedule and the database's
time; the loop only gets a :class:`PlannedTrigger`, which has no fire times left, and so makes one throw-away job.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

from apscheduler import CoalescePolicy, Schedule
from apscheduler.abc import Trigger

from ..records import FireState

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
    # Planned ahead of its time: whether it overlaps is seen when it starts.
    is_ahead: bool = False
    job_id: UUID | None = None


@dataclass(slots=True)
class Plan:
    """The outcome of a claim: fires in ascending order, and how the schedule goes on."""

    schedule: Schedule
    revision: UUID
    trigger: Trigger
    stored_trigger: bytes = b""
    fires: list[PlannedFire] = field(default_factory=list)
    last_fire_time: datetime | None = None
    next_fire_time: datetime | None = None
    broken_reason: str | None = None


def _jitter(schedule: Schedule, fire_time: datetime, following: datetime | None) -> timedelta:
    """Return the fire's delay: the same for the same fire, and never as far as the fire after it."""
    if not schedule.max_jitter:
        return _ZERO
    most = schedule.max_jitter
    if following is not None:
        most = min(most, following - fire_time - timedelta(microseconds=1))
    seed = f"{schedule.id}\n{fire_time.astimezone(UTC).isoformat()}"
    return most * random.Random(seed).random()  # noqa: S311 - spreads load, hides nothing


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


def _said(exception: Exception) -> str:
    try:
        return f"{type(exception).__name__}: {exception}"
    except Exception:  # an exception whose text cannot be had is a reason all the same (promise 4)
        return type(exception).__name__


def times_after(trigger: Trigger, first: datetime) -> Iterator[datetime | None]:
    """Yield the trigger's fire times after ``first``, in UTC and ascending, then None for ever.

    In UTC, because Python compares and adds times of one zone by the clock on the wall, which repeats an hour. Times
    up to ``first`` are passed over: the stored trigger of a schedule that was claimed ahead stands at the first fire
    that was ahead then, so that those can be taken back.

    :raises BrokenTrigger: when the trigger raises, does not advance, or yields something else
    """
    first = first.astimezone(UTC)
    last: datetime | None = None
    passed = 0
    while True:
        try:
            given = trigger.next()
            following = given.astimezone(UTC) if isinstance(given, datetime) and given.tzinfo is not None else None
        except BrokenTrigger:
            raise
        except Exception as exc:
            raise BrokenTrigger(f"its trigger raised {_said(exc)}") from exc
        if given is None:
            yield None
            continue
        if following is None:
            raise BrokenTrigger(f"its trigger yielded {given!r} instead of an aware datetime")
        if last is not None and following <= last:
            raise BrokenTrigger(f"its trigger yielded {following.isoformat()} after {last.isoformat()}")
        last = following
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
    coalesced; with ``all`` each runs, whether or not their jobs overlap. A fire beyond its grace time is recorded as
    missed. The trigger is advanced; nothing else is changed.

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
                    result.stored_trigger = freeze(trigger)
                ahead.append(following)
            elif schedule.coalesce is CoalescePolicy.all and len(due) == MAX_FIRES:
                _check_crowding(first, following, step)
                break  # still due: claimed again at once
            else:
                due.append(following)
                if len(due) > MAX_FIRES:
                    # The first runs with "earliest", the last with "latest": what is between is only counted.
                    del due[1 if schedule.coalesce is CoalescePolicy.earliest else 0]
                    passed += 1
            following = next(times)
    except BrokenTrigger as exc:
        result.broken_reason = str(exc)
        following = None

    if not ahead:
        result.stored_trigger = freeze(trigger)
    result.next_fire_time = following
    result.last_fire_time = (ahead or due)[-1] if ahead or due else schedule.last_fire_time
    if due:
        result.fires = _decide(schedule, due, ahead[0] if ahead else following, now, passed)
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
                checks_overlap=False,
                is_ahead=True,
                job_id=uuid4(),
            )
        )
    return result


def _check_crowding(first: datetime, following: datetime, steps: int) -> None:
    """Refuse a trigger whose times would never reach the present.

    :raises BrokenTrigger: if the times are crowded
    """
    if following - first < steps * CROWDED:
        raise BrokenTrigger(
            f"its trigger yielded {steps} times between {first.isoformat()} and {following.isoformat()}: it would "
            f"never reach the present"
        )


def _decide(
    schedule: Schedule, due: list[datetime], following: datetime | None, now: datetime, passed: int
) -> list[PlannedFire]:
    chosen = {CoalescePolicy.earliest: due[:1], CoalescePolicy.latest: due[-1:], CoalescePolicy.all: due}[
        schedule.coalesce
    ]
    runs = set(chosen)
    more = f"; {passed} more fires were coalesced into it without a row each" if passed else ""
    fires: list[PlannedFire] = []
    for position, fire_time in enumerate(due):
        if fire_time not in runs:
            reason = f"{len(due) + passed} fires were due at once; the one at {chosen[0].isoformat()} runs for all"
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
                    checks_overlap=len(chosen) == 1,
                    job_id=uuid4(),
                )
            )
    return fires
