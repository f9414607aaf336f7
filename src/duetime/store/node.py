"""The store of one running node: it claims work ahead of its time, holds it, and decides when the loops wake.

The stock loops stay as they are. They call ``acquire_…`` and ``get_next_schedule_run_time``, which here answer from
memory or wait, so that a loop comes round exactly when there is something to do: by a timer, a hint from another node,
or the poll behind both (promise 5). What that cures of 4.0.0a6 (``_schedulers/async_.py:945-1180``): the loops sleep by
the host's clock; the job loop waits for events only, without a poll, and asks the database after each job that ends;
each fire starts two round trips and more after its time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from logging import Logger
from typing import Any, cast
from uuid import UUID, uuid4

import attrs
from anyio import CancelScope
from apscheduler import (
    Event,
    Job,
    JobAdded,
    JobOutcome,
    JobReleased,
    JobResult,
    Schedule,
    ScheduleAdded,
    ScheduleRemoved,
    ScheduleUpdated,
    Task,
)
from apscheduler.abc import EventBroker

from ..broker import PostgresEventBroker
from ..errors import StoreUnavailable, UnreadableValue
from ..tasks import AUTO_EXECUTOR, METADATA_PREFIX, OnCrash, Overlap
from . import rows
from .adding import Put
from .breathing import Breath
from .database import Row
from .finishing import Finish
from .hand import Card, Hand
from .planning import Plan, PlannedFire
from .postgres import LARGEST_CLAIM, PostgresDataStore
from .transactions import current_transaction

_LEAVE_TIMEOUT = 3.0
"""Seconds that a node that stops waits for the database, to free what it has claimed."""

_OVERLAPPED = "the job of an earlier fire had not ended (overlap=skip)"


@attrs.define(eq=False, repr=False)
class NodeDataStore(PostgresDataStore):
    """A :class:`PostgresDataStore` bound to one scheduler.

    :param identity: the scheduler's identity, unique per start of a process
    :param works: whether the node runs jobs; it then claims the jobs of its own fires as they are made
    :param look_ahead: how long before its time work is claimed; it then starts by a timer, without a round trip
    :param poll_interval: how long a loop waits at most before it looks for work without having been woken
    :param lease_duration: how long a claim lasts that is not renewed; it is renewed every third of that
    :param capacity: jobs that the node runs or holds at once
    """

    identity: str = attrs.field(kw_only=True)
    works: bool = attrs.field(kw_only=True, default=True)
    look_ahead: timedelta = attrs.field(kw_only=True, default=timedelta(seconds=1))
    poll_interval: timedelta = attrs.field(kw_only=True, default=timedelta(seconds=30))
    lease_duration: timedelta = attrs.field(kw_only=True, default=timedelta(seconds=30))
    capacity: int = attrs.field(kw_only=True, default=1000)

    stopping: bool = attrs.field(init=False, default=False)
    """Set while the node stops: it claims and starts nothing any more."""
    _hand: Hand = attrs.field(init=False, factory=Hand)
    # Jobs that have begun and whose end is not recorded.
    _begun: set[UUID] = attrs.field(init=False, factory=set)
    # Jobs of each schedule that this node has handed to the loop and that have not ended.
    _going: dict[str, set[UUID]] = attrs.field(init=False, factory=dict)
    # Schedules that had a job go back into the queue: another node may run it while the next fire starts here.
    _elsewhere: set[str] = attrs.field(init=False, factory=set)
    _background: set[asyncio.Task[None]] = attrs.field(init=False, factory=set)
    _schedules_wake: asyncio.Event = attrs.field(init=False, factory=asyncio.Event)
    _jobs_wake: asyncio.Event = attrs.field(init=False, factory=asyncio.Event)
    # Whether the job loop is asking for jobs; when it is not, it waits to be told that there is room for more.
    _is_asked: bool = attrs.field(init=False, default=False)
    _is_nudging: bool = attrs.field(init=False, default=False)
    _ended: asyncio.Event = attrs.field(init=False, factory=asyncio.Event)
    # When the next schedule is due that this node does not hold (database time), if that is known.
    _next_due: float | None = attrs.field(init=False, default=None)
    _next_due_known: bool = attrs.field(init=False, default=False)
    # Until when the schedule loop waits; None while it is at work.
    _wakes_at: float | None = attrs.field(init=False, default=None)
    _queue_is_due: bool = attrs.field(init=False, default=True)
    _queue_due_at: float = attrs.field(init=False, default=0.0)
    _lease_ends_at: float | None = attrs.field(init=False, default=0.0)

    # -- life cycle ---------------------------------------------------------------------------------------------------

    async def start(self, exit_stack: AsyncExitStack, event_broker: EventBroker, logger: Logger) -> None:
        """Open the store, waiting for the database as long as it takes, and keep this node's claims alive."""
        self.stopping = False
        self._queue_is_due = True
        self._lease_ends_at = 0.0
        self._next_due_known = False
        await super().start(exit_stack, event_broker, logger)
        heartbeat = asyncio.create_task(self._keep_leases(), name="duetime heartbeat")
        exit_stack.push_async_callback(self._stop, heartbeat)

    async def _open(self) -> None:
        await self.database.open(deadline=None)

    async def _stop(self, heartbeat: asyncio.Task[None]) -> None:
        self.stopping = True
        for task in (heartbeat, *self._background):
            task.cancel()
        await asyncio.wait([heartbeat, *self._background])
        await self._leave()
        self._hand.clear()
        self._attempts.clear()
        self._begun.clear()
        self._going.clear()
        self._elsewhere.clear()

    async def _leave(self) -> None:
        """Free what is claimed under this node's identity, whether or not the answer to the claim has come, but for
        jobs that have begun and whose end is not recorded: their leases end by themselves."""
        hints = [
            JobAdded(job_id=uuid4(), task_id="", schedule_id=None),
            ScheduleUpdated(schedule_id="", task_id="", next_fire_time=datetime.fromtimestamp(0, UTC)),
        ]
        deadline = asyncio.get_running_loop().time() + _LEAVE_TIMEOUT
        try:
            await self.database.fetch(
                "leave", self.identity, list(self._begun), *self._message(hints), deadline=deadline
            )
        except StoreUnavailable as exc:
            self._logger.warning("What this node had claimed stays claimed until the leases end: %s", exc)

    def begin(self, job: Job) -> None:
        """Take note that a job has begun."""
        self._begun.add(job.id)

    async def stop_claiming(self) -> None:
        """Claim and start nothing from now on, and put what has not started back into the queue."""
        self.stopping = True
        started = {job_id for jobs in self._going.values() for job_id in jobs}
        await self.give_back({card.job.id for card in self._hand} - started)

    async def wait_until_idle(self, timeout: float) -> bool:
        """Wait until no job is going, and return whether that came to pass.

        :param timeout: seconds
        """
        try:
            async with asyncio.timeout(timeout):
                while self._attempts:
                    self._ended.clear()
                    await self._ended.wait()
        except TimeoutError:
            return False
        return True

    def _let_go(self, job_id: UUID) -> None:
        """Take note that a job is no longer this node's."""
        self._attempts.pop(job_id, None)
        self._ended.set()

    async def give_back(self, jobs: Collection[UUID]) -> None:
        """Put claimed jobs that have not started back into the queue, for another node to run.

        When the database does not answer, their leases end by themselves.
        """
        ids = list(jobs)
        self._hand.set_aside(jobs=set(ids))
        if not ids:
            return
        hint = JobAdded(job_id=ids[0], task_id="", schedule_id=None)
        try:
            await self._user_fetch("give_back_jobs", self.identity, ids, *self._message([hint]))
        except StoreUnavailable as exc:
            self._logger.warning("%d claimed jobs stay claimed until their leases end: %s", len(ids), exc)
        finally:
            for each in ids:
                self._let_go(each)

    async def _keep_leases(self) -> None:
        """Renew the leases of all claimed jobs, started or not; says nothing to the database while there are none."""
        while True:
            await asyncio.sleep(self.lease_duration.total_seconds() / 3)
            try:
                await self._renew_leases(list(self._attempts))
            except Exception:  # a heartbeat that has stopped would cost all jobs their leases
                self._logger.exception("The leases of claimed jobs could not be renewed; trying again")

    async def _renew_leases(self, ids: Sequence[UUID]) -> set[UUID]:
        """Renew the leases of those jobs that are still this node's, forget the others, and return which are."""
        if not ids:
            return set()
        asked_at = self.database.clock.timestamp()
        found = await self._loop_fetch("extend_jobs", self.identity, list(ids), self.lease_duration)
        kept = {row["id"] for row in found}
        self._forget(set(ids) - kept)
        for card in self._hand:
            if card.job.id in kept:
                card.leased_until = asked_at + self.lease_duration.total_seconds()
        return kept

    async def _renew_late(self, cards: list[Card]) -> None:
        """Start jobs whose time has come after their leases had ended, if no other node has taken them over."""
        asked_at = self.database.clock.timestamp()
        kept = await self._renew_leases([card.job.id for card in cards])
        for card in cards:
            if card.job.id in kept:
                card.leased_until = asked_at + self.lease_duration.total_seconds()
                self._hand.put_back([card])
            else:
                self._let_go(card.job.id)
        self._jobs_wake.set()

    def _forget(self, lost: set[UUID]) -> None:
        """Drop claimed jobs that are no longer this node's, if they have not started here."""
        gone = self._hand.set_aside(jobs=lost)
        for card in gone:
            self._let_go(card.job.id)
        if gone:
            self._logger.warning("Lost the leases of %d jobs that had not started", len(gone))

    def _in_background(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background_ended)

    def _background_ended(self, task: asyncio.Task[None]) -> None:
        self._background.discard(task)
        if not task.cancelled() and (error := task.exception()):
            self._logger.error("A look-up of claimed jobs failed", exc_info=error)

    # -- hints --------------------------------------------------------------------------------------------------------

    def _hint(self, event: Event | None) -> None:
        super()._hint(event)
        if event is None:
            self._next_due_known = False
            self._queue_is_due = True
            self._schedules_wake.set()
            self._jobs_wake.set()
            if len(self._hand):
                self._in_background(self._check_held({card.job.id for card in self._hand}))
        elif isinstance(event, ScheduleAdded | ScheduleUpdated):
            due = event.next_fire_time
            if due is not None and (self._wakes_at is None or due.timestamp() - self._margin < self._wakes_at):
                self._next_due_known = False
                self._schedules_wake.set()
            self._doubt(event.schedule_id)
        elif isinstance(event, ScheduleRemoved):
            self._doubt(event.schedule_id)
        elif isinstance(event, JobAdded):
            self._queue_is_due = True
            self._jobs_wake.set()

    def _doubt(self, schedule_id: str) -> None:
        """Look up whether held jobs of a schedule that somebody has changed are still there."""
        if held := {card.job.id for card in self._hand if card.job.schedule_id == schedule_id}:
            self._in_background(self._check_held(held))

    async def _check_held(self, jobs: set[UUID]) -> None:
        cards = self._hand.set_aside(jobs=jobs)
        try:
            found = await self._loop_fetch("held_jobs", self.identity, list(jobs))
        except BaseException:
            self._hand.put_back(cards)
            raise
        kept = {row["id"] for row in found}
        self._hand.put_back([card for card in cards if card.job.id in kept])
        for each in jobs - kept:
            self._let_go(each)
        self._jobs_wake.set()

    # -- schedules ----------------------------------------------------------------------------------------------------

    @property
    def _margin(self) -> float:
        """How long before a schedule is due the loop claims it: with half the look-ahead, claims come in groups."""
        return self.look_ahead.total_seconds() / 2

    def _look_ahead(self) -> timedelta:
        return self.look_ahead

    async def acquire_schedules(self, scheduler_id: str, lease_duration: timedelta, limit: int) -> list[Schedule]:
        """Claim schedules that are due or soon will be, more at once than the loop asks for."""
        self._schedules_wake.clear()
        self._wakes_at = None  # not waiting: whatever is added from now on may be missed by this claim
        self._next_due_known = False
        if self.stopping:
            return []
        return await super().acquire_schedules(scheduler_id, lease_duration, max(limit, LARGEST_CLAIM))

    def _claims(self, schedule: Schedule, fire: PlannedFire) -> bool:
        if not self.works or self.stopping or len(self._attempts) >= 2 * self.capacity:
            return False
        # What its jitter puts off for long would take a place here, and might see this node die; it waits in the queue.
        if self.database.clock.wait_for(fire.run_time) > self.lease_duration.total_seconds():
            return False
        task = self._tasks.get(schedule.task_id)
        # The jobs of a limited task go through the claim that counts them.
        return task is not None and task.max_running_jobs is None

    def _job_lease(self) -> timedelta:
        return self.lease_duration

    async def _released(self, scheduler_id: str, plans: Sequence[Plan], row: Row) -> None:
        due = [row["next_due"], row["next_expiry"]]
        due.extend(made.next_fire_time for made in plans if made.broken_reason is None)
        self._next_due = min((time.timestamp() for time in due if time is not None), default=None)
        self._next_due_known = True
        claimed, contested = set(row["claimed"]), set(row["contested"])
        host_offset = self.database.clock.host_offset
        breath = Breath()
        for made in plans:
            for fire in made.fires:
                if fire.job_id in claimed:
                    job = self._born(made.schedule, fire, row["leased_until"], host_offset)
                    self._attempts[job.id] = 1
                    self._hand.take(
                        job,
                        fire.run_time.timestamp(),
                        row["leased_until"].timestamp(),
                        decides_overlap=fire.is_ahead and _skips(job.metadata),
                        contested=job.id in contested,
                    )
            await breath.taken()
        if self.stopping:
            await self.give_back(claimed)
        if row["queued"]:
            self._queue_is_due = True
        self._jobs_wake.set()
        await super()._released(scheduler_id, plans, row)

    def _born(self, schedule: Schedule, fire: PlannedFire, leased_until: datetime, host_offset: timedelta) -> Job:
        """Return the job of a fire as the release has written it, claimed by this node."""
        deadline = fire.start_deadline
        return Job(
            id=cast("UUID", fire.job_id),
            task_id=schedule.task_id,
            args=schedule.args,
            kwargs=schedule.kwargs,
            schedule_id=schedule.id,
            scheduled_fire_time=fire.run_time,
            executor=schedule.job_executor,
            jitter=fire.run_time - fire.fire_time,
            # The scheduler compares the deadline with the host's clock.
            start_deadline=cast("datetime", None if deadline is None else deadline + host_offset),
            result_expiration_time=schedule.job_result_expiration_time,
            metadata=schedule.metadata,
            acquired_by=self.identity,
            acquired_until=leased_until,
        )

    async def get_next_schedule_run_time(self) -> datetime | None:
        """Wait until a schedule may be due and return the host's time, so that the loop comes round at once.

        The loop itself would sleep by the host's clock, and wake only for events.
        """
        clock = self.database.clock
        while True:
            if not self._next_due_known and not self.stopping:
                await self._look()
            self._next_due_known = False
            now = clock.timestamp()
            polls_at = now + self.poll_interval.total_seconds()
            claims_at = None if self._next_due is None or self.stopping else self._next_due - self._margin
            self._wakes_at = polls_at if claims_at is None else min(polls_at, claims_at)
            is_woken = await _wait(self._schedules_wake, self._wakes_at - now)
            if is_woken or (claims_at is not None and claims_at <= polls_at):
                return datetime.now(UTC)
            # The poll: one statement for both loops, and no claim when nothing is due.

    async def _look(self) -> None:
        """Ask when schedules and queued jobs are due next."""
        [row] = await self._loop_fetch("next_work")
        times = [time.timestamp() for time in (row["schedule_due"], row["schedule_expiry"]) if time is not None]
        self._next_due = min(times, default=None)
        self._next_due_known = True
        self._plan_queue(row["next_job_due"], row["job_expiry"])
        if row["job_due"] is not None and row["job_due"].timestamp() <= self.database.clock.timestamp():
            self._queue_is_due = True
            self._jobs_wake.set()

    def _plan_queue(self, due: datetime | None, expiry: datetime | None) -> None:
        """Decide when the job loop looks at the queue next."""
        now = self.database.clock.timestamp()
        # A little later than the schedule loop's poll, which looks for both.
        self._queue_due_at = now + self.poll_interval.total_seconds() * 1.1
        self._lease_ends_at = None if expiry is None else expiry.timestamp()
        if self._lease_ends_at is not None:
            self._queue_due_at = min(self._queue_due_at, max(self._lease_ends_at, now + 0.05))
        if due is not None and due.timestamp() > now:
            # Ahead of its time, if that is still to come; else at its time: a limited task's job is not claimed ahead.
            begin = due.timestamp() - self._margin
            self._queue_due_at = min(self._queue_due_at, begin if begin > now else due.timestamp())

    async def extend_acquired_schedule_leases(
        self, scheduler_id: str, schedule_ids: set[str], duration: timedelta
    ) -> None:
        """Extend claims on schedules; without any, say nothing to the database."""
        if self._holds:
            await super().extend_acquired_schedule_leases(scheduler_id, set(self._holds), duration)

    # -- taking back --------------------------------------------------------------------------------------------------

    async def _put(self, schedule: Schedule, put: Put) -> None:
        if current_transaction.get() is None:  # else nothing is taken back before the commit, which tells this node too
            self._take_back(put.taken_back)
        await super()._put(schedule, put)

    def _take_back(self, jobs: Iterable[UUID]) -> None:
        """Forget held jobs that a change of their schedule has taken back."""
        gone = set(jobs)
        if gone:
            self._hand.set_aside(jobs=gone)
            for each in gone:
                self._let_go(each)

    async def _change(self, name: str, schedule_ids: Sequence[str], *arguments: Any) -> Sequence[Row]:
        """Run a statement that takes schedules' jobs back; none of them starts while it is under way (exactness)."""
        if current_transaction.get() is not None:
            return await super()._change(name, schedule_ids, *arguments)
        aside = self._hand.set_aside(schedules=set(schedule_ids))
        taken: set[UUID] = set()
        try:
            found = await super()._change(name, schedule_ids, *arguments)
            taken = {job_id for row in found for job_id in row["taken_back"]}
            return found
        finally:
            self._hand.put_back([card for card in aside if card.job.id not in taken])
            self._take_back(taken)
            self._jobs_wake.set()

    # -- jobs ---------------------------------------------------------------------------------------------------------

    async def acquire_jobs(self, scheduler_id: str, lease_duration: timedelta, limit: int | None = None) -> list[Job]:
        """Return jobs whose time has come, and wait until there are some."""
        self._is_asked = True
        try:
            jobs = await self._wait_for_jobs(min(self.capacity if limit is None else limit, LARGEST_CLAIM))
        finally:
            self._is_asked = False
        # A task may have been removed, or all been forgotten, since its job was claimed.
        while unknown := next((job.task_id for job in jobs if job.task_id not in self._tasks), None):
            await self._know_task(unknown)
        # The loop comes back at once for what is due next, instead of waiting for one of these to end.
        self._nudge()
        return jobs

    async def _wait_for_jobs(self, most: int) -> list[Job]:
        clock = self.database.clock
        while True:
            self._jobs_wake.clear()
            if not self.stopping:
                if jobs := self._start_due(most):
                    return jobs
                if self._queue_is_due or clock.timestamp() >= self._queue_due_at:
                    await self._fill_hand(most)
                    continue
            times = [self._queue_due_at]
            if self._hand.next_due is not None:
                times.append(self._hand.next_due)
            await _wait(self._jobs_wake, None if self.stopping else min(times) - clock.timestamp())

    def _start_due(self, most: int) -> list[Job]:
        """Return the held jobs that start now; those that an earlier job of their schedule stands against do not."""
        jobs: list[Job] = []
        unsure: list[Card] = []
        late: list[Card] = []
        now = self.database.clock.timestamp()
        for card in self._hand.draw(now, most):
            job = card.job
            if card.leased_until <= now:  # this process was stopped, or the database away, for longer than the lease
                late.append(card)
                continue
            schedule_id = job.schedule_id
            if card.decides_overlap and schedule_id is not None:
                if self._going.get(schedule_id):
                    self._in_background(self._skip(job))
                    continue
                if card.contested or schedule_id in self._elsewhere:
                    unsure.append(card)
                    continue
            if schedule_id is not None:
                self._going.setdefault(schedule_id, set()).add(job.id)
            jobs.append(job)
        if unsure:
            self._in_background(self._ask_overlap(unsure))
        if late:
            self._in_background(self._renew_late(late))
        return jobs

    async def _ask_overlap(self, cards: list[Card]) -> None:
        """Ask the database whether other nodes have unfinished earlier jobs of these jobs' schedules."""
        found = await self._loop_fetch("overlapped_jobs", [card.job.id for card in cards])
        overlapped = {row["id"] for row in found}
        for card in cards:
            if card.job.id in overlapped:
                self._in_background(self._skip(card.job))
            else:
                if card.job.schedule_id is not None:
                    self._elsewhere.discard(card.job.schedule_id)
                card.contested = False
                self._hand.put_back([card])
        self._jobs_wake.set()

    async def _skip(self, job: Job) -> None:
        """Record that a fire was skipped, because the job of an earlier one had not ended."""
        finish = Finish.of(
            self.identity, job, JobResult.from_job(job, JobOutcome.cancelled), self._attempts.get(job.id)
        )
        finish.skipped = _OVERLAPPED
        await self._finishing.put(finish, deadline=None)
        self._let_go(job.id)

    async def _fill_hand(self, limit: int) -> None:
        """Claim queued jobs, and learn when the queue is to be looked at next."""
        clock = self.database.clock
        self._queue_is_due = False
        if self._lease_ends_at is not None and clock.timestamp() >= self._lease_ends_at:
            await self._reap(None, default="retry")
        soon = clock.timestamp() + self.look_ahead.total_seconds()
        # What is held for later, for its jitter, takes no place from what is due.
        room = min(limit, self.capacity - sum(card.due <= soon for card in self._hand))
        if room > 0:
            found, answer, claimed = await self._claim(self.identity, self.lease_duration, room, self.look_ahead)
            breath = Breath()
            for job, row in found:
                await self._know_task(job.task_id)
                made_ahead = row["attempt"] == 1 and row["created_at"] < row["run_at"]
                self._hand.take(
                    job,
                    row["run_at"].timestamp(),
                    row["acquired_until"].timestamp(),
                    decides_overlap=made_ahead and _skips(job.metadata),
                    contested=True,
                )
                await breath.taken()
            self._queue_is_due = self._queue_is_due or claimed == room
            self._plan_queue(answer["next_due"], answer["next_expiry"])
            if self.stopping:  # it has begun to stop while the claim was under way
                await self.give_back([job.id for job, _ in found])
        else:
            self._queue_due_at = clock.timestamp() + self.poll_interval.total_seconds()

    async def _know_task(self, task_id: str) -> None:
        """Have the task in memory before the loop asks for it: the loop cannot wait for a database that is away."""
        if task_id not in self._tasks:
            found = await self._loop_fetch("tasks", task_id)
            # A job of a task that nobody has defined, or that cannot be read, fails when it is run (promise 4).
            task = Task(id=task_id, func=None, job_executor=AUTO_EXECUTOR)
            if found:
                try:
                    task = rows.task_from(found[0])
                except UnreadableValue as exc:
                    self._logger.error("The definition of task %s cannot be used: %s", task_id, exc)
            self._tasks[task_id] = task

    async def _tell_finished(self, finish: Finish) -> None:
        broker = self._event_broker
        if not isinstance(broker, PostgresEventBroker) or broker.has_subscribers(JobReleased):
            await super()._tell_finished(finish)
        elif not self._is_asked:
            # An event for each job that ends would cost more than the job; the loop only wants to know of the room.
            self._nudge()

    def _nudge(self) -> None:
        """Make the job loop ask for jobs, once for all that happens in this round of the event loop."""
        if not self._is_nudging:
            self._is_nudging = True
            asyncio.get_running_loop().call_soon(self._nudge_now)

    def _nudge_now(self) -> None:
        self._is_nudging = False
        if isinstance(self._event_broker, PostgresEventBroker):
            self._event_broker.nudge_workers()

    async def extend_acquired_job_leases(self, scheduler_id: str, job_ids: set[UUID], duration: timedelta) -> None:
        """Do nothing: the node's heartbeat renews all its claims, started or not."""

    async def _finish(self, finish: Finish, *, deadline: float | None = None) -> None:
        """End an attempt; one that was cut short because the node stops goes back into the queue, at once.

        A node that stops does not wait for a database that is away: the lease ends by itself, and the job is run
        again, or recorded as abandoned, as its task asks.
        """
        job = finish.job
        if finish.result.outcome is JobOutcome.cancelled and finish.options.on_crash is OnCrash.retry:
            finish.retry_after = timedelta(0)
        try:
            await self._record(finish, self.database.deadline() if self.stopping else deadline)
        except asyncio.CancelledError:
            # The node stops while it writes how the attempt ended. It writes it again: an attempt ends only once.
            with CancelScope(shield=True):
                await self._record(finish, self.database.deadline())
            raise
        finally:
            self._let_go(job.id)
            if job.schedule_id is not None:
                if finish.retry_after is not None:
                    self._elsewhere.add(job.schedule_id)
                going = self._going.get(job.schedule_id, set())
                going.discard(job.id)
                if not going:
                    self._going.pop(job.schedule_id, None)
        task = self._tasks.get(job.task_id)
        if task is not None and task.max_running_jobs is not None:
            self._queue_is_due = True  # a place of a limited task is free
            self._jobs_wake.set()

    async def _record(self, finish: Finish, deadline: float | None) -> None:
        try:
            await super()._finish(finish, deadline=deadline)
        except (StoreUnavailable, TimeoutError) as exc:
            self._logger.warning("The end of job %s was not recorded: %s", finish.job.id, exc)
        else:
            self._begun.discard(finish.job.id)

    async def reap_abandoned_jobs(self, scheduler_id: str) -> None:
        """Do nothing: an identity that is unique per start has left nothing behind."""


def _skips(metadata: Mapping[str, Any]) -> bool:
    return bool(metadata.get(f"{METADATA_PREFIX}overlap") == Overlap.skip)


async def _wait(event: asyncio.Event, seconds: float | None) -> bool:
    """Wait for the event, but no longer than that (None: for ever), and return whether it has come."""
    if event.is_set() or (seconds is not None and seconds <= 0):
        return event.is_set()
    try:
        async with asyncio.timeout(seconds):
            return await event.wait()
    except TimeoutError:
        return False
