"""The store of one running node: it claims work ahead of its time, holds it, and decides when the loops wake.

The stock loops stay as they are. They call ``acquire_…`` and ``get_next_schedule_run_time``, which here answer from
memory or wait, so that a loop comes round exactly when there is something to do: by a timer, a hint from another node,
or the poll behind both (promise 5). What that cures of 4.0.0a6 (``_schedulers/async_.py:945-1180``): the loops sleep by
the host's clock; the job loop waits for events only, without a poll, and asks the database after each job that ends;
each fire starts two round trips and more after its time.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from logging import Logger
from typing import Any, TypeVar, cast
from uuid import UUID, uuid4

import asyncpg
import attrs
from anyio import CancelScope
from apscheduler import (
    Event,
    Job,
    JobAdded,
    JobOutcome,
    JobReleased,
    JobRemoved,
    Schedule,
    ScheduleAdded,
    ScheduleRemoved,
    ScheduleResult,
    ScheduleUpdated,
    Task,
)
from apscheduler.abc import EventBroker

from ..attempts import Attempt
from ..broker import PostgresEventBroker
from ..errors import StoreUnavailable, UnreadableValue
from ..options import KEY, METADATA_PREFIX, OnCrash, Overlap, TaskOptions, takes_turns
from ..tasks import AUTO_EXECUTOR
from . import rows
from .adding import Put
from .agenda import Agenda
from .breathing import Breath
from .cancelling import Cancellations
from .connections import Step
from .database import Row
from .finishing import Finish
from .hand import Card, Hand, Turns
from .opening import Opening
from .planning import Plan, PlannedFire
from .postgres import LARGEST_CLAIM, PostgresDataStore
from .relief import Relief
from .transactions import current_transaction

R = TypeVar("R")

MOST_LOST_ATTEMPTS = 20
"""Attempts of a job that a crash or a stop may cut short; one that has lost more takes nodes with it."""

_LEAVE_TIMEOUT = 3.0
"""Seconds that a node that stops waits for the database, to free what it has claimed."""

_LAST_CLAIMS = 0.2
"""Seconds that a node that stops waits for claims that are under way, before it frees what it has claimed."""

_WARM_AHEAD = 10.0
"""Seconds before work is due at which connections are made ready for it."""

_WARM_CONNECTIONS = 3
"""Connections that are made ready: one to claim, one to release and one to record ends at the same time."""

_HELD_PER_PLACE = 10
"""Jobs that a node holds or runs for each one that it may run at once; what is due beyond that waits in the queue."""

_MOST_STARTS = 100
"""Jobs that are started at once: what else there is to do on the event loop comes in between (promise 7)."""

_CONFIRM_AHEAD = 0.1
"""Seconds, and a round trip, before its time a job that may run at most once is confirmed: it starts at its time."""

_OVERLAPPED = "the job of an earlier fire had not ended (overlap=skip)"


@dataclass(slots=True, eq=False)
class _Meanwhile:
    """What has become known while the database worked on an answer, which may tell of an earlier state.

    :ivar taken_back: jobs that a change of their schedule has taken back
    :ivar doubted: schedules that somebody has changed; None: any may have been
    :ivar cancelled: jobs that somebody may want cancelled
    """

    taken_back: set[UUID] = field(default_factory=set)
    doubted: set[str | None] = field(default_factory=set)
    cancelled: set[UUID] = field(default_factory=set)


@dataclass(slots=True, eq=False)
class _Change:
    """A change of schedules that is under way: none of their held jobs starts."""

    schedules: frozenset[str]
    aside: list[Card]


@attrs.define(eq=False, repr=False)
class NodeDataStore(PostgresDataStore):
    """A :class:`PostgresDataStore` bound to one scheduler.

    :param identity: the scheduler's identity, unique per start of a process
    :param works: whether the node runs jobs; it then claims the jobs of its own fires as they are made
    :param look_ahead: how long before its time work is claimed; it then starts by a timer, without a round trip
    :param lease_duration: how long a claim lasts that is not renewed; it is renewed every third of that
    :param capacity: jobs that the node runs or holds at once
    """

    identity: str = attrs.field(kw_only=True)
    works: bool = attrs.field(kw_only=True, default=True)
    look_ahead: timedelta = attrs.field(kw_only=True, default=timedelta(seconds=1))
    lease_duration: timedelta = attrs.field(kw_only=True, default=timedelta(seconds=30))
    capacity: int = attrs.field(kw_only=True, default=1000)

    stopping: bool = attrs.field(init=False, default=False)
    """Set while the node stops: it claims and starts nothing any more."""
    _hand: Hand = attrs.field(init=False, factory=Hand)
    # Jobs that have begun and whose end is not recorded.
    _begun: set[UUID] = attrs.field(init=False, factory=set)
    # What was still claimed when this node crashed: by the identity that it had then, the jobs that had begun.
    _left_behind: dict[str, list[UUID]] = attrs.field(init=False, factory=dict)
    _cancellations: Cancellations = attrs.field(init=False, factory=Cancellations)
    # Jobs of each schedule that this node has handed to the loop and that have not ended.
    _going: dict[str, set[UUID]] = attrs.field(init=False, factory=dict)
    # Jobs whose end is being recorded, and their next attempts that came back here meanwhile: 4.0.0a6 keeps the jobs
    # that run in a set, and crashes when one of them begins before its last attempt has left it.
    _ending: dict[UUID, list[Card]] = attrs.field(init=False, factory=dict)
    # Jobs that have to take turns with the others of their schedules.
    _turns: Turns = attrs.field(init=False, factory=Turns)
    # Schedules that had a job go back into the queue: another node may run it while the next fire starts here.
    _elsewhere: set[str] = attrs.field(init=False, factory=set)
    _background: set[asyncio.Task[None]] = attrs.field(init=False, factory=set)
    # Statements that claim something and are under way.
    _claiming: set[asyncio.Task[Any]] = attrs.field(init=False, factory=set)
    _warming: asyncio.Task[None] | None = attrs.field(init=False, default=None)
    _releasing: _Meanwhile = attrs.field(init=False, factory=_Meanwhile)
    _answers: list[_Meanwhile] = attrs.field(init=False, factory=list)
    _confirming: set[asyncio.Task[None]] = attrs.field(init=False, factory=set)
    _changes: list[_Change] = attrs.field(init=False, factory=list)
    _schedules_wake: asyncio.Event = attrs.field(init=False, factory=asyncio.Event)
    _jobs_wake: asyncio.Event = attrs.field(init=False, factory=asyncio.Event)
    # Whether the job loop is asking for jobs; when it is not, it waits to be told that there is room for more.
    _is_asked: bool = attrs.field(init=False, default=False)
    _is_nudging: bool = attrs.field(init=False, default=False)
    _ended: asyncio.Event = attrs.field(init=False, factory=asyncio.Event)
    # When the schedules are due that this node does not hold.
    _agenda: Agenda = attrs.field(init=False, default=attrs.Factory(lambda node: node._new_agenda(), takes_self=True))
    _relief: Relief = attrs.field(init=False, default=attrs.Factory(lambda node: node._new_relief(), takes_self=True))
    # Until when the schedule loop waits; None while it is at work.
    _wakes_at: float | None = attrs.field(init=False, default=None)
    _queue_is_due: bool = attrs.field(init=False, default=False)
    _queue_due_at: float = attrs.field(init=False, default=0.0)
    _lease_ends_at: float | None = attrs.field(init=False, default=0.0)
    # Whether the store was opened since the last start, and so has told what is due.
    _knows_what_is_due: bool = attrs.field(init=False, default=False)
    _is_clean: bool = attrs.field(init=False, default=False)

    def _new_agenda(self) -> Agenda:
        return Agenda(self.look_ahead.total_seconds(), self.lease_duration.total_seconds())

    def _new_relief(self) -> Relief:
        return Relief(
            self._hand,
            now=lambda: self.database.clock.timestamp(),
            is_full=self._is_full,
            give_back=self._give_to_others,
        )

    # -- life cycle ---------------------------------------------------------------------------------------------------

    async def start(self, exit_stack: AsyncExitStack, event_broker: EventBroker, logger: Logger) -> None:
        """Open the store, waiting for the database as long as it takes, and keep this node's claims alive."""
        self.stopping = False
        self._relief.restart()
        await super().start(exit_stack, event_broker, logger)
        await self._free_left_behind()
        if not self._knows_what_is_due:
            self._agenda.is_known = False
            self._queue_is_due = True
            self._lease_ends_at = 0.0
        self._knows_what_is_due = False  # at the next start
        heartbeat = asyncio.create_task(self._keep_leases(), name="duetime heartbeat")
        exit_stack.push_async_callback(self._stop, heartbeat)

    async def _open(self) -> None:
        await self.database.open(deadline=None)

    def _opened(self, opening: Opening | None) -> None:
        super()._opened(opening)
        if opening is not None and self._is_told():
            self._agenda.learn(opening.schedule_due, crowd=opening.crowd)
            self._plan_queue(opening.next_job_due, opening.job_expiry)
            near = [due - self.look_ahead for due in (opening.job_due, opening.next_job_due) if due is not None]
            self._queue_is_due = self._queue_is_due or any(map(self._is_past, near))
            self._is_clean = opening.is_clean
            self._knows_what_is_due = True

    def _is_past(self, moment: datetime | None) -> bool:
        return moment is not None and moment.timestamp() <= self.database.clock.timestamp()

    async def _stop(self, heartbeat: asyncio.Task[None]) -> None:
        self.stopping = True
        self._relief.stop()
        for task in (heartbeat, *self._background):
            task.cancel()
        await asyncio.wait([heartbeat, *self._background])
        await self._end_claims()
        await self._leave()
        if self._begun:
            self._left_behind[self.identity] = list(self._begun)
        self._hand.clear()
        self._attempts.clear()
        self._leaving.clear()
        self._begun.clear()
        self._cancellations.clear()
        self._going.clear()
        self._elsewhere.clear()
        self._turns.clear()
        self._ending.clear()

    async def _uncut(self, claim: Awaitable[R]) -> R:
        """Run a statement that claims something. When the caller is cut short it goes on: the database would anyway,
        and claim what nobody knows of after all claims of this node have been freed."""
        claiming = asyncio.ensure_future(claim)
        self._claiming.add(claiming)
        claiming.add_done_callback(self._claimed)
        return await asyncio.shield(claiming)

    def _claimed(self, claiming: asyncio.Task[Any]) -> None:
        self._claiming.discard(claiming)
        if not claiming.cancelled():
            claiming.exception()  # which the caller has, if it is still there

    async def _end_claims(self) -> None:
        if self._claiming:
            _, pending = await asyncio.wait(self._claiming, timeout=_LAST_CLAIMS)
            for each in pending:  # the database is away
                each.cancel()
            if pending:
                await asyncio.wait(pending)

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
        except (StoreUnavailable, asyncpg.PostgresError) as exc:
            self._left_behind[self.identity] = list(self._begun)
            self._logger.warning("What this node had claimed stays claimed until the leases end: %s", exc)

    def attempt(self, job: Job) -> Attempt:
        """Return what a job's function can know of the attempt that it is in."""
        try:
            most = TaskOptions.from_metadata(job.metadata).retry.max_attempts
        except ValueError:  # the attempt fails with that as its reason
            most = 1
        return Attempt(self._attempts.get(job.id, 1), most, self._last_errors.get(job.id))

    def begin(self, job: Job, cancel: Callable[[], object]) -> bool:
        """Take note that a job has begun, and return whether it may: not if somebody wants it cancelled.

        :param cancel: cancels it from now on
        """
        if self._cancellations.reason(job.id) is not None:
            return False
        self._begun.add(job.id)
        self._cancellations.begin(job.id, cancel)
        return True

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
        super()._let_go(job_id)
        self._turns.let_go(job_id)
        self._cancellations.forget(job_id)
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
        asked = self._may_leave(ids)
        try:
            await self._user_fetch("give_back_jobs", self.identity, ids, self._until_now(), *self._message([hint]))
        except (StoreUnavailable, asyncpg.PostgresError) as exc:
            self._logger.warning("%d claimed jobs stay claimed until their leases end: %s", len(ids), exc)
        finally:
            for each in ids:
                self._has_left(each, asked)
            self._queue_is_due = True
            self._jobs_wake.set()

    async def _keep_leases(self) -> None:
        """Renew the leases of all claimed jobs, started or not; says nothing to the database while there are none."""
        while True:
            await asyncio.sleep(self.lease_duration.total_seconds() / 3)
            self._forget_what_may_have_changed()
            self._forget_elsewhere()
            try:
                await self._renew_leases(list(self._attempts))
            except Exception:  # a heartbeat that has stopped would cost all jobs their leases
                self._logger.exception("The leases of claimed jobs could not be renewed; trying again")

    def _forget_elsewhere(self) -> None:
        """Forget schedules of which nothing is held: what is claimed of them later comes with the database's word."""
        if not (self._answers or self._background or self._changes):
            self._elsewhere = {each for each in self._elsewhere if self._hand.has_jobs_of(each) or each in self._going}

    async def _renew_leases(self, ids: Sequence[UUID]) -> set[UUID]:
        """Renew the leases of those jobs that are still this node's, forget the others, and return which are."""
        if not ids:
            return set()
        asked_at = self.database.clock.timestamp()
        asked = {each: self._attempts.get(each) for each in ids}
        found = await self._loop_fetch("extend_jobs", self.identity, list(ids), self.lease_duration)
        kept = {row["id"] for row in found}
        self._cancel(row for row in found if row["is_cancelled"])
        # A job that went back into the queue and was claimed again meanwhile is not the one that was asked for.
        self._forget({each for each, attempt in asked.items() if self._attempts.get(each) == attempt} - kept)
        for card in self._hand:
            if card.job.id in kept:
                card.leased_until = asked_at + self.lease_duration.total_seconds()
        return kept

    async def _renew_late(self, cards: list[Card]) -> None:
        """Start jobs whose time has come after their leases had ended, if no other node has taken them over."""
        asked_at = self.database.clock.timestamp()
        with self._held_on_to(cards):
            kept = await self._renew_leases([card.job.id for card in cards])
        for card in cards:
            if card.job.id in kept:
                card.leased_until = asked_at + self.lease_duration.total_seconds()
            else:
                self._let_go(card.job.id)
        self._hold_again(cards)

    def _hold_again(self, cards: Iterable[Card]) -> None:
        """Hold jobs again that were set aside, but for those that this node has let go meanwhile; if it has begun to
        stop since, they go back into the queue."""
        held = [card for card in cards if card.job.id in self._attempts]
        self._hand.put_back(held)
        if held and self.stopping:
            self._in_background(self.give_back([card.job.id for card in held]))
        self._relief.watch()
        self._jobs_wake.set()

    def _forget(self, lost: set[UUID]) -> None:
        """Drop claimed jobs that are no longer this node's, if they have not started here."""
        gone = self._hand.set_aside(jobs=lost)
        for card in gone:
            self._let_go(card.job.id)
        if gone:
            self._logger.warning("Lost the leases of %d jobs that had not started", len(gone))

    def _in_background(self, work: Any) -> asyncio.Task[None]:
        task: asyncio.Task[None] = asyncio.get_running_loop().create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background_ended)
        return task

    def _background_ended(self, task: asyncio.Task[None]) -> None:
        self._background.discard(task)
        if task.cancelled() or (error := task.exception()) is None:
            return
        if task is self._warming:
            self._logger.debug("Connections could not be made ready ahead of work: %s", error)
        else:
            self._logger.error("A look-up of claimed jobs failed", exc_info=error)

    # -- hints --------------------------------------------------------------------------------------------------------

    def _hint(self, event: Event | None) -> None:
        super()._hint(event)
        if event is None:
            if not self.database.is_open:
                return
            self._agenda.is_known = False
            self._queue_is_due = True
            self._schedules_wake.set()
            self._jobs_wake.set()
            self._doubt(None)
            if self._attempts:
                self._in_background(self._look_for_cancelled(list(self._attempts)))
        elif isinstance(event, JobRemoved):
            for answer in self._answers:
                answer.cancelled.add(event.job_id)
            if event.job_id in self._attempts:
                self._in_background(self._look_for_cancelled([event.job_id]))
        elif isinstance(event, ScheduleAdded | ScheduleUpdated):
            self._told_due(event.next_fire_time)
            self._doubt(event.schedule_id)
        elif isinstance(event, ScheduleRemoved):
            self._doubt(event.schedule_id)
        elif isinstance(event, JobAdded):
            # A run by request, or another attempt, which whoever is held of the same schedule has to ask for.
            if event.schedule_id and self._hand.has_jobs_of(event.schedule_id):
                self._elsewhere.add(event.schedule_id)
            self._queue_is_due = True
            self._jobs_wake.set()

    def _told_due(self, moment: datetime | None) -> None:
        """Take note that a schedule is due then, and come round in time for it."""
        if moment is not None:
            due = moment.timestamp()
            self._agenda.tell(due)
            if self._wakes_at is None or due - self._agenda.margin - _WARM_AHEAD < self._wakes_at:
                self._schedules_wake.set()

    def _doubt(self, schedule_id: str | None) -> None:
        """Look up whether held jobs of a schedule that somebody has changed (None: of any) are still there."""
        for answer in self._answers:
            answer.doubted.add(schedule_id)
        self._look_up(schedule_id)

    def _look_up(self, schedule_id: str | None) -> None:
        if schedule_id is None:
            cards = self._hand.set_aside(jobs=[card.job.id for card in self._hand])
        else:
            cards = self._hand.set_aside(schedules=(schedule_id,))
        if cards:
            self._in_background(self._check_held(cards))

    async def _check_held(self, cards: list[Card]) -> None:
        try:
            with self._meanwhile():
                found = await self._loop_fetch("held_jobs", self.identity, [card.job.id for card in cards])
                kept = {row["id"] for row in found}
                for card in cards:
                    if card.job.id not in kept:
                        self._let_go(card.job.id)
                self._hold_again(cards)
        except Exception:
            self._hold_again(cards)
            raise

    @contextmanager
    def _meanwhile(self) -> Iterator[_Meanwhile]:
        """Notice what is changed while an answer is under way; what was doubted is looked up again at the end.

        Two answers do not come in the order in which the database made them: that to a claim may come after that to a
        pause which has taken the claimed job back.
        """
        meanwhile = _Meanwhile()
        self._answers.append(meanwhile)
        try:
            yield meanwhile
        finally:
            self._answers.remove(meanwhile)
            if not self.stopping:  # else nothing starts any more, and nothing new may begin
                # The answers that are under way now know of it too, or were asked for later.
                for schedule_id in meanwhile.doubted:
                    self._look_up(schedule_id)
                if claimed := [each for each in meanwhile.cancelled if each in self._attempts]:
                    self._in_background(self._look_for_cancelled(claimed))

    # -- cancelling ---------------------------------------------------------------------------------------------------

    async def _look_for_cancelled(self, jobs: list[UUID]) -> None:
        """Cancel those of the jobs, all of this node, that somebody wants cancelled: the database says which."""
        self._cancel(await self._loop_fetch("cancel_requests", self.identity, jobs))

    def _cancel(self, found: Iterable[Row]) -> None:
        """Cancel jobs of this node: those that run, at their next await, and those that it holds, at once."""
        for row in found:
            if row["id"] not in self._attempts:
                continue  # it has ended meanwhile
            self._cancellations.want(row["id"], row["cancel_reason"])
            for card in self._hand.set_aside(jobs={row["id"]}):
                self._in_background(self._end_cancelled(self.identity, card.job, row["cancel_reason"]))

    # -- schedules ----------------------------------------------------------------------------------------------------

    def _look_ahead(self) -> timedelta:
        return self.look_ahead + timedelta(seconds=self._agenda.head_start)

    async def acquire_schedules(self, scheduler_id: str, lease_duration: timedelta, limit: int) -> list[Schedule]:
        """Claim schedules that are due or soon will be, more at once than the loop asks for."""
        if self.stopping:
            return []
        if self._agenda.is_known and self._agenda.claims_at > self.database.clock.timestamp():
            return []  # the first look after a start, which has just told that nothing is due
        self._agenda.begin_claim()
        return await super().acquire_schedules(scheduler_id, lease_duration, max(limit, LARGEST_CLAIM))

    def _claims(self, schedule: Schedule, fire: PlannedFire) -> bool:
        is_full = self._relief.is_stuck or len(self._attempts) >= _HELD_PER_PLACE * self.capacity
        if not self.works or self.stopping or is_full:
            return False
        # What its jitter puts off for long would take a place here, and might see this node die; it waits in the queue.
        if self.database.clock.wait_for(fire.run_time) > self.lease_duration.total_seconds():
            return False
        task = self._tasks.get(schedule.task_id)
        # The jobs of a limited task, or of a key, go through the claim that counts them.
        return KEY not in schedule.metadata and task is not None and task.max_running_jobs is None

    def _job_lease(self) -> timedelta:
        return self.lease_duration

    async def release_schedules(self, scheduler_id: str, results: Sequence[ScheduleResult]) -> None:
        """Write jobs, ledger rows and next fire times, and hold the jobs that were claimed as they were made."""
        with self._meanwhile() as self._releasing:
            await super().release_schedules(scheduler_id, results)
        self._agenda.end_claim(len(results))

    async def _released(self, scheduler_id: str, plans: Sequence[Plan], row: Row) -> None:
        self._agenda.learn(
            row["next_due"],
            row["next_expiry"],
            *(made.next_fire_time for made in plans if made.broken_reason is None),
            crowd=row["crowd"],
        )
        claimed, contested, is_held = set(row["claimed"]), set(row["contested"]), set(row["held"])
        host_offset = self.database.clock.host_offset
        breath = Breath()
        for made in plans:
            for fire in made.fires:
                if fire.job_id in claimed and fire.job_id not in self._releasing.taken_back:
                    job = self._born(made.schedule, fire, row["leased_until"], host_offset)
                    self._attempts[job.id] = 1
                    in_turn = self._takes_turns(job)
                    self._hand.take(
                        job,
                        fire.run_time.timestamp(),
                        row["leased_until"].timestamp(),
                        decides_overlap=in_turn or (fire.is_ahead and _skips(job.metadata)),
                        contested=job.id in contested or fire.overlap is not None,
                        held_for=self._lead if job.id in is_held else None,
                    )
            await breath.taken()
        if self.stopping:
            await self.give_back(claimed)
        if row["queued"]:
            self._queue_is_due = True
        self._relief.watch()
        self._jobs_wake.set()
        broker = self._event_broker
        if not isinstance(broker, PostgresEventBroker) or any(
            broker.has_subscribers(each) for each in (JobAdded, ScheduleUpdated)
        ):
            await super()._released(scheduler_id, plans, row)
        elif not self._is_asked:
            self._nudge()

    def _born(self, schedule: Schedule, fire: PlannedFire, leased_until: datetime, host_offset: timedelta) -> Job:
        """Return the job of a fire as the release has written it, claimed by this node."""
        deadline = fire.start_deadline
        if rows.START_DEADLINE in schedule.metadata:
            since = max(fire.run_time, self.database.clock.now())
            deadline = rows.start_deadline(schedule.metadata, since, deadline)
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
            metadata=(
                schedule.metadata
                if fire.overlap is None
                else {**schedule.metadata, f"{METADATA_PREFIX}overlap": str(fire.overlap)}
            ),
            acquired_by=self.identity,
            acquired_until=leased_until,
        )

    async def get_next_schedule_run_time(self) -> datetime | None:
        """Wait until a schedule may be due and return the host's time, so that the loop comes round at once.

        The loop itself would sleep by the host's clock, and wake only for events, for each of which it would ask the
        database: here a schedule that is due later than the next one costs nothing.
        """
        clock = self.database.clock
        polls_at = clock.timestamp() + self.poll_interval.total_seconds()
        while True:
            self._schedules_wake.clear()
            now = clock.timestamp()
            if self.stopping:
                await self._schedules_wake.wait()
            elif not self._agenda.is_known or polls_at <= now:
                # The poll: one statement for both loops, and no claim when nothing is due.
                await self._look()
                polls_at = now + self.poll_interval.total_seconds()
            elif (claims_at := self._agenda.claims_at) <= now:
                self._agenda.is_known = False
                return datetime.now(UTC)
            else:
                if claims_at - now <= _WARM_AHEAD:
                    self._warm_up()
                elif claims_at - _WARM_AHEAD < polls_at:
                    claims_at -= _WARM_AHEAD
                self._wakes_at = min(polls_at, claims_at)
                try:
                    await _wait(self._schedules_wake, self._wakes_at - now)
                finally:
                    self._wakes_at = None

    def _warm_up(self) -> None:
        """Have connections ready, with their statements prepared, before work is due: at a distance that takes longer
        than a fire may be late."""
        if self._warming is None or self._warming.done():
            self._warming = self._in_background(self.connections.warm(_WARM_CONNECTIONS, self._first_steps()))

    def _first_steps(self) -> list[Step]:
        """Return the statements that a fire needs, with nothing to do."""
        no_time = timedelta(0)
        release = (self.identity, *rows.columns([], 6), *rows.columns([], 9), no_time, "", "", [])
        finish = (self.identity, *rows.columns([], 12), "", [])
        steps: list[tuple[str, tuple[Any, ...]]] = [
            ("acquire_schedules", (self.identity, no_time, 0, no_time)),
            *((name, release) for name in ("release_schedules", "release_schedules_many")),
            ("acquire_jobs", (self.identity, no_time, no_time, 0)),
            *((name, finish) for name in ("finish_jobs", "finish_jobs_many")),
            ("next_work", ()),
            ("extend_jobs", (self.identity, [], no_time)),
        ]
        return [partial(_fetch, self.database.statements[name], arguments) for name, arguments in steps]

    async def _look(self) -> None:
        """Ask when schedules and queued jobs are due next."""
        self._agenda.look()
        [row] = await self._loop_fetch("next_work")
        self._agenda.learn(row["schedule_due"], row["schedule_expiry"], crowd=row["crowd"])
        self._plan_queue(row["next_job_due"], row["job_expiry"])
        if self._is_past(row["job_due"]):
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
        if due is not None:
            # Ahead of its time, if that is still to come; else at its time: a limited task's job is not claimed ahead.
            # It was to come when the database said so, and may have become due while the answer was on its way.
            begin = due.timestamp() - self._agenda.margin
            self._queue_due_at = min(self._queue_due_at, begin if begin > now else max(due.timestamp(), now))

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
            broker = self._event_broker
            if put.added and isinstance(broker, PostgresEventBroker) and not broker.has_subscribers(ScheduleAdded):
                # Nothing of it can be held, and nobody wants an event: the loop only wants to know when it is due.
                self._told_due(None if schedule.paused else schedule.next_fire_time)
                return
        await super()._put(schedule, put)

    def _take_back(self, jobs: Iterable[UUID]) -> None:
        """Forget held jobs that a change of their schedule has taken back."""
        gone = set(jobs)
        for answer in self._answers:
            answer.taken_back |= gone
        if gone:
            self._hand.set_aside(jobs=gone)
            for each in gone:
                self._let_go(each)

    async def _change(self, name: str, schedule_ids: Sequence[str], *arguments: Any) -> Sequence[Row]:
        """Run a statement that takes schedules' jobs back; none of them starts while it is under way (exactness)."""
        if current_transaction.get() is not None:
            return await super()._change(name, schedule_ids, *arguments)
        change = _Change(frozenset(schedule_ids), self._hand.set_aside(schedules=set(schedule_ids)))
        self._changes.append(change)
        try:
            await self._hold_confirmed(change)
            found = await super()._change(name, schedule_ids, *arguments)
            self._take_back(job_id for row in found for job_id in row["taken_back"])
            return found
        finally:
            self._changes.remove(change)
            self._hold_again(change.aside)

    async def _hold_confirmed(self, change: _Change) -> None:
        """Have jobs that were confirmed, and have not begun, taken for held again, so that they can be taken back."""
        if self._confirming:
            await asyncio.wait(self._confirming, timeout=self.call_timeout.total_seconds())
            change.aside += self._hand.set_aside(schedules=change.schedules)
        confirmed = [card for card in change.aside if not card.is_held and _may_run_once(card.job.metadata)]
        if confirmed:
            for card in confirmed:
                card.is_held = True  # whether or not the answer comes
            await self._user_fetch("confirm_jobs", self.identity, [card.job.id for card in confirmed], True)

    # -- jobs ---------------------------------------------------------------------------------------------------------

    async def acquire_jobs(self, scheduler_id: str, lease_duration: timedelta, limit: int | None = None) -> list[Job]:
        """Return jobs whose time has come, and wait until there are some."""
        self._is_asked = True
        try:
            jobs = await self._wait_for_jobs(min(self.capacity if limit is None else limit, LARGEST_CLAIM))
            self._relief.watch()
        finally:
            self._is_asked = False
        # A task may have been removed, or all been forgotten, since its job was claimed.
        while unknown := next((job.task_id for job in jobs if job.task_id not in self._tasks), None):
            await self._know_task(unknown)
        # The loop comes back at once for what is due next, instead of waiting for one of these to end.
        self._nudge()
        return jobs

    def _is_full(self, has_ended: bool) -> bool:
        """Return whether it is for places that overdue jobs wait.

        It may be the database instead, and places come free when it answers; or something has blocked the event loop,
        and there are places.
        """
        if self.stopping or self.database.outage is not None or (self._ending and not has_ended):
            return False
        return len(self._begun) >= self.capacity

    def _give_to_others(self, jobs: list[Job]) -> None:
        # Another node may run them, while the next fires of their schedules start here.
        self._elsewhere.update(job.schedule_id for job in jobs if job.schedule_id is not None)
        self._in_background(self.give_back([job.id for job in jobs]))

    async def _wait_for_jobs(self, most: int) -> list[Job]:
        clock = self.database.clock
        while True:
            self._jobs_wake.clear()
            if not self.stopping:
                if jobs := self._start_due(min(most, _MOST_STARTS)):
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
        in_turn: list[Card] = []
        unsure: list[Card] = []
        late: list[Card] = []
        unconfirmed: list[Card] = []
        now = self.database.clock.timestamp()
        for card in self._hand.draw(now, most):
            job = card.job
            if (reason := self._cancellations.reason(job.id)) is not None:
                self._in_background(self._end_cancelled(self.identity, job, reason))
                continue
            if change := next((each for each in self._changes if job.schedule_id in each.schedules), None):
                change.aside.append(card)
                continue
            if (waiting := self._ending.get(job.id)) is not None:
                waiting.append(card)
                continue
            if card.leased_until <= now:  # this process was stopped, or the database away, for longer than the lease
                late.append(card)
                continue
            if card.is_held:
                unconfirmed.append(card)
                continue
            schedule_id = job.schedule_id
            if card.decides_overlap and schedule_id is not None:
                if takes_turns(job.metadata):
                    is_alone = self._turns.is_alone(job) and not self._going.get(schedule_id)
                    if card.contested or schedule_id in self._elsewhere or not is_alone:
                        in_turn.append(card)
                        continue
                elif self._going.get(schedule_id):
                    self._in_background(self._skip(self.identity, job, _OVERLAPPED))
                    continue
                elif card.contested or schedule_id in self._elsewhere:
                    unsure.append(card)
                    continue
            if schedule_id is not None:
                self._going.setdefault(schedule_id, set()).add(job.id)
            jobs.append(job)
        if in_turn:
            self._in_background(self._take_turns(in_turn))
        if unsure:
            self._in_background(self._ask_overlap(unsure))
        if late:
            self._in_background(self._renew_late(late))
        if unconfirmed:
            confirming = self._in_background(self._confirm(unconfirmed))
            self._confirming.add(confirming)
            confirming.add_done_callback(self._confirming.discard)
        return jobs

    @property
    def _lead(self) -> float:
        return _CONFIRM_AHEAD + self.database.clock.round_trip

    async def _confirm(self, cards: list[Card]) -> None:
        """Have the database take jobs that may run at most once for begun, just before they do.

        Until then a job whose node dies is run by another one, and a change of its schedule takes it back; from then on
        neither happens, because nobody could tell whether it had begun.
        """
        with self._meanwhile():
            with self._held_on_to(cards):
                found = await self._loop_fetch("confirm_jobs", self.identity, [card.job.id for card in cards], False)
            kept = {row["id"] for row in found}
            for card in cards:
                if card.job.id in kept:
                    card.confirm()
                else:
                    self._let_go(card.job.id)
            self._hold_again(cards)

    @contextmanager
    def _held_on_to(self, cards: list[Card]) -> Iterator[None]:
        """Hold jobs again that the database was asked about and has refused; they are tried a second later."""
        try:
            yield
        except Exception:
            for card in cards:
                card.due = max(card.due, self.database.clock.timestamp() + 1.0)
            self._hold_again(cards)
            raise

    async def _ask_overlap(self, cards: list[Card]) -> None:
        """Ask the database whether other nodes have unfinished earlier jobs of these jobs' schedules."""
        with self._held_on_to(cards):
            found = await self._loop_fetch("overlapped_jobs", [card.job.id for card in cards])
        overlapped = {row["id"] for row in found}
        for card in cards:
            if card.job.id in overlapped:
                self._in_background(self._skip(self.identity, card.job, _OVERLAPPED))
            else:
                if card.job.schedule_id is not None:
                    self._elsewhere.discard(card.job.schedule_id)
                card.contested = False
                self._hold_again([card])

    def _takes_turns(self, job: Job) -> bool:
        """Return whether a claimed job has to take turns with others of its schedule, and take note of it."""
        if not takes_turns(job.metadata):
            return False
        self._turns.take(job)
        return True

    async def _take_turns(self, cards: list[Card]) -> None:
        """Start jobs that nothing stands before; the others go back into the queue until their turn comes, or end."""
        schedules = {card.job.schedule_id for card in cards if card.job.schedule_id is not None}
        try:
            with self._held_on_to(cards):
                starts = await self._settle(self.identity, [card.job for card in cards])
        finally:
            # Those that wait may be run by another node, while the next fire starts here.
            self._elsewhere |= schedules
        for card in cards:
            if card.job.id in starts:
                if self._turns.is_alone(card.job):
                    self._elsewhere.discard(cast("str", card.job.schedule_id))
                card.decides_overlap = False
        self._hold_again(card for card in cards if card.job.id in starts)

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
            with self._meanwhile() as meanwhile:
                found, answer, claimed = await self._claim(self.identity, self.lease_duration, room, self.look_ahead)
                breath = Breath()
                for job, row in found:
                    await self._know_task(job.task_id)
                    if job.id in meanwhile.taken_back:
                        self._let_go(job.id)
                        continue
                    made_ahead = row["attempt"] == 1 and row["created_at"] < row["run_at"]
                    self._hand.take(
                        job,
                        row["run_at"].timestamp(),
                        row["acquired_until"].timestamp(),
                        decides_overlap=self._takes_turns(job) or (made_ahead and _skips(job.metadata)),
                        contested=True,
                        held_for=self._lead if row["held"] else None,
                    )
                    await breath.taken()
            self._queue_is_due = self._queue_is_due or claimed == room
            self._plan_queue(answer["next_due"], answer["next_expiry"])
            if self.stopping:  # it has begun to stop while the claim was under way
                await self.give_back([job.id for job, _ in found])
        else:
            now = clock.timestamp()
            room_at = math.inf if self._hand.next_due is None else max(self._hand.next_due, now + 0.01)
            self._queue_due_at = min(room_at, now + self.poll_interval.total_seconds())

    async def _know_task(self, task_id: str) -> None:
        """Have the task in memory before the loop asks for it: the loop cannot wait for a database that is away."""
        if task_id not in self._tasks:
            found = await self._loop_fetch("tasks", task_id)
            # A job of a task that nobody has defined, or that cannot be read, fails when it is run (promise 4).
            # No task can be called what stands for an empty name, which a row that was edited by hand may have.
            task = Task(id=task_id or "\x00", func=None, job_executor=AUTO_EXECUTOR)
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
        self._cancellations.end(job.id)
        finish.cancelled = finish.cancelled or self._cancellations.reason(job.id)
        again = finish.options.on_crash is OnCrash.retry and (finish.attempt or 0) < MOST_LOST_ATTEMPTS
        if finish.cancelled is not None:
            finish.retry_after = None
        elif finish.result.outcome is JobOutcome.cancelled and again:
            finish.retry_after = timedelta(0)
        self._ending[job.id] = []
        try:
            await self._record(finish, self.database.deadline() if self.stopping else deadline)
        except asyncio.CancelledError:
            # The node stops while it writes how the attempt ended. It writes it again: an attempt ends only once.
            with CancelScope(shield=True):
                await self._record(finish, self.database.deadline())
            raise
        finally:
            self._relief.end()
            if job.id in self._attempts and self._is_latest(finish):
                self._let_go(job.id)
            self._hold_again(self._ending.pop(job.id))
            if job.schedule_id is not None:
                if finish.retry_after is not None:
                    self._elsewhere.add(job.schedule_id)
                going = self._going.get(job.schedule_id, set())
                going.discard(job.id)
                if not going:
                    self._going.pop(job.schedule_id, None)
        task = self._tasks.get(job.task_id)
        if KEY in job.metadata or (task is not None and task.max_running_jobs is not None):
            self._queue_is_due = True  # a place of a limited task, or of a key, is free
            self._jobs_wake.set()

    async def _record(self, finish: Finish, deadline: float | None) -> None:
        try:
            await super()._finish(finish, deadline=deadline)
        except (StoreUnavailable, TimeoutError) as exc:
            self._logger.warning("The end of job %s was not recorded: %s", finish.job.id, exc)
        else:
            self._begun.discard(finish.job.id)

    def _known_jobs(self) -> list[UUID]:
        # Those too that have begun, and whose end could not be recorded.
        return [*self._attempts, *self._begun]

    async def cleanup(self) -> None:
        """Clean up; not at the start, if the first look has found nothing to do."""
        is_clean, self._is_clean = self._is_clean, False
        if not is_clean:
            await super().cleanup()

    def _is_latest(self, finish: Finish) -> bool:
        """Return whether this node has not claimed the job's next attempt, while the end was being told."""
        return self._attempts.get(finish.job.id) in (None, finish.attempt)

    async def _reap(self, scheduler_id: str | None, *, default: str) -> int:
        """End attempts of vanished nodes, of which this is none: not even when the database was away for longer than
        its leases lasted, or it was stopped itself. A job that does not say what becomes of it is made again."""
        await self._renew_leases(list(self._attempts))
        return await super()._reap(scheduler_id, default="retry")

    async def reap_abandoned_jobs(self, scheduler_id: str) -> None:
        """Do nothing: what a crash has left claimed is freed at the start."""

    async def _free_left_behind(self) -> None:
        """Free what a crash has left claimed, if there was one, under the identity of that time: what had not begun
        goes back as it was, and jobs whose ends could not be recorded as their tasks ask."""
        for identity, begun in list(self._left_behind.items()):
            await self._loop_fetch("leave", identity, begun, *self._message([]))
            await self._reap(identity, default="retry")
            del self._left_behind[identity]


def _skips(metadata: Mapping[str, Any]) -> bool:
    return bool(metadata.get(f"{METADATA_PREFIX}overlap") == Overlap.skip)


async def _fetch(statement: str, arguments: tuple[Any, ...], connection: asyncpg.Connection) -> None:
    await connection.fetch(statement, *arguments)


def _may_run_once(metadata: Mapping[str, Any]) -> bool:
    return bool(metadata.get(f"{METADATA_PREFIX}on_crash") == OnCrash.abandon)


async def _wait(event: asyncio.Event, seconds: float | None) -> bool:
    """Wait for the event, but no longer than that (None: for ever), and return whether it has come."""
    if event.is_set() or (seconds is not None and seconds <= 0):
        return event.is_set()
    try:
        async with asyncio.timeout(seconds):
            return await event.wait()
    except TimeoutError:
        return False
