"""A statement that no server is at work on is made again; one that takes long is left alone."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import asyncpg

from duetime.settings import DatabaseUrl
from duetime.store import PostgresDataStore
from duetime.store.suspicion import PATIENCE

from ..waiting import eventually
from .network import Network
from .parts import a_store, a_task, node, running, silent_broker, started, tasks


async def test_a_statement_that_waits_for_a_lock_is_not_made_again(
    database: DatabaseUrl, connection: asyncpg.Connection
) -> None:
    async with a_store(database) as store:
        asked = 0
        ask = store.database._liveness._ask

        async def counted() -> None:
            nonlocal asked
            await ask()
            asked += 1

        store.database._liveness._ask = counted  # type: ignore[method-assign]
        await connection.execute("begin; lock table duetime.tasks in access exclusive mode")
        waiting = asyncio.create_task(store.get_tasks())
        await eventually(lambda: asked >= 2, within=PATIENCE * 10)
        waits = (
            "select array_agg(pid) from pg_stat_activity "
            "where wait_event_type = 'Lock' and datname = current_database()"
        )
        assert len(await connection.fetchval(waits)) == 1
        assert not waiting.done()
        await connection.execute("rollback")
        assert await waiting == []
        assert store.database.outage is None


async def test_a_statement_whose_connection_is_half_open_is_made_again(database: DatabaseUrl) -> None:
    async with Network(database) as network:
        store = PostgresDataStore(network.url.text, call_timeout=timedelta(seconds=60))
        async with started(store, silent_broker()):
            await store.add_task(a_task())
            network.half_open()
            async with asyncio.timeout(20):  # the statement's own time-out is longer than that
                assert [task.id for task in await store.get_tasks()] == ["work"]


async def test_nobody_is_asked_after_while_all_is_well(database: DatabaseUrl) -> None:
    async with a_store(database) as store:
        for _ in range(20):
            await store.get_tasks()
        liveness = store.database._liveness
        assert not liveness._waiting
        assert not liveness._asking
        await eventually(lambda: liveness._timer is None, within=PATIENCE * 10)


async def work() -> None:
    """Be the task of both nodes."""


async def test_using_a_task_does_not_undo_what_another_node_has_just_said_of_it(
    database: DatabaseUrl, connection: asyncpg.Connection
) -> None:
    """The node that uses it has looked before the other one defined it, and the notification is still on its way."""
    late, other = node(database, tasks(work)), node(database, tasks(work))
    async with running(late, other):
        late.store._has_all_tasks = True
        late.event_broker.on_hint = None  # type: ignore[attr-defined]
        await other.configure_task("work", max_running_jobs=2)
        await late.add_job("work")
        assert await connection.fetchval("select max_running_jobs from duetime.tasks where id = 'work'") == 2
        await late.configure_task("work", max_running_jobs=3)
        assert await connection.fetchval("select max_running_jobs from duetime.tasks where id = 'work'") == 3
