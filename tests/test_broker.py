"""Events between nodes: who hears what, and a listening connection that comes back."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from logging import getLogger
from typing import Any
from uuid import uuid4

import asyncpg
import pytest
from apscheduler import AsyncScheduler, Event, JobAdded, JobReleased, ScheduleAdded, ScheduleUpdated, TaskAdded
from sqlalchemy import create_engine
from sqlalchemy.ext.asyncio import create_async_engine

from duetime.broker import PostgresEventBroker, encode
from duetime.errors import InvalidSettings
from duetime.settings import DatabaseUrl

from .store.network import Network
from .store.parts import engine_of
from .test_broker_payloads import an_event
from .waiting import eventually


@asynccontextmanager
async def running(*brokers: PostgresEventBroker) -> AsyncIterator[None]:
    async with AsyncExitStack() as stack:
        for broker in brokers:
            await broker.start(stack, getLogger("tests"))
        yield


async def listening(*brokers: PostgresEventBroker) -> None:
    async with asyncio.timeout(10):
        for broker in brokers:
            await broker.wait_listening()


def heard_by(broker: PostgresEventBroker, *kinds: type[Event]) -> list[Event]:
    heard: list[Event] = []
    broker.subscribe(heard.append, kinds or None)
    return heard


def heard_by_loop(broker: PostgresEventBroker, *kinds: type[Event]) -> list[Event]:
    """Subscribe as the stock scheduler's loops do, with a function of theirs."""
    heard: list[Event] = []

    def callback(event: Event) -> None:
        heard.append(event)

    callback.__module__ = AsyncScheduler.subscribe.__module__
    broker.subscribe(callback, kinds)
    return heard


# -- subscribers -----------------------------------------------------------------------------------------------------


async def test_a_subscriber_gets_the_kinds_that_it_wants(database: DatabaseUrl) -> None:
    broker = PostgresEventBroker(database.text)
    everything, jobs = heard_by(broker), heard_by(broker, JobAdded, JobReleased)
    async with running(broker):
        for kind in (TaskAdded, JobAdded, ScheduleAdded, JobReleased):
            await broker.publish_local(an_event(kind))
        await eventually(lambda: len(everything) == 4)
    assert [type(event) for event in jobs] == [JobAdded, JobReleased]


async def test_a_one_shot_subscriber_is_called_once(database: DatabaseUrl) -> None:
    broker = PostgresEventBroker(database.text)
    heard: list[Event] = []
    broker.subscribe(heard.append, {JobAdded}, one_shot=True)
    every_time = heard_by(broker)
    async with running(broker):
        for kind in (TaskAdded, JobAdded, JobAdded):
            await broker.publish_local(an_event(kind))
        await eventually(lambda: len(every_time) == 3)
    assert heard == [an_event(JobAdded)]


async def test_who_has_unsubscribed_hears_nothing_more(database: DatabaseUrl) -> None:
    broker = PostgresEventBroker(database.text)
    heard: list[Event] = []
    other = heard_by(broker)
    async with running(broker):
        with broker.subscribe(heard.append):
            await broker.publish_local(an_event(JobAdded))
            await eventually(lambda: len(other) == 1)
        subscription = broker.subscribe(heard.append)
        subscription.unsubscribe()
        subscription.unsubscribe()
        await broker.publish_local(an_event(JobAdded))
        await eventually(lambda: len(other) == 2)
    assert len(heard) == 1


async def test_a_subscriber_that_fails_is_logged_and_keeps_nothing_from_the_others(
    database: DatabaseUrl, caplog: pytest.LogCaptureFixture
) -> None:
    broker = PostgresEventBroker(database.text)

    def fails(_event: Event) -> None:
        raise RuntimeError("no subscriber of mine")

    async def fails_later(_event: Event) -> None:
        raise RuntimeError("no subscriber of mine either")

    broker.subscribe(fails)
    broker.subscribe(fails_later)
    heard = heard_by(broker)
    async with running(broker):
        await broker.publish_local(an_event(JobAdded))
        await broker.publish_local(an_event(JobAdded))
        await eventually(lambda: len(heard) == 2)
    assert caplog.text.count("A subscriber failed on JobAdded") == 4
    assert "no subscriber of mine either" in caplog.text


async def test_a_coroutine_function_is_awaited_and_a_slow_callback_can_have_a_thread(database: DatabaseUrl) -> None:
    broker = PostgresEventBroker(database.text)
    seen: dict[str, threading.Thread] = {}

    async def awaited(_event: Event) -> None:
        await asyncio.sleep(0)
        seen["awaited"] = threading.current_thread()

    broker.subscribe(awaited)
    broker.subscribe(lambda _event: seen.__setitem__("on the loop", threading.current_thread()))
    broker.subscribe(lambda _event: seen.__setitem__("in a thread", threading.current_thread()), is_async=False)
    async with running(broker):
        await broker.publish_local(an_event(JobAdded))
        await eventually(lambda: len(seen) == 3)
    main = threading.main_thread()
    assert seen["awaited"] is main
    assert seen["on the loop"] is main
    assert seen["in a thread"] is not main


# -- between nodes ---------------------------------------------------------------------------------------------------


async def test_an_event_reaches_every_other_node_once_and_its_own_once(database: DatabaseUrl) -> None:
    brokers = [PostgresEventBroker(database.text) for _ in range(3)]
    heard = [heard_by(broker) for broker in brokers]
    async with running(*brokers):
        await listening(*brokers)
        await brokers[0].publish(an_event(JobAdded))
        await brokers[1].publish(an_event(TaskAdded))
        await eventually(lambda: [len(events) for events in heard] == [2, 2, 2])
        await brokers[2].publish(an_event(ScheduleAdded))
        await eventually(lambda: [len(events) for events in heard] == [3, 3, 3])
    for events in heard:
        assert {type(event) for event in events} == {JobAdded, TaskAdded, ScheduleAdded}


async def test_a_message_for_everyone_reaches_its_own_node_too(
    database: DatabaseUrl, connection: asyncpg.Connection
) -> None:
    brokers = [PostgresEventBroker(database.text) for _ in range(2)]
    heard = [heard_by(broker) for broker in brokers]
    async with running(*brokers):
        await listening(*brokers)
        for everyone in (False, True):
            message = brokers[0].message([an_event(JobAdded)], everyone=everyone)
            await connection.execute("select pg_notify('duetime', $1)", message)
        await eventually(lambda: len(heard[1]) == 2)
        await eventually(lambda: len(heard[0]) == 1)


async def test_many_events_published_at_once_all_arrive(database: DatabaseUrl) -> None:
    sender, receiver = PostgresEventBroker(database.text), PostgresEventBroker(database.text)
    heard = heard_by(receiver)
    async with running(sender, receiver):
        await listening(sender, receiver)
        events = [an_event(JobAdded, job_id=uuid4()) for _ in range(100)]
        await asyncio.gather(*map(sender.publish, events))
        await eventually(lambda: len(heard) == 100)
    assert sorted(map(str, heard)) == sorted(map(str, events))


async def test_a_hostile_payload_does_not_keep_the_others_from_arriving(
    database: DatabaseUrl, connection: asyncpg.Connection
) -> None:
    broker = PostgresEventBroker(database.text)
    heard = heard_by(broker)
    hints: list[Event | None] = []
    broker.on_hint = hints.append
    async with running(broker):
        await listening(broker)
        hints.clear()
        good = encode(an_event(TaskAdded))
        for payload in (
            "",
            "x",
            "x\nJobAdded []",
            "x\n\n\n",
            f"x\nJobAdded {'[' * 7000}",
            "x" * 7900,
            f"x\nno\n{good}",
        ):
            await connection.execute("select pg_notify('duetime', $1)", payload)
        await eventually(lambda: bool(heard))
    assert heard == hints == [an_event(TaskAdded)]


async def test_nodes_of_different_channels_do_not_hear_each_other(database: DatabaseUrl) -> None:
    ours, theirs = PostgresEventBroker(database.text), PostgresEventBroker(database.text, channel='"Their" channel')
    third = PostgresEventBroker(database.text, channel='"Their" channel')
    heard, others = heard_by(ours), heard_by(third)
    async with running(ours, theirs, third):
        await listening(ours, theirs, third)
        await theirs.publish(an_event(JobAdded))
        await eventually(lambda: len(others) == 1)
        await ours.publish_local(an_event(TaskAdded))
        await eventually(lambda: len(heard) == 1)
    assert heard == [an_event(TaskAdded)]


async def test_a_nudge_reaches_the_loops_and_nobody_else(database: DatabaseUrl) -> None:
    broker = PostgresEventBroker(database.text)
    jobs, schedules = (
        heard_by_loop(broker, JobAdded, JobReleased),
        heard_by_loop(broker, ScheduleAdded, ScheduleUpdated),
    )
    assert not broker.has_subscribers(JobAdded)
    assert not broker.has_subscribers(ScheduleAdded)
    # The last one wants just what a loop wants.
    users = [heard_by(broker), heard_by(broker, JobAdded), heard_by(broker, ScheduleAdded, ScheduleUpdated)]
    async with running(broker):
        broker.nudge_workers()
        broker.nudge_schedulers()
        await eventually(lambda: len(jobs) == len(schedules) == 1)
    assert users == [[], [], []]
    assert broker.has_subscribers(JobAdded)
    assert broker.has_subscribers(ScheduleAdded)


# -- a connection that comes and goes --------------------------------------------------------------------------------


async def test_a_listening_connection_that_is_killed_comes_back_and_says_that_there_was_a_gap(
    database: DatabaseUrl, connection: asyncpg.Connection
) -> None:
    broker, other = PostgresEventBroker(database.text), PostgresEventBroker(database.text)
    heard = heard_by(broker)
    hints: list[Event | None] = []
    broker.on_hint = hints.append
    async with running(broker, other):
        await listening(broker, other)
        assert hints == [None], "before it listened, anything may have happened"
        for number in range(2, 4):
            killed = broker._connection
            assert killed is not None
            await connection.execute("select pg_terminate_backend($1)", killed.get_server_pid())
            await eventually(partial(_is_another, broker, killed))
            await eventually(partial(_are, hints, number))
        assert hints == [None, None, None]
        await other.publish(an_event(JobAdded))
        await eventually(lambda: heard == [an_event(JobAdded)])
        assert hints[-1] == an_event(JobAdded)


def _is_another(broker: PostgresEventBroker, killed: asyncpg.Connection | None) -> bool:
    return broker._connection not in (None, killed)


def _are(items: list[Any], number: int) -> bool:
    return len(items) == number


async def test_a_connection_of_its_own_that_is_quiet_is_asked_whether_it_is_still_there(database: DatabaseUrl) -> None:
    async with Network(database) as network:
        broker = PostgresEventBroker(network.url.text, max_idle_time=0.05)
        async with running(broker):
            await listening(broker)
            first = broker._connection
            network.round_trips = 0
            await eventually(lambda: network.round_trips >= 3)
            assert broker._connection is first
            network.half_open()
            await eventually(partial(_is_another, broker, first))


async def test_an_unreachable_database_delays_events_and_not_the_start(database: DatabaseUrl) -> None:
    network = Network(database)
    async with network:
        pass  # it has a port now, and nobody there
    broker, other = PostgresEventBroker(network.url.text), PostgresEventBroker(database.text)
    heard = heard_by(broker)
    async with running(broker, other):
        await listening(other)
        await broker.publish(an_event(TaskAdded))
        await eventually(lambda: len(heard) == 1)
        await network.mend()
        await listening(broker)
        await other.publish(an_event(JobAdded))
        await eventually(lambda: len(heard) == 2)
    await network.cut()


@pytest.mark.parametrize("dsn", ["", "no address at all", "mysql://localhost/x"])
async def test_an_address_that_cannot_be_read_is_said_again_and_again_and_ends_nothing(
    dsn: str, caplog: pytest.LogCaptureFixture
) -> None:
    broker = PostgresEventBroker(dsn)
    heard = heard_by(broker)
    async with running(broker):
        await eventually(lambda: caplog.text.count("Cannot listen for events (InvalidSettings") >= 2)
        await broker.publish(an_event(JobAdded))
        await eventually(lambda: len(heard) == 1)


async def test_no_connection_is_left_when_it_stops(database: DatabaseUrl, connection: asyncpg.Connection) -> None:
    broker = PostgresEventBroker(database.text)
    query = "select count(*) = 0 from pg_stat_activity where datname = current_database() and pid <> $1"
    for _ in range(2):
        async with running(broker):
            await listening(broker)
        await eventually(lambda: connection.fetchval(query, connection.get_server_pid()))


# -- made from an engine ---------------------------------------------------------------------------------------------


async def test_it_is_made_from_an_engine_with_the_stock_arguments(
    database: DatabaseUrl, connection: asyncpg.Connection
) -> None:
    async with engine_of(database) as engine:
        broker = PostgresEventBroker.from_async_sqla_engine(
            engine, {"server_settings": {"application_name": "the shop"}}, channel="shop", max_idle_time=3
        )
        assert broker.channel == "shop"
        async with running(broker):
            await listening(broker)
            listening_connection = broker._connection
            assert listening_connection is not None
            name = await connection.fetchval(
                "select application_name from pg_stat_activity where pid = $1", listening_connection.get_server_pid()
            )
    assert name == "the shop"


def test_an_engine_of_another_driver_is_refused() -> None:
    engine: Any
    for engine in (create_engine("sqlite://"), _mysql()):
        with pytest.raises(InvalidSettings, match=r"postgresql\+asyncpg"):
            PostgresEventBroker.from_async_sqla_engine(engine)


def _mysql() -> Any:
    class Engine:
        class dialect:  # noqa: N801 - as SQLAlchemy names it
            name, driver = "mysql", "asyncmy"

    return Engine()


def test_a_password_stays_out_of_the_representation() -> None:
    broker = PostgresEventBroker.from_async_sqla_engine(
        create_async_engine("postgresql+asyncpg://me:swordfish@localhost/x")
    )
    assert "swordfish" in broker.dsn
    assert "swordfish" not in repr(broker)
