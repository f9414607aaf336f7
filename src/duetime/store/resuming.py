"""Where a paused schedule goes on: fire times that it is to pass over."""

from __future__ import annotations

from contextlib import nullcontext
from datetime import datetime

from apscheduler import Schedule
from apscheduler.abc import Trigger

from ..triggers import Limited
from .planning import MAX_STEPS, BrokenTrigger, times_after
from .slow_plans import Beat


def first_from(schedule: Schedule, resume_from: datetime | None, beat: Beat) -> datetime | None:
    """Return the schedule's first fire time that is not before ``resume_from``, advancing its trigger to it.

    :param beat: called at each step
    :raises BrokenTrigger: if the trigger does not get there
    """
    fire_time = schedule.next_fire_time
    if resume_from is None or fire_time is None:
        return fire_time
    trigger = schedule.trigger
    with trigger.uncounted() if isinstance(trigger, Limited) else nullcontext():
        return _passed_over(trigger, fire_time, resume_from, beat)


def _passed_over(trigger: Trigger, fire_time: datetime, resume_from: datetime, beat: Beat) -> datetime | None:
    times = times_after(trigger, fire_time)
    following: datetime | None = fire_time
    steps = 0
    while following is not None and following < resume_from:
        if steps == 10 * MAX_STEPS:
            raise BrokenTrigger(f"its trigger is at {following.isoformat()} after {steps} steps")
        steps += 1
        beat()
        following = next(times)
    return following
