"""Jobs for fires of the past, whose ledger rows say that they have had none."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from uuid import UUID, uuid4

from apscheduler import JobAdded

from .postgres import PostgresDataStore


async def make_up(
    store: PostgresDataStore, schedule_id: str, fires: Sequence[tuple[datetime, UUID]], overlap: str
) -> int:
    """Make a job for each instant that has had none, and return how many those are; no more than a thousand at once.

    Made again, because the answer was lost or by somebody else, it makes no second job: the ledger has the instant.

    :param fires: instants, with the ids that their jobs get
    :param overlap: the policy of these jobs
    """
    event = JobAdded(job_id=uuid4(), task_id="", schedule_id=schedule_id)
    [row] = await store.database.fetch_for_user(
        "backfill_schedule",
        schedule_id,
        [moment for moment, _ in fires],
        [job_id for _, job_id in fires],
        overlap,
        *store._message([event]),
    )
    store._hint(event)
    await store._emit([event])
    made: int = row["made"]
    return made
