"""What becomes of the fires of a claimed schedule: a pure function, so every rule is shown without a database."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4
from zoneinfo import ZoneInfo

import pytest
from apscheduler import CoalescePolicy, Schedule
from apscheduler.abc import Trigger
from apscheduler.triggers.combining import OrTrigger
from apscheduler.triggers.date import DateTrigger
from apscheduler.triggers.interval import IntervalTrigger
from hypothesis import given
from hypothesis import strategies as st

from duetime.options import CatchUp, Overlap, TaskOptions
from duetime.records import FireState
from duetime.store import planning
from duetime.store.planning import MAX_FIRES, MAX_REPEATS, Plan, PlannedFire, PlannedTrigger, TooFarBehind, plan
from duetime.triggers import Cron

from .parts import a_schedule

NOW = datetime(2026, 3, 28, 12, 0, tzinfo=UTC)
SECOND = timedelta(seconds=1)


class Times(Trigger):
    """Yields what it is given, raises what is an exception, and then yields None."""

    def __init__(self, *times: object) -> None:
        self.times = list(times)

    def next(self) -> Any:
        if not self.times:
            return None
        following = self.times.pop(0)
        if isinstance(following, Exception):
            raise following
        return following

    def __getstate__(self) -> object:
        return self.times

    def __setstate__(self, state: object) -> None:
        raise NotImplementedError


def due(trigger: Trigger, **options: Any) -> Schedule:
    """Return a schedule at the first fire time of its trigger."""
    return a_schedule("s", trigger, **options)


def planned(schedule: Schedule, now: datetime = NOW, **options: Any) -> Plan:
    return plan(schedule, uuid4(), now, **options)


def by_state(fires: list[PlannedFire]) -> dict[FireState, list[datetime]]:
    found: dict[FireState, list[datetime]] = {}
    for fire in fires:
        found.setdefault(fire.state, []).append(fire.fire_time)
    return found


def seconds(*offsets: float) -> list[datetime]:
    """Return instants relative to now, in seconds."""
    return [NOW + timedelta(seconds=offset) for offset in offsets]


# -- the usual case --------------------------------------------------------------------------------------------------


def test_a_single_due_fire_becomes_a_job_and_the_schedule_goes_on() -> None:
    made = planned(due(Times(*seconds(-1, 9))))
    [fire] = made.fires
    assert (fire.fire_time, fire.run_time, fire.state) == (*seconds(-1, -1), FireState.pending)
    assert fire.job_id is not None
    assert fire.checks_overlap
    assert (made.last_fire_time, made.next_fire_time, made.broken_reason) == (*seconds(-1, 9), None)


def test_a_fire_due_at_this_very_instant_is_due() -> None:
    made = planned(due(Times(*seconds(-1, 0, 1))))
    assert (made.last_fire_time, made.next_fire_time) == tuple(seconds(0, 1))


def test_the_last_fire_of_a_trigger_leaves_no_next_one() -> None:
    made = planned(due(DateTrigger(NOW - SECOND)))
    assert [fire.state for fire in made.fires] == [FireState.pending]
    assert made.next_fire_time is None
    assert made.broken_reason is None


def test_nothing_comes_of_a_schedule_that_has_no_fire_time() -> None:
    made = planned(due(Times()))
    assert (made.fires, made.next_fire_time, made.broken_reason) == ([], None, None)


# -- coalescing ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("policy", "runs"), [(CoalescePolicy.latest, -1), (CoalescePolicy.earliest, -3)])
def test_of_several_due_fires_the_policy_picks_the_one_that_runs(policy: CoalescePolicy, runs: int) -> None:
    made = planned(due(Times(*seconds(-3, -2, -1, 5)), coalesce=policy))
    others = sorted({-3, -2, -1} - {runs})
    assert by_state(made.fires) == {FireState.pending: seconds(runs), FireState.coalesced: seconds(*others)}
    [chosen] = seconds(runs)
    for fire in made.fires:
        if fire.state is FireState.coalesced:
            assert fire.reason == f"3 fires were due at once; the one at {chosen.isoformat()} stands for all"
            assert fire.job_id is None
    assert (made.last_fire_time, made.next_fire_time) == tuple(seconds(-1, 5))


def test_with_all_each_due_fire_runs_whether_or_not_their_jobs_overlap() -> None:
    made = planned(due(Times(*seconds(-3, -2, -1, 5)), coalesce=CoalescePolicy.all))
    assert by_state(made.fires) == {FireState.pending: seconds(-3, -2, -1)}
    assert len({fire.job_id for fire in made.fires}) == 3
    assert not any(fire.checks_overlap for fire in made.fires)


def test_fires_stay_in_ascending_order() -> None:
    for policy in CoalescePolicy:
        times = [fire.fire_time for fire in planned(due(Times(*seconds(-3, -2, -1)), coalesce=policy)).fires]
        assert times == seconds(-3, -2, -1)


# -- grace -----------------------------------------------------------------------------------------------------------


def test_a_fire_beyond_its_grace_time_is_missed_with_its_lateness() -> None:
    made = planned(due(Times(*seconds(-5)), misfire_grace_time=2 * SECOND))
    [fire] = made.fires
    assert fire.state is FireState.missed
    assert fire.reason == "5.000 s late, beyond its grace time of 2 s"
    assert fire.job_id is None


def test_a_fire_within_its_grace_time_runs_and_carries_its_start_deadline() -> None:
    made = planned(due(Times(*seconds(-2)), misfire_grace_time=2 * SECOND))
    [fire] = made.fires
    assert fire.state is FireState.pending
    assert fire.start_deadline == NOW


def test_each_of_all_fires_has_a_grace_time_of_its_own() -> None:
    made = planned(due(Times(*seconds(-3, -2, -1, 5)), coalesce=CoalescePolicy.all, misfire_grace_time=1.5 * SECOND))
    assert by_state(made.fires) == {FireState.missed: seconds(-3, -2), FireState.pending: seconds(-1)}


def test_the_earliest_may_be_missed_for_all_while_the_latest_would_have_run() -> None:
    options: dict[str, Any] = {"misfire_grace_time": 1.5 * SECOND}
    earliest = planned(due(Times(*seconds(-3, -1)), coalesce=CoalescePolicy.earliest, **options))
    assert by_state(earliest.fires) == {FireState.missed: seconds(-3), FireState.coalesced: seconds(-1)}
    latest = planned(due(Times(*seconds(-3, -1)), coalesce=CoalescePolicy.latest, **options))
    assert by_state(latest.fires) == {FireState.coalesced: seconds(-3), FireState.pending: seconds(-1)}


# -- catch-up ---------------------------------------------------------------------------------------------------------


def catching_up(**options: Any) -> dict[str, Any]:
    return TaskOptions(**options).to_metadata()


def test_catch_up_all_runs_each_fire_in_turn_whatever_the_coalesce_and_overlap_policies_are() -> None:
    for coalesce in CoalescePolicy:
        metadata = catching_up(catch_up=CatchUp.all, overlap=Overlap.skip)
        made = planned(due(Times(*seconds(-3, -2, -1, 5)), coalesce=coalesce, metadata=metadata))
        assert by_state(made.fires) == {FireState.pending: seconds(-3, -2, -1)}
        assert {fire.overlap for fire in made.fires} == {Overlap.buffer_all}
        assert not any(fire.checks_overlap for fire in made.fires)


def test_catch_up_all_may_be_given_another_overlap_policy() -> None:
    metadata = catching_up(catch_up=CatchUp.all, catch_up_overlap=Overlap.allow)
    made = planned(due(Times(*seconds(-3, -2)), metadata=metadata))
    assert [fire.overlap for fire in made.fires] == [Overlap.allow] * 2


def test_a_lone_fire_in_time_has_the_overlap_policy_of_its_schedule_and_a_late_one_that_of_the_catch_up() -> None:
    metadata = catching_up(catch_up=CatchUp.all)
    [in_time] = planned(due(Times(*seconds(-1)), metadata=metadata)).fires
    assert (in_time.overlap, in_time.checks_overlap) == (None, True)
    [late] = planned(due(Times(*seconds(-60)), metadata=metadata)).fires
    assert (late.overlap, late.checks_overlap) == (Overlap.buffer_all, False)


def test_catch_up_latest_runs_the_last_one_whatever_the_coalesce_policy_is() -> None:
    for coalesce in CoalescePolicy:
        metadata = catching_up(catch_up=CatchUp.latest)
        made = planned(due(Times(*seconds(-30, -20, -10)), coalesce=coalesce, metadata=metadata))
        assert by_state(made.fires) == {FireState.coalesced: seconds(-30, -20), FireState.pending: seconds(-10)}


def test_catch_up_none_misses_what_fell_due_in_a_downtime_and_fires_what_is_due_now() -> None:
    made = planned(due(Times(*seconds(-60, -30, -1, 29)), metadata=catching_up(catch_up=CatchUp.none)))
    assert by_state(made.fires) == {FireState.missed: seconds(-60, -30), FireState.pending: seconds(-1)}
    assert made.fires[0].reason == (
        "it fell due 60.000 s before a node came to it, and nothing is made up for (catch_up=none)"
    )
    assert (made.last_fire_time, made.next_fire_time) == tuple(seconds(-1, 29))


def test_a_downtime_that_leaves_nothing_to_run_moves_the_schedule_on() -> None:
    made = planned(due(Times(*seconds(-60, -30, 29)), metadata=catching_up(catch_up=CatchUp.none)))
    assert by_state(made.fires) == {FireState.missed: seconds(-60, -30)}
    assert (made.last_fire_time, made.next_fire_time) == tuple(seconds(-30, 29))


@pytest.mark.parametrize(
    ("catch_up", "runs", "coalesced"),
    [(CatchUp.all, (-50, -10), ()), (CatchUp.latest, (-10,), (-50,)), (None, (-10,), (-50,))],
)
def test_what_lies_outside_the_window_is_missed_and_the_policy_decides_about_the_rest(
    catch_up: CatchUp | None, runs: tuple[int, ...], coalesced: tuple[int, ...]
) -> None:
    metadata = catching_up(catch_up=catch_up, catch_up_window=60 * SECOND)
    made = planned(due(Times(*seconds(-90, -61, -50, -10, 30)), metadata=metadata))
    found = by_state(made.fires)
    assert found[FireState.missed] == seconds(-90, -61)
    assert found[FireState.pending] == seconds(*runs)
    assert found.get(FireState.coalesced, []) == seconds(*coalesced)
    assert made.fires[1].reason == (
        "it fell due 61.000 s before a node came to it, outside its catch-up window of 60 s"
    )


def test_a_long_downtime_writes_a_thousand_rows_and_counts_the_others() -> None:
    trigger = IntervalTrigger(seconds=1, start_time=NOW - timedelta(days=1))
    made = planned(due(trigger, metadata=catching_up(catch_up=CatchUp.all, catch_up_window=60 * SECOND)))
    found = by_state(made.fires)
    assert len(found[FireState.missed]) == MAX_FIRES
    assert len(found[FireState.pending]) == 61
    assert made.fires[0].reason is not None
    assert made.fires[0].reason.endswith(f"; {86_400 - 60 - MAX_FIRES} fires before it were missed without a row each")
    assert made.fires[1].reason is not None
    assert "without a row" not in made.fires[1].reason


def test_a_grace_time_counts_within_the_window() -> None:
    metadata = catching_up(catch_up=CatchUp.all, catch_up_window=60 * SECOND)
    made = planned(due(Times(*seconds(-90, -50, -10)), misfire_grace_time=20 * SECOND, metadata=metadata))
    assert by_state(made.fires) == {FireState.missed: seconds(-90, -50), FireState.pending: seconds(-10)}
    assert made.fires[1].reason == "50.000 s late, beyond its grace time of 20 s"


def test_catch_up_options_without_a_meaning_are_an_error_of_this_schedule() -> None:
    with pytest.raises(ValueError, match="never"):
        planned(due(Times(*seconds(-1)), metadata={"duetime.catch_up": "never"}))


# -- jitter ----------------------------------------------------------------------------------------------------------


def test_the_jitter_of_a_fire_is_the_same_whoever_plans_it() -> None:
    schedules = [due(Times(*seconds(-1, 600)), max_jitter=60 * SECOND) for _ in range(2)]
    first, second = (planned(schedule).fires[0].run_time for schedule in schedules)
    assert first == second
    assert seconds(-1)[0] <= first <= seconds(59)[0]


def test_jitter_is_spread_over_schedules_and_fires() -> None:
    by_schedule = {
        planned(a_schedule(f"s{number}", Times(*seconds(-1)), max_jitter=60 * SECOND)).fires[0].run_time
        for number in range(20)
    }
    fires = planned(due(Times(*seconds(-30, -20, -10)), max_jitter=9 * SECOND, coalesce=CoalescePolicy.all)).fires
    assert len(by_schedule) == 20
    assert len({fire.run_time - fire.fire_time for fire in fires}) == 3


def test_the_grace_time_begins_after_the_jitter() -> None:
    [fire] = planned(due(Times(*seconds(-1)), max_jitter=30 * SECOND, misfire_grace_time=SECOND)).fires
    assert fire.start_deadline == fire.run_time + SECOND


@given(
    gap=st.timedeltas(min_value=timedelta(microseconds=1), max_value=timedelta(days=1)),
    jitter=st.timedeltas(min_value=timedelta(0), max_value=timedelta(days=400)),
    name=st.text(min_size=1, max_size=20),
)
def test_jitter_never_reaches_the_fire_after(gap: timedelta, jitter: timedelta, name: str) -> None:
    schedule = a_schedule(name, Times(NOW - gap, NOW, NOW + gap), max_jitter=jitter, coalesce=CoalescePolicy.all)
    for fire in planned(schedule).fires:
        assert fire.fire_time <= fire.run_time <= fire.fire_time + jitter
        assert fire.run_time < fire.fire_time + gap


# -- triggers that misbehave -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (ValueError("no such day"), "its trigger raised ValueError: no such day"),
        (datetime(2026, 3, 28, 12, 0, 1), "instead of an aware datetime"),  # noqa: DTZ001 - that is the mistake
        ("tomorrow", "its trigger yielded 'tomorrow' instead of an aware datetime"),
        (0, "its trigger yielded 0 instead of an aware datetime"),
    ],
    ids=["raises", "naive", "text", "number"],
)
def test_a_broken_trigger_ends_its_schedule_with_a_reason_and_the_due_fire_still_runs(
    answer: object, reason: str
) -> None:
    made = planned(due(Times(NOW - SECOND, answer)))
    assert made.broken_reason is not None
    assert re.search(re.escape(reason), made.broken_reason)
    assert by_state(made.fires) == {FireState.pending: seconds(-1)}
    assert made.next_fire_time is None


@pytest.mark.parametrize("back", [SECOND, timedelta(0)], ids=["goes backwards", "stands still"])
def test_a_trigger_that_does_not_advance_ends_its_schedule_with_a_reason(back: timedelta) -> None:
    times = [NOW - 2 * SECOND, NOW - SECOND, *[NOW - SECOND - back] * (MAX_REPEATS + 1)]
    made = planned(due(Times(*times), coalesce=CoalescePolicy.all))
    assert made.broken_reason is not None
    assert "after 2026-03-28T11:59:59+00:00" in made.broken_reason
    assert by_state(made.fires) == {FireState.pending: seconds(-2, -1)}
    assert made.next_fire_time is None


def test_an_instant_that_a_combined_trigger_gives_twice_is_one_fire() -> None:
    """``OrTrigger`` compares its members' times by the clock on the wall, which shows 02:50 twice in that night."""
    start = datetime(2027, 10, 31, tzinfo=UTC)
    twice = datetime(2027, 10, 31, 2, 50, tzinfo=ZoneInfo("Europe/Berlin"))
    members = [Cron("50 0 * * *", start_time=start), DateTrigger(twice)]
    again = OrTrigger([Cron("50 0 * * *", start_time=start), DateTrigger(twice)])
    assert [each and each.astimezone(UTC) for each in (again.next(), again.next())] == [twice.astimezone(UTC)] * 2
    made = planned(due(OrTrigger(members)), twice.astimezone(UTC))
    assert made.broken_reason is None
    assert [fire.fire_time for fire in made.fires] == [twice.astimezone(UTC)]
    assert made.next_fire_time == twice.astimezone(UTC) + timedelta(days=1)


def test_a_trigger_that_yields_the_past_for_ever_ends_its_schedule() -> None:
    past = (NOW - timedelta(days=2) + step * SECOND for step in range(5000))
    made = planned(due(Times(NOW, *past)))
    assert made.broken_reason is not None
    assert by_state(made.fires) == {FireState.pending: seconds(0)}


def test_fires_ahead_are_planned_each_with_its_time_and_the_trigger_is_stored_as_it_stood_before_them() -> None:
    kept: list[int] = []
    trigger = Times(NOW - SECOND, *(NOW + step * SECOND for step in range(1, 9)))

    def freeze(frozen: Trigger) -> bytes:
        assert frozen is trigger
        kept.append(len(kept))
        return b"frozen"

    made = plan(due(trigger), uuid4(), NOW, freeze=freeze, look_ahead=3 * SECOND)
    assert by_state(made.fires) == {FireState.pending: seconds(-1, 1, 2, 3)}
    assert [fire.is_ahead for fire in made.fires] == [False, True, True, True]
    assert made.next_fire_time == NOW + 4 * SECOND
    assert (made.stored_trigger, kept) == (b"frozen", [0])


def test_times_that_were_planned_ahead_already_are_passed_over() -> None:
    trigger = Times(*(NOW + step * SECOND for step in range(-3, 3)))
    made = planned(due(trigger, next_fire_time=NOW))
    assert by_state(made.fires) == {FireState.pending: seconds(0)}
    assert made.next_fire_time == NOW + SECOND


def test_the_hour_that_comes_twice_is_in_order() -> None:
    berlin = ZoneInfo("Europe/Berlin")
    now = datetime(2026, 10, 25, 2, 0, tzinfo=UTC)
    before = datetime(2026, 10, 25, 1, 30, tzinfo=berlin)
    twice = [datetime(2026, 10, 25, 2, 30, tzinfo=berlin, fold=fold) for fold in (0, 1)]
    later = datetime(2026, 10, 26, 2, 30, tzinfo=berlin)
    made = planned(due(Times(before, *twice, later), coalesce=CoalescePolicy.all), now)
    assert made.broken_reason is None
    assert [fire.fire_time.astimezone(UTC).hour for fire in made.fires] == [23, 0, 1]


def test_a_trigger_that_can_never_be_left_behind_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "MAX_STEPS", 5000)
    crawling = IntervalTrigger(microseconds=1, start_time=NOW - timedelta(days=1))
    made = planned(due(crawling))
    assert len(made.fires) <= MAX_FIRES
    assert made.next_fire_time == NOW - timedelta(days=1) + timedelta(microseconds=5000)
    again = plan(due(crawling, next_fire_time=made.next_fire_time), uuid4(), NOW)
    assert again.broken_reason is None, "the trigger stands where the first plan has ended"


# -- far behind ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", [CoalescePolicy.latest, CoalescePolicy.earliest])
def test_a_month_behind_writes_no_more_rows_than_a_release_may(policy: CoalescePolicy) -> None:
    behind = 30 * 24 * 60  # minutes
    start = NOW - timedelta(minutes=behind)
    made = planned(due(IntervalTrigger(minutes=1, start_time=start), coalesce=policy))
    states = by_state(made.fires)
    [ran] = states[FireState.pending]
    assert ran == (NOW if policy is CoalescePolicy.latest else start)
    assert len(made.fires) == MAX_FIRES
    [fire] = [fire for fire in made.fires if fire.state is FireState.pending]
    uncounted = behind + 1 - MAX_FIRES
    assert fire.reason == f"{uncounted} more fires were coalesced into it without a row each"
    assert made.next_fire_time == NOW + timedelta(minutes=1)


def test_with_all_what_is_more_than_a_release_may_write_stays_due() -> None:
    start = NOW - timedelta(seconds=2499)
    schedule = due(IntervalTrigger(seconds=1, start_time=start), coalesce=CoalescePolicy.all)
    seen: list[datetime] = []
    for expected in (MAX_FIRES, MAX_FIRES, 500):
        made = planned(schedule)
        assert len(made.fires) == expected
        seen += [fire.fire_time for fire in made.fires]
        schedule.next_fire_time = made.next_fire_time
    assert seen == [start + number * SECOND for number in range(2500)]
    assert schedule.next_fire_time == NOW + SECOND


def test_a_plan_that_is_too_long_for_the_event_loop_says_so() -> None:
    schedule = due(IntervalTrigger(seconds=1, start_time=NOW - timedelta(seconds=300)))
    with pytest.raises(TooFarBehind):
        planned(schedule, max_steps=200)
    fresh = due(IntervalTrigger(seconds=1, start_time=NOW - timedelta(seconds=100)))
    assert len(planned(fresh, max_steps=200).fires) == 101


# -- every fire has an answer ----------------------------------------------------------------------------------------


@given(
    gaps=st.lists(st.integers(min_value=1, max_value=3600), min_size=1, max_size=60),
    behind=st.integers(min_value=0, max_value=7200),
    policy=st.sampled_from(CoalescePolicy),
    grace=st.none() | st.timedeltas(min_value=timedelta(0), max_value=timedelta(hours=2)),
    jitter=st.none() | st.timedeltas(min_value=timedelta(0), max_value=timedelta(hours=2)),
    end=st.none() | st.just(RuntimeError("broken")),
    most=st.integers(min_value=2, max_value=20),
    steps=st.integers(min_value=1, max_value=80),
)
def test_every_due_fire_is_accounted_for_exactly_once(
    gaps: list[int],
    behind: int,
    policy: CoalescePolicy,
    grace: timedelta | None,
    jitter: timedelta | None,
    end: Exception | None,
    most: int,
    steps: int,
) -> None:
    times = [NOW - timedelta(seconds=behind)]
    for gap in gaps:
        times.append(times[-1] + timedelta(seconds=gap))
    schedule = due(
        Times(*times, end) if end else Times(*times), coalesce=policy, misfire_grace_time=grace, max_jitter=jitter
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(planning, "MAX_FIRES", most)
        patch.setattr(planning, "MAX_STEPS", steps)
        answered: list[datetime] = []
        uncounted = 0
        while schedule.next_fire_time is not None and schedule.next_fire_time <= NOW:
            made = planned(schedule)
            assert made.fires, "a claim of a due schedule answers at least one fire"
            assert len(made.fires) <= most
            assert made.last_fire_time == made.fires[-1].fire_time
            answered += [fire.fire_time for fire in made.fires]
            reasons = [fire.reason or "" for fire in made.fires]
            uncounted += sum(int(count) for reason in reasons for count in re.findall(r"(\d+) more fires", reason))
            schedule.next_fire_time = made.next_fire_time
    were_due = [time for time in times if time <= NOW]
    assert len(answered) == len(set(answered))
    assert set(answered) <= set(were_due)
    assert len(answered) + uncounted == len(were_due)
    expected = [time for time in times if time > NOW]
    assert schedule.next_fire_time == (expected[0] if expected else None)


# -- what the loop gets ----------------------------------------------------------------------------------------------


def test_the_loop_gets_a_trigger_that_has_nothing_left() -> None:
    real = IntervalTrigger(seconds=1, start_time=NOW)
    stand_in = PlannedTrigger(real)
    assert stand_in.next() is None
    assert repr(stand_in) == repr(real)
    assert real.next() == NOW, "the real one has not moved"
