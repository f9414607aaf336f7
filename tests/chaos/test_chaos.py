"""A storm over several nodes: they are killed, stopped and cut off, and afterwards every promise was kept.

The short form runs with the suite. ``make chaos`` runs the long one, in which the database's server is killed as well.
The environment says how: ``CHAOS_SECONDS``, ``CHAOS_NODES``, ``CHAOS_SCHEDULES``, and ``CHAOS_SEED``, which the test
prints: the same seed brings back the same schedules and troubles, though not the same moments.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import asyncpg
import pytest
from apscheduler import ConflictPolicy

from duetime.errors import StoreUnavailable
from duetime.local import LocalDatabase
from duetime.local.keeper import PidFile
from duetime.settings import DatabaseUrl
from duetime.store import PostgresDataStore

from ..nodes.desk import LIMITS
from ..nodes.fleet import fleet_on
from ..store.network import Network
from ..store.parts import a_store
from ..waiting import eventually
from .load import Planned, plan
from .proof import Evidence
from .weather import Weather, connected

LEASE = 2.0
LONG = "CHAOS_SECONDS" in os.environ
SECONDS = float(os.environ.get("CHAOS_SECONDS", "20"))
NODES = int(os.environ.get("CHAOS_NODES", "3"))
SCHEDULES = int(os.environ.get("CHAOS_SCHEDULES", "300"))
SEED = int(os.environ.get("CHAOS_SEED", random.SystemRandom().randrange(1_000_000)))

Restart = Callable[[], Awaitable[None]]


@asynccontextmanager
async def own_server(directory: Path) -> AsyncIterator[tuple[DatabaseUrl, Restart]]:
    """Run a server of the test's own, whose keeper starts it again when it was killed."""
    local = LocalDatabase(directory, max_connections=200)
    url = await local.start()

    async def restart() -> None:
        note = PidFile.read(directory / "postgres")
        assert note is not None
        with suppress(ProcessLookupError):
            os.kill(note.pid, signal.SIGKILL)
        await eventually(lambda: answers(url), within=60)

    try:
        yield url, restart
    finally:
        await local.stop()


async def answers(url: DatabaseUrl) -> bool:
    try:
        async with connected(url):
            return True
    except (OSError, asyncpg.PostgresError):
        return False


async def add_all(store: PostgresDataStore, planned: list[Planned], seconds: float) -> dict[str, float]:
    """Add the schedules, a group now and then, and each group again until the answer has come.

    Returns when each of them had been added: in an outage that is later than some of them are due.
    """
    added: dict[str, float] = {}
    groups = [planned[start : start + 25] for start in range(0, len(planned), 25)]
    for group in groups:
        while True:
            try:
                # An answer that was lost is no loss: what was stored stays as it is.
                await store.add_schedules([each.schedule for each in group], ConflictPolicy.do_nothing)
                break
            except StoreUnavailable:
                continue
        added |= {each.schedule.id: time.time() for each in group}
        await asyncio.sleep(seconds / len(groups))
    return added


async def watch_machine(lags: list[float]) -> None:
    """Measure how late this process is woken: so late may what it carries between the nodes and the database be too."""
    loop = asyncio.get_running_loop()
    while True:
        asleep = loop.time()
        await asyncio.sleep(0.05)
        lags.append(loop.time() - asleep - 0.05)


async def watch_limits(url: DatabaseUrl, seen: list[str]) -> None:
    """Look again and again whether more jobs of a task have a live lease than it may have."""
    while True:
        with suppress(OSError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError):
            async with connected(url) as connection:
                while True:
                    found = await connection.fetch(
                        "select task_id, count(*) as running from duetime.jobs "
                        "where acquired_until >= clock_timestamp() and task_id = any($1) group by task_id",
                        list(LIMITS),
                    )
                    seen += [f"{row['running']} leases of {row['task_id']!r}" for row in found if over(row)]
                    await asyncio.sleep(0.02)
        await asyncio.sleep(0.1)


def over(row: asyncpg.Record) -> bool:
    return bool(row["running"] > LIMITS[row["task_id"]])


@pytest.fixture
async def ground(database: DatabaseUrl, tmp_path: Path) -> AsyncIterator[tuple[DatabaseUrl, Restart | None]]:
    """The database, and how to kill its server, in the long form."""
    if LONG:
        async with own_server(tmp_path / "server") as mine:
            yield mine
    else:
        yield database, None


@pytest.mark.timeout(0)  # the long form takes as long as it is told to
@pytest.mark.chaos
async def test_every_promise_is_kept_through_a_storm(
    ground: tuple[DatabaseUrl, Restart | None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    database, restart = ground
    with capsys.disabled():
        sys.stdout.write(
            f"\nCHAOS_SEED={SEED} CHAOS_SECONDS={SECONDS:g} CHAOS_NODES={NODES} CHAOS_SCHEDULES={SCHEDULES}\n"
        )
    dice = random.Random(SEED)
    async with AsyncExitStack() as stack:
        fleet = await stack.enter_async_context(fleet_on(database, tmp_path))
        store = await stack.enter_async_context(a_store(database))
        networks = {}
        for number in range(NODES):
            name = f"node-{number}"
            networks[name] = await stack.enter_async_context(Network(database))
            settings = {"lease_duration": LEASE, "poll_interval": LEASE, "drain_timeout": 1, "max_concurrent_jobs": 50}
            role = "both" if number < 2 else dice.choice(["both", "scheduler", "worker"])
            await fleet.start(name, database=networks[name].url, role=role, **settings)
        weather = Weather(dice, fleet, networks, restart)
        begin = datetime.now(UTC) + timedelta(seconds=1)
        planned = [plan(dice, number, begin, SECONDS) for number in range(SCHEDULES)]
        over_the_limit: list[str] = []
        lags = [0.0]
        watching = [
            asyncio.create_task(watch_limits(database, over_the_limit)),
            asyncio.create_task(watch_machine(lags)),
        ]
        adding = asyncio.create_task(add_all(store, planned, SECONDS / 4))
        loop = asyncio.get_running_loop()
        ends_at = loop.time() + 1 + SECONDS
        while loop.time() < ends_at:
            await asyncio.sleep(min(2, ends_at - loop.time()))  # fair weather
            await weather.burst(max(0, min(7, ends_at - loop.time())))
            await weather.clear()
            await asyncio.sleep(max(0, min(LEASE + 2, ends_at - loop.time())))
        added = await adding
        expected = sum(len(each.fires) for each in planned)

        async def is_done() -> bool:
            async with asyncio.timeout(10), connected(database) as connection:
                jobs = await connection.fetch(
                    "select id, task_id, schedule_id, attempt, run_at - now() as due, acquired_by, "
                    "acquired_until - now() as leased from duetime.jobs limit 10"
                )
                left = await connection.fetchrow(
                    "select (select count(*) from duetime.fires) as fires, "
                    "(select count(*) from duetime.fires where state = 'pending') as pending, "
                    "(select count(*) from duetime.schedules where acquired_by is not null) as held"
                )
            assert not jobs, "\n".join(str(dict(job)) for job in jobs)
            assert (left["pending"], left["held"]) == (0, 0), dict(left)
            return bool(left["fires"] >= expected)

        await eventually(is_done, within=60)
        for each in watching:
            each.cancel()
        await asyncio.wait(watching)
        async with connected(database) as connection:
            ledger = await connection.fetch("select * from duetime.fires")
        for node in fleet.nodes.values():
            assert await node.end() == 0
    evidence = Evidence(planned, added, ledger, fleet.diary("began", "ended"), weather.troubles, LEASE, max(lags))
    problems = [*evidence.problems(), *over_the_limit]
    made = ", ".join(sorted({trouble.kind for trouble in weather.troubles}))
    with capsys.disabled():
        sys.stdout.write(
            f"{len(ledger)} fires through {len(weather.troubles)} troubles ({made}), lag {max(lags):.2f} s\n"
        )
    assert not problems, f"CHAOS_SEED={SEED}: {len(problems)} problems:\n" + "\n".join(problems[:50])
