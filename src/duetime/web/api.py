"""The REST API: schedules, their fires and runs, jobs and tasks. Every route is one verb of the service."""

# No `from __future__ import annotations`: FastAPI reads these annotations as they are.

from typing import Annotated, Any
from urllib.parse import quote

from fastapi import APIRouter, Body, Depends, Path, Query, Request, Response
from fastapi.security import HTTPBearer

from ..commands import FireQuery, NewJob, NewSchedule, PageRequest, RunQuery, ScheduleQuery
from ..errors import (
    AmbiguousTask,
    ArgumentsTooLarge,
    CrossOriginRefused,
    DuetimeError,
    InvalidArguments,
    InvalidCursor,
    InvalidJson,
    InvalidRequest,
    InvalidScheduleId,
    InvalidTrigger,
    NotStarted,
    RequestTooLarge,
    RunNotFound,
    ScheduleExists,
    ScheduleNotFound,
    StoreUnavailable,
    TriggerNeverFires,
    Unauthorized,
    UnknownTask,
    UnknownTimeZone,
    UnsupportedMediaType,
    UnsupportedValue,
)
from ..records import Fire, FireState, Job, Page, Run, Schedule, Task
from .problems import documented
from .route import door_route, external_path
from .runtime import Runtime

LARGEST_RUN_ID = 2**63 - 1

ScheduleId = Annotated[
    str,
    Path(
        description="Id of the schedule, percent-encoded: a slash in it is written `%2F`.",
        examples=["reminder-42", "team%2Fweekly"],
    ),
]
RunId = Annotated[int, Path(ge=1, le=LARGEST_RUN_ID, description="Number of the run.")]

BODY_ERRORS = (InvalidJson, RequestTooLarge, UnsupportedMediaType, InvalidRequest)
CALL_ERRORS = (UnknownTask, AmbiguousTask, InvalidArguments, ArgumentsTooLarge, UnsupportedValue)
TRIGGER_ERRORS = (InvalidTrigger, UnknownTimeZone, TriggerNeverFires)
PAGE_ERRORS = (InvalidCursor, InvalidRequest)

NEW_SCHEDULES: dict[str, Any] = {
    "cron": {
        "summary": "Again and again, by the clock of a zone",
        "value": {
            "task": "http_request",
            "kwargs": {"url": "https://example.com/hook", "method": "POST", "json": {"hello": "world"}},
            "trigger": {"type": "cron", "expression": "0 9 * * mon-fri", "timezone": "Europe/Berlin"},
        },
    },
    "interval": {
        "summary": "Again and again, a fixed time apart, under an id of your own",
        "value": {
            "id": "heartbeat",
            "task": "http_request",
            "kwargs": {"url": "https://example.com/alive"},
            "trigger": {"type": "interval", "minutes": 5},
            "tags": ["monitoring"],
        },
    },
    "date": {
        "summary": "Once",
        "value": {
            "task": "notify",
            "kwargs": {
                "urls": ["mailto://user:password@example.com"],
                "body": "The bus leaves in ten minutes.",
            },
            "trigger": {"type": "date", "run_at": "2027-06-01T09:00:00+02:00"},
        },
    },
}
"""What the OpenAPI page offers to try."""


class ScheduleFireQuery(PageRequest):
    """Filters of ``GET /schedules/{id}/fires``, newest fire first."""

    state: FireState | None = None


def build_router(runtime: Runtime) -> APIRouter:
    """Return the REST API of one runtime, to be included in an application under any prefix.

    Answers 503 with ``not_started`` while the runtime is not running. With ``Settings.api_token`` every
    request needs the token; without one, requests that change something are refused to web pages of other
    origins.
    """
    secured = runtime.settings.api_token is not None
    router = APIRouter(
        route_class=door_route(runtime),
        dependencies=[Depends(_bearer_scheme)] if secured else [],
    )
    common = (NotStarted, StoreUnavailable, *((Unauthorized,) if secured else ()))

    def reading(*errors: type[DuetimeError]) -> dict[int | str, dict[str, Any]]:
        return documented(*errors, *common)

    def changing(*errors: type[DuetimeError]) -> dict[int | str, dict[str, Any]]:
        return documented(*errors, *common, *(() if secured else (CrossOriginRefused,)))

    @router.post(
        "/schedules",
        status_code=201,
        tags=["schedules"],
        summary="Add a schedule",
        response_description="The stored schedule; `Location` is its address.",
        responses=changing(*BODY_ERRORS, InvalidScheduleId, ScheduleExists, *CALL_ERRORS, *TRIGGER_ERRORS),
    )
    async def add_schedule(
        body: Annotated[NewSchedule, Body(openapi_examples=NEW_SCHEDULES)],
        request: Request,
        response: Response,
    ) -> Schedule:
        """Store a schedule and answer when it is committed.

        Nothing is stored unless everything about it is right. A date in the past is allowed and runs at once;
        `note` says so.
        """
        schedule = await runtime.service.add(body)
        response.headers["Location"] = f"{quote(external_path(request.scope))}/{quote(schedule.id, safe='')}"
        return schedule

    @router.get(
        "/schedules",
        tags=["schedules"],
        summary="List schedules",
        response_description="A page of schedules.",
        responses=reading(*PAGE_ERRORS),
    )
    async def list_schedules(query: Annotated[ScheduleQuery, Query()]) -> Page[Schedule]:
        """Return a page of the schedules that fit all given filters."""
        return await runtime.service.schedules(query)

    @router.get(
        "/schedules/{schedule_id}",
        tags=["schedules"],
        summary="Get a schedule",
        response_description="The schedule.",
        responses=reading(ScheduleNotFound, InvalidRequest),
    )
    async def get_schedule(schedule_id: ScheduleId) -> Schedule:
        """Return one schedule with its state and its next fire times."""
        return await runtime.service.get(schedule_id)

    @router.delete(
        "/schedules/{schedule_id}",
        status_code=204,
        tags=["schedules"],
        summary="Delete a schedule",
        response_description="It is gone.",
        responses=changing(ScheduleNotFound, InvalidRequest),
    )
    async def delete_schedule(schedule_id: ScheduleId) -> None:
        """Remove a schedule. A job of it that runs already goes on; its fires and runs stay readable."""
        await runtime.service.remove(schedule_id)

    @router.post(
        "/schedules/{schedule_id}/pause",
        tags=["schedules"],
        summary="Pause a schedule",
        response_description="The paused schedule.",
        responses=changing(ScheduleNotFound, InvalidRequest),
    )
    async def pause_schedule(schedule_id: ScheduleId) -> Schedule:
        """Let a schedule fire no more until it is resumed. Pausing a paused one changes nothing."""
        return await runtime.service.pause(schedule_id)

    @router.post(
        "/schedules/{schedule_id}/resume",
        tags=["schedules"],
        summary="Resume a schedule",
        response_description="The active schedule.",
        responses=changing(ScheduleNotFound, InvalidRequest),
    )
    async def resume_schedule(schedule_id: ScheduleId) -> Schedule:
        """Let a paused schedule fire again. Resuming an active one changes nothing."""
        return await runtime.service.resume(schedule_id)

    @router.post(
        "/schedules/{schedule_id}/run",
        status_code=202,
        tags=["schedules"],
        summary="Run a schedule's task now",
        response_description="The queued job.",
        responses=changing(ScheduleNotFound, InvalidRequest),
    )
    async def run_schedule(schedule_id: ScheduleId) -> Job:
        """Queue a job with the schedule's task, arguments and options, beside its fires."""
        return await runtime.service.run_schedule(schedule_id)

    @router.get(
        "/schedules/{schedule_id}/fires",
        tags=["history"],
        summary="List the fires of a schedule",
        response_description="A page of fires.",
        responses=reading(*PAGE_ERRORS),
    )
    async def list_schedule_fires(schedule_id: ScheduleId, query: Annotated[ScheduleFireQuery, Query()]) -> Page[Fire]:
        """Return what became of each fire of a schedule, newest first.

        The fires of a removed schedule stay readable, so an id that never was one has an empty page, not an
        error.
        """
        return await runtime.service.fires(FireQuery(schedule_id=schedule_id, **dict(query)))

    @router.get(
        "/fires",
        tags=["history"],
        summary="List fires",
        response_description="A page of fires.",
        responses=reading(*PAGE_ERRORS),
    )
    async def list_fires(query: Annotated[FireQuery, Query()]) -> Page[Fire]:
        """Return what became of each fire, newest first. Every fire has a row here, whether it ran or not."""
        return await runtime.service.fires(query)

    @router.get(
        "/runs",
        tags=["history"],
        summary="List runs",
        response_description="A page of runs.",
        responses=reading(*PAGE_ERRORS),
    )
    async def list_runs(query: Annotated[RunQuery, Query()]) -> Page[Run]:
        """Return the attempts that have ended, newest first: when, where, how, and with which error."""
        return await runtime.service.runs(query)

    @router.get(
        "/runs/{run_id}",
        tags=["history"],
        summary="Get a run",
        response_description="The run.",
        responses=reading(RunNotFound, InvalidRequest),
    )
    async def get_run(run_id: RunId) -> Run:
        """Return one attempt of a job: when, where, how it ended, and with which error."""
        return await runtime.service.run(run_id)

    @router.post(
        "/jobs",
        status_code=202,
        tags=["jobs"],
        summary="Run a task now",
        response_description="The queued job.",
        responses=changing(*BODY_ERRORS, *CALL_ERRORS),
    )
    async def add_job(body: NewJob) -> Job:
        """Queue a job of a task, without a schedule, and answer when it is committed."""
        return await runtime.service.add_job(body)

    @router.get(
        "/jobs",
        tags=["jobs"],
        summary="List jobs",
        response_description="A page of jobs.",
        responses=reading(*PAGE_ERRORS),
    )
    async def list_jobs(query: Annotated[PageRequest, Query()]) -> Page[Job]:
        """Return what is queued and running. What has ended is among the runs."""
        return await runtime.service.jobs(query)

    @router.get(
        "/tasks",
        tags=["tasks"],
        summary="List tasks",
        response_description="All tasks, in one page.",
        responses=reading(),
    )
    async def list_tasks() -> Page[Task]:
        """Return the tasks that requests can name, each with the JSON Schema of its arguments."""
        return Page(items=await runtime.service.tasks())

    return router


_bearer_scheme = HTTPBearer(
    auto_error=False, scheme_name="token", description="The token of the setting `DUETIME_API_TOKEN`."
)
"""Describes the token in OpenAPI; the route checks it, before it reads the body."""
