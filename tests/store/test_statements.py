"""How often the store speaks to the database: one statement per step, whatever the batch (the hot path)."""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
import pytest
from apscheduler import ConflictPolicy, Event, Schedule, ScheduleAdded
from apscheduler.triggers.date import DateTrigger

from duetime.broker import PostgresEventBroker
from duetime.errors import ScheduleExists
from duetime.scheduler import DuetimeScheduler, build_scheduler
from duetime.settings import DatabaseUrl, Settings
from duetime.store.connections import DirectConnections
from duetime.store.schema import TABLES
from duetime.store.statements import Statements, texts
from duetime.tasks import TaskRegistry

from ..waiting import eventually
from .parts import a_schedule, ago, running, tasks

done: list[int] = []


async def work(number: int = 0) -> None:
    done.append(number)


@pytest.fixture(autouse=True)
def nothing_done() -> None:
    done.clear()


# What asyncpg asks of each new connection, once, about the types of a statement.
_OF_THE_DRIVER = re.compile(r"set_config\('jit'|typeinfo")


class Counting(DirectConnections):
    """Connections that write down what is said over them: the statements' names, or what else it is."""

    def __init__(self, database: DatabaseUrl, **options: Any) -> None:
        super().__init__(database, **options)
        self._heard: list[str] = []

    async def _connect(self, url: DatabaseUrl) -> asyncpg.Connection:
        connection = await super()._connect(url)
        connection.add_query_logger(self._hear)
        return connection

    def _hear(self, record: Any) -> None:
        match = re.match(r"\s*/\* duetime: (\w+) \*/", record.query)
        if match or not _OF_THE_DRIVER.search(record.query):
            self._heard.append(match[1] if match else record.query)

    async def heard(self) -> list[str]:
        """Return what was said since the last time; the driver tells in the next round of the event loop."""
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        heard, self._heard = self._heard, []
        return heard


@asynccontextmanager
async def a_node(
    database: DatabaseUrl, registry: TaskRegistry, **settings: Any
) -> AsyncIterator[tuple[DuetimeScheduler, Counting]]:
    """Run a node whose statements are counted, and which has nothing to say any more but for what the test does."""
    connections = Counting(database)
    options = Settings(database_url=database.text, poll_interval=3600, cleanup_interval=3600, **settings)
    scheduler = build_scheduler(options, connections, PostgresEventBroker(database.text), registry)
    async with running(scheduler):
        await scheduler.configure_task("work")
        await scheduler.run_job("work")
        await eventually(lambda: _is_quiet(connections))
        done.clear()
        yield scheduler, connections


async def _is_quiet(connections: Counting) -> bool:
    await asyncio.sleep(0.05)
    return not await connections.heard()


async def _all_ended(scheduler: DuetimeScheduler) -> bool:
    await asyncio.sleep(0)
    return not scheduler.store._attempts


async def test_adding_a_schedule_of_a_known_task_is_one_statement(database: DatabaseUrl) -> None:
    async with a_node(database, tasks(work)) as (scheduler, connections):
        for number in range(5):
            await scheduler.add_schedule("work", DateTrigger(ago(-3600 - number)))
            said = Counter(await connections.heard())
            assert said.pop("add_schedule") == 1
            assert said.keys() <= {"next_work", "acquire_schedules"}, "the loop looks when the new one is the next"


async def test_adding_a_schedule_that_is_not_the_next_one_due_makes_this_node_say_nothing_else(
    database: DatabaseUrl,
) -> None:
    async with a_node(database, tasks(work)) as (scheduler, connections):
        await scheduler.add_schedule("work", DateTrigger(ago(-3600)))
        await eventually(lambda: _is_quiet(connections))
        for number in range(5):
            await scheduler.add_schedule("work", DateTrigger(ago(-7200 - number)))
        assert await connections.heard() == ["add_schedule"] * 5


async def test_fifty_callers_at_once_share_a_few_statements(
    database: DatabaseUrl, connection: asyncpg.Connection
) -> None:
    async with a_node(database, tasks(work)) as (scheduler, connections):
        await asyncio.gather(
            *(scheduler.add_schedule("work", DateTrigger(ago(-7200 - number))) for number in range(50))
        )
        said = [name for name in await connections.heard() if name.startswith("add_schedule")]
        assert len(said) <= 3
    assert await connection.fetchval("select count(*) from duetime.schedules") == 50
    assert await connection.fetchval("select count(distinct xmin::text) from duetime.schedules") == len(said)


@pytest.mark.parametrize(
    ("policy", "said"),
    [
        (ConflictPolicy.exception, ["tell_added"]),  # a COPY, which the driver does not tell of
        (ConflictPolicy.do_nothing, ["tell_added"]),
        (ConflictPolicy.replace, ["replace_schedules"]),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
async def test_many_schedules_in_one_call_are_one_statement(
    database: DatabaseUrl, policy: ConflictPolicy, said: list[str]
) -> None:
    async with a_node(database, tasks(work)) as (scheduler, connections):
        many = [a_schedule(f"s{n}", DateTrigger(ago(-7200))) for n in range(300)]
        await scheduler.store.add_schedules(many, policy)
        heard = [name for name in await connections.heard() if name not in ("next_work", "acquire_schedules")]
        assert len(await scheduler.get_schedules()) == 300
    assert heard == said


async def test_of_many_schedules_an_id_that_is_taken_is_kept_replaced_or_refuses_them_all(
    database: DatabaseUrl, connection: asyncpg.Connection
) -> None:
    async with a_node(database, tasks(work)) as (scheduler, _):
        late, later = ago(-7200), ago(-9000)
        await scheduler.store.add_schedules([a_schedule("s7", DateTrigger(late))])

        def many() -> list[Schedule]:
            return [a_schedule(f"s{n}", DateTrigger(later)) for n in range(300)]

        with pytest.raises(ScheduleExists, match="s7"):
            await scheduler.store.add_schedules(many())
        assert await connection.fetchval("select count(*) from duetime.schedules") == 1
        for policy, time in ((ConflictPolicy.do_nothing, late), (ConflictPolicy.replace, later)):
            await scheduler.store.add_schedules(many(), policy)
            found = {each.id: each.next_fire_time for each in await scheduler.get_schedules()}
            assert len(found) == 300
            assert found["s7"] == time


async def test_of_many_schedules_the_same_id_twice_refuses_them_all(
    database: DatabaseUrl, connection: asyncpg.Connection
) -> None:
    async with a_node(database, tasks(work)) as (scheduler, _):
        many = [a_schedule(f"s{n % 299}", DateTrigger(ago(-7200))) for n in range(300)]
        with pytest.raises(ScheduleExists, match="s0"):
            await scheduler.store.add_schedules(many)
        assert await connection.fetchval("select count(*) from duetime.schedules") == 0
        await scheduler.store.add_schedules(many, ConflictPolicy.do_nothing)
        assert await connection.fetchval("select count(*) from duetime.schedules") == 299


async def test_the_whole_life_of_a_one_off_is_four_statements(
    database: DatabaseUrl, connection: asyncpg.Connection
) -> None:
    """Added, claimed, released with its job, ended. What wakes the loops in between is no more than one look."""
    async with a_node(database, tasks(work)) as (scheduler, connections):
        await scheduler.add_schedule("work", DateTrigger(ago(-0.2)))
        await eventually(lambda: connection.fetchval("select state = 'succeeded' from duetime.fires"))
        said = Counter(await connections.heard())
        assert done == [0]
    life = ("add_schedule", "acquire_schedules", "release_schedules", "finish_jobs")
    assert {name: said.pop(name) for name in life} == dict.fromkeys(life, 1)
    assert said.total() <= 1
    assert said.keys() <= {"next_work"}


async def test_a_burst_of_three_hundred_one_offs_is_a_handful_of_statements(
    database: DatabaseUrl, connection: asyncpg.Connection
) -> None:
    async with a_node(database, tasks(work)) as (scheduler, connections):
        await scheduler.store.add_schedules([a_schedule(f"s{n}", DateTrigger(ago(-0.3))) for n in range(300)])
        await eventually(lambda: len(done) == 300)
        await eventually(lambda: _all_ended(scheduler))
        said = Counter(await connections.heard())
    assert said["acquire_schedules"] <= 3
    assert said["release_schedules"] <= 2
    assert said["finish_jobs"] <= 30, "those that end while one is under way share the next"
    assert said.total() <= 50
    assert await connection.fetchval("select count(*) from duetime.runs where schedule_id is not null") == 300


async def test_a_job_that_is_added_here_is_claimed_and_ended_in_a_statement_each(
    database: DatabaseUrl, connection: asyncpg.Connection
) -> None:
    async with a_node(database, tasks(work)) as (scheduler, connections):
        await scheduler.add_job("work")
        await eventually(lambda: done == [0])
        await eventually(lambda: _all_ended(scheduler))
        await eventually(lambda: connection.fetchval("select count(*) = 0 from duetime.jobs"))
        said = Counter(await connections.heard())
    assert said["add_jobs"] == said["finish_jobs"] == 1
    assert said["acquire_jobs"] <= 2
    assert said.total() <= 4


async def test_an_idle_node_says_nothing_when_it_has_looked_once(database: DatabaseUrl) -> None:
    async with a_node(database, tasks(work)) as (_, connections):
        assert await _is_quiet(connections)


# -- the statements --------------------------------------------------------------------------------------------------


async def test_every_statement_says_its_name_and_fits_the_schema(connection: asyncpg.Connection) -> None:
    statements = Statements("duetime")
    for name in texts:
        text = statements[name].replace("{values}", b"{}".hex())
        assert text.startswith(f"/* duetime: {name} */")
        assert "{" not in text.replace("'{}'", ""), name
        await connection.prepare(text)


def test_a_statement_names_every_table_with_its_schema() -> None:
    statements = Statements("Elsewhere")
    for name in texts:
        assert "{s}" not in statements[name]
        tables = re.findall(r"(?:from|into|update|join)\s+([\w\".]+)", statements[name])
        ours = set(TABLES)
        assert not ours & set(tables), name


async def test_no_statement_takes_a_parameter_for_each_row(connection: asyncpg.Connection) -> None:
    """PostgreSQL has room for 32,767 parameters: arrays have room for everything."""
    for name in texts:
        prepared = await connection.prepare(Statements("duetime")[name].replace("{values}", b"{}".hex()))
        assert len(prepared.get_parameters()) <= 25, name


async def test_thousands_of_schedules_fit_into_one_call(database: DatabaseUrl, connection: asyncpg.Connection) -> None:
    async with a_node(database, tasks(work)) as (scheduler, _):
        many = [a_schedule(f"s{number}", DateTrigger(ago(-7200))) for number in range(5000)]
        await scheduler.store.add_schedules(many, ConflictPolicy.replace)
        assert await connection.fetchval("select count(*) from duetime.schedules") == 5000
        await scheduler.store.remove_schedules([schedule.id for schedule in many])
        assert await connection.fetchval("select count(*) from duetime.schedules") == 0


async def test_an_added_schedule_makes_an_event_only_if_somebody_listens_and_fires_all_the_same(
    database: DatabaseUrl, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An event for each would cost a fifth of what adding costs."""
    async with a_node(database, tasks(work)) as (scheduler, _):
        delivered: list[Event] = []
        broker = scheduler.event_broker
        assert isinstance(broker, PostgresEventBroker)
        deliver = broker.deliver

        def spy(_broker: PostgresEventBroker, event: Event) -> None:
            delivered.append(event)
            deliver(event)

        monkeypatch.setattr(PostgresEventBroker, "deliver", spy)
        await scheduler.add_schedule("work", DateTrigger(ago(-0.2)), id="unheard")
        await eventually(lambda: len(done) == 1)
        assert [event for event in delivered if isinstance(event, ScheduleAdded)] == []
        heard: list[Event] = []
        with scheduler.subscribe(heard.append, {ScheduleAdded}):
            await scheduler.add_schedule("work", DateTrigger(ago(-0.2)), id="heard")
            await eventually(lambda: len(done) == 2)
            assert [event.schedule_id for event in heard if isinstance(event, ScheduleAdded)] == ["heard"]
