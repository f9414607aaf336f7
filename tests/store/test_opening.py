"""A start costs a connection and two round trips, and finds what is due; what follows finds connections ready."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import pytest
from apscheduler import ConflictPolicy, RunState
from apscheduler.triggers.date import DateTrigger

from duetime import Duetime, Settings
from duetime.settings import DatabaseUrl
from duetime.store.connections import DirectConnections
from duetime.store.driver import connect, connect_for_the_store
from duetime.store.statements import Statements
from duetime.tasks import TaskRegistry

from ..waiting import eventually
from .network import Network
from .parts import a_schedule, a_store, ago, tasks

done: list[str] = []


async def work(name: str = "") -> None:
    done.append(name)


@pytest.fixture
async def network(database: DatabaseUrl) -> AsyncIterator[Network]:
    # A connection is worth waiting for at a distance; without one, it is a question of how busy the machine is.
    async with Network(database, delay=0.03) as network:
        yield network


async def started(duetime: Duetime) -> None:
    await eventually(lambda: duetime.scheduler.state is RunState.started)


def a_duetime(network: Network, registry: TaskRegistry, **settings: Any) -> Duetime:
    options: dict[str, Any] = {"poll_interval": 3600, "look_ahead": 1, **settings}
    return Duetime(Settings(database_url=network.url.text, **options), registry=registry)


async def a_connection_costs(network: Network) -> int:
    """Return the round trips of connecting alone, which depend on how the server wants to know who it is."""
    network.round_trips = 0
    connection = await connect(network.url)
    cost = network.round_trips
    await connection.close()
    network.round_trips = 0
    return cost


async def test_a_start_takes_one_connection_and_two_round_trips(network: Network) -> None:
    """LISTEN, and one look at all that has to be known; APScheduler 4.0.0a6 takes more than 60."""
    connecting = await a_connection_costs(network)
    network.connections = 0
    async with a_duetime(network, tasks(work)) as duetime:
        await started(duetime)
        await duetime._broker.wait_listening()
        await eventually(lambda: duetime._scheduler.store._agenda.is_known)
        assert (network.connections, network.round_trips - connecting) == (1, 2)


async def test_twenty_schedules_registered_at_the_start_take_three_round_trips_more(network: Network) -> None:
    """One for the definition of the task, and two for the statement that all share, the first of which prepares it."""
    connecting = await a_connection_costs(network)
    network.connections = 0
    async with a_duetime(network, tasks(work)) as duetime:
        add = duetime.scheduler.add_schedule
        replace = ConflictPolicy.replace
        await asyncio.gather(
            *(add("work", DateTrigger(ago(-3600)), id=f"s{n}", conflict_policy=replace) for n in range(20))
        )
        await started(duetime)
        assert (network.connections, network.round_trips - connecting) == (1, 5)


async def test_what_is_known_at_the_start_is_not_asked_again(network: Network) -> None:
    async with a_duetime(network, tasks(work)) as duetime:
        await duetime.scheduler.add_schedule("work", DateTrigger(ago(-3600)), id="s")
    connecting = await a_connection_costs(network)
    async with a_duetime(network, tasks(work)) as duetime:
        await duetime.scheduler.add_schedule("work", DateTrigger(ago(-3700)), id="later")
        await started(duetime)
        assert network.round_trips - connecting == 4, "LISTEN, the look, and a statement that is prepared first"


async def test_what_is_due_at_the_start_runs(network: Network, database: DatabaseUrl) -> None:
    done.clear()
    async with a_duetime(network, tasks(work)) as duetime:
        await duetime.scheduler.configure_task("work")
    async with a_store(database) as store:
        await store.add_schedules(
            [a_schedule(name, DateTrigger(ago(seconds)), args=(name,)) for name, seconds in (("due", 1), ("soon", -2))]
        )
    async with a_duetime(network, tasks(work)):
        await eventually(lambda: done == ["due", "soon"])


async def test_work_that_is_near_finds_connections_ready(network: Network) -> None:
    """At a distance the first fire would otherwise be late by a connection's making and five statements' preparing."""
    done.clear()
    async with a_duetime(network, tasks(work)) as duetime:
        pool = duetime._connections
        await started(duetime)
        assert len(pool._warm) == 0, "nothing is due: nothing is made ready"
        await duetime.scheduler.add_schedule("work", DateTrigger(ago(-3)), args=["x"])
        await eventually(lambda: len(pool._warm) == 3)
        begun = network.connections
        await eventually(lambda: done == ["x"], within=20)
        assert network.connections == begun


async def test_the_driver_does_not_ask_what_an_array_is(database: DatabaseUrl) -> None:
    plain, ours = await connect(database), await connect_for_the_store(database)
    asked: dict[asyncpg.Connection, list[str]] = {plain: [], ours: []}
    try:
        for connection in (plain, ours):
            connection.add_query_logger(lambda record, heard=asked[connection]: heard.append(record.query))
            await connection.fetch(Statements("duetime")["held_jobs"], "node", [])
            await asyncio.sleep(0)
        assert len(asked[ours]) == 1
        assert len(asked[plain]) > 1, "asyncpg does not ask any more: the class is of no use now"
    finally:
        await plain.close()
        await ours.close()


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        ("bool", True),
        ("bytea", b"\x00x"),
        ("int2", 1),
        ("int4", 1),
        ("int8", 2**40),
        ("float8", 0.5),
        ("timestamptz", ago()),
        ("interval", ago() - ago(5)),
        ("uuid", "c0ffee00-0000-4000-8000-000000000000"),
    ],
)
async def test_an_array_that_the_driver_did_not_ask_about_comes_back_as_it_was(
    database: DatabaseUrl, kind: str, value: object
) -> None:
    connection = await connect_for_the_store(database)
    try:
        [row] = await connection.fetch(
            f"select $1::{kind}[] as ours, array(select unnest($1::{kind}[])) as again", [value]
        )
        assert list(map(str, row["ours"])) == list(map(str, row["again"])) == [str(value)]
    finally:
        await connection.close()


async def test_connections_are_made_ready_once(database: DatabaseUrl) -> None:
    connections = DirectConnections(database, size=3)
    stepped: list[int] = []

    async def step(connection: asyncpg.Connection) -> None:
        stepped.append(connection.get_server_pid())
        await connection.fetch("select 1")

    try:
        await connections.warm(2, [step, step])
        assert sorted(stepped) == sorted([*set(stepped)] * 2)
        assert len(set(stepped)) == 2
        await connections.warm(2, [step, step])
        assert len(stepped) == 4
        async with connections.acquire() as lost:
            lost.terminate()
        await connections.warm(9, [step])
        assert len(set(stepped)) == 4, "the one that was lost is made up for, and the size of three is kept"
    finally:
        await connections.close()


async def test_a_statement_waits_for_a_connection_rather_than_for_a_slower_new_one(database: DatabaseUrl) -> None:
    connections = DirectConnections(database, size=4)
    try:
        async with connections.acquire():
            pass
        connections._connect_time = 60.0  # as at a great distance

        async def use() -> int:
            async with connections.acquire() as connection:
                await connection.fetch("select pg_sleep(0.01)")
                return int(connection.get_server_pid())

        began = time.monotonic()
        pids = await asyncio.gather(*(use() for _ in range(8)))
        assert len(set(pids)) == 1
        assert time.monotonic() - began < 60
    finally:
        await connections.close()
