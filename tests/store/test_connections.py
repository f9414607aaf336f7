"""Where the store's connections come from, what their failures mean, and that it outlives them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from datetime import timedelta
from typing import Any

import asyncpg
import pytest
import sqlalchemy.exc
from apscheduler import ConflictPolicy
from sqlalchemy import create_engine, event
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.pool import NullPool

from duetime.errors import InvalidSettings, StoreUnavailable
from duetime.settings import DatabaseUrl
from duetime.store import PostgresDataStore
from duetime.store.connections import DirectConnections, is_transient
from duetime.store.engine import EngineConnections

from ..waiting import eventually
from .network import Network
from .parts import a_schedule, a_store, a_task, engine_of, ids, logger, silent_broker, started


def in_sqlalchemy(cause: BaseException | None, *, invalidated: bool = False) -> sqlalchemy.exc.DBAPIError:
    """Return an error as SQLAlchemy's asyncpg dialect wraps it."""
    adapted = Exception("adapted")
    adapted.__cause__ = cause
    return sqlalchemy.exc.DBAPIError("select 1", None, adapted, connection_invalidated=invalidated)


@pytest.mark.parametrize(
    "error",
    [
        ConnectionRefusedError(),
        ConnectionResetError(),
        OSError("no route to host"),
        TimeoutError(),
        asyncpg.ConnectionDoesNotExistError("connection was closed in the middle of operation"),
        asyncpg.CannotConnectNowError("the database system is starting up"),
        asyncpg.AdminShutdownError("terminating connection due to administrator command"),
        asyncpg.CrashShutdownError("terminating connection because of crash of another server process"),
        asyncpg.QueryCanceledError("canceling statement due to statement timeout"),
        asyncpg.TooManyConnectionsError("sorry, too many clients already"),
        asyncpg.DiskFullError("no space left on device"),
        asyncpg.SerializationError("could not serialize access"),
        asyncpg.DeadlockDetectedError("deadlock detected"),
        asyncpg.ReadOnlySQLTransactionError("cannot execute UPDATE in a read-only transaction"),
        asyncpg.LockNotAvailableError("canceling statement due to lock timeout"),
        asyncpg.InvalidCachedStatementError("cached statement plan is invalid"),
        asyncpg.InvalidPasswordError("password authentication failed"),
        asyncpg.InvalidCatalogNameError("database does not exist"),
        asyncpg.InterfaceError("connection is closed"),
        asyncpg.InterfaceError("cannot perform operation: another operation is in progress"),
        asyncpg.InternalClientError("unexpected message"),
        sqlalchemy.exc.TimeoutError("QueuePool limit of size 1 overflow 0 reached"),
        in_sqlalchemy(None, invalidated=True),
        in_sqlalchemy(asyncpg.ConnectionDoesNotExistError("closed")),
    ],
    ids=lambda error: type(error).__name__,
)
def test_what_may_pass_is_tried_again(error: BaseException) -> None:
    assert is_transient(error)


@pytest.mark.parametrize(
    "error",
    [
        asyncpg.UniqueViolationError("duplicate key"),
        asyncpg.DataError("division by zero"),
        asyncpg.UndefinedColumnError("column does not exist"),
        asyncpg.PostgresSyntaxError("syntax error"),
        asyncpg.InsufficientPrivilegeError("permission denied for schema duetime"),
        asyncpg.InterfaceError("the server expects 2 arguments for this query, 1 was passed"),
        asyncpg.ClientConfigurationError("invalid connect_timeout"),
        asyncpg.UnsupportedClientFeatureError("no"),
        in_sqlalchemy(asyncpg.UniqueViolationError("duplicate key")),
        ValueError("x"),
        KeyError("x"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_what_will_not_pass_is_not_tried_again(error: BaseException) -> None:
    assert not is_transient(error)


@pytest.mark.parametrize("value", ["\ud800", 5, object(), b"bytes"], ids=["surrogate", "number", "object", "bytes"])
async def test_a_value_that_the_driver_cannot_send_is_not_tried_again(
    connection: asyncpg.Connection, value: object
) -> None:
    with pytest.raises((asyncpg.DataError, asyncpg.InterfaceError)) as caught:
        await connection.fetch("select $1::text", value)
    assert not is_transient(caught.value)


# -- an engine of the application's ----------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [lambda: create_engine("sqlite://"), lambda: object(), lambda: None])
def test_what_is_neither_an_async_engine_nor_an_address_is_refused(make: Callable[[], Any]) -> None:
    with pytest.raises((InvalidSettings, TypeError)):
        PostgresDataStore(make())


async def test_an_engines_arguments_and_hooks_hold_for_the_store(
    database: DatabaseUrl, connection: asyncpg.Connection
) -> None:
    arguments = {"server_settings": {"application_name": "the shop"}}
    async with engine_of(database, connect_args=arguments) as engine:
        store = PostgresDataStore(engine)
        async with started(store):
            await store.add_task(a_task())
            query = "select application_name from pg_stat_activity where query like '%put_task%' and pid <> $1"
            names = await connection.fetch(query, connection.get_server_pid())
    assert [row["application_name"] for row in names] == ["the shop"]


@pytest.mark.parametrize(
    "options",
    [
        {"poolclass": NullPool},
        {"connect_args": {"statement_cache_size": 0, "prepared_statement_cache_size": 0}},
        {"pool_size": 1, "max_overflow": 0},
        {"pool_pre_ping": True},
        {"isolation_level": "AUTOCOMMIT"},
        {"isolation_level": "SERIALIZABLE"},
    ],
    ids=lambda options: ",".join(options),
)
async def test_the_store_works_on_an_engine_of_any_kind(database: DatabaseUrl, options: dict[str, Any]) -> None:
    async with engine_of(database, **options) as engine:
        store = PostgresDataStore(engine)
        async with started(store):
            await store.add_task(a_task())
            await asyncio.gather(
                *(store.add_schedule(a_schedule(f"s{n}"), ConflictPolicy.exception) for n in range(20))
            )
            assert len(await store.acquire_schedules("one", timedelta(seconds=30), 100)) == 20


async def test_an_exhausted_engine_fails_a_call_in_time_with_a_typed_error(database: DatabaseUrl) -> None:
    async with engine_of(database, pool_size=1, max_overflow=0) as engine:
        store = PostgresDataStore(engine, call_timeout=timedelta(seconds=0.3))
        async with started(store):
            async with engine.connect():
                with pytest.raises(StoreUnavailable, match=r"within 0\.3 s"):
                    await store.get_schedules()
            assert await store.get_schedules() == []


async def test_a_cancelled_call_leaves_the_applications_pool_whole(
    database: DatabaseUrl, connection: asyncpg.Connection
) -> None:
    async with engine_of(database, pool_size=1, max_overflow=0) as engine:
        store = PostgresDataStore(engine)
        async with started(store):
            await connection.execute("begin; lock table duetime.tasks in access exclusive mode")
            for _ in range(3):
                waiting = asyncio.create_task(store.get_tasks())
                await eventually(lambda: connection.fetchval("select count(*) > 0 from pg_locks where not granted"))
                waiting.cancel()
                await asyncio.wait([waiting])
            await connection.execute("rollback")
            async with engine.connect() as mine:
                assert (await mine.exec_driver_sql("select 1")).scalar() == 1
            assert await store.get_tasks() == []


async def test_the_server_is_not_asked_what_an_array_is_on_an_engines_connection_either(database: DatabaseUrl) -> None:
    question = "select $1::uuid[], $2::timestamptz[], $3::interval[], $4::bytea[]"
    queries: list[str] = []
    async with engine_of(database) as engine, EngineConnections(engine).acquire() as connection:
        connection.add_query_logger(lambda record: queries.append(record.query))
        assert tuple(await connection.fetchrow(question, [], [], [], [b"x"])) == ([], [], [], [b"x"])
        await eventually(lambda: len(queries) > 0)  # the driver tells in the next round of the event loop
    assert queries == [question]


@pytest.mark.parametrize("options", [{}, {"poolclass": NullPool}], ids=["pool", "no pool"])
async def test_a_call_that_is_cancelled_while_the_engine_connects_leaves_no_connection_open(
    database: DatabaseUrl, options: dict[str, Any]
) -> None:
    """SQLAlchemy, 2.0.44 for one, forgets a connection whose first questions to the server are cancelled."""
    for steps in range(8):
        opened: list[asyncpg.Connection] = []
        cancelling: list[asyncio.Task[None]] = []

        def note(
            connection: Any,
            _record: object,
            steps: int = steps,
            opened: list[asyncpg.Connection] = opened,
            cancelling: list[asyncio.Task[None]] = cancelling,
        ) -> None:
            calling = asyncio.current_task()
            assert calling is not None
            opened.append(connection.driver_connection)
            cancelling.append(asyncio.get_running_loop().create_task(cancel(calling, steps)))

        async with engine_of(database, **options) as engine:
            event.listen(engine.sync_engine, "connect", note, insert=True)
            calling = asyncio.create_task(use(EngineConnections(engine)))
            await asyncio.wait([calling])
            await asyncio.gather(*cancelling)
            assert calling.cancelled()
            assert [each.is_closed() for each in opened] == [True]


async def use(connections: EngineConnections) -> None:
    async with connections.acquire() as connection:
        await connection.fetch("select pg_sleep(60)")


async def cancel(task: asyncio.Task[Any], steps: int) -> None:
    for _ in range(steps):
        await asyncio.sleep(0)
    task.cancel()


async def test_what_a_store_is_writing_when_it_ends_is_written_first(
    database: DatabaseUrl, connection: asyncpg.Connection
) -> None:
    """Its caller is gone. Else the application's engine would be used after its end, and nobody would close that."""
    async with engine_of(database) as engine:
        store = PostgresDataStore(engine)
        async with started(store):
            await store.add_task(a_task())
            await connection.execute("begin; lock table duetime.schedules in exclusive mode")
            adding = asyncio.create_task(store.add_schedule(a_schedule("s"), ConflictPolicy.exception))
            await eventually(lambda: connection.fetchval("select count(*) > 0 from pg_locks where not granted"))
            adding.cancel()
            await asyncio.wait([adding])
            rollback = asyncio.create_task(connection.execute("rollback"))
        assert engine.pool.checkedout() == 0  # type: ignore[attr-defined]
        await rollback
    assert await connection.fetchval("select count(*) from duetime.schedules") == 1


async def test_an_exhausted_pool_of_the_application_does_not_stop_a_store_with_an_address(
    database: DatabaseUrl,
) -> None:
    async with engine_of(database, pool_size=1, max_overflow=0) as engine, engine.connect():
        async with a_store(database) as store:
            await store.add_schedule(a_schedule("s"), ConflictPolicy.exception)
            assert ids(await store.get_schedules()) == ["s"]
        assert exhausted(engine)


def exhausted(engine: AsyncEngine) -> bool:
    return bool(engine.pool.checkedout() == 1)  # type: ignore[attr-defined]


def test_an_engine_for_another_driver_is_refused() -> None:
    class Dialect:
        name, driver = "postgresql", "psycopg"

    class Engine:
        dialect = Dialect()

    with pytest.raises(InvalidSettings, match=r"postgresql\+asyncpg"):
        EngineConnections(Engine())  # type: ignore[arg-type]


# -- connections of our own ------------------------------------------------------------------------------------------


@pytest.fixture
async def direct(database: DatabaseUrl) -> AsyncIterator[DirectConnections]:
    connections = DirectConnections(database, size=3)
    yield connections
    await connections.close()


async def sessions(connection: asyncpg.Connection) -> int:
    """Return how many others are connected to the test's database."""
    found: int = await connection.fetchval(
        "select count(*) from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()"
        " and backend_type = 'client backend'"
    )
    return found


async def test_no_more_connections_are_open_than_the_size_says(
    direct: DirectConnections, connection: asyncpg.Connection
) -> None:
    most, lent = 0, 0

    async def use() -> None:
        nonlocal most, lent
        async with direct.acquire() as mine:
            lent += 1
            most = max(most, lent)
            await mine.fetch("select pg_sleep(0.1)")  # longer than connecting takes, with a password too
            lent -= 1

    await asyncio.gather(*(use() for _ in range(20)))
    assert most == 3
    assert await sessions(connection) == 3


async def test_a_quiet_store_uses_one_connection(direct: DirectConnections, connection: asyncpg.Connection) -> None:
    assert await sessions(connection) == 0, "none is opened before it is needed"
    pids = set()
    for _ in range(5):
        async with direct.acquire() as mine:
            pids.add(mine.get_server_pid())
    assert len(pids) == 1


async def test_a_connection_that_failed_is_not_lent_again(direct: DirectConnections) -> None:
    pids = []
    for error in (OSError("reset"), asyncio.CancelledError(), ValueError("the caller's own")):
        with pytest.raises(type(error)):  # noqa: PT012 - the block is what fails
            async with direct.acquire() as mine:
                pids.append(mine.get_server_pid())
                raise error
    async with direct.acquire() as mine:
        pids.append(mine.get_server_pid())
    assert len(set(pids)) == 3
    assert pids[2] == pids[3], "a failure of the caller's own is none of the connection"


async def test_nothing_is_left_open_when_they_are_closed(
    direct: DirectConnections, connection: asyncpg.Connection
) -> None:
    async with AsyncExitStack() as stack:
        for _ in range(3):
            await stack.enter_async_context(direct.acquire())
        await direct.close()
    await eventually(lambda: _nobody(connection))
    async with direct.acquire() as mine:
        assert await mine.fetchval("select 1") == 1


async def _nobody(connection: asyncpg.Connection) -> bool:
    return await sessions(connection) == 0


# -- a database that goes away ---------------------------------------------------------------------------------------


async def test_a_call_survives_the_end_of_its_connection(database: DatabaseUrl, connection: asyncpg.Connection) -> None:
    async with a_store(database) as store:
        await store.add_task(a_task())
        for number in range(3):
            await connection.execute(
                "select pg_terminate_backend(pid) from pg_stat_activity"
                " where datname = current_database() and pid <> pg_backend_pid()"
            )
            await store.add_schedule(a_schedule(f"s{number}"), ConflictPolicy.exception)
        assert len(await store.get_schedules()) == 3
        assert store.database.outage is None


@pytest.mark.parametrize("way", ["cut", "stall"])
async def test_while_the_database_is_away_a_call_fails_in_time_and_afterwards_it_works(
    database: DatabaseUrl, way: str
) -> None:
    async with Network(database) as network:
        store = PostgresDataStore(network.url.text, call_timeout=timedelta(seconds=0.3))
        async with started(store, silent_broker()):
            await store.add_schedule(a_schedule("before"), ConflictPolicy.exception)
            if way == "cut":
                await network.cut()
            else:
                network.stall()
            for call in (
                store.add_schedule(a_schedule("during"), ConflictPolicy.exception),
                store.get_schedules(),
                store.pause_schedule("before"),
            ):
                async with asyncio.timeout(5):
                    with pytest.raises(StoreUnavailable) as caught:
                        await call
                assert caught.value.code == "store_unavailable"
            assert store.database.outage is not None
            await network.mend()
            await eventually(lambda: _answers(store))
            assert store.database.outage is None
            await store.add_schedule(a_schedule("after"), ConflictPolicy.exception)
            assert {"before", "after"} <= set(ids(await store.get_schedules()))


async def _answers(store: PostgresDataStore) -> bool:
    try:
        await store.get_schedules()
    except StoreUnavailable:
        return False
    return True


async def test_a_call_of_the_loops_waits_as_long_as_it_takes(database: DatabaseUrl) -> None:
    async with Network(database) as network:
        store = PostgresDataStore(network.url.text, call_timeout=timedelta(seconds=0.1))
        async with started(store, silent_broker()):
            await store.add_schedule(a_schedule("s"), ConflictPolicy.exception)
            await network.cut()
            claiming = asyncio.create_task(store.acquire_schedules("one", timedelta(seconds=30), 9))
            await eventually(lambda: store.database.outage is not None)
            with pytest.raises(StoreUnavailable):
                await store.get_schedules()
            assert not claiming.done()
            await network.mend()
            assert ids(await claiming) == ["s"]


async def test_a_store_cannot_be_started_while_the_database_refuses_it_for_good(database: DatabaseUrl) -> None:
    class Refusing:
        def acquire(self) -> Any:
            raise asyncpg.InsufficientPrivilegeError("permission denied for database")

        probe = acquire

        async def warm(self, count: int, steps: Any) -> None:
            """There is nothing to make ready."""

        def prepare_no_more(self) -> None:
            """There is nothing that prepares."""

        async def close(self) -> None:
            """There is nothing to close."""

    store = PostgresDataStore("postgresql://", connections=Refusing())
    with pytest.raises(StoreUnavailable, match="permission denied for database"):
        async with AsyncExitStack() as stack:
            await store.start(stack, silent_broker(), logger)
