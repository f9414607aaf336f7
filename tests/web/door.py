"""A runtime behind the door: it remembers what the door asks for, and answers or fails as a test says."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any, TypeVar
from uuid import UUID

import httpx
from apscheduler import AsyncScheduler
from fastapi import FastAPI
from starlette.types import ASGIApp, Receive, Scope, Send

from duetime import records
from duetime.changing import Revisions
from duetime.commands import FireQuery, NewJob, NewSchedule, PageRequest, RunQuery, ScheduleChange, ScheduleQuery
from duetime.service import Service
from duetime.settings import Settings
from duetime.web import build_router, health_router, install

T = TypeVar("T")

NOW = datetime(2026, 11, 23, 9, 0, tzinfo=UTC)
JOB_ID = UUID("0193a7c0-0000-7000-8000-000000000001")
CRON = {"type": "cron", "expression": "0 9 * * mon-fri", "timezone": "Europe/Berlin"}
NEW_SCHEDULE: dict[str, Any] = {"task": "send_sms", "kwargs": {"to": "+49"}, "trigger": CRON}

READY = records.Readiness(ready=True, scheduler="started", database="ok", node="node-1")


def a_schedule(schedule_id: str) -> records.Schedule:
    return records.Schedule(
        id=schedule_id,
        task="send_sms",
        args=[],
        kwargs={"to": "+49"},
        trigger=CRON,
        description="At 09:00, Monday through Friday",
        state=records.ScheduleState.active,
        next_fire_time=NOW,
        last_fire_time=None,
        overlap="skip",
        created_at=NOW,
        updated_at=NOW,
    )


def a_job(schedule_id: str | None = None) -> records.Job:
    return records.Job(
        id=JOB_ID,
        task="send_sms",
        schedule_id=schedule_id,
        fire_time=None,
        state=records.JobState.queued,
        attempt=0,
        run_at=NOW,
        created_at=NOW,
    )


def a_fire(schedule_id: str) -> records.Fire:
    return records.Fire(
        schedule_id=schedule_id,
        fire_time=NOW,
        task="send_sms",
        state=records.FireState.skipped,
        reason="an earlier job had not ended",
        created_at=NOW,
    )


def a_run(run_id: int) -> records.Run:
    return records.Run(
        id=run_id,
        job_id=JOB_ID,
        attempt=1,
        schedule_id="s",
        fire_time=NOW,
        task="send_sms",
        node="node-1",
        started_at=NOW,
        finished_at=NOW,
        lateness=0.001,
        duration=0.0,
        outcome=records.RunOutcome.success,
    )


A_TASK = records.Task(name="send_sms", description="Send a text.", arguments={"type": "object"}, options={})


class DoorService(Service):
    """Answers every verb with a fixed record, or fails with ``error``; ``calls`` lists what it was asked."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, Any]] = []
        self.error: Exception | None = None

    def _answer(self, verb: str, argument: Any, result: T) -> T:
        self.calls.append((verb, argument))
        if self.error is not None:
            raise self.error
        return result

    async def add(self, new: NewSchedule) -> records.Schedule:
        return self._answer("add", new, a_schedule(new.id or "made-up"))

    async def get(self, schedule_id: str) -> records.Schedule:
        return self._answer("get", schedule_id, a_schedule(schedule_id))

    async def schedules(self, query: ScheduleQuery) -> records.Page[records.Schedule]:
        return self._answer("schedules", query, records.Page(items=[a_schedule("s")], next="cursor"))

    async def preview(self, new: NewSchedule, *, fires: int = 5) -> records.Preview:
        return self._answer("preview", (new, fires), records.Preview(verdict=records.Verdict.ok))

    async def update(
        self, schedule_id: str, change: ScheduleChange, *, revision: Revisions | None = None
    ) -> records.Schedule:
        return self._answer("update", (schedule_id, change, revision), a_schedule(change.id or schedule_id))

    async def remove(self, schedule_id: str, *, revision: Revisions | None = None) -> None:
        self._answer("remove", schedule_id if revision is None else (schedule_id, revision), None)

    async def pause(self, schedule_id: str, *, revision: Revisions | None = None) -> records.Schedule:
        asked = schedule_id if revision is None else (schedule_id, revision)
        return self._answer("pause", asked, a_schedule(schedule_id))

    async def resume(self, schedule_id: str, *, revision: Revisions | None = None) -> records.Schedule:
        asked = schedule_id if revision is None else (schedule_id, revision)
        return self._answer("resume", asked, a_schedule(schedule_id))

    async def run_schedule(self, schedule_id: str) -> records.Job:
        return self._answer("run_schedule", schedule_id, a_job(schedule_id))

    async def add_job(self, new: NewJob) -> records.Job:
        return self._answer("add_job", new, a_job())

    async def jobs(self, query: PageRequest) -> records.Page[records.Job]:
        return self._answer("jobs", query, records.Page(items=[a_job()]))

    async def cancel_job(self, job_id: UUID, reason: str | None = None) -> records.Cancellation:
        state = records.CancelState.cancelled if reason is None else records.CancelState.requested
        return self._answer("cancel_job", (job_id, reason), records.Cancellation(job_id=job_id, state=state))

    async def fires(self, query: FireQuery) -> records.Page[records.Fire]:
        page: records.Page[records.Fire] = records.Page(items=[a_fire(query.schedule_id or "s")])
        return self._answer("fires", query, page)

    async def runs(self, query: RunQuery) -> records.Page[records.Run]:
        return self._answer("runs", query, records.Page(items=[a_run(1)]))

    async def run(self, run_id: int) -> records.Run:
        return self._answer("run", run_id, a_run(run_id))

    async def tasks(self) -> list[records.Task]:
        return self._answer("tasks", None, [A_TASK])

    async def readiness(self) -> records.Readiness:
        return self._answer("readiness", None, READY)


class DoorRuntime:
    """What the door needs from the house; ``is_running`` tells whether :meth:`running` is entered."""

    def __init__(self, **settings: Any) -> None:
        self.service: Service = DoorService()
        self.scheduler = AsyncScheduler()
        self.settings = Settings(database_url="postgresql://nobody@127.0.0.1/nothing", **settings)
        self.is_running = False

    @property
    def answers(self) -> DoorService:
        assert isinstance(self.service, DoorService)
        return self.service

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        self.is_running = True
        try:
            yield
        finally:
            self.is_running = False


def served(runtime: DoorRuntime) -> FastAPI:
    """Return an application that is all ours, as ``duetime serve`` makes it."""
    app = FastAPI()
    install(app)
    app.include_router(build_router(runtime), prefix="/api")
    app.include_router(health_router(runtime))
    return app


def client_of(app: ASGIApp) -> httpx.AsyncClient:
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url="http://door.test")


def problem_of(response: httpx.Response) -> dict[str, Any]:
    """Return a problem document, after a check that it is one."""
    assert response.headers["content-type"] == "application/problem+json", response.text
    problem: dict[str, Any] = response.json()
    assert set(problem) == {"type", "title", "status", "detail", "code", "errors"}
    assert problem["status"] == response.status_code
    return problem


@asynccontextmanager
async def started(app: FastAPI) -> AsyncIterator[ASGIApp]:
    """Run an application's lifespan as a server does, and yield what then takes requests."""
    inbox: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
    outbox: asyncio.Queue[Any] = asyncio.Queue()
    state: dict[str, Any] = {}
    lifespan = asyncio.create_task(app({"type": "lifespan", "state": state}, inbox.get, outbox.put))

    async def exchange(message: str) -> None:
        inbox.put_nowait({"type": f"lifespan.{message}"})
        answer = await outbox.get()
        assert answer["type"] == f"lifespan.{message}.complete", answer

    async def serve(scope: Scope, receive: Receive, send: Send) -> None:
        await app({**scope, "state": dict(state)}, receive, send)

    async with asyncio.timeout(10):
        await exchange("startup")
        yield serve
        await exchange("shutdown")
        await lifespan


async def websocket_messages(app: ASGIApp, path: str, *received: dict[str, Any]) -> list[Any]:
    """Connect a websocket, send it these messages, and return all that the application sends on it."""
    scope = {"type": "websocket", "path": path, "query_string": b"", "headers": [], "subprotocols": []}
    sent: list[Any] = []
    inbox: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
    for message in ({"type": "websocket.connect"}, *received):
        inbox.put_nowait(message)

    async def send(message: Any) -> None:
        sent.append(message)

    async with asyncio.timeout(10):
        await app(scope, inbox.get, send)
    return sent
