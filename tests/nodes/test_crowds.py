"""Thousands that are due together: they are claimed in time, started a few at once, and no node sits on them."""

from __future__ import annotations

import asyncio
from collections import Counter
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import pytest
from apscheduler.triggers.date import DateTrigger

from duetime.attempts import Retry
from duetime.options import Overlap, TaskOptions
from duetime.settings import DatabaseUrl
from duetime.store.node import _MOST_STARTS, NodeDataStore
from duetime.store.opening import look

from ..store.parts import LEASE, a_job, a_schedule, a_task, ago, fire, node_store, result_of, silent_broker, started
from ..waiting import eventually
from .test_limits import nodes


async def test_what_a_full_node_will_not_get_to_runs_on_another(
    database: DatabaseUrl, connection: asyncpg.Connection
) -> None:
    """It holds twenty jobs for its two places, and they last; the other one hears that eighteen are free."""
    ran: Counter[str] = Counter()
    release = asyncio.Event()

    async def lasts(node: str) -> None:
        ran[node] += 1
        await release.wait()

    tasks = {"lasts": lasts}
    async with nodes(database, "full", tasks, max_concurrent_jobs=2, drain_timeout=5) as [full]:
        due = ago(-0.5)
        await full.scheduler.add_schedules({"func_or_task_id": "lasts", "trigger": DateTrigger(due)} for _ in range(20))
        await eventually(lambda: ran["full"] == 2)
        async with nodes(database, "other", tasks, drain_timeout=5):
            await eventually(lambda: ran["other"] == 18)
            assert ran["full"] == 2
            release.set()
            await eventually(lambda: _all_succeeded(connection, 20))
    assert ran.total() == 20, "each once"


async def _all_succeeded(connection: asyncpg.Connection, count: int) -> bool:
    return bool(await connection.fetchval("select count(*) from duetime.fires where state = 'succeeded'") == count)


async def test_a_full_node_runs_what_it_gave_back_if_nobody_else_does(
    database: DatabaseUrl, connection: asyncpg.Connection
) -> None:
    ran: Counter[str] = Counter()
    release = asyncio.Event()

    async def lasts(node: str) -> None:
        ran[node] += 1
        await release.wait()

    async with nodes(database, "full", {"lasts": lasts}, max_concurrent_jobs=2, drain_timeout=5) as [full]:
        due = ago(-0.5)
        await full.scheduler.add_schedules({"func_or_task_id": "lasts", "trigger": DateTrigger(due)} for _ in range(20))
        free = "select count(*) from duetime.jobs where acquired_by is null"
        await eventually(lambda: _is(connection, free, 18))
        release.set()
        await eventually(lambda: _all_succeeded(connection, 20))
    assert ran["full"] == 20


async def test_a_full_node_does_not_sit_on_what_falls_due_later(
    database: DatabaseUrl, connection: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its loop asks for no jobs while all places are taken, so nothing else looks at what it holds."""
    ran: Counter[str] = Counter()
    release = asyncio.Event()
    given: list[int] = []

    async def lasts(node: str) -> None:
        ran[node] += 1
        await release.wait()

    give_back = NodeDataStore.give_back

    async def counted(store: NodeDataStore, jobs: Any) -> None:
        given.append(len(jobs))
        await give_back(store, jobs)

    monkeypatch.setattr(NodeDataStore, "give_back", counted)
    tasks = {"lasts": lasts}
    async with nodes(database, "full", tasks, max_concurrent_jobs=2, drain_timeout=5) as [full]:
        for number in (1, 2):
            await full.scheduler.add_schedule("lasts", DateTrigger(ago(0)))
            await eventually(lambda: ran["full"] == number)  # noqa: B023
        due = ago(-0.2)
        await full.scheduler.add_schedules({"func_or_task_id": "lasts", "trigger": DateTrigger(due)} for _ in range(3))
        free = "select count(*) from duetime.jobs where acquired_by is null"
        await eventually(lambda: _is(connection, free, 3))
        assert given == [3]
        # It knows that it is full now: what comes next goes into the queue at once.
        await full.scheduler.add_schedule("lasts", DateTrigger(ago(0)))
        await eventually(lambda: _is(connection, free, 4))
        async with nodes(database, "other", tasks, drain_timeout=5):
            await eventually(lambda: ran["other"] == 4)
            assert given == [3]
            release.set()
            await eventually(lambda: _all_succeeded(connection, 6))
            # Jobs end here again, and so it claims again what it makes.
            assert not full.scheduler.store._relief.is_stuck
    assert ran == {"full": 2, "other": 4}


async def _is(connection: asyncpg.Connection, query: str, value: int) -> bool:
    return bool(await connection.fetchval(query) == value)


@pytest.mark.parametrize(("ends", "given"), [(0, 20), (1, 16), (4, 4), (5, 0), (100, 0)])
async def test_a_node_that_is_behind_keeps_what_it_gets_to_within_two_seconds(
    database: DatabaseUrl, monkeypatch: pytest.MonkeyPatch, ends: int, given: int
) -> None:
    """Going by how many jobs have ended in the half second before; what goes back is what would have come last."""
    store = node_store(database, "a", capacity=2)
    store._begun = {uuid4(), uuid4()}
    returned: list[UUID] = []

    async def give_back(jobs: Any) -> None:
        returned.extend(jobs)

    monkeypatch.setattr(NodeDataStore, "give_back", lambda _store, jobs: give_back(jobs))
    now = store.database.clock.timestamp()
    jobs = [a_job(schedule_id=f"s{n}") for n in range(20)]
    for number, job in enumerate(jobs):
        store._hand.take(job, now - 100 + number, now + 100)
    store._hand.take(a_job(), now + 100, now + 100)  # its time has not come
    for _ in range(ends):
        store._relief.end()
    store._relief.look(0)
    await asyncio.gather(*store._background)
    store._relief.stop()
    assert returned == [job.id for job in jobs[20 - given :]]


@pytest.mark.parametrize("sign", ["outage", "ends that are not recorded", "places"])
async def test_a_node_that_waits_for_the_database_or_has_places_keeps_what_it_holds(
    database: DatabaseUrl, monkeypatch: pytest.MonkeyPatch, sign: str
) -> None:
    """It could not give it back, and would have let go of it until the leases end: work resumes when it answers. And
    when there are places, it is the event loop that was blocked."""
    store = node_store(database, "a", capacity=1)
    store._begun = set() if sign == "places" else {uuid4()}
    monkeypatch.setattr(NodeDataStore, "give_back", lambda _store, _jobs: pytest.fail("given back"))
    now = store.database.clock.timestamp()
    store._hand.take(a_job(), now - 1, now + 100)
    if sign == "outage":
        store.database.outage = OSError("away")
    elif sign != "places":
        store._ending[a_job().id] = []
    store._relief.look(0)
    assert store._relief.is_watching, "it looks again"
    store._relief.stop()


async def test_what_is_due_together_is_counted_by_every_answer(
    database: DatabaseUrl, connection: asyncpg.Connection
) -> None:
    store = node_store(database, "a")
    first = ago(-60)
    later = [timedelta(0)] * 30 + [timedelta(seconds=0.9)] * 5 + [timedelta(seconds=3)] * 7
    async with started(store, silent_broker()):
        await store.add_task(a_task())
        await store.add_schedules(
            [a_schedule(f"s{number}", DateTrigger(first + each)) for number, each in enumerate(later)]
        )
        await store._look()
        assert store._agenda.crowd == 35
        await store.add_schedules([a_schedule("now")])
        await fire(store, "a")
        assert store._agenda.crowd == 35, "the release's answer"
        await connection.execute("update duetime.schedules set paused = true where id in ('s0', 's1', 's33')")
        await connection.execute("update duetime.schedules set acquired_by = 'other' where id = 's2'")
        await store._look()
        assert store._agenda.crowd == 31, "those that may be claimed"
    opening = await look(connection, "duetime", store.database.clock)
    assert opening is not None
    assert opening.crowd == 31, "the first look"


async def test_the_more_are_due_together_the_earlier_they_are_claimed(database: DatabaseUrl) -> None:
    store = node_store(database, "a", look_ahead=timedelta(seconds=1))
    due = ago(-3600)
    store._agenda.learn(due, crowd=0)
    assert store._agenda.claims_at == pytest.approx(due.timestamp() - 0.5)
    store._agenda.claim_cost = 0.0002
    store._agenda.learn(due, crowd=10_000)
    assert store._agenda.claims_at == pytest.approx(due.timestamp() - 2.5)
    assert store._look_ahead() == timedelta(seconds=3), "so that a claim reaches to half a second after the instant"
    store._agenda.claim_cost = 0.1
    assert store._agenda.claims_at == pytest.approx(due.timestamp() - 10.5), "no more than a third of a lease"
    never = node_store(database, "a", look_ahead=timedelta(0))
    never._agenda.learn(due, crowd=10_000)
    assert never._agenda.claims_at == due.timestamp()
    assert never._look_ahead() == timedelta(0), "that forbids it"
    store._agenda.claim_cost = 0.0002
    store._agenda.tell(due.timestamp() - 10)
    assert store._agenda.claims_at == pytest.approx(due.timestamp() - 10.5), "somebody has told of an earlier one"


async def test_what_a_claim_costs_is_learnt_and_stays_within_bounds(database: DatabaseUrl) -> None:
    store = node_store(database, "a")
    async with started(store, silent_broker()):
        await store.add_task(a_task())
        for began, bound in ((0.0, 0.0008), (float("inf"), 0.00005)):
            for number in range(40):
                await store.add_schedules([a_schedule(f"s{number}-{n}-{bound}") for n in range(100)])
                schedules = await store.acquire_schedules("a", LEASE, 100)
                store._agenda._claim_began = began
                await store.release_schedules("a", [result_of(schedule) for schedule in schedules])
            assert store._agenda.claim_cost == pytest.approx(bound, rel=0.01)


async def test_a_hundred_jobs_start_at_once_and_the_others_in_the_next_rounds(database: DatabaseUrl) -> None:
    store = node_store(database, "a")
    async with started(store, silent_broker()):
        await store.add_task(a_task())
        options = TaskOptions(overlap=Overlap.allow).to_metadata()
        await store.add_schedules([a_schedule(f"s{number}", metadata=options) for number in range(250)])
        await fire(store, "a")
        for starts in (_MOST_STARTS, _MOST_STARTS, 50):
            assert len(await store.acquire_jobs("a", LEASE, 1000)) == starts


async def test_schedules_whose_jobs_went_elsewhere_are_not_remembered_for_ever(database: DatabaseUrl) -> None:
    """A million one-offs that are each tried a second time leave no million ids behind."""
    tries: Counter[str] = Counter()

    async def fails_once(node: str) -> None:
        tries[node] += 1
        if tries[node] <= 5:
            raise OSError("not yet")

    options = TaskOptions(retry=Retry(max_attempts=3, backoff=0.01))
    async with nodes(database, "a", {"fails": fails_once}, options, lease_duration=3, call_timeout=2) as [a]:
        for _ in range(5):
            await a.scheduler.add_schedule("fails", DateTrigger(ago(0)))
        await eventually(lambda: tries["a"] == 10)
        await eventually(lambda: not a.scheduler.store._elsewhere)
