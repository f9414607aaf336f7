"""The store of one running node: it holds the jobs that are the node's, and decides when its loops wake.

The stock loops stay as they are. They call ``acquire_…``, which here answers from memory or waits, so that a loop
comes round exactly when there is something to do: by a timer, a hint from another node, or the poll behind both
(promise 5). The stock job loop waits for events only, without a poll, and asks for jobs after each job that ends
(4.0.0a6, ``_schedulers/async_.py:1140-1180``).
"""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from itertools import count
from logging import Logger
from typing import Any, cast
from uuid import UUID

import attrs
from apscheduler import (
    Event,
    Job,
    JobAdded,
    JobOutcome,
    JobResult,
    Schedule,
    ScheduleAdded,
    ScheduleUpdated,
    Task,
)
from apscheduler.abc import EventBroker

from ..broker import PostgresEventBroker
from ..errors import StoreUnavailable
from ..tasks import AUTO_EXECUTOR, OnCrash
from . import rows
from .planning import Plan, PlannedFire
from .postgres import Finish, PostgresDataStore

_LARGEST_CLAIM = 1000


@attrs.define(eq=False, repr=False)
class NodeDataStore(PostgresDataStore):
    """A :class:`PostgresDataStore` bound to one scheduler.

    :param identity: the scheduler's identity, unique per start of a process
    :param works: whether the node runs jobs; it then claims the jobs of its own fires as they are made
    :param poll_interval: how long a loop waits at most before it looks for work without having been woken
    :param lease_duration: how long a claim lasts that is not renewed; it is renewed every third of that
    :param capacity: jobs that the node runs or holds at once
    """

    identity: str = attrs.field(kw_only=True)
    works: bool = attrs.field(kw_only=True, default=True)
    poll_interval: timedelta = attrs.field(kw_only=True, default=timedelta(seconds=30))
    lease_duration: timedelta = attrs.field(kw_only=True, default=timedelta(seconds=30))
    capacity: int = attrs.field(kw_only=True, default=1000)

    stopping: bool = attrs.field(init=False, default=False)
    """Set while the node stops: jobs that it cancels then go back into the queue."""
    # Claimed jobs that wait for their time, earliest first: (host time, tie-breaker, job).
    _hand: list[tuple[float, int, Job]] = attrs.field(init=False, factory=list)
    _order: count[int] = attrs.field(init=False, factory=count)
    _schedules_wake: asyncio.Event = attrs.field(init=False, factory=asyncio.Event)
    _jobs_wake: asyncio.Event = attrs.field(init=False, factory=asyncio.Event)
    _next_due: datetime | None = attrs.field(init=False, default=None)
    _next_due_known: bool = attrs.field(init=False, default=False)
    _wakes_at: datetime | None = attrs.field(init=False, default=None)
    _queue_is_due: bool = attrs.field(init=False, default=True)
    _queue_due_at: float = attrs.field(init=False, default=0.0)
    _lease_ends_at: float | None = attrs.field(init=False, default=None)

    # -- life cycle ---------------------------------------------------------------------------------------------------

    async def start(self, exit_stack: AsyncExitStack, event_broker: EventBroker, logger: Logger) -> None:
        """Open the store, waiting for the database as long as it takes, and keep this node's claims alive."""
        self.stopping = False
        self._queue_is_due = True
        self._next_due_known = False
        await super().start(exit_stack, event_broker, logger)
        heartbeat = asyncio.create_task(self._keep_leases(), name="duetime heartbeat")
        exit_stack.push_async_callback(self._stop, heartbeat)

    async def _open(self) -> None:
        await self._attempt(lambda connection: asyncio.sleep(0), deadline=None)

    async def _stop(self, heartbeat: asyncio.Task[None]) -> None:
        heartbeat.cancel()
        await asyncio.wait([heartbeat])
        try:
            await self.give_back()
        except StoreUnavailable as exc:
            self._logger.warning("Claimed jobs stay claimed until their leases end: %s", exc)

    async def give_back(self) -> None:
        """Put claimed jobs that have not started back into the queue, for another node to run.

        Must be called when nothing runs any more: what is claimed then has not been started.

        :raises StoreUnavailable: if the database does not answer; their leases then end by themselves
        """
        ids = list(self._attempts)
        self._hand.clear()
        self._attempts.clear()
        if ids:
            hint = JobAdded(job_id=ids[0], task_id="", schedule_id=None)
            await self.fetch("give_back_jobs", self.identity, ids, *self._message([hint]), deadline=self._deadline())

    async def _keep_leases(self) -> None:
        """Renew the leases of all claimed jobs, started or not; says nothing to the database while there are none."""
        while True:
            await asyncio.sleep(self.lease_duration.total_seconds() / 3)
            if ids := list(self._attempts):
                kept = await self.fetch("extend_jobs", self.identity, ids, self.lease_duration, deadline=None)
                self._forget_lost(set(ids) - {row["id"] for row in kept})

    def _forget_lost(self, lost: set[UUID]) -> None:
        """Drop claimed jobs that another node has taken over, if they have not started here."""
        gone = {job.id for _, _, job in self._hand if job.id in lost}
        if gone:
            self._hand = [entry for entry in self._hand if entry[2].id not in gone]
            heapq.heapify(self._hand)
            for each in gone:
                self._attempts.pop(each, None)
            self._logger.warning("Lost the leases of %d jobs that had not started", len(gone))

    # -- hints --------------------------------------------------------------------------------------------------------

    def _hint(self, event: Event | None) -> None:
        super()._hint(event)
        if event is None:
            self._next_due_known = False
            self._queue_is_due = True
            self._schedules_wake.set()
            self._jobs_wake.set()
        elif isinstance(event, ScheduleAdded | ScheduleUpdated):
            due = event.next_fire_time
            if due is not None and (self._wakes_at is None or due < self._wakes_at):
                self._next_due_known = False
                self._schedules_wake.set()
        elif isinstance(event, JobAdded):
            self._queue_is_due = True
            self._jobs_wake.set()

    # -- schedules ----------------------------------------------------------------------------------------------------

    async def acquire_schedules(self, scheduler_id: str, lease_duration: timedelta, limit: int) -> list[Schedule]:
        """Claim due schedules, more at once than the loop asks for."""
        self._schedules_wake.clear()
        self._wakes_at = None  # not waiting: whatever is added from now on may be missed by this claim
        self._next_due_known = False
        return await super().acquire_schedules(scheduler_id, lease_duration, max(limit, _LARGEST_CLAIM))

    def _claims(self, schedule: Schedule) -> bool:
        if not self.works or self.stopping or len(self._attempts) >= self.capacity:
            return False
        task = self._tasks.get(schedule.task_id)
        # The jobs of a limited task go through the claim that counts them.
        return task is not None and task.max_running_jobs is None

    def _job_lease(self) -> timedelta:
        return self.lease_duration

    async def _released(self, scheduler_id: str, plans: Sequence[Plan], row: Mapping[str, Any]) -> None:
        self._learn_clock(row["now"])
        self._next_due = self._earliest(
            row["next_due"],
            row["next_expiry"],
            *(made.next_fire_time for made in plans if made.broken_reason is None),
        )
        self._next_due_known = True
        claimed = set(row["claimed"])
        for made in plans:
            for fire in made.fires:
                if fire.job_id in claimed:
                    self._take(self._born(made.schedule, fire, row["leased_until"]))
        if row["queued"]:
            self._queue_is_due = True
        self._jobs_wake.set()
        await super()._released(scheduler_id, plans, row)

    def _born(self, schedule: Schedule, fire: PlannedFire, leased_until: datetime) -> Job:
        """Return the job of a fire as the release has written it, claimed by this node."""
        assert fire.job_id is not None  # noqa: S101 - only fires with a job are claimed
        deadline = fire.start_deadline
        self._attempts[fire.job_id] = 1
        return Job(
            id=fire.job_id,
            task_id=schedule.task_id,
            args=schedule.args,
            kwargs=schedule.kwargs,
            schedule_id=schedule.id,
            scheduled_fire_time=fire.run_time,
            executor=schedule.job_executor,
            jitter=fire.run_time - fire.fire_time,
            # The scheduler compares the deadline with the host's clock.
            start_deadline=cast("datetime", None if deadline is None else deadline + self.clock_offset),
            result_expiration_time=schedule.job_result_expiration_time,
            metadata=schedule.metadata,
            acquired_by=self.identity,
            acquired_until=leased_until,
        )

    async def get_next_schedule_run_time(self) -> datetime | None:
        """Wait until a schedule may be due and return the host's time, so that the loop comes round at once.

        The loop itself would sleep by the host's clock, and wake only for events.
        """
        if not self._next_due_known:
            self._next_due = await super().get_next_schedule_run_time()
        self._next_due_known = False
        now = self._database_time()
        wait = self.poll_interval.total_seconds()
        if self._next_due is not None:
            wait = min(wait, (self._next_due - now).total_seconds())
        self._wakes_at = now + timedelta(seconds=wait)
        if wait > 0:
            try:
                async with asyncio.timeout(wait):
                    await self._schedules_wake.wait()
            except TimeoutError:
                pass
        return datetime.now(UTC)

    def _database_time(self) -> datetime:
        return datetime.now(UTC) - self.clock_offset

    @staticmethod
    def _earliest(*times: datetime | None) -> datetime | None:
        return min((time for time in times if time is not None), default=None)

    async def extend_acquired_schedule_leases(
        self, scheduler_id: str, schedule_ids: set[str], duration: timedelta
    ) -> None:
        """Extend claims on schedules; without any, say nothing to the database."""
        if self._holds:
            await super().extend_acquired_schedule_leases(scheduler_id, set(self._holds), duration)

    # -- jobs ---------------------------------------------------------------------------------------------------------

    def _take(self, job: Job) -> None:
        due = job.scheduled_fire_time or job.created_at
        host_due = (due + self.clock_offset).timestamp()
        heapq.heappush(self._hand, (host_due, next(self._order), job))

    async def acquire_jobs(self, scheduler_id: str, lease_duration: timedelta, limit: int | None = None) -> list[Job]:
        """Return jobs whose time has come, and wait until there are some."""
        most = self.capacity if limit is None else limit
        while True:
            self._jobs_wake.clear()
            if self._queue_is_due or self._now() >= self._queue_due_at:
                await self._fill_hand(most)
            if ready := self._ready(most):
                # The loop comes back at once for what is due next, instead of waiting for one of these to end.
                self._nudge()
                return ready
            times = [self._queue_due_at]
            if self._hand:
                times.append(self._hand[0][0])
            try:
                async with asyncio.timeout(max(0.0, min(times) - self._now())):
                    await self._jobs_wake.wait()
            except TimeoutError:
                pass

    @staticmethod
    def _now() -> float:
        return datetime.now(UTC).timestamp()

    async def _fill_hand(self, limit: int) -> None:
        """Claim queued jobs, and learn when the queue is to be looked at next."""
        self._queue_is_due = False
        if self._lease_ends_at is None or self._now() >= self._lease_ends_at:
            await self._reap(None, default="retry")
        room = min(limit, self.capacity - len(self._hand))
        if room > 0:
            jobs = await self._claim_jobs(self.identity, self.lease_duration, room)
            for job in jobs:
                await self._known_task(job.task_id)
                heapq.heappush(self._hand, (0.0, next(self._order), job))
            if len(jobs) == room:
                self._queue_is_due = True
                return
        [row] = await self.fetch("next_job", deadline=None)
        self._learn_clock(row["now"])
        poll_at = self._now() + self.poll_interval.total_seconds()
        expiry, due = row["next_expiry"], row["next_due"]
        self._lease_ends_at = None if expiry is None else (expiry + self.clock_offset).timestamp()
        self._queue_due_at = poll_at
        if self._lease_ends_at is not None:
            self._queue_due_at = min(self._queue_due_at, max(self._lease_ends_at, self._now() + 0.05))
        if due is not None:
            # A job that is due and was not claimed waits for a place of its task: an event or the poll tells.
            due_at = (due + self.clock_offset).timestamp()
            if due_at > self._now():
                self._queue_due_at = min(self._queue_due_at, due_at)

    async def _known_task(self, task_id: str) -> None:
        """Have the task in memory before the loop asks for it: the loop cannot wait for a database that is away."""
        if task_id not in self._tasks:
            found = await self.fetch("tasks", task_id, deadline=None)
            # A job of a task that nobody has defined fails with a reason when it is run (promise 4).
            undefined = Task(id=task_id, func=None, job_executor=AUTO_EXECUTOR)
            self._tasks[task_id] = rows.task_from(found[0]) if found else undefined

    def _ready(self, limit: int) -> list[Job]:
        now = self._now()
        ready: list[Job] = []
        while self._hand and len(ready) < limit and self._hand[0][0] <= now:
            ready.append(heapq.heappop(self._hand)[2])
        return ready

    def _nudge(self) -> None:
        if isinstance(self._event_broker, PostgresEventBroker):
            self._event_broker.nudge_workers()

    async def extend_acquired_job_leases(self, scheduler_id: str, job_ids: set[UUID], duration: timedelta) -> None:
        """Do nothing: the node's heartbeat renews all its claims, started or not."""

    async def release_job(self, scheduler_id: str, job: Job, result: JobResult) -> None:
        """Record how an attempt ended; see :meth:`_finish` for one that was cut short."""
        await super().release_job(scheduler_id, job, result)
        task = self._tasks.get(job.task_id)
        if task is not None and task.max_running_jobs is not None:
            self._queue_is_due = True  # a place of a limited task is free
        self._jobs_wake.set()

    async def _finish(self, finish: Finish, *, deadline: float | None = None) -> None:
        """End an attempt; one that was cut short because the node stops goes back into the queue, at once.

        A node that stops does not wait for a database that is away: the lease ends by itself, and the job is run
        again, or recorded as abandoned, as its task asks.
        """
        if finish.result.outcome is JobOutcome.cancelled and finish.options.on_crash is OnCrash.retry:
            finish.retry_after = timedelta(0)
        try:
            await super()._finish(finish, deadline=self._deadline() if self.stopping else deadline)
        except (StoreUnavailable, TimeoutError) as exc:
            self._attempts.pop(finish.job.id, None)
            self._logger.warning("The end of job %s was not recorded: %s", finish.job.id, exc)

    async def reap_abandoned_jobs(self, scheduler_id: str) -> None:
        """Do nothing: an identity that is unique per start has left nothing behind."""
