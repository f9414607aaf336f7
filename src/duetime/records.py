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

    ``pending``: its job is queued, running or waiting for its turn or its next attempt · ``succeeded`` · ``failed``:
    the last attempt raised or timed out · ``skipped``: an earlier job of the schedule was still going (overlap) ·
    ``coalesced``: several fires were due at once and another one of them stands for all · ``missed``: could not start
    within its grace time or its catch-up window · ``cancelled`` · ``abandoned``: the node died and the task asked not
    to be run again.
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
    """``queued``: waits for a node or for its time · ``waiting``: waits for its turn, because an earlier job of its
    schedule has not ended · ``running``: a node holds its lease."""

    queued = "queued"
    waiting = "waiting"
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
    pause_reason: Annotated[
        str | None, Field(description="Why Duetime has paused the schedule; null when somebody else has.")
    ] = None
    next_fire_time: Annotated[datetime | None, Field(description="The next due instant; null when there is none.")]
    last_fire_time: Annotated[datetime | None, Field(description="The latest instant that was fired.")]
    upcoming: Annotated[
        list[datetime], Field(description="The next five fire times, in the trigger's zone; empty when paused.")
    ] = []
    overlap: Annotated[str, Field(description="What happens when the last job is still going.", examples=["skip"])]
    options: Annotated[dict[str, JsonValue], Field(description="Effective options of this schedule's jobs.")] = {}
    tags: list[str] = []
    owner: Annotated[str | None, Field(description="Who to ask about it.")] = None
    metadata: Annotated[dict[str, JsonValue], Field(description="Free key–value pairs of the caller.")] = {}
    expires_at: Annotated[datetime | None, Field(description="Nothing of it starts at or after this instant.")] = None
    max_fires: Annotated[int | None, Field(description="It is finished after so many fires.")] = None
    finished_reason: Annotated[str | None, Field(description="Why it has no next fire time.")] = None
    engine: Engine = Engine.apscheduler
    revision: Annotated[
        str,
        Field(description="Changes with each change of the definition; in quotes it is the ETag.", examples=["0b6f…"]),
    ] = ""
    created_at: datetime
    updated_at: datetime
    note: Annotated[
        str | None,
        Field(description="What the caller should know, e.g. that the date lies in the past and runs at once."),
    ] = None


class UpcomingFire(Record):
    """A fire that lies ahead."""

    fire_time: Annotated[datetime, Field(description="The due instant, in the trigger's zone, with its offset.")]
    zone: Annotated[str, Field(description="Name of the zone at that instant.", examples=["CEST"])]
    note: Annotated[
        str | None,
        Field(description="What a change of the clock has to do with it, and which fire times are left out before it."),
    ] = None


class NearDuplicate(Record):
    """A stored schedule that does nearly the same."""

    id: str
    description: str
    state: ScheduleState
    reason: Annotated[str, Field(description="What they have in common.")]


class Verdict(StrEnum):
    """``ok``: it would be stored · ``doubtful``: it would be stored, and `warnings` say why it may not be meant ·
    ``refused``: it would not be stored, and `problems` say why."""

    ok = "ok"
    doubtful = "doubtful"
    refused = "refused"


class Problem(Record):
    """One thing that is wrong."""

    code: Annotated[str, Field(description="Stable name of the kind of problem.", examples=["unknown_task"])]
    where: Annotated[str, Field(description="The field.", examples=["kwargs.url"])]
    problem: Annotated[str, Field(description="What was expected and what came.")]


class Preview(Record):
    """What a schedule would be and do, if it were added. Nothing is stored."""

    verdict: Verdict
    problems: Annotated[list[Problem], Field(description="All that is wrong, when it would be refused.")] = []
    warnings: Annotated[list[str], Field(description="What is allowed and may not be meant.")] = []
    task: Annotated[str | None, Field(description="Full name of the task; null if there is no such task.")] = None
    trigger: Annotated[dict[str, Any] | None, Field(description="The trigger in its normal form.")] = None
    description: Annotated[str | None, Field(description="The trigger as an English sentence.")] = None
    next_fire_time: Annotated[datetime | None, Field(description="When it would fire first.")] = None
    upcoming: Annotated[list[UpcomingFire], Field(description="The next fires, with what the clock does to them.")] = []
    near_duplicates: Annotated[list[NearDuplicate], Field(description="Stored schedules that do nearly the same.")] = []


class Bulk(Record):
    """What a request about many schedules has done."""

    count: Annotated[int, Field(description="How many schedules.")]
    ids: Annotated[list[str], Field(description="Their ids.")]
    dry_run: Annotated[bool, Field(description="Whether nothing was changed.")] = False


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


class Failure(Record):
    """What an ``on_failure`` task is told: a job that has failed for good, or was abandoned."""

    job_id: UUID
    task: str
    schedule_id: Annotated[str | None, Field(description="Null for a job without a schedule.")] = None
    fire_time: datetime | None = None
    state: Annotated[FireState, Field(description="`failed` or `abandoned`.")]
    attempts: Annotated[int, Field(description="Attempts that were made.")]
    error: Annotated[str | None, Field(description="Type and text of the last exception, at most 8,000 characters.")]
    node: Annotated[str | None, Field(description="Identity of the node that made the last attempt.")] = None
    failed_at: datetime


class BackfillResult(Record):
    """What a backfill has done, or would do."""

    schedule_id: str
    dry_run: bool
    overlap: Annotated[str, Field(description="The policy that its jobs have.")]
    fires: Annotated[int, Field(description="Fire times in the range.")]
    already: Annotated[int, Field(description="Those that have had a job, and get no other one.")]
    made: Annotated[int, Field(description="Jobs that were made, or would be.")]
    first: Annotated[list[datetime], Field(description="The first hundred of the fire times.")] = []


class Answer(StrEnum):
    """Why a schedule ran at an instant, or why not.

    With a ledger row: ``ran`` · ``failed`` · ``pending`` · ``skipped`` · ``coalesced`` · ``missed`` · ``cancelled`` ·
    ``abandoned``. Without one: ``paused`` · ``not_a_fire_time`` · ``not_yet``: it lies ahead · ``overdue``: due, and no
    node has come to it · ``not_added_yet`` · ``removed`` · ``renamed`` · ``expired`` · ``finished`` · ``broken`` ·
    ``replaced``: the definition was changed before a node had come to it · ``history_deleted`` · ``unknown``.
    """

    ran = "ran"
    failed = "failed"
    pending = "pending"
    skipped = "skipped"
    coalesced = "coalesced"
    missed = "missed"
    cancelled = "cancelled"
    abandoned = "abandoned"
    paused = "paused"
    not_a_fire_time = "not_a_fire_time"
    not_yet = "not_yet"
    overdue = "overdue"
    not_added_yet = "not_added_yet"
    removed = "removed"
    renamed = "renamed"
    expired = "expired"
    finished = "finished"
    broken = "broken"
    replaced = "replaced"
    history_deleted = "history_deleted"
    unknown = "unknown"


class Change(Record):
    """Something that was done to a schedule."""

    at: Annotated[datetime, Field(description="When, by the database's clock.")]
    change: Annotated[str, Field(description="What.", examples=["paused", "resumed", "updated", "removed"])]
    detail: Annotated[dict[str, JsonValue], Field(description="What is known of it.")] = {}


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


class CancelState(StrEnum):
    """``cancelled``: the job has ended and will not run (again) · ``requested``: a node has it, and cancels
    it as soon as it hears of it, or at the latest when it next renews its leases."""

    cancelled = "cancelled"
    requested = "requested"


class Cancellation(Record):
    """What a request to cancel a job has done."""

    job_id: UUID
    state: CancelState
    node: Annotated[str | None, Field(description="Identity of the node that was asked to cancel it.")] = None


class Explanation(Record):
    """Why a schedule ran at an instant, or why not."""

    schedule_id: str
    at: Annotated[datetime, Field(description="The instant that was asked for.")]
    answer: Answer
    because: Annotated[str, Field(description="The answer in a sentence or some.")]
    fire: Annotated[Fire | None, Field(description="The ledger row, if there is one.")] = None
    runs: Annotated[list[Run], Field(description="The attempts of its job that have ended.")] = []
    changes: Annotated[list[Change], Field(description="What was done to the schedule around then, in order.")] = []


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
    last_error: Annotated[str | None, Field(description="How the attempt before ended, if one has failed.")] = None
    cancel_requested_at: Annotated[
        datetime | None, Field(description="Since when its node is asked to cancel it; null: nobody has asked.")
    ] = None
    cancel_reason: str | None = None
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
    abandoned_threads: Annotated[
        int,
        Field(description="Functions that go on in threads of this node although their jobs have timed out or ended."),
    ] = 0
    abandoned_coroutines: Annotated[
        int,
        Field(description="Coroutines that swallowed their cancellation, and go on although their jobs have ended."),
    ] = 0
