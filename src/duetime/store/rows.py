"""Rows to APScheduler's structures and back."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any, cast

from apscheduler import Job, JobResult, Schedule, Task
from apscheduler.abc import Serializer, Trigger
from apscheduler.triggers.date import DateTrigger

from ..errors import UnreadableValue
from ..options import KEY, METADATA_PREFIX, concurrency_key
from ..records import Engine

TAGS = f"{METADATA_PREFIX}tags"
ENGINE = f"{METADATA_PREFIX}engine"
START_DEADLINE = f"{METADATA_PREFIX}start_deadline"
LONGEST_WAIT = 3_155_760_000
"""Seconds in a hundred years; a longer deadline, which only an edited row can have, is none."""

Row = Mapping[str, Any]


@contextmanager
def _readable() -> Iterator[None]:
    """Say of a row that APScheduler's classes refuse that it cannot be read."""
    try:
        yield
    except (ValueError, TypeError) as exc:
        raise UnreadableValue(f"expected a row that Duetime wrote, got one that APScheduler refuses: {exc}.") from exc


def task_from(row: Row) -> Task:
    """Return the task of a row of ``tasks``.

    :raises UnreadableValue: if APScheduler refuses it
    """
    with _readable():
        return Task(**{**dict(row), "metadata": json.loads(row["metadata"])})


def schedule_from(row: Row, serializer: Serializer, *, trigger: Trigger | None = None) -> Schedule:
    """Return the schedule of a row.

    :param trigger: what the schedule gets in place of its stored trigger, which is then not read
    :raises apscheduler.DeserializationError: if the trigger, the arguments or an option cannot be read
    """
    with _readable():
        return Schedule(
            id=row["id"],
            task_id=row["task_id"],
            trigger=trigger or serializer.deserialize(row["trigger"]),
            args=serializer.deserialize(row["args"]),
            kwargs=serializer.deserialize(row["kwargs"]),
            paused=row["paused"],
            coalesce=row["coalesce"],
            misfire_grace_time=row["misfire_grace_time"],
            max_jitter=row["max_jitter"],
            job_executor=row["job_executor"],
            job_result_expiration_time=row["job_result_expiration_time"],
            metadata=json.loads(row["metadata"]),
            last_fire_time=row["last_fire_time"],
            next_fire_time=row["next_fire_time"],
            acquired_by=row["acquired_by"],
            acquired_until=row["acquired_until"],
        )


def start_deadline(metadata: Mapping[str, Any], since: datetime, grace: datetime | None) -> datetime | None:
    """Return when an attempt is too late to begin, by the database's clock; None: never.

    :param since: when it could have begun
    :param grace: when the grace time of its fire ends, if this is the first attempt
    """
    wait = metadata.get(START_DEADLINE)
    if not isinstance(wait, int | float) or not 0 < wait <= LONGEST_WAIT:
        return grace
    try:
        deadline = since + timedelta(seconds=wait)
    except OverflowError:
        return grace
    return deadline if grace is None else min(grace, deadline)


def job_from(row: Row, serializer: Serializer, *, clock_offset: timedelta = timedelta(0)) -> Job:
    """Return the job of a row.

    :param clock_offset: host time − database time; the start deadline is moved by it, because the scheduler compares
        it with the host's clock
    :raises apscheduler.DeserializationError: if the arguments or an option cannot be read
    """
    deadline: datetime | None = row["start_deadline"]
    metadata = json.loads(row["metadata"])
    if isinstance(metadata, dict) and START_DEADLINE in metadata:
        deadline = start_deadline(metadata, max(row["run_at"], row["created_at"]), deadline)
    with _readable():
        return Job(
            id=row["id"],
            task_id=row["task_id"],
            args=serializer.deserialize(row["args"]),
            kwargs=serializer.deserialize(row["kwargs"]),
            schedule_id=row["schedule_id"],
            scheduled_fire_time=row["scheduled_fire_time"],
            executor=row["executor"],
            jitter=row["jitter"],
            start_deadline=cast("datetime", None if deadline is None else deadline + clock_offset),
            result_expiration_time=row["result_expiration_time"],
            metadata=metadata,
            created_at=row["created_at"],
            acquired_by=row["acquired_by"],
            acquired_until=row["acquired_until"],
        )


def result_from(row: Row, serializer: Serializer) -> JobResult:
    """Return the result of a row of ``job_results``."""
    values = dict(row)
    for name in ("exception", "return_value"):
        values[name] = None if values[name] is None else serializer.deserialize(values[name])
    return JobResult(**values)


class ScheduleValues:
    """Turns schedules into the values of their rows, and says what many have in common only once.

    :param serializer: writes triggers and arguments
    """

    def __init__(self, serializer: Serializer) -> None:
        self._serialize = serializer.serialize
        self._metadata: Any = None
        self._written = ("", "")
        self._date: Any = None
        self._written_date = b""

    def of(self, schedule: Schedule) -> tuple[Any, ...]:
        """Return a schedule's values in the order of the ``add_schedules`` statement, its revision left out.

        :raises apscheduler.SerializationError: if an argument or the trigger has no stored form
        """
        metadata = schedule.metadata
        if (key := concurrency_key(metadata, schedule.args, schedule.kwargs)) is not None:
            metadata = {**metadata, KEY: key}
        if metadata is not self._metadata:
            tags = metadata.get(TAGS)
            self._written = (json.dumps(metadata), json.dumps(tags) if tags else "[]")
            self._metadata = metadata
        serialize = self._serialize
        return (
            schedule.id,
            schedule.task_id,
            self._trigger(schedule.trigger),
            serialize(schedule.args),
            serialize(schedule.kwargs),
            schedule.paused,
            schedule.coalesce.name,
            schedule.misfire_grace_time,
            schedule.max_jitter,
            schedule.job_executor,
            schedule.job_result_expiration_time,
            *self._written,
            metadata.get(ENGINE, Engine.apscheduler),
            schedule.last_fire_time,
            schedule.next_fire_time,
        )

    def _trigger(self, trigger: Trigger) -> bytes:
        """Return a trigger's stored form; that of an instant in UTC only once, for all that are due at it."""
        if type(trigger) is not DateTrigger or trigger.run_time.tzinfo is not UTC:
            return self._serialize(trigger)
        state = trigger.__getstate__()
        if state != self._date:
            self._date, self._written_date = state, self._serialize(trigger)
        return self._written_date


def job_values(job: Job, serializer: Serializer) -> tuple[Any, ...]:
    """Return a job's values in the order of the ``add_jobs`` statement."""
    metadata = job.metadata
    if (key := concurrency_key(metadata, job.args, job.kwargs)) is not None:
        metadata = {**metadata, KEY: key}
    return (
        job.id,
        job.task_id,
        serializer.serialize(job.args),
        serializer.serialize(job.kwargs),
        job.schedule_id,
        job.scheduled_fire_time,
        job.executor,
        job.jitter,
        job.start_deadline,
        job.result_expiration_time,
        json.dumps(metadata),
    )


def columns(rows: list[tuple[Any, ...]], width: int) -> list[list[Any]]:
    """Turn rows into the column arrays that ``unnest`` takes."""
    return [list(column) for column in zip(*rows, strict=True)] if rows else [[] for _ in range(width)]
