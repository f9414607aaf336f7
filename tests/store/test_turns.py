"""Jobs that take turns: whatever transactions do at the same time, a turn is never taken twice and never lost."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import pytest
from apscheduler import CoalescePolicy, Job, JobOutcome, JobResult

from duetime.options import Overlap, TaskOptions
from duetime.settings import DatabaseUrl
from duetime.store import PostgresDataStore

from ..matrix.servers import past_the_pooler
from ..waiting import eventually
from .parts import LEASE, a_schedule, a_store, add, ago, every, fire, ids, tasks
from .test_statements import _all_ended, a_node, work

SETTLE = "select verdict from duetime.settle_jobs_v1('one', array[$1]::uuid[], '')"
DELETE = "delete from duetime.jobs where id = $1"


@pytest.fixture
async def store(database: DatabaseUrl) -> AsyncIterator[PostgresDataStore]:
    async with a_store(database) as store:
        yield store


@pytest.fixture
async def other(database: DatabaseUrl) -> AsyncIterator[asyncpg.Connection]:
    """A second connection, past any pooler as the first, for a transaction at the same time, and to listen."""
    connection = await asyncpg.connect(**past_the_pooler(database).asyncpg_arguments())
    yield connection
    await connection.close()


async def due(store: PostgresDataStore, connection: asyncpg.Connection, count: int, overlap: Overlap) -> list[Any]:
    """Make so many jobs of one schedule, all claimed by the scheduler "one" and none of them begun."""
    schedule = a_schedule(
        "s",
        every(1, ago(count - 0.5)),
        coalesce=CoalescePolicy.all,
        metadata=TaskOptions(overlap=overlap).to_metadata(),
    )
    await add(store, schedule)
    await fire(store)
    lease = "update duetime.jobs set acquired_by = 'one', acquired_until = now() + interval '1 minute', attempt = 1"
    await connection.execute(lease)
    jobs = [row["id"] for row in await connection.fetch("select id from duetime.jobs order by fire_time")]
    assert len(jobs) == count
    return jobs


async def waits(connection: asyncpg.Connection, job: Any) -> bool:
    return bool(await connection.fetchval("select waits from duetime.jobs where id = $1", job))


async def test_of_two_jobs_the_earlier_one_begins_and_the_later_one_when_that_has_gone(
    store: PostgresDataStore, connection: asyncpg.Connection
) -> None:
    first, second = await due(store, connection, 2, Overlap.buffer_all)
    verdicts = "select job_id, verdict from duetime.settle_jobs_v1('one', $1, '')"
    assert [tuple(row) for row in await connection.fetch(verdicts, [second, first])] == [
        (first, "start"),
        (second, "wait"),
    ]
    row = await connection.fetchrow("select * from duetime.jobs where id = $1", second)
    assert row is not None
    assert (row["acquired_by"], row["attempt"], row["waits"]) == (None, 0, True)
    await connection.execute(DELETE, first)
    row = await connection.fetchrow("select * from duetime.jobs where id = $1", second)
    assert row is not None
    assert (row["waits"], row["run_at"]) == (False, row["scheduled_fire_time"])


async def test_a_job_that_is_just_ending_is_asked_for_again(
    store: PostgresDataStore, connection: asyncpg.Connection, other: asyncpg.Connection
) -> None:
    """Nobody knows yet whether it will have gone."""
    first, second = await due(store, connection, 2, Overlap.buffer_all)
    ending = other.transaction()
    await ending.start()
    await other.execute(DELETE, first)
    assert await connection.fetchval(SETTLE, second) == "again"
    await ending.commit()
    assert await connection.fetchval(SETTLE, second) == "start"


async def test_a_job_cannot_go_without_seeing_who_begins_to_wait_for_it(
    store: PostgresDataStore, connection: asyncpg.Connection, other: asyncpg.Connection
) -> None:
    first, second = await due(store, connection, 2, Overlap.buffer_all)
    deciding = other.transaction()
    await deciding.start()
    assert await other.fetchval(SETTLE, second) == "wait"
    going = asyncio.create_task(connection.execute(DELETE, first))
    await eventually(lambda: other.fetchval("select exists (select from pg_locks where not granted)"))
    assert not going.done()
    await deciding.commit()
    await going
    assert not await waits(connection, second)


async def test_when_two_jobs_go_at_once_the_later_transaction_gives_the_turn_on(
    store: PostgresDataStore, connection: asyncpg.Connection, other: asyncpg.Connection
) -> None:
    """Neither of them sees that the other one's job is gone as well."""
    first, second, third, fourth = await due(store, connection, 4, Overlap.buffer_all)
    assert await connection.fetchval(SETTLE, third) == "wait"
    assert await connection.fetchval(SETTLE, fourth) == "wait"
    ending = other.transaction()
    await ending.start()
    await other.execute(DELETE, first)
    going = asyncio.create_task(connection.execute(DELETE, second))
    await eventually(lambda: other.fetchval("select exists (select from pg_locks where not granted)"))
    await ending.commit()
    await going
    assert not await waits(connection, third)
    assert await waits(connection, fourth)


async def test_buffer_one_keeps_one_and_has_the_others_skipped(
    store: PostgresDataStore, connection: asyncpg.Connection
) -> None:
    jobs = await due(store, connection, 4, Overlap.buffer_one)
    verdicts = [await connection.fetchval(SETTLE, job) for job in jobs]
    assert verdicts == ["start", "wait", "skip", "skip"]


async def test_cancel_other_ends_what_has_not_been_claimed_and_asks_for_the_end_of_what_has(
    store: PostgresDataStore, connection: asyncpg.Connection, other: asyncpg.Connection
) -> None:
    heard: list[object] = []
    first, second, third = await due(store, connection, 3, Overlap.cancel_other)
    await other.add_listener("duetime", lambda *told: heard.append(told[3]))
    told = "select verdict from duetime.settle_jobs_v1('one', array[$1]::uuid[], 'duetime')"
    verdicts = [await connection.fetchval(told, job) for job in (first, second, third)]
    assert verdicts == ["start", "wait", "wait"]
    rows = {row["id"]: row for row in await connection.fetch("select * from duetime.jobs")}
    assert rows.keys() == {first, third}, "the second had not begun"
    assert rows[first]["cancel_requested_at"] is not None
    assert rows[first]["cancel_reason"] == "a later fire took its place (overlap=cancel_other)"
    await eventually(lambda: heard)
    assert [str(payload).partition(" ")[0] for payload in heard] == ["*\nJobRemoved"]
    assert str(first) in str(heard[0])
    fires = {row["job_id"]: row for row in await connection.fetch("select * from duetime.fires")}
    assert (fires[second]["state"], fires[second]["reason"]) == ("cancelled", rows[first]["cancel_reason"])
    assert fires[first]["state"] == fires[third]["state"] == "pending"
    assert not await waits(connection, first)
    await connection.execute(DELETE, first)
    assert not await waits(connection, third)


async def test_nobody_claims_what_waits_not_even_an_earlier_release(
    store: PostgresDataStore, connection: asyncpg.Connection
) -> None:
    _, second = await due(store, connection, 2, Overlap.buffer_all)
    assert await connection.fetchval(SETTLE, second) == "wait"
    for version, confirms in (("v1", ""), ("v2", ", true")):
        claim = f"select id from duetime.claim_jobs_{version}('old', '1 minute', '1 day', 100{confirms})"  # noqa: S608
        assert await connection.fetch(claim) == []


async def test_under_the_stock_scheduler_jobs_take_turns_too(
    store: PostgresDataStore, connection: asyncpg.Connection
) -> None:
    jobs = await due(store, connection, 3, Overlap.buffer_all)
    await connection.execute("update duetime.jobs set acquired_by = null, acquired_until = null, attempt = 0")
    for expected in jobs:
        claimed: list[Job] = await store.acquire_jobs("one", LEASE)
        assert ids(claimed) == [expected]
        assert await store.acquire_jobs("one", LEASE) == []
        await store.release_job("one", claimed[0], JobResult.from_job(claimed[0], JobOutcome.success))
    assert await connection.fetchval("select bool_and(state = 'succeeded') from duetime.fires")


@pytest.mark.parametrize("overlap", [Overlap.buffer_one, Overlap.buffer_all, Overlap.cancel_other])
async def test_a_fire_that_waits_for_nobody_costs_no_statement_more(
    database: DatabaseUrl, connection: asyncpg.Connection, overlap: Overlap
) -> None:
    async with a_node(database, tasks(work)) as (scheduler, connections):
        metadata = {"duetime.overlap": str(overlap)}
        await scheduler.add_schedule("work", every(3600, ago(0.2)), metadata=metadata)
        await eventually(lambda: connection.fetchval("select state = 'succeeded' from duetime.fires"))
        await eventually(lambda: _all_ended(scheduler))
        said = Counter(await connections.heard())
    life = ("add_schedule", "acquire_schedules", "release_schedules", "finish_jobs")
    assert {name: said.pop(name) for name in life} == dict.fromkeys(life, 1)
    assert said.keys() <= {"next_work"}
