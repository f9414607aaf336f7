"""What a door asks the service to do: request bodies, as Pydantic models that are the API reference."""

from __future__ import annotations

from dataclasses import fields
from datetime import UTC, datetime
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, JsonValue, SkipValidation, model_validator

from .attempts import Retry
from .options import METADATA_PREFIX, MOST_FAILURES, CatchUp, OnCrash, Overlap, TaskOptions
from .records import Engine, FireState, RunOutcome, ScheduleState
from .tasks import MAX_NAME_LENGTH
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
        Field(gt=0, le=LONGEST, description="Seconds a start may be late before the fire counts as missed."),
    ] = None
    coalesce: Annotated[
        Literal["earliest", "latest", "all"] | None, Field(description="Which fires run when several are due at once.")
    ] = None
    catch_up: Annotated[
        CatchUp | None,
        Field(description="Which fires run of those that fell due while no node was up. Left out: as `coalesce` says."),
    ] = None
    catch_up_window: Annotated[
        float | None,
        Field(gt=0, le=LONGEST, description="Seconds that a fire may lie back to be made up for; at least 10."),
    ] = None
    catch_up_overlap: Annotated[
        Overlap | None, Field(description="`overlap` of several fires that are made up for; `buffer_all` if left out.")
    ] = None
    priority: Annotated[
        int | None, Field(ge=0, le=9, description="Of the queued jobs that are due, 9 is claimed before 0.")
    ] = None
    max_jitter: Annotated[
        float | None, Field(ge=0, le=LONGEST, description="Random delay of each fire, up to this.")
    ] = None
    timeout: Annotated[
        float | None, Field(ge=0, le=LONGEST, description="Seconds a run may take; 0: as long as it wants.")
    ] = None
    retry: Annotated[
        Retry | None, Field(description="When and how often a failed run is tried again; `max_attempts` 1: never.")
    ] = None
    on_crash: Annotated[OnCrash | None, Field(description="What happens to a job whose node died.")] = None
    start_deadline: Annotated[
        float | None,
        Field(
            ge=0,
            le=LONGEST,
            description="Seconds a job may wait in the queue, before each attempt, from when it could have started; "
            "0: as long as it takes.",
        ),
    ] = None
    on_failure: Annotated[
        str | None,
        Field(
            max_length=MAX_NAME_LENGTH,
            description="Task that is run once when a job has failed for good or was abandoned, with the argument "
            "`failure`; an empty text: none.",
        ),
    ] = None
    pause_on_failure: Annotated[
        int | None,
        Field(
            ge=0,
            le=MOST_FAILURES,
            description="Fires that fail in a row before the schedule is paused; 0: it never is.",
        ),
    ] = None
    result_ttl: Annotated[
        float | None, Field(ge=0, le=LONGEST, description="Seconds the return value stays readable.")
    ] = None
    history_max_age: Annotated[
        float | None,
        Field(
            gt=0,
            le=LONGEST,
            description="Seconds that fires and runs of this schedule are kept; by default the node's.",
        ),
    ] = None
    history_max_fires: Annotated[
        int | None, Field(ge=1, le=10**9, description="Fires of this schedule that are kept; by default the node's.")
    ] = None

    @model_validator(mode="after")
    def _agree(self) -> Self:
        """Refuse a coalesce policy that catch_up contradicts; the rest is checked with the options of the task."""
        wanted = self.catch_up
        if self.coalesce is not None and wanted in (CatchUp.all, CatchUp.latest) and self.coalesce != wanted:
            raise ValueError(
                f"expected coalesce to be {str(wanted)!r} or left out with catch_up={str(wanted)!r}, got "
                f"{self.coalesce!r}: both say which of several due fires run"
            )
        return self

    def to_metadata(self) -> dict[str, Any]:
        """Return those of the options that ride in the metadata; what is left out is the task's.

        In code: ``add_schedule(…, metadata=ScheduleOptions(timeout=30, on_failure="alert").to_metadata())``.
        """
        given = self.model_dump(mode="json", exclude_none=True)
        return {f"{METADATA_PREFIX}{name}": value for name, value in given.items() if name in _IN_METADATA}


_IN_METADATA = frozenset({option.name for option in fields(TaskOptions)} | {"history_max_age", "history_max_fires"})


ExpiresAt = Annotated[
    Annotated[datetime, AfterValidator(_utc)] | None,
    Field(
        description="Nothing of it starts at or after this instant, and then it is finished; read as UTC without an "
        "offset.",
        examples=["2027-06-30T00:00:00Z"],
    ),
]
MaxFires = Annotated[
    int | None,
    Field(ge=1, le=10**9, description="It is finished after so many fires, whatever became of them.", examples=[10]),
]
Owner = Annotated[
    str | None, Field(min_length=1, max_length=200, description="Who to ask about it.", examples=["team-billing"])
]
Tags = Annotated[
    list[Annotated[str, Field(min_length=1, max_length=200)]], Field(max_length=50, description="Words to find it by.")
]


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
    tags: Tags = []
    owner: Owner = None
    metadata: Annotated[dict[str, JsonValue], Field(description="Free key–value pairs, kept with the schedule.")] = {}
    options: ScheduleOptions = ScheduleOptions()
    expires_at: ExpiresAt = None
    max_fires: MaxFires = None
    engine: Engine = Engine.apscheduler


class ScheduleChange(Command):
    """The body of ``PATCH /schedules/{id}``: what is left out stays as it is.

    ``null`` takes away what can be left out (``owner``, ``expires_at``, ``max_fires``), and gives an option back to
    the task. Lists and ``kwargs`` are replaced whole; of ``options`` and ``metadata`` only the named entries change,
    and a ``null`` in ``metadata`` removes its entry.
    """

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [{"kwargs": {"url": "https://example.com/new"}, "options": {"timeout": 30}, "owner": None}]
        },
    )

    id: Annotated[
        str | None, Field(min_length=1, description="A new id. The history is found under it, and under the old one.")
    ] = None
    task: Annotated[str | None, Field(min_length=1, description="Name of a registered task.")] = None
    args: Annotated[list[Any] | None, Field(description="Positional arguments.")] = None
    kwargs: Annotated[dict[str, Any] | None, Field(description="Keyword arguments.")] = None
    trigger: Annotated[
        TriggerSpec | None,
        Field(description="One that says the same as the stored one does not move the next fire."),
    ] = None
    tags: Tags | None = None
    owner: Owner = None
    metadata: Annotated[dict[str, JsonValue] | None, Field(description="Entries to set; null removes one.")] = None
    options: Annotated[
        ScheduleOptions | None, Field(description="Options to set; null gives one back to the task.")
    ] = None
    expires_at: ExpiresAt = None
    max_fires: Annotated[
        int | None,
        Field(
            ge=1,
            le=10**9,
            description="It is finished after so many fires. Those since it was first given a maximum count.",
        ),
    ] = None

    @model_validator(mode="after")
    def _take_away_what_can_be(self) -> Self:
        """Refuse null for what a schedule always has, instead of taking it for "left out"."""
        kept = [name for name in sorted(self.model_fields_set - _REMOVABLE) if getattr(self, name) is None]
        if kept:
            raise ValueError(
                f"expected null only for {', '.join(sorted(_REMOVABLE))}, got it for {', '.join(kept)}: leave out what "
                f"stays as it is; [] and {{}} are empty"
            )
        return self


_REMOVABLE = frozenset({"owner", "expires_at", "max_fires"})
"""What null takes away from a schedule."""


class NewJob(Command):
    """The body of ``POST /jobs``: run a task once, now."""

    task: Annotated[str, Field(description="Name of a registered task (`GET /tasks`).", examples=["http_request"])]
    args: list[Any] = []
    kwargs: dict[str, Any] = {}


class Backfill(Command):
    """The body of ``POST /schedules/{id}/backfill``: make up for the fires of a range of the past."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [{"start": "2026-11-20T00:00:00Z", "end": "2026-11-21T00:00:00Z", "dry_run": True}]
        },
    )

    start: Annotated[
        datetime, AfterValidator(_utc), Field(description="The first instant; read as UTC without an offset.")
    ]
    end: Annotated[
        datetime,
        AfterValidator(_utc),
        Field(description="The first instant that is not meant; not after now."),
    ]
    overlap: Annotated[
        Overlap, Field(description="What the jobs do while another one of the schedule is going; their own policy.")
    ] = Overlap.buffer_all
    dry_run: Annotated[bool, Field(description="Only say how many they are.")] = False


class NewSchedules(Command):
    """The body of ``POST /schedules/bulk``: all are stored, or none.

    The schedules are checked later, off the event loop: thousands take a while.
    """

    schedules: Annotated[
        list[SkipValidation[NewSchedule]],
        Field(min_length=1, max_length=10_000, description="Each as for `POST /schedules`."),
    ]


class Selection(Command):
    """Which schedules a request about many means: those with one of the ``ids``, or those that fit all filters."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"tag": "reports", "dry_run": True}]})

    ids: Annotated[list[str] | None, Field(max_length=10_000, description="Their ids, instead of filters.")] = None
    task: Annotated[str | None, Field(description="Name of the task.")] = None
    tag: Annotated[str | None, Field(description="A tag that they have.")] = None
    state: Annotated[ScheduleState | None, Field(description="The state that they are in.")] = None
    owner: Annotated[str | None, Field(description="Their owner.")] = None
    search: Annotated[str | None, Field(max_length=200, description="Part of the id or the task's name.")] = None
    everything: Annotated[bool, Field(description="All there are. Has to be said; no filter at all is refused.")] = (
        False
    )
    dry_run: Annotated[bool, Field(description="Only say which they are.")] = False


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
    owner: Annotated[str | None, Field(max_length=200)] = None
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
