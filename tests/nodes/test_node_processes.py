"""Several nodes, each a process of its own, on one database: killed, stopped, and with clocks that are wrong."""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import asyncpg
import pytest
from apscheduler import ConflictPolicy
from apscheduler.triggers.date import DateTrigger

from duetime.settings import DatabaseUrl
from duetime.store import PostgresDataStore

from ..store.parts import a_store, add, ago, every
from ..waiting import eventually
from .desk import job, schedule
from .fleet import Fleet, fleet_on

LEASE = 1.0


@pytest.fixture
async def fleet(database: DatabaseUrl, tmp_path: Path) -> AsyncIterator[Fleet]:
    async with fleet_on(database, tmp_path) as fleet:
        yield fleet


@pytest.fixture
async def desk(database: DatabaseUrl) -> AsyncIterator[PostgresDataStore]:
    """A store that adds, and wakes the nodes, but is none."""
    async with a_store(database) as store:
        yield store


async def test_a_scheduler_and_a_worker_run_work_together_as_soon_as_it_is_due(
    fleet: Fleet, desk: PostgresDataStore, connection: asyncpg.Connection
) -> None:
    """The poll is a minute away: it is the wake-up of a queued job that travels from one to the other."""
    await fleet.start("planner", role="scheduler")
    await fleet.start("hand", role="worker")
    await add(desk, schedule("s", "work", every(0.3)))
    ended = await eventually(lambda: lines if len(lines := fleet.diary("ended")) >= 3 else [])
    assert {line["node"] for line in ended} == {"hand"}
    fired_by = await connection.fetch("select distinct node from duetime.fires")
    assert [row["node"].split(":")[0] for row in fired_by] == ["planner"]


async def test_a_killed_node_takes_no_place_of_a_limited_task_with_it(
    fleet: Fleet, desk: PostgresDataStore, connection: asyncpg.Connection
) -> None:
    killed = await fleet.start("killed", lease_duration=LEASE)
    await desk.add_job(job("one", kwargs={"until": str(fleet.directory / "never")}))
    await eventually(lambda: fleet.diary("began", node="killed"))
    await fleet.start("heir", lease_duration=LEASE)
    await desk.add_job(job("one"))
    killed.kill()
    (fleet.directory / "never").touch()  # the first job may end as well, once another node runs it
    await eventually(lambda: len(fleet.diary("ended", node="heir")) == 2)
    assert await eventually(lambda: connection.fetchval("select count(*) = 0 from duetime.jobs"))
    [task] = await connection.fetch("select outcome, attempt from duetime.runs where outcome = 'abandoned'")
    assert task["attempt"] == 1


@pytest.mark.parametrize("skew", [-300, 300])
async def test_a_node_whose_clock_is_wrong_fires_by_the_databases_clock(
    fleet: Fleet, desk: PostgresDataStore, connection: asyncpg.Connection, skew: int
) -> None:
    """Neither early nor minutes late; nothing is missed, reaped or run twice because two clocks were compared."""
    await fleet.start("wrong", skew=skew, lease_duration=LEASE, max_concurrent_jobs=10)
    grace = timedelta(seconds=100)
    await add(
        desk,
        schedule("date", "work", DateTrigger(ago(-1)), misfire_grace_time=grace),
        schedule("interval", "work", every(0.5), misfire_grace_time=grace),
        *(schedule(f"one-off {n}", "work", DateTrigger(ago(-n / 20)), misfire_grace_time=grace) for n in range(40)),
    )
    await eventually(lambda: len({line["schedule"] for line in fleet.diary("ended", node="wrong")}) == 42)
    await fleet.start("right", lease_duration=LEASE, max_concurrent_jobs=10)
    # More than one of them has places for, and for longer than a lease, which the other one's clock must not end.
    flag = fleet.directory / "flag"
    for _ in range(12):
        await desk.add_job(job("work", kwargs={"until": str(flag)}))
    await eventually(lambda: len(fleet.diary("began", schedule=None)) == 12)
    long = "select min(acquired_until - claimed_at) from duetime.jobs where schedule_id is null"
    await eventually(lambda: connection.fetchval(f"select ({long}) > interval '{3 * LEASE} s'"))
    flag.touch()
    fired = len(fleet.diary("ended", schedule="interval"))
    await eventually(lambda: len(fleet.diary("ended", schedule="interval")) >= fired + 4)
    await desk.pause_schedule("interval")
    await eventually(lambda: connection.fetchval("select count(*) = 0 from duetime.jobs"))
    began = fleet.diary("began")
    assert {line["node"] for line in began} == {"wrong", "right"}, "expected both to take part"
    assert len({(line["schedule"] or line["job"], line["fire_time"]) for line in began}) == len(began), "one ran twice"
    # How well a node knows the database's clock depends on the quickest answer that a busy machine has given.
    early = [(line["node"], line["schedule"], line["due"] - line["at"]) for line in began if line["due"]]
    assert not [each for each in early if each[2] > 0.4], "jobs began before their time"
    ledger = await connection.fetch("select state, attempts from duetime.fires where state <> 'succeeded'")
    assert not ledger
    apart = await connection.fetchval("select max(abs(extract(epoch from started_at - due_at))) from duetime.runs")
    assert apart < 60, "what is recorded is the database's time as well"


async def test_a_node_that_wakes_after_its_lease_changes_nothing_that_is_no_longer_its_own(
    fleet: Fleet, desk: PostgresDataStore, connection: asyncpg.Connection
) -> None:
    """A virtual machine that was paused: what it had claimed was run elsewhere, and stays as it was recorded there."""
    sleeper = await fleet.start("sleeper", lease_duration=LEASE, look_ahead=5)
    flag = fleet.directory / "flag"
    await add(
        desk,
        schedule("begun", "work", DateTrigger(ago(0)), kwargs={"until": str(flag)}),
        schedule("held", "work", DateTrigger(ago(-2))),
    )
    await eventually(lambda: fleet.diary("began", schedule="begun"))
    await eventually(lambda: connection.fetchval("select count(*) = 2 from duetime.jobs where acquired_by is not null"))
    sleeper.send(signal.SIGSTOP)
    await fleet.start("heir", lease_duration=LEASE)
    await eventually(lambda: fleet.diary("began", node="heir", schedule="begun"))
    flag.touch()
    await eventually(lambda: len(fleet.diary("ended", node="heir")) == 2)
    await eventually(lambda: connection.fetchval("select count(*) = 0 from duetime.jobs"))
    recorded = await connection.fetch("select * from duetime.runs order by id")
    ledger = await connection.fetch("select * from duetime.fires order by schedule_id")
    sleeper.send(signal.SIGCONT)
    await eventually(lambda: fleet.diary("ended", node="sleeper", schedule="begun"))
    # It goes on as a node like any other: the next job that only it can run is run.
    fleet.nodes["heir"].kill()
    await desk.add_job(job("work"))
    await eventually(lambda: len(fleet.diary("ended", node="sleeper")) == 2)
    await eventually(lambda: connection.fetchval("select count(*) = 0 from duetime.jobs"))
    after = await connection.fetch("select * from duetime.runs where schedule_id is not null order by id")
    assert after == recorded
    assert await connection.fetch("select * from duetime.fires order by schedule_id") == ledger
    assert [row["state"] for row in ledger] == ["succeeded", "succeeded"]
    assert {(row["schedule_id"], row["outcome"]) for row in recorded} == {
        ("begun", "abandoned"),
        ("begun", "success"),
        ("held", "abandoned"),
        ("held", "success"),
    }
    assert not fleet.diary("began", node="sleeper", schedule="held")


async def test_a_schedule_that_a_killed_node_had_claimed_is_fired_by_another(
    fleet: Fleet, desk: PostgresDataStore, connection: asyncpg.Connection
) -> None:
    killed = await fleet.start("killed", lease_duration=LEASE)
    await add(desk, *(schedule(f"s{n}", "once", every(0.2)) for n in range(5)))
    await eventually(lambda: len(fleet.diary("ended")) >= 10)
    killed.kill()
    await fleet.start("heir", lease_duration=LEASE)
    await eventually(lambda: len({line["schedule"] for line in fleet.diary("ended", node="heir")}) == 5)
    for n in range(5):
        await desk.pause_schedule(f"s{n}")
    assert await eventually(lambda: connection.fetchval("select count(*) = 0 from duetime.jobs"))
    assert await connection.fetchval("select count(*) from duetime.fires where state = 'pending'") == 0
    began = [(line["schedule"], line["fire_time"]) for line in fleet.diary("began")]
    assert len(set(began)) == len(began), "a job that may run once ran twice"


async def test_a_node_that_is_told_to_end_hands_over_at_once(
    fleet: Fleet, desk: PostgresDataStore, connection: asyncpg.Connection
) -> None:
    """Nothing waits for a lease, which would take an hour."""
    leaving = await fleet.start("leaving", lease_duration=3600, look_ahead=30, drain_timeout=0)
    flag = fleet.directory / "flag"
    await add(
        desk,
        schedule("running", "work", DateTrigger(ago(0)), kwargs={"until": str(flag)}),
        schedule("held", "work", DateTrigger(ago(-3))),
    )
    await eventually(lambda: fleet.diary("began", schedule="running"))
    await eventually(lambda: connection.fetchval("select count(*) = 2 from duetime.jobs where acquired_by is not null"))
    await fleet.start("heir", lease_duration=3600)
    assert await leaving.end() == 0
    flag.touch()
    await eventually(lambda: {line["schedule"] for line in fleet.diary("ended", node="heir")} == {"running", "held"})
    assert await eventually(lambda: connection.fetchval("select count(*) = 0 from duetime.jobs"))


async def test_a_definition_that_is_replaced_elsewhere_takes_effect_at_once(
    fleet: Fleet, desk: PostgresDataStore
) -> None:
    """The node sleeps until the poll, a minute away; the new definition is due before."""
    await fleet.start("node")
    await add(desk, schedule("s", "work", DateTrigger(ago(-3600))))
    await desk.add_schedule(schedule("s", "work", DateTrigger(ago(0))), ConflictPolicy.replace)
    await eventually(lambda: fleet.diary("ended", schedule="s"))
