"""What a store has to know before it begins, asked in one round trip."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
from apscheduler import Task

from ..errors import UnreadableValue
from . import rows
from .clock import DatabaseClock
from .schema import migrations
from .statements import Statements
from .statements.looks import MOST_TASKS_READ_AT_ONCE
from .unprepared import ask

# A schema that is not there, or that another release has made.
_OTHER_SCHEMA = (
    asyncpg.UndefinedTableError,
    asyncpg.UndefinedColumnError,
    asyncpg.UndefinedFunctionError,
    asyncpg.InvalidSchemaNameError,
)


@dataclass(frozen=True, slots=True)
class Opening:
    """What was found when the store was opened.

    :ivar is_pooled: whether a pooler is between: the server's session has another number than the connection was told
    :ivar tasks: the definitions that can be read
    :ivar has_all_tasks: whether they are all
    :ivar schedule_due: when the first schedule is due that nobody holds, or a claim on one ends; None: never
    :ivar crowd: how many are due together with it
    :ivar job_due: when the first queued job is due; None: none is queued
    :ivar next_job_due: when the first queued job is due that is not due yet
    :ivar job_expiry: when the first claim on a job ends
    :ivar is_clean: whether the clean-up would find nothing
    """

    is_pooled: bool
    tasks: tuple[Task, ...]
    has_all_tasks: bool
    schedule_due: datetime | None
    crowd: int
    job_due: datetime | None
    next_job_due: datetime | None
    job_expiry: datetime | None
    is_clean: bool


async def look(connection: asyncpg.Connection, schema: str, clock: DatabaseClock) -> Opening | None:
    """Return what is there; None if the schema is not, or not in this release's version."""
    asked_at = time.monotonic()
    try:
        found = await ask(connection, Statements(schema)["opening"])
    except _OTHER_SCHEMA:
        return None
    answered_at = time.monotonic()
    if found["version"] != migrations()[-1][0]:
        return None
    clock.learn(_moment(found["told_at"]), asked_at, answered_at, began=_moment(found["began_at"]))
    tasks = tuple(task for each in found["tasks"] if (task := _task(each)) is not None)
    due = [found[name] for name in ("schedule_due", "schedule_expiry") if found[name] is not None]
    return Opening(
        is_pooled=found["server_pid"] != connection.get_server_pid(),
        tasks=tasks,
        has_all_tasks=len(tasks) == len(found["tasks"]) <= MOST_TASKS_READ_AT_ONCE,
        schedule_due=_moment_or_none(min(due, default=None)),
        crowd=found["crowd"],
        job_due=_moment_or_none(found["job_due"]),
        next_job_due=_moment_or_none(found["next_job_due"]),
        job_expiry=_moment_or_none(found["job_expiry"]),
        is_clean=found["is_clean"],
    )


def _task(row: Mapping[str, Any]) -> Task | None:
    grace = row["misfire_grace_time"]
    try:
        return rows.task_from({**row, "misfire_grace_time": None if grace is None else timedelta(seconds=grace)})
    except UnreadableValue:
        return None  # it is read again when it is needed, and whoever needs it says so


def _moment(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


def _moment_or_none(seconds: float | None) -> datetime | None:
    return None if seconds is None else _moment(seconds)
