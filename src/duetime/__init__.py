"""Duetime: the production layer for APScheduler 4. This module holds the public names, and nothing else."""

from .app import Duetime
from .attempts import Attempt, Retry, current_attempt
from .broker import PostgresEventBroker
from .commands import ScheduleOptions
from .errors import DuetimeError
from .options import OnCrash, Overlap
from .records import Failure
from .scheduler import DuetimeScheduler
from .serializer import TypedJSONSerializer
from .settings import Settings
from .store import PostgresDataStore, scheduler_transaction
from .tasks import TaskRegistry, task
from .web.deps import SchedulerDep, ServiceDep

__all__ = [
    "Attempt",
    "Duetime",
    "DuetimeError",
    "DuetimeScheduler",
    "Failure",
    "OnCrash",
    "Overlap",
    "PostgresDataStore",
    "PostgresEventBroker",
    "Retry",
    "ScheduleOptions",
    "SchedulerDep",
    "ServiceDep",
    "Settings",
    "TaskRegistry",
    "TypedJSONSerializer",
    "current_attempt",
    "scheduler_transaction",
    "task",
]
