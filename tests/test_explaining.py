"""Why a schedule ran at an instant, or why it did not."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import pytest

from duetime.commands import FireQuery, ScheduleChange
from duetime.errors import ScheduleNotFound
from duetime.records import Answer, Explanation
from duetime.service import Service
from duetime.settings import DatabaseUrl

from .services import EVERY_MINUTE, EVERY_SECOND, a_service, calls, gate, new
from .waiting import eventually

HOUR = timedelta(hours=1)


async def asked(service: Service, schedule_id: str, at: datetime, answer: Answer, *words: str) -> Explanation:
    """Ask why, and check the answer and what is said."""
    explanation = await service.explain(schedule_id, at)
    assert explanation.answer is answer, explanation
    for each in words:
        assert each in explanation.because, explanation.because
    return explanation


async def first_fire(service: Service, schedule_id: str, state: str) -> Any:
    async def look() -> Any:
        found = (await service.fires(FireQuery.model_validate({"schedule_id": schedule_id, "state": state}))).items
        return found[-1] if found else None

    return await eventually(look)


def now() -> datetime:
    return datetime.now(UTC)


async def test_a_fire_that_ran_is_explained_with_its_runs(database: DatabaseUrl) -> None:
    async with a_service(database) as service:
        await service.add(new(id="s", trigger=EVERY_SECOND))
        fire = await first_fire(service, "s", "succeeded")
        explanation = await asked(service, "s", fire.fire_time, Answer.ran, "It ran, on ", "after its time")
        assert explanation.fire == fire
        assert [run.outcome for run in explanation.runs] == ["success"]


async def test_whole_seconds_find_the_fire_within_that_second(database: DatabaseUrl) -> None:
    async with a_service(database) as service:
        await service.add(new(id="s", trigger={"type": "date", "run_at": "2026-01-01T00:00:00.25Z"}))
        await first_fire(service, "s", "succeeded")
        await asked(service, "s", datetime(2026, 1, 1, tzinfo=UTC), Answer.ran)


async def test_a_fire_that_was_skipped_names_the_policy(database: DatabaseUrl) -> None:
    async with a_service(database) as service:
        await service.add(new(id="s", task="hold", trigger=EVERY_SECOND))
        fire = await first_fire(service, "s", "skipped")
        await asked(service, "s", fire.fire_time, Answer.skipped, "It did not run.", "overlap=skip")
        pending = await first_fire(service, "s", "pending")
        await asked(service, "s", pending.fire_time, Answer.pending, "queued or running")
        gate.set()


async def test_a_coalesced_fire_says_what_became_of_the_one_that_stands_for_it(
    database: DatabaseUrl, connection: asyncpg.Connection
) -> None:
    async with a_service(database) as service:
        await service.add(new(id="s", trigger=EVERY_SECOND, max_fires=2))
        await eventually(lambda: all_finished(connection))
        later, earlier = (await service.fires(FireQuery(schedule_id="s"))).items
        reason = f"2 fires were due at once; the one at {later.fire_time.isoformat()} stands for all"
        become = "update duetime.fires set state = $2, reason = $3 where fire_time = $1"
        await connection.execute(become, earlier.fire_time, "coalesced", reason)
        await connection.execute(become, later.fire_time, "skipped", "the job of an earlier fire had not ended")
        stands = f"Another fire stands for it: {later.fire_time:%Y-%m-%dT%H:%M:%SZ}, skipped."
        await asked(service, "s", earlier.fire_time, Answer.coalesced, stands)


async def test_a_fire_that_found_nobody_says_so(database: DatabaseUrl, connection: asyncpg.Connection) -> None:
    async with a_service(database) as service:
        await service.add(new(id="s", trigger=EVERY_MINUTE, options={"misfire_grace_time": 60}))
    await connection.execute(
        "update duetime.schedules set next_fire_time = date_trunc('minute', now()) - interval '1 hour'"
    )
    async with a_service(database) as service:
        fire = await first_fire(service, "s", "missed")
        words = ("too late to start", "beyond its grace time", "No node claimed it before", "was up")
        await asked(service, "s", fire.fire_time, Answer.missed, *words)


async def test_an_instant_while_it_was_paused_says_since_when_and_until_when(database: DatabaseUrl) -> None:
    async with a_service(database) as service:
        await service.add(new(id="s", trigger=EVERY_SECOND))
        await first_fire(service, "s", "succeeded")
        await service.pause("s")
        await asyncio.sleep(1.5)
        during = now()
        await asked(service, "s", during, Answer.paused, "It was paused from", "and still is")
        await service.resume("s")
        await asked(service, "s", during, Answer.paused, "It was paused from", "until")
        fire = await eventually(lambda: fire_after(service, during))
        await asked(service, "s", fire.fire_time, Answer.ran)


async def test_a_pause_after_failures_is_told_from_one_by_request(database: DatabaseUrl) -> None:
    async with a_service(database) as service:
        await service.add(new(id="s", task="fail", trigger=EVERY_SECOND, options={"pause_on_failure": 1}))
        await first_fire(service, "s", "failed")
        await eventually(lambda: has_pause_reason(service))
        during = now() + timedelta(seconds=2)
        await eventually(lambda: now() > during)
        await asked(service, "s", during, Answer.paused, "a fire has failed (pause_on_failure)", "no luck")
        await service.resume("s")
        await asked(service, "s", during, Answer.paused, "a fire has failed (pause_on_failure)", "until")


async def has_pause_reason(service: Service) -> bool:
    return (await service.get("s")).pause_reason is not None


async def fire_after(service: Service, moment: datetime) -> Any:
    page = await service.fires(FireQuery.model_validate({"schedule_id": "s", "state": "succeeded"}))
    return next((fire for fire in page.items if fire.fire_time > moment), None)


async def test_a_schedule_that_was_added_paused_was_paused_from_the_start(database: DatabaseUrl) -> None:
    async with a_service(database) as service:
        added = await service.add(new(id="s", trigger=EVERY_MINUTE, paused=True))
        await asked(service, "s", added.created_at + timedelta(seconds=1), Answer.paused)
        await service.resume("s")
        await asked(service, "s", added.created_at + timedelta(microseconds=1), Answer.paused)


async def test_what_is_no_fire_time_is_told_from_what_lies_ahead(database: DatabaseUrl) -> None:
    async with a_service(database) as service:
        await service.add(new(id="s", trigger={"type": "cron", "expression": "0 9 * * *"}))
        tomorrow = (now() + timedelta(days=1)).replace(hour=9, minute=0, second=0, microsecond=0)
        await asked(service, "s", tomorrow, Answer.not_yet, "lies ahead")
        await asked(service, "s", tomorrow + HOUR, Answer.not_a_fire_time, "every day at 09:00 (UTC)")


async def test_a_fire_is_not_looked_for_before_the_second_that_is_asked_about(database: DatabaseUrl) -> None:
    async with a_service(database) as service:
        await service.add(new(id="s", trigger={"type": "interval", "hours": 1, "start": "2026-01-01T00:00:00.75Z"}))
        hour = now().replace(minute=0, second=0, microsecond=0) + HOUR
        await asked(service, "s", hour, Answer.not_yet)
        await asked(service, "s", hour + timedelta(seconds=1), Answer.not_a_fire_time)


async def test_whole_seconds_mean_the_fire_within_them_when_a_schedule_has_ended_or_is_paused(
    database: DatabaseUrl,
) -> None:
    async with a_service(database) as service:
        every_hour = {"type": "interval", "hours": 1, "start": "2026-01-01T00:00:00.75Z"}
        hour = now().replace(minute=0, second=0, microsecond=0) + HOUR
        await service.add(new(id="s", trigger=every_hour, expires_at=hour + HOUR + timedelta(seconds=0.5)))
        await asked(service, "s", hour, Answer.not_yet)
        await asked(service, "s", hour + HOUR, Answer.expired, "It expires at")


async def test_a_life_has_a_beginning_and_an_end(database: DatabaseUrl) -> None:
    async with a_service(database) as service:
        added = await service.add(new(id="s", trigger=EVERY_SECOND))
        await first_fire(service, "s", "succeeded")
        await asked(service, "s", added.created_at - HOUR, Answer.not_added_yet, "It was added at")
        await service.remove("s")
        await asked(service, "s", now() + HOUR, Answer.removed, "It had been removed at")
        with pytest.raises(ScheduleNotFound):
            await service.explain("never", now())


async def test_the_end_of_limits_is_told_before_and_after_the_clean_up(
    database: DatabaseUrl, connection: asyncpg.Connection
) -> None:
    async with a_service(database) as service:
        end = now() + timedelta(seconds=1.5)
        await service.add(new(id="expires", trigger=EVERY_SECOND, expires_at=end.isoformat()))
        await service.add(new(id="counts", trigger={"type": "interval", "seconds": 0.1}, max_fires=2))
        for cleans in (False, True):
            await eventually(lambda: all_finished(connection))
            if cleans:
                await service._store.cleanup()
            await asked(service, "expires", end + HOUR, Answer.expired, "It expired at")
            await asked(service, "counts", (end + HOUR).replace(microsecond=0), Answer.finished, "max_fires")
        # It may be some time until a node notices.
        await connection.execute("update duetime.schedule_changes set at = at + interval '1 day'")
        await asked(service, "expires", end + HOUR, Answer.expired, "It expired at")
        assert await connection.fetchval("select count(*) from duetime.schedules") == 0


async def all_finished(connection: asyncpg.Connection) -> bool:
    left = await connection.fetchval(
        "select count(*) from duetime.schedules where next_fire_time is not null or acquired_by is not null"
    )
    jobs = await connection.fetchval("select count(*) from duetime.jobs")
    return (left, jobs) == (0, 0)


async def test_a_one_off_that_was_cleaned_up_has_finished(
    database: DatabaseUrl, connection: asyncpg.Connection
) -> None:
    async with a_service(database) as service:
        await service.add(new(id="s", trigger={"type": "date", "run_at": "2026-01-01T00:00:00Z"}))
        await first_fire(service, "s", "succeeded")
        await eventually(lambda: all_finished(connection))
        await service._store.cleanup()
        await asked(service, "s", now(), Answer.finished, "its last fire was at 2026-01-01T00:00:00Z")


async def test_a_broken_schedule_says_what_is_broken(database: DatabaseUrl, connection: asyncpg.Connection) -> None:
    async with a_service(database) as service:
        await service.add(new(id="s", trigger=EVERY_SECOND))
        await first_fire(service, "s", "succeeded")
        await connection.execute("update duetime.schedules set args = '\\x00'")
        await eventually(lambda: connection.fetchval("select broken_reason from duetime.schedules"))
        later = now() + timedelta(seconds=30)
        explanation = await service.explain("s", later)
        assert explanation.answer in (Answer.broken, Answer.not_a_fire_time)
        assert [change.change for change in explanation.changes] == ["broken"]


async def test_a_fire_that_is_due_and_finds_no_node_is_overdue(
    database: DatabaseUrl, connection: asyncpg.Connection
) -> None:
    async with a_service(database, role="worker") as service:
        await service.add(new(id="s", trigger=EVERY_MINUTE))
        await connection.execute(
            "update duetime.schedules set created_at = now() - interval '1 day',"
            " next_fire_time = date_trunc('minute', now()) - interval '5 minutes'"
        )
        due = now().replace(second=0, microsecond=0) - timedelta(minutes=3)
        await asked(service, "s", due, Answer.overdue, "no node has claimed it")


async def test_the_trigger_of_then_decides_and_not_that_of_today(
    database: DatabaseUrl, connection: asyncpg.Connection
) -> None:
    async with a_service(database) as service:
        await service.add(new(id="s", trigger={"type": "cron", "expression": "0 * * * *"}))
        await connection.execute("update duetime.schedules set created_at = now() - interval '9 days'")
        daily = {"type": "cron", "expression": "30 9 * * *"}
        await service.update("s", ScheduleChange.model_validate({"trigger": daily}))
        half_past_nine = (now() - timedelta(days=1)).replace(hour=9, minute=30, second=0, microsecond=0)
        await asked(service, "s", half_past_nine, Answer.not_a_fire_time)
        await asked(service, "s", half_past_nine - HOUR / 2, Answer.unknown)


async def test_history_follows_a_new_name_and_the_old_one_leads_to_it(database: DatabaseUrl) -> None:
    async with a_service(database) as service:
        await service.add(new(id="old", trigger=EVERY_SECOND))
        fire = await first_fire(service, "old", "succeeded")
        before = now()
        await service.update("old", ScheduleChange(id="middle"))
        await asked(service, "old", before, Answer.renamed, "It was renamed to 'middle'")
        await service.update("middle", ScheduleChange(id="new"))
        await asked(service, "new", fire.fire_time, Answer.ran)
        await asked(service, "old", fire.fire_time, Answer.ran)
        await asked(service, "old", now() + HOUR, Answer.renamed, "It was renamed to 'middle'")
        later = await eventually(lambda: fire_of(service, "new"))
        found = (await service.fires(FireQuery(schedule_id="new", limit=200))).items
        assert {fire.fire_time, later.fire_time} <= {each.fire_time for each in found}
        # Whoever takes the old id now has a history of its own, which is not the renamed one's.
        await service.add(new(id="old", args=[9], trigger={"type": "date", "run_at": "2026-01-01T00:00:00Z"}))
        await eventually(lambda: (9, "") in calls)
        again = (await service.fires(FireQuery(schedule_id="new", limit=200))).items
        assert datetime(2026, 1, 1, tzinfo=UTC) not in {each.fire_time for each in again}


async def fire_of(service: Service, schedule_id: str) -> Any:
    found = (await service.fires(FireQuery(schedule_id=schedule_id))).items
    return next((fire for fire in found if fire.schedule_id == schedule_id), None)
