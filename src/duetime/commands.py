"""What a door asks the service to do: request bodies, as Pydantic models that are the API reference."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, JsonValue

from .records import Engine, FireState, RunOutcome, ScheduleState
from .tasks import Overlap, Retry
from .triggers import TriggerSpec

LONGEST = 3_155_760_000
"""Seconds in a hundred years. No duration may be longer, so that now plus a duration is always a date."""


def _utc(moment: datetime) -> datetime:
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


class Command(BaseModel):
    """Base of all request bodies: unknown fields are refused, so a misspelt option never passes silently."""

    model_config = ConfigDict(extra="forbid")


class ScheduleOptions(Command):
    """Options that override the task's own for one schedule. Durations are seconds."""

    overlap: Annotated[
        Overlap | None, Field(description="When a fire is due and the schedule's last job is still going.")
    ] = None
    misfire_grace_time: Annotated[
        float | None,
        Field(ge=0, le=LONGEST, description="Seconds a start may be late before the fire counts as missed."),
    ] = None
    coalesce: Annotated[
        str | None,
        Field(pattern="^(earliest|latest|all)$", description="Which fires run when several are due at once."),
    ] = None
    max_jitter: Annotated[
        float | None, Field(ge=0, le=LONGEST, description="Random delay of each fire, up to this.")
    ] = None
    timeout: Annotated[float | None, Field(gt=0, le=LONGEST, description="Seconds a run may take.")] = None
    retry: Annotated[Retry | None, Field(description="When and how often a failed run is tried again.")] = None
    on_crash: Annotated[
        str | None, Field(pattern="^(retry|abandon)$", description="What happens to a job whose node died.")
    ] = None
    result_ttl: Annotated[
        float | None, Field(ge=0, le=LONGEST, description="Seconds the return value stays readable.")
    ] = None


class NewSchedule(Command):
    """The body of ``POST /schedules``."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [
                {
                    "task": "http_request",
                    "kwargs": {"url": "https://example.com/hook", "method": "POST", "json": {"hello": "world"}},
                    "trigger": {"type": "cron", "expression": "0 9 * * mon-fri", "timezone": "Europe/Berlin"},
                }
            ]
        },
    )

    id: Annotated[str | None, Field(description="1–500 characters; left out, a new one is made.")] = None
    task: Annotated[str, Field(description="Name of a registered task (`GET /tasks`).", examples=["http_request"])]
    args: Annotated[list[Any], Field(description="Positional arguments.")] = []
    kwargs: Annotated[dict[str, Any], Field(description="Keyword arguments, checked against the function.")] = {}
    trigger: TriggerSpec
    paused: Annotated[bool, Field(description="Store it without firing until it is resumed.")] = False
    tags: Annotated[list[str], Field(max_length=50)] = []
    metadata: Annotated[dict[str, JsonValue], Field(description="Free key–value pairs, kept with the schedule.")] = {}
    options: ScheduleOptions = ScheduleOptions()
    engine: Engine = Engine.apscheduler


class NewJob(Command):
    """The body of ``POST /jobs``: run a task once, now."""

    task: Annotated[str, Field(description="Name of a registered task (`GET /tasks`).", examples=["http_request"])]
    args: list[Any] = []
    kwargs: dict[str, Any] = {}


class PageRequest(Command):
    """Which part of a list. ``limit`` above 200 is lowered to 200."""

    limit: Annotated[int, Field(ge=1, description="Items a page, at most 200.")] = 50
    after: Annotated[str | None, Field(description="`next` of the page before.")] = None


class ScheduleQuery(PageRequest):
    """Filters of ``GET /schedules``; all given ones must hold."""

    task: str | None = None
    tag: str | None = None
    state: ScheduleState | None = None
    engine: Engine | None = None
    due_before: Annotated[
        Annotated[datetime, AfterValidator(_utc)] | None,
        Field(description="Only schedules due before this instant; read as UTC without an offset."),
    ] = None
    search: Annotated[str | None, Field(max_length=200, description="Part of the id or the task's name.")] = None


class FireQuery(PageRequest):
    """Filters of ``GET /fires``, newest fire first."""

    schedule_id: str | None = None
    state: FireState | None = None


class RunQuery(PageRequest):
    """Filters of ``GET /runs``, newest run first."""

    schedule_id: str | None = None
    task: str | None = None
    outcome: RunOutcome | None = None
