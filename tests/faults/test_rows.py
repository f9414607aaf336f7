"""Rows that somebody has edited by hand: the worst costs its own schedule or job, is shown, and can be mended."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime

import asyncpg
from apscheduler import ConflictPolicy
from apscheduler.triggers.date import DateTrigger

from duetime.commands import FireQuery, PageRequest, RunQuery, ScheduleQuery
from duetime.errors import InvalidOptions
from duetime.settings import DatabaseUrl

from ..store.parts import a_schedule, ago
from ..waiting import eventually
from .parts import a_node, add_neighbours, done, settled

TIMES = ("'infinity'", "'-infinity'", "'0044-03-15 BC'", "'10000-01-01'", "'294276-01-01'")
DURATIONS = ("'-1 day'", "'170000000 years'", "'-170000000 years'", "'infinity'", "'1000000 years'")
TEXTS = ("''", "repeat('x', 1000)", "E'\\x01'")
BYTES = ("''", "'null'", "'[]'", "'{}'", "'\\xff00'", '\'{"$trigger": ["date", null]}\'', "'{\"$tuple\": 5}'")
METADATA = (
    "'null'",
    "'[]'",
    "'\"x\"'",
    "'7'",
    "'{\"duetime.overlap\": 7}'",
    "'{\"duetime.retry\": []}'",
    '\'{"duetime.timeout": "long"}\'',
    "'{\"duetime.timeout\": -1}'",
    "'{\"duetime.timeout\": 1e300}'",
    "'{\"duetime.on_crash\": {}}'",
    "'{\"duetime.tags\": 5}'",
)

SCHEDULE_EDITS = [
    *((column, value) for column in ("next_fire_time", "last_fire_time", "acquired_until") for value in TIMES),
    *(
        (column, value)
        for column in ("misfire_grace_time", "max_jitter", "job_result_expiration_time")
        for value in DURATIONS
    ),
    *((column, value) for column in ("task_id", "job_executor", "engine", "acquired_by") for value in TEXTS),
    *((column, value) for column in ("trigger", "args", "kwargs") for value in BYTES),
    *(("metadata", value) for value in METADATA),
    *((column, value) for column in ("created_at", "updated_at") for value in TIMES),
    ("tags", "array['', null]"),
]


async def edit(connection: asyncpg.Connection, table: str, change: str, key: object) -> None:
    """Change a row as somebody would by hand; a server before PostgreSQL 17 has no endless durations."""
    with suppress(asyncpg.InvalidDatetimeFormatError):
        await connection.execute(f"update duetime.{table} set {change} where id = $1", key)


async def test_nonsense_in_schedules_rows_costs_nobody_else_anything(
    database: DatabaseUrl, connection: asyncpg.Connection
) -> None:
    async with a_node(database) as duetime:
        bad = [f"bad-{number}" for number in range(len(SCHEDULE_EDITS))]
        for name, (column, value) in zip(bad, SCHEDULE_EDITS, strict=True):
            schedule = a_schedule(name, DateTrigger(ago(1)), args=(name,), paused=True)
            await duetime._scheduler.store.add_schedule(schedule, ConflictPolicy.exception)
            await edit(connection, "schedules", f"paused = false, {column} = {value}", name)
        for _ in range(2):  # the second time round they are there from the beginning
            await eventually(await add_neighbours(duetime))
        # They can be looked at, and somebody can do something about them.
        page = await duetime.service.schedules(ScheduleQuery(limit=200))
        assert {each.id for each in page.items} >= set(bad)
        await duetime.scheduler.get_schedules()
        await duetime.service.fires(FireQuery())
        await duetime.service.runs(RunQuery())
        await duetime.service.jobs(PageRequest())
        for name in bad:
            assert (await duetime.service.get(name)).id == name
            await duetime.scheduler.add_schedule(
                "work", DateTrigger(datetime.now(UTC)), id=name, args=["mended"], conflict_policy=ConflictPolicy.replace
            )
        await eventually(lambda: done.count("mended") == len(bad))
        assert [name for name in bad if done.count(name) > 1] == []
        for name in bad:
            await duetime.service.remove(name)


NEVER = (("run_at", "'10000-01-01'"), ("run_at", "'infinity'"))
JOB_EDITS = [
    *NEVER,
    *(
        (column, value)
        for column in ("fire_time", "scheduled_fire_time", "start_deadline", "created_at")
        for value in TIMES
    ),
    *((column, value) for column in ("jitter", "result_expiration_time") for value in DURATIONS),
    *((column, value) for column in ("task_id", "executor", "schedule_id") for value in TEXTS),
    *((column, value) for column in ("args", "kwargs") for value in BYTES),
    *(("metadata", value) for value in METADATA),
    ("run_at", "'-infinity'"),
    ("run_at", "'0044-03-15 BC'"),
    ("attempt", "2147483647"),
    ("attempt", "-2147483648"),
]


async def test_nonsense_in_jobs_rows_costs_nobody_else_anything(
    database: DatabaseUrl, connection: asyncpg.Connection
) -> None:
    async with a_node(database, role="scheduler") as duetime:
        for column, value in JOB_EDITS:
            job_id = await duetime.scheduler.add_job("work", args=["bad"], result_expiration_time=60)
            await edit(connection, "jobs", f"{column} = {value}", job_id)
        await duetime.scheduler.add_job("neighbour", args=["neighbour"])
    async with a_node(database) as duetime:
        await eventually(lambda: "neighbour" in done)
        await eventually(await add_neighbours(duetime))
        await duetime.service.jobs(PageRequest())
        await duetime.scheduler.get_jobs()

        async def have_ended() -> bool:
            left: int = await connection.fetchval("select count(*) from duetime.jobs")
            return left == len(NEVER)

        await eventually(have_ended)
        await duetime.service.runs(RunQuery())
        runs = await connection.fetch("select outcome, error from duetime.runs where task_id <> 'neighbour'")
        assert len(runs) == len(JOB_EDITS) - len(NEVER)
        assert not [run for run in runs if run["outcome"] != "success" and not run["error"]]


TASK_EDITS = [
    *(("misfire_grace_time", value) for value in DURATIONS),
    *((column, value) for column in ("job_executor", "func") for value in TEXTS),
    *(("metadata", value) for value in METADATA if "tags" not in value),
]


async def test_nonsense_in_tasks_rows_costs_nobody_else_anything(
    database: DatabaseUrl, connection: asyncpg.Connection
) -> None:
    def a_task(number: int) -> Callable[..., None]:
        def task(name: str) -> None:
            done.append(name)

        task.__name__ = f"task_{number}"
        return task

    functions = [a_task(number) for number in range(len(TASK_EDITS))]
    async with a_node(database, *functions):
        pass
    for function, (column, value) in zip(functions, TASK_EDITS, strict=True):
        await edit(connection, "tasks", f"{column} = {value}", function.__name__)
    async with a_node(database, *functions) as duetime:
        await eventually(await add_neighbours(duetime))
        await duetime.scheduler.get_tasks()
        refused = 0
        for function in functions:
            try:
                await duetime.scheduler.add_schedule(function.__name__, DateTrigger(ago()), args=["bad"])
            except InvalidOptions:  # whoever uses such a task is told what is wrong with it
                refused += 1
            await duetime.scheduler.add_job(function.__name__, args=["bad"])

        await eventually(lambda: settled(connection))
        fires = await connection.fetch("select state, reason from duetime.fires where task_id <> 'neighbour'")
        assert 0 < refused <= sum("duetime." in value for _, value in TASK_EDITS)
        assert len(fires) == len(functions) - refused
        assert not [fire for fire in fires if fire["state"] != "succeeded" and not fire["reason"]]
        runs = await connection.fetch("select outcome, error from duetime.runs where task_id <> 'neighbour'")
        assert not [run for run in runs if run["outcome"] != "success" and not run["error"]]
