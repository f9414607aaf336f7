"""Nothing poisons the scheduler (promise 4): a bad fire ends with an outcome and a reason, and its neighbours run."""

from __future__ import annotations

import asyncio
import json
import re
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from apscheduler import CoalescePolicy, ConflictPolicy, Schedule
from apscheduler.abc import Trigger
from apscheduler.triggers.combining import OrTrigger
from apscheduler.triggers.date import DateTrigger

from duetime import Duetime, Settings
from duetime.commands import FireQuery, RunQuery
from duetime.options import TaskOptions
from duetime.records import Fire, FireState, Run, ScheduleState
from duetime.serializer import TypedJSONSerializer
from duetime.settings import DatabaseUrl
from duetime.store import slow_plans

from .store.parts import a_schedule, a_task, ago, every, tasks
from .waiting import eventually

NEIGHBOURS = 10


class Unspeakable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")

    __repr__ = __str__


class Fatal(BaseException):
    pass


# -- tasks ------------------------------------------------------------------------------------------------------------


async def neighbour() -> None:
    pass


async def work(count: int = 1) -> int:
    return count


async def exits() -> None:
    raise SystemExit(3)


def exits_in_a_thread() -> None:
    sys.exit("enough")


async def interrupts() -> None:
    raise KeyboardInterrupt


def interrupts_in_a_thread() -> None:
    raise KeyboardInterrupt


async def raises_what_is_no_exception() -> None:
    raise Fatal("from below")


def raises_stop_iteration() -> None:
    raise StopIteration


async def cancels_itself() -> None:
    raise asyncio.CancelledError


async def raises_the_unspeakable() -> None:
    raise Unspeakable


async def raises_a_long_story() -> None:
    raise ValueError("no\x00end \udc80" + "x" * 100_000)


async def returns_what_cannot_be_stored() -> object:
    return object()


async def returns_ten_megabytes() -> str:
    return "x" * 10_000_000


TASKS = (
    neighbour,
    work,
    exits,
    exits_in_a_thread,
    interrupts,
    interrupts_in_a_thread,
    raises_what_is_no_exception,
    raises_stop_iteration,
    cancels_itself,
    raises_the_unspeakable,
    raises_a_long_story,
    returns_what_cannot_be_stored,
    returns_ten_megabytes,
)

# -- triggers ---------------------------------------------------------------------------------------------------------


class Odd(Trigger):
    """A trigger that is due once, and then does what its subclass does."""

    def __init__(self, due: datetime) -> None:
        self.due = due
        self.is_spent = False

    def next(self) -> datetime | None:
        if self.is_spent:
            return self.go_on()
        self.is_spent = True
        return self.due

    def go_on(self) -> datetime | None:
        raise NotImplementedError

    def __getstate__(self) -> Any:
        return [self.due, self.is_spent]

    def __setstate__(self, state: Any) -> None:
        self.due, self.is_spent = state


class Raises(Odd):
    def go_on(self) -> datetime | None:
        raise LookupError("no such day")


class RaisesTheUnspeakable(Odd):
    def go_on(self) -> datetime | None:
        raise Unspeakable


class NeverEnds(Odd):
    def go_on(self) -> datetime | None:
        while True:
            pass


class Sleeps(Odd):
    asleep = False

    def go_on(self) -> datetime | None:
        try:
            while True:
                Sleeps.asleep = True
                time.sleep(0.01)
        finally:
            Sleeps.asleep = False


class StandsStill(Odd):
    def go_on(self) -> datetime | None:
        return self.due


class GoesBackwards(Odd):
    def go_on(self) -> datetime | None:
        self.due -= timedelta(days=1)
        return self.due


class NeverArrives(Odd):
    def go_on(self) -> datetime | None:
        self.due += timedelta(microseconds=1)
        return self.due


class SaysNonsense(Odd):
    def go_on(self) -> Any:
        return "tomorrow"


class Cannot(Odd):
    """Cannot be read back."""

    def __setstate__(self, state: Any) -> None:
        raise LookupError("no such state")


ODD = (
    Raises,
    RaisesTheUnspeakable,
    NeverEnds,
    Sleeps,
    StandsStill,
    GoesBackwards,
    NeverArrives,
    SaysNonsense,
    Cannot,
)


# -- the node ---------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def a_node(database: DatabaseUrl, *functions: Any, **settings: Any) -> AsyncIterator[Duetime]:
    """Run a node with these tasks that must neither crash nor stall its event loop."""
    options = settings.pop("options", {})
    values: dict[str, Any] = {"database_url": database.text, "look_ahead": 0, "stall_threshold": 0.25, **settings}
    duetime = Duetime(Settings(**values), registry=tasks(*TASKS, *functions, **options))
    serializer = duetime._scheduler.store.serializer
    assert isinstance(serializer, TypedJSONSerializer)
    for cls in ODD:
        serializer.register_trigger(cls)
    async with duetime:
        for function in TASKS:
            await duetime.scheduler.configure_task(function.__name__)
        yield duetime
        assert duetime._supervisor.crashes == 0
        assert duetime.scheduler.state.name == "started"


async def fires(duetime: Duetime, schedule_id: str) -> list[Fire]:
    return (await duetime.service.fires(FireQuery(schedule_id=schedule_id))).items


async def runs(duetime: Duetime, schedule_id: str) -> list[Run]:
    return (await duetime.service.runs(RunQuery(schedule_id=schedule_id))).items


async def add_among_neighbours(duetime: Duetime, *poison: Schedule) -> None:
    """Add schedules and their healthy neighbours at once: all are due at the same instant."""
    neighbours = [
        a_schedule(f"neighbour-{number}", DateTrigger(ago(1)), task_id="neighbour") for number in range(NEIGHBOURS)
    ]
    everybody = sorted([*neighbours, *poison], key=lambda schedule: schedule.id)
    await duetime._scheduler.store.add_schedules(everybody, ConflictPolicy.exception)


async def neighbours_have_run(duetime: Duetime) -> bool:
    page = await duetime.service.fires(FireQuery(limit=200))
    ran = [fire for fire in page.items if fire.schedule_id.startswith("neighbour-")]
    return [fire.state for fire in ran] == [FireState.succeeded] * NEIGHBOURS


async def ended(duetime: Duetime, schedule_id: str, within: float = 20) -> tuple[Fire, Run]:
    """Wait until the neighbours have run and the schedule's only fire has ended; return it and its last run."""
    await eventually(lambda: neighbours_have_run(duetime))

    async def has_ended() -> bool:
        return all(fire.state is not FireState.pending for fire in await fires(duetime, schedule_id)) and bool(
            await runs(duetime, schedule_id)
        )

    await eventually(has_ended, within=within)
    [fire] = await fires(duetime, schedule_id)
    return fire, (await runs(duetime, schedule_id))[0]


# -- bad jobs ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("task", "options", "reason"),
    [
        pytest.param("exits", {}, "TaskAborted: .*SystemExit", id="exits"),
        pytest.param("exits_in_a_thread", {}, "TaskAborted: .*SystemExit.*enough", id="exits in a thread"),
        pytest.param("interrupts", {}, "TaskAborted: .*KeyboardInterrupt", id="interrupts"),
        pytest.param("interrupts_in_a_thread", {}, "TaskAborted: .*KeyboardInterrupt", id="interrupts in a thread"),
        pytest.param("raises_what_is_no_exception", {}, "TaskAborted: .*Fatal.*from below", id="not an exception"),
        pytest.param("raises_stop_iteration", {}, "RuntimeError: .*StopIteration", id="StopIteration"),
        pytest.param("cancels_itself", {}, "TaskAborted: .*cancelled itself", id="cancels itself"),
        pytest.param("raises_the_unspeakable", {}, "Unspeakable: ", id="an exception without a text"),
        pytest.param("raises_a_long_story", {}, r"ValueError: no\\x00end", id="an exception that is too long"),
        pytest.param("work", {"args": ("many",)}, "InvalidArguments: .*count", id="arguments of another type"),
        pytest.param("work", {"kwargs": {"number": 1}}, "InvalidArguments: .*number", id="another signature"),
        pytest.param("work", {"job_executor": "gpu"}, "UnknownExecutor: .*'gpu'", id="an unknown executor"),
        pytest.param("nobody", {}, "UnknownTask: .*'nobody'", id="an unknown task"),
        pytest.param("work", {"metadata": {"duetime.overlap": "x"}}, "ValueError: 'x'", id="unreadable options"),
    ],
)
@pytest.mark.parametrize("keeps_result", [False, True], ids=["", "kept"])
async def test_a_job_that_goes_wrong_fails_with_the_reason(
    database: DatabaseUrl,
    connection: asyncpg.Connection,
    task: str,
    options: dict[str, Any],
    reason: str,
    keeps_result: bool,
) -> None:
    written_by_hand = options.get("metadata")
    if written_by_hand is not None:  # the door refuses it
        options = {"paused": True}
    kept: dict[str, Any] = {"job_result_expiration_time": timedelta(minutes=1)} if keeps_result else {}
    async with a_node(database) as duetime:
        if task == "nobody":
            await duetime._scheduler.store.add_task(a_task("nobody", func="gone:nobody"))
        await add_among_neighbours(duetime, a_schedule("bad", task_id=task, **options, **kept))
        if written_by_hand is not None:
            await connection.execute(
                "update duetime.schedules set metadata = $1 where id = 'bad'", json.dumps(written_by_hand)
            )
            await duetime.scheduler.unpause_schedule("bad")
        fire, run = await ended(duetime, "bad")
        assert (fire.state, run.outcome) == (FireState.failed, "error")
        assert run.error is not None
        assert re.search(reason, run.error), run.error


@pytest.mark.parametrize("task", ["returns_what_cannot_be_stored", "returns_ten_megabytes"])
async def test_a_result_that_cannot_be_stored_is_no_failure_and_is_told_of(database: DatabaseUrl, task: str) -> None:
    async with a_node(database) as duetime:
        bad = a_schedule("bad", task_id=task, job_result_expiration_time=timedelta(minutes=1))
        await add_among_neighbours(duetime, bad)
        fire, run = await ended(duetime, "bad")
        assert (fire.state, run.outcome) == (FireState.succeeded, "success")
        assert run.error is not None
        assert "could not be stored" in run.error


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("raising", "raise ValueError('not today')"),
        ("exiting", "import sys; sys.exit('not today')"),
        ("wrong", "not Python, not today"),
        ("other", "x = 'not today'\ndef work(): pass\nwork = 'not today'"),
    ],
)
async def test_a_module_that_cannot_be_imported_fails_its_jobs_only(
    database: DatabaseUrl, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, text: str
) -> None:
    package = tmp_path / f"poisoned_{name}"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "tasks.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    async with a_node(database, task_modules=(package.name,)) as duetime:
        function = f"{package.name}.tasks:work"
        await duetime._scheduler.store.add_task(a_task(function, func=function))
        await add_among_neighbours(duetime, a_schedule("bad", task_id=function))
        fire, run = await ended(duetime, "bad")
        assert fire.state is FireState.failed
        assert run.error is not None
        assert run.error.startswith("UnknownTask: ")


async def test_a_module_that_takes_its_time_does_not_hold_the_event_loop(
    database: DatabaseUrl, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "slow_package"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "tasks.py").write_text("import time\ntime.sleep(1)\nasync def work(): pass")
    monkeypatch.syspath_prepend(tmp_path)
    async with a_node(database, task_modules=("slow_package",)) as duetime:
        await duetime._scheduler.store.add_task(a_task("slow_package.tasks:work", func="slow_package.tasks:work"))
        await add_among_neighbours(duetime, a_schedule("slow", task_id="slow_package.tasks:work"))
        fire, _ = await ended(duetime, "slow")
        assert fire.state is FireState.succeeded
        assert "slow_package" not in str(duetime.watchdog.snapshot())


# -- jobs that swallow their cancellation -----------------------------------------------------------------------------


def swallower(began: asyncio.Event, ended: list[str]) -> Callable[[], Awaitable[None]]:
    async def swallows() -> None:
        began.set()
        try:
            while True:
                try:
                    await asyncio.sleep(3600)
                except asyncio.CancelledError:
                    ended.append("cancelled")
        finally:
            ended.append("closed")

    return swallows


async def test_a_job_that_swallows_its_cancellation_is_recorded_as_timed_out_and_goes_on(
    database: DatabaseUrl,
) -> None:
    seen: list[str] = []
    swallows = swallower(asyncio.Event(), seen)
    options = {"swallows": TaskOptions(timeout=timedelta(seconds=0.3))}
    async with a_node(database, swallows, options=options) as duetime:
        await duetime.scheduler.configure_task("swallows")
        metadata = options["swallows"].to_metadata()
        await add_among_neighbours(duetime, a_schedule("bad", task_id="swallows", metadata=metadata))
        fire, run = await ended(duetime, "bad")
        assert (fire.state, run.outcome) == (FireState.failed, "timeout")
        assert seen == ["cancelled"]
    # The node's end is the end of it.
    assert "closed" in seen
    await eventually(lambda: not [task for task in asyncio.all_tasks() if "_contained" in repr(task)])


async def test_a_job_that_swallows_its_cancellation_does_not_keep_the_node_from_stopping(
    database: DatabaseUrl,
) -> None:
    began, seen = asyncio.Event(), []  # type: tuple[asyncio.Event, list[str]]
    swallows = swallower(began, seen)
    loop = asyncio.get_running_loop()
    async with a_node(database, swallows, drain_timeout=0.2, options={}) as duetime:
        await duetime.scheduler.configure_task("swallows")
        await add_among_neighbours(duetime, a_schedule("bad", task_id="swallows"))
        await asyncio.wait_for(began.wait(), 20)
        await eventually(lambda: neighbours_have_run(duetime))
        store, begin = duetime._scheduler.store, loop.time()
    assert loop.time() - begin < 1.2 + 1.0, "drain time and a second, and another one for a busy machine"
    assert "closed" in seen
    # It goes back with its attempt counted.
    async with a_node(database, role="scheduler") as duetime:
        [job] = await duetime._scheduler.store.get_jobs()
        assert job.acquired_by is None
        [run] = await runs(duetime, "bad")
        assert (run.outcome, run.attempt) == ("cancelled", 1)
    assert store.stopping


async def test_a_job_has_a_moment_to_clean_up_when_it_is_cancelled(database: DatabaseUrl) -> None:
    began, seen = asyncio.Event(), []  # type: tuple[asyncio.Event, list[str]]

    async def tidy() -> None:
        began.set()
        try:
            await asyncio.sleep(3600)
        finally:
            await asyncio.sleep(0.02)
            seen.append("tidied up")

    async with a_node(database, tidy, drain_timeout=0) as duetime:
        await duetime.scheduler.configure_task("tidy")
        await add_among_neighbours(duetime, a_schedule("tidy", task_id="tidy"))
        await asyncio.wait_for(began.wait(), 20)
    assert seen == ["tidied up"]


# -- bad triggers -----------------------------------------------------------------------------------------------------


async def broken(duetime: Duetime, schedule_id: str) -> str:
    """Wait until the schedule is set aside, and return the reason."""

    async def reason() -> str | None:
        schedule = await duetime.service.get(schedule_id)
        return schedule.broken_reason if schedule.state is ScheduleState.broken else None

    found = await eventually(reason)
    assert found is not None
    return found


@pytest.mark.parametrize("coalesce", CoalescePolicy)
@pytest.mark.parametrize(
    ("cls", "reason"),
    [
        (Raises, "its trigger raised LookupError: no such day"),
        (RaisesTheUnspeakable, "its trigger raised Unspeakable"),
        (StandsStill, "its trigger yielded .* after"),
        (GoesBackwards, "its trigger yielded .* after"),
        (NeverArrives, "it would never reach the present"),
        (SaysNonsense, "its trigger yielded 'tomorrow' instead of"),
    ],
)
async def test_a_trigger_that_goes_wrong_breaks_its_schedule_with_the_reason(
    database: DatabaseUrl, cls: type[Odd], reason: str, coalesce: CoalescePolicy
) -> None:
    async with a_node(database) as duetime:
        await add_among_neighbours(duetime, a_schedule("bad", cls(ago(60)), coalesce=coalesce))
        assert re.search(reason, await broken(duetime, "bad"))
        await eventually(lambda: neighbours_have_run(duetime))
        # The fire that was known is made.
        await eventually(lambda: fires(duetime, "bad"))
        assert not [stall for stall in duetime.watchdog.snapshot().recent if __file__ in str(stall.where)]


@pytest.mark.parametrize("cls", [NeverEnds, Sleeps])
@pytest.mark.parametrize("inside", [False, True], ids=["", "inside another"])
async def test_a_trigger_that_never_ends_breaks_its_schedule_and_holds_nobody_up(
    database: DatabaseUrl, cls: type[Odd], inside: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slow_plans, "PATIENCE", 2.0)
    async with a_node(database) as duetime:
        trigger: Trigger = OrTrigger([cls(ago(60)), DateTrigger(ago(120))]) if inside else cls(ago(60))
        bad = a_schedule("bad", trigger) if not inside else a_schedule("bad", trigger, next_fire_time=ago(120))
        await add_among_neighbours(duetime, bad)
        await eventually(lambda: neighbours_have_run(duetime))
        assert "bad" in duetime._scheduler.store._slow_plans, "the neighbours have not waited for it"
        assert "took longer than" in await broken(duetime, "bad")
        await ended_anew(duetime, "bad")  # the fire that was known
        assert not [stall for stall in duetime.watchdog.snapshot().recent if __file__ in str(stall.where)]
        await eventually(lambda: duetime._scheduler.store._patience.abandoned == 0)
        assert not Sleeps.asleep

        # It is still there, and works again when it is replaced by one that does.
        await duetime.scheduler.add_schedule(
            work, every(3600, datetime.now(UTC)), id="bad", conflict_policy=ConflictPolicy.replace
        )
        assert (await duetime.service.get("bad")).state is ScheduleState.active
        await ended_anew(duetime, "bad")


async def ended_anew(duetime: Duetime, schedule_id: str) -> None:
    """Wait until the schedule's newest fire has succeeded."""

    async def succeeded() -> bool:
        found = await fires(duetime, schedule_id)
        return bool(found) and found[0].state is FireState.succeeded

    await eventually(succeeded)


async def test_a_trigger_that_cannot_be_read_breaks_its_schedule_which_can_be_resumed_when_it_can(
    database: DatabaseUrl, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with a_node(database) as duetime:
        await add_among_neighbours(duetime, a_schedule("bad", Cannot(ago(60))))

        async def is_set_aside() -> bool:
            return "it cannot be read: " in await broken(duetime, "bad")

        await eventually(is_set_aside)
        await eventually(lambda: neighbours_have_run(duetime))
        assert not await fires(duetime, "bad")

        monkeypatch.setattr(Cannot, "__setstate__", Odd.__setstate__)
        monkeypatch.setattr(Cannot, "go_on", lambda _self: None)
        await duetime.scheduler.unpause_schedule("bad")
        await ended_anew(duetime, "bad")


async def test_a_broken_schedule_is_resumed_when_its_trigger_is_mended(
    database: DatabaseUrl, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with a_node(database) as duetime:
        await add_among_neighbours(duetime, a_schedule("bad", Raises(ago(60))))
        await broken(duetime, "bad")
        monkeypatch.setattr(Raises, "go_on", lambda self: ago(-3600))
        resumed = await duetime.service.resume("bad")
        assert resumed.broken_reason is None
