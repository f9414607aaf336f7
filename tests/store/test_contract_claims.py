"""Claims on schedules: who may work on one, and what a release writes."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

import asyncpg
import pytest
from apscheduler import (
    ConflictPolicy,
    Event,
    Schedule,
)
from apscheduler.triggers.date import DateTrigger

from duetime.options import Overlap, TaskOptions
from duetime.settings import DatabaseUrl
from duetime.store import PostgresDataStore, postgres
from duetime.store.planning import plan

from .parts import (
    LEASE,
    a_job,
    a_schedule,
    a_store,
    add,
    ago,
    all_of,
    every,
    expire,
    fire,
    ids,
    result_of,
    told,
)

# -- schedules: claim and release ------------------------------------------------------------------------------------


async def test_due_schedules_are_claimed_earliest_first_within_the_limit(store: PostgresDataStore) -> None:
    await add(store, *(a_schedule(f"s{n}", DateTrigger(ago(10 - n))) for n in (2, 0, 1)))
    await add(store, a_schedule("future", DateTrigger(ago(-60))), a_schedule("paused", paused=True))
    assert ids(await store.acquire_schedules("one", LEASE, 2)) == ["s0", "s1"]
    assert ids(await store.acquire_schedules("two", LEASE, 9)) == ["s2"]


async def test_a_claim_keeps_other_schedulers_away_until_it_ends(
    store: PostgresDataStore, connection: asyncpg.Connection
) -> None:
    await add(store, a_schedule("s"))
    [claimed] = await store.acquire_schedules("one", LEASE, 9)
    assert claimed.acquired_by == "one"
    assert claimed.acquired_until is not None
    assert ago(-25) < claimed.acquired_until < ago(-35)
    assert await store.acquire_schedules("two", LEASE, 9) == []
    assert ids(await store.acquire_schedules("one", LEASE, 9)) == ["s"], "its own claims come back to a scheduler"
    await expire(connection, "schedules")
    [taken_over] = await store.acquire_schedules("two", LEASE, 9)
    assert taken_over.acquired_by == "two"


async def test_an_extended_claim_lasts_longer_and_only_its_holder_extends_it(
    store: PostgresDataStore, connection: asyncpg.Connection
) -> None:
    await add(store, a_schedule("s"), a_schedule("t"))
    await store.acquire_schedules("one", LEASE, 1)
    await expire(connection, "schedules")
    await store.extend_acquired_schedule_leases("two", {"s", "t"}, LEASE)
    await store.extend_acquired_schedule_leases("one", set(), LEASE)
    assert len(await store.acquire_schedules("three", LEASE, 9)) == 2
    await expire(connection, "schedules")
    await store.extend_acquired_schedule_leases("three", {"s"}, LEASE)
    assert ids(await store.acquire_schedules("four", LEASE, 9)) == ["t"]


async def test_a_release_moves_the_schedule_on_and_frees_it(store: PostgresDataStore, events: list[Event]) -> None:
    await add(store, a_schedule("s", every(60, ago(1))))
    await all_of(events)
    [claimed] = await store.acquire_schedules("one", LEASE, 9)
    await store.release_schedules("one", [result_of(claimed, ago(-60))])
    [released] = await store.get_schedules()
    assert (released.acquired_by, released.acquired_until) == (None, None)
    assert released.last_fire_time == claimed.next_fire_time
    assert released.next_fire_time is not None
    assert released.next_fire_time > ago()
    assert await store.get_jobs() == [], "who has made no job gets none"


async def test_a_finished_schedule_is_kept_until_the_clean_up(store: PostgresDataStore) -> None:
    await add(store, a_schedule("s"))
    await fire(store)
    [finished] = await store.get_schedules()
    assert finished.next_fire_time is None
    assert await store.acquire_schedules("one", LEASE, 9) == []


async def test_a_release_by_a_scheduler_that_does_not_hold_the_claim_changes_nothing(
    store: PostgresDataStore, connection: asyncpg.Connection
) -> None:
    await add(store, a_schedule("s", every(60, ago(1))))
    [claimed] = await store.acquire_schedules("one", LEASE, 9)
    before = await connection.fetchrow("select * from duetime.schedules")
    await store.add_job(a_job(schedule_id="s"))
    await store.release_schedules("two", [result_of(claimed)])
    assert await connection.fetchrow("select * from duetime.schedules") == before
    assert await connection.fetchval("select count(*) from duetime.jobs") == 0
    assert await connection.fetchval("select count(*) from duetime.fires") == 0


async def test_the_fires_of_a_loop_become_jobs_ledger_rows_and_events(
    store: PostgresDataStore, events: list[Event], connection: asyncpg.Connection
) -> None:
    await add(store, a_schedule("s", every(60, ago(90)), args=("x",), kwargs={"y": 1}))
    await all_of(events)
    [claimed] = await fire(store)
    added, updated = await told(events, "JobAdded", "ScheduleUpdated")
    [job] = await store.get_jobs()
    assert (job.task_id, job.schedule_id, job.args, job.kwargs) == ("work", "s", ("x",), {"y": 1})
    assert job.scheduled_fire_time == claimed.next_fire_time + timedelta(seconds=60)  # type: ignore[operator]
    assert added.job_id == job.id
    rows = await connection.fetch("select * from duetime.fires order by fire_time")
    assert [(row["state"], row["job_id"]) for row in rows] == [("coalesced", None), ("pending", job.id)]
    assert updated.next_fire_time == rows[1]["fire_time"] + timedelta(seconds=60)


async def test_a_fire_that_the_ledger_has_already_makes_no_second_job(
    store: PostgresDataStore, connection: asyncpg.Connection
) -> None:
    schedule = a_schedule("s")
    await add(store, schedule)
    await fire(store)
    await store.add_schedule(a_schedule("s", DateTrigger(schedule.next_fire_time)), ConflictPolicy.replace)  # type: ignore[arg-type]
    await fire(store)
    assert len(await store.get_jobs()) == 1
    assert await connection.fetchval("select count(*) from duetime.fires") == 1


async def test_a_fire_is_skipped_while_the_last_job_of_its_schedule_goes_on(
    store: PostgresDataStore, connection: asyncpg.Connection
) -> None:
    await add(store, a_schedule("s", every(60, ago(61)), metadata=TaskOptions(overlap=Overlap.skip).to_metadata()))
    await fire(store)
    await connection.execute("update duetime.schedules set next_fire_time = now()")
    await fire(store)
    rows = await connection.fetch("select * from duetime.fires order by created_at, fire_time")
    assert [row["state"] for row in rows] == ["coalesced", "pending", "skipped"]
    assert rows[-1]["reason"] == "the job of an earlier fire had not ended (overlap=skip)"
    assert len(await store.get_jobs()) == 1


async def test_a_fire_of_a_stock_schedule_that_overlaps_makes_its_job_all_the_same(
    store: PostgresDataStore, connection: asyncpg.Connection
) -> None:
    """Its metadata say nothing about overlap."""
    await add(store, a_schedule("s", every(60, ago(1)), metadata={}))
    await fire(store)
    await connection.execute("update duetime.schedules set next_fire_time = now()")
    await fire(store)
    assert {row["state"] for row in await connection.fetch("select state from duetime.fires")} == {"pending"}
    assert len(await store.get_jobs()) == 2


@pytest.mark.parametrize(
    "damage",
    ["args = 'no arguments'", "args = '5'", "trigger = ''", """metadata = '{"a": [null]}'"""],
)
async def test_an_unreadable_schedule_is_set_aside_and_the_others_are_claimed(
    store: PostgresDataStore, events: list[Event], connection: asyncpg.Connection, damage: str
) -> None:
    await add(store, a_schedule("bad"), a_schedule("good"))
    await connection.execute(f"update duetime.schedules set {damage} where id = 'bad'")  # noqa: S608 - a constant
    await all_of(events)
    assert ids(await store.acquire_schedules("one", LEASE, 9)) == ["good"]
    await told(events, "ScheduleDeserializationFailed")
    row = await connection.fetchrow("select * from duetime.schedules where id = 'bad'")
    assert row["broken_reason"].startswith("it cannot be read: ")
    assert (row["acquired_by"], row["acquired_until"]) == (None, None)
    assert await store.acquire_schedules("two", LEASE, 9) == []


async def test_a_schedule_that_cannot_be_planned_is_set_aside_and_the_others_are_claimed(
    store: PostgresDataStore, connection: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    def overflows(schedule: Schedule, *args: Any, **options: Any) -> Any:
        if schedule.id == "bad":
            raise OverflowError("date value out of range")
        return plan(schedule, *args, **options)

    monkeypatch.setattr(postgres, "plan", overflows)
    await add(store, a_schedule("bad"), a_schedule("good"))
    assert ids(await store.acquire_schedules("one", LEASE, 9)) == ["good"]
    reason = await connection.fetchval("select broken_reason from duetime.schedules where id = 'bad'")
    assert reason.startswith("its fires cannot be worked out: OverflowError")


async def test_the_next_run_time_is_the_earliest_of_what_can_be_claimed(
    store: PostgresDataStore, connection: asyncpg.Connection
) -> None:
    assert await store.get_next_schedule_run_time() is None
    soon, later = ago(-60), ago(-120)
    await add(store, a_schedule("later", DateTrigger(later)))
    assert await store.get_next_schedule_run_time() == later
    await add(store, a_schedule("soon", DateTrigger(soon)), a_schedule("paused", paused=True))
    assert await store.get_next_schedule_run_time() == soon
    await add(store, a_schedule("due"))
    [claimed] = await store.acquire_schedules("one", timedelta(seconds=5), 9)
    assert await store.get_next_schedule_run_time() == claimed.acquired_until, "when a claim ends it is due again"
    await connection.execute("update duetime.schedules set broken_reason = 'x' where id = 'soon'")
    await store.release_schedules("one", [result_of(claimed)])
    assert await store.get_next_schedule_run_time() == later


async def test_the_databases_clock_decides_what_is_due(
    store: PostgresDataStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    await add(store, a_schedule("s", every(60, ago(1))))
    [claimed] = await store.acquire_schedules("one", LEASE, 9)
    # What a host an hour ahead would call due is not.
    await store.release_schedules("one", [result_of(claimed, ago(-1800))])
    assert await store.acquire_schedules("one", LEASE, 9) == []


async def test_the_clock_is_learnt_when_the_claim_answers_not_after_it_is_planned(
    store: PostgresDataStore, connection: asyncpg.Connection
) -> None:
    far_behind = every(0.0005, ago(60))  # 120,000 fires to count, in a thread
    await add(store, a_schedule("a", far_behind), a_schedule("b"))
    loop = asyncio.get_running_loop()
    begun = loop.time()
    await store.acquire_schedules("one", LEASE, 9)
    taken = timedelta(seconds=loop.time() - begun)
    assert store.database.clock.host_offset < taken / 2, "the host and the database share a clock here"


# -- schedules: edited while they are held ---------------------------------------------------------------------------


async def replaced(store: PostgresDataStore) -> None:
    await store.add_schedule(a_schedule("s", every(60, ago(-60)), args=("new",)), ConflictPolicy.replace)


async def paused(store: PostgresDataStore) -> None:
    await store.pause_schedule("s")


async def removed(store: PostgresDataStore) -> None:
    await store.remove_schedules(["s"])


async def removed_and_added(store: PostgresDataStore) -> None:
    await store.remove_schedules(["s"])
    await replaced(store)


async def resumed(store: PostgresDataStore) -> None:
    await store.resume_schedule("s", resume_from=ago(-10))


Edit = Callable[[PostgresDataStore], Awaitable[None]]


async def test_a_release_of_a_former_definition_changes_nothing_under_a_later_claim_of_the_same_scheduler(
    database: DatabaseUrl, store: PostgresDataStore, connection: asyncpg.Connection
) -> None:
    await add(store, a_schedule("s", every(60, ago(1)), args=("old",)))
    [claimed] = await store.acquire_schedules("one", LEASE, 9)
    await store.add_job(a_job(schedule_id="s"))
    async with a_store(database) as other:
        await other.add_schedule(a_schedule("s", every(60, ago(2)), args=("new",)), ConflictPolicy.replace)
        assert ids(await other.acquire_schedules("one", LEASE, 9)) == ["s"]
        await store.release_schedules("one", [result_of(claimed)])
        assert await connection.fetchval("select count(*) from duetime.fires") == 0
        assert await connection.fetchval("select acquired_by from duetime.schedules") == "one", "the later claim stands"


@pytest.mark.parametrize("edit", [replaced, paused, removed, removed_and_added, resumed])
@pytest.mark.parametrize("elsewhere", [False, True], ids=["on this node", "on another node"])
async def test_what_was_edited_between_claim_and_release_does_not_fire_as_it_was(
    database: DatabaseUrl, store: PostgresDataStore, connection: asyncpg.Connection, edit: Edit, elsewhere: bool
) -> None:
    await add(store, a_schedule("s", every(60, ago(1)), args=("old",)))
    [claimed] = await store.acquire_schedules("one", LEASE, 9)
    await store.add_job(a_job(schedule_id="s"))
    if elsewhere:
        async with a_store(database) as other:
            await edit(other)
    else:
        await edit(store)
    edited = await connection.fetch("select * from duetime.schedules")
    await store.release_schedules("one", [result_of(claimed)])
    assert await connection.fetch("select * from duetime.schedules") == edited, "the edit stands"
    assert await connection.fetchval("select count(*) from duetime.jobs") == 0
    assert await connection.fetchval("select count(*) from duetime.fires") == 0
