"""Changing schedules in place, one or many: what stays, what moves, and who is refused."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import pytest
from pydantic import ValidationError

from duetime.commands import FireQuery, NewSchedules, ScheduleChange, ScheduleQuery, Selection
from duetime.errors import (
    DuetimeError,
    FiresTooOften,
    InvalidArguments,
    InvalidOptions,
    InvalidRequest,
    InvalidSchedule,
    InvalidScheduleId,
    PreconditionFailed,
    ScheduleExists,
    ScheduleNotFound,
    TriggerNeverFires,
    UnknownTask,
)
from duetime.records import ScheduleState
from duetime.settings import DatabaseUrl

from .services import EVERY_MINUTE, EVERY_SECOND, LATER, a_service, calls, gate, new
from .waiting import eventually

YEARLY = {"type": "cron", "expression": "0 0 1 1 *"}
EACH_RUNS = {"coalesce": "all", "overlap": "allow"}
"""However late the machine is."""


def change(**fields: Any) -> ScheduleChange:
    return ScheduleChange.model_validate(fields)


# -- one, in place ----------------------------------------------------------------------------------------------------


async def test_what_is_not_named_stays_as_it_is(database: DatabaseUrl) -> None:
    async with a_service(database) as service:
        before = await service.add(
            new(
                id="s",
                args=[3],
                kwargs={"word": "x"},
                trigger=YEARLY,
                tags=["a"],
                owner="me",
                metadata={"k": 1, "l": 2},
                options={"timeout": 5, "misfire_grace_time": 9, "overlap": "allow"},
                expires_at="2100-01-01T00:00:00Z",
                max_fires=1000,
            )
        )
        after = await service.update("s", change(metadata={"k": 3, "l": None, "m": 4}, options={"timeout": 6}))
        assert after.metadata == {"k": 3, "m": 4}
        assert after.options == {**before.options, "timeout": 6}
        same = {"metadata", "options", "updated_at", "revision"}
        assert after.model_dump(exclude=same) == before.model_dump(exclude=same)
        assert after.revision != before.revision


@pytest.mark.parametrize(
    ("fields", "shown"),
    [
        ({"task": "other", "kwargs": {}}, {"task": "tests.services:other"}),
        ({"args": [7]}, {"args": [7]}),
        ({"kwargs": {"word": "y"}}, {"kwargs": {"word": "y"}}),
        ({"tags": ["new"]}, {"tags": ["new"]}),
        ({"owner": "you"}, {"owner": "you"}),
        ({"owner": None}, {"owner": None}),
        ({"options": {"overlap": "allow"}}, {"overlap": "allow"}),
        ({"expires_at": None, "max_fires": None}, {"expires_at": None, "max_fires": None}),
    ],
)
async def test_any_part_changes_without_moving_the_next_fire(
    database: DatabaseUrl, fields: dict[str, Any], shown: dict[str, Any]
) -> None:
    async with a_service(database) as service:
        before = await service.add(
            new(
                id="s",
                trigger={"type": "interval", "hours": 1},
                owner="me",
                expires_at="2100-01-01T00:00:00Z",
                max_fires=9,
            )
        )
        await eventually(lambda: calls)
        moved_on = await service.get("s")
        after = await service.update("s", change(**fields))
        assert after.next_fire_time == moved_on.next_fire_time != before.next_fire_time
        assert after.upcoming == moved_on.upcoming
        assert {name: getattr(after, name) for name in shown} == shown


async def test_a_concurrency_key_follows_the_arguments_and_the_task(
    database: DatabaseUrl, connection: asyncpg.Connection
) -> None:
    async def key() -> str | None:
        found: str | None = await connection.fetchval("select metadata->>'duetime.key' from duetime.schedules")
        return found

    async with a_service(database) as service:
        await service.add(new(id="s", task="serve", args=["one"]))
        assert await key() == '"one"'
        await service.update("s", change(args=["two"]))
        assert await key() == '"two"'
        await service.update("s", change(task="other", args=[1]))
        assert await key() is None
        await service.update("s", change(task="serve", args=[], kwargs={"customer": "three"}))
        assert await key() == '"three"'


@pytest.mark.parametrize(
    "trigger",
    [
        {"type": "interval", "minutes": 90},
        {"type": "cron", "expression": "0 9 * * mon-fri", "timezone": "Europe/Berlin"},
        {"type": "text", "text": "every 2 weeks on monday at 9:00"},
        {"type": "calendar_interval", "days": 3, "hour": 9},
        {"type": "or", "triggers": [{"type": "interval", "minutes": 7}, EVERY_MINUTE]},
    ],
)
async def test_the_same_trigger_said_again_does_not_move_the_next_fire(
    database: DatabaseUrl, trigger: dict[str, Any]
) -> None:
    async with a_service(database) as service:
        before = await service.add(new(id="s", trigger=trigger, paused=True))
        for again in (trigger, before.trigger):
            after = await service.update("s", change(trigger=again, tags=["x"]))
            assert after.next_fire_time == before.next_fire_time
            assert after.trigger == before.trigger


@pytest.mark.parametrize("name", ["id", "task", "args", "kwargs", "trigger", "tags", "metadata", "options"])
def test_null_is_refused_for_what_a_schedule_always_has(name: str) -> None:
    with pytest.raises(ValidationError, match=f"null only for expires_at, max_fires, owner, got it for {name}"):
        change(**{name: None})


async def test_a_coalesce_policy_that_the_stored_catch_up_contradicts_is_refused(database: DatabaseUrl) -> None:
    async with a_service(database) as service:
        await service.add(new(id="s", options={"catch_up": "all"}))
        with pytest.raises(InvalidOptions, match="coalesce to be 'all' or left out with catch_up='all', got 'latest'"):
            await service.update("s", change(options={"coalesce": "latest"}))


@pytest.mark.parametrize(
    "again",
    [
        {"type": "interval", "seconds": 300},
        {"type": "interval", "minutes": 4, "seconds": 60},
        {"type": "text", "text": "every 300 seconds"},
    ],
)
async def test_the_same_interval_in_another_unit_does_not_move_the_next_fire(
    database: DatabaseUrl, again: dict[str, Any]
) -> None:
    async with a_service(database) as service:
        await service.add(new(id="s", trigger={"type": "interval", "minutes": 5}))
        await eventually(lambda: calls)
        before = await service.get("s")
        assert (await service.update("s", change(trigger=again))).next_fire_time == before.next_fire_time
        other = await service.update("s", change(trigger={"type": "interval", "seconds": 301}))
        assert other.next_fire_time != before.next_fire_time


async def test_another_trigger_moves_the_next_fire(database: DatabaseUrl) -> None:
    async with a_service(database) as service:
        await service.add(new(id="s", trigger={"type": "interval", "hours": 1}))
        after = await service.update(
            "s", change(trigger={"type": "interval", "hours": 2, "start": "2099-01-01T00:00:00Z"})
        )
        assert after.next_fire_time == datetime(2099, 1, 1, tzinfo=UTC)


async def test_a_change_that_changes_nothing_makes_no_new_revision(database: DatabaseUrl) -> None:
    async with a_service(database) as service:
        before = await service.add(new(id="s", tags=["a"], trigger=EVERY_MINUTE))
        after = await service.update("s", change(tags=["a"], trigger=EVERY_MINUTE))
        assert after.revision == before.revision


async def test_a_fire_that_was_claimed_ahead_runs_with_the_new_arguments_and_once(
    database: DatabaseUrl, connection: asyncpg.Connection
) -> None:
    async with a_service(database, look_ahead=5) as service:
        due = datetime.now(UTC) + timedelta(seconds=2)
        await service.add(new(id="s", args=[1], trigger={"type": "date", "run_at": due.isoformat()}))
        await eventually(lambda: connection.fetchval("select count(*) from duetime.jobs"))
        after = await service.update("s", change(args=[2]))
        assert after.next_fire_time == due
        await eventually(lambda: calls)
        await eventually(lambda: connection.fetchval("select count(*) from duetime.fires where state = 'succeeded'"))
        assert calls == [(2, "")]
        assert await connection.fetchval("select count(*) from duetime.fires") == 1


async def test_of_two_editors_the_second_is_refused(database: DatabaseUrl) -> None:
    async with a_service(database) as service:
        read = await service.add(new(id="s", tags=["first"]))
        await service.update("s", change(tags=["second"]), revision=read.revision)
        with pytest.raises(PreconditionFailed, match="has been changed since"):
            await service.update("s", change(tags=["third"]), revision=read.revision)
        for verb in (service.pause, service.remove):
            with pytest.raises(PreconditionFailed, match="has been changed since"):
                await verb("s", revision=read.revision)
        stored = await service.get("s")
        assert (stored.tags, stored.state) == (["second"], ScheduleState.active)
        await service.remove("s", revision=stored.revision)


async def test_changes_of_different_parts_at_the_same_time_are_all_kept(database: DatabaseUrl) -> None:
    async with a_service(database) as service:
        await service.add(new(id="s", trigger=EVERY_MINUTE))
        await asyncio.gather(
            service.update("s", change(tags=["t"])),
            service.update("s", change(owner="o")),
            service.update("s", change(args=[1])),
            service.update("s", change(metadata={"k": 1})),
            service.pause("s"),
        )
        stored = await service.get("s")
        assert (stored.tags, stored.owner, stored.args, stored.metadata) == (["t"], "o", [1], {"k": 1})
        assert stored.state is ScheduleState.paused


async def test_a_change_is_made_on_a_schedule_that_fires_all_the_time(database: DatabaseUrl) -> None:
    async with a_service(database) as service:
        await service.add(new(id="s", trigger={"type": "interval", "seconds": 0.05}))
        for number in range(1, 21):
            await service.update("s", change(args=[number]))
        await eventually(lambda: (20, "") in calls)
        assert [number for number, _ in calls] == sorted(number for number, _ in calls)


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"task": "wrk"}, UnknownTask),
        ({"kwargs": {"wrd": 1}}, InvalidArguments),
        ({"id": "a\nb"}, InvalidScheduleId),
        ({"id": "taken"}, ScheduleExists),
        ({"metadata": {"duetime.x": 1}}, InvalidRequest),
        ({"expires_at": "2020-01-01T00:00:00Z", "trigger": EVERY_MINUTE}, TriggerNeverFires),
        ({"task": "wrk", "id": "a\nb"}, InvalidSchedule),
    ],
)
async def test_a_change_that_cannot_work_is_refused_and_changes_nothing(
    database: DatabaseUrl, fields: dict[str, Any], error: type[DuetimeError]
) -> None:
    async with a_service(database) as service:
        await service.add(new(id="taken"))
        before = await service.add(new(id="s"))
        with pytest.raises(error):
            await service.update("s", change(**fields))
        assert await service.get("s") == before


async def test_what_is_not_stored_cannot_be_changed(database: DatabaseUrl) -> None:
    async with a_service(database) as service:
        for schedule_id in ("nothing", "\x00"):
            with pytest.raises(ScheduleNotFound):
                await service.update(schedule_id, change(tags=["x"]))


# -- an end of its own ------------------------------------------------------------------------------------------------


async def test_a_schedule_ends_after_its_last_fire_and_says_why(database: DatabaseUrl) -> None:
    async with a_service(database) as service:
        await service.add(new(id="s", trigger={"type": "interval", "seconds": 0.2}, max_fires=3, options=EACH_RUNS))
        await eventually(lambda: len(calls) == 3)
        stored = await service.get("s")
        assert stored.state is ScheduleState.finished
        assert stored.finished_reason == "it has fired 3 times, and its max_fires is 3"
        assert len(await fires_of(service, "s")) == 3


async def test_a_schedule_ends_when_it_expires_and_never_fires_after(database: DatabaseUrl) -> None:
    end = datetime.now(UTC) + timedelta(seconds=1.5)
    async with a_service(database) as service:
        await service.add(new(id="s", trigger={"type": "interval", "seconds": 0.2}, expires_at=end.isoformat()))
        stored = await eventually(lambda: finished(service, "s"))
        fires = (await service.fires(FireQuery(schedule_id="s", limit=200))).items
        assert stored.finished_reason.startswith("it expired at ")
        assert 5 <= len(fires) <= 8
        assert all(fire.fire_time < end for fire in fires)


async def finished(service: Any, schedule_id: str) -> Any:
    stored = await service.get(schedule_id)
    return stored if stored.state is ScheduleState.finished else None


async def test_a_fire_that_comes_up_only_after_the_end_does_not_run(
    database: DatabaseUrl, connection: asyncpg.Connection
) -> None:
    soon = datetime.now(UTC) + timedelta(hours=1)
    async with a_service(database) as service:
        await service.add(
            new(
                id="s",
                trigger={"type": "date", "run_at": (soon - timedelta(minutes=1)).isoformat()},
                expires_at=soon.isoformat(),
            )
        )
    # The same an hour later: nobody was up when it was due.
    await connection.execute(
        "update duetime.schedules set next_fire_time = next_fire_time - interval '2 hours',"
        " trigger = convert_to(replace(convert_from(trigger, 'UTF8'), $1, $2), 'UTF8')",
        soon.strftime("%Y-%m-%dT%H:%M"),
        (soon - timedelta(hours=2)).strftime("%Y-%m-%dT%H:%M"),
    )
    async with a_service(database) as service:
        [fire] = await eventually(lambda: fires_of(service, "s"))
        assert fire.state == "missed"
        assert "could not start before its schedule expired" in fire.reason
        assert calls == []


async def fires_of(service: Any, schedule_id: str) -> Any:
    return (await service.fires(FireQuery(schedule_id=schedule_id))).items


async def test_limits_can_be_changed_while_the_schedule_goes_on(database: DatabaseUrl) -> None:
    async with a_service(database) as service:
        trigger = {"type": "interval", "seconds": 0.2}
        await service.add(new(id="s", trigger=trigger, max_fires=2, options=EACH_RUNS))
        await eventually(lambda: finished(service, "s"))
        await eventually(lambda: len(calls) == 2)
        more = await service.update("s", change(max_fires=4))
        assert more.state is ScheduleState.active
        await eventually(lambda: finished(service, "s"))
        await eventually(lambda: len(calls) == 4)
        assert len(await fires_of(service, "s")) == 4
        ended = await service.update("s", change(max_fires=4, expires_at="2020-01-01T00:00:00Z"))
        assert ended.state is ScheduleState.finished


async def test_fires_that_are_passed_over_while_it_is_paused_do_not_count(database: DatabaseUrl) -> None:
    async with a_service(database) as service:
        trigger = {"type": "interval", "seconds": 0.1}
        await service.add(new(id="s", trigger=trigger, max_fires=3, paused=True, options=EACH_RUNS))
        await asyncio.sleep(0.5)  # fire times go by
        await service.resume("s")
        await eventually(lambda: finished(service, "s"))
        await eventually(lambda: len(calls) == 3)


# -- renaming ---------------------------------------------------------------------------------------------------------


async def test_a_renamed_schedule_goes_on_under_its_new_id(database: DatabaseUrl) -> None:
    async with a_service(database) as service:
        before = await service.add(new(id="old", trigger=YEARLY))
        after = await service.update("old", change(id="new"))
        assert after.model_dump(exclude={"id", "revision", "updated_at"}) == before.model_dump(
            exclude={"id", "revision", "updated_at"}
        )
        with pytest.raises(ScheduleNotFound):
            await service.get("old")


async def test_a_job_that_runs_while_its_schedule_is_renamed_ends_under_the_new_id(
    database: DatabaseUrl, connection: asyncpg.Connection
) -> None:
    async with a_service(database) as service:
        await service.add(new(id="old", task="hold", trigger=EVERY_SECOND))
        await eventually(lambda: calls)
        await service.update("old", change(id="new"))
        skipped = "select count(*) from duetime.fires where schedule_id = 'new' and state = 'skipped'"
        await eventually(lambda: connection.fetchval(skipped))
        assert len(calls) == 1  # overlap=skip sees the job from before
        gate.set()
        await eventually(
            lambda: connection.fetchval(
                "select count(*) from duetime.fires where schedule_id = 'new' and state = 'succeeded'"
            )
        )
        assert await connection.fetchval("select count(*) from duetime.fires where state = 'pending'") <= 1
        assert await connection.fetchval("select count(*) from duetime.runs where schedule_id = 'old'") == 0


# -- many -------------------------------------------------------------------------------------------------------------


async def test_thousands_are_added_paused_resumed_and_removed_in_a_request_each(
    database: DatabaseUrl, connection: asyncpg.Connection
) -> None:
    async with a_service(database) as service:
        wanted = [new(id=f"s{number:04}", tags=["many"], trigger=EVERY_MINUTE, paused=True) for number in range(3000)]
        added = await service.add_all(NewSchedules(schedules=wanted))
        assert added.ids == [each.id for each in wanted]
        await service.add(new(id="alone"))
        many = Selection(tag="many")
        assert (await service.resume_all(many)).count == 3000
        assert (await service.pause_all(many)).count == 3000
        assert (await service.remove_all(Selection(tag="many", dry_run=True))).count == 3000
        assert (await service.remove_all(many)).count == 3000
        assert [row["id"] for row in await connection.fetch("select id from duetime.schedules")] == ["alone"]


async def test_many_are_stored_only_if_all_can_be_and_every_problem_is_listed_with_its_place(
    database: DatabaseUrl, connection: asyncpg.Connection
) -> None:
    body = {
        "schedules": [
            {"task": "work", "trigger": LATER, "id": "a"},
            {"task": "wrk", "trigger": LATER},
            {"task": "work", "triger": LATER},
            {"task": "work", "trigger": LATER, "id": "a"},
            {"task": "work", "trigger": {"type": "cron", "expression": "x"}},
            {"task": "work", "trigger": LATER, "options": {"overlap": "buffer_on", "coalesce": "lates"}},
        ]
    }
    async with a_service(database) as service:
        with pytest.raises(InvalidSchedule) as caught:
            await service.add_all(NewSchedules.model_validate(body))
        places = [detail["where"] for detail in caught.value.details]
        assert {place.partition(".")[0] for place in places} == {f"schedules[{n}]" for n in (1, 2, 3, 4, 5)}
        problems = " ".join(detail["problem"] for detail in caught.value.details)
        assert "did you mean 'work'?" in problems
        assert "did you mean 'trigger'?" in problems
        assert "did you mean 'buffer_one'?" in problems
        assert "did you mean 'latest'?" in problems
        assert await connection.fetchval("select count(*) from duetime.schedules") == 0


async def test_many_are_refused_if_an_id_is_taken(database: DatabaseUrl, connection: asyncpg.Connection) -> None:
    async with a_service(database) as service:
        await service.add(new(id="b"))
        with pytest.raises(ScheduleExists):
            await service.add_all(NewSchedules(schedules=[new(id="a"), new(id="b")]))
        assert await connection.fetchval("select count(*) from duetime.schedules") == 1


@pytest.mark.parametrize(
    "selection",
    [
        {},
        {"dry_run": True},
        {"search": ""},
        {"ids": ["a"], "tag": "x"},
        {"everything": True, "tag": "x"},
        {"ids": ["a", "nothing"]},
        {"tag": "\x00"},
    ],
)
async def test_a_selection_that_may_not_be_meant_is_refused(database: DatabaseUrl, selection: dict[str, Any]) -> None:
    async with a_service(database) as service:
        await service.add(new(id="a"))
        with pytest.raises(InvalidRequest):
            await service.remove_all(Selection.model_validate(selection))
        assert (await service.get("a")).id == "a"


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        ({"task": "other"}, {"b"}),
        ({"tag": "x"}, {"a"}),
        ({"owner": "me"}, {"c"}),
        ({"state": "paused"}, {"c"}),
        ({"search": "A"}, {"a"}),
        ({"ids": ["a", "c"]}, {"a", "c"}),
        ({"everything": True}, {"a", "b", "c"}),
    ],
)
async def test_a_selection_means_what_fits_all_its_filters(
    database: DatabaseUrl, filters: dict[str, Any], expected: set[str]
) -> None:
    async with a_service(database) as service:
        await service.add_all(
            NewSchedules(
                schedules=[new(id="a", tags=["x"]), new(id="b", task="other"), new(id="c", owner="me", paused=True)]
            )
        )
        assert set((await service.remove_all(Selection.model_validate(filters))).ids) == expected
        left = {each.id for each in (await service.schedules(ScheduleQuery())).items}
        assert left == {"a", "b", "c"} - expected


# -- at the door ------------------------------------------------------------------------------------------------------

SECONDLY = {"type": "rrule", "rrule": "FREQ=SECONDLY"}
EVERY_DAY = {"type": "rrule", "rrule": "FREQ=DAILY"}


async def test_an_endless_rule_that_fires_every_second_is_refused_unless_it_is_permitted(
    database: DatabaseUrl,
) -> None:
    async with a_service(database) as service:
        for member in (SECONDLY, {**SECONDLY, "exclude": ["12-25"]}):
            with pytest.raises(FiresTooOften, match="every 1 s for ever"):
                await service.add(new(trigger={"type": "or", "triggers": [EVERY_MINUTE, member]}))
        await service.add(new(trigger={"type": "or", "triggers": [EVERY_SECOND, EVERY_DAY]}, paused=True))
        with pytest.raises(FiresTooOften, match="every 1 s for ever"):
            await service.add(new(trigger=SECONDLY))
        await service.add(new(trigger=SECONDLY, max_fires=1, paused=True))
        await service.add(new(trigger={**SECONDLY, "rrule": "FREQ=SECONDLY;COUNT=2"}, paused=True))
    async with a_service(database, min_interval=1) as service:
        await service.add(new(trigger=SECONDLY, paused=True))


async def test_fires_closer_together_than_the_node_allows_are_refused(database: DatabaseUrl) -> None:
    async with a_service(database, min_interval=60) as service:
        await service.add(new(trigger=EVERY_MINUTE))
        for trigger in (EVERY_SECOND, {"type": "cron", "expression": "*/30 * * * * *"}):
            with pytest.raises(FiresTooOften, match="at least 60 s apart"):
                await service.add(new(trigger=trigger))


async def test_everything_that_is_wrong_with_a_schedule_is_said_at_once(database: DatabaseUrl) -> None:
    async with a_service(database) as service:
        with pytest.raises(InvalidSchedule) as caught:
            await service.add(
                new(
                    id="a\nb",
                    task="wrk",
                    trigger={"type": "rrule", "rrule": "FREQ=DAILY;BYMONTH=2;BYMONTHDAY=30"},
                    metadata={"duetime.x": 1},
                )
            )
        codes = {detail["code"] for detail in caught.value.details}
        assert codes == {"invalid_schedule_id", "unknown_task", "trigger_never_fires", "invalid_request"}


async def test_attempts_that_outlive_the_schedule_are_refused(database: DatabaseUrl) -> None:
    end = (datetime.now(UTC) + timedelta(minutes=10)).isoformat()
    retry = {"max_attempts": 10, "backoff": 60}
    async with a_service(database) as service:
        with pytest.raises(InvalidOptions, match="before the schedule expires"):
            await service.add(new(trigger=EVERY_MINUTE, expires_at=end, options={"retry": retry}))
