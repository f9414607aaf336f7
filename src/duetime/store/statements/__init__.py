"""The named statements: each is one round trip, whatever the batch, and decides time by the database's clock.

Statements that lock several rows lock them in the order of their ids, so two of them cannot wait for each other.
``{s}`` is the quoted schema. Nothing a user wrote is ever part of a statement's text.
"""

from __future__ import annotations

# Each of these names the statements of a noun.
from . import changes, ends, jobs, looks, schedules, tasks
from .naming import JOB_COLUMNS, SCHEDULE_COLUMNS, Statements, texts

__all__ = [
    "JOB_COLUMNS",
    "SCHEDULE_COLUMNS",
    "Statements",
    "changes",
    "ends",
    "jobs",
    "looks",
    "schedules",
    "tasks",
    "texts",
]
