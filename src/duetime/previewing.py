"""What a schedule would do: the preview of one that is not stored."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from typing import Any

from apscheduler.abc import Serializer, Trigger

from . import records
from .commands import NewSchedule
from .defining import Definition, Problems, Rules, define, is_too_late
from .errors import InvalidTrigger, ScheduleExists, TriggerNeverFires
from .store.adding import check_size
from .store.reads import Reads
from .tasks import TaskRegistry
from .triggers import UpcomingFire, describe, parse, to_json, upcoming_fires

_COMPARED = 5
"""Fire times that two schedules must have in common to fire at the same times."""


class Previews:
    """Says what would become of a schedule.

    :param max_arguments_bytes: bytes that the serialized arguments of a schedule may have; None: no limit
    :param show: makes the record of a stored schedule's row
    """

    def __init__(
        self,
        reads: Reads,
        registry: TaskRegistry,
        serializer: Serializer,
        rules: Rules,
        max_arguments_bytes: int | None,
        show: Callable[[Mapping[str, Any]], records.Schedule],
    ) -> None:
        self._reads = reads
        self._registry = registry
        self._serializer = serializer
        self._rules = rules
        self._max_arguments_bytes = max_arguments_bytes
        self._show = show

    async def of(self, new: NewSchedule, now: datetime, count: int) -> records.Preview:
        """Return what the schedule would be and do; whatever is wrong with it is in the answer."""
        problems = Problems()
        # A search for fire times may take longer than the event loop may be held (promise 7).
        definition = await asyncio.to_thread(define, new, self._registry, now, self._rules, problems)
        if definition is not None:
            problems.of(partial(self._check_size, definition))
        task = definition.task.name if definition else next(iter(self._task_name(new.task)), None)
        row = None
        if new.id is not None and not any(each.code == "invalid_schedule_id" for each in problems.found):
            row = await self._reads.schedule(new.id)
        if row is not None:
            problems.found.append(ScheduleExists(new.id or ""))
        shown = await asyncio.to_thread(self._trigger, new, definition, now, count)
        twins: list[records.NearDuplicate] = []
        if definition is not None:
            twins = await self._near_duplicates(definition, new.id)
        warnings = list(_warnings(new, definition, shown, twins, now))
        verdict = records.Verdict.doubtful if warnings else records.Verdict.ok
        fires = shown[1] if shown else []
        return records.Preview(
            verdict=records.Verdict.refused if problems.found else verdict,
            problems=[records.Problem(**_plain(detail)) for detail in problems.details()],
            warnings=warnings,
            task=task,
            trigger=shown and to_json(shown[0], now=now),
            description=shown and describe(shown[0], now=now),
            next_fire_time=fires[0].fire_time if fires and not new.paused else None,
            upcoming=[
                records.UpcomingFire(fire_time=each.fire_time, zone=each.fire_time.tzname() or "", note=_noted(each))
                for each in fires
            ],
            near_duplicates=twins,
        )

    def _check_size(self, definition: Definition) -> None:
        serialize = self._serializer.serialize
        check_size(serialize(definition.args), serialize(definition.kwargs), self._max_arguments_bytes)

    def _task_name(self, name: str) -> Iterator[str]:
        found = Problems().of(lambda: self._registry.find(name))
        if found is not None:
            yield found.name

    def _trigger(
        self, new: NewSchedule, definition: Definition | None, now: datetime, count: int
    ) -> tuple[Trigger, list[UpcomingFire]] | None:
        """Return the trigger and its next fires, also where something else is wrong with the schedule."""
        if definition is not None:
            trigger = definition.trigger
        else:
            try:
                trigger = parse(new.trigger, now=now)
            except (InvalidTrigger, TriggerNeverFires):
                return None
        return trigger, upcoming_fires(trigger, count)

    async def _near_duplicates(self, definition: Definition, own_id: str | None) -> list[records.NearDuplicate]:
        wanted = upcoming_fires(definition.trigger, _COMPARED)
        first = wanted[0].fire_time if wanted else None
        rows = await self._reads.alike(
            definition.task.name,
            self._serializer.serialize(definition.args),
            self._serializer.serialize(definition.kwargs),
            first,
        )
        times = [each.fire_time.astimezone(UTC) for each in wanted]
        return await asyncio.to_thread(self._compared, rows, definition, times, own_id)

    def _compared(
        self, rows: Sequence[Mapping[str, Any]], definition: Definition, times: list[datetime], own_id: str | None
    ) -> list[records.NearDuplicate]:
        args, kwargs = self._serializer.serialize(definition.args), self._serializer.serialize(definition.kwargs)
        form = to_json(definition.trigger)
        found = []
        for row in rows:
            stored = self._show(row)
            if stored.id == own_id:
                continue
            has_arguments = row["args"] == args and row["kwargs"] == kwargs
            has_times = bool(times) and [each.astimezone(UTC) for each in stored.upcoming[: len(times)]] == times
            has_trigger = stored.trigger == form or has_times
            if has_arguments and has_trigger:
                reason = "the same task, arguments and fire times"
            elif has_arguments and _without_start(stored.trigger) == _without_start(form):
                reason = "the same task, arguments and trigger, which began at another time"
            elif has_arguments:
                reason = "the same task and arguments, at other times"
            elif has_times:
                reason = "the same task and fire times, with other arguments"
            else:
                continue
            found.append(
                records.NearDuplicate(id=stored.id, description=stored.description, state=stored.state, reason=reason)
            )
        return sorted(found, key=lambda twin: (not twin.reason.startswith("the same task, arguments"), twin.id))[:20]


def _warnings(
    new: NewSchedule,
    definition: Definition | None,
    shown: tuple[Trigger, list[UpcomingFire]] | None,
    twins: Sequence[records.NearDuplicate],
    now: datetime,
) -> Iterator[str]:
    if shown is not None and shown[1] and (first := shown[1][0].fire_time) < now and not new.paused:
        grace_time = new.options.misfire_grace_time  # that of the task is known when it is stored
        is_missed = definition is not None and is_too_late(definition, now - first, grace_time)
        become = "too far in the past to run: it would be missed" if is_missed else "in the past: it would run at once"
        yield f"Its date, {first.isoformat()}, lies {become}."
    if exact := [twin for twin in twins if twin.reason.startswith("the same task, arguments")]:
        yield f"{exact[0].id!r} has {exact[0].reason}: both would run."
    if shown is not None:
        for each in shown[1]:
            if each.note is not None:
                yield f"{each.fire_time.isoformat()}: {each.note}."
                break


def _noted(fire: UpcomingFire) -> str | None:
    return "; ".join(each for each in (fire.note, fire.left_out) if each) or None


def _without_start(form: Mapping[str, Any]) -> dict[str, Any]:
    """Return a trigger's form without where it begins to count: one that is added later says the same."""
    return {name: value for name, value in form.items() if name not in ("start", "start_date")}


def _plain(detail: Mapping[str, Any]) -> dict[str, str]:
    return {name: str(detail.get(name, "")) for name in ("code", "where", "problem")}
