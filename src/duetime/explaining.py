"""Answers: why a schedule ran at an instant, or why it did not, from the ledger and what was done to the schedule."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from apscheduler.abc import Trigger

from . import records
from .errors import DuetimeError, ScheduleNotFound, TriggerNeverFires
from .records import Answer, FireState
from .store.reads import NEVER_STORED, Reads
from .triggers import parse_json, upcoming, why_left_out

LATE = timedelta(seconds=10)
"""A fire that was claimed later than this after its time says that nobody was there to claim it."""

BACKFILLED = "backfilled"
"""How the reason of a fire begins that a backfill has made."""

_STANDS_FOR = re.compile(r"the one at (\S+) (?:stands|runs) for all")
"""How the reason of a coalesced fire names the other one; older rows say that it runs."""

_ANSWERS = {
    FireState.pending: Answer.pending,
    FireState.succeeded: Answer.ran,
    FireState.failed: Answer.failed,
    FireState.skipped: Answer.skipped,
    FireState.coalesced: Answer.coalesced,
    FireState.missed: Answer.missed,
    FireState.cancelled: Answer.cancelled,
    FireState.abandoned: Answer.abandoned,
}


@dataclass(frozen=True, slots=True)
class _Case:
    """All that is known of a schedule and an instant that has no ledger row."""

    schedule_id: str
    at: datetime
    now: datetime
    row: Mapping[str, Any] | None
    stored: records.Schedule | None
    changes: Sequence[records.Change]
    last_fire: records.Fire | None
    following: records.Fire | None
    floor: datetime | None


class Explanations:
    """Answers questions about instants of schedules."""

    def __init__(self, reads: Reads) -> None:
        self._reads = reads

    async def of(
        self, schedule_id: str, at: datetime, now: datetime, row: Mapping[str, Any] | None, stored: Any
    ) -> records.Explanation:
        """Return why the schedule ran at that instant, or why not.

        :param row: the schedule's row, and ``stored`` its record; None if there is none
        :raises ScheduleNotFound: if there never was such a schedule, as far as is known
        """
        if NEVER_STORED.search(schedule_id):
            raise ScheduleNotFound(schedule_id)
        found = await self._reads.fires(limit=1, schedule_id=schedule_id, start=at, end=_until(at))
        changes = [_change(each) for each in await self._reads.changes(schedule_id)]
        if found:
            fire = records.Fire(**found[0])
            runs = [] if fire.job_id is None else await self._reads.runs_of(fire.job_id)
            made = [records.Run(**each) for each in runs]
            return records.Explanation(
                schedule_id=schedule_id,
                at=at,
                answer=_ANSWERS[fire.state],
                because=" ".join(_of_fire(fire, made, await self._standing_for(fire), now)),
                fire=fire,
                runs=made,
                changes=[each for each in changes if abs(each.at - at) < timedelta(days=1)],
            )
        last = await self._reads.fires(limit=1, schedule_id=schedule_id)
        after = await self._reads.fires(limit=1, schedule_id=schedule_id, start=at, oldest_first=True)
        if row is None and not last and not changes:
            raise ScheduleNotFound(schedule_id)
        case = _Case(
            schedule_id,
            at,
            now,
            row,
            stored,
            changes,
            records.Fire(**last[0]) if last else None,
            records.Fire(**after[0]) if after else None,
            await self._reads.floor(schedule_id),
        )
        answer, because = await asyncio.to_thread(_of_absence, case)
        return records.Explanation(
            schedule_id=schedule_id, at=at, answer=answer, because=because, changes=changes[-20:]
        )

    async def _standing_for(self, fire: records.Fire) -> records.Fire | None:
        """Return the fire that a fire was coalesced into, which is not sure to have run; None if it is not known."""
        named = _STANDS_FOR.search(fire.reason or "") if fire.state is FireState.coalesced else None
        if named is None:
            return None
        at = datetime.fromisoformat(named[1])
        found = await self._reads.fires(limit=1, schedule_id=fire.schedule_id, start=at, end=at)
        return records.Fire(**found[0]) if found else None


def _until(at: datetime) -> datetime:
    """Return the last instant that is meant with one: whole seconds also mean a fire within that second."""
    return at if at.microsecond else at + timedelta(seconds=1) - timedelta(microseconds=1)


def _change(row: Mapping[str, Any]) -> records.Change:
    return records.Change(at=row["at"], change=row["change"], detail=json.loads(row["detail"]))


def _of_fire(
    fire: records.Fire, runs: Sequence[records.Run], other: records.Fire | None, now: datetime
) -> Iterator[str]:
    due = fire.run_time or fire.fire_time
    started = next((run for run in reversed(runs) if run.started_at is not None), None)
    match fire.state:
        case FireState.succeeded:
            yield f"It ran, on {started.node if started else fire.node}" + _lateness(started) + "."
            if fire.attempts > 1:
                yield f"It took {fire.attempts} attempts."
        case FireState.failed:
            yield f"It ran and failed, in attempt {fire.attempts}{_lateness(started)}."
        case FireState.pending if due > now:
            yield "It is claimed ahead of its time, and starts then."
        case FireState.pending if runs and runs[-1].will_retry_at is not None:
            yield f"Attempt {runs[-1].attempt} has ended, and the next one is due at {_shown(runs[-1].will_retry_at)}."
        case FireState.pending:
            yield "Its job is queued or running."
        case FireState.skipped:
            yield "It did not run."
        case FireState.coalesced:
            yield "Another fire stands for it" + (
                "." if other is None else f": {_shown(other.fire_time)}, {other.state}."
            )
        case FireState.missed:
            yield "It was too late to start."
        case FireState.cancelled:
            yield "It was cancelled."
        case FireState.abandoned:
            yield "Its node vanished, and the task asks not to be run again."
    if fire.reason:
        yield f"{fire.reason[0].upper()}{fire.reason[1:].rstrip('.')}."
    is_asked_for = (fire.reason or "").startswith(("run by request", BACKFILLED))
    if (waited := fire.created_at - due) > LATE and not is_asked_for:
        yield (
            f"No node claimed it before {_shown(fire.created_at)}, {waited.total_seconds():.0f} s after its time: none "
            f"that fires schedules was up, or the database was away."
        )


def _lateness(run: records.Run | None) -> str:
    return "" if run is None or run.lateness is None else f", {max(0.0, run.lateness):.3f} s after its time"


def _shown(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def _of_absence(case: _Case) -> tuple[Answer, str]:
    """Return why an instant has no row in the ledger."""
    stored, at = case.stored, case.at
    if case.floor is not None and at < case.floor:
        return (
            Answer.history_deleted,
            f"Its history up to {_shown(case.floor)} has been deleted, as the retention settings say.",
        )
    if stored is None or at < stored.created_at:
        return _of_another_life(case)
    is_due, moment, why_not = _fire_time(case)
    if moment is not None:
        at = moment
        case = replace(case, at=at)
    if pause := _paused_at(case):
        end = f"until {_shown(pause.until)}, and went on from there" if pause.until else "and still is"
        why = f": {pause.reason}" if pause.reason else ""
        return Answer.paused, f"It was paused from {_shown(pause.since)} {end}{why}."
    if stored.expires_at is not None and at >= stored.expires_at:
        is_over = stored.state is records.ScheduleState.finished or stored.expires_at <= case.now
        verb = "expired" if is_over else "expires"
        return Answer.expired, f"It {verb} at {_shown(stored.expires_at)}."
    if is_due is False:
        because = f" It is left out then: {why_not}." if why_not else ""
        return Answer.not_a_fire_time, f"That is not one of its fire times: {stored.description}.{because}"
    broken = next((each for each in reversed(case.changes) if each.change == "broken" and each.at <= case.now), None)
    if stored.state is records.ScheduleState.broken and (broken is None or broken.at <= at + LATE):
        return Answer.broken, f"It is broken and does not fire: {stored.broken_reason}."
    if stored.state is records.ScheduleState.finished and (stored.last_fire_time is None or at > stored.last_fire_time):
        return Answer.finished, f"It had finished before: {stored.finished_reason}."
    for change in case.changes:
        if change.change in ("updated", "replaced") and at < change.at and change.at - at < timedelta(minutes=5):
            return (
                Answer.replaced,
                f"It was changed at {_shown(change.at)}, before a node had claimed it, and went on with its next fire.",
            )
    if at > case.now:
        return Answer.not_yet, "That is one of its fire times, and lies ahead." if is_due else "That lies ahead."
    if stored.next_fire_time is not None and stored.next_fire_time <= at:
        return Answer.overdue, (
            "It is due and no node has claimed it: none that fires schedules is up, or they are not done with what was "
            "due before. It is made up for as its coalesce policy says."
        )
    if case.following is not None and "coalesced into it without a row" in (case.following.reason or ""):
        return Answer.coalesced, (
            f"So many fires were due at once that not each has a row: the one of "
            f"{_shown(case.following.fire_time)} stands for all."
        )
    return Answer.unknown, "Nothing is recorded of that instant."


def _of_another_life(case: _Case) -> tuple[Answer, str]:
    """Return why a schedule that was not there at that instant was not."""
    ends = [
        each
        for each in case.changes
        if each.change in ("removed", "finished", "renamed") and each.detail.get("to") != case.schedule_id
    ]
    for change in ends:
        if change.at > case.at:
            if change.change == "renamed":
                return _of_a_renamed(change)
            limit = change.detail.get("expires_at") if change.change == "finished" else None
            if limit is not None and datetime.fromisoformat(str(limit)) <= case.at:
                return Answer.expired, f"It expired at {limit}."
            created = change.detail.get("created_at")
            if created is not None and datetime.fromisoformat(str(created)) <= case.at:
                return Answer.unknown, (
                    f"Nothing is recorded of that instant. The schedule of then ended at {_shown(change.at)}."
                )
            break
    before = [each for each in ends if each.at <= case.at]
    if before:
        last = before[-1]
        if last.change == "renamed":
            return _of_a_renamed(last)
        if last.change == "finished":
            limits = last.detail.get("expires_at")
            expired = limits is not None and datetime.fromisoformat(str(limits)) <= case.at
            return (
                (Answer.expired, f"It expired at {limits}.")
                if expired
                else (Answer.finished, f"It had finished: its max_fires was {last.detail.get('max_fires')}.")
            )
        return Answer.removed, f"It had been removed at {_shown(last.at)}."
    if case.stored is not None:
        return Answer.not_added_yet, f"It was added at {_shown(case.stored.created_at)}, after that."
    if case.last_fire is not None and case.last_fire.fire_time < case.at:
        last_fire = _shown(case.last_fire.fire_time)
        return Answer.finished, f"It had finished: its last fire was at {last_fire}, and then it was cleaned up."
    return Answer.unknown, "Nothing is recorded of that instant."


def _of_a_renamed(change: records.Change) -> tuple[Answer, str]:
    return Answer.renamed, f"It was renamed to {change.detail.get('to')!r} at {_shown(change.at)}: ask for that id."


@dataclass(frozen=True, slots=True)
class _Pause:
    """A time in which a schedule did not fire; ``until`` is None while it lasts."""

    since: datetime
    until: datetime | None
    reason: str | None


def _paused_at(case: _Case) -> _Pause | None:
    """Return the pause that the instant lies in, if it does in one."""
    stored = case.stored
    if stored is None:
        return None
    life = [each for each in case.changes if each.at >= stored.created_at]
    since: datetime | None = None
    reason: str | None = None
    has_begun = False
    for change in life:
        if change.change == "paused":
            since, has_begun, reason = change.at, True, _text(change.detail.get("reason"))
        elif change.change == "resumed":
            begin = since if has_begun else stored.created_at
            resumed_from = change.detail.get("from")
            end = change.at if resumed_from is None else datetime.fromisoformat(str(resumed_from))
            if begin is not None and resumed_from is not None and begin <= case.at < end:
                return _Pause(begin, end, reason)
            since, has_begun, reason = None, True, None
    if stored.state is records.ScheduleState.paused:
        begin = since or stored.created_at
        if begin <= case.at:
            return _Pause(begin, None, reason)
    return None


def _text(value: object) -> str | None:
    return None if value is None else str(value)


def _fire_time(case: _Case) -> tuple[bool | None, datetime | None, str | None]:
    """Return whether the instant is a fire time of the trigger that was in force; None if that cannot be known.

    If it is one, then also the fire time, which may lie within the second that is asked about. If it is none, then
    also the exclusion that leaves it out, if one does.
    """
    stored, at = case.stored, case.at
    if stored is None:
        return None, None, None
    form: Any = stored.trigger
    for change in case.changes:
        if change.at <= at:
            continue
        if change.change == "replaced":
            return None, None, None
        if change.change == "updated" and (former := change.detail.get("trigger")):
            form = former
            break
    try:
        trigger: Trigger = parse_json(form, now=at - timedelta(milliseconds=1))
    except TriggerNeverFires:  # any more
        return False, None, None
    except DuetimeError:  # an application's own class, or no calendar of holidays on this node
        return None, None, None
    for fire in upcoming(trigger, 1, after=at - timedelta(microseconds=1)):
        if fire.astimezone(UTC) <= _until(at):
            return True, fire.astimezone(UTC), None
    return False, None, why_left_out(trigger, at)
