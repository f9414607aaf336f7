"""Answers of the database that come late: the state that they tell of has been changed meanwhile.

Two statements go over two connections, so the answer to the first may be read after the answer to the second.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from functools import partial
from typing import Any
from uuid import UUID

import asyncpg
import pytest
from apscheduler import CoalescePolicy, JobOutcome, JobResult
from apscheduler.triggers.date import DateTrigger

from duetime.options import OnCrash, Overlap, TaskOptions
from duetime.scheduler import DuetimeScheduler
from duetime.settings import DatabaseUrl

from ..waiting import eventually
from .parts import (
    a_job,
    a_schedule,
    a_store,
    a_task,
    ago,
    every,
    fire,
    node,
    node_store,
    running,
    silent_broker,
    started,
    tasks,
)

done: list[str] = []


async def work(name: str = "work") -> None:
    done.append(name)


@pytest.fixture(autouse=True)
def nothing_done() -> None:
    done.clear()


class LateAnswer:
    """Lets the answer to a statement, once it has been made, wait until it is let through."""

    def __init__(
        self, name: str, monkeypatch: pytest.MonkeyPatch, wanted: Callable[[Any], bool] = lambda answer: bool(answer)
    ) -> None:
        self.made = asyncio.Event()
        self.comes = asyncio.Event()
        real = asyncpg.Connection.fetch
        late = self

        async def fetch(self: asyncpg.Connection, query: str, *args: Any, **options: Any) -> Any:
            answer = await real(self, query, *args, **options)
            if query.startswith(f"/* duetime: {name} */") and wanted(answer) and not late.made.is_set():
                late.made.set()
                await late.comes.wait()
            return answer

        monkeypatch.setattr(asyncpg.Connection, "fetch", fetch)


def node_that_holds(database: DatabaseUrl) -> DuetimeScheduler:
    return node(database, tasks(work), look_ahead=20, lease_duration=3600)


async def is_at_rest(scheduler: DuetimeScheduler) -> None:
    """Wait until the node has dealt with all answers, and both its loops wait."""
    store = scheduler.store
    await eventually(lambda: store._wakes_at is not None and store._is_asked and not store._answers)


@pytest.mark.parametrize("change", ["pause_schedule", "remove_schedule"])
async def test_a_job_that_was_taken_back_before_the_node_knew_of_it_is_not_started(
    database: DatabaseUrl, connection: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    """Its release has been committed, and then the pause; the answers come the other way round."""
    scheduler = node_that_holds(database)
    async with running(scheduler):
        late = LateAnswer("release_schedules", monkeypatch)
        await scheduler.add_schedule("work", every(60, ago(-9)), id="s")
        await late.made.wait()
        await getattr(scheduler, change)("s")
        late.comes.set()
        await is_at_rest(scheduler)
        assert len(scheduler.store._hand) == 0
        assert not scheduler.store._attempts


async def test_a_queued_job_that_was_taken_back_before_the_node_knew_of_its_claim_is_not_started(
    database: DatabaseUrl, connection: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    planner = node(database, tasks(work), role="scheduler", look_ahead=20)
    worker = node(database, tasks(work), role="worker", look_ahead=20)
    async with running(planner, worker):
        late = LateAnswer("acquire_jobs", monkeypatch, lambda answer: answer[0]["id"] is not None)
        await planner.add_schedule("work", every(60, ago(-9)), id="s")
        await late.made.wait()
        await worker.pause_schedule("s")
        late.comes.set()
        await eventually(lambda: worker.store._is_asked and not worker.store._answers)
        assert len(worker.store._hand) == 0
        assert not worker.store._attempts


async def test_nothing_of_a_schedule_starts_while_its_pause_is_under_way(
    database: DatabaseUrl, connection: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither what was held before nor what comes into the node's hand meanwhile."""
    scheduler = node_that_holds(database)
    async with running(scheduler):
        release = LateAnswer("release_schedules", monkeypatch)
        due = ago(-2)
        await scheduler.add_schedule("work", DateTrigger(due), id="s")
        await release.made.wait()
        pause = LateAnswer("pause_schedules", monkeypatch)
        pausing = asyncio.create_task(scheduler.pause_schedule("s"))
        await pause.made.wait()
        release.comes.set()
        await eventually(lambda: connection.fetchval("select clock_timestamp() > $1", due))
        await is_at_rest(scheduler)
        pause.comes.set()
        await pausing
    assert done == []
    assert await connection.fetchval("select count(*) from duetime.jobs") == 0


async def test_a_job_that_became_due_while_the_answer_was_on_its_way_is_not_left_until_the_poll(
    database: DatabaseUrl, connection: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    scheduler = node(database, tasks(work), look_ahead=0.1)
    async with running(scheduler):
        await scheduler.add_schedule("work", DateTrigger(ago(1)), id="s", max_jitter=86_400)
        await eventually(lambda: connection.fetchval("select count(*) = 1 from duetime.jobs"))
        late = LateAnswer("acquire_jobs", monkeypatch, lambda answer: answer[0]["next_due"] is not None)
        due = await connection.fetchval(
            "update duetime.jobs set run_at = clock_timestamp() + interval '2 seconds' returning run_at"
        )
        await scheduler.add_job("work", args=["wakes the loop"])
        await late.made.wait()
        await eventually(lambda: connection.fetchval("select clock_timestamp() > $1", due))
        late.comes.set()
        assert scheduler.store.poll_interval.total_seconds() > 20, "else it is the poll that finds it"
        await eventually(lambda: sorted(done) == ["wakes the loop", "work"])


async def test_a_job_that_is_taken_back_while_it_is_looked_up_is_looked_up_again(
    database: DatabaseUrl, connection: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody else changes the schedule twice: the answer to the first doubt is from before the second change."""
    scheduler = node_that_holds(database)
    async with running(scheduler), a_store(database) as other:
        await scheduler.add_schedule("work", every(60, ago(-9)), id="s")
        await eventually(lambda: len(scheduler.store._hand) == 1)
        late = LateAnswer("held_jobs", monkeypatch)
        scheduler.store._doubt("s")
        await late.made.wait()
        doubted = asyncio.Event()
        doubt = scheduler.store._doubt

        def heard(schedule_id: str | None) -> None:
            doubt(schedule_id)
            doubted.set()

        monkeypatch.setattr(scheduler.store, "_doubt", heard)
        await other.pause_schedule("s")
        await doubted.wait()
        late.comes.set()
        await eventually(lambda: not scheduler.store._attempts)
        assert len(scheduler.store._hand) == 0


async def test_answers_that_are_under_way_together_do_not_make_each_other_doubtful_for_ever(
    database: DatabaseUrl, connection: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a gap in what was heard, everything that is held is looked up; once, however many look-ups there are."""
    scheduler = node_that_holds(database)
    async with running(scheduler):
        store = scheduler.store
        for name in "abc":
            await scheduler.add_schedule("work", every(60, ago(-9)), id=name)
        await eventually(lambda: len(store._hand) == 3)
        await is_at_rest(scheduler)
        looked_up, through = 0, asyncio.Semaphore(0)
        fetch = store._loop_fetch

        async def counted(statement: str, *arguments: Any) -> Any:
            nonlocal looked_up
            answer = await fetch(statement, *arguments)
            if statement == "held_jobs":
                looked_up += 1
                await through.acquire()
            return answer

        def is_looked_up(times: int) -> bool:
            return looked_up == times

        monkeypatch.setattr(store, "_loop_fetch", counted)
        for name in "abc":
            store._doubt(name)
        await eventually(lambda: looked_up == 3)
        store._doubt(None)
        for answered in range(1, 7):  # the three, and each of them once more
            through.release()
            await eventually(partial(is_looked_up, min(6, 3 + answered)))
        await eventually(lambda: len(store._hand) == 3 and not store._answers)
    assert looked_up == 6


async def test_a_job_that_comes_back_to_a_node_while_its_lease_is_renewed_is_kept(
    database: DatabaseUrl, connection: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answer says that the former claim is lost; the job has been claimed anew since."""
    store = node_store(database, "a")
    async with started(store, silent_broker()):
        await store.add_job(a_job())
        await store._fill_hand(1)
        [card] = store._hand
        # Another node has taken it for the job of a vanished one, and put it back into the queue.
        await connection.execute("update duetime.jobs set acquired_by = null, acquired_until = null")
        renewed, answer_comes = asyncio.Event(), asyncio.Event()
        fetch = store._loop_fetch

        async def slow(name: str, *arguments: Any) -> Any:
            answer = await fetch(name, *arguments)
            if name == "extend_jobs":
                renewed.set()
                await answer_comes.wait()
            return answer

        monkeypatch.setattr(store, "_loop_fetch", slow)
        renewing = asyncio.create_task(store._renew_leases([card.job.id]))
        await renewed.wait()
        await store._fill_hand(1)
        answer_comes.set()
        assert await renewing == set()
        assert store._attempts == {card.job.id: 2}
        assert [each.job.id for each in store._hand] == [card.job.id]


async def test_a_give_back_that_the_network_has_delayed_does_not_undo_a_later_claim(
    database: DatabaseUrl, connection: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was sent again meanwhile, and the job has been claimed anew, with the same number of its attempt."""
    store = node_store(database, "a")
    async with started(store, silent_broker()):
        await store.add_job(a_job())
        await store._fill_hand(1)
        [card] = store._hand
        asked: list[tuple[Any, ...]] = []
        fetch = store._user_fetch

        async def noted(name: str, *arguments: Any) -> Any:
            asked.append((name, *arguments))
            return await fetch(name, *arguments)

        monkeypatch.setattr(store, "_user_fetch", noted)
        await store.give_back([card.job.id])
        assert await connection.fetchval("select acquired_by from duetime.jobs") is None
        await eventually(lambda: store.database.clock.now() > asked[0][3])
        await store._fill_hand(1)
        name, *arguments = asked[0]
        await fetch(name, *arguments)
        assert await connection.fetchval("select acquired_by from duetime.jobs") == "a"


async def test_a_job_that_comes_back_before_the_answer_to_giving_it_back_is_kept(
    database: DatabaseUrl, connection: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is claimed anew as soon as it is free; else nobody would run it until the lease ends."""
    store = node_store(database, "a")
    async with started(store, silent_broker()):
        await store.add_job(job := a_job())
        await store._fill_hand(1)
        late = LateAnswer("give_back_jobs", monkeypatch)
        giving = asyncio.create_task(store.give_back([job.id]))
        await late.made.wait()
        assert store._known_jobs() == [job.id], "nobody takes it for one whose claim was lost"
        await store._fill_hand(1)
        late.comes.set()
        await giving
        assert [card.job.id for card in store._hand] == [job.id]
        assert list(store._attempts) == [job.id]


async def test_a_job_that_was_being_confirmed_when_the_node_began_to_stop_goes_back(
    database: DatabaseUrl, connection: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing waits for it until the drain time is over: neither the node nor who would run it."""
    options = TaskOptions(on_crash=OnCrash.abandon)
    scheduler = node(database, tasks(work, work=options), look_ahead=1)
    async with running(scheduler):
        late = LateAnswer("confirm_jobs", monkeypatch)
        await scheduler.add_schedule("work", DateTrigger(ago(-0.8)), id="s")
        await late.made.wait()
        scheduler.store.stopping = True
        await scheduler.store.stop_claiming()
        late.comes.set()
        assert await scheduler.store.wait_until_idle(10)
        assert await connection.fetchval("select acquired_by is null from duetime.jobs")
    assert done == []


async def test_a_job_that_was_to_wait_and_whose_turn_comes_before_that_is_known_begins(
    database: DatabaseUrl, connection: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is claimed anew and asked for again before the answer comes that it has to wait."""
    store = node_store(database, "a")
    async with started(store, silent_broker()):
        metadata = TaskOptions(overlap=Overlap.buffer_all).to_metadata()
        await store.add_task(a_task())
        await store.add_schedules(
            [a_schedule("s", every(3600, ago(3601)), coalesce=CoalescePolicy.all, metadata=metadata)]
        )
        await fire(store, "a")
        first, second = (card.job for card in store._hand.draw(math.inf, 2))
        to_wait = LateAnswer("settle_jobs", monkeypatch)
        waiting = asyncio.create_task(store._settle("a", [second]))
        await to_wait.made.wait()
        await store.release_job("a", first, JobResult.from_job(first, JobOutcome.success))
        await store._fill_hand(1)
        to_begin = LateAnswer("settle_jobs", monkeypatch)
        beginning = asyncio.create_task(store._settle("a", [second]))
        await to_begin.made.wait()
        to_wait.comes.set()
        assert await waiting == set()
        to_begin.comes.set()
        assert await beginning == {second.id}
        assert list(store._attempts) == [second.id]


async def test_a_claim_that_is_made_while_the_node_stops_is_freed_with_the_others(
    database: DatabaseUrl, connection: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loop is cut short, and the database commits what it was asked for all the same."""
    monkeypatch.setattr("duetime.store.node._LAST_CLAIMS", 20)
    scheduler = node_that_holds(database)
    asked = asyncio.Event()
    real = asyncpg.Connection.fetch

    async def fetch(self: asyncpg.Connection, query: str, *args: Any, **options: Any) -> Any:
        if not query.startswith("/* duetime: release_schedules */") or not args[1]:
            return await real(self, query, *args, **options)
        asked.set()
        return await asyncio.shield(asyncio.ensure_future(arrive_late(query, args)))

    async def arrive_late(query: str, args: Any) -> Any:
        await eventually(lambda: scheduler.store.stopping)
        await asyncio.sleep(0.05)  # in which a node that does not wait for it has left
        other = await asyncpg.connect(**database.asyncpg_arguments())
        try:
            return await real(other, query, *args)
        finally:
            await other.close()

    async with running(scheduler):
        monkeypatch.setattr(asyncpg.Connection, "fetch", fetch)
        await scheduler.add_schedule("work", every(60, ago(-9)), id="s")
        await asked.wait()
    await eventually(lambda: connection.fetchval("select count(*) = 1 from duetime.jobs"))
    assert await connection.fetchval("select count(*) from duetime.jobs where acquired_by is not null") == 0


async def test_a_job_that_is_cancelled_before_the_node_knows_of_its_claim_ends_at_once(
    database: DatabaseUrl, connection: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And not when the claim is renewed, which is twenty minutes away."""
    scheduler = node_that_holds(database)
    async with running(scheduler):
        late = LateAnswer("release_schedules", monkeypatch)
        await scheduler.add_schedule("work", DateTrigger(ago(-9)), id="s")
        await late.made.wait()
        job_id = await connection.fetchval("select id from duetime.jobs")
        assert not (await scheduler.store.cancel_job(job_id)).is_ended
        await is_told_of(scheduler, job_id)
        late.comes.set()
        await eventually(lambda: connection.fetchval("select state = 'cancelled' from duetime.fires"))
        assert not scheduler.store._attempts
    assert done == []


async def is_told_of(scheduler: DuetimeScheduler, job_id: UUID) -> None:
    """Wait until an answer that is under way knows that somebody wants the job cancelled."""
    await eventually(lambda: any(job_id in answer.cancelled for answer in scheduler.store._answers))


async def test_jobs_that_the_database_refuses_to_settle_are_asked_for_again(
    database: DatabaseUrl, connection: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = asyncpg.Connection.fetch
    refused: list[str] = []

    async def fetch(self: asyncpg.Connection, query: str, *args: Any, **options: Any) -> Any:
        if query.startswith("/* duetime: settle_jobs */") and not refused:
            refused.append(query)
            raise asyncpg.DataError("not now")
        return await real(self, query, *args, **options)

    options = TaskOptions(overlap=Overlap.buffer_all)
    scheduler = node(database, tasks(work, work=options), lease_duration=3600)
    async with running(scheduler):
        monkeypatch.setattr(asyncpg.Connection, "fetch", fetch)
        await scheduler.add_schedule("work", every(3600, ago(3601)), id="s", coalesce=CoalescePolicy.all)
        await eventually(lambda: done == ["work", "work"])
        assert refused
