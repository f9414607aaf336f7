"""Duetime: the production layer for APScheduler 4. This module holds the public names, and nothing else."""

from .app import Duetime
from .broker import PostgresEventBroker
from .errors import DuetimeError
from .serializer import TypedJSONSerializer
from .settings import Settings
from .store import PostgresDataStore, scheduler_transaction
from .tasks import OnCrash, Overlap, Retry, TaskRegistry, task
from .web.deps import SchedulerDep, ServiceDep

__all__ = [
    "Duetime",
    "DuetimeError",
    "OnCrash",
    "Overlap",
    "PostgresDataStore",
    "PostgresEventBroker",
    "Retry",
    "SchedulerDep",
    "ServiceDep",
    "Settings",
    "TaskRegistry",
    "TypedJSONSerializer",
    "scheduler_transaction",
    "task",
]
