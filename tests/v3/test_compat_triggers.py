"""A trigger of v3's arguments fires when v3 fires, compared with what real v3 does with the same arguments."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, tzinfo
from zoneinfo import ZoneInfo

import pytest
import time_machine
from apscheduler.abc import Trigger

from duetime.errors import DuetimeError, InvalidTrigger, NoEquivalent
from duetime.v3.compat import AndTrigger, CronTrigger, DateTrigger, IntervalTrigger, OrTrigger
from duetime.v3.compat.meaning import trigger_of
from duetime.v3.compat.triggers import V3Said, jitter_of, made_of
from duetime.v3.spelling import spelled_here

from .facts import FACTS, NOW, arguments_of

BERLIN = ZoneInfo("Europe/Berlin")


@pytest.fixture(autouse=True)
def still() -> Iterator[None]:
    with time_machine.travel(NOW, tick=False):
        yield


def times_of(said: V3Said | Trigger, count: int) -> list[str]:
    assert isinstance(said, V3Said)
    trigger = trigger_of(said.said, NOW)
    found: list[str] = []
    while len(found) < count and (moment := trigger.next()) is not None:
        found.append(moment.astimezone(UTC).isoformat())
    return found


@pytest.mark.parametrize("title", FACTS["triggers"])
def test_a_trigger_fires_when_v3_fires(title: str) -> None:
    case = FACTS["triggers"][title]
    said = made_of(case["trigger"], arguments_of(case), BERLIN)
    assert times_of(said, FACTS["fires"]) == case["times"]


@pytest.mark.parametrize("text", FACTS["crontabs"])
def test_a_crontab_expression_has_its_weekdays_from_monday_as_in_v3(text: str) -> None:
    said = CronTrigger.from_crontab(text, timezone="Europe/Berlin")
    assert times_of(said, FACTS["fires"]) == FACTS["crontabs"][text]


def test_a_fire_that_v3_loses_when_the_clock_changes_is_not_lost() -> None:
    said = CronTrigger.from_crontab(FACTS["fault"]["crontab"], timezone="Europe/Berlin")
    lost = set(times_of(said, FACTS["fires"])) - set(FACTS["fault"]["times"])
    assert "2027-03-31T22:00:00+00:00" in lost
    assert set(FACTS["fault"]["times"]) <= set(times_of(said, FACTS["fires"] + len(lost)))


@pytest.mark.parametrize("title", FACTS["wrong"])
def test_what_v3_refuses_is_refused(title: str) -> None:
    case = FACTS["wrong"][title]
    assert case["raised"]
    with pytest.raises(DuetimeError):
        times_of(made_of(case["trigger"], arguments_of(case), BERLIN), 1)


def test_weekdays_are_written_by_name() -> None:
    assert spelled_here("day_of_week", "0-4") == "mon-fri"
    assert spelled_here("day_of_week", "6") == "sun"
    assert spelled_here("day_of_week", "*/2") == "mon,wed,fri,sun"
    assert spelled_here("day_of_week", "0-6") == "*"
    assert spelled_here("month", "1-12/3,dec") == "1-12/3,dec"


def test_a_combined_trigger_fires_with_its_members() -> None:
    noon, one = CronTrigger(hour="12", timezone="UTC"), DateTrigger("2027-03-27 08:00:00", timezone="UTC")
    assert times_of(OrTrigger([noon, one]), 2) == ["2027-03-27T08:00:00+00:00", "2027-03-27T12:00:00+00:00"]
    weekdays = CronTrigger(day_of_week="0", hour="12", timezone="UTC")
    assert times_of(AndTrigger([noon, weekdays]), 1) == ["2027-03-29T12:00:00+00:00"]


def test_jitter_belongs_to_the_job_and_not_to_a_member() -> None:
    jittery = IntervalTrigger(minutes=5, jitter=30)
    seconds = jitter_of(jittery.said)
    assert seconds is not None
    assert seconds.total_seconds() == 30
    with pytest.raises(NoEquivalent, match="jitter in the members"):
        jitter_of(OrTrigger([jittery]).said)


class OfPytz(tzinfo):
    """A zone as pytz has them: it has a name, and at first the mean time of its capital."""

    zone = "Asia/Tokyo"

    def utcoffset(self, moment: datetime | None) -> timedelta:
        return timedelta(hours=9, minutes=19)

    def dst(self, moment: datetime | None) -> timedelta:
        return timedelta(0)

    def tzname(self, moment: datetime | None) -> str:
        return "LMT"


def test_a_zone_of_pytz_is_taken_by_its_name() -> None:
    assert times_of(CronTrigger(hour=9, timezone=OfPytz()), 1) == ["2027-03-27T00:00:00+00:00"]


def test_a_trigger_alias_that_is_unknown_names_the_closest() -> None:
    with pytest.raises(InvalidTrigger, match="did you mean 'interval'"):
        made_of("intervall", {}, BERLIN)
