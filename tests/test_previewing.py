"""What a preview says of a schedule, and that nothing of it is stored."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import asyncpg
import pytest

from duetime.commands import FireQuery
from duetime.records import Verdict
from duetime.service import Service
from duetime.settings import DatabaseUrl

from .services import EVERY_MINUTE, LATER, a_service, new
from .waiting import eventually

BERLIN_AT_HALF_PAST_TWO = {"type": "cron", "expression": "30 2 * 3 sun", "timezone": "Europe/Berlin"}


async def test_a_preview_shows_what_adding_would_show_and_stores_nothing(
    database: DatabaseUrl, connection: asyncpg.Connection
) -> None:
    wanted = new(id="report", trigger={"type": "text", "text": "every weekday at 9:00", "timezone": "Europe/Berlin"})
    async with a_service(database) as service:
        preview = await service.preview(wanted, fires=7)
        assert await connection.fetchval("select count(*) from duetime.schedules") == 0
        assert await connection.fetchval("select count(*) from duetime.tasks") == 0
        stored = await service.add(wanted)
    assert preview.verdict is Verdict.ok
    assert preview.task == stored.task == "tests.services:work"
    assert (preview.trigger, preview.description) == (stored.trigger, stored.description)
    assert preview.trigger == {"type": "cron", "expression": "0 9 * * mon-fri", "timezone": "Europe/Berlin"}
    assert [fire.fire_time for fire in preview.upcoming][:5] == stored.upcoming
    assert len(preview.upcoming) == 7
    assert preview.next_fire_time == stored.next_fire_time
    assert {fire.zone for fire in preview.upcoming} <= {"CET", "CEST"}


async def test_a_preview_says_what_the_clock_does_to_a_fire(database: DatabaseUrl) -> None:
    async with a_service(database) as service:
        preview = await service.preview(new(trigger=BERLIN_AT_HALF_PAST_TWO), fires=10)
    moved = [fire for fire in preview.upcoming if fire.note]
    assert moved
    assert "moved out of the gap" in (moved[0].note or "")
    assert (moved[0].fire_time.hour, moved[0].fire_time.minute, moved[0].zone) == (3, 0, "CEST")
    assert preview.verdict is Verdict.doubtful
    assert any("moved out of the gap" in warning for warning in preview.warnings)


async def test_a_preview_of_what_would_be_refused_lists_every_reason_and_shows_the_rest(
    database: DatabaseUrl,
) -> None:
    async with a_service(database) as service:
        await service.add(new(id="taken"))
        preview = await service.preview(
            new(id="taken", task="wrk", metadata={"duetime.x": 1}, expires_at="2020-01-01T00:00:00Z")
        )
        assert preview.verdict is Verdict.refused
        assert {problem.code for problem in preview.problems} == {
            "unknown_task",
            "invalid_request",
            "trigger_never_fires",
            "schedule_exists",
        }
        assert "did you mean 'work'?" in next(each.problem for each in preview.problems if each.where == "task")
        assert preview.description == "once, on Friday, 1 January 2100 at 00:00 (UTC)"


@pytest.mark.parametrize(
    ("stored", "wanted", "reason"),
    [
        ({}, {}, "the same task, arguments and fire times"),
        ({"trigger": EVERY_MINUTE}, {"trigger": {"type": "text", "text": "* * * * *"}}, "and fire times"),
        ({}, {"trigger": EVERY_MINUTE}, "the same task and arguments, at other times"),
        ({}, {"kwargs": {"word": "x"}}, "the same task and fire times, with other arguments"),
    ],
)
async def test_a_preview_names_stored_schedules_that_do_nearly_the_same(
    database: DatabaseUrl, stored: dict[str, Any], wanted: dict[str, Any], reason: str
) -> None:
    async with a_service(database) as service:
        await service.add(new(id="stored", **stored))
        await service.add(new(id="elsewhere", task="other"))
        preview = await service.preview(new(**wanted))
    assert [(twin.id, reason in twin.reason) for twin in preview.near_duplicates] == [("stored", True)]


async def test_a_schedule_with_nothing_in_common_is_no_near_duplicate(database: DatabaseUrl) -> None:
    async with a_service(database) as service:
        await service.add(new(id="stored", kwargs={"word": "x"}))
        preview = await service.preview(new(trigger=EVERY_MINUTE))
    assert preview.near_duplicates == []


async def test_a_date_in_the_past_is_doubtful(database: DatabaseUrl) -> None:
    async with a_service(database) as service:
        preview = await service.preview(new(trigger={"type": "date", "run_at": "2020-01-01T00:00:00Z"}))
    assert preview.verdict is Verdict.doubtful
    assert preview.upcoming[0].fire_time == datetime(2020, 1, 1, tzinfo=UTC)
    assert "would run at once" in preview.warnings[0]


@pytest.mark.parametrize(
    "options", [{"misfire_grace_time": 60}, {"catch_up": "none"}, {"catch_up_window": 60, "misfire_grace_time": 10**9}]
)
async def test_a_date_that_is_beyond_its_grace_time_or_its_catch_up_is_said_to_be_missed_and_is(
    database: DatabaseUrl, options: dict[str, Any]
) -> None:
    past = new(id="s", trigger={"type": "date", "run_at": "2026-01-01T00:00:00Z"}, options=options)
    async with a_service(database) as service:
        assert "it would be missed" in (await service.preview(past)).warnings[0]
        assert "its fire is missed" in ((await service.add(past)).note or "")
        fires = await eventually(lambda: ended(service))
        assert [fire.state for fire in fires] == ["missed"]


async def ended(service: Service) -> Any:
    return [fire for fire in (await service.fires(FireQuery(schedule_id="s"))).items if fire.state != "pending"]


async def test_what_the_limits_leave_is_shown(database: DatabaseUrl) -> None:
    async with a_service(database) as service:
        preview = await service.preview(new(trigger=EVERY_MINUTE, max_fires=3), fires=10)
    assert len(preview.upcoming) == 3
    assert preview.description == "every minute, 3 times"
    assert LATER["type"] == "date"
