"""Promise 2: one job per fire, whatever statement a node dies at, and however many nodes there are.

The nodes that die are processes of their own, killed with SIGKILL by a failpoint of the test (``dying_nodes.py``).
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import asyncpg
import pytest
from apscheduler import ConflictPolicy, RunState, current_job
from apscheduler.triggers.date import DateTrigger

from duetime.options import OnCrash, TaskOptions
from duetime.settings import DatabaseUrl
from duetime.store import PostgresDataStore
from duetime.store.clock import DatabaseClock
from duetime.tasks import TaskRegistry

from ..waiting import eventually
from .parts import a_schedule, a_store, ago, every, expire, node, running, tasks

HOUR = timedelta(hours=1)
STATEMENTS = {"acquire_schedules", "release_schedules", "effect", "finish_jobs"}
"""What every life of a fire consists of; a node says more than that, and is killed there as well."""


class DyingNodes:
    """Nodes that die where they are told to."""

    def __init__(self, process: asyncio.subprocess.Process, database: DatabaseUrl, directory: Path) -> None:
        self._process = process
        self._database = database
        self._directory = directory
        self._lives = 0

    async def live(self, statement: str | None = None, occurrence: int = 1, when: str = "") -> tuple[int, list[str]]:
        """Run a node until its end; return its exit status and the statements that it began."""
        self._lives += 1
        log = self._directory / f"{self._lives}.log"
        log.touch()
        order = {
            "address": self._database.text,
            "statement": statement,
            "occurrence": occurrence,
            "when": when,
            "log": str(log),
        }
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{json.dumps(order)}\n".encode())
        async with asyncio.timeout(30):
            status = int(await self._process.stdout.readline())
        return status, log.read_text(encoding="utf-8").split()


@pytest.fixture
async def nodes(database: DatabaseUrl, tmp_path: Path) -> AsyncIterator[DyingNodes]:
    script = Path(__file__).with_name("dying_nodes.py")
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(sys.executable, str(script), stdin=pipe, stdout=pipe)
    try:
        yield DyingNodes(process, database, tmp_path)
    finally:
        assert process.stdin is not None
        process.stdin.close()
        await asyncio.wait_for(process.wait(), 30)


@pytest.fixture
async def ledger(connection: asyncpg.Connection) -> asyncpg.Connection:
    """A connection to a database with a table for what tasks have done."""
    await connection.execute("create table effects (job_id uuid, schedule_id text)")
    return connection


def working(database: DatabaseUrl) -> TaskRegistry:
    """Return the tasks of the nodes that live: they do what those of the dying nodes do."""

    async def effect() -> None:
        job = current_job.get()
        connection = await asyncpg.connect(**database.asyncpg_arguments())
        try:
            await connection.execute("insert into effects values ($1, $2)", job.id, job.schedule_id)
        finally:
            await connection.close()

    registry = TaskRegistry()
    for on_crash in OnCrash:
        registry.add(effect, name=str(on_crash), options=TaskOptions(on_crash=on_crash))
    return registry


async def is_done(ledger: asyncpg.Connection) -> bool:
    """Return whether nothing is due and nothing is queued or running."""
    return not await ledger.fetchval(
        "select exists (select from duetime.schedules where next_fire_time <= now())"
        " or exists (select from duetime.jobs)"
    )


@asynccontextmanager
async def a_fresh_node(database: DatabaseUrl, ledger: asyncpg.Connection) -> AsyncIterator[None]:
    """Run a node that takes over what the dead one has left, once its leases have ended."""
    await expire(ledger, "schedules")
    await expire(ledger, "jobs")
    async with running(node(database, working(database))):
        await eventually(lambda: is_done(ledger))
        yield


@pytest.mark.parametrize("on_crash", OnCrash)
async def test_a_node_killed_at_any_statement_leaves_one_job_per_fire(
    database: DatabaseUrl, ledger: asyncpg.Connection, nodes: DyingNodes, on_crash: OnCrash
) -> None:
    async with a_store(database) as store:
        await two_due_schedules(store, on_crash)
        status, spoken = await nodes.live()
        assert status == 0
        assert set(spoken) >= STATEMENTS
        await one_job_per_fire(ledger, on_crash, was_killed=False)
        killed: set[tuple[str, str]] = set()
        for statement, occurrences in Counter(spoken).items():
            for occurrence in range(1, occurrences + 1):
                for when in ("before", "after"):
                    await ledger.execute("truncate effects, duetime.schedules, duetime.fires, duetime.runs")
                    await two_due_schedules(store, on_crash)
                    status, _ = await nodes.live(statement, occurrence, when)
                    if status != 0:  # 0: in this life the statement did not come
                        killed.add((statement, when))
                    async with a_fresh_node(database, ledger):
                        await one_job_per_fire(ledger, on_crash, was_killed=status != 0)
    assert killed >= {(statement, when) for statement in STATEMENTS for when in ("before", "after")}


async def two_due_schedules(store: PostgresDataStore, on_crash: OnCrash) -> None:
    """Add a one-off and a recurring schedule, both due since a second."""
    metadata = TaskOptions(on_crash=on_crash).to_metadata()
    for name, trigger in (("one-off", DateTrigger(ago(1))), ("hourly", every(3600, ago(1)))):
        schedule = a_schedule(name, trigger, task_id=str(on_crash), metadata=metadata)
        await store.add_schedule(schedule, ConflictPolicy.exception)


async def one_job_per_fire(ledger: asyncpg.Connection, on_crash: OnCrash, *, was_killed: bool) -> None:
    for name in ("one-off", "hourly"):
        [fire] = await ledger.fetch("select * from duetime.fires where schedule_id = $1", name)
        runs = await ledger.fetch("select * from duetime.runs where schedule_id = $1 order by id", name)
        effects = [row["job_id"] for row in await ledger.fetch("select * from effects where schedule_id = $1", name)]
        assert {fire["job_id"]} == {run["job_id"] for run in runs} | set(effects), "one job, in whatever attempts"
        assert [run["attempt"] for run in runs] == list(range(1, len(runs) + 1))
        assert len(runs) == fire["attempts"] <= 2
        if on_crash is OnCrash.retry:
            assert fire["state"] == "succeeded"
            assert len(effects) >= 1, "at least once"
        else:
            assert fire["state"] in ("succeeded", "abandoned")
            assert len(effects) <= 1, "at most once"
            assert len(effects) == 1 or fire["state"] == "abandoned"
        if not was_killed:
            assert (fire["state"], len(runs), len(effects)) == ("succeeded", 1, 1)
        if schedule := await ledger.fetchrow("select * from duetime.schedules where id = $1", name):
            moved_on = None if name == "one-off" else fire["fire_time"] + HOUR
            assert schedule["next_fire_time"] == moved_on, "moved on exactly once"
            assert schedule["last_fire_time"] == fire["fire_time"]
            assert schedule["acquired_by"] is None
        else:
            assert name == "one-off", "the clean-up removes what is finished, and nothing else"


async def test_two_nodes_that_race_for_due_schedules_fire_each_of_them_once(
    database: DatabaseUrl, ledger: asyncpg.Connection
) -> None:
    done: list[tuple[str | None, UUID]] = []

    async def work() -> None:
        job = current_job.get()
        done.append((job.schedule_id, job.id))

    registries = []
    for _ in range(2):
        registry = TaskRegistry()
        registry.add(work, name="work")
        registries.append(registry)
    async with a_store(database) as store:
        await store.add_schedules([a_schedule(f"s{number}", every(3600, ago(1))) for number in range(200)])
    async with running(*(node(database, registry) for registry in registries)):
        await eventually(lambda: is_done(ledger))
    assert sorted(name or "" for name, _ in done) == sorted(f"s{number}" for number in range(200))
    rows = await ledger.fetch("select schedule_id, job_id, state, attempts from duetime.fires")
    assert {(row["schedule_id"], row["job_id"]) for row in rows} == set(done)
    assert {(row["state"], row["attempts"]) for row in rows} == {("succeeded", 1)}
    assert await ledger.fetchval("select count(*) from duetime.runs") == 200
    assert await ledger.fetchval(
        "select bool_and(next_fire_time = last_fire_time + interval '1 hour') from duetime.schedules"
    )


async def test_two_nodes_share_a_schedule_of_ten_fires_a_second_without_a_gap_or_a_double(
    database: DatabaseUrl, ledger: asyncpg.Connection
) -> None:
    done: list[UUID] = []

    async def work() -> None:
        done.append(current_job.get().id)

    registries = [TaskRegistry(), TaskRegistry()]
    for registry in registries:
        registry.add(work, name="work")
    first = ago(-0.2)
    async with a_store(database) as store:
        await store.add_schedule(a_schedule("s", every(0.1, first)), ConflictPolicy.exception)
        async with running(*(node(database, registry, look_ahead=0.3) for registry in registries)):
            await eventually(lambda: len(done) >= 20)
            await store.remove_schedules(["s"])
            await eventually(lambda: ledger.fetchval("select not exists (select from duetime.jobs)"))
    rows = await ledger.fetch("select fire_time, job_id, state from duetime.fires order by fire_time")
    times = [row["fire_time"] for row in rows]
    assert times == [first + number * timedelta(milliseconds=100) for number in range(len(times))]
    assert len(done) == len(set(done))
    assert {row["job_id"] for row in rows if row["state"] == "succeeded"} == set(done)


class LostAnswer:
    """Lets a statement be committed, and its answer be lost with the connection, once."""

    def __init__(self, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self.happened = 0
        self.answers = 0
        self.meanwhile: Callable[[], Awaitable[object]] | None = None
        real = asyncpg.Connection.fetch
        lost = self

        async def fetch(self: asyncpg.Connection, query: str, *args: Any, **options: Any) -> Any:
            answer = await real(self, query, *args, **options)
            lost.answers += query.startswith(f"/* duetime: {name} */")
            if lost.answers == 1 and not lost.happened:
                lost.happened += 1
                if lost.meanwhile is not None:
                    await lost.meanwhile()
                self.terminate()
                raise ConnectionResetError("the answer is lost")
            return answer

        monkeypatch.setattr(asyncpg.Connection, "fetch", fetch)


@pytest.mark.parametrize("limited", [False, True], ids=["any number", "one at a time"])
@pytest.mark.parametrize("name", ["add_schedule", "acquire_schedules", "release_schedules", "finish_jobs"])
async def test_a_statement_whose_answer_is_lost_is_made_again_and_takes_effect_once(
    database: DatabaseUrl, ledger: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch, name: str, limited: bool
) -> None:
    lost = LostAnswer(name, monkeypatch)
    scheduler = node(database, working(database))
    async with running(scheduler):
        await scheduler.configure_task("retry", max_running_jobs=1 if limited else None)
        await scheduler.add_schedule("retry", DateTrigger(ago(1)), id="one-off")
        await scheduler.add_schedule("retry", every(3600, ago(1)), id="hourly")
        await eventually(lambda: ledger.fetchval("select count(*) = 2 from duetime.runs"))
        assert await is_done(ledger)
        assert scheduler.state is RunState.started
    assert lost.happened == 1
    await one_job_per_fire(ledger, OnCrash.retry, was_killed=False)


async def test_a_job_that_was_claimed_while_the_answer_of_its_release_was_lost_runs_once(
    database: DatabaseUrl, ledger: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The job loop of the same node has taken it from the queue before the release is made again."""
    begun: list[UUID] = []
    open_door = asyncio.Event()

    async def waits() -> None:
        begun.append(current_job.get().id)
        await open_door.wait()

    lost = LostAnswer("release_schedules", monkeypatch)
    scheduler = node(database, tasks(waits))
    async with running(scheduler):
        await scheduler.configure_task("waits", max_running_jobs=1)

        async def until_it_has_begun() -> None:
            scheduler.store._queue_is_due = True
            scheduler.store._jobs_wake.set()
            await eventually(lambda: len(begun) == 1)

        lost.meanwhile = until_it_has_begun
        await scheduler.add_schedule("waits", DateTrigger(ago(1)), id="s")
        await eventually(lambda: lost.answers == 2)
        await eventually(lambda: scheduler.store._agenda.is_known)  # the schedule loop is done with it
        assert not any(card.job.id in begun for card in scheduler.store._hand)
        open_door.set()
        await eventually(lambda: ledger.fetchval("select state = 'succeeded' from duetime.fires"))
        await eventually(lambda: not scheduler.store._attempts)
    assert len(begun) == 1
    assert await ledger.fetchval("select count(*) from duetime.runs") == 1


@pytest.mark.parametrize("on_crash", list(OnCrash), ids=str)
async def test_jobs_of_a_claim_whose_answer_was_lost_run_at_once(
    database: DatabaseUrl, ledger: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch, on_crash: OnCrash
) -> None:
    """They are claimed, and nobody knows: until their leases end, which takes an hour here."""
    lost = LostAnswer("acquire_jobs", monkeypatch)
    lost.happened = 1  # not yet: the first look is no claim
    scheduler = node(database, working(database), lease_duration=3600)
    async with running(scheduler):
        await eventually(lambda: scheduler.store._is_asked)
        lost.answers = lost.happened = 0
        await asyncio.gather(*(scheduler.add_job(str(on_crash)) for _ in range(5)))
        await eventually(lambda: ledger.fetchval("select count(*) = 5 from duetime.runs"))
        assert scheduler.state is RunState.started
        assert await ledger.fetchval("select count(*) from duetime.jobs") == 0
    assert lost.happened == 1
    runs = await ledger.fetch("select attempt, outcome from duetime.runs")
    assert {tuple(row) for row in runs} == {(1, "success")}


@pytest.mark.parametrize("has_ended", [False, True], ids=["its job is going", "its job has ended"])
@pytest.mark.parametrize("name", ["run_schedule", "add_jobs"])
async def test_a_request_whose_answer_is_lost_makes_one_job(
    database: DatabaseUrl, ledger: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch, name: str, has_ended: bool
) -> None:
    lost = LostAnswer(name, monkeypatch)
    scheduler = node(database, working(database))
    async with running(scheduler):
        await scheduler.add_schedule("retry", DateTrigger(ago(-3600)), id="s")

        async def until_it_has_ended() -> None:
            scheduler.store._queue_is_due = True
            scheduler.store._jobs_wake.set()
            await eventually(lambda: ledger.fetchval("select count(*) > 0 from duetime.runs"))

        if has_ended:
            lost.meanwhile = until_it_has_ended
        if name == "run_schedule":
            job_id = await scheduler.store.run_schedule("s")
        else:
            job_id = await scheduler.add_job("retry")
        await eventually(lambda: ledger.fetchval("select count(*) > 0 from duetime.runs"))
        await eventually(lambda: is_done(ledger))
    assert lost.happened == 1
    assert [row["job_id"] for row in await ledger.fetch("select * from effects")] == [job_id]
    assert await ledger.fetchval("select count(*) from duetime.fires") == (name == "run_schedule")


async def test_requests_at_the_same_instant_get_a_job_each(
    database: DatabaseUrl, ledger: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with a_store(database) as store:
        await store.add_schedule(a_schedule("s", DateTrigger(ago(-3600))), ConflictPolicy.exception)
        await store.database.fetch("time", deadline=None)
        instant = ago()
        monkeypatch.setattr(DatabaseClock, "now", lambda _: instant)
        jobs = await asyncio.gather(*(store.run_schedule("s") for _ in range(5)))
    fires = await ledger.fetch("select fire_time, job_id from duetime.fires order by fire_time")
    assert [row["fire_time"] - instant for row in fires] == [timedelta(microseconds=n) for n in range(5)]
    assert {row["job_id"] for row in fires} == set(jobs)
    assert {row["id"] for row in await ledger.fetch("select id from duetime.jobs")} == set(jobs)
