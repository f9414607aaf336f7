"""Options that cannot all be meant are refused before anything is stored, all at once."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import pytest
from pydantic import ValidationError

from duetime import Failure, Retry, ScheduleOptions, options
from duetime.commands import NewSchedule
from duetime.contradictions import check
from duetime.errors import InvalidOptions, InvalidSchedule
from duetime.options import Overlap, TaskOptions
from duetime.settings import DatabaseUrl
from duetime.tasks import TaskRegistry

from .nodes.test_limits import nodes
from .services import a_service, new

NINE = datetime(2026, 6, 1, 9, tzinfo=UTC)
EVERY_MINUTE = [NINE + timedelta(minutes=n) for n in range(5)]


async def alert(failure: Failure) -> None: ...


async def other(text: str) -> None: ...


@pytest.fixture
def registry() -> TaskRegistry:
    registry = TaskRegistry()
    registry.add(alert, name="alert")
    registry.add(other, name="other")
    return registry


def problems(options: TaskOptions, registry: TaskRegistry) -> list[tuple[str, str]]:
    with pytest.raises(InvalidOptions) as refused:
        check(options, registry, EVERY_MINUTE)
    assert all(detail["problem"] in refused.value.message for detail in refused.value.details)
    return [(detail["where"], detail["problem"]) for detail in refused.value.details]


@pytest.mark.parametrize(
    "options",
    [
        TaskOptions(),
        TaskOptions(retry=Retry(max_attempts=5)),
        TaskOptions(retry=Retry(max_attempts=4, backoff=20, factor=1, jitter=0)),
        TaskOptions(retry=Retry(max_attempts=100), overlap=Overlap.allow),
        TaskOptions(on_failure="alert", pause_on_failure=100, start_deadline=timedelta(days=1)),
    ],
)
def test_what_can_be_meant_is_taken(registry: TaskRegistry, options: TaskOptions) -> None:
    check(options, registry, EVERY_MINUTE)


def test_a_retry_policy_that_outlives_the_next_fire_is_refused(registry: TaskRegistry) -> None:
    options = TaskOptions(retry=Retry(max_attempts=4, backoff=20, factor=1, jitter=0.1))
    [(where, problem)] = problems(options, registry)
    assert where == "options.retry"
    assert problem == (
        "expected attempts that end before the next fire, which comes after 60 s, but its 4 attempts can wait for 66 s."
        " Take fewer attempts or shorter waits, or overlap 'allow'"
    )
    check(options, registry, EVERY_MINUTE[:1])  # a schedule that fires once has no next fire


def test_everything_is_said_at_once_and_a_misspelt_hook_with_the_nearest_name(registry: TaskRegistry) -> None:
    options = TaskOptions(retry=Retry(max_attempts=9, backoff=400, max_backoff=200), on_failure="alrt")
    found = problems(options, registry)
    assert [where for where, _ in found] == ["options.retry", "options.retry", "options.on_failure"]
    assert "a backoff of at most max_backoff, 200 s, got 400 s" in found[0][1]
    assert "did you mean 'alert'?" in found[2][1]


def test_a_hook_that_does_not_take_a_failure_is_refused(registry: TaskRegistry) -> None:
    [(where, problem)] = problems(TaskOptions(on_failure="other"), registry)
    assert where == "options.on_failure"
    assert "a task that takes the argument `failure`" in problem


async def test_a_new_schedule_is_checked_with_the_options_of_its_task_and_nothing_is_stored(
    database: DatabaseUrl, connection: asyncpg.Connection
) -> None:
    async def work(_node: str) -> None: ...

    tasks_options = TaskOptions(retry=Retry(max_attempts=9, backoff=60), timeout=timedelta(seconds=5))
    async with nodes(database, "a", {"work": work}, tasks_options) as [a]:
        body: dict[str, Any] = {"id": "s", "task": "work", "trigger": {"type": "interval", "minutes": 5}}
        with pytest.raises(InvalidOptions, match="before the next fire, which comes after 300 s"):
            await a.service.add(NewSchedule.model_validate(body))
        assert await connection.fetchval("select count(*) from duetime.schedules") == 0
        shown = await a.service.add(
            NewSchedule.model_validate({**body, "options": {"retry": {"max_attempts": 1}, "timeout": 0}})
        )
        assert isinstance(shown.options["retry"], dict)
        assert shown.options["retry"]["max_attempts"] == 1
        assert shown.options["timeout"] is None


async def test_a_schedule_that_fires_once_may_be_tried_again_for_as_long_as_it_likes(database: DatabaseUrl) -> None:
    async with a_service(database) as service:
        retry = {"max_attempts": 10, "backoff": 100}
        every = {"type": "interval", "minutes": 5}
        await service.add(new(trigger=every, max_fires=1, options={"retry": retry}, paused=True))
        with pytest.raises(InvalidOptions, match="before the next fire"):
            await service.add(new(trigger=every, max_fires=2, options={"retry": retry}))


async def test_contradictory_options_are_all_said_at_once_whatever_else_is_wrong(database: DatabaseUrl) -> None:
    options = {"catch_up": "none", "catch_up_window": 60, "retry": {"max_attempts": 2, "backoff": 9, "max_backoff": 1}}
    async with a_service(database) as service:
        with pytest.raises(InvalidSchedule) as refused:
            await service.add(new(task="nothing", options={**options, "on_failure": "nobody"}))
        problems = " ".join(detail["problem"] for detail in refused.value.details)
        for each in ("'nothing'", "no catch_up_window", "backoff of at most max_backoff", "'nobody'"):
            assert each in problems


def test_zero_and_an_empty_text_switch_off_what_the_task_has() -> None:
    of_task = TaskOptions(timedelta(1), start_deadline=timedelta(1), on_failure="alert", pause_on_failure=3)
    off = ScheduleOptions(timeout=0, start_deadline=0, on_failure="", pause_on_failure=0).to_metadata()
    assert TaskOptions.from_metadata({**of_task.to_metadata(), **off}) == TaskOptions()
    assert TaskOptions.from_metadata({**of_task.to_metadata(), **ScheduleOptions().to_metadata()}) == of_task


# -- per schedule, in code -------------------------------------------------------------------------------------------


def test_options_of_a_schedule_become_its_metadata_and_only_those_that_are_given() -> None:
    assert ScheduleOptions().to_metadata() == {}
    given = ScheduleOptions(overlap=Overlap.allow, retry=Retry(), start_deadline=5, max_jitter=3, timeout=0)
    metadata = given.to_metadata()
    assert metadata.keys() == {"duetime.overlap", "duetime.retry", "duetime.start_deadline", "duetime.timeout"}
    options = TaskOptions.from_metadata({**TaskOptions(timeout=timedelta(1)).to_metadata(), **metadata})
    assert options == TaskOptions(overlap=Overlap.allow, retry=Retry(), start_deadline=timedelta(seconds=5))


@pytest.mark.parametrize(
    "wrong",
    [
        {"start_deadline": -1},
        {"misfire_grace_time": 0},
        {"pause_on_failure": -1},
        {"pause_on_failure": 101},
        {"on_failure": "x" * 501},
        {"on_crash": "cry"},
    ],
)
def test_an_option_without_a_meaning_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        ScheduleOptions(**wrong)


def test_ever_new_options_are_not_all_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each schedule may have a time-out of its own, and there may be millions."""
    monkeypatch.setattr(options, "_MOST_REMEMBERED", 10)
    for known in (options._read_before, options._found_good):
        known.clear()
    for seconds in range(1, 36):
        metadata = {"duetime.timeout": seconds}
        assert TaskOptions.from_metadata(metadata).timeout == timedelta(seconds=seconds)
        assert options.option_problems(metadata) == []
        assert len(options._read_before) == len(options._found_good) <= 10
    assert len(options._read_before) == 5
