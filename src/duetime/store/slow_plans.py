"""Plans that may take long are made in threads, aside from the claim: no schedule keeps another one waiting.

A trigger of the application's own can do anything in ``next()``. What it does there happens in a thread of its own,
which is given up when nothing comes of it (promise 4), and never on the event loop (promise 7).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

from apscheduler.abc import Trigger
from apscheduler.triggers.calendarinterval import CalendarIntervalTrigger
from apscheduler.triggers.combining import AndTrigger, OrTrigger
from apscheduler.triggers.cron import CronTrigger
from apscheduler.triggers.date import DateTrigger
from apscheduler.triggers.interval import IntervalTrigger

from ..threads import Interrupted, ThreadCall
from ..triggers import CalendarInterval, Cron, Excluding, Limited, RRule
from .planning import BrokenTrigger, Plan

T = TypeVar("T")
Beat = Callable[[], None]

PATIENCE = 5.0
"""Seconds that a trigger may take for one fire time."""

SHORT_WAIT = 0.02
"""Seconds that a claim waits for its own slow plans, most of which are not slow, before it goes on without them."""

# Each step of these is short. An AndTrigger is not one of them: it looks for a common time in up to 10,000 steps.
_QUICK = (DateTrigger, IntervalTrigger, CronTrigger, CalendarIntervalTrigger, Cron, CalendarInterval)


def is_quick(trigger: Trigger) -> bool:
    """Return whether a few hundred steps of the trigger may be made on the event loop."""
    if type(trigger) is OrTrigger:
        return all(is_quick(member) for member in trigger.triggers)
    if isinstance(trigger, Excluding):
        return trigger.is_ready and is_quick(trigger.inner)
    if isinstance(trigger, Limited):
        return is_quick(trigger.inner)
    if type(trigger) is RRule:
        return trigger.is_bounded
    return type(trigger) in _QUICK


def is_stock(trigger: Trigger) -> bool:
    """Return whether the trigger and its members are APScheduler's own or ours, and so do nothing but compute."""
    if type(trigger) in (AndTrigger, OrTrigger):
        return all(is_stock(member) for member in trigger.triggers)  # type: ignore[attr-defined]
    if isinstance(trigger, (Excluding, Limited)):
        return is_stock(trigger.inner)
    return type(trigger) in (*_QUICK, RRule)


class Patience:
    """Runs functions of triggers in threads, and gives up those that do not move on.

    :ivar abandoned: threads that were given up and that go on all the same
    """

    def __init__(self) -> None:
        self.abandoned = 0

    async def run(self, work: Callable[[Beat], T]) -> T:
        """Return what ``work`` returns, which calls its argument at each step that it makes.

        :raises BrokenTrigger: when ``PATIENCE`` seconds go by without a step, or it raises what would end the process
        """
        loop = asyncio.get_running_loop()
        moved_at = loop.time()

        def beat() -> None:
            nonlocal moved_at
            moved_at = loop.time()

        def contained() -> T:
            try:
                return work(beat)
            except (Exception, Interrupted):
                raise
            except BaseException as exc:  # would end the process if it came out of here
                raise BrokenTrigger(f"its trigger raised {type(exc).__name__}") from None

        call = ThreadCall(contained)
        call.start("duetime plan")
        try:
            while (remaining := moved_at + PATIENCE - loop.time()) > 0:
                await asyncio.wait([call.outcome], timeout=remaining)
                if call.outcome.done():
                    return call.outcome.result()
            raise BrokenTrigger(f"its trigger took longer than {PATIENCE:g} s for one fire time")
        finally:
            if not call.outcome.done():
                self.abandoned += 1
                call.outcome.add_done_callback(self._has_ended)
                call.interrupt()

    def _has_ended(self, outcome: asyncio.Future[T]) -> None:
        self.abandoned -= 1
        if not outcome.cancelled():
            outcome.exception()  # nobody else will ask for it


@dataclass(frozen=True, slots=True)
class SlowPlan:
    """A plan that is made in a thread.

    :ivar make: makes it, calling its argument at each step
    :ivar give_up: makes the plan of a schedule whose trigger does not move on, for a reason
    """

    make: Callable[[Beat], Plan]
    give_up: Callable[[BrokenTrigger], Plan]


class SlowPlans:
    """The plans that are being made in threads, for schedules that this store has claimed.

    :param ready: called when a plan is ready that no claim waits for
    """

    def __init__(self, patience: Patience, ready: Callable[[str], None]) -> None:
        self._patience = patience
        self._tell = ready
        self._going: dict[str, asyncio.Task[None]] = {}
        self._ready: dict[str, Plan | Exception] = {}
        self._waited_for: set[str] = set()

    def __contains__(self, schedule_id: str) -> bool:
        return schedule_id in self._going or schedule_id in self._ready

    def begin(self, schedule_id: str, slow: SlowPlan, *, keep: Callable[[], Awaitable[object]], every: float) -> None:
        """Begin to make a plan.

        :param keep: renews the claim on the schedule
        :param every: seconds between two renewals
        """
        self._waited_for.add(schedule_id)
        self._going[schedule_id] = asyncio.get_running_loop().create_task(
            self._make(schedule_id, slow, keep, every), name="duetime slow plan"
        )

    async def _make(
        self, schedule_id: str, slow: SlowPlan, keep: Callable[[], Awaitable[object]], every: float
    ) -> None:
        making = asyncio.create_task(self._patience.run(slow.make))
        made: Plan | Exception
        try:
            while not (await asyncio.wait([making], timeout=every))[0]:
                await keep()
            made = making.result()
        except BrokenTrigger as exc:
            made = slow.give_up(exc)
        except Exception as exc:  # what is wrong with this schedule is its own affair (promise 4)
            made = exc
        finally:
            making.cancel()
            self._going.pop(schedule_id, None)
        self._ready[schedule_id] = made
        if schedule_id not in self._waited_for:
            self._tell(schedule_id)

    async def take(self) -> dict[str, Plan | Exception]:
        """Return the plans that are ready, or what stood against them, and forget them."""
        if going := [self._going[each] for each in self._waited_for if each in self._going]:
            await asyncio.wait(going, timeout=SHORT_WAIT)
        self._waited_for.clear()
        ready, self._ready = self._ready, {}
        return ready

    def cancel(self) -> None:
        """Give up all plans."""
        for task in self._going.values():
            task.cancel()
        self._going.clear()
        self._ready.clear()
        self._waited_for.clear()
