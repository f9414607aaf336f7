"""Rows to APScheduler's structures and back."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import Any, cast

from apscheduler import Job, JobResult, Schedule, Task
from apscheduler.abc import Serializer, Trigger

from ..errors import UnreadableValue
from ..records import Engine
from ..tasks import METADATA_PREFIX

TAGS = f"{METADATA_PREFIX}tags"
ENGINE = f"{METADATA_PREFIX}engine"

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


def job_from(row: Row, serializer: Serializer, *, clock_offset: timedelta = timedelta(0)) -> Job:
    """Return the job of a row.

    :param clock_offset: host time − database time; the start deadline is moved by it, because the scheduler compares
        it with the host's clock
    :raises apscheduler.DeserializationError: if the arguments or an option cannot be read
    """
    deadline: datetime | None = row["start_deadline"]
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
            metadata=json.loads(row["metadata"]),
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


def schedule_values(schedule: Schedule, serializer: Serializer) -> tuple[Any, ...]:
    """Return a schedule's values in the order of the ``add_schedules`` statement, its revision left out.

    :raises apscheduler.SerializationError: if an argument or the trigger has no stored form
    """
    metadata = schedule.metadata
    return (
        schedule.id,
        schedule.task_id,
        serializer.serialize(schedule.trigger),
        serializer.serialize(schedule.args),
        serializer.serialize(schedule.kwargs),
        schedule.paused,
        schedule.coalesce.name,
        schedule.misfire_grace_time,
        schedule.max_jitter,
        schedule.job_executor,
        schedule.job_result_expiration_time,
        json.dumps(metadata),
        json.dumps(metadata.get(TAGS, [])),
        metadata.get(ENGINE, Engine.apscheduler),
        schedule.last_fire_time,
        schedule.next_fire_time,
    )


def job_values(job: Job, serializer: Serializer) -> tuple[Any, ...]:
    """Return a job's values in the order of the ``add_jobs`` statement."""
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
        json.dumps(job.metadata),
    )


def columns(rows: list[tuple[Any, ...]], width: int) -> list[list[Any]]:
    """Turn rows into the column arrays that ``unnest`` takes."""
    return [list(column) for column in zip(*rows, strict=True)] if rows else [[] for _ in range(width)]
