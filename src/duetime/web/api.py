"""The REST API: schedules, their fires and runs, jobs and tasks. Every route is one verb of the service."""

# No `from __future__ import annotations`: FastAPI reads these annotations as they are.

import re
from datetime import UTC, datetime
from typing import Annotated, Any
from urllib.parse import quote
from uuid import UUID

from fastapi import APIRouter, Body, Depends, Header, Path, Query, Request, Response
from fastapi.security import HTTPBearer

from ..commands import (
    Backfill,
    FireQuery,
    NewJob,
    NewSchedule,
    NewSchedules,
    PageRequest,
    RunQuery,
    ScheduleChange,
    ScheduleQuery,
    Selection,
)
from ..errors import (
    AmbiguousTask,
    ArgumentsTooLarge,
    CrossOriginRefused,
    DuetimeError,
    FiresTooOften,
    InvalidArguments,
    InvalidCursor,
    InvalidJson,
    InvalidOptions,
    InvalidRequest,
    InvalidSchedule,
    InvalidScheduleId,
    InvalidTrigger,
    JobNotFound,
    NotStarted,
    PreconditionFailed,
    RequestTooLarge,
    RunNotFound,
    ScheduleExists,
    ScheduleNotFound,
    StoreUnavailable,
    TooManyFires,
    TriggerNeverFires,
    Unauthorized,
    UnknownTask,
    UnknownTimeZone,
    UnsupportedMediaType,
    UnsupportedValue,
)
from ..records import (
    BackfillResult,
    Bulk,
    Cancellation,
    CancelState,
    Explanation,
    Fire,
    FireState,
    Job,
    Page,
    Preview,
    Run,
    Schedule,
    Task,
)
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
JobId = Annotated[UUID, Path(description="Id of the job: `job_id` of a fire or a run, `id` in `GET /jobs`.")]
IfMatch = Annotated[
    str | None,
    Header(
        description="The ETag of the schedule that the change is made for, or several; if it has another one by now, "
        "the change is refused.",
        examples=['"7f3c0f52-6f0a-4f0e-9d3c-0a9b8f1c2d3e"'],
    ),
]
RunId = Annotated[int, Path(ge=1, le=LARGEST_RUN_ID, description="Number of the run.")]

BODY_ERRORS = (InvalidJson, RequestTooLarge, UnsupportedMediaType, InvalidRequest)
CALL_ERRORS = (UnknownTask, AmbiguousTask, InvalidArguments, ArgumentsTooLarge, UnsupportedValue)
TRIGGER_ERRORS = (InvalidTrigger, UnknownTimeZone, TriggerNeverFires, FiresTooOften)
SCHEDULE_ERRORS = (InvalidSchedule, *CALL_ERRORS, InvalidOptions, *TRIGGER_ERRORS)
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
        responses=changing(*BODY_ERRORS, InvalidScheduleId, ScheduleExists, *SCHEDULE_ERRORS),
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
        return _tagged(schedule, response)

    @router.post(
        "/schedules/preview",
        tags=["schedules"],
        summary="Preview a schedule",
        response_description="What it would be and do, and all that is wrong with it.",
        responses=changing(*BODY_ERRORS),
    )
    async def preview_schedule(
        body: Annotated[NewSchedule, Body(openapi_examples=NEW_SCHEDULES)],
        fires: Annotated[int, Query(ge=1, le=100, description="How many of the next fires to show.")] = 5,
    ) -> Preview:
        """Say what a schedule would be and do, and store nothing.

        The body is that of `POST /schedules`. What is wrong with its values is no error here: `verdict` is `refused`,
        and `problems` has all of it, each with the code that adding it would end with.
        """
        return await runtime.service.preview(body, fires=fires)

    @router.post(
        "/schedules/bulk",
        status_code=201,
        tags=["schedules"],
        summary="Add many schedules",
        response_description="Their ids, in the order in which they came.",
        responses=changing(*BODY_ERRORS, InvalidScheduleId, ScheduleExists, *SCHEDULE_ERRORS),
    )
    async def add_schedules(body: NewSchedules) -> Bulk:
        """Store up to 10,000 schedules, all of them or none, and answer when they are committed.

        If something is wrong with any of them, none is stored, and `errors` lists up to 100 problems with their places.
        """
        return await runtime.service.add_all(body)

    @router.delete(
        "/schedules/bulk",
        tags=["schedules"],
        summary="Delete many schedules",
        response_description="Which were removed.",
        responses=changing(*BODY_ERRORS, UnknownTask, AmbiguousTask),
    )
    async def delete_schedules(body: Selection) -> Bulk:
        """Remove the schedules that are named or that fit all filters, all of them or none; their history stays.

        Try it with `dry_run` first. A request without ids and filters is refused, unless `everything` is true.
        """
        return await runtime.service.remove_all(body)

    @router.post(
        "/schedules/bulk/pause",
        tags=["schedules"],
        summary="Pause many schedules",
        response_description="Which were paused.",
        responses=changing(*BODY_ERRORS, UnknownTask, AmbiguousTask),
    )
    async def pause_schedules(body: Selection) -> Bulk:
        """Pause the active ones of the schedules that are named or that fit all filters, all of them or none."""
        return await runtime.service.pause_all(body)

    @router.post(
        "/schedules/bulk/resume",
        tags=["schedules"],
        summary="Resume many schedules",
        response_description="Which were resumed.",
        responses=changing(*BODY_ERRORS, UnknownTask, AmbiguousTask),
    )
    async def resume_schedules(body: Selection) -> Bulk:
        """Resume the paused ones of the schedules that are named or that fit all filters, from now on."""
        return await runtime.service.resume_all(body)

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
    async def get_schedule(schedule_id: ScheduleId, response: Response) -> Schedule:
        """Return one schedule with its state and its next fire times.

        Its `ETag` changes with each change of its definition, and not when it fires.
        """
        return _tagged(await runtime.service.get(schedule_id), response)

    @router.patch(
        "/schedules/{schedule_id}",
        tags=["schedules"],
        summary="Change a schedule",
        response_description="The changed schedule.",
        responses=changing(
            *BODY_ERRORS, ScheduleNotFound, PreconditionFailed, InvalidScheduleId, ScheduleExists, *SCHEDULE_ERRORS
        ),
    )
    async def change_schedule(
        schedule_id: ScheduleId, body: ScheduleChange, response: Response, if_match: IfMatch = None
    ) -> Schedule:
        """Change parts of a schedule in place. Its history stays.

        The next fire time stays too, unless the trigger is another one. With `If-Match` the change is refused if
        somebody has changed the schedule since that `ETag` was read.
        """
        changed = await runtime.service.update(schedule_id, body, revision=_revisions(if_match))
        return _tagged(changed, response)

    @router.delete(
        "/schedules/{schedule_id}",
        status_code=204,
        tags=["schedules"],
        summary="Delete a schedule",
        response_description="It is gone.",
        responses=changing(ScheduleNotFound, PreconditionFailed, InvalidRequest),
    )
    async def delete_schedule(schedule_id: ScheduleId, if_match: IfMatch = None) -> None:
        """Remove a schedule. A job of it that runs already goes on; its fires and runs stay readable."""
        await runtime.service.remove(schedule_id, revision=_revisions(if_match))

    @router.post(
        "/schedules/{schedule_id}/pause",
        tags=["schedules"],
        summary="Pause a schedule",
        response_description="The paused schedule.",
        responses=changing(ScheduleNotFound, PreconditionFailed, InvalidRequest),
    )
    async def pause_schedule(schedule_id: ScheduleId, response: Response, if_match: IfMatch = None) -> Schedule:
        """Let a schedule fire no more until it is resumed."""
        return _tagged(await runtime.service.pause(schedule_id, revision=_revisions(if_match)), response)

    @router.post(
        "/schedules/{schedule_id}/resume",
        tags=["schedules"],
        summary="Resume a schedule",
        response_description="The active schedule.",
        responses=changing(ScheduleNotFound, PreconditionFailed, InvalidRequest),
    )
    async def resume_schedule(schedule_id: ScheduleId, response: Response, if_match: IfMatch = None) -> Schedule:
        """Let a paused schedule fire again. Resuming an active one changes nothing."""
        return _tagged(await runtime.service.resume(schedule_id, revision=_revisions(if_match)), response)

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

    @router.post(
        "/schedules/{schedule_id}/backfill",
        status_code=202,
        tags=["schedules"],
        summary="Backfill a range of the past",
        response_description="How many jobs were made, or would be.",
        responses=changing(*BODY_ERRORS, ScheduleNotFound, TooManyFires, InvalidTrigger),
    )
    async def backfill_schedule(schedule_id: ScheduleId, body: Backfill) -> BackfillResult:
        """Queue a job for each fire time in a range of the past that has had none. Try it with `dry_run` first.

        Asked again, it makes no second job for any of them. More than 10,000 fires are refused, with their number.
        """
        return await runtime.service.backfill(
            schedule_id, body.start, body.end, overlap=body.overlap, dry_run=body.dry_run
        )

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
        "/schedules/{schedule_id}/explain",
        tags=["history"],
        summary="Explain a fire, or why there was none",
        response_description="The answer.",
        responses=reading(ScheduleNotFound, InvalidRequest),
    )
    async def explain_fire(
        schedule_id: ScheduleId,
        at: Annotated[
            datetime,
            Query(
                description="The instant, ISO 8601; read as UTC without an offset. Whole seconds also mean a fire "
                "within that second.",
                examples=["2026-11-24T09:00:00Z"],
            ),
        ],
    ) -> Explanation:
        """Say why a schedule ran at an instant, or why it did not: paused then, skipped, too late, nobody was up, …

        Also of schedules that have been removed, as long as their history is kept.
        """
        return await runtime.service.explain(schedule_id, at if at.tzinfo else at.replace(tzinfo=UTC))

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

    @router.post(
        "/jobs/{job_id}/cancel",
        tags=["jobs"],
        summary="Cancel a job",
        response_description="It has ended, cancelled.",
        responses={
            202: {"model": Cancellation, "description": "The node that has claimed it is asked to cancel it."},
            **changing(JobNotFound, InvalidRequest),
        },
    )
    async def cancel_job(
        job_id: JobId,
        response: Response,
        reason: Annotated[str | None, Query(max_length=500, description="What the ledger says of it.")] = None,
    ) -> Cancellation:
        """Cancel a job on whichever node it is: at once (200) if it is queued, or waits for its next attempt.

        If a node has claimed it (202), that node cancels it as soon as it hears of it, and at the latest when it next
        renews its leases. A plain `def` in a thread cannot be stopped: its job ends, and it goes on unheeded. The fire
        is `cancelled`, unless the job came to its end before.
        """
        cancellation = await runtime.service.cancel_job(job_id, reason)
        if cancellation.state is CancelState.requested:
            response.status_code = 202
        return cancellation

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


def _tagged(schedule: Schedule, response: Response) -> Schedule:
    response.headers["ETag"] = f'"{schedule.revision}"'
    return schedule


_ENTITY_TAG = re.compile(r'(W/)?"([^"]*)"')


def _revisions(if_match: str | None) -> list[str] | None:
    """Return the revisions that an If-Match header names, or None for any.

    A weak tag matches nothing (RFC 9110, sections 8.8.3.2 and 13.1.1). A tag without its quotes is taken as it is.
    """
    if if_match is None or if_match.strip() == "*":
        return None
    tags = _ENTITY_TAG.findall(if_match)
    return [tag for weak, tag in tags if not weak] if tags else [if_match.strip()]


_bearer_scheme = HTTPBearer(
    auto_error=False, scheme_name="token", description="The token of the setting `DUETIME_API_TOKEN`."
)
"""Describes the token in OpenAPI; the route checks it, before it reads the body."""
