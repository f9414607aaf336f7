"""v3's fire times by our rules, compared with those that each real release has calculated."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from duetime.v3.cron_fields import HIGHEST, LOWEST, following
from duetime.v3.faults import explain, known_faults
from duetime.v3.model import V3Cron, V3Interval, V3Job, V3Or, V3Unknown, V3Zone
from duetime.v3.reading import read
from duetime.v3.rules import Walk, release_of, v3_fire_times, v3_walk

from .stored import Stored, stored_rows

ENVIRONMENTS = sorted({(stored.release, stored.python) for stored in stored_rows()})
COUNT = 50


def job_of(stored: Stored) -> V3Job:
    job = read(stored.row).job
    assert job is not None
    return job


def row(id: str, release: str = "3.11", python: str | None = None) -> Stored:  # noqa: A002
    return next(stored for stored in stored_rows(release) if stored.row.id == id and python in (None, stored.python))


_walks: dict[tuple[str, ...], Walk] = {}


def walk(stored: Stored, job: V3Job, start: str) -> Walk:
    """The fires by our rules; those of the same trigger in the same release, from another Python, are the same."""
    now = None if start == "stored" else datetime.fromisoformat(start).replace(tzinfo=UTC)
    key = (stored.release, repr(job.trigger), repr(job.next_run_time) if now is None else start)
    if key not in _walks:
        _walks[key] = v3_walk(job, COUNT, release=stored.release, now=now)
    return _walks[key]


@pytest.mark.parametrize("environment", ENVIRONMENTS, ids="-".join)
def test_every_fire_is_at_the_time_that_the_real_release_calculates(environment: tuple[str, str]) -> None:
    compared = 0
    for stored in stored_rows():
        if (stored.release, stored.python) != environment:
            continue
        job = job_of(stored)
        if isinstance(job.trigger, V3Unknown):
            continue
        for start, (fires, end) in stored.fires.items():
            found = walk(stored, job, start)
            assert (found.fires, found.end) == (fires, end), (stored.name, start)
            compared += len(fires)
    assert compared > 30_000


def test_releases_and_kinds_of_zones_differ_and_each_is_told_apart() -> None:
    """Which of the rules a row needs is not a matter of taste: with another release's, its fires would be wrong."""
    id = "{}-Europe/Berlin-{}"  # noqa: A001
    differing = {
        (flavour, kind, ours): sum(
            v3_walk(job_of(stored), COUNT, release=ours, now=datetime.fromisoformat(start).replace(tzinfo=UTC)).fires
            != fires
            for stored in stored_rows(theirs)
            if stored.row.id.startswith(id.format(flavour, kind))
            for start, (fires, _) in stored.fires.items()
            if start != "stored"
        )
        for flavour, kind, theirs, ours in (
            ("text", "interval", "3.10", "3.8"),  # pytz: the same up to 3.10
            ("text", "cron", "3.10", "3.8"),
            ("shim", "interval", "3.10", "3.8"),  # the shim's normalize leaves a gap as it is
            ("shim", "cron", "3.10", "3.8"),
            ("zoneinfo", "interval", "3.10", "3.11"),  # sums by the clock on the wall, or by UTC
            ("zoneinfo", "cron", "3.10", "3.11"),
            ("dateutil", "interval", "3.10", "3.11"),
        )
    }
    assert {key for key, count in differing.items() if not count} == {
        ("text", "interval", "3.8"),
        ("text", "cron", "3.8"),
    }


def test_the_release_is_chosen_by_the_zones_kind_when_nobody_says_it() -> None:
    assert release_of(job_of(row("cron-01", "3.6"))) == "3.10"
    assert release_of(job_of(row("shim-Europe/Berlin-cron-0", "3.9"))) == "3.10"
    assert release_of(job_of(row("cron-01"))) == "3.11"
    assert release_of(job_of(row("or-crons", "3.8"))) == "3.10"
    stored = row("cron-01", "3.10")
    assert v3_fire_times(job_of(stored), COUNT) == stored.fires["stored"][0]


def test_the_stored_next_run_time_is_the_first_fire_even_if_the_trigger_would_not_say_so() -> None:
    job = job_of(row("overridden"))
    fires = v3_fire_times(job, 2)
    assert fires == [datetime(2036, 6, 1, 12, 34, 56, 789, tzinfo=UTC), datetime(2036, 6, 1, 13, 5, tzinfo=UTC)]


def test_a_paused_job_has_no_fires_until_it_is_resumed() -> None:
    job = job_of(row("paused"))
    assert v3_walk(job, 5) == Walk([], "ended")
    now = datetime(2026, 3, 29, 0, 4, 59, 1, tzinfo=UTC)
    assert v3_fire_times(job, 1, now=now) == [datetime(2026, 3, 29, 0, 5, tzinfo=UTC)]


def test_a_trigger_that_cannot_be_read_has_its_stored_fire_and_no_more() -> None:
    job = job_of(row("own-trigger"))
    assert job.next_run_time is not None
    assert v3_walk(job, 5) == Walk([job.next_run_time.astimezone(UTC)], "unknown")


def test_jitter_is_left_out() -> None:
    job = job_of(row("cron-jitter"))
    assert job.trigger.jitter == 120  # type: ignore[union-attr]
    assert len({fire.astimezone(job.trigger.timezone.tzinfo).time() for fire in v3_fire_times(job, 5)[1:]}) == 1  # type: ignore[union-attr]
    assert [finding.code for finding in known_faults(job)] == ["jitter_left_out"]


def test_a_date_that_never_comes_is_given_up_soon() -> None:
    job = job_of(row("cron-no-hit"))
    assert isinstance(job.trigger, V3Cron)
    never = replace(job.trigger, fields={**job.trigger.fields, "year": "*"})
    assert v3_walk(replace(job, trigger=never), 2).end == "ended"


@pytest.mark.parametrize("text", ["", "x", "60", "5-99", "*/0", "mon", "1-", "last", "2nd fri"])
def test_an_expression_that_v3_does_not_write_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="as APScheduler 3 writes it"):
        following("minute", text)


def test_every_value_of_a_field_is_found_from_every_other() -> None:
    moment = datetime(2026, 2, 1)  # noqa: DTZ001
    find = following("day", "2nd fri,last,*/10")
    assert [find(day, moment) for day in (1, 2, 12, 13, 14, 22, 28)] == [1, 11, 13, 13, 21, 28, 28]
    for name, highest in HIGHEST.items():
        assert following(name, "*")(highest, datetime(2026, 1, 1)) == highest  # noqa: DTZ001
        assert following(name, "*")(LOWEST[name], moment) == LOWEST[name]
    assert following("year", "2024-2028/2")(2025, moment) == 2026
    assert following("year", "2024-2028/2")(2029, moment) is None


def test_a_difference_near_a_change_of_the_clocks_is_explained_by_it() -> None:
    job = job_of(row("cron-02"))
    spring = explain(job, datetime(2026, 3, 29, 1, 30, tzinfo=UTC))
    autumn = explain(job, datetime(2026, 10, 25, 0, 30, tzinfo=UTC))
    assert spring is not None
    assert autumn is not None
    assert (spring.code, autumn.code) == ("clock_change", "clock_change")
    assert "forward at 2026-03-29 01:00 UTC" in spring.text
    assert "back at 2026-10-25 01:00 UTC" in autumn.text
    assert explain(job, datetime(2026, 6, 1, tzinfo=UTC)) is None


def test_an_intervals_difference_is_explained_by_a_change_since_the_last_common_fire() -> None:
    where = V3Zone("Europe/Berlin", job_of(row("cron-02")).trigger.timezone.tzinfo, "zoneinfo")  # type: ignore[union-attr]
    start = datetime(2026, 3, 1, tzinfo=where.tzinfo)
    job = replace(job_of(row("cron-02")), trigger=V3Interval(timedelta(days=60), start, None, where))
    late = datetime(2026, 4, 29, 23, tzinfo=UTC)
    assert explain(job, late) is None
    found = explain(job, late, before=start)
    assert found is not None
    assert found.code == "clock_change"


def test_what_v3_does_with_and_and_or_is_explained() -> None:
    far = datetime(2026, 6, 15, tzinfo=UTC)
    for id, code in (("and-crons", "and_hangs"), ("or-interval", "or_feeds_interval"), ("or-dates", "or_loses_date")):  # noqa: A001
        found = explain(job_of(row(id)), far)
        assert found is not None
        assert found.code == code
    job = job_of(row("or-dates"))
    assert isinstance(job.trigger, V3Or)
    assert explain(job, job.next_run_time or far).code == "overridden"  # type: ignore[union-attr]


def test_pytz_knows_no_changes_after_2037() -> None:
    job = job_of(row("text-Australia/Sydney-cron-0", "3.8"))
    found = explain(job, datetime(2038, 6, 1, tzinfo=UTC))
    assert found is not None
    assert found.code == "after_2037"
