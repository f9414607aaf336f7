"""A web application under `duetime serve` while its database is restarted, killed and away."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from ..end_to_end.server import Server
from ..waiting import eventually
from .parts import MARGIN, connected, measured, settled
from .servers import FAST, KILL, OwnServer

CALL_TIMEOUT = 1.0

TASKS = """
import asyncio, os, signal, sys
import duetime

class Fatal(Exception):
    def __str__(self):
        sys.exit("no text")

@duetime.task(name="tick")
async def tick() -> None:
    pass

@duetime.task(name="exits")
async def exits() -> None:
    sys.exit(3)

@duetime.task(name="exits in a thread")
def exits_in_a_thread() -> None:
    sys.exit(3)

@duetime.task(name="interrupts")
async def interrupts() -> None:
    raise KeyboardInterrupt

@duetime.task(name="interrupts on the loop", executor="async")
def interrupts_on_the_loop() -> None:
    raise KeyboardInterrupt

@duetime.task(name="fatal")
async def fatal() -> None:
    raise Fatal

@duetime.task(name="cancels", executor="async")
def cancels() -> None:
    asyncio.current_task().cancel()

@duetime.task(name="leaves tasks behind")
async def leaves_tasks_behind() -> None:
    asyncio.current_task().left = asyncio.create_task(asyncio.sleep(3600))
    raise Fatal

@duetime.task(name="recurses", executor="async")
def recurses() -> None:
    recurses()

@duetime.task(name="swallows", timeout=0.2)
async def swallows() -> None:
    while True:
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            pass
"""
POISON = (
    "exits",
    "exits in a thread",
    "interrupts",
    "interrupts on the loop",
    "fatal",
    "cancels",
    "leaves tasks behind",
    "recurses",
    "swallows",
)


@pytest.fixture
async def application(own: OwnServer, tmp_path: Path) -> AsyncIterator[Server]:
    """A server process on the test's database."""
    tasks = tmp_path / "faulty_tasks.py"
    tasks.write_text(TASKS)
    server = Server(
        tmp_path,
        environment={
            "DATABASE_URL": own.url.text,
            "DUETIME_CALL_TIMEOUT": str(CALL_TIMEOUT),
            "DUETIME_TASK_MODULES": "faulty_tasks",
            "PYTHONPATH": str(tmp_path),
        },
    )
    try:
        await asyncio.to_thread(server.start)
        await asyncio.to_thread(server.wait_until_ready)
        yield server
        assert await asyncio.to_thread(server.stop) == 0
        assert not server.alarms()
    finally:
        await asyncio.to_thread(server.close)


@pytest.mark.parametrize("how", [FAST, KILL], ids=["fast", "kill -9"])
async def test_the_application_stays_up_says_why_it_is_not_ready_and_resumes(
    own: OwnServer, application: Server, how: int
) -> None:
    body = {"task": "tick", "trigger": {"type": "interval", "seconds": 1}}
    added = await asyncio.to_thread(application.client.post, "/api/schedules", json=body)
    assert added.status_code == 201, added.text
    schedule = added.json()["id"]
    async with connected(own.url) as connection:
        await eventually(lambda: connection.fetchval("select count(*) > 0 from duetime.runs"))
    await own.stop(how)  # type: ignore[arg-type]
    for _ in range(2):
        began = time.monotonic()
        refused = await asyncio.to_thread(application.client.post, "/api/schedules", json=body)
        assert time.monotonic() - began < CALL_TIMEOUT + MARGIN
        assert (refused.status_code, refused.json()["code"]) == (503, "store_unavailable"), refused.text
        assert (await asyncio.to_thread(application.client.get, "/health/live")).status_code == 200
        ready = await asyncio.to_thread(application.client.get, "/health/ready")
        assert ready.status_code == 503
        assert "does not answer" in ready.json()["reason"]
    assert application.is_up
    await own.start()
    back_at = time.monotonic()
    await eventually(lambda: asyncio.to_thread(_is_ready, application))
    measured("/health/ready after the database is back", time.monotonic() - back_at)
    async with connected(own.url) as connection:
        before = await connection.fetchval("select count(*) from duetime.runs")
        await eventually(lambda: connection.fetchval("select count(*) > $1 from duetime.runs", before))
        measured("first run after the database is back", time.monotonic() - back_at)
        removed = await asyncio.to_thread(application.client.delete, f"/api/schedules/{schedule}")
        assert removed.status_code == 204, removed.text
        await eventually(lambda: settled(connection))
        assert await connection.fetchval("select count(*) from duetime.runs where outcome <> 'success'") == 0
        doubled = "select count(*) from (select job_id from duetime.runs group by job_id having count(*) > 1) as twice"
        assert await connection.fetchval(doubled) == 0


async def test_no_job_ends_the_application(own: OwnServer, application: Server) -> None:
    pid = application.pid
    for task in POISON:
        answer = await asyncio.to_thread(application.client.post, "/api/jobs", json={"task": task})
        assert answer.status_code in (201, 202), answer.text
    async with connected(own.url) as connection:
        await eventually(lambda: connection.fetchval("select count(*) = $1 from duetime.runs", len(POISON)))
        runs = await connection.fetch("select task_id, outcome, error from duetime.runs")
        assert {run["task_id"]: run["outcome"] for run in runs} == {
            task: "timeout" if task == "swallows" else "error" for task in POISON
        }
        assert all(run["error"] for run in runs)
        answer = await asyncio.to_thread(application.client.post, "/api/jobs", json={"task": "tick"})
        assert answer.status_code in (201, 202), answer.text
        await eventually(lambda: connection.fetchval("select count(*) = 1 from duetime.runs where outcome = 'success'"))
    assert application.pid == pid
    assert _is_ready(application)


def _is_ready(server: Server) -> bool:
    return server.client.get("/health/ready").status_code == 200
