"""Fires that a node holds ahead of their time, and what becomes of them when their schedule is changed."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta

import asyncpg
import pytest
from apscheduler import ConflictPolicy, Job
from apscheduler.triggers.date import DateTrigger

from duetime.options import TaskOptions
from duetime.scheduler import DuetimeScheduler
from duetime.settings import DatabaseUrl
from duetime.store import PostgresDataStore, scheduler_transaction

from ..waiting import eventually
from .parts import a_job, a_schedule, a_store, add, ago, every, node, running, tasks

done: list[str] = []


async def work(name: str = "work") -> None:
    done.append(name)


@pytest.fixture(autouse=True)
def nothing_done() -> None:
    done.clear()


def far_sighted(database: DatabaseUrl, **settings: float) -> DuetimeScheduler:
    """Return a node that holds what is due within ten seconds, which is longer than any test takes."""
    return node(database, tasks(work), look_ahead=20, **settings)


async def replaced(store: PostgresDataStore) -> None:
    await store.add_schedule(a_schedule("s", every(60, ago(-60)), args=["new"]), ConflictPolicy.replace)


async def replaced_by_a_paused_one(store: PostgresDataStore) -> None:
    await store.add_schedule(a_schedule("s", every(60, ago(-60)), paused=True), ConflictPolicy.replace)


async def replaced_by_a_later_one_than_others(store: PostgresDataStore) -> None:
    await store.add_schedule(a_schedule("sooner", DateTrigger(ago(-30))), ConflictPolicy.replace)
    await store.add_schedule(a_schedule("s", DateTrigger(ago(-3600))), ConflictPolicy.replace)


async def replaced_among_many(store: PostgresDataStore) -> None:
    await store.add_schedules(
        [a_schedule("t", DateTrigger(ago(-40))), a_schedule("s", DateTrigger(ago(-60)))], ConflictPolicy.replace
    )


async def paused(store: PostgresDataStore) -> None:
    await store.pause_schedule("s")


async def removed(store: PostgresDataStore) -> None:
    await store.remove_schedules(["s"])


Edit = Callable[[PostgresDataStore], Awaitable[None]]
EDITS = [
    replaced,
    replaced_by_a_paused_one,
    replaced_by_a_later_one_than_others,
    replaced_among_many,
    paused,
    removed,
]


async def held(scheduler: DuetimeScheduler, connection: asyncpg.Connection, schedule_id: str = "s") -> None:
    """Wait until the node holds a fire of the schedule."""
    await eventually(lambda: any(card.job.schedule_id == schedule_id for card in scheduler.store._hand))
    query = "select acquired_by from duetime.jobs where schedule_id = $1"
    assert await connection.fetchval(query, schedule_id) == scheduler.identity


@pytest.mark.parametrize("edit", EDITS)
@pytest.mark.parametrize("elsewhere", [False, True], ids=["on this node", "on another node"])
async def test_a_held_fire_goes_with_the_definition_it_was_made_from(
    database: DatabaseUrl, connection: asyncpg.Connection, edit: Edit, elsewhere: bool
) -> None:
    scheduler = far_sighted(database)
    async with running(scheduler), a_store(database) as other:
        await scheduler.add_schedule("work", every(60, ago(-9)), id="s")
        await held(scheduler, connection)
        await edit(other if elsewhere else scheduler.store)
        assert await connection.fetchval("select count(*) from duetime.jobs where schedule_id = 's'") == 0
        assert await connection.fetchval("select count(*) from duetime.fires where schedule_id = 's'") == 0
        if not elsewhere:
            assert not any(card.job.schedule_id == "s" for card in scheduler.store._hand), "exactly, on this node"
        await eventually(lambda: not any(card.job.schedule_id == "s" for card in scheduler.store._hand))
        await eventually(lambda: scheduler.store._attempts.keys() <= {card.job.id for card in scheduler.store._hand})
    assert done == []


async def test_a_pause_that_ends_in_time_loses_no_fire(database: DatabaseUrl, connection: asyncpg.Connection) -> None:
    scheduler = far_sighted(database)
    async with running(scheduler):
        due = ago(-9)
        await scheduler.add_schedule("work", every(60, due), id="s")
        await held(scheduler, connection)
        await scheduler.pause_schedule("s")
        assert (await scheduler.get_schedule("s")).next_fire_time == due
        await scheduler.unpause_schedule("s", resume_from="now")
        await held(scheduler, connection)
    rows = await connection.fetch("select fire_time from duetime.fires")
    assert [row["fire_time"] for row in rows] == [due]


async def test_a_change_that_is_rolled_back_takes_nothing_back(
    database: DatabaseUrl, connection: asyncpg.Connection
) -> None:
    scheduler = far_sighted(database)
    async with running(scheduler):
        await scheduler.add_schedule("work", DateTrigger(ago(-1.5)), id="s")
        await held(scheduler, connection)
        transaction = connection.transaction()
        await transaction.start()
        async with scheduler_transaction(connection):
            await scheduler.pause_schedule("s")
            await scheduler.store.add_schedule(a_schedule("s"), ConflictPolicy.replace)
            await scheduler.remove_schedule("s")
        await transaction.rollback()
        await eventually(lambda: done == ["work"])
        await eventually(lambda: connection.fetchval("select state = 'succeeded' from duetime.fires"))
        lateness = await connection.fetchval("select started_at - due_at from duetime.runs")
        assert lateness < timedelta(seconds=5), "it was held, and not given up to the end of its lease"


async def test_a_change_that_is_committed_takes_back_what_this_node_holds(
    database: DatabaseUrl, connection: asyncpg.Connection
) -> None:
    scheduler = far_sighted(database)
    async with running(scheduler):
        await scheduler.add_schedule("work", every(60, ago(-9)), id="s")
        await held(scheduler, connection)
        async with connection.transaction(), scheduler_transaction(connection):
            await scheduler.remove_schedule("s")
        await eventually(lambda: len(scheduler.store._hand) == 0)
    assert done == []


async def test_what_a_node_holds_when_it_stops_is_another_nodes_at_once(
    database: DatabaseUrl, connection: asyncpg.Connection
) -> None:
    options = TaskOptions().to_metadata()
    async with running(far_sighted(database)) as _:
        async with a_store(database) as store:
            await store.add_schedule(a_schedule("s", DateTrigger(ago(-9)), metadata=options), ConflictPolicy.replace)
        await eventually(lambda: connection.fetchval("select acquired_by is not null from duetime.jobs"))
    row = await connection.fetchrow("select acquired_by, attempt from duetime.jobs")
    assert tuple(row) == (None, 0), "it has not been begun"
    second = far_sighted(database)
    async with running(second):
        await held(second, connection)


async def test_a_schedule_that_a_node_has_claimed_when_it_stops_is_another_nodes_at_once(
    database: DatabaseUrl, connection: asyncpg.Connection
) -> None:
    async with a_store(database) as store:
        await store.add_schedule(a_schedule("s", DateTrigger(ago(1))), ConflictPolicy.replace)
    first = node(database, tasks(work), role="worker")
    async with running(first):
        # As if its schedule loop had been stopped between the claim and the release.
        await connection.execute(
            "update duetime.schedules set acquired_by = $1, acquired_until = now() + interval '1 hour'", first.identity
        )
    assert await connection.fetchval("select acquired_by from duetime.schedules") is None
    async with running(node(database, tasks(work))):
        await eventually(lambda: done == ["work"])


@pytest.mark.parametrize("change", ["remove_schedule", "pause_schedule", "replace"])
async def test_jobs_that_come_while_a_change_waits_for_them_are_taken_back_too(
    database: DatabaseUrl, connection: asyncpg.Connection, change: str
) -> None:
    """The release that makes them has the schedule's row, and has begun before the change does."""
    await connection.execute(
        "create function duetime.wait() returns trigger language plpgsql as "
        "$$ begin perform pg_sleep(1); return null; end $$; "
        "create trigger waits after insert on duetime.fires for each statement execute function duetime.wait()"
    )
    async with a_store(database) as store:
        await add(store, a_schedule("s", every(60, ago(-30))))
        release = asyncio.create_task(release_with(connection, a_job(), ago(-30)))
        await eventually(lambda: waits_in_the_server(store))
        if change == "replace":
            await store.add_schedule(a_schedule("s", every(3600, ago(-60))), ConflictPolicy.replace)
        else:
            await getattr(store, f"{change}s")(["s"])
        await release
        assert await connection.fetchval("select count(*) from duetime.jobs") == 0
        assert await connection.fetchval("select count(*) from duetime.fires") == 0


async def release_with(connection: asyncpg.Connection, job: Job, fire_time: datetime) -> None:
    """Write what a release writes: the schedule's next time, and a job with its ledger row, in one statement."""
    await connection.execute(
        "with released as (update duetime.schedules set next_fire_time = next_fire_time + interval '1 minute', "
        "acquired_by = null, acquired_until = null where id = 's' returning id), "
        "made as (insert into duetime.jobs (id, task_id, args, kwargs, schedule_id, fire_time, scheduled_fire_time, "
        "executor, metadata) select $1, 'work', '[]', '{}', id, $2, $2, 'async', '{}' from released) "
        "insert into duetime.fires (schedule_id, fire_time, task_id, state, job_id) "
        "select id, $2, 'work', 'pending', $1 from released",
        job.id,
        fire_time,
    )


async def waits_in_the_server(store: PostgresDataStore) -> bool:
    """Return whether the release is under way: it sleeps."""
    [row] = await store.database.query(
        "select count(*) as n from pg_stat_activity where wait_event = 'PgSleep' and datname = current_database()",
        deadline=None,
    )
    return bool(row["n"])
