"""The schedules of a storm, and the fires that each of them has to have."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from apscheduler import CoalescePolicy, Schedule
from apscheduler.abc import Trigger
from apscheduler.triggers.calendarinterval import CalendarIntervalTrigger
from apscheduler.triggers.combining import AndTrigger, OrTrigger
from apscheduler.triggers.cron import CronTrigger
from apscheduler.triggers.date import DateTrigger
from apscheduler.triggers.interval import IntervalTrigger

from ..nodes.desk import LIMITS, schedule

TASKS = {"work": 6, "alone": 3, "once": 4, "thread": 1, "unlucky": 1}
"""Tasks without a limit, and how many of ten schedules and more are theirs."""


@dataclass(frozen=True)
class Planned:
    """A schedule of the storm.

    :ivar fires: all its fire times, worked out by a trigger of its own, apart from any store
    :ivar may_miss: whether it has a grace time, so that a fire may be too late to run
    """

    schedule: Schedule
    fires: frozenset[datetime]
    may_miss: bool
    may_coalesce: bool

    @property
    def task(self) -> str:
        return self.schedule.task_id


def plan(dice: random.Random, number: int, begin: datetime, seconds: float) -> Planned:
    """Return a schedule of a random kind with all its fires between ``begin`` and ``seconds`` later.

    One in 20 is of a task with a limit; they fire once each, so that their queue stays short.
    """
    end = begin + timedelta(seconds=seconds)
    limited = number % 20 == 0
    if limited:
        task = dice.choice(sorted(LIMITS))
        make = _date(dice, begin, seconds)
    else:
        [task] = dice.choices(list(TASKS), list(TASKS.values()))
        make = dice.choice([_date, _interval, _interval, _cron, _calendar, _either, _both])(dice, begin, seconds)
    coalesce = dice.choice([CoalescePolicy.all, CoalescePolicy.latest, CoalescePolicy.earliest])
    grace = timedelta(seconds=1) if not limited and dice.random() < 0.1 else None
    jitter = timedelta(seconds=0.5) if dice.random() < 0.15 else None
    options: dict[str, Any] = {"coalesce": coalesce, "misfire_grace_time": grace, "max_jitter": jitter}
    if task not in ("unlucky", "thread"):
        options["kwargs"] = {"seconds": dice.choice([0, 0, 0.01, 0.05, 0.3])}
    trigger = make()
    fires = []
    while (fire_time := trigger.next()) is not None:
        assert fire_time <= end
        fires.append(fire_time.astimezone(UTC))
    return Planned(
        schedule(f"{number:05d} {type(trigger).__name__} {task}", task, make(), **options),
        frozenset(fires),
        grace is not None,
        coalesce is not CoalescePolicy.all,
    )


Make = Callable[[], Trigger]


def _date(dice: random.Random, begin: datetime, seconds: float) -> Make:
    at = begin + timedelta(seconds=dice.uniform(0, seconds))
    return lambda: DateTrigger(at)


def _interval(dice: random.Random, begin: datetime, seconds: float) -> Make:
    start = begin + timedelta(seconds=dice.uniform(0, seconds / 2))
    step = round(dice.uniform(seconds / 30, seconds / 4) * 1_000_000)
    return lambda: IntervalTrigger(microseconds=step, start_time=start, end_time=begin + timedelta(seconds=seconds))


def _cron(dice: random.Random, begin: datetime, seconds: float) -> Make:
    second = f"{dice.randrange(4)}-59/{dice.randint(3, 7)}"
    start = begin.replace(microsecond=0) + timedelta(seconds=1)
    end = begin + timedelta(seconds=seconds)
    return lambda: CronTrigger(second=second, start_time=start, end_time=end, timezone=UTC)


def _calendar(dice: random.Random, begin: datetime, seconds: float) -> Make:
    at = begin + timedelta(seconds=1 + dice.uniform(0, seconds - 2))
    return lambda: CalendarIntervalTrigger(
        days=1, hour=at.hour, minute=at.minute, second=at.second, start_date=at.date(), end_date=at.date(), timezone=UTC
    )


def _either(dice: random.Random, begin: datetime, seconds: float) -> Make:
    one, other = _interval(dice, begin, seconds), _date(dice, begin, seconds)
    return lambda: OrTrigger([one(), other()])


def _both(dice: random.Random, begin: datetime, seconds: float) -> Make:
    start = begin.replace(microsecond=0) + timedelta(seconds=1)
    end = begin + timedelta(seconds=seconds)
    step = dice.randint(1, 3)
    return lambda: AndTrigger(
        [
            IntervalTrigger(seconds=1, start_time=start, end_time=end),
            IntervalTrigger(seconds=step, start_time=start, end_time=end),
        ],
        threshold=timedelta(milliseconds=100),
    )
