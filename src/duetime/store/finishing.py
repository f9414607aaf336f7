"""How attempts end: one statement for all that end while another one is under way."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, cast

from apscheduler import Event, Job, JobAdded, JobOutcome, JobReleased, JobResult, SerializationError
from apscheduler.abc import Serializer

from ..errors import InvalidArguments, InvalidTask, TaskTimeout, UnknownExecutor, UnknownTask, UnsupportedValue
from ..records import FireState, RunOutcome
from ..tasks import TaskOptions
from . import rows
from .batches import GroupCommit
from .database import Database

MAX_RESULT_BYTES = 1024 * 1024
MAX_ERROR_LENGTH = 8000
_LARGEST_GROUP = 1000
_COLUMNS = 12

_OUTCOMES: dict[JobOutcome, tuple[RunOutcome, FireState]] = {
    JobOutcome.success: (RunOutcome.success, FireState.succeeded),
    JobOutcome.error: (RunOutcome.error, FireState.failed),
    JobOutcome.missed_start_deadline: (RunOutcome.missed, FireState.missed),
    JobOutcome.deserialization_failed: (RunOutcome.unreadable, FireState.failed),
    JobOutcome.cancelled: (RunOutcome.cancelled, FireState.cancelled),
    JobOutcome.abandoned: (RunOutcome.abandoned, FireState.abandoned),
}
# What another attempt cannot mend.
_FINAL_ERRORS = (InvalidArguments, InvalidTask, UnknownTask, UnknownExecutor)


def error_text(exception: BaseException) -> str:
    """Return an exception as ``Type: text``, safe for a text column."""
    try:
        words = str(exception)
    except Exception as exc:  # an exception whose text cannot be had must not take the scheduler with it (promise 4)
        words = f"(its text cannot be had: {type(exc).__qualname__})"
    text = f"{type(exception).__qualname__}: {words}".removesuffix(": ")[:MAX_ERROR_LENGTH]
    return text.replace("\x00", "\\x00").encode("utf-8", "backslashreplace").decode()


@dataclass(slots=True)
class Finish:
    """How one attempt of a job ended."""

    job: Job
    scheduler_id: str
    result: JobResult
    attempt: int | None
    options: TaskOptions = field(default_factory=TaskOptions)
    retry_after: timedelta | None = None
    """The attempt is not the last: the job waits this long for the next one."""
    skipped: str | None = None
    """The job did not start, and why: its fire is skipped, and there is no run."""

    @classmethod
    def of(cls, scheduler_id: str, job: Job, result: JobResult, attempt: int | None) -> Finish:
        """Return the end of an attempt, with the next one if the task's retry policy wants it."""
        try:
            options = TaskOptions.from_metadata(job.metadata)
        except (ValueError, TypeError):  # the attempt has failed with that as its reason, and has to end all the same
            options = TaskOptions()
        finish = cls(job, scheduler_id, result, attempt, options)
        if result.outcome is JobOutcome.error and not isinstance(result.exception, _FINAL_ERRORS):
            finish.retry_after = options.retry.delay(attempt or 1)
        return finish

    def event(self) -> JobReleased:
        """Return the event that tells of it."""
        job, result, error = self.job, self.result, self.result.exception
        return JobReleased(
            timestamp=result.finished_at,
            job_id=job.id,
            scheduler_id=self.scheduler_id,
            task_id=job.task_id,
            schedule_id=job.schedule_id,
            scheduled_start=cast("datetime", job.scheduled_fire_time),
            started_at=cast("datetime", result.started_at),
            outcome=result.outcome,
            exception_type=None if error is None else type(error).__qualname__,
            exception_message=None if error is None else error_text(error),
        )


class FinishWriter:
    """Writes the ends of attempts in groups.

    :param messages: makes channel and payloads of the notifications that ride in the statement
    """

    def __init__(
        self, database: Database, serializer: Serializer, messages: Callable[[Sequence[Event]], tuple[str, list[str]]]
    ) -> None:
        self._database = database
        self._serializer = serializer
        self._messages = messages
        self._group: GroupCommit[Finish, None] = GroupCommit(self._write, largest=_LARGEST_GROUP)

    async def put(self, finish: Finish, *, deadline: float | None) -> None:
        """Write the end of an attempt, and return after the commit.

        :param deadline: loop time at which to give up; None: never
        :raises TimeoutError: at the deadline
        """
        await self._group.submit(finish, deadline=deadline)

    async def _write(self, group: Sequence[Finish], deadline: float | None) -> Sequence[None]:
        by_scheduler: dict[str, list[Finish]] = {}
        for finish in group:
            by_scheduler.setdefault(finish.scheduler_id, []).append(finish)
        for scheduler_id, finishes in by_scheduler.items():
            told: list[Event] = []
            for finish in finishes:
                job = finish.job
                if finish.retry_after == timedelta(0):  # given up by a node that stops: any other may run it at once
                    told.append(JobAdded(job_id=job.id, task_id=job.task_id, schedule_id=job.schedule_id))
                elif finish.retry_after is None and job.result_expiration_time > timedelta(0):
                    told.append(finish.event())  # a caller on another node may wait for it
            host_offset = self._database.clock.host_offset
            arrays = rows.columns([self._values(finish, host_offset) for finish in finishes], _COLUMNS)
            await self._database.fetch("finish_jobs", scheduler_id, *arrays, *self._messages(told), deadline=deadline)
        return [None] * len(group)

    def _values(self, finish: Finish, host_offset: timedelta) -> tuple[Any, ...]:
        result = finish.result
        outcome, fire_state = _OUTCOMES[result.outcome]
        error = None if result.exception is None else error_text(result.exception)
        if isinstance(result.exception, TaskTimeout):
            outcome = RunOutcome.timeout
        exception = return_value = None
        if result.expires_at > result.finished_at:
            try:
                exception = self._stored(result.exception)
                if result.outcome is JobOutcome.success:
                    return_value = self._serialized(result.return_value)
            except SerializationError as exc:
                error = error or f"it ran, but its result could not be stored: {exc}"[:MAX_ERROR_LENGTH]
        return (
            finish.job.id,
            finish.attempt,
            None if finish.skipped else str(outcome),
            str(FireState.skipped if finish.skipped else fire_state),
            result.started_at and result.started_at - host_offset,
            result.finished_at - host_offset,
            finish.skipped or error,
            finish.retry_after,
            result.outcome.name,
            result.expires_at - host_offset,
            exception,
            return_value,
        )

    def _stored(self, exception: BaseException | None) -> bytes | None:
        return None if exception is None else self._serialized(exception)

    def _serialized(self, value: Any) -> bytes:
        text = self._serializer.serialize(value)
        if len(text) > MAX_RESULT_BYTES:
            raise UnsupportedValue(f"it has {len(text)} bytes, and {MAX_RESULT_BYTES} can be stored")
        return text
