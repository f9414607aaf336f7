"""v3's calls on Duetime's scheduler, compared with what real v3 does with the same calls."""

from __future__ import annotations

import io
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest
from apscheduler import AsyncScheduler, JobOutcome, JobReleased, RunState
from apscheduler.triggers.date import DateTrigger as StockDateTrigger

from duetime import Duetime, DuetimeScheduler, Settings, TaskRegistry
from duetime.errors import InvalidArguments, InvalidSettings, NoEquivalent, TriggerNeverFires, UnknownTask
from duetime.settings import DatabaseUrl
from duetime.v3 import compat
from duetime.v3.compat import Job

from ..waiting import eventually
from .facts import CALLS, FACTS

ran: list[tuple[Any, ...]] = []


async def work(*args: Any, **kwargs: Any) -> str:
    """Take note of the call."""
    ran.append((*args, *kwargs.values()))
    return "done"


async def fail() -> None:
    """Fail."""
    raise ValueError("no luck")


def one(number: int) -> None:
    """Take one argument."""


@pytest.fixture
async def duetime(database: DatabaseUrl) -> AsyncIterator[Duetime]:
    ran.clear()
    async with Duetime(Settings(database_url=database.text), registry=TaskRegistry()) as running:
        compat.configure(running.scheduler, timezone="Europe/Berlin")
        await eventually(lambda: running.scheduler.state is RunState.started)
        yield running


@pytest.fixture
def scheduler(duetime: Duetime) -> DuetimeScheduler:
    return duetime.scheduler


async def times(scheduler: DuetimeScheduler, job: Job | None, count: int = 3) -> list[str]:
    """Return when the stored job is due, and what its stored trigger says after that."""
    assert job is not None
    [stored] = await scheduler.store.get_schedules({job.id})
    if stored.paused or stored.next_fire_time is None:
        return []
    found = [stored.next_fire_time]
    while len(found) < count and (moment := stored.trigger.next()) is not None:
        if moment > found[-1]:
            found.append(moment)
    return [moment.astimezone(UTC).isoformat() for moment in found]


def raised(name: str) -> str:
    """Say what v3 raises; a test that has nothing to compare with is none."""
    assert CALLS[name], name
    return str(CALLS[name])


AHEAD = "2040-06-01 08:00:00"
HOURLY: dict[str, Any] = {"trigger": "interval", "hours": 1, "start_date": AHEAD}
OWN = datetime(2040, 6, 1, 8, 20)  # noqa: DTZ001 - of the scheduler's zone


# -- adding -----------------------------------------------------------------------------------------------------------


async def test_a_job_that_says_nothing_has_the_defaults_of_v3(scheduler: DuetimeScheduler) -> None:
    job = await compat.add_job(scheduler, work, "interval", minutes=5)
    grace, coalesce, instances, _executor, name = CALLS["defaults"]
    assert (job.misfire_grace_time, job.coalesce, job.max_instances, job.name) == (grace, coalesce, instances, name)
    [stored] = await scheduler.store.get_schedules({job.id})
    assert stored.metadata["duetime.overlap"] == "skip"
    assert stored.misfire_grace_time == timedelta(seconds=1)


async def test_an_interval_runs_after_one_interval_for_the_first_time(scheduler: DuetimeScheduler) -> None:
    before = datetime.now(UTC)
    job = await compat.add_job(scheduler, work, "interval", minutes=5)
    assert job.next_run_time is not None
    assert timedelta(minutes=5) <= job.next_run_time - before < timedelta(minutes=6)


async def test_without_a_trigger_a_job_runs_at_once_and_is_gone(scheduler: DuetimeScheduler) -> None:
    job = await compat.add_job(scheduler, work, args=["now"], kwargs={"more": 1})
    await eventually(lambda: ran == [("now", 1)])
    assert await compat.get_job(scheduler, job.id) is None


async def test_a_date_long_past_is_missed_as_v3s_grace_time_has_it(duetime: Duetime) -> None:
    await compat.add_job(duetime.scheduler, work, "date", run_date="2020-01-01 08:00:00", id="past")
    await compat.add_job(
        duetime.scheduler, work, "date", run_date="2020-01-01 08:00:00", misfire_grace_time=None, args=["late"]
    )
    await eventually(lambda: ran == [("late",)])
    explained = await duetime.service.explain("past", datetime(2020, 1, 1, 7, tzinfo=UTC))
    assert explained.answer == "missed"


async def test_times_without_an_offset_are_of_the_configured_zone(scheduler: DuetimeScheduler) -> None:
    job = await compat.add_job(scheduler, work, "date", run_date="2040-06-01 08:00:00")
    assert await times(scheduler, job) == ["2040-06-01T06:00:00+00:00"]


async def test_an_id_that_is_taken_is_a_conflict_unless_it_is_replaced(scheduler: DuetimeScheduler) -> None:
    await compat.add_job(scheduler, work, "interval", minutes=5, id="one")
    assert raised("a second of one id") == "ConflictingIdError"
    with pytest.raises(compat.ConflictingIdError):
        await compat.add_job(scheduler, work, "interval", minutes=6, id="one")
    assert CALLS["a second that replaces"] is None
    await compat.add_job(scheduler, work, "cron", hour=6, id="one", replace_existing=True)
    [job] = await compat.get_jobs(scheduler)
    assert job.next_run_time is not None
    assert job.next_run_time.hour == 6


async def test_the_id_of_a_job_that_has_run_for_the_last_time_is_free(scheduler: DuetimeScheduler) -> None:
    await compat.add_job(scheduler, work, id="once")
    await eventually(lambda: len(ran) == 1)
    job = await compat.add_job(scheduler, work, "date", run_date=AHEAD, id="once")
    assert await times(scheduler, job) == ["2040-06-01T06:00:00+00:00"]


@pytest.mark.parametrize(
    ("kind", "arguments"),
    [
        ("interval", {"hours": 1, "start_date": AHEAD}),
        ("cron", {"minute": 0}),
        ("date", {"run_date": AHEAD}),
        ("calendarinterval", {"days": 2, "hour": 9, "start_date": "2040-06-01"}),
    ],
)
async def test_a_first_run_of_its_own_is_gone_on_from_as_in_v3(
    scheduler: DuetimeScheduler, kind: str, arguments: dict[str, Any]
) -> None:
    job = await compat.add_job(scheduler, work, kind, next_run_time=OWN, **arguments)
    assert await times(scheduler, job) == CALLS[f"a first run of its own: {kind}"]


async def test_a_combined_trigger_takes_a_first_run_of_its_own_too(scheduler: DuetimeScheduler) -> None:
    either = compat.OrTrigger(
        [compat.CronTrigger(minute=0, timezone="UTC"), compat.CronTrigger(minute=30, timezone="UTC")]
    )
    job = await compat.add_job(scheduler, work, either, next_run_time=OWN)
    assert await times(scheduler, job) == [
        "2040-06-01T06:20:00+00:00",
        "2040-06-01T06:30:00+00:00",
        "2040-06-01T07:00:00+00:00",
    ]


async def test_a_first_run_that_is_due_really_runs_and_the_interval_goes_on_from_it(
    scheduler: DuetimeScheduler,
) -> None:
    at = datetime.now(UTC)
    job = await compat.add_job(scheduler, work, "interval", hours=1, next_run_time=at)
    await eventually(lambda: len(ran) == 1)

    async def moved() -> bool:
        found = await compat.get_job(scheduler, job.id)
        return found is not None and found.next_run_time == at + timedelta(hours=1)

    await eventually(moved)


async def test_a_job_may_be_added_paused_and_resumed(scheduler: DuetimeScheduler) -> None:
    job = await compat.add_job(scheduler, work, next_run_time=None, **HOURLY)
    assert job.next_run_time is None
    assert await times(scheduler, job) == CALLS["added paused"]
    assert await times(scheduler, await job.resume()) == CALLS["resumed"]


async def test_a_trigger_that_never_fires_is_refused(scheduler: DuetimeScheduler) -> None:
    with pytest.raises(TriggerNeverFires):
        await compat.add_job(scheduler, work, "cron", hour=6, end_date="2020-01-01 00:00:00")
    assert await compat.get_jobs(scheduler) == []


async def test_a_trigger_of_apscheduler_4_is_taken_as_it_is(scheduler: DuetimeScheduler) -> None:
    job = await compat.add_job(scheduler, work, StockDateTrigger(datetime(2040, 1, 1, tzinfo=UTC)))
    assert await times(scheduler, job) == ["2040-01-01T00:00:00+00:00"]


async def test_more_than_one_instance_may_run_beside_the_others(scheduler: DuetimeScheduler) -> None:
    job = await compat.add_job(scheduler, work, max_instances=3, coalesce=False, misfire_grace_time=None, **HOURLY)
    found = await compat.get_job(scheduler, job.id)
    assert found is not None
    assert (found.max_instances, found.coalesce, found.misfire_grace_time) == (3, False, None)
    [stored] = await scheduler.store.get_schedules({job.id})
    assert stored.metadata["duetime.overlap"] == "allow"


async def test_arguments_that_do_not_fit_are_refused_when_the_job_is_added(scheduler: DuetimeScheduler) -> None:
    assert raised("arguments that do not fit") == "ValueError"
    with pytest.raises(InvalidArguments, match="one"):
        await compat.add_job(scheduler, one, "date", run_date=AHEAD, args=[1, 2])


async def test_a_text_names_a_registered_task_and_imports_nothing(scheduler: DuetimeScheduler) -> None:
    with pytest.raises(UnknownTask):
        await compat.add_job(scheduler, "os:system", "date", run_date=AHEAD, args=["true"])
    scheduler.registry.add(work)
    job = await compat.add_job(scheduler, f"{__name__}:work", "date", run_date=AHEAD)
    assert job.func_ref == f"{__name__}:work"


async def test_what_has_no_equivalent_is_refused_by_name(scheduler: DuetimeScheduler) -> None:
    with pytest.raises(NoEquivalent, match="'redis'"):
        await compat.add_job(scheduler, work, jobstore="redis", **HOURLY)
    with pytest.raises(NoEquivalent, match="'reports'"):
        await compat.add_job(scheduler, work, executor="reports", **HOURLY)
    compat.configure(scheduler, executors={"reports": "threadpool"})
    job = await compat.add_job(scheduler, work, executor="reports", **HOURLY)
    assert job.executor == "threadpool"


async def test_the_defaults_of_the_scheduler_are_those_that_are_configured(scheduler: DuetimeScheduler) -> None:
    given = {"misfire_grace_time": 60, "coalesce": False, "max_instances": 2}
    compat.configure(scheduler, job_defaults=given)
    job = await compat.add_job(scheduler, work, **HOURLY)
    assert (job.misfire_grace_time, job.coalesce, job.max_instances) == (60, False, 2)
    with pytest.raises(InvalidSettings, match="did you mean 'max_instances'"):
        compat.configure(scheduler, job_defaults={"max_instance": 2})


async def test_another_scheduler_than_duetimes_is_refused() -> None:
    with pytest.raises(InvalidArguments, match="Duetime's scheduler"):
        await compat.add_job(AsyncScheduler(), work)


# -- changing ---------------------------------------------------------------------------------------------------------


async def test_another_trigger_leaves_the_next_run_and_counts_from_it(scheduler: DuetimeScheduler) -> None:
    job = await compat.add_job(scheduler, work, **HOURLY)
    changed = await job.modify(trigger=compat.IntervalTrigger(minutes=10, timezone="Europe/Berlin"))
    assert await times(scheduler, changed) == CALLS["another trigger"]
    await changed.pause()
    changed = await changed.modify(next_run_time=OWN)
    assert await times(scheduler, changed) == CALLS["a next run while paused"]


async def test_a_new_schedule_begins_anew_and_ends_a_pause(scheduler: DuetimeScheduler) -> None:
    job = await (await compat.add_job(scheduler, work, **HOURLY)).pause()
    assert job.next_run_time is None
    job = await job.reschedule("cron", hour=6, year=2040)
    assert await times(scheduler, job) == CALLS["rescheduled while paused"]


async def test_what_a_job_does_can_be_changed(scheduler: DuetimeScheduler) -> None:
    job = await compat.add_job(scheduler, work, **HOURLY)
    changed = await job.modify(
        func=one, args=[5], name="five", misfire_grace_time=30, coalesce=False, max_instances=2, executor="threadpool"
    )
    found = await compat.get_job(scheduler, job.id)
    assert found is not None
    for each in (changed, found):
        assert (each.func_ref, each.args, each.name) == (f"{__name__}:one", (5,), "five")
        assert (each.misfire_grace_time, each.coalesce, each.max_instances) == (30, False, 2)
        assert each.executor == "threadpool"
    assert await times(scheduler, found) == CALLS["resumed"]


async def test_what_v3_does_not_change_is_refused(scheduler: DuetimeScheduler) -> None:
    job = await compat.add_job(scheduler, work, **HOURLY)
    refused: list[tuple[str, dict[str, Any]]] = [
        ("changing the id", {"id": "other"}),
        ("changing what is none", {"interval": 5}),
        ("a grace time of nothing", {"misfire_grace_time": 0}),
        ("no instances", {"max_instances": 0}),
    ]
    for fact, change in refused:
        assert raised(fact)
        with pytest.raises(InvalidArguments):
            await job.modify(**change)


async def test_a_job_that_is_not_there_is_a_lookup_error_or_none(scheduler: DuetimeScheduler) -> None:
    assert raised("pausing what is not there") == raised("removing what is not there") == "JobLookupError"
    for call in (compat.pause_job, compat.resume_job, compat.remove_job):
        with pytest.raises(compat.JobLookupError):
            await call(scheduler, "nothing")
    assert CALLS["getting what is not there"] is None
    assert await compat.get_job(scheduler, "nothing") is None


async def test_a_job_that_has_run_for_the_last_time_cannot_be_removed(scheduler: DuetimeScheduler) -> None:
    job = await compat.add_job(scheduler, work)
    await eventually(lambda: len(ran) == 1)
    with pytest.raises(compat.JobLookupError):
        await job.remove()


async def test_resuming_passes_over_what_fell_due(scheduler: DuetimeScheduler) -> None:
    job = await compat.add_job(scheduler, work, "interval", seconds=1, misfire_grace_time=None)
    due = job.next_run_time
    assert due is not None
    await job.pause()
    before = len(ran)
    await eventually(lambda: datetime.now(UTC) > due)
    resumed = await job.resume()
    assert resumed is not None
    assert resumed.next_run_time is not None
    assert resumed.next_run_time > datetime.now(UTC) - timedelta(seconds=0.5)
    assert len(ran) == before


async def test_a_paused_date_that_has_passed_is_due_when_it_is_resumed(scheduler: DuetimeScheduler) -> None:
    job = await compat.add_job(scheduler, work, "date", run_date="2020-01-01 08:00:00", misfire_grace_time=None)
    await eventually(lambda: len(ran) == 1)
    job = await compat.add_job(
        scheduler, work, "date", run_date="2020-01-01 09:00:00", misfire_grace_time=None, next_run_time=None
    )
    await job.resume()
    await eventually(lambda: len(ran) == 2)


async def test_jobs_are_listed_by_their_next_run_and_the_paused_ones_last(scheduler: DuetimeScheduler) -> None:
    await compat.add_job(scheduler, work, "date", run_date=AHEAD, id="later")
    await compat.add_job(scheduler, work, "date", run_date=AHEAD, id="paused", next_run_time=None)
    await compat.add_job(scheduler, work, "date", run_date="2040-01-01 08:00:00", id="sooner")
    assert [job.id for job in await compat.get_jobs(scheduler)] == CALLS["order"]
    printed = io.StringIO()
    await compat.print_jobs(scheduler, out=printed)
    assert printed.getvalue().splitlines()[1:] == [f"    {job}" for job in await compat.get_jobs(scheduler)]
    await compat.remove_all_jobs(scheduler)
    assert await compat.get_jobs(scheduler) == []


# -- jobs that are written down ---------------------------------------------------------------------------------------


async def test_a_decorated_function_is_a_job_once_the_scheduler_has_started(database: DatabaseUrl) -> None:
    duetime = Duetime(Settings(database_url=database.text), registry=TaskRegistry())
    compat.scheduled_job(duetime.scheduler, "cron", day_of_week="0-4", hour=9, timezone="UTC")(work)
    compat.scheduled_job(duetime.scheduler, "cron", day_of_week="monday", id="wrong")(work)
    for _start in range(2):
        async with duetime:
            await eventually(lambda: compat.get_job(duetime.scheduler, f"{__name__}:work"))
            assert [job.id for job in await compat.get_jobs(duetime.scheduler)] == [f"{__name__}:work"]


async def test_decorated_functions_can_be_added_in_the_lifespan_and_say_what_is_wrong(
    scheduler: DuetimeScheduler,
) -> None:
    compat.scheduled_job(scheduler, "cron", hour=9, id="good")(work)
    [job] = await compat.add_scheduled_jobs(scheduler)
    assert job.id == "good"
    assert await compat.add_scheduled_jobs(scheduler) == []
    compat.scheduled_job(scheduler, "cron", hour=25, id="bad")(work)
    with pytest.raises(Exception, match="hour"):
        await compat.add_scheduled_jobs(scheduler)


# -- listening --------------------------------------------------------------------------------------------------------


@contextmanager
def listening(scheduler: DuetimeScheduler, mask: int = compat.EVENT_ALL) -> Iterator[list[Any]]:
    heard: list[Any] = []
    compat.add_listener(scheduler, heard.append, mask)
    yield heard
    compat.remove_listener(scheduler, heard.append)


def test_the_events_have_v3s_numbers() -> None:
    for name, value in FACTS["events"].items():
        assert getattr(compat, name) == value, name


async def test_a_listener_hears_of_calls_as_in_v3(scheduler: DuetimeScheduler) -> None:
    names = {value: name for name, value in FACTS["events"].items() if name != "EVENT_SCHEDULER_START"}
    with listening(scheduler) as heard:
        job = await compat.add_job(scheduler, work, id="heard", **HOURLY)
        await compat.add_job(scheduler, work, id="heard", replace_existing=True, **HOURLY)
        await job.modify(name="another")
        await job.pause()
        await job.resume()
        await job.reschedule("interval", hours=2)
        await job.remove()
        await compat.remove_all_jobs(scheduler)
        await eventually(lambda: len(heard) >= len(CALLS["events"]))
    assert [names[event.code] for event in heard] == CALLS["events"]
    assert {event.job_id for event in heard[:-1]} == {"heard"}
    with listening(scheduler, compat.EVENT_JOB_ADDED) as others:
        await compat.add_job(scheduler, work, id="unheard", **HOURLY)
        await eventually(lambda: len(others) == 1)
    assert len(heard) == len(CALLS["events"])


async def test_a_listener_hears_how_runs_end_and_only_what_its_mask_names(scheduler: DuetimeScheduler) -> None:
    with listening(scheduler, compat.EVENT_JOB_EXECUTED | compat.EVENT_JOB_ERROR) as heard:
        await compat.add_job(scheduler, work, id="well")
        await eventually(lambda: len(heard) == 1)
        await compat.add_job(scheduler, fail, id="ill")
        await eventually(lambda: len(heard) == 2)
    well, ill = heard
    assert (well.code, well.job_id, well.exception) == (compat.EVENT_JOB_EXECUTED, "well", None)
    assert (ill.code, ill.job_id) == (compat.EVENT_JOB_ERROR, "ill")
    assert "no luck" in str(ill.exception)
    assert ill.exception.type_name == "ValueError"
    assert isinstance(well.scheduled_run_time, datetime)
    with pytest.raises(NoEquivalent, match="retval"):
        _ = well.retval


async def test_runs_of_other_processes_are_theirs_to_tell(scheduler: DuetimeScheduler) -> None:
    with listening(scheduler, compat.EVENT_JOB_EXECUTED) as heard:
        for node in ("another", scheduler.identity):
            event = JobReleased(
                job_id=uuid4(),
                scheduler_id=node,
                task_id="work",
                schedule_id=node,
                scheduled_start=datetime.now(UTC),
                started_at=datetime.now(UTC),
                outcome=JobOutcome.success,
            )
            scheduler.event_broker.deliver(event)  # type: ignore[attr-defined]
        await eventually(lambda: heard)
    assert [event.job_id for event in heard] == [scheduler.identity]


async def test_a_listener_hears_that_the_scheduler_starts_and_stops(database: DatabaseUrl) -> None:
    duetime = Duetime(Settings(database_url=database.text), registry=TaskRegistry())
    mask = compat.EVENT_SCHEDULER_STARTED | compat.EVENT_SCHEDULER_SHUTDOWN
    with listening(duetime.scheduler, mask) as heard:
        async with duetime:
            await eventually(lambda: len(heard) == 1)
        await eventually(lambda: len(heard) == 2)
    assert [event.code for event in heard] == [compat.EVENT_SCHEDULER_STARTED, compat.EVENT_SCHEDULER_SHUTDOWN]


@pytest.mark.parametrize("name", ["EVENT_JOB_MAX_INSTANCES", "EVENT_JOB_SUBMITTED", "EVENT_EXECUTOR_ADDED"])
async def test_an_event_that_there_is_none_of_is_refused_by_name(scheduler: DuetimeScheduler, name: str) -> None:
    with pytest.raises(NoEquivalent, match=name):
        compat.add_listener(scheduler, print, getattr(compat, name) | compat.EVENT_JOB_ERROR)
