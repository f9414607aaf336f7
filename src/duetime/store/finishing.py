"""How attempts end: one statement for all that end while another one is under way."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, cast
from uuid import UUID, uuid4

from apscheduler import Event, Job, JobAdded, JobOutcome, JobReleased, JobResult, ScheduleUpdated, SerializationError
from apscheduler.abc import Serializer

from ..errors import InvalidArguments, InvalidTask, TaskTimeout, UnknownExecutor, UnknownTask, UnsupportedValue
from ..options import TaskOptions
from ..records import FireState, RunOutcome
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
    except (
        BaseException
    ) as exc:  # an exception whose text cannot be had must not take the scheduler with it (promise 4)
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
    has_paused: bool = False
    """The schedule was paused, because the job has failed for good."""
    given_up: str | None = None
    """There is no next attempt although there could be one, and why."""
    cancelled: str | None = None
    """Somebody wanted the job cancelled, and why: there is no next attempt."""

    @classmethod
    def of(cls, scheduler_id: str, job: Job, result: JobResult, attempt: int | None) -> Finish:
        """Return the end of an attempt, with the next one if the task's retry policy wants it."""
        try:
            options = TaskOptions.from_metadata(job.metadata)
        except ValueError:  # the attempt has failed with that as its reason, and has to end all the same
            options = TaskOptions()
        finish = cls(job, scheduler_id, result, attempt, options)
        error = result.exception
        if result.outcome is JobOutcome.error and not isinstance(error, _FINAL_ERRORS):
            finish.retry_after = options.retry.delay(attempt or 1)
            if error is not None and finish.retry_after is not None and (why := options.retry.refuses(error)):
                finish.retry_after = None
                finish.given_up = why
        return finish

    @property
    def fire_state(self) -> FireState:
        """What becomes of the fire, if there is no next attempt."""
        if self.skipped is not None:
            return FireState.skipped
        state = _OUTCOMES[self.result.outcome][1]
        # A further attempt that came too late: it is the earlier one that has failed.
        return FireState.failed if state is FireState.missed and (self.attempt or 1) > 1 else state

    @property
    def pauses(self) -> bool:
        """Whether the schedule may have to be paused, because the job has failed for good."""
        return self.options.pause_on_failure is not None and self.job.schedule_id is not None and self._has_failed

    @property
    def calls_hook(self) -> bool:
        """Whether somebody wants to be told, by a job, that this one has failed for good."""
        return self.options.on_failure is not None and self._has_failed

    @property
    def _has_failed(self) -> bool:
        return self.retry_after is None and self.cancelled is None and self.fire_state is FireState.failed

    @property
    def is_unread(self) -> bool:
        """Whether the job could not be read, and with it not what is to be done when it fails."""
        return self.result.outcome is JobOutcome.deserialization_failed

    def consequences(self) -> list[Event]:
        """Return the events that tell what follows from a failure: a job to be run, a schedule that may be paused."""
        events: list[Event] = []
        options = self.options
        if options.on_failure is None and options.pause_on_failure is None and not self.is_unread:
            return events
        if self.calls_hook or self.is_unread:
            events.append(JobAdded(job_id=uuid4(), task_id=self.options.on_failure or "", schedule_id=None))
        if self.pauses and self.job.schedule_id is not None:
            events.append(failing(self.job.schedule_id, self.job.task_id))
        return events

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


def failing(schedule_id: str, task_id: str) -> ScheduleUpdated:
    """Return the event that makes nodes look whether a schedule's jobs, which they hold for later, are still there."""
    return ScheduleUpdated(schedule_id=schedule_id, task_id=task_id, next_fire_time=None)


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
        self._group: GroupCommit[Finish, bool] = GroupCommit(self._write, largest=_LARGEST_GROUP)

    async def put(self, finish: Finish, *, deadline: float | None) -> bool:
        """Write the end of an attempt, and return after the commit whether it was written: not if the claim was lost.

        :param deadline: loop time at which to give up; None: never
        :raises TimeoutError: at the deadline
        """
        return await self._group.submit(finish, deadline=deadline)

    async def drain(self) -> None:
        """Wait until nothing is waiting or being written."""
        await self._group.drain()

    async def _write(self, group: Sequence[Finish], deadline: float | None) -> Sequence[bool]:
        written: set[tuple[str, UUID]] = set()
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
                told += finish.consequences()
            if any(finish.retry_after for finish in finishes):
                # One for all: whoever has a place then is to look for their next attempts, and not only this node.
                told.append(JobAdded(job_id=uuid4(), task_id="", schedule_id=None))
            host_offset = self._database.clock.host_offset
            arrays = rows.columns([self._values(finish, host_offset) for finish in finishes], _COLUMNS)
            follows = any(finish.pauses or finish.calls_hook or finish.is_unread for finish in finishes)
            name = "finish_failed_jobs" if follows else "finish_jobs"
            found = await self._database.fetch_many(
                name, len(finishes), scheduler_id, *arrays, *self._messages(told), deadline=deadline
            )
            written.update((scheduler_id, row["id"]) for row in found)
            paused = {row["id"] for row in found if row["is_paused"]}
            for finish in finishes:
                finish.has_paused = finish.job.id in paused
        return [(finish.scheduler_id, finish.job.id) in written for finish in group]

    def _values(self, finish: Finish, host_offset: timedelta) -> tuple[Any, ...]:
        result = finish.result
        outcome, _ = _OUTCOMES[result.outcome]
        error = None if result.exception is None else error_text(result.exception)
        if finish.given_up is not None:
            said = f" (not tried again: {finish.given_up})"
            error = f"{(error or '')[: MAX_ERROR_LENGTH - len(said)]}{said}"
        if outcome is RunOutcome.cancelled and finish.cancelled is not None:
            error = finish.cancelled
        if outcome is RunOutcome.missed and error is None and finish.job.start_deadline is not None:
            late = (result.finished_at - finish.job.start_deadline).total_seconds()
            limit = "grace time"
            if (wait := finish.options.start_deadline) is not None:
                limit = f"start deadline ({wait.total_seconds():g} s in the queue) or its grace time"
            error = f"it could not start in time: its {limit} had ended {late:.3f} s before"
        if isinstance(result.exception, TaskTimeout):
            outcome = RunOutcome.timeout
        exception = return_value = None
        if result.expires_at > result.finished_at:
            try:
                exception = self._stored(result.exception)
                if result.outcome is JobOutcome.success:
                    return_value = self._serialized(result.return_value)
            except (
                Exception
            ) as exc:  # whatever a value does when it is looked at is no reason to lose the attempt's end
                exception = return_value = None
                reason = exc if isinstance(exc, SerializationError) else error_text(exc)
                error = error or f"it ran, but its result could not be stored: {reason}"[:MAX_ERROR_LENGTH]
        return (
            finish.job.id,
            finish.attempt,
            None if finish.skipped else str(outcome),
            str(finish.fire_state),
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
