"""Every error Duetime raises on purpose: one tree, each with a stable code and a text that says what to do.

The doors (REST, CLI) map ``code`` to a status; nothing else decides what a user sees.
Where APScheduler has an error of the same meaning, ours derives from it too, so code written against
APScheduler's documentation keeps catching it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any, ClassVar
from uuid import UUID

from apscheduler import (
    ConflictingIdError,
    DeserializationError,
    JobLookupError,
    ScheduleLookupError,
    SerializationError,
    TaskLookupError,
)


class DuetimeError(Exception):
    """Base of all errors that Duetime raises on purpose.

    :ivar code: stable, machine-readable name of the kind of error; never changes meaning between releases
    :ivar message: what was expected, what came, and what to do
    :ivar details: one mapping per problem (``{"where": …, "problem": …}``), empty when the message says it all
    """

    code: ClassVar[str] = "error"

    def __init__(self, message: str, *, details: Sequence[Mapping[str, Any]] = ()) -> None:
        Exception.__init__(self, message)
        self.message = message
        self.details: tuple[dict[str, Any], ...] = tuple(dict(detail) for detail in details)

    def __str__(self) -> str:  # KeyError's own __str__ would quote the sentence
        return self.message


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return ``", did you mean 'x'?"`` for the closest known word, or ``"."``: the end of a sentence."""
    close = get_close_matches(word, list(known), n=1)
    return f", did you mean {close[0]!r}?" if close else "."


class InvalidSettings(DuetimeError):
    """The settings contradict each other or name something that does not exist; ``details`` lists every problem."""

    code = "invalid_settings"


class InvalidRequest(DuetimeError):
    """A request's body or parameters are not of the documented shape."""

    code = "invalid_request"


class InvalidJson(InvalidRequest):
    """The request's body is not JSON (RFC 8259)."""

    code = "invalid_json"


class UnsupportedMediaType(InvalidRequest):
    """The request's body does not say that it is JSON."""

    code = "unsupported_media_type"


class RequestTooLarge(InvalidRequest):
    """The request's body is larger than this node reads."""

    code = "request_too_large"


class Unauthorized(DuetimeError):
    """The request does not carry the bearer token of ``Settings.api_token``."""

    code = "unauthorized"


class CrossOriginRefused(DuetimeError):
    """A web page of another origin tried to change something."""

    code = "cross_origin_refused"


class InvalidCursor(DuetimeError):
    """The ``after`` of a page request is not a cursor that Duetime gave out."""

    code = "invalid_cursor"


class InvalidScheduleId(DuetimeError):
    """A schedule id is empty, longer than 500 characters or contains control characters."""

    code = "invalid_schedule_id"


class UnknownTask(DuetimeError, TaskLookupError):
    """The name is not one of a task registered in this process."""

    code = "unknown_task"

    def __init__(self, name: str, known: Iterable[str]) -> None:
        known = sorted(known)
        listed = ", ".join(known[:10]) or "none"
        super().__init__(
            f"expected the name of a registered task, got {name!r}{did_you_mean(name, known)} "
            f"Registered tasks: {listed}. Decorate the function with @duetime.task and import its module "
            f"(for `duetime serve`: --tasks my_module)."
        )


class AmbiguousTask(DuetimeError):
    """A short task name fits several registered tasks."""

    code = "ambiguous_task"


class DuplicateTask(DuetimeError):
    """Two different functions were registered under one explicit task name."""

    code = "duplicate_task"


class InvalidTask(DuetimeError):
    """The function or the options given to ``@task`` cannot make a task."""

    code = "invalid_task"


class InvalidOptions(DuetimeError):
    """Options of a schedule have no meaning, or contradict each other or its trigger; ``details`` lists them all."""

    code = "invalid_options"


class InvalidSchedule(DuetimeError):
    """Several things are wrong with a schedule, or with some of many; ``details`` lists them all."""

    code = "invalid_schedule"


class InvalidArguments(DuetimeError):
    """The arguments do not fit the task function's signature; ``details`` names each of them."""

    code = "invalid_arguments"


class ArgumentsTooLarge(DuetimeError):
    """The serialized arguments are larger than ``Settings.max_arguments_bytes``."""

    code = "arguments_too_large"


class InvalidTrigger(DuetimeError):
    """The trigger is not one of the documented forms, or one of its values is out of range."""

    code = "invalid_trigger"


class UnknownTimeZone(InvalidTrigger):
    """The time zone is not an IANA name known to this machine's tzdata."""

    code = "unknown_time_zone"


class TriggerNeverFires(InvalidTrigger):
    """The trigger has no fire time at all, so the schedule could never run."""

    code = "trigger_never_fires"


class FiresTooOften(InvalidTrigger):
    """The trigger's fires are closer to each other than this node allows."""

    code = "fires_too_often"


class TooManyFires(DuetimeError):
    """The range has more fires than one backfill may make."""

    code = "too_many_fires"


class UnsupportedValue(DuetimeError, SerializationError):
    """A value has no safe form in the store (see ``duetime.serializer`` for the types that have)."""

    code = "unsupported_value"


class UnreadableValue(DuetimeError, DeserializationError):
    """Stored bytes are not a value that Duetime wrote."""

    code = "unreadable_value"


class ScheduleExists(DuetimeError, ConflictingIdError):
    """A schedule of that id is stored already."""

    code = "schedule_exists"

    def __init__(self, schedule_id: str) -> None:
        super().__init__(
            f"expected an id that is not in use, got {schedule_id!r}, which is already scheduled. Leave the id out "
            f"to get a new one, or delete the other schedule first."
        )


class ScheduleNotFound(DuetimeError, ScheduleLookupError):
    """No schedule of that id is stored."""

    code = "schedule_not_found"

    def __init__(self, schedule_id: str) -> None:
        super().__init__(
            f"expected the id of a stored schedule, got {schedule_id!r}. A finished schedule is removed at "
            f"the next clean-up; its fires and runs stay readable."
        )


class PreconditionFailed(DuetimeError):
    """The schedule has been changed since it was read, so a change that was made for what it was is refused."""

    code = "precondition_failed"

    def __init__(self, schedule_id: str) -> None:
        super().__init__(
            f"expected the schedule {schedule_id!r} as it was when it was read, got one that has been changed since. "
            f"Read it again, and make the change for what it is now."
        )


class RunNotFound(DuetimeError):
    """No run of that id is stored."""

    code = "run_not_found"


class JobNotFound(DuetimeError, JobLookupError):
    """No job of that id is queued or running."""

    code = "job_not_found"

    def __init__(self, job_id: UUID, outcome: str | None = None) -> None:
        ended = "no such job" if outcome is None else f"one that has ended with the outcome {outcome!r}"
        super().__init__(
            f"expected the id of a job that is queued or running, got {str(job_id)!r}: {ended}. `GET /jobs` lists them."
        )


class NotInJob(DuetimeError, LookupError):
    """Something was asked of the job at hand where there is none."""

    code = "not_in_job"


class NoEquivalent(DuetimeError, NotImplementedError):
    """APScheduler 3 has something that has no equivalent here."""

    code = "no_equivalent"


class UnknownExecutor(DuetimeError):
    """A job names an executor that this node does not have."""

    code = "unknown_executor"


class TaskTimeout(DuetimeError, TimeoutError):
    """A run took longer than the task's ``timeout``."""

    code = "task_timeout"


class TaskAborted(DuetimeError):
    """A task raised ``SystemExit`` or ``KeyboardInterrupt``; the run failed, the process went on."""

    code = "task_aborted"


class AddressRefused(DuetimeError):
    """A built-in task was pointed at a private, loopback or otherwise non-public address."""

    code = "address_refused"


class RequestFailed(DuetimeError):
    """``http_request`` got no whole response: no connection, no TLS, not in time, or not HTTP."""

    code = "request_failed"


class UnexpectedResponse(DuetimeError):
    """``http_request`` got another status than the expected one."""

    code = "unexpected_response"


class NotificationFailed(DuetimeError):
    """``notify`` could not deliver to at least one of the given URLs."""

    code = "notification_failed"


class StoreUnavailable(DuetimeError, ConnectionError):
    """The database did not answer within the call's deadline."""

    code = "store_unavailable"


class SchemaTooNew(DuetimeError):
    """The database's Duetime schema was written by a newer release than this one."""

    code = "schema_too_new"


class NotStarted(DuetimeError, RuntimeError):
    """Duetime was used outside its lifespan."""

    code = "not_started"


class LocalDatabaseFailed(DuetimeError):
    """The embedded PostgreSQL could not be started."""

    code = "local_database_failed"


class V3NotChangeable(DuetimeError):
    """The table of APScheduler 3 cannot be changed: no permission, or somebody keeps it locked."""

    code = "v3_not_changeable"


class V3MigrationRunning(DuetimeError):
    """Another migration from APScheduler 3 is at work on this database."""

    code = "v3_migration_running"


class V3MigrationUnfinished(DuetimeError):
    """What was asked for has to wait until something that was begun before has been brought to its end."""

    code = "v3_migration_unfinished"


class V3StillRunning(DuetimeError):
    """APScheduler 3 was said to be stopped, and has changed a row meanwhile."""

    code = "v3_still_running"


class InvalidMapping(DuetimeError):
    """What ``duetime migrate v3`` was told of v3's functions and executors has no meaning."""

    code = "invalid_mapping"


class MigrationFailed(DuetimeError):
    """``duetime migrate`` cannot go on; what it has done so far stands."""

    code = "migration_failed"


class UnreadablePickle(DuetimeError):
    """The bytes are not the pickle of a job of APScheduler 3, or it would take too much memory to read it."""

    code = "unreadable_pickle"


class ClassNotAllowed(DuetimeError):
    """A class given to ``--allow-class`` cannot be found, or is neither an enum nor a dataclass."""

    code = "class_not_allowed"


class InvalidSource(DuetimeError):
    """The address of APScheduler 3's database, or the name of its table, is not one that can be read."""

    code = "invalid_source"


class NotAV3Table(DuetimeError):
    """The table does not exist, or is not one that APScheduler 3 stores its jobs in."""

    code = "not_a_v3_table"


class SourceRefused(DuetimeError):
    """The database of APScheduler 3 does not let this user in, or not read the table."""

    code = "source_refused"


class SourceUnavailable(DuetimeError, ConnectionError):
    """The database of APScheduler 3 cannot be reached, or went away in the middle."""

    code = "source_unavailable"
