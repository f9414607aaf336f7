"""APScheduler 3's calls, with v3's meaning, on Duetime's scheduler, so that code can move handler by handler.

::

    from duetime.v3.compat import add_job

    @app.post("/digest")
    async def digest(scheduler: SchedulerDep) -> dict[str, str]:
        job = await add_job(scheduler, send_digest, "cron", day_of_week="0-4", hour=9, id="digest")
        return {"next": str(job.next_run_time)}

Every call takes the scheduler as its first argument and is awaited. What v3 has and nothing here means the same as
raises :class:`~duetime.errors.NoEquivalent`, by name. This module holds the public names, and nothing else.
"""

from apscheduler import ConflictingIdError
from apscheduler import ScheduleLookupError as JobLookupError

from .collecting import add_scheduled_jobs, scheduled_job
from .defaults import configure
from .jobs import (
    Job,
    add_job,
    get_job,
    get_jobs,
    modify_job,
    pause_job,
    print_jobs,
    remove_all_jobs,
    remove_job,
    reschedule_job,
    resume_job,
    undefined,
)
from .listening import (
    EVENT_ALL,
    EVENT_ALL_JOBS_REMOVED,
    EVENT_EXECUTOR_ADDED,
    EVENT_EXECUTOR_REMOVED,
    EVENT_JOB_ADDED,
    EVENT_JOB_ERROR,
    EVENT_JOB_EXECUTED,
    EVENT_JOB_MAX_INSTANCES,
    EVENT_JOB_MISSED,
    EVENT_JOB_MODIFIED,
    EVENT_JOB_REMOVED,
    EVENT_JOB_SUBMITTED,
    EVENT_JOBSTORE_ADDED,
    EVENT_JOBSTORE_REMOVED,
    EVENT_SCHEDULER_PAUSED,
    EVENT_SCHEDULER_RESUMED,
    EVENT_SCHEDULER_SHUTDOWN,
    EVENT_SCHEDULER_START,
    EVENT_SCHEDULER_STARTED,
    JobError,
    JobEvent,
    JobExecutionEvent,
    SchedulerEvent,
    add_listener,
    remove_listener,
)
from .triggers import (
    AndTrigger,
    CalendarIntervalTrigger,
    CronTrigger,
    DateTrigger,
    IntervalTrigger,
    OrTrigger,
)

__all__ = [
    "EVENT_ALL",
    "EVENT_ALL_JOBS_REMOVED",
    "EVENT_EXECUTOR_ADDED",
    "EVENT_EXECUTOR_REMOVED",
    "EVENT_JOBSTORE_ADDED",
    "EVENT_JOBSTORE_REMOVED",
    "EVENT_JOB_ADDED",
    "EVENT_JOB_ERROR",
    "EVENT_JOB_EXECUTED",
    "EVENT_JOB_MAX_INSTANCES",
    "EVENT_JOB_MISSED",
    "EVENT_JOB_MODIFIED",
    "EVENT_JOB_REMOVED",
    "EVENT_JOB_SUBMITTED",
    "EVENT_SCHEDULER_PAUSED",
    "EVENT_SCHEDULER_RESUMED",
    "EVENT_SCHEDULER_SHUTDOWN",
    "EVENT_SCHEDULER_START",
    "EVENT_SCHEDULER_STARTED",
    "AndTrigger",
    "CalendarIntervalTrigger",
    "ConflictingIdError",
    "CronTrigger",
    "DateTrigger",
    "IntervalTrigger",
    "Job",
    "JobError",
    "JobEvent",
    "JobExecutionEvent",
    "JobLookupError",
    "OrTrigger",
    "SchedulerEvent",
    "add_job",
    "add_listener",
    "add_scheduled_jobs",
    "configure",
    "get_job",
    "get_jobs",
    "modify_job",
    "pause_job",
    "print_jobs",
    "remove_all_jobs",
    "remove_job",
    "remove_listener",
    "reschedule_job",
    "resume_job",
    "scheduled_job",
    "undefined",
]
