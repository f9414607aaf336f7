"""What a node that has no place for the work it holds gives back, for others to do."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable

from apscheduler import Job

from .hand import Hand

DELAY = 0.5
"""Seconds that a job may be late before it is asked whether it goes back."""

_SOON = 2.0
"""Seconds within which a node that is behind may still get to what it holds."""


class Relief:
    """Gives back held jobs that were to start by now, and will not soon, going by how many jobs have ended of late.

    The loop that starts jobs asks for them only while there is a place for one: while there is none, nobody else looks
    at what is held.

    :param hand: what is held
    :param now: returns the database's time, in seconds since 1970
    :param is_full: returns whether it is places that the held jobs wait for, given whether a job has ended of late
    :param give_back: gives jobs back
    :ivar is_stuck: whether jobs wait for places and none ends, so that whatever falls due is better left to others
    """

    def __init__(
        self,
        hand: Hand,
        *,
        now: Callable[[], float],
        is_full: Callable[[bool], bool],
        give_back: Callable[[list[Job]], object],
    ) -> None:
        self._hand = hand
        self._now = now
        self._is_full = is_full
        self._give_back = give_back
        self.is_stuck = False
        self._has_stopped = False
        self._ends = 0
        self._timer: asyncio.TimerHandle | None = None
        # When the held job is due for which the timer runs.
        self._watched_due = 0.0

    @property
    def is_watching(self) -> bool:
        """Whether somebody will look."""
        return self._timer is not None

    def end(self) -> None:
        """Take note that a job has ended."""
        self._ends += 1
        self.is_stuck = False

    def stop(self) -> None:
        """Look at nothing any more."""
        self._has_stopped = True
        self._cancel()

    def restart(self) -> None:
        """Look again, after a stop."""
        self._has_stopped = self.is_stuck = False

    def _cancel(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def watch(self) -> None:
        """See to it that somebody looks when the next held job is due."""
        due = self._hand.next_due
        if due is None or self._has_stopped or (self._timer is not None and self._watched_due <= due):
            return
        self._cancel()
        self._watched_due = due
        self._timer = asyncio.get_running_loop().call_later(max(due - self._now(), 0), self._look_later)

    def _look_later(self) -> None:
        self._watched_due = -math.inf  # nothing is looked at earlier
        self._timer = asyncio.get_running_loop().call_later(DELAY, self.look, self._ends)

    def look(self, ends: int) -> None:
        """Give back what will not start soon.

        :param ends: how many jobs had ended ``DELAY`` ago
        """
        self._timer = None
        now = self._now()
        due = self._hand.next_due
        if due is None or due > now - 0.9 * DELAY:
            self.watch()
            return
        ended = self._ends - ends
        if not self._is_full(ended > 0):
            self._look_later()
            return
        self.is_stuck = not ended
        overdue = sorted((-card.priority, card.due, card.order, card.job) for card in self._hand if card.due <= now)
        soon = int(ended * _SOON / DELAY)
        if surplus := [job for *_, job in overdue[soon:]]:
            self._give_back(surplus)
        if soon:
            self._look_later()
        else:
            self.watch()
