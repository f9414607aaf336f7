"""The database's clock, as this node knows it (promise: "due" is never decided by a host's clock)."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta

_SAMPLE_LIFETIME = 300.0
"""Seconds after which a better sample is forgotten: quartz clocks drift by some 10 µs a second."""

_DRIFT = 0.05
"""Seconds by which two clocks may drift apart within that time, and more than that."""


class DatabaseClock:
    """Follows the database's clock from answers that carry its time.

    An answer's time lies between the moments of asking and of being answered, so the middle is wrong by at most half
    the round trip; the sample with the shortest round trip of the last five minutes is kept, unless a later answer
    cannot be true together with it: the database's clock has been set, or another server answers, or this host was
    suspended. Time goes on by the host's monotonic clock, which stands still meanwhile: setting the host's clock
    changes nothing.
    """

    def __init__(self) -> None:
        self._offset: float | None = None  # database time − monotonic time, in seconds
        self._round_trip = 0.0
        self._sampled_at = 0.0

    def learn(
        self, database_time: datetime, asked_at: float, answered_at: float, *, began: datetime | None = None
    ) -> None:
        """Take note of an answer.

        :param database_time: the database's time when it had worked on the statement
        :param asked_at: ``time.monotonic()`` before the statement was sent
        :param answered_at: ``time.monotonic()`` after the answer had come
        :param began: the database's time when it began with the statement; default: it took no time. A statement that
            takes some would otherwise put the clock ahead by half of that, and fires would come early
        """
        told = database_time.timestamp()
        work = 0.0 if began is None else max(0.0, told - began.timestamp())
        round_trip = answered_at - asked_at - work
        offset = told - work / 2 - (asked_at + answered_at) / 2
        if (
            self._offset is None
            or round_trip <= self._round_trip
            or answered_at - self._sampled_at > _SAMPLE_LIFETIME
            or abs(offset - self._offset) > (round_trip + self._round_trip) / 2 + _DRIFT
        ):
            self._offset = offset
            self._round_trip = round_trip
            self._sampled_at = answered_at

    @property
    def is_known(self) -> bool:
        """Whether the database has said its time."""
        return self._offset is not None

    @property
    def round_trip(self) -> float:
        """Seconds of the quickest answer of late; 0 before the first."""
        return self._round_trip

    def timestamp(self) -> float:
        """Return the database's time as seconds since 1970; the host's until the database has said its own."""
        return time.time() if self._offset is None else time.monotonic() + self._offset

    def now(self) -> datetime:
        """Return the database's time, in UTC."""
        return datetime.fromtimestamp(self.timestamp(), UTC)

    def wait_for(self, moment: datetime) -> float:
        """Return the seconds until a moment of the database's time; negative when it has passed."""
        return moment.timestamp() - self.timestamp()

    @property
    def host_offset(self) -> timedelta:
        """Host time − database time. Add it to a stored time before the host's clock is compared with it."""
        return timedelta(seconds=time.time() - self.timestamp())
