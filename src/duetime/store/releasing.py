"""How claimed schedules are released: jobs, ledger rows and next fire times in one statement."""

from __future__ import annotations

from collections.abc import Callable, MutableMapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any
from uuid import UUID

import asyncpg
from apscheduler import Schedule, ScheduleResult
from apscheduler.abc import Serializer

from . import rows
from .database import Database
from .finishing import MAX_ERROR_LENGTH
from .planning import Plan, PlannedFire, PlannedTrigger

_SCHEDULE_COLUMNS = 6
_FIRE_COLUMNS = 10


@dataclass(slots=True)
class Hold:
    """A schedule that this store has claimed and not released."""

    plan: Plan
    fired: bool = False
    """Whether the scheduler's loop has made its job, which says that the release is the loop's and wants the plan."""


@dataclass(slots=True)
class Release:
    """What one release writes.

    :ivar plans: of the schedules whose fires it writes
    """

    plans: list[Plan] = field(default_factory=list)
    _schedules: list[tuple[Any, ...]] = field(default_factory=list)
    _fires: list[tuple[Any, ...]] = field(default_factory=list)

    @classmethod
    def of(
        cls,
        results: Sequence[ScheduleResult],
        holds: MutableMapping[str, Hold],
        serializer: Serializer,
        claims: Callable[[Schedule, PlannedFire], bool],
    ) -> Release:
        """Return what is to be written of claimed schedules, whose holds end.

        What a schedule's fires become was decided when it was claimed. A caller that is not the scheduler's loop, and
        so has made no job for the schedule, gets the times that it asks for instead, and no fires.

        :param claims: returns whether this node claims the job of a fire as it is made
        """
        release = cls()
        for result in results:
            hold = holds.pop(result.schedule_id, None)
            if hold is not None and hold.fired:
                release._add(hold.plan, claims)
                continue
            trigger = result.trigger
            stored = None if isinstance(trigger, PlannedTrigger) else serializer.serialize(trigger)
            asked = (result.schedule_id, None, stored, result.last_fire_time, result.next_fire_time, None)
            release._schedules.append(asked)
        return release

    def _add(self, made: Plan, claims: Callable[[Schedule, PlannedFire], bool]) -> None:
        schedule = made.schedule
        self.plans.append(made)
        self._schedules.append(
            (
                schedule.id,
                made.revision,
                made.stored_trigger,
                made.last_fire_time,
                made.next_fire_time,
                made.broken_reason and made.broken_reason[:MAX_ERROR_LENGTH],
            )
        )
        self._fires.extend(
            (
                schedule.id,
                fire.fire_time,
                fire.run_time,
                str(fire.state),
                fire.reason,
                fire.job_id,
                fire.checks_overlap,
                fire.start_deadline,
                fire.job_id is not None and claims(schedule, fire),
                fire.overlap and str(fire.overlap),
            )
            for fire in made.fires
        )

    async def write(
        self, database: Database, scheduler_id: str, job_lease: timedelta, message: tuple[str, str]
    ) -> dict[str, Any]:
        """Write it, however long the database is away, and return the statement's answer.

        :param job_lease: of the jobs that are claimed as they are made
        :param message: rides along if a job goes into the queue
        """
        *fires, overlaps = rows.columns(self._fires, _FIRE_COLUMNS)
        schedules = rows.columns(self._schedules, _SCHEDULE_COLUMNS)
        arguments = (scheduler_id, *schedules, *fires, job_lease, *message, overlaps)
        born: dict[UUID, bool] = {fire[5]: fire[8] for fire in self._fires if fire[5] is not None}
        statement = database.statements.for_batch("release_schedules", max(len(self._schedules), len(born)))
        attempts = 0

        async def work(connection: asyncpg.Connection) -> dict[str, Any]:
            nonlocal attempts
            attempts += 1
            [row] = await connection.fetch(statement, *arguments)
            outcome = dict(row)
            if attempts > 1 and born:
                # An earlier attempt may have been committed without an answer: its jobs are ours as well, but for
                # those that the job loop has claimed from the queue since.
                found = await connection.fetch(database.statements["jobs"], list(born))
                ours = [job for job in found if born[job["id"]] and job["acquired_by"] == scheduler_id]
                outcome["claimed"] = [job["id"] for job in ours if job["attempt"] == 1]
                outcome["held"] = [job["id"] for job in ours if job["held"]]
                outcome["contested"] = outcome["claimed"]  # for all that is known now
                outcome["queued"] = [job["id"] for job in found if job["acquired_by"] is None]
                outcome["leased_until"] = min((job["acquired_until"] for job in ours), default=None)
            return outcome

        return await database.attempt(work, deadline=None)
