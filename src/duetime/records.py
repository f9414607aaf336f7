"""Frozen read models: what every door shows, with the field descriptions that make the API reference.

All times are time-zone aware and in UTC unless a description says otherwise; durations are seconds.
"""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any, Generic, TypeVar
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field, JsonValue

T = TypeVar("T")


class Record(BaseModel):
    """Base of all read models: immutable, and strict about the names of its fields."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Engine(StrEnum):
    """Who fires a schedule."""

    apscheduler = "apscheduler"


class ScheduleState(StrEnum):
    """``active``: fires when due · ``paused``: waits for a resume · ``finished``: its trigger has no fire time
    left; the row goes at the next clean-up · ``broken``: cannot go on (``broken_reason`` says why)."""

    active = "active"
    paused = "paused"
    finished = "finished"
    broken = "broken"


class FireState(StrEnum):
    """What became of a fire.

    ``pending``: its job is queued, running or waiting for its next attempt · ``succeeded`` · ``failed``: the last
    attempt raised or timed out · ``skipped``: an earlier job of the schedule was still going (overlap) ·
    ``coalesced``: several fires were due at once and another one of them ran for all · ``missed``: could not start
    within its grace time · ``cancelled`` · ``abandoned``: the node died and the task asked not to be run again.
    """

    pending = "pending"
    succeeded = "succeeded"
    failed = "failed"
    skipped = "skipped"
    coalesced = "coalesced"
    missed = "missed"
    cancelled = "cancelled"
    abandoned = "abandoned"


class RunOutcome(StrEnum):
    """How one attempt ended.

    ``success`` · ``error``: the function raised · ``timeout`` · ``cancelled`` · ``abandoned``: the node vanished ·
    ``missed``: the start deadline had passed · ``unreadable``: the stored arguments could not be read.
    """

    success = "success"
    error = "error"
    timeout = "timeout"
    cancelled = "cancelled"
    abandoned = "abandoned"
    missed = "missed"
    unreadable = "unreadable"


class JobState(StrEnum):
    """``queued``: waits for a node or for its time · ``running``: a node holds its lease."""

    queued = "queued"
    running = "running"


class Schedule(Record):
    """A task + trigger + arguments + options, with an id."""

    id: Annotated[str, Field(description="Unique id, 1–500 characters.", examples=["reminder-42"])]
    task: Annotated[str, Field(description="Name of the registered task.", examples=["http_request"])]
    args: Annotated[list[Any], Field(description="Positional arguments of the task function.")]
    kwargs: Annotated[dict[str, Any], Field(description="Keyword arguments of the task function.")]
    trigger: Annotated[
        dict[str, Any],
        Field(
            description="The trigger in its JSON form.",
            examples=[{"type": "cron", "expression": "0 9 * * mon-fri", "timezone": "Europe/Berlin"}],
        ),
    ]
    description: Annotated[str, Field(description="The trigger as an English sentence.")]
    state: ScheduleState
    broken_reason: Annotated[str | None, Field(description="Why the schedule cannot go on.")] = None
    next_fire_time: Annotated[datetime | None, Field(description="The next due instant; null when there is none.")]
    last_fire_time: Annotated[datetime | None, Field(description="The latest instant that was fired.")]
    upcoming: Annotated[
        list[datetime], Field(description="The next five fire times, in the trigger's zone; empty when paused.")
    ] = []
    overlap: Annotated[str, Field(description="What happens when the last job is still going.", examples=["skip"])]
    options: Annotated[dict[str, JsonValue], Field(description="Effective options of this schedule's jobs.")] = {}
    tags: list[str] = []
    metadata: Annotated[dict[str, JsonValue], Field(description="Free key–value pairs of the caller.")] = {}
    engine: Engine = Engine.apscheduler
    created_at: datetime
    updated_at: datetime
    note: Annotated[
        str | None,
        Field(description="What the caller should know, e.g. that the date lies in the past and runs at once."),
    ] = None


class Fire(Record):
    """One due instant of a schedule. ``(schedule_id, fire_time)`` exists once, for ever."""

    schedule_id: str
    fire_time: Annotated[datetime, Field(description="The due instant, without jitter.")]
    run_time: Annotated[datetime | None, Field(description="The instant the job was due, jitter included.")] = None
    task: str
    state: FireState
    reason: Annotated[str | None, Field(description="Why it did not run, or how it failed.")] = None
    job_id: Annotated[UUID | None, Field(description="The fire's job, the same in every attempt.")] = None
    attempts: Annotated[int, Field(description="Attempts that have ended.")] = 0
    node: Annotated[str | None, Field(description="Identity of the node that fired it.")] = None
    created_at: Annotated[datetime, Field(description="When the ledger row was written (database clock).")]
    finished_at: datetime | None = None


class Run(Record):
    """One attempt of a job: when, where, how it ended."""

    id: Annotated[int, Field(description="Ascending number of the run.")]
    job_id: UUID
    attempt: Annotated[int, Field(description="1 for the first attempt.")]
    schedule_id: Annotated[str | None, Field(description="Null for a job without a schedule.")]
    fire_time: datetime | None
    task: str
    node: str | None
    started_at: Annotated[datetime | None, Field(description="Null when the function never started.")]
    finished_at: datetime
    lateness: Annotated[float | None, Field(description="Seconds from the due instant to the start.")]
    duration: Annotated[float | None, Field(description="Seconds from start to end.")]
    outcome: RunOutcome
    error: Annotated[str | None, Field(description="Type and text of the exception, at most 8,000 characters.")] = None
    will_retry_at: Annotated[datetime | None, Field(description="When the next attempt is due.")] = None


class Job(Record):
    """The queued or running work of a fire, or of a direct call, which has no schedule."""

    id: UUID
    task: str
    schedule_id: str | None
    fire_time: datetime | None
    state: JobState
    attempt: Annotated[int, Field(description="Attempts begun so far.")]
    run_at: Annotated[datetime, Field(description="Not started before this instant.")]
    node: Annotated[str | None, Field(description="Identity of the node that holds it.")] = None
    created_at: datetime


class Task(Record):
    """A registered callable with its options and the JSON Schema of its arguments."""

    name: Annotated[str, Field(description="The name to use in requests.", examples=["http_request"])]
    aliases: Annotated[list[str], Field(description="Other names that find it.")] = []
    description: Annotated[str, Field(description="First paragraph of the function's docstring.")]
    arguments: Annotated[dict[str, Any], Field(description="JSON Schema of the keyword arguments.")]
    options: Annotated[dict[str, JsonValue], Field(description="Effective options; durations in seconds.")]


class Page(Record, Generic[T]):
    """A bounded part of a list. Pass ``next`` as ``after`` to go on; ``null`` means that this was the last page."""

    items: list[T]
    next: str | None = None


class Readiness(Record):
    """Whether this node can do its work, and if not, why."""

    ready: bool
    reason: Annotated[str | None, Field(description="What is missing, when not ready.")] = None
    scheduler: Annotated[str, Field(description="State of the scheduler.", examples=["started"])]
    database: Annotated[str, Field(description="State of the database.", examples=["ok", "unreachable"])]
    node: Annotated[str, Field(description="Identity of this node.")]
