"""The store keeps the contract of ``apscheduler.abc.DataStore``: what it is, its tasks and its life."""

from __future__ import annotations

from datetime import timedelta

import asyncpg
import pytest
from apscheduler import (
    ConflictPolicy,
    Event,
    JobOutcome,
    JobResult,
    TaskLookupError,
)
from apscheduler.abc import DataStore
from apscheduler.datastores.sqlalchemy import SQLAlchemyDataStore

from duetime.errors import (
    DuetimeError,
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
    expire,
    ids,
    started,
    told,
)


def test_it_is_the_stock_store_with_the_stock_arguments() -> None:
    assert issubclass(PostgresDataStore, SQLAlchemyDataStore)
    assert issubclass(PostgresDataStore, DataStore)


# -- tasks -----------------------------------------------------------------------------------------------------------


async def test_a_task_is_added_replaced_and_removed_with_an_event_each(
    store: PostgresDataStore, events: list[Event]
) -> None:
    task = a_task("t", max_running_jobs=3, misfire_grace_time=timedelta(seconds=7), metadata={"a": [1, {"b": "c"}]})
    await store.add_task(task)
    assert await store.get_task("t") == task
    await store.add_task(a_task("t", job_executor="threadpool"))
    assert (await store.get_task("t")).job_executor == "threadpool"
    await store.remove_task("t")
    with pytest.raises(TaskLookupError):
        await store.get_task("t")
    told_events = await told(events, "TaskAdded", "TaskUpdated", "TaskRemoved")
    assert {event.task_id for event in told_events} == {"t"}


async def test_another_store_reads_the_task_as_it_was_added(store: PostgresDataStore, database: DatabaseUrl) -> None:
    task = a_task("t", max_running_jobs=3, misfire_grace_time=timedelta(seconds=7), metadata={"a": [1, {"b": "c"}]})
    await store.add_task(task)
    async with a_store(database) as other:
        found = await other.get_task("t")
    for attribute in ("id", "func", "job_executor", "max_running_jobs", "misfire_grace_time", "metadata"):
        assert getattr(found, attribute) == getattr(task, attribute)


async def test_tasks_are_listed_by_id_with_the_number_of_their_running_jobs(
    store: PostgresDataStore, connection: asyncpg.Connection
) -> None:
    for name in ("b", "a"):
        await store.add_task(a_task(name))
    await store.add_job(a_job("b"))
    await store.add_job(a_job("b"))
    [_, second] = await store.acquire_jobs("one", LEASE)
    assert [(task.id, task.running_jobs) for task in await store.get_tasks()] == [("a", 0), ("b", 2), ("work", 0)]
    await store.release_job("one", second, JobResult.from_job(second, JobOutcome.success))
    assert [task.running_jobs for task in await store.get_tasks()] == [0, 1, 0]
    await expire(connection, "jobs")
    assert [task.running_jobs for task in await store.get_tasks()] == [0, 0, 0], "a vanished node runs nothing"


async def test_removing_a_task_that_is_not_stored_raises(store: PostgresDataStore, events: list[Event]) -> None:
    with pytest.raises(TaskLookupError):
        await store.remove_task("nothing")
    assert not events


async def test_replacing_a_task_does_not_touch_the_count_of_its_running_jobs(store: PostgresDataStore) -> None:
    await store.add_job(a_job())
    await store.acquire_jobs("one", LEASE)
    await store.add_task(a_task(max_running_jobs=5))
    assert [task.running_jobs for task in await store.get_tasks()] == [1]


# -- the life of a store ---------------------------------------------------------------------------------------------


async def test_a_store_can_be_started_again(database: DatabaseUrl) -> None:
    store = PostgresDataStore(database.text)
    for number in range(2):
        async with started(store):
            await store.add_schedule(a_schedule(f"s{number}"), ConflictPolicy.exception)
    async with started(store):
        assert ids(await store.get_schedules()) == ["s0", "s1"]


async def test_start_from_scratch_erases_once(database: DatabaseUrl) -> None:
    async with a_store(database) as store:
        await add(store, a_schedule("old"))
    store = PostgresDataStore(database.text, start_from_scratch=True)
    async with started(store):
        assert await store.get_schedules() == []
        await add(store, a_schedule("new"))
    async with started(store):
        assert ids(await store.get_schedules()) == ["new"]


async def test_every_error_of_a_user_call_is_typed(store: PostgresDataStore) -> None:
    for call in (
        store.add_schedule(a_schedule("x" * 501), ConflictPolicy.replace),
        store.pause_schedule("nothing"),
        store.add_job(a_job(args=(object(),))),
    ):
        with pytest.raises(DuetimeError) as caught:
            await call
        assert caught.value.code != DuetimeError.code
