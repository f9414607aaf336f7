"""What a node does about leases that ended while it was alive: the database was away, or it was itself stopped."""

from __future__ import annotations

import asyncio
from typing import Any

import asyncpg
import pytest
from apscheduler import Job

from duetime import Retry
from duetime.options import OnCrash, TaskOptions
from duetime.settings import DatabaseUrl
from duetime.store.finishing import Finish
from duetime.store.node import NodeDataStore

from ..store.parts import LEASE, a_job, a_task, expire, node_store, silent_broker, started
from ..waiting import eventually
from .test_limits import nodes


class Blocked:
    """Work that goes on until it is told to end."""

    def __init__(self) -> None:
        self.begun = 0
        self.release = asyncio.Event()

    async def __call__(self, _node: str) -> None:
        self.begun += 1
        await self.release.wait()


async def nothing(_node: str) -> None:
    """Be a job that wakes the nodes."""


async def test_a_node_keeps_its_own_running_jobs_whose_leases_ended_in_an_outage(
    database: DatabaseUrl, connection: asyncpg.Connection
) -> None:
    """It asks for them again before it takes over what belongs to nodes that have vanished: it has not."""
    blocked = Blocked()
    async with nodes(database, "a", {"blocked": blocked, "nothing": nothing}, lease_duration=3600) as [a]:
        await a.scheduler.add_job("blocked")
        await eventually(lambda: blocked.begun)
        await expire(connection, "jobs")
        a._scheduler.store._lease_ends_at = 0.0  # as it has learnt from the database, an hour later
        await a.scheduler.add_job("nothing")
        await eventually(lambda: connection.fetchval("select count(*) = 1 from duetime.runs where task_id = 'nothing'"))
        blocked.release.set()
        await eventually(lambda: connection.fetchval("select count(*) = 0 from duetime.jobs"))
    runs = await connection.fetch("select attempt, outcome from duetime.runs where task_id = 'blocked'")
    assert [tuple(row) for row in runs] == [(1, "success")]
    assert blocked.begun == 1


async def test_a_job_that_comes_back_to_the_node_that_still_runs_it_goes_on_as_the_new_attempt(
    database: DatabaseUrl, connection: asyncpg.Connection
) -> None:
    """Beginning it a second time there would run it twice at once; 4.0.0a6 crashes when the second of them ends."""
    blocked = Blocked()
    async with nodes(database, "a", {"blocked": blocked, "nothing": nothing}) as [a]:
        await a.scheduler.add_job("blocked")
        await eventually(lambda: blocked.begun)
        # Another node has taken it for the job of a vanished one, and put it back into the queue.
        await connection.execute("update duetime.jobs set acquired_by = null, acquired_until = null")
        await a.scheduler.add_job("nothing")
        await eventually(lambda: connection.fetchval("select attempt = 2 from duetime.jobs where task_id = 'blocked'"))
        blocked.release.set()
        await eventually(lambda: connection.fetchval("select count(*) = 0 from duetime.jobs"))
        assert a._supervisor.crashes == 0
    runs = await connection.fetch("select attempt, outcome from duetime.runs where task_id = 'blocked'")
    assert [tuple(row) for row in runs] == [(2, "success")]
    assert blocked.begun == 1


async def test_an_end_that_is_being_recorded_when_its_job_comes_back_is_the_end_of_the_new_attempt(
    database: DatabaseUrl, connection: asyncpg.Connection
) -> None:
    """The database was away when the job ended, and its lease ended too: the end was not seen, and counts all the
    same."""
    blocked = Blocked()
    async with nodes(database, "a", {"blocked": blocked, "nothing": nothing}) as [a]:
        await a.scheduler.add_job("blocked")
        await eventually(lambda: blocked.begun)
        await connection.execute("update duetime.jobs set acquired_by = null, acquired_until = null")
        async with connection.transaction():
            # Its end waits for this lock, and then finds the job in the queue.
            await connection.execute("lock table duetime.runs")
            blocked.release.set()
            store = a._scheduler.store
            await eventually(lambda: store._finishing._group._writer is not None)
            claimed = asyncio.create_task(store._claim(store.identity, LEASE, 1, LEASE))
            await asyncio.wait([claimed])
        await eventually(lambda: connection.fetchval("select count(*) = 0 from duetime.jobs"))
    runs = await connection.fetch("select attempt, outcome from duetime.runs where task_id = 'blocked'")
    assert [tuple(row) for row in runs] == [(2, "success")]
    assert blocked.begun == 1


async def claimed(store: NodeDataStore, count: int) -> list[Job]:
    found, *_ = await store._claim(store.identity, LEASE, count, LEASE)
    return [job for job, _ in found]


async def test_a_place_that_somebody_else_has_taken_meanwhile_is_not_taken_again(
    database: DatabaseUrl, connection: asyncpg.Connection
) -> None:
    late, heir = node_store(database, "late"), node_store(database, "heir")
    async with started(late, silent_broker()), started(heir, silent_broker()):
        await late.add_task(a_task("limited", max_running_jobs=2))
        for _ in range(3):
            await late.add_job(a_job("limited"))
        ours = await claimed(late, 2)
        assert len(ours) == 2
        await expire(connection, "jobs")
        assert len(await claimed(heir, 1)) == 1
        kept = await late._renew_leases([job.id for job in ours])
        assert len(kept) == 1, "expected the one place that is still free to be kept"
        running = "select count(*) from duetime.jobs where acquired_until >= now()"
        assert await connection.fetchval(running) == 2


async def test_a_place_that_nobody_has_taken_is_kept(database: DatabaseUrl, connection: asyncpg.Connection) -> None:
    late = node_store(database, "late")
    async with started(late, silent_broker()):
        await late.add_task(a_task("limited", max_running_jobs=2))
        for _ in range(3):
            await late.add_job(a_job("limited"))
        ours = {job.id for job in await claimed(late, 3)}
        assert len(ours) == 2
        await expire(connection, "jobs")
        assert await late._renew_leases(list(ours)) == ours


async def test_a_next_attempt_that_is_claimed_before_the_last_ones_end_is_known_is_made_all_the_same(
    database: DatabaseUrl, connection: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answer that says that the first attempt has ended comes after the claim of the second one."""
    attempts: list[str] = []

    async def unlucky(node: str) -> None:
        attempts.append(node)
        if len(attempts) == 1:
            raise RuntimeError("not yet")

    options = TaskOptions(retry=Retry(max_attempts=2, backoff=0.1, jitter=0))
    async with nodes(database, "a", {"unlucky": unlucky}, options) as [a]:
        store = a._scheduler.store
        write = store._finishing._group._write

        async def slow_write(*arguments: Any) -> Any:
            outcomes = await write(*arguments)
            if len(attempts) == 1:
                await store._claim(store.identity, LEASE, 1, LEASE)
            return outcomes

        monkeypatch.setattr(store._finishing._group, "_write", slow_write)
        await a.scheduler.add_job("unlucky")
        await eventually(lambda: connection.fetchval("select count(*) = 2 from duetime.runs"))
        assert a._supervisor.crashes == 0
    runs = await connection.fetch("select attempt, outcome from duetime.runs order by id")
    assert [tuple(row) for row in runs] == [(1, "error"), (2, "success")]
    assert await connection.fetchval("select count(*) from duetime.jobs") == 0


@pytest.mark.parametrize("step", ["told", "given back"])
async def test_a_next_attempt_that_is_claimed_before_the_last_one_is_done_with_waits_for_that(
    database: DatabaseUrl, connection: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """4.0.0a6 crashes when it begins before. And to forget it as the last one would leave its lease to end while it
    runs: another node would run it as well."""
    begun: list[str] = []
    release = asyncio.Event()

    async def unlucky(node: str) -> None:
        begun.append(node)
        if len(begun) == 1:
            raise RuntimeError("not yet")
        await release.wait()

    options = TaskOptions(retry=Retry(max_attempts=2, backoff=0.1, jitter=0))
    async with nodes(database, "a", {"unlucky": unlucky}, options) as [a]:
        store = a._scheduler.store
        write, tell, fetch = store._finishing._group._write, store._tell_finished, store.database.fetch
        steps: list[str] = []

        async def until_it_is_claimed_again() -> None:
            store._queue_is_due = True
            store._jobs_wake.set()
            a._broker.nudge_workers()
            await eventually(lambda: job_id in {*(card.job.id for card in store._hand), *store._ending})
            await eventually(lambda: store._attempts.get(job_id) == 2)
            await eventually(lambda: store._is_asked and not store._answers)

        async def slow_write(*arguments: Any) -> Any:
            outcomes = await write(*arguments)
            if step == "given back" and not steps:
                steps.append("claimed")
                await store._claim(store.identity, LEASE, 1, LEASE)
            return outcomes

        async def slow_tell(finish: Finish) -> None:
            await tell(finish)
            if step == "told" and not steps:
                steps.append("told")
                await until_it_is_claimed_again()

        async def slow_fetch(name: str, *arguments: Any, **options: Any) -> Any:
            answer = await fetch(name, *arguments, **options)
            if name == "give_back_jobs":
                steps.append("given back")
                await until_it_is_claimed_again()
            return answer

        monkeypatch.setattr(store._finishing._group, "_write", slow_write)
        monkeypatch.setattr(NodeDataStore, "_tell_finished", lambda _, finish: slow_tell(finish))
        monkeypatch.setattr(store.database, "fetch", slow_fetch)
        job_id = await a.scheduler.add_job("unlucky")
        await eventually(lambda: len(begun) == 2)
        assert step in steps
        assert store._attempts == {job_id: 2}
        assert store._begun == {job_id}
        release.set()
        await eventually(lambda: connection.fetchval("select count(*) = 2 from duetime.runs"))
        assert a._supervisor.crashes == 0
    runs = await connection.fetch("select attempt, outcome from duetime.runs order by id")
    assert [tuple(row) for row in runs] == [(1, "error"), (2, "success")]


async def test_a_clean_up_keeps_the_nodes_own_jobs_whose_leases_ended_in_an_outage(
    database: DatabaseUrl, connection: asyncpg.Connection
) -> None:
    blocked = Blocked()
    options = TaskOptions(on_crash=OnCrash.abandon)
    async with nodes(database, "a", {"blocked": blocked}, options, lease_duration=3600) as [a]:
        await a.scheduler.add_job("blocked")
        await eventually(lambda: blocked.begun)
        await expire(connection, "jobs")
        await a._scheduler.store.cleanup()
        blocked.release.set()
        await eventually(lambda: connection.fetchval("select count(*) = 0 from duetime.jobs"))
    runs = await connection.fetch("select attempt, outcome from duetime.runs")
    assert [tuple(row) for row in runs] == [(1, "success")]
