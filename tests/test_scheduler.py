"""The scheduler: which functions it finds, what it never resolves, and how results are waited for."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Iterator
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

import apscheduler
import asyncpg
import pytest
from apscheduler import JobLookupError, RunState, TaskLookupError
from apscheduler.triggers.date import DateTrigger

from duetime.attempts import Retry
from duetime.broker import PostgresEventBroker
from duetime.errors import DuplicateTask, InvalidTask, ScheduleNotFound, UnknownTask
from duetime.execution import Unavailable, Unresolved
from duetime.options import OnCrash, Overlap, TaskOptions
from duetime.scheduler import DuetimeScheduler, new_identity
from duetime.settings import DatabaseUrl
from duetime.tasks import TaskRegistry

from .store.parts import a_job, a_task, ago, every, node, running, tasks
from .waiting import eventually

done: list[Any] = []


async def work(value: Any = "work") -> Any:
    done.append(value)
    return value


@apscheduler.task(id="declared", max_running_jobs=7, metadata={"duetime.timeout": 5})
async def declared() -> None: ...


class Shop:
    name = "shop"

    def open(self) -> str:
        return self.name

    @staticmethod
    def close() -> str:
        return "closed"


@pytest.fixture(autouse=True)
def nothing_done() -> None:
    done.clear()


@pytest.fixture
async def scheduler(database: DatabaseUrl) -> AsyncIterator[DuetimeScheduler]:
    """A scheduler that is not started: it stores, and runs nothing."""
    scheduler = node(database, TaskRegistry())
    yield scheduler
    await scheduler.store.connections.close()


def test_each_start_of_a_process_has_an_identity_of_its_own() -> None:
    identities = {new_identity("host") for _ in range(10)}
    assert len(identities) == 10
    assert all(identity.startswith("host:") for identity in identities)


# -- which function --------------------------------------------------------------------------------------------------


async def test_a_function_is_stored_under_its_reference_and_with_the_default_options(
    scheduler: DuetimeScheduler,
) -> None:
    schedule_id = await scheduler.add_schedule(work, DateTrigger(ago(-3600)))
    name = f"{__name__}:work"
    assert (await scheduler.get_schedule(schedule_id)).task_id == name
    task = await scheduler.data_store.get_task(name)
    assert (task.func, task.job_executor, task.max_running_jobs) == (name, "auto", None)
    assert TaskOptions.from_metadata(task.metadata).overlap is Overlap.skip
    registered = scheduler.registry.get(name)
    assert registered is not None
    assert registered.func is work


async def test_a_registered_task_is_scheduled_by_name_or_alias_and_keeps_its_name_and_options(
    scheduler: DuetimeScheduler,
) -> None:
    options = TaskOptions(timeout=timedelta(seconds=9), on_crash=OnCrash.abandon)
    scheduler.registry.add(work, name="by-name", options=options)
    scheduler.registry.add(Shop.close)
    for given, stored in (("by-name", "by-name"), ("close", f"{__name__}:Shop.close")):
        schedule = await scheduler.get_schedule(await scheduler.add_schedule(given, DateTrigger(ago(-3600))))
        assert schedule.task_id == stored
        assert schedule.job_executor == "auto"
    task = await scheduler.data_store.get_task("by-name")
    assert TaskOptions.from_metadata(task.metadata) == options
    await scheduler.add_job("by-name")
    [job] = await scheduler.get_jobs()
    assert TaskOptions.from_metadata(job.metadata) == options


async def test_what_a_decorator_says_of_a_function_is_kept(scheduler: DuetimeScheduler) -> None:
    await scheduler.add_job(declared)
    task = await scheduler.data_store.get_task("declared")
    assert task.max_running_jobs == 7
    assert TaskOptions.from_metadata(task.metadata).timeout == timedelta(seconds=5)
    assert TaskOptions.from_metadata(task.metadata).overlap is Overlap.skip
    await scheduler.add_job("declared")
    assert {job.task_id for job in await scheduler.get_jobs()} == {"declared"}


async def test_a_task_that_was_configured_by_hand_stays_as_it_was_configured(scheduler: DuetimeScheduler) -> None:
    def nested() -> None:
        """Found by its name only."""

    await scheduler.configure_task("by-hand", func=nested, max_running_jobs=2, metadata={"duetime.timeout": 3})
    await scheduler.add_job("by-hand", metadata={"mine": 1})
    task = await scheduler.data_store.get_task("by-hand")
    assert (task.max_running_jobs, task.metadata["duetime.timeout"]) == (2, 3)
    [job] = await scheduler.get_jobs()
    assert job.metadata["mine"] == 1
    with pytest.raises(DuplicateTask):
        await scheduler.configure_task("by-hand", func=work)


async def test_partials_and_methods_are_scheduled_as_apscheduler_does(
    database: DatabaseUrl, connection: asyncpg.Connection
) -> None:
    scheduler = node(database, TaskRegistry())
    async with running(scheduler):
        assert await scheduler.run_job(partial(work, "partial")) == "partial"
        assert await scheduler.run_job(Shop.close) == "closed"
    assert done == ["partial"]


async def test_a_text_that_names_nothing_is_refused_with_the_closest_name(scheduler: DuetimeScheduler) -> None:
    scheduler.registry.add(work, name="send_reminder")
    for call in (scheduler.add_schedule("send_remnder", DateTrigger(ago())), scheduler.add_job("send_remnder")):
        with pytest.raises(UnknownTask, match="did you mean 'send_reminder'") as caught:
            await call
        assert isinstance(caught.value, TaskLookupError)
    assert await scheduler.get_tasks() == []


async def test_a_function_that_could_not_be_found_again_is_refused(scheduler: DuetimeScheduler) -> None:
    def nested() -> None: ...

    for function in (nested, lambda: None):
        with pytest.raises(InvalidTask, match=r"Move it to the top level of a module, or give it a name"):
            await scheduler.add_job(function)
    assert len(scheduler.registry) == 0


async def test_a_name_that_belongs_to_another_function_is_not_run_in_its_place(scheduler: DuetimeScheduler) -> None:
    scheduler.registry.add(work, name="declared")
    with pytest.raises(DuplicateTask, match="'declared'"):
        await scheduler.add_job(declared)


# -- promise 9: data is data -----------------------------------------------------------------------------------------


@pytest.fixture
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A directory with modules that leave a mark when they are imported, and which the interpreter can import."""
    before = set(sys.modules)
    monkeypatch.syspath_prepend(str(tmp_path))
    mark = "from pathlib import Path\nPath(__file__).with_suffix('.imported').touch()\n"
    functions = "import os\nfrom os import system\nfrom functools import partial\n"
    functions += (
        "class Shop:\n    @staticmethod\n    def open(): return 'open'\ndef ship(): return 'shipped'\nnumber = 5\n"
    )
    for name in ("shop_tasks", "shop_tasks_of_others", "elsewhere"):
        (tmp_path / f"{name}.py").write_text(mark + functions, encoding="utf-8")
    yield tmp_path
    for name in set(sys.modules) - before:
        if name in ("shop_tasks", "shop_tasks_of_others", "elsewhere"):
            del sys.modules[name]


async def found(scheduler: DuetimeScheduler, reference: str | None) -> Any:
    """Return the function that a stored reference leads to."""
    function: Any = scheduler._get_task_callable(a_task("stored", func=reference))
    return await function.resolve() if isinstance(function, Unresolved) else function


@pytest.mark.parametrize(
    "reference",
    ["elsewhere:ship", "shop_tasks_of_others:ship", "os:system", "builtins:exec", "elsewhere.shop_tasks:ship", None],
)
async def test_a_stored_reference_outside_the_task_modules_is_not_even_imported(
    database: DatabaseUrl, modules: Path, reference: str | None
) -> None:
    scheduler = node(database, TaskRegistry(), task_modules=("shop_tasks",))
    function = await found(scheduler, reference)
    assert isinstance(function, Unavailable)
    assert isinstance(function.error, UnknownTask)
    assert list(modules.glob("*.imported")) == []


@pytest.mark.parametrize(("reference", "result"), [("shop_tasks:ship", "shipped"), ("shop_tasks:Shop.open", "open")])
async def test_a_stored_reference_inside_the_task_modules_is_resolved(
    database: DatabaseUrl, modules: Path, reference: str, result: str
) -> None:
    scheduler = node(database, TaskRegistry(), task_modules=("shop_tasks",))
    assert (await found(scheduler, reference))() == result
    assert [path.name for path in modules.glob("*.imported")] == ["shop_tasks.imported"]


@pytest.mark.parametrize(
    "reference",
    ["shop_tasks:os.system", "shop_tasks:system", "shop_tasks:partial", "shop_tasks:number", "shop_tasks:missing",
     "shop_tasks:__builtins__", "shop_tasks:ship.__globals__", "shop_tasks:ship.__class__"],
)  # fmt: skip
async def test_what_a_task_module_has_only_imported_is_none_of_its_functions(
    database: DatabaseUrl, modules: Path, reference: str
) -> None:
    scheduler = node(database, TaskRegistry(), task_modules=("shop_tasks",))
    assert isinstance(await found(scheduler, reference), Unavailable)


async def test_a_job_of_a_reference_that_is_not_allowed_fails_and_everything_else_goes_on(
    database: DatabaseUrl, connection: asyncpg.Connection, modules: Path
) -> None:
    scheduler = node(database, tasks(work), task_modules=("shop_tasks",))
    async with running(scheduler):
        for name, reference in (("theirs", "elsewhere:ship"), ("ours", "shop_tasks:ship")):
            await scheduler.store.add_task(a_task(name, func=reference))
            await scheduler.store.add_job(a_job(name))
        await scheduler.store.add_job(a_job("undefined"))
        await scheduler.add_job("work", job_executor="nowhere")
        assert await scheduler.run_job("work", args=["goes on"]) == "goes on"
        await eventually(lambda: connection.fetchval("select count(*) = 5 from duetime.runs"))
    rows = await connection.fetch("select task_id, outcome, error from duetime.runs where task_id <> 'work'")
    outcomes = {row["task_id"]: (row["outcome"], (row["error"] or "").partition(":")[0]) for row in rows}
    assert outcomes == {
        "theirs": ("error", "UnknownTask"),
        "undefined": ("error", "UnknownTask"),
        "ours": ("success", ""),
    }
    unknown = await connection.fetchval("select error from duetime.runs where task_id = 'work' and outcome = 'error'")
    assert unknown.startswith("UnknownExecutor: expected one of the executors")
    assert not (modules / "elsewhere.imported").exists()


@pytest.mark.parametrize(
    "damage",
    ["update duetime.tasks set func = 'no reference'", """update duetime.tasks set metadata = '{"a": null}'"""],
    ids=["function", "metadata"],
)
async def test_a_definition_that_cannot_be_read_does_not_keep_a_registered_task_from_running(
    database: DatabaseUrl, connection: asyncpg.Connection, damage: str
) -> None:
    adding = node(database, tasks(work))
    await adding.add_job("work")
    await adding.store.connections.close()
    await connection.execute(damage)
    scheduler = node(database, tasks(work))
    async with running(scheduler):
        await eventually(lambda: done == ["work"])


async def test_a_task_that_is_removed_while_its_job_is_held_fails_that_job_or_runs_it_and_ends_nothing(
    database: DatabaseUrl, connection: asyncpg.Connection
) -> None:
    scheduler = node(database, tasks(work), look_ahead=10)
    async with running(scheduler):
        await scheduler.add_schedule("work", DateTrigger(ago(-0.5)), id="s")
        await eventually(lambda: len(scheduler.store._hand) == 1)
        await scheduler.store.remove_task("work")
        await eventually(lambda: connection.fetchval("select count(*) = 1 from duetime.runs"))
        assert scheduler.state is RunState.started


# -- waiting for results ---------------------------------------------------------------------------------------------


async def test_the_result_of_a_job_is_that_of_its_last_attempt(database: DatabaseUrl) -> None:
    attempts: list[int] = []

    async def fails_twice() -> str:
        attempts.append(1)
        if len(attempts) < 3:
            raise OSError("not yet")
        return "at last"

    options = TaskOptions(retry=Retry(max_attempts=3, backoff=0.01))
    scheduler = node(database, tasks(fails_twice, fails_twice=options))
    async with running(scheduler):
        assert await scheduler.run_job("fails_twice") == "at last"
        attempts.clear()
        job_id = await scheduler.add_job("fails_twice")
        assert await scheduler.get_job_result(job_id) is None, "none was kept"
        assert len(attempts) == 3


async def test_an_error_a_missed_start_and_an_unknown_job_are_raised(database: DatabaseUrl) -> None:
    async def fails() -> None:
        raise ValueError("no such luck")

    scheduler = node(database, tasks(fails))
    async with running(scheduler):
        with pytest.raises(Exception, match="no such luck"):
            await scheduler.run_job("fails")
        with pytest.raises(JobLookupError):
            await scheduler.get_job_result(uuid4())
        late = a_job("fails", start_deadline=ago(60), result_expiration_time=timedelta(hours=1))
        await scheduler.configure_task("fails")
        await scheduler.store.add_job(late)
        result = await scheduler.get_job_result(late.id)
        assert result is not None
        assert result.outcome is apscheduler.JobOutcome.missed_start_deadline


async def test_a_lost_notification_costs_who_waits_the_poll_interval_and_not_the_result(
    database: DatabaseUrl,
) -> None:
    asking = node(database, tasks(work), role="scheduler", poll_interval=0.1)
    working = node(database, tasks(work), role="worker", poll_interval=0.1)
    for scheduler, channel in ((asking, "one"), (working, "another")):
        assert isinstance(scheduler.event_broker, PostgresEventBroker)
        scheduler.event_broker.channel = channel
    async with running(asking, working):
        assert await asking.run_job("work", args=["heard of"]) == "heard of"


async def test_who_does_not_want_to_wait_is_told_at_once(database: DatabaseUrl) -> None:
    scheduler = node(database, tasks(work), role="scheduler")
    async with running(scheduler):
        job_id = await scheduler.add_job("work")
        with pytest.raises(JobLookupError):
            await scheduler.get_job_result(job_id, wait=False)


# -- pause and resume ------------------------------------------------------------------------------------------------


async def test_a_schedule_is_resumed_from_now_from_a_time_or_from_where_it_stood(scheduler: DuetimeScheduler) -> None:
    scheduler.registry.add(work, name="work")
    first = ago(150)
    wanted: dict[Any, datetime] = {
        None: first,
        "now": first + timedelta(seconds=180),
        first + timedelta(seconds=61): first + timedelta(seconds=120),
    }
    for resume_from, expected in wanted.items():
        schedule_id = await scheduler.add_schedule("work", every(60, first), paused=True)
        await scheduler.unpause_schedule(schedule_id, resume_from=resume_from)
        schedule = await scheduler.get_schedule(schedule_id)
        assert not schedule.paused
        assert schedule.next_fire_time == expected
    for verb in (scheduler.pause_schedule, scheduler.unpause_schedule):
        with pytest.raises(ScheduleNotFound):
            await verb("nothing")
