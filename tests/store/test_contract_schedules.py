"""Schedules in the store: added, read, paused, resumed and removed as ``apscheduler.abc.DataStore`` says."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

import asyncpg
import pytest
from apscheduler import (
    ConflictingIdError,
    ConflictPolicy,
    Event,
    SerializationError,
)

from duetime.errors import (
    ArgumentsTooLarge,
    InvalidScheduleId,
    InvalidTrigger,
    ScheduleExists,
    ScheduleNotFound,
    UnsupportedValue,
)
from duetime.settings import DatabaseUrl
from duetime.store import PostgresDataStore

from .parts import (
    LEASE,
    a_job,
    a_schedule,
    a_store,
    a_task,
    add,
    ago,
    all_of,
    every,
    ids,
    told,
)

# -- schedules: add, read, remove ------------------------------------------------------------------------------------


async def test_a_schedule_comes_back_as_it_was_added(store: PostgresDataStore, events: list[Event]) -> None:
    given = a_schedule(
        "s",
        every(60),
        args=(1, "two", b"three"),
        kwargs={"at": datetime(2026, 1, 1, tzinfo=UTC), "nested": {"set": {1, 2}}},
        misfire_grace_time=timedelta(seconds=5),
        max_jitter=timedelta(microseconds=3),
        job_result_expiration_time=timedelta(days=2),
        metadata={"duetime.tags": ["x"], "mine": 1},
        paused=True,
    )
    await add(store, given)
    [found] = await store.get_schedules({"s"})
    for attribute in (
        "id", "task_id", "args", "kwargs", "paused", "coalesce", "misfire_grace_time", "max_jitter", "job_executor",
        "job_result_expiration_time", "metadata", "last_fire_time", "next_fire_time", "acquired_by", "acquired_until",
    ):  # fmt: skip
        assert getattr(found, attribute) == getattr(given, attribute), attribute
    assert found.trigger.next() == given.trigger.next(), "the trigger goes on where it stood"
    [event] = await told(events, "ScheduleAdded")
    assert (event.schedule_id, event.task_id) == ("s", "work")
    assert event.next_fire_time == given.next_fire_time


async def test_a_taken_id_is_refused_kept_or_replaced_as_the_policy_says(
    store: PostgresDataStore, events: list[Event]
) -> None:
    await add(store, a_schedule("s", args=(1,)))
    with pytest.raises(ConflictingIdError) as caught:
        await store.add_schedule(a_schedule("s", args=(2,)), ConflictPolicy.exception)
    assert isinstance(caught.value, ScheduleExists)
    assert "'s'" in str(caught.value)
    await store.add_schedule(a_schedule("s", args=(3,)), ConflictPolicy.do_nothing)
    [kept] = await store.get_schedules({"s"})
    assert kept.args == (1,)
    await store.add_schedule(a_schedule("s", args=(4,)), ConflictPolicy.replace)
    [replaced] = await store.get_schedules({"s"})
    assert replaced.args == (4,)
    await told(events, "ScheduleAdded", "ScheduleUpdated")


async def test_replace_adds_a_schedule_that_is_not_there(store: PostgresDataStore, events: list[Event]) -> None:
    await store.add_schedule(a_schedule("s"), ConflictPolicy.replace)
    assert ids(await store.get_schedules()) == ["s"]
    await told(events, "ScheduleAdded")


async def test_concurrent_adds_of_one_id_store_it_once(store: PostgresDataStore) -> None:
    outcomes = await asyncio.gather(
        *(store.add_schedule(a_schedule("s", args=(n,)), ConflictPolicy.exception) for n in range(20)),
        return_exceptions=True,
    )
    assert sum(outcome is None for outcome in outcomes) == 1
    assert sum(isinstance(outcome, ScheduleExists) for outcome in outcomes) == 19
    [stored] = await store.get_schedules()
    assert outcomes[stored.args[0]] is None, "the caller that was told so has stored it"


async def test_the_last_of_concurrent_replacements_is_what_is_stored(store: PostgresDataStore) -> None:
    await asyncio.gather(*(store.add_schedule(a_schedule("s", args=(n,)), ConflictPolicy.replace) for n in range(20)))
    [stored] = await store.get_schedules()
    assert stored.args == (19,)


async def test_policies_and_good_and_bad_schedules_mix_in_one_batch(store: PostgresDataStore) -> None:
    await add(store, a_schedule("taken"), a_schedule("old"))
    unsuitable = a_schedule("unsuitable", metadata={"text": "\x00"})
    outcomes = await asyncio.gather(
        store.add_schedule(a_schedule("first"), ConflictPolicy.exception),
        store.add_schedule(a_schedule("taken", args=(1,)), ConflictPolicy.exception),
        store.add_schedule(a_schedule("taken", args=(2,)), ConflictPolicy.do_nothing),
        store.add_schedule(unsuitable, ConflictPolicy.exception),
        store.add_schedule(a_schedule("old", args=(3,)), ConflictPolicy.replace),
        store.add_schedule(a_schedule("last"), ConflictPolicy.replace),
        return_exceptions=True,
    )
    assert [type(outcome) for outcome in outcomes] == [
        type(None), ScheduleExists, type(None), UnsupportedValue, type(None), type(None),
    ]  # fmt: skip
    stored = {schedule.id: schedule.args for schedule in await store.get_schedules()}
    assert stored == {"first": (), "taken": (), "old": (3,), "last": ()}


async def test_schedules_are_removed_with_an_event_each_and_unknown_ids_are_passed_over(
    store: PostgresDataStore, events: list[Event]
) -> None:
    await add(store, a_schedule("a"), a_schedule("b"), a_schedule("c"))
    await all_of(events)
    await store.remove_schedules(["a", "c", "nothing"])
    assert ids(await store.get_schedules()) == ["b"]
    removed = await told(events, "ScheduleRemoved", "ScheduleRemoved")
    assert {event.schedule_id for event in removed} == {"a", "c"}
    assert not any(event.finished for event in removed)
    await store.remove_schedules([])
    await store.remove_schedules(["nothing"])
    assert await all_of(events) == []


async def test_schedules_are_read_by_id_or_all_or_none(store: PostgresDataStore) -> None:
    await add(store, a_schedule("a"), a_schedule("b"))
    assert ids(await store.get_schedules({"b", "nothing"})) == ["b"]
    assert ids(await store.get_schedules()) == ["a", "b"]
    assert await store.get_schedules(set()) == []


async def test_a_schedule_that_cannot_be_read_is_left_out_with_an_event(
    store: PostgresDataStore, events: list[Event], connection: asyncpg.Connection
) -> None:
    await add(store, a_schedule("bad"), a_schedule("good"))
    await connection.execute("update duetime.schedules set trigger = 'no trigger' where id = 'bad'")
    await all_of(events)
    assert ids(await store.get_schedules()) == ["good"]
    [event] = await told(events, "ScheduleDeserializationFailed")
    assert event.schedule_id == "bad"


@pytest.mark.parametrize("schedule_id", ["x" * 501, "a\nb", "a\x00b", "\ud800"])
async def test_an_id_that_cannot_be_stored_is_refused(store: PostgresDataStore, schedule_id: str) -> None:
    with pytest.raises(InvalidScheduleId):
        await store.add_schedule(a_schedule(schedule_id), ConflictPolicy.replace)
    assert await store.get_schedules() == []


async def test_the_longest_id_is_stored(store: PostgresDataStore) -> None:
    longest = "ü" * 500
    await add(store, a_schedule(longest))
    assert ids(await store.get_schedules({longest})) == [longest]


async def test_arguments_over_the_limit_are_refused(database: DatabaseUrl) -> None:
    async with a_store(database, max_arguments_bytes=1000) as store:
        await store.add_task(a_task())
        with pytest.raises(ArgumentsTooLarge, match="at most 1000 bytes"):
            await store.add_schedule(a_schedule("s", args=("x" * 1000,)), ConflictPolicy.replace)
        with pytest.raises(ArgumentsTooLarge):
            await store.add_job(a_job(kwargs={"text": "x" * 1000}))
        await store.add_schedule(a_schedule("s", args=("x" * 900,)), ConflictPolicy.replace)


async def test_an_argument_without_a_stored_form_is_refused_and_nothing_is_stored(store: PostgresDataStore) -> None:
    with pytest.raises(SerializationError):
        await add(store, a_schedule("s", args=(object(),)))
    with pytest.raises(SerializationError):
        await store.add_job(a_job(args=(object(),)))
    assert await store.get_schedules() == []
    assert await store.get_jobs() == []


@pytest.mark.parametrize("option", ["misfire_grace_time", "max_jitter", "job_result_expiration_time"])
async def test_a_duration_that_leads_out_of_the_calendar_is_refused(store: PostgresDataStore, option: str) -> None:
    with pytest.raises(UnsupportedValue, match=option):
        await add(store, a_schedule("s", None, **{option: timedelta.max}))
    await add(store, a_schedule("s", None, **{option: timedelta(days=36_500)}))


# -- pause and resume ------------------------------------------------------------------------------------------------


async def test_a_paused_schedule_keeps_everything_else(store: PostgresDataStore, events: list[Event]) -> None:
    await add(store, a_schedule("s", every(60, ago(1)), args=(1,)))
    [before] = await store.get_schedules()
    await all_of(events)
    await store.pause_schedule("s")
    [after] = await store.get_schedules()
    assert after.paused
    assert (after.args, after.next_fire_time) == (before.args, before.next_fire_time)
    [event] = await told(events, "ScheduleUpdated")
    assert event.task_id == "work"
    assert await store.acquire_schedules("one", LEASE, 9) == []


async def test_a_resumed_schedule_makes_up_for_what_it_missed_or_passes_it_over(store: PostgresDataStore) -> None:
    first = ago(150)
    for name in ("made up", "passed over"):
        await add(store, a_schedule(name, every(60, first), paused=True))
    await store.resume_schedule("made up")
    await store.resume_schedule("passed over", resume_from=ago())
    schedules = {schedule.id: schedule for schedule in await store.get_schedules()}
    assert schedules["made up"].next_fire_time == first
    assert schedules["passed over"].next_fire_time == first + timedelta(seconds=180)
    assert ids(await store.acquire_schedules("one", LEASE, 9)) == ["made up"]


async def test_a_broken_schedule_is_mended_by_a_resume(
    store: PostgresDataStore, connection: asyncpg.Connection
) -> None:
    await add(store, a_schedule("s"))
    await connection.execute("update duetime.schedules set broken_reason = 'x'")
    assert await store.acquire_schedules("one", LEASE, 9) == []
    await store.resume_schedule("s")
    assert ids(await store.acquire_schedules("one", LEASE, 9)) == ["s"]


@pytest.mark.parametrize("verb", ["pause_schedule", "resume_schedule", "run_schedule"])
@pytest.mark.parametrize("schedule_id", ["nothing", "\x00", "\ud800", ""])
async def test_what_is_not_stored_cannot_be_paused_resumed_or_run(
    store: PostgresDataStore, verb: str, schedule_id: str
) -> None:
    with pytest.raises(ScheduleNotFound):
        await getattr(store, verb)(schedule_id)


@pytest.mark.parametrize("schedule_id", ["\x00", "\ud800"])
async def test_an_id_that_nothing_can_have_is_neither_found_nor_removed(
    store: PostgresDataStore, schedule_id: str
) -> None:
    await add(store, a_schedule("s"))
    await store.remove_schedules([schedule_id, "s"])
    assert await store.get_schedules({schedule_id}) == []
    assert await store.get_schedules() == []


async def test_a_trigger_that_stands_still_cannot_hold_a_resume_for_ever(
    store: PostgresDataStore, connection: asyncpg.Connection
) -> None:
    await add(store, a_schedule("s", every(60, ago(3600)), paused=True))
    await connection.execute(
        "update duetime.schedules set trigger = $1, next_fire_time = now() - interval '10 minutes'",
        store.serializer.serialize(every(60, ago(86400))),
    )
    with pytest.raises(InvalidTrigger, match="its trigger yielded"):
        await store.resume_schedule("s", resume_from=ago())
    [schedule] = await store.get_schedules()
    assert schedule.paused


async def test_a_schedule_is_run_by_request_beside_its_fire_times(
    store: PostgresDataStore, events: list[Event], connection: asyncpg.Connection
) -> None:
    await add(store, a_schedule("s", every(60, ago(-60)), args=("x",)))
    [before] = await store.get_schedules()
    await all_of(events)
    job_id = await store.run_schedule("s")
    [job] = await store.acquire_jobs("one", LEASE)
    assert (job.id, job.schedule_id, job.args) == (job_id, "s", ("x",))
    await told(events, "JobAdded", "JobAcquired")
    row = await connection.fetchrow("select * from duetime.fires")
    assert (row["state"], row["reason"], row["job_id"]) == ("pending", "run by request", job_id)
    [after] = await store.get_schedules()
    assert after.next_fire_time == before.next_fire_time
