"""A node that is under observation, and what it has to show for itself."""

from __future__ import annotations

import asyncio
import itertools
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

import asyncpg
from apscheduler import CoalescePolicy, ConflictPolicy
from apscheduler.triggers.date import DateTrigger

from duetime import Duetime, Settings
from duetime.options import Overlap, TaskOptions
from duetime.settings import DatabaseUrl

from ..store.parts import a_schedule, every, tasks
from ..waiting import eventually

CALL_TIMEOUT = 1.0
"""Seconds that a call to the nodes here may take."""

MARGIN = 2.0
"""Seconds that a busy machine may add to anything."""

_numbers = itertools.count(1)

done: list[str] = []
"""What the tasks here have done, by the name that each was given."""


async def work(name: str = "") -> str:
    done.append(name)
    return name


async def neighbour(name: str = "") -> None:
    done.append(name)


@asynccontextmanager
async def a_node(
    database: DatabaseUrl, *functions: Callable[..., Any], crashes: int | None = 0, **settings: Any
) -> AsyncIterator[Duetime]:
    """Run a node that crashes as often as is said, which is never, and that runs to the end."""
    options: dict[str, TaskOptions] = {"work": TaskOptions(overlap=Overlap.allow), **settings.pop("options", {})}
    values: dict[str, Any] = {
        "database_url": database.text,
        "call_timeout": CALL_TIMEOUT,
        "poll_interval": 30,
        "drain_timeout": 1,
        **settings,
    }
    duetime = Duetime(Settings(**values), registry=tasks(work, neighbour, *functions, **options))
    done.clear()
    async with duetime:
        await is_ready(duetime)
        for task in (work, neighbour, *functions):
            await duetime.scheduler.configure_task(task.__name__)
        yield duetime
        crash = duetime._supervisor.last_crash
        assert crashes is None or duetime._supervisor.crashes == crashes, f"{crash!r}"
        assert duetime.scheduler.state.name == "started"


async def is_ready(duetime: Duetime, *, within: float = 20) -> None:
    """Wait until the node says that it can do its work."""

    async def ready() -> bool:
        readiness = await duetime.service.readiness()
        assert readiness.ready, readiness.reason
        return True

    await eventually(ready, within=within)


async def works(duetime: Duetime, *, within: float = 20) -> float:
    """Add schedules that are due until one has run, and return how many seconds that took."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    number = 0
    while True:
        number += 1
        name = f"probe-{id(duetime)}-{number}-{began}"
        try:
            await duetime.scheduler.add_schedule("work", DateTrigger(datetime.now(UTC)), args=[name], id=name)
        except ConnectionError:
            assert loop.time() - began < within, f"no call succeeded within {within:g} s"
            await asyncio.sleep(0.02)
            continue
        await eventually(lambda: name in done, within=within)  # noqa: B023 - asked within this round
        return loop.time() - began


async def add_neighbours(duetime: Duetime, count: int = 5) -> Callable[[], bool]:
    """Add healthy schedules that are due, and return what says whether all have run, each once."""
    names = sorted(f"neighbour-{next(_numbers)}" for _ in range(count))
    await duetime._scheduler.store.add_schedules(
        [a_schedule(name, DateTrigger(datetime.now(UTC)), task_id="neighbour", args=(name,)) for name in names],
        ConflictPolicy.exception,
    )

    def have_run() -> bool:
        return sorted(each for each in done if each in names) == names

    return have_run


async def settled(connection: asyncpg.Connection) -> bool:
    """Return whether nothing is claimed, queued or pending."""
    row = await connection.fetchrow(
        "select (select count(*) from duetime.jobs) as jobs,"
        " (select count(*) from duetime.fires where state = 'pending') as pending,"
        " (select count(*) from duetime.schedules where acquired_by is not null) as held"
    )
    assert tuple(row) == (0, 0, 0), dict(row)
    return True


def later(seconds: float) -> datetime:
    """Return a time to come."""
    return datetime.now(UTC) + timedelta(seconds=seconds)


@asynccontextmanager
async def connected(url: DatabaseUrl) -> AsyncIterator[asyncpg.Connection]:
    """Lend a plain connection."""
    connection = await asyncpg.connect(**url.asyncpg_arguments())
    try:
        yield connection
    finally:
        await connection.close(timeout=5)


def measured(what: str, seconds: float) -> None:
    """Say how long something took; the machine may be busy, so no test asks for less than ``WITHIN``."""
    sys.stdout.write(f"\nmeasured: {what}: {seconds:.3f} s\n")


async def add_often(duetime: Duetime) -> None:
    """Add a schedule that fires ten times a second and makes up for what it missed, and wait for its first fires."""
    await duetime.scheduler.add_schedule("work", every(0.1), id="often", args=["often"], coalesce=CoalescePolicy.all)
    await eventually(lambda: done.count("often") > 3)


async def is_whole(duetime: Duetime, connection: asyncpg.Connection, *, once: bool = True) -> None:
    """Assert that no fire of that schedule is missing and that each ran once, or at least once."""
    await duetime.scheduler.remove_schedule("often")
    await eventually(lambda: settled(connection))
    ledger = await connection.fetch(
        "select fire_time, state from duetime.fires where schedule_id = 'often' order by fire_time"
    )
    runs = await connection.fetchval("select count(*) from duetime.runs where schedule_id = 'often'")
    assert {row["state"] for row in ledger} == {"succeeded"}
    times = [row["fire_time"] for row in ledger]
    assert {after - before for before, after in pairwise(times)} == {timedelta(seconds=0.1)}, "no fire is missing"
    if once:
        ran = done.count("often")
        assert len(ledger) == runs == ran, f"none ran twice: {len(ledger)} fires, {runs} runs, {ran} times in earnest"
    else:
        assert len(ledger) <= done.count("often")
