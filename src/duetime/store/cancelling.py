"""Cancelled jobs: what is said of them, and which of a node's own are to be cancelled."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import cast
from uuid import UUID

from apscheduler import JobOutcome, JobReleased, JobRemoved

BY_REQUEST = "cancelled by request"
"""Why a job was cancelled, where nobody has said more."""


@dataclass(frozen=True, slots=True)
class Cancelled:
    """What has become of a request to cancel a job.

    :ivar is_ended: whether the job has ended; else its node was asked to cancel it
    :ivar node: the identity of the node that has it
    """

    is_ended: bool
    node: str | None


def asked(job_id: UUID, task_id: str = "") -> JobRemoved:
    """Return the hint for the node that has claimed the job."""
    return JobRemoved(job_id=job_id, task_id=task_id)


def ended(job_id: UUID, task_id: str = "", schedule_id: str | None = None) -> JobReleased:
    """Return the event that tells of a job that was cancelled before anybody claimed it."""
    nothing = cast("str", None)  # an event class has no place for what there is not
    return JobReleased(
        job_id=job_id,
        scheduler_id="",
        task_id=task_id,
        schedule_id=schedule_id,
        scheduled_start=nothing,
        started_at=nothing,
        outcome=JobOutcome.cancelled,
    )


class Cancellations:
    """The jobs of a node that somebody wants cancelled, and how those that run are."""

    def __init__(self) -> None:
        self._reasons: dict[UUID, str] = {}
        self._running: dict[UUID, Callable[[], object]] = {}

    def reason(self, job_id: UUID) -> str | None:
        """Return why the job is to be cancelled; None: it is not."""
        return self._reasons.get(job_id)

    def begin(self, job_id: UUID, cancel: Callable[[], object]) -> None:
        """Take note that the job runs.

        :param cancel: cancels it
        """
        self._running[job_id] = cancel

    def want(self, job_id: UUID, reason: str | None) -> None:
        """Cancel the job, now if it runs; else whoever would start it does not."""
        if job_id not in self._reasons:
            self._reasons[job_id] = reason or BY_REQUEST
            if cancel := self._running.pop(job_id, None):
                cancel()

    def end(self, job_id: UUID) -> None:
        """Take note that the job runs no more; what is left is to record how it ended, which nothing may cut short."""
        self._running.pop(job_id, None)

    def forget(self, job_id: UUID) -> None:
        """Take note that the job is not this node's any more."""
        self._running.pop(job_id, None)
        self._reasons.pop(job_id, None)

    def clear(self) -> None:
        """Forget all."""
        self._running.clear()
        self._reasons.clear()
