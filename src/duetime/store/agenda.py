"""When a node claims schedules next: what it knows of those that it does not hold."""

from __future__ import annotations

import math
import time
from datetime import datetime

_CLAIM_COST = 0.0002
"""Seconds that claiming one of many schedules takes, until that was measured."""

_MANY = 100
"""Schedules in a claim from which on it says what claiming one of many takes."""


class Agenda:
    """When the next schedule is due that this node does not hold, and when to claim it, in database time (seconds
    since 1970).

    :param look_ahead: seconds before its time that work is claimed; 0: never before its time
    :param lease_duration: seconds that a claim lasts
    :ivar is_known: whether the database has said when the next one is due, and nothing has put that in doubt
    :ivar crowd: how many are due together with that one
    :ivar claim_cost: seconds that claiming one of many takes
    """

    def __init__(self, look_ahead: float, lease_duration: float) -> None:
        self._look_ahead = look_ahead
        self._longest_head_start = lease_duration / 3
        self.is_known = False
        self.crowd = 0
        self.claim_cost = _CLAIM_COST
        self._next_due: float | None = None
        # The earliest time that somebody has told of since the last claim began: the claim may have missed it.
        self._told: float | None = None
        self._claim_began = 0.0

    def learn(self, *times: datetime | None, crowd: int) -> None:
        """Take note that the next one is due at the earliest of these times.

        :param crowd: how many are due together with it
        """
        self._next_due = min((each.timestamp() for each in times if each is not None), default=None)
        self.crowd = crowd
        self.is_known = True

    def tell(self, due: float) -> None:
        """Take note that somebody speaks of a schedule that is due then."""
        self._told = due if self._told is None else min(self._told, due)

    def look(self) -> None:
        """Forget what was told: whatever is told from now on, the look that begins now may miss."""
        self._told = None

    def begin_claim(self) -> None:
        """Take note that a claim begins, which will say what is due after it."""
        self.is_known = False
        self.look()
        self._claim_began = time.monotonic()

    def end_claim(self, schedules: int) -> None:
        """Take note that so many have been claimed and released since the claim began."""
        if schedules >= _MANY:
            took = (time.monotonic() - self._claim_began) / schedules
            # Not by one that a busy machine, or a database that was away, has held up.
            self.claim_cost += 0.3 * (min(max(took, _CLAIM_COST / 4), _CLAIM_COST * 4) - self.claim_cost)

    @property
    def margin(self) -> float:
        """Seconds before a schedule is due at which it is claimed: with half the look-ahead, claims come in groups."""
        return self._look_ahead / 2

    @property
    def head_start(self) -> float:
        """Seconds that claiming all that is due together takes: so much earlier the node begins with it, unless it is
        to claim nothing ahead."""
        return min(self.crowd * self.claim_cost, self._longest_head_start) if self._look_ahead else 0.0

    @property
    def claims_at(self) -> float:
        """When to claim schedules next, as far as that is known."""
        known = math.inf if self._next_due is None else self._next_due - self.head_start
        return min(known, math.inf if self._told is None else self._told) - self.margin
