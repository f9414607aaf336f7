"""What becomes of the rows that real releases of v3 have stored, and of rows that nobody should have."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any

import pytest

from duetime import Retry
from duetime.commands import NewSchedule
from duetime.options import TaskOptions
from duetime.tasks import TaskRegistry, task
from duetime.triggers import CalendarInterval, Cron, parse, parse_json, upcoming
from duetime.v3.clock_policies import changes
from duetime.v3.mapping import Tasks
from duetime.v3.model import Finding, Reading, Unreadable, V3And, V3Date, V3Interval, V3Row, V3Trigger, V3Unknown
from duetime.v3.planning import CONVERT, REJECT, REVIEW, Context, Planned, plan
from duetime.v3.proving import CAUSES, UNEXPLAINED, UNSUPPORTED, V3_DST_FAULT
from duetime.v3.reading import read

from .jobs import cron, interval, job, utc, zone
from .stored import Stored, stored_rows

RELEASES = ("3.6.3", "3.7.0", "3.8.1", "3.9.1", "3.10.4", "3.11.3")
NOW = utc("2026-11-25T10:00")
DAY = timedelta(days=1)
FIELDS = {"id", "verdict", "reasons", "schedule", "fire_times", "v3_fire_times", "differences"}


def remind(*args: Any, **kwargs: Any) -> None:
    """Takes whatever comes."""


class Shop:
    def open(self, hour: int = 9) -> None:
        """A method, which needs its object."""

    @classmethod
    def close(cls, hour: int = 18) -> None:
        """A method of the class."""

    @staticmethod
    def count(what: str = "apples") -> None:
        """A function."""


@cache
def application() -> TaskRegistry:
    """Return the tasks of the application whose jobs the rows are."""
    registry = TaskRegistry()
    for function, name in ((remind, "remind"), (Shop.open, "Shop.open"), (Shop.count, "Shop.count")):
        function.__module__, function.__qualname__ = "shop", name
        registry.add(function)
    Shop.close.__func__.__module__, Shop.close.__func__.__qualname__ = "shop", "Shop.close"  # type: ignore[attr-defined]
    registry.add(Shop.close)
    return registry


def context(**said: Any) -> Context:
    return Context(application(), Tasks(application(), said.pop("mapping", None)), **{"now": NOW, **said})


def made(trigger: V3Trigger, first: datetime | None, /, findings: tuple[Finding, ...] = (), **said: Any) -> Planned:
    """Plan a job that was read without ado."""
    options = {name: said.pop(name) for name in ("fires", "mapping", "executors", "release", "now") if name in said}
    found = job(trigger, first, **said)
    return plan(Reading(V3Row(found.id, None, b""), found, findings), context(**options))


def codes(planned: Planned) -> set[str]:
    return {each.partition(":")[0] for each in planned.record["reasons"]}


def kinds(asked: dict[str, Any]) -> set[str]:
    return {asked["type"]}.union(*(kinds(member) for member in asked.get("triggers", ())))


def expected(stored: Stored) -> str:
    """Return what the rules of the migration say of a row, by what was asked for when it was made."""
    asked, trigger = stored.asked, stored.asked["trigger"]
    found = kinds(trigger)
    if stored.row.id in ("cron-start-end", "interval-end"):
        return REJECT  # v3 has stored them without a next time: they had ended when they were added
    if stored.row.id == "dateutil-rule-cron":
        return REVIEW  # its zone is a rule without a name
    if stored.row.id.endswith("args-high-bytes") and stored.python == "2.7":
        return REVIEW  # text or bytes: Python 2 does not say
    if found & {"OddMinutes", "AndTrigger"}:
        return REVIEW
    if trigger["type"] == "OrTrigger":
        first = asked["next_run_time"]
        late = any(each["type"] == "DateTrigger" and each["run_date"] > first for each in trigger["triggers"])
        if (
            late
            or found & {"IntervalTrigger", "CalendarIntervalTrigger"}
            or any("jitter" in each for each in trigger["triggers"])
        ):
            return REVIEW
    if asked["func"] not in {each.name for each in application()} or asked["executor"] != "default":
        return REVIEW
    return REVIEW if _is_foreign(asked["args"]) or _is_foreign(asked["kwargs"]) else CONVERT


def _is_foreign(told: Any) -> bool:
    if isinstance(told, list):
        return told[:1] == ["unknown"] or told[:1] in (["enum"], ["dataclass"]) or any(map(_is_foreign, told))
    return False


@pytest.mark.parametrize("release", RELEASES)
def test_every_stored_row_has_the_verdict_of_its_kind(release: str) -> None:
    wrong = []
    for stored in stored_rows(release):
        planned = plan(read(stored.row), context(release=stored.release, fires=3))
        assert set(planned.record) == FIELDS
        assert json.loads(json.dumps(planned.record)) == planned.record
        assert (planned.definition is not None) == (planned.verdict == CONVERT)
        if planned.verdict != expected(stored):
            wrong.append((stored.name, planned.verdict, planned.record["reasons"]))
    assert wrong == []


def instants(texts: list[str]) -> list[datetime]:
    return [datetime.fromisoformat(each) for each in texts]


def unlike(planned: Planned, fires: list[datetime], end: str | None, count: int = 50) -> set[datetime]:
    """Return the fires that only one side has, as far as real v3's and ours are known."""
    ours = instants(planned.record["fire_times"])
    known = [times[-1] for times, is_whole in ((ours, len(ours) == count), (fires, end is None)) if is_whole]
    until = min(known, default=datetime.max.replace(tzinfo=UTC))
    return {each for each in set(ours) ^ set(fires) if each <= until}


def named(planned: Planned) -> set[datetime]:
    """Return the fires that the differences name."""
    found = planned.record["differences"]
    return {datetime.fromisoformat(each[side]) for each in found for side in ("v3", "duetime") if each[side]}


@pytest.mark.parametrize("release", RELEASES)
def test_the_next_fires_of_every_row_are_those_of_real_v3_or_differ_with_a_cause(release: str) -> None:
    compared = 0
    for stored in stored_rows(release):
        if expected(stored) != CONVERT or "stored" not in stored.fires:
            continue
        planned = plan(read(stored.row), context(release=stored.release))
        fires, end = stored.fires["stored"]
        assert planned.record["fire_times"][0] == planned.record["v3_fire_times"][0], stored.name
        assert unlike(planned, fires, end) <= named(planned), stored.name
        assert {each["cause"] for each in planned.record["differences"]} <= {*CAUSES} - {UNEXPLAINED, UNSUPPORTED}
        assert all(each["text"] for each in planned.record["differences"])
        compared += 1
    assert compared > 200


@pytest.mark.parametrize("release", RELEASES)
def test_around_changes_of_the_clock_fires_are_those_of_real_v3_or_differ_with_a_cause(release: str) -> None:
    causes, compared = set(), 0
    for stored in stored_rows(release)[::3]:
        if expected(stored) not in (CONVERT, REJECT) or stored.asked["trigger"]["type"] == "OrTrigger":
            continue
        reading = read(stored.row)
        assert reading.job is not None
        for start, (fires, end) in stored.fires.items():
            if start == "stored" or not fires:
                continue
            first = fires[0].astimezone(getattr(getattr(reading.job.trigger, "timezone", None), "tzinfo", UTC))
            gaps = [each for each in changes(first.tzinfo or UTC, first - DAY, first) if each.after > each.before]
            if gaps and isinstance(reading.job.trigger, V3Interval):
                continue  # by which clock time v3 knew it, one that is skipped, is not in the instant
            moved = replace(reading, job=replace(reading.job, next_run_time=first))
            planned = plan(moved, context(release=stored.release, now=min(NOW, first)))
            assert planned.verdict == CONVERT, (stored.name, start, planned.record["reasons"])
            assert unlike(planned, fires, end) <= named(planned), (stored.name, start)
            causes |= {each["cause"] for each in planned.record["differences"]}
            compared += 1
    assert compared > 300
    assert V3_DST_FAULT in causes


def test_a_posted_body_fires_when_the_stored_schedule_does() -> None:
    for stored in stored_rows("3.11.3")[::5]:
        planned = plan(read(stored.row), context(fires=10))
        if planned.verdict != CONVERT or planned.record["schedule"].get("paused"):
            continue
        body = NewSchedule.model_validate(planned.record["schedule"])
        first = datetime.fromisoformat(planned.record["fire_times"][0])
        posted = upcoming(parse(body.trigger, now=min(NOW, first)), 10)
        assert [each.astimezone(UTC).isoformat() for each in posted] == planned.record["fire_times"], stored.name


# -- a conversion of the spelling -------------------------------------------------------------------------------------


def spelled(asked: dict[str, Any], now: datetime) -> list[datetime]:
    """Return the next fires of a conversion that keeps the words of v3, as one would write it by hand."""
    if asked["type"] == "CronTrigger":
        fields = {name: text for name, text in asked["fields"].items() if name not in asked["defaults"]}
        trigger = Cron(fields or {"minute": "*"}, timezone=asked["timezone"] or "UTC", start_time=now)
        return upcoming(trigger, 10)
    amount = asked["interval"] / 1_000_000
    return upcoming(parse_json({"type": "interval", "seconds": amount, "start": now.isoformat()}, now=now), 10)


def test_a_conversion_of_the_spelling_would_be_wrong_where_ours_is_right() -> None:
    wrong = []
    for stored in stored_rows("3.11.3"):
        asked = stored.asked["trigger"]
        zone_name = asked.get("timezone") or ""
        if asked["type"] not in ("CronTrigger", "IntervalTrigger") or zone_name.startswith("fixed"):
            continue
        if "stored" not in stored.fires or expected(stored) != CONVERT:
            continue
        fires, _ = stored.fires["stored"]
        planned = plan(read(stored.row), context(fires=10))
        assert unlike(planned, fires[:10], None, 10) <= named(planned)
        now = max(NOW, fires[0] - timedelta(hours=1))
        if spelled(asked, now) != [each for each in fires if each >= now][:10]:
            wrong.append(stored.row.id)
    assert {"cron-crontab", "cron-05", "cron-07", "cron-10"} <= set(wrong), "weekdays by number"
    assert any("interval" in each for each in wrong)
    assert len(wrong) > 48


# -- what is kept -----------------------------------------------------------------------------------------------------


MORNING = utc("2026-11-26T08:00")


def schedule(planned: Planned) -> dict[str, Any]:
    assert planned.record["schedule"] is not None, planned.record["reasons"]
    found: dict[str, Any] = planned.record["schedule"]
    return found


def test_a_plain_job_is_a_plain_schedule() -> None:
    planned = made(cron(hour="9"), MORNING, id="daily", args=(1,), kwargs={"to": "x"}, name="Daily")
    assert planned.record["verdict"] == CONVERT
    assert planned.record["reasons"] == []
    assert planned.record["schedule"] == {
        "id": "daily",
        "task": "shop:remind",
        "args": [1],
        "kwargs": {"to": "x"},
        "trigger": {
            "type": "cron",
            "expression": "0 9 * * *",
            "timezone": "Europe/Berlin",
            "start": "2026-11-26T08:00:00+00:00",
        },
        "metadata": {"name": "Daily"},
        "options": {"overlap": "skip", "coalesce": "latest", "misfire_grace_time": 1},
    }
    assert planned.definition is not None
    assert planned.definition.next_fire_time == MORNING
    assert planned.definition.task.name == "shop:remind"
    assert not planned.definition.paused


def test_the_stored_time_is_kept_also_if_it_has_passed() -> None:
    late = utc("2026-11-20T08:00")
    planned = made(cron(hour="9"), late)
    assert planned.definition is not None
    assert planned.definition.next_fire_time == late
    assert planned.record["fire_times"][:2] == ["2026-11-20T08:00:00+00:00", "2026-11-21T08:00:00+00:00"]


@pytest.mark.parametrize(
    ("said", "options"),
    [
        ({"max_instances": 1}, {"overlap": "skip"}),
        ({"max_instances": 3}, {"overlap": "allow"}),
        ({"coalesce": False}, {"coalesce": "all", "catch_up": "all"}),
        ({"misfire_grace_time": 30}, {"misfire_grace_time": 30}),
    ],
)
def test_the_options_of_a_job_are_those_of_its_schedule(said: dict[str, Any], options: dict[str, Any]) -> None:
    assert schedule(made(cron(hour="9"), MORNING, **said))["options"].items() >= options.items()


def test_never_too_late_stays_never() -> None:
    assert "misfire_grace_time" not in schedule(made(cron(hour="9"), MORNING, misfire_grace_time=None))["options"]


def test_never_too_late_stays_never_for_a_task_with_a_grace_time() -> None:
    registry = TaskRegistry()

    def strict() -> None: ...

    task(misfire_grace_time=5, name="strict-of-the-test")(strict)
    registry.add(strict, name="strict-of-the-test")
    known = Context(registry, Tasks(registry, {"shop:strict": "strict-of-the-test"}), now=NOW)
    found = job(cron(hour="9"), MORNING, func="shop:strict", misfire_grace_time=None)
    planned = plan(Reading(V3Row("a", None, b""), found), known)
    assert schedule(planned)["options"]["misfire_grace_time"] > 3e9


def test_jitter_is_max_jitter_of_the_schedule() -> None:
    planned = made(cron(hour="9", jitter="60"), MORNING + timedelta(seconds=7))
    assert planned.verdict == CONVERT
    assert schedule(planned)["options"]["max_jitter"] == 60
    assert planned.record["fire_times"][:2] == ["2026-11-26T08:00:07+00:00", "2026-11-27T08:00:00+00:00"]


def test_a_paused_job_is_a_paused_schedule() -> None:
    planned = made(cron(hour="9"), None)
    assert planned.verdict == CONVERT
    assert schedule(planned)["paused"] is True
    assert planned.definition is not None
    assert planned.definition.paused
    assert planned.definition.next_fire_time is None


def test_a_paused_job_that_has_ended_is_rejected() -> None:
    planned = made(cron(hour="9", end_date="2026-01-01T00:00"), None)
    assert (planned.verdict, codes(planned), planned.record["schedule"]) == (REJECT, {"ended"}, None)


def test_a_row_that_cannot_be_read_is_rejected_under_its_id() -> None:
    planned = plan(read(V3Row("broken", 1.0, b"\x80\x05garbage")), context())
    assert (planned.record["id"], planned.verdict, planned.definition) == ("broken", REJECT, None)
    assert planned.record["reasons"]


def test_an_unknown_function_is_named_and_its_fires_are_compared_all_the_same() -> None:
    planned = made(cron(hour="9"), MORNING, func="app.jobs:send")
    assert (planned.verdict, codes(planned), planned.record["schedule"]) == (REVIEW, {"unknown_task"}, None)
    assert planned.record["fire_times"]


def test_a_mapped_function_is_carried_over() -> None:
    planned = made(cron(hour="9"), MORNING, func="app.jobs:send", mapping={"app.jobs:send": "shop:remind"})
    assert planned.verdict == CONVERT
    assert codes(planned) == {"mapped_task"}


def test_arguments_that_no_longer_fit_are_for_a_person() -> None:
    planned = made(cron(hour="9"), MORNING, func="shop:Shop.count", args=(1, 2, 3))
    assert planned.verdict == REVIEW
    assert "invalid_arguments" in codes(planned)


def test_an_unreadable_argument_is_named_wherever_it_is() -> None:
    planned = made(cron(hour="9"), MORNING, kwargs={"order": [{"money": Unreadable("shop:Money")}]})
    assert (planned.verdict, planned.record["schedule"]) == (REVIEW, None)
    assert "kwargs['order'][0]['money'] needs shop:Money" in planned.record["reasons"][0]


def test_arguments_keep_their_types_and_the_body_says_that_it_cannot() -> None:
    planned = made(cron(hour="9"), MORNING, args=(MORNING, {1, 2}, b"x"))
    assert planned.verdict == CONVERT
    assert planned.definition is not None
    assert planned.definition.args == (MORNING, {1, 2}, b"x")
    assert codes(planned) == {"typed_arguments"}


@pytest.mark.parametrize(
    ("said", "verdict", "code"),
    [
        ({"executor": "processpool"}, REVIEW, {"other_executor"}),
        ({"executor": "threadpool"}, CONVERT, set()),
        ({"executor": "reports"}, REVIEW, {"unknown_executor"}),
        ({"executor": "reports", "executors": {"reports": "threadpool"}}, CONVERT, {"mapped_executor"}),
        ({"executor": "reports", "executors": {"reports": "processpool"}}, REVIEW, {"other_executor"}),
        ({"executor": "processpool", "executors": {"processpool": "auto"}}, CONVERT, {"mapped_executor"}),
    ],
)
def test_a_job_runs_where_it_ran_or_a_person_looks(said: dict[str, Any], verdict: str, code: set[str]) -> None:
    planned = made(cron(hour="9"), MORNING, **said)
    assert (planned.verdict, codes(planned)) == (verdict, code)


def test_a_trigger_of_the_application_is_for_a_person_with_the_one_time_that_is_known() -> None:
    planned = made(V3Unknown("shop:OddMinutes"), MORNING)
    assert (planned.verdict, planned.record["schedule"]) == (REVIEW, None)
    assert {each["cause"] for each in planned.record["differences"]} <= {UNSUPPORTED}


@pytest.mark.parametrize("bad", ["", ".", "a\nb", "x" * 501])
def test_an_id_that_cannot_be_stored_is_for_a_person(bad: str) -> None:
    planned = made(cron(hour="9"), MORNING, id=bad)
    assert planned.verdict == REVIEW
    assert "invalid_schedule_id" in codes(planned)


def test_what_a_task_declares_can_contradict_a_job_and_is_said() -> None:
    registry = TaskRegistry()
    registry.add(remind, name="again", options=TaskOptions(retry=Retry(max_attempts=5, backoff=3000, max_backoff=9000)))
    known = Context(registry, Tasks(registry), now=NOW)
    found = job(interval("2026-11-25T10:00", minutes=5), MORNING)
    planned = plan(Reading(V3Row("a", None, b""), found), known)
    assert planned.verdict == REVIEW
    assert "invalid_options" in codes(planned)


def test_arguments_that_are_too_large_are_for_a_person() -> None:
    known = replace(context(), max_arguments_bytes=100)
    found = job(cron(hour="9"), MORNING, args=("x" * 200,))
    assert plan(Reading(V3Row("a", None, b""), found), known).verdict == REVIEW


def test_a_name_that_json_cannot_hold_is_left_out() -> None:
    assert "metadata" not in schedule(made(cron(hour="9"), MORNING, name="a\0b"))


def test_what_the_reading_found_counts() -> None:
    said = Finding("another_id", "somebody has changed it.", "review")
    planned = made(cron(hour="9"), MORNING, (said,))
    assert planned.verdict == REVIEW
    assert planned.definition is None
    assert planned.record["reasons"] == ["another_id: somebody has changed it."]


def test_no_trigger_takes_long() -> None:
    slow: list[V3Trigger] = [
        cron(month="2", day="29", day_of_week="0", week="9", hour="9"),
        cron(month="2", day="30"),
        cron(year="9999", hour="9"),
        cron(second="*", minute="*", hour="*", end_date="2026-11-25T10:00:01"),
        interval("1970-01-01T00:00", milliseconds=1),
    ]
    for trigger in slow:
        for first in (None, MORNING):
            begun = time.process_time()
            made(trigger, first)
            assert time.process_time() - begun < 3, trigger


def test_a_calendar_interval_that_is_off_its_time_goes_on_as_v3_does() -> None:
    for stored in stored_rows("3.11.3"):
        if stored.asked["trigger"]["type"] == "CalendarIntervalTrigger" and "stored" in stored.fires:
            planned = plan(read(stored.row), context())
            assert unlike(planned, *stored.fires["stored"]) == set(), stored.name
            assert planned.definition is not None
            assert isinstance(planned.definition.trigger, CalendarInterval)


def test_a_zone_that_is_not_known_here_is_for_a_person() -> None:
    somewhere = replace(zone(), name="Europe/Nowhere")
    planned = made(replace(cron(hour="9"), timezone=somewhere), MORNING)
    assert planned.verdict == REVIEW
    assert planned.record["schedule"] is None


def test_a_resume_passes_over_what_v3_would_begin_with() -> None:
    long_ago = utc("2026-05-05T05:05")
    planned = made(V3Date(long_ago), None)
    assert planned.record["fire_times"] == []
    assert planned.record["v3_fire_times"] == [long_ago.isoformat()]
    assert [each["cause"] for each in planned.record["differences"]] == ["deliberate_fix"]


def test_a_paused_jobs_fires_are_those_after_a_resume_now() -> None:
    planned = made(interval("2026-11-01T00:10", hours=1), None, fires=2)
    assert planned.record["fire_times"] == planned.record["v3_fire_times"]
    assert planned.record["fire_times"] == ["2026-11-25T10:10:00+00:00", "2026-11-25T11:10:00+00:00"]


def test_where_v3_hangs_nothing_after_it_counts_as_compared() -> None:
    planned = made(V3And((cron(hour="2"), cron(day_of_week="6", hour="2"))), utc("2026-11-29T01:00"), fires=5)
    assert planned.verdict == REVIEW
    assert len(planned.record["v3_fire_times"]) == 1
    assert len(planned.record["fire_times"]) == 5
    assert any(each.startswith("compared: 1 of 5 fires") for each in planned.record["reasons"])


def test_a_fault_in_planning_one_row_is_that_rows_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_args: Any, **_options: Any) -> None:
        raise ZeroDivisionError("oops")

    monkeypatch.setattr("duetime.v3.planning.v3_walk", fail)
    planned = made(cron(hour="9"), MORNING, id="one")
    assert (planned.record["id"], planned.verdict, planned.definition) == ("one", REVIEW, None)
    assert codes(planned) == {"not_planned"}
