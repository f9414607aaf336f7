"""What tests of many nodes put into the store: schedules and jobs of the tasks in ``program.py``."""

from __future__ import annotations

from typing import Any

from apscheduler import Job, Schedule
from apscheduler.abc import Trigger

from duetime.attempts import Retry
from duetime.options import OnCrash, Overlap, TaskOptions

from ..store.parts import a_job, a_schedule

_ALLOW = TaskOptions(overlap=Overlap.allow)

OPTIONS: dict[str, TaskOptions] = {
    "work": _ALLOW,
    "alone": TaskOptions(),
    "once": TaskOptions(overlap=Overlap.allow, on_crash=OnCrash.abandon),
    "in_turn": TaskOptions(overlap=Overlap.buffer_all),
    "in_turn_once": TaskOptions(overlap=Overlap.buffer_all, on_crash=OnCrash.abandon),
    "one": _ALLOW,
    "three": _ALLOW,
    "unlucky": TaskOptions(overlap=Overlap.allow, retry=Retry(max_attempts=3, backoff=0.2, jitter=0)),
    "attempts": _ALLOW,
    "thread": _ALLOW,
}
"""Options of the program's tasks; they travel with each schedule and job."""

LIMITS = {"one": 1, "three": 3}
"""Tasks of which only so many jobs may run at once."""


def schedule(name: str, task: str, trigger: Trigger, **options: Any) -> Schedule:
    """Return a schedule of one of the tasks; ``kwargs`` are the task's arguments."""
    return a_schedule(name, trigger, task_id=task, metadata=OPTIONS[task].to_metadata(), **options)


def job(task: str, **options: Any) -> Job:
    """Return a job of one of the tasks, without a schedule."""
    return a_job(task, metadata=OPTIONS[task].to_metadata(), **options)
