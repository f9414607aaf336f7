"""Changing stored schedules in place: one statement each, which no other change and no fire gets lost in."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from typing import Any
from uuid import UUID

import asyncpg
import attrs
from apscheduler import Schedule, ScheduleRemoved, ScheduleUpdated

from ..errors import InvalidTrigger, ScheduleExists
from . import rows
from .adding import check_durations, check_schedule_id, check_size, refused
from .planning import BrokenTrigger
from .postgres import PostgresDataStore
from .resuming import first_from

Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Update:
    """A changed schedule on its way into the store.

    :ivar schedule: as it shall be, with its new id if it gets one
    :ivar keeps_trigger: trigger and next fire time stay those of the row, whatever they are by then
    :ivar wants_position: the new trigger goes on from the stored one, which no fire may have moved meanwhile
    :ivar detail: what is kept of the change, for answers
    """

    schedule: Schedule
    keeps_trigger: bool
    wants_position: bool = False
    detail: Mapping[str, Any] = field(default_factory=dict)


class ScheduleChanges:
    """Writes changes of schedules.

    :param store: the store that they are in
    """

    def __init__(self, store: PostgresDataStore) -> None:
        self._store = store

    async def update(self, row: Row, update: Update) -> UUID | None:
        """Write a changed schedule, and return its new revision; None if somebody has changed it since it was read.

        :param row: the schedule as it was read
        :raises ScheduleExists: if its new id is taken
        :raises ArgumentsTooLarge: if the arguments are too large to be stored
        """
        store, schedule = self._store, update.schedule
        check_schedule_id(schedule.id)
        check_durations(
            misfire_grace_time=schedule.misfire_grace_time,
            max_jitter=schedule.max_jitter,
            job_result_expiration_time=schedule.job_result_expiration_time,
        )
        values = dict(zip(_VALUES, rows.ScheduleValues(store.serializer).of(schedule), strict=True))
        check_size(values["args"], values["kwargs"], store.max_arguments_bytes)
        old_id = row["id"]
        events: list[Any] = [ScheduleUpdated(schedule_id=schedule.id, task_id="", next_fire_time=row["now"])]
        if old_id != schedule.id:
            events.append(ScheduleRemoved(schedule_id=old_id, task_id="", finished=False))
        try:
            with refused("a schedule"):
                found = await store._change(
                    "update_schedule",
                    [old_id],
                    row["revision"],
                    update.keeps_trigger,
                    update.wants_position,
                    row["next_fire_time"],
                    *(values[name] for name in _SET),
                    schedule.next_fire_time,
                    schedule.id,
                    json.dumps(dict(update.detail)),
                    *store._message(events),
                )
        except Exception as exc:
            if isinstance(exc.__cause__, asyncpg.UniqueViolationError):
                raise ScheduleExists(schedule.id) from exc
            raise
        if not found:
            return None
        told = attrs.evolve(events[0], task_id=found[0]["task_id"], next_fire_time=found[0]["next_fire_time"])
        if told.next_fire_time is not None and not found[0]["paused"]:
            store._hint(told)
        await store._emit([told, *events[1:]])
        revision: UUID = found[0]["revision"]
        return revision

    async def resume(self, found: Sequence[Row], resume_from: datetime) -> list[str]:
        """Let paused schedules fire again, passing over what fell due before, and return which were still as read."""
        store = self._store
        wanted = []
        for row in found:
            schedule = rows.schedule_from(row, store.serializer)
            try:
                following = await store._patience.run(partial(first_from, schedule, resume_from))
            except BrokenTrigger as exc:
                raise InvalidTrigger(
                    f"expected a trigger of {schedule.id!r} that goes on from {resume_from}, got: {exc}."
                ) from exc
            wanted.append((schedule.id, row["revision"], store.serializer.serialize(schedule.trigger), following))
        due = [each[3] for each in wanted if each[3] is not None]
        event = ScheduleUpdated(schedule_id="", task_id="", next_fire_time=min(due, default=None))
        changed = await store.database.fetch_for_user(
            "resume_schedules", *rows.columns(wanted, 4), resume_from, *store._message([event])
        )
        if due:
            store._hint(event)
        await store._emit([event])
        return [row["id"] for row in changed]


_VALUES = (
    "id", "task_id", "trigger", "args", "kwargs", "paused", "coalesce", "misfire_grace_time", "max_jitter",
    "job_executor", "job_result_expiration_time", "metadata", "tags", "engine", "last_fire_time", "next_fire_time",
)  # fmt: skip
_SET = (
    "task_id", "trigger", "args", "kwargs", "coalesce", "misfire_grace_time", "max_jitter", "job_executor",
    "job_result_expiration_time", "metadata", "tags", "engine",
)  # fmt: skip
