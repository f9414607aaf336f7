"""Scheduling inside the caller's own transaction: it exists if, and only if, the caller commits (promise 1)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from datetime import timedelta
from typing import Any

import asyncpg
import pytest
from apscheduler import ConflictPolicy
from apscheduler.triggers.date import DateTrigger
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

from duetime.errors import InvalidSettings, ScheduleExists, ScheduleNotFound, StoreUnavailable
from duetime.scheduler import DuetimeScheduler
from duetime.settings import DatabaseUrl
from duetime.store import scheduler_transaction
from duetime.store.transactions import current_transaction

from ..waiting import eventually
from .parts import ago, engine_of, node, running, tasks

done: list[str] = []


async def work(name: str = "work") -> None:
    done.append(name)


@pytest.fixture(autouse=True)
def nothing_done() -> None:
    done.clear()


@pytest.fixture
async def engine(database: DatabaseUrl) -> AsyncIterator[AsyncEngine]:
    """The application's engine."""
    async with engine_of(database) as engine:
        yield engine


class Rollback(Exception):
    """Ends a transaction without its commit."""


@asynccontextmanager
async def a_transaction(kind: str, engine: AsyncEngine, database: DatabaseUrl) -> AsyncIterator[Any]:
    """Begin a transaction of the application, in one of the three forms; what is raised inside rolls it back."""
    if kind == "session":
        async with AsyncSession(engine) as session, session.begin():
            yield session
    elif kind == "connection":
        async with engine.begin() as connection:
            yield connection
    else:
        driver = await asyncpg.connect(**database.asyncpg_arguments())
        try:
            async with driver.transaction():
                yield driver
        finally:
            await driver.close()


@asynccontextmanager
async def rolled_back(kind: str, engine: AsyncEngine, database: DatabaseUrl) -> AsyncIterator[Any]:
    """The same, with a rollback at the end of the block."""
    try:
        async with a_transaction(kind, engine, database) as mine:
            yield mine
            raise Rollback
    except Rollback:
        pass


@pytest.fixture
async def scheduler(database: DatabaseUrl) -> DuetimeScheduler:
    """A scheduler that is not started: it stores, and nothing runs."""
    return node(database, tasks(work))


KINDS = ["session", "connection", "asyncpg"]


async def count(connection: asyncpg.Connection, table: str) -> int:
    found: int = await connection.fetchval(f"select count(*) from duetime.{table}")  # noqa: S608 - a constant
    return found


@pytest.mark.parametrize("kind", KINDS)
async def test_what_was_added_exists_when_the_caller_commits_and_not_before(
    scheduler: DuetimeScheduler, engine: AsyncEngine, database: DatabaseUrl, connection: asyncpg.Connection, kind: str
) -> None:
    async with scheduler:
        async with a_transaction(kind, engine, database) as mine:
            async with scheduler_transaction(mine):
                await scheduler.add_schedule("work", DateTrigger(ago(-3600)), id="s", args=["x"])
                await scheduler.add_job("work", args=["y"])
            assert await count(connection, "schedules") == 0
            assert await count(connection, "jobs") == 0
        assert await count(connection, "schedules") == 1
        assert await count(connection, "jobs") == 1
        [stored] = await scheduler.get_schedules()
        assert (stored.id, stored.args) == ("s", ("x",))


@pytest.mark.parametrize("kind", KINDS)
async def test_nothing_is_left_of_what_was_done_when_the_caller_rolls_back(
    scheduler: DuetimeScheduler, engine: AsyncEngine, database: DatabaseUrl, connection: asyncpg.Connection, kind: str
) -> None:
    async with scheduler:
        await scheduler.add_schedule("work", DateTrigger(ago(-3600)), id="kept")
        await scheduler.add_schedule("work", DateTrigger(ago(-3600)), id="paused", paused=True)
        async with rolled_back(kind, engine, database) as mine, scheduler_transaction(mine):
            await scheduler.add_schedule("work", DateTrigger(ago(-3600)), id="new")
            await scheduler.add_job("work")
            await scheduler.remove_schedule("kept")
            await scheduler.unpause_schedule("paused")
        assert {schedule.id: schedule.paused for schedule in await scheduler.get_schedules()} == {
            "kept": False,
            "paused": True,
        }
        assert await count(connection, "jobs") == 0


@pytest.mark.parametrize("kind", KINDS)
async def test_removing_pausing_and_resuming_take_part_as_well(
    scheduler: DuetimeScheduler, engine: AsyncEngine, database: DatabaseUrl, connection: asyncpg.Connection, kind: str
) -> None:
    async with scheduler:
        for name, is_paused in (("removed", False), ("paused", False), ("resumed", True)):
            await scheduler.add_schedule("work", DateTrigger(ago(-3600)), id=name, paused=is_paused)
        async with a_transaction(kind, engine, database) as mine:
            async with scheduler_transaction(mine):
                await scheduler.remove_schedule("removed")
                await scheduler.pause_schedule("paused")
                await scheduler.unpause_schedule("resumed")
                with pytest.raises(ScheduleNotFound):
                    await scheduler.pause_schedule("removed")
            assert len(await scheduler.get_schedules()) == 3
        states = {schedule.id: schedule.paused for schedule in await scheduler.get_schedules()}
        assert states == {"paused": True, "resumed": False}


@pytest.mark.parametrize("kind", KINDS)
async def test_the_callers_own_changes_and_the_schedule_share_one_commit(
    scheduler: DuetimeScheduler, engine: AsyncEngine, database: DatabaseUrl, connection: asyncpg.Connection, kind: str
) -> None:
    await connection.execute("create table orders (id int primary key)")
    insert = "insert into orders values (1)"
    async with scheduler:
        for ending in (rolled_back, a_transaction):
            async with ending(kind, engine, database) as mine:
                await (mine.execute(insert) if kind == "asyncpg" else mine.execute(text(insert)))
                async with scheduler_transaction(mine):
                    await scheduler.add_schedule("work", DateTrigger(ago(-3600)), id="s")
            stored = await connection.fetchval("select count(*) from orders"), await count(connection, "schedules")
            assert stored == ((0, 0) if ending is rolled_back else (1, 1))


@pytest.mark.parametrize("kind", KINDS)
async def test_several_calls_share_one_transaction(
    scheduler: DuetimeScheduler, engine: AsyncEngine, database: DatabaseUrl, connection: asyncpg.Connection, kind: str
) -> None:
    async with scheduler, a_transaction(kind, engine, database) as mine, scheduler_transaction(mine):
        for number in range(3):
            await scheduler.add_schedule("work", DateTrigger(ago(-3600)), id=f"s{number}")
    transactions = await connection.fetchval("select count(distinct xmin::text) from duetime.schedules")
    assert (await count(connection, "schedules"), transactions) == (3, 1)


@pytest.mark.parametrize("kind", KINDS)
async def test_a_taken_id_is_told_inside_the_transaction_which_stays_usable(
    scheduler: DuetimeScheduler, engine: AsyncEngine, database: DatabaseUrl, connection: asyncpg.Connection, kind: str
) -> None:
    async with scheduler:
        await scheduler.add_schedule("work", DateTrigger(ago(-3600)), id="taken")
        async with a_transaction(kind, engine, database) as mine, scheduler_transaction(mine):
            for name in ("taken", "mine"):
                add = scheduler.add_schedule(
                    "work", DateTrigger(ago(-3600)), id=name, conflict_policy=ConflictPolicy.exception
                )
                if name == "taken":
                    with pytest.raises(ScheduleExists):
                        await add
                else:
                    await add
            with pytest.raises(ScheduleExists):
                await scheduler.add_schedule(
                    "work", DateTrigger(ago(-3600)), id="mine", conflict_policy=ConflictPolicy.exception
                )
        assert {schedule.id for schedule in await scheduler.get_schedules()} == {"taken", "mine"}


@pytest.mark.parametrize("kind", KINDS)
async def test_the_commit_wakes_this_node_and_the_others(engine: AsyncEngine, database: DatabaseUrl, kind: str) -> None:
    """The poll would do so only after half a minute, and nothing is done before the commit."""
    registry = tasks(work)
    adding, working = node(database, registry, role="scheduler"), node(database, registry, role="worker")
    both = node(database, registry)
    async with running(adding, working, both), a_transaction(kind, engine, database) as mine:
        async with scheduler_transaction(mine):
            await adding.add_schedule("work", DateTrigger(ago(1)), args=["schedule"])
            await adding.add_job("work", args=["job"])
        await both.run_job("work", args=["neighbour"])
        assert done == ["neighbour"], "the others go on, and these wait for the commit"
        done.clear()
        await _commit(kind, mine)
        await eventually(lambda: sorted(done) == ["job", "schedule"])


async def _commit(kind: str, mine: Any) -> None:
    await (mine.execute("commit") if kind == "asyncpg" else mine.commit())
    if kind == "asyncpg":
        await mine.execute("begin")  # the block ends a transaction


async def test_a_tasks_definition_is_kept_whatever_becomes_of_the_transaction(
    scheduler: DuetimeScheduler, engine: AsyncEngine, database: DatabaseUrl, connection: asyncpg.Connection
) -> None:
    async with scheduler:
        async with rolled_back("session", engine, database) as mine, scheduler_transaction(mine):
            await scheduler.add_schedule("work", DateTrigger(ago(-3600)))
        assert await connection.fetchval("select id from duetime.tasks") == "work"
        await scheduler.add_schedule("work", DateTrigger(ago(-3600)))


async def test_a_transaction_is_of_its_own_task_only(
    scheduler: DuetimeScheduler, engine: AsyncEngine, database: DatabaseUrl, connection: asyncpg.Connection
) -> None:
    inside, outside = asyncio.Event(), asyncio.Event()

    async def roll_back() -> None:
        async with rolled_back("session", engine, database) as mine, scheduler_transaction(mine):
            await scheduler.add_schedule("work", DateTrigger(ago(-3600)), id="inside")
            inside.set()
            await outside.wait()

    async with scheduler:
        rolling_back = asyncio.create_task(roll_back())
        await inside.wait()
        await scheduler.add_schedule("work", DateTrigger(ago(-3600)), id="outside")
        outside.set()
        await rolling_back
        assert [schedule.id for schedule in await scheduler.get_schedules()] == ["outside"]


async def test_after_the_block_calls_have_transactions_of_their_own_again(
    scheduler: DuetimeScheduler, engine: AsyncEngine, database: DatabaseUrl, connection: asyncpg.Connection
) -> None:
    async with scheduler, a_transaction("session", engine, database) as mine:
        async with scheduler_transaction(mine):
            assert current_transaction.get() is not None
        assert current_transaction.get() is None
        await scheduler.add_schedule("work", DateTrigger(ago(-3600)))
        assert await count(connection, "schedules") == 1


async def test_the_schema_is_made_before_the_first_use_in_a_transaction(empty_database: DatabaseUrl) -> None:
    scheduler = node(empty_database, tasks(work))
    async with (
        engine_of(empty_database) as engine,
        a_transaction("session", engine, empty_database) as mine,
        scheduler_transaction(mine),
    ):
        await scheduler.add_schedule("work", DateTrigger(ago(-3600)), id="s")
    assert [schedule.id for schedule in await scheduler.get_schedules()] == ["s"]
    await scheduler.store.connections.close()


@pytest.mark.parametrize(
    "wrong",
    [None, object(), "postgresql://localhost/x", timedelta()],
    ids=["nothing", "an object", "an address", "a duration"],
)
async def test_what_is_no_transaction_is_refused_with_what_would_be_one(wrong: Any) -> None:
    with pytest.raises(InvalidSettings, match=r"AsyncSession or AsyncConnection or an asyncpg connection"):
        async with scheduler_transaction(wrong):
            pass


async def test_an_engine_and_a_synchronous_session_are_no_transaction(engine: AsyncEngine) -> None:
    for wrong in (engine, AsyncSession(engine).sync_session):
        with pytest.raises(InvalidSettings):
            async with scheduler_transaction(wrong):
                pass


async def test_an_asyncpg_connection_without_a_transaction_is_refused(connection: asyncpg.Connection) -> None:
    with pytest.raises(InvalidSettings, match=r"connection\.transaction\(\)"):
        async with scheduler_transaction(connection):
            pass


async def test_many_schedules_at_once_are_all_or_none_inside_a_transaction_too(
    scheduler: DuetimeScheduler, engine: AsyncEngine, database: DatabaseUrl, connection: asyncpg.Connection
) -> None:
    from .parts import a_schedule

    async with scheduler:
        await scheduler.configure_task("work")
        await scheduler.store.add_schedules([a_schedule("taken")])
        with pytest.raises(ScheduleExists):
            async with a_transaction("session", engine, database) as mine, scheduler_transaction(mine):
                await scheduler.store.add_schedules([a_schedule("a"), a_schedule("taken"), a_schedule("b")])
        assert await count(connection, "schedules") == 1
        async with a_transaction("session", engine, database) as mine, scheduler_transaction(mine):
            await scheduler.store.add_schedules([a_schedule("a"), a_schedule("b")])
        assert await count(connection, "schedules") == 3


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("call", ["add_schedule", "add_schedules", "add_job"])
async def test_a_call_whose_transaction_is_lost_fails_with_a_typed_error_and_stores_nothing(
    scheduler: DuetimeScheduler,
    engine: AsyncEngine,
    database: DatabaseUrl,
    connection: asyncpg.Connection,
    kind: str,
    call: str,
) -> None:
    calls: dict[str, Callable[[], Awaitable[Any]]] = {
        "add_schedule": lambda: scheduler.add_schedule("work", DateTrigger(ago(-3600))),
        "add_schedules": lambda: scheduler.add_schedules(
            [{"func_or_task_id": "work", "trigger": DateTrigger(ago(-3600))}] * 2
        ),
        "add_job": lambda: scheduler.add_job("work"),
    }
    refused = []
    async with scheduler:
        with suppress(asyncpg.InterfaceError):  # the application's own rollback on a connection that is gone
            async with rolled_back(kind, engine, database) as mine, scheduler_transaction(mine):
                await calls[call]()
                await connection.execute(
                    "select pg_terminate_backend(pid) from pg_stat_activity"
                    " where datname = current_database() and state = 'idle in transaction'"
                )
                with pytest.raises(StoreUnavailable, match="make the whole of it again"):
                    await calls[call]()
                refused.append(call)
        assert refused
        assert await count(connection, "schedules") == await count(connection, "jobs") == 0
        await calls[call]()


@pytest.mark.parametrize("kind", KINDS)
async def test_a_call_that_waits_in_its_transaction_ends_at_its_deadline(
    engine: AsyncEngine, database: DatabaseUrl, connection: asyncpg.Connection, kind: str
) -> None:
    scheduler = node(database, tasks(work), call_timeout=0.3, look_ahead=0.1)
    async with scheduler:
        await scheduler.add_schedule("work", DateTrigger(ago(-3600)), id="s")
        async with connection.transaction():
            await connection.execute("lock table duetime.schedules in exclusive mode")
            async with rolled_back(kind, engine, database) as mine, scheduler_transaction(mine):
                async with asyncio.timeout(10):
                    with pytest.raises(StoreUnavailable, match="no answer"):
                        await scheduler.remove_schedule("s")
        assert [schedule.id for schedule in await scheduler.get_schedules()] == ["s"]


async def test_a_transaction_that_has_lost_against_another_says_so_in_the_drivers_words(
    scheduler: DuetimeScheduler, engine: AsyncEngine, database: DatabaseUrl, connection: asyncpg.Connection
) -> None:
    async with scheduler:
        await scheduler.add_schedule("work", DateTrigger(ago(-3600)), id="s")
        async with rolled_back("asyncpg", engine, database) as mine, scheduler_transaction(mine):
            await mine.execute("set transaction isolation level repeatable read")
            await mine.execute("select 1 from duetime.schedules")
            await connection.execute("update duetime.schedules set updated_at = now()")
            with pytest.raises(asyncpg.SerializationError):
                await scheduler.pause_schedule("s")
