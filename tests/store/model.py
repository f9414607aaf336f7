"""A state machine over the data store: nodes that claim, work, crash and come too late, with the clock in its hand.

Each rule is one statement of the store, so a node that crashes between two rules crashes between two statements. After
each rule the stored rows are held against a small model: the fire times that each schedule has, who has begun which
job, and what nobody may change any more.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Coroutine, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar
from uuid import UUID

import asyncpg
from apscheduler import CoalescePolicy, ConflictPolicy, Job, JobOutcome, JobResult, Schedule
from apscheduler.triggers.interval import IntervalTrigger
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from duetime.attempts import Retry
from duetime.errors import ScheduleNotFound
from duetime.options import CatchUp, OnCrash, Overlap, TaskOptions, takes_turns
from duetime.settings import DatabaseUrl
from duetime.store import PostgresDataStore
from duetime.store.connections import DirectConnections
from duetime.store.planning import PlannedFire

from .parts import a_job, a_schedule, a_task, result_of

T = TypeVar("T")

T0 = datetime(2027, 1, 1, tzinfo=UTC)
LEASE = timedelta(seconds=10)
AHEAD = timedelta(seconds=3)
NODES = 3

places = st.integers(0, NODES - 1)

STEPS = [
    *["claim_schedules 1", "claim_schedules 3", "release_schedules", "release_schedules", "fire", "fire"],
    *["claim_jobs 1", "claim_jobs 4", "begin_jobs", "begin_jobs", "run", "run"],
    *["end_a_job", "end_a_job", "end_a_job 1"],
    *["renew_claims_of_jobs", "renew_claims_of_schedules", "reap", "clean_up", "leave", "crash"],
    *["sleep_too_long", "sleep_too_long"],
    *["pass 1", "pass 2", "pass 6", "pass 11"],
]
"""What a node does next, as often as it is to be drawn; time passes by seconds, 11 of which end a lease."""

TASKS = {
    "work": (None, TaskOptions(overlap=Overlap.allow)),
    "alone": (None, TaskOptions(overlap=Overlap.skip)),
    "once": (None, TaskOptions(overlap=Overlap.allow, on_crash=OnCrash.abandon)),
    "again": (None, TaskOptions(overlap=Overlap.allow, retry=Retry(max_attempts=3, backoff=2, jitter=0))),
    "one": (1, TaskOptions(overlap=Overlap.allow)),
    "two": (2, TaskOptions(overlap=Overlap.allow)),
    "in turn": (None, TaskOptions(overlap=Overlap.buffer_all, retry=Retry(max_attempts=2, backoff=2, jitter=0))),
    "one waits": (None, TaskOptions(overlap=Overlap.buffer_one)),
    "newest": (None, TaskOptions(overlap=Overlap.cancel_other)),
    "all of them": (None, TaskOptions(overlap=Overlap.skip, catch_up=CatchUp.all)),
}
LIMITS = {name: limit for name, (limit, _) in TASKS.items() if limit is not None}

# PostgreSQL looks for functions in these schemas in turn, so every statement of the store gets this clock's time.
CLOCK = """
    create schema hand;
    create table hand.clock (at timestamptz not null);
    insert into hand.clock values ('2027-01-01 00:00+00');
    create function hand.now() returns timestamptz language sql stable as 'select at from hand.clock';
    create function hand.clock_timestamp() returns timestamptz language sql volatile as 'select at from hand.clock';
    alter table duetime.jobs alter run_at set default hand.now(), alter created_at set default hand.now();
    alter table duetime.fires alter created_at set default hand.now();
    alter table duetime.schedules alter created_at set default hand.now(), alter updated_at set default hand.now();
"""


class AheadStore(PostgresDataStore):
    """Claims ahead of time, and the jobs of its fires as they are made, as a running node's store does."""

    def _look_ahead(self) -> timedelta:
        return AHEAD

    def _claims(self, schedule: Schedule, fire: PlannedFire) -> bool:
        return schedule.task_id not in LIMITS

    def _job_lease(self) -> timedelta:
        return LEASE


class World:
    """The database, its clock, and the event loop in which the machine's steps run."""

    def __init__(self, url: DatabaseUrl, runner: asyncio.Runner) -> None:
        self.url = url
        self._runner = runner
        self.connections = DirectConnections(url, size=1)
        self.connection: asyncpg.Connection = self.run(asyncpg.connect(**url.asyncpg_arguments()))

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self._runner.run(work)

    def rows(self, query: str, *arguments: Any) -> list[asyncpg.Record]:
        found: list[asyncpg.Record] = self.run(self.connection.fetch(query, *arguments))
        return found

    def begin(self) -> None:
        """Forget everything, and go back to the beginning of time."""
        self.run(
            self.connection.execute(
                "truncate duetime.tasks, duetime.schedules, duetime.jobs, duetime.fires, duetime.runs, "
                "duetime.job_results; update hand.clock set at = '2027-01-01 00:00+00'"
            )
        )

    def close(self) -> None:
        self.run(self.connections.close())
        self.run(self.connection.close())


@dataclass(frozen=True)
class Wish:
    """A schedule that somebody wants: every ``step`` seconds, ``start`` seconds from now, so many times."""

    task: str
    start: int
    step: int
    count: int
    coalesce: CoalescePolicy


wishes = st.builds(
    Wish,
    task=st.sampled_from(sorted(TASKS)),
    start=st.sampled_from([-10, -3, 0, 1, 2, 3, 5, 10]),
    step=st.integers(1, 6),
    count=st.integers(1, 8),
    coalesce=st.sampled_from(CoalescePolicy),
)


@dataclass
class Definition:
    """What the model knows of a schedule: when it fires, and what was in the ledger before."""

    times: tuple[datetime, ...]
    before: set[datetime] = field(default_factory=set)


@dataclass
class Held:
    """A job that a node has claimed."""

    job: Job
    until: datetime
    has_begun: bool = False
    is_held: bool = False


@dataclass(eq=False)
class Node:
    """One start of a process: its store, and what it believes to be its own."""

    identity: str
    store: AheadStore
    schedules: list[Schedule] = field(default_factory=list)
    jobs: dict[UUID, Held] = field(default_factory=dict)

    def __repr__(self) -> str:
        return self.identity


class Nodes(RuleBasedStateMachine):
    """Any number of nodes on one store, in any order of steps."""

    world: World

    def __init__(self) -> None:
        super().__init__()
        self.now = T0
        self.nodes: list[Node] = []
        self.starts = 0
        self.names = 0
        self.definitions: dict[str, Definition] = {}
        self.begun: Counter[UUID] = Counter()
        self.task_of: dict[UUID, str] = {}
        self.world.begin()

    # -- steps of the world ------------------------------------------------------------------------------------------

    @initialize(wishes=st.lists(wishes, min_size=2, max_size=5))
    def start_nodes(self, wishes: list[Wish]) -> None:
        self.nodes = [self._new_node() for _ in range(NODES)]
        for name, (limit, options) in TASKS.items():
            task = a_task(name, max_running_jobs=limit, metadata=options.to_metadata())
            self.world.run(self.nodes[0].store.add_task(task))
        self.add_schedules(0, wishes)

    def _new_node(self) -> Node:
        self.starts += 1
        store = AheadStore("postgresql://", connections=self.world.connections)
        return Node(f"node {self.starts}", store)

    def _let_pass(self, seconds: int) -> None:
        self.now += timedelta(seconds=seconds)
        self.world.run(self.world.connection.execute("update hand.clock set at = $1", self.now))

    # -- steps of users ----------------------------------------------------------------------------------------------

    @rule(place=places, wishes=st.lists(wishes, min_size=1, max_size=4))
    def add_schedules(self, place: int, wishes: list[Wish]) -> None:
        for wish in wishes:
            self.names += 1
            self._put(self.nodes[place], f"s{self.names}", wish, ConflictPolicy.exception)

    @rule(place=places, task=st.sampled_from(sorted(TASKS)), count=st.integers(1, 4))
    def add_jobs(self, place: int, task: str, count: int) -> None:
        for _ in range(count):
            self.world.run(self.nodes[place].store.add_job(a_job(task, metadata=TASKS[task][1].to_metadata())))

    @precondition(lambda self: self.definitions)
    @rule(
        place=places,
        number=st.integers(0, 99),
        change=st.sampled_from(["pause", "pause", "resume", "remove"]),
        is_ahead=st.booleans(),
    )
    def change_a_schedule(self, place: int, number: int, change: str, is_ahead: bool) -> None:
        if is_ahead:  # there is something to be taken back
            self.fire(self.nodes[place - 1])
        store, name = self.nodes[place].store, self._any(number)
        if change == "remove":
            self.world.run(store.remove_schedules([name]))
            del self.definitions[name]
        else:
            self._if_stored(store.pause_schedule(name) if change == "pause" else store.resume_schedule(name))
        self._forget_taken_back()

    @precondition(lambda self: self.definitions)
    @rule(place=places, number=st.integers(0, 99), wish=wishes)
    def replace_a_schedule(self, place: int, number: int, wish: Wish) -> None:
        self._put(self.nodes[place], self._any(number), wish, ConflictPolicy.replace)
        self._forget_taken_back()

    def _any(self, number: int) -> str:
        return sorted(self.definitions)[number % len(self.definitions)]

    def _put(self, node: Node, name: str, wish: Wish, policy: ConflictPolicy) -> None:
        first = self.now + timedelta(seconds=wish.start)
        times = tuple(first + n * timedelta(seconds=wish.step) for n in range(wish.count))
        trigger = IntervalTrigger(seconds=wish.step, start_time=first, end_time=times[-1])
        metadata = TASKS[wish.task][1].to_metadata()
        schedule = a_schedule(name, trigger, task_id=wish.task, coalesce=wish.coalesce, metadata=metadata)
        self.world.run(node.store.add_schedule(schedule, policy))
        self.definitions[name] = Definition(times, self._fired().get(name, set()))

    def _if_stored(self, work: Coroutine[Any, Any, None]) -> None:
        """A finished schedule may have been cleaned up."""
        with suppress(ScheduleNotFound):
            self.world.run(work)

    # -- steps of a node's loops -------------------------------------------------------------------------------------

    @rule(steps=st.lists(st.tuples(places, st.sampled_from(STEPS)), min_size=8, max_size=25))
    def nodes_go_on(self, steps: list[tuple[int, str]]) -> None:
        """Several steps, by any of the nodes, in any order."""
        for place, step in steps:
            name, _, argument = step.partition(" ")
            if name == "pass":
                self._let_pass(int(argument))
            elif name == "crash":
                # What it had claimed stays claimed until the lease ends, under a name that nobody has any more.
                self.nodes[place] = self._new_node()
            else:
                getattr(self, name)(self.nodes[place], *([int(argument)] if argument else []))
            self.no_task_runs_more_jobs_than_it_may()

    def fire(self, node: Node) -> None:
        """Claim and release, with nothing in between."""
        self.claim_schedules(node, 5)
        self.release_schedules(node)

    def run(self, node: Node) -> None:
        """Claim and begin, with nothing in between."""
        self.claim_jobs(node, 5)
        self.begin_jobs(node)

    def sleep_too_long(self, node: Node) -> None:
        """Claim what there is, and wake when the leases have ended and another node may have claimed it all."""
        self.claim_schedules(node, 5)
        self.run(node)
        self._let_pass(11)
        other = self.nodes[self.nodes.index(node) - 1]
        self.claim_schedules(other, 5)
        self.run(other)

    def claim_schedules(self, node: Node, limit: int) -> None:
        """A second claim before the release of the first gives back what the first one had, as long as it is held."""
        theirs = self._leased("schedules", node)
        node.schedules = self.world.run(node.store.acquire_schedules(node.identity, LEASE, limit))
        assert theirs <= self._leased("schedules", node), "a claim took what was still another node's"

    def renew_claims_of_schedules(self, node: Node) -> None:
        held = {schedule.id for schedule in node.schedules}
        self.world.run(node.store.extend_acquired_schedule_leases(node.identity, held, LEASE))

    def release_schedules(self, node: Node) -> None:
        """However late: what is no longer the node's is left alone, which the invariants see."""
        claimed, node.schedules = node.schedules, []
        theirs = self._theirs({schedule.id for schedule in claimed}, node)
        before = self._state_of(theirs)
        for schedule in claimed:
            self.world.run(node.store.add_job(a_job(schedule.task_id, schedule_id=schedule.id)))
        self.world.run(node.store.release_schedules(node.identity, [result_of(each) for each in claimed]))
        assert self._state_of(theirs) == before, "a release changed a schedule that was no longer its own"
        self._hold(
            node,
            self.world.rows(
                "select id, acquired_until, attempt, held from duetime.jobs where acquired_by = $1", node.identity
            ),
        )

    def _leased(self, table: str, node: Node) -> set[tuple[Any, ...]]:
        """Return what other nodes have claimed, with live leases."""
        found = self.world.rows(
            f"select id, acquired_by, acquired_until from duetime.{table} "  # noqa: S608 - one of two names
            "where acquired_until >= $1 and acquired_by <> $2",
            self.now,
            node.identity,
        )
        return {tuple(row) for row in found}

    def _theirs(self, names: set[str], node: Node) -> list[str]:
        found = self.world.rows(
            "select id from duetime.schedules where id = any($1) and acquired_by is distinct from $2",
            list(names),
            node.identity,
        )
        return [row["id"] for row in found]

    def _state_of(self, names: Sequence[str]) -> list[tuple[Any, ...]]:
        found = self.world.rows(
            "select s.*, (select count(*) from duetime.fires f where f.schedule_id = s.id) as fires, "
            "(select count(*) from duetime.jobs j where j.schedule_id = s.id) as jobs "
            "from duetime.schedules s where id = any($1) order by id",
            list(names),
        )
        return [tuple(row) for row in found]

    def _hold(self, node: Node, claimed: Iterable[Mapping[str, Any]]) -> None:
        new = {row["id"]: row for row in claimed if row["id"] not in node.jobs}
        for job in self.world.run(node.store.get_jobs(list(new))):
            node.store._attempts[job.id] = new[job.id]["attempt"]
            node.jobs[job.id] = Held(job, new[job.id]["acquired_until"], is_held=new[job.id]["held"])
            self.task_of[job.id] = job.task_id

    def claim_jobs(self, node: Node, limit: int) -> None:
        theirs = self._leased("jobs", node)
        answer = self.world.run(
            node.store.database.fetch("acquire_jobs", node.identity, LEASE, AHEAD, limit, deadline=None)
        )
        assert theirs <= self._leased("jobs", node), "a claim took what was still another node's"
        found = [row for row in answer if row["id"] is not None]
        assert len(found) <= limit
        for row in found:
            assert row["run_at"] <= self.now + (timedelta(0) if row["task_id"] in LIMITS else AHEAD)
            node.jobs.pop(row["id"], None)  # an earlier attempt that it has lost
        self._hold(node, found)

    def renew_claims_of_jobs(self, node: Node) -> None:
        """The heartbeat; what is not renewed is dropped, if it has not begun."""
        found = self.world.run(
            node.store.database.fetch("extend_jobs", node.identity, list(node.jobs), LEASE, deadline=None)
        )
        kept = {row["id"] for row in found}
        for job_id, held in list(node.jobs.items()):
            if job_id in kept:
                held.until = self.now + LEASE
            elif not held.has_begun:
                del node.jobs[job_id]

    def begin_jobs(self, node: Node) -> None:
        """Start what is due and still leased, as far as the node knows; confirmed, if it may run at most once; in turn,
        if its schedule's jobs take turns."""
        asking = [
            held.job
            for held in node.jobs.values()
            if held.job.schedule_id is not None
            and takes_turns(held.job.metadata)
            and not held.has_begun
            and self._may_begin(held)
        ]
        starts = self.world.run(node.store._settle(node.identity, asking))
        node.jobs = {job_id: held for job_id, held in node.jobs.items() if held.job not in asking or job_id in starts}
        for held in list(node.jobs.values()):
            if not held.has_begun and self._may_begin(held):
                if self.task_of[held.job.id] == "once" and not self._is_confirmed(node, held.job):
                    del node.jobs[held.job.id]
                    continue
                held.has_begun = True
                self.begun[held.job.id] += 1

    def _may_begin(self, held: Held) -> bool:
        due = held.job.scheduled_fire_time
        return held.until > self.now and (due is None or due <= self.now)

    def _is_confirmed(self, node: Node, job: Job) -> bool:
        """Confirm a job that was held for later, and say whether it is still the node's; or it was due when claimed."""
        if not node.jobs[job.id].is_held:
            return True
        return bool(
            self.world.run(node.store.database.fetch("confirm_jobs", node.identity, [job.id], False, deadline=None))
        )

    def end_a_job(self, node: Node, fails: int = 0) -> None:
        """However late: the end of an attempt that another node has taken over is not recorded."""
        held = next((each for each in node.jobs.values() if each.has_begun), None)
        if held is None:
            return
        job = held.job
        before = self.world.rows("select * from duetime.jobs where id = $1", job.id)
        is_ours = bool(before) and before[0]["acquired_by"] == node.identity
        fires = self.world.rows("select * from duetime.fires where job_id = $1", job.id)
        outcome, error = (JobOutcome.error, RuntimeError("not today")) if fails else (JobOutcome.success, None)
        result = JobResult.from_job(job, outcome, exception=error)
        self.world.run(node.store.release_job(node.identity, job, result))
        del node.jobs[job.id]
        after = self.world.rows("select * from duetime.jobs where id = $1", job.id)
        if not is_ours:
            assert before == after, "an attempt was ended that was no longer the node's"
            assert self.world.rows("select * from duetime.fires where job_id = $1", job.id) == fires

    def reap(self, node: Node) -> None:
        self.world.run(node.store._reap(None, default="retry"))

    def clean_up(self, node: Node) -> None:
        self.world.run(node.store.cleanup())

    def leave(self, node: Node) -> None:
        """A node that stops gives back what has not begun."""
        begun = [held.job.id for held in node.jobs.values() if held.has_begun]
        self.world.run(node.store.database.fetch("leave", node.identity, begun, "", "", deadline=None))
        node.schedules = []
        node.store._holds.clear()
        node.jobs = {job_id: held for job_id, held in node.jobs.items() if held.has_begun}

    def _forget_taken_back(self) -> None:
        """The node that is asked, and the others as soon as they hear of it, drop jobs that were taken back."""
        kept = {row["id"] for row in self.world.rows("select id from duetime.jobs")}
        for other in self.nodes:
            other.jobs = {job_id: held for job_id, held in other.jobs.items() if job_id in kept or held.has_begun}

    # -- what always holds -------------------------------------------------------------------------------------------

    @invariant()
    def check(self) -> None:
        self.every_fire_before_the_next_one_is_in_the_ledger_once_and_no_other_is()
        self.a_fire_is_pending_exactly_while_its_one_job_is_there()
        self.no_task_runs_more_jobs_than_it_may()
        self.a_job_that_may_run_once_has_begun_at_most_once()
        self.jobs_that_take_turns_run_one_at_a_time_and_nobody_waits_for_nothing()

    def _fired(self) -> dict[str, set[datetime]]:
        """Return the fire times in the ledger by schedule."""
        found = self.world.rows("select schedule_id, array_agg(fire_time) as times from duetime.fires group by 1")
        return {row["schedule_id"]: set(row["times"]) for row in found}

    def _running(self) -> dict[str, int]:
        found = self.world.rows(
            "select task_id, count(*)::int as running from duetime.jobs where acquired_until >= $1 group by task_id",
            self.now,
        )
        return {row["task_id"]: row["running"] for row in found}

    def every_fire_before_the_next_one_is_in_the_ledger_once_and_no_other_is(self) -> None:
        stored = {row["id"]: row for row in self.world.rows("select * from duetime.schedules")}
        fired = self._fired()
        for name, definition in self.definitions.items():
            following = stored[name]["next_fire_time"] if name in stored else None
            expected = {time for time in definition.times if following is None or time < following}
            assert fired.get(name, set()) == definition.before | expected, f"{name} is next due at {following}"
            assert all(time <= self.now + AHEAD for time in expected), f"{name} fired before its time"
            if name in stored:
                assert stored[name]["broken_reason"] is None

    def a_fire_is_pending_exactly_while_its_one_job_is_there(self) -> None:
        wrong = self.world.rows(
            "select f.schedule_id, f.fire_time, f.state, j.id from duetime.fires f "
            "full join (select * from duetime.jobs where schedule_id is not null) j "
            "on j.id = f.job_id and j.schedule_id = f.schedule_id and j.fire_time = f.fire_time "
            "where (f.state = 'pending') is distinct from (j.id is not null)"
        )
        assert not wrong

    def no_task_runs_more_jobs_than_it_may(self) -> None:
        running = self._running()
        assert all(running.get(task, 0) <= limit for task, limit in LIMITS.items()), running

    def a_job_that_may_run_once_has_begun_at_most_once(self) -> None:
        assert all(times <= 1 for job, times in self.begun.items() if self.task_of[job] == "once")

    def jobs_that_take_turns_run_one_at_a_time_and_nobody_waits_for_nothing(self) -> None:
        """However many nodes have them; and a turn that is free is never left unused."""
        owners = {row["id"]: row["acquired_by"] for row in self.world.rows("select id, acquired_by from duetime.jobs")}
        going = Counter(
            held.job.schedule_id
            for node in self.nodes
            for held in node.jobs.values()
            if held.has_begun
            and held.job.schedule_id is not None
            and takes_turns(held.job.metadata)
            and owners.get(held.job.id) == node.identity
        )
        assert all(count == 1 for count in going.values()), going
        wrong = self.world.rows(
            "select j.* from duetime.jobs j where j.waits and not exists (select from duetime.jobs o "
            "where o.schedule_id = j.schedule_id and not o.waits "
            "and (o.turn, o.fire_time) < (j.turn, j.fire_time))"
        )
        assert not wrong, "a job waits for nothing"

    def teardown(self) -> None:
        """Let one node come after all the others have gone: it ends everything, and no counter stays behind."""
        try:
            self._end_everything()
        finally:
            super().teardown()

    def _end_everything(self) -> None:
        last = self._new_node()
        for name in self.definitions:
            self._if_stored(last.store.resume_schedule(name))
        for _ in range(200):
            self._let_pass(11)  # leases end
            self.reap(last)
            self.claim_schedules(last, 1000)
            self.release_schedules(last)
            self.claim_jobs(last, 1000)
            self.renew_claims_of_jobs(last)
            self.begin_jobs(last)
            while any(held.has_begun for held in last.jobs.values()):
                self.end_a_job(last)
            [left] = self.world.rows(
                "select (select count(*) from duetime.jobs) + "
                "(select count(*) from duetime.schedules where next_fire_time is not null) as work"
            )
            if not left["work"]:
                break
        else:
            raise AssertionError("expected the last node to come to an end")
        self.check()
        assert self._running() == {}
        assert self.world.rows("select id from duetime.schedules where acquired_by is not null") == []
        ran = self.world.rows("select job_id from duetime.fires where state = 'succeeded'")
        assert all(self.begun[row["job_id"]] for row in ran), "a fire succeeded that nobody has begun"
        allowed = {
            "alone": {"skipped"},
            "once": {"abandoned"},
            "again": {"failed"},
            "one waits": {"skipped"},
            "all of them": {"skipped"},
        }
        for row in self.world.rows("select task_id, state, reason from duetime.fires"):
            states = {"succeeded", "coalesced", "failed"} | allowed.get(row["task_id"], set())
            if row["reason"] == "a later fire took its place (overlap=cancel_other)":
                states = {"cancelled"}  # perhaps one of a definition that has been replaced
            assert row["state"] in states, dict(row)
