"""The database's clock, as this node knows it (promise: "due" is never decided by a host's clock)."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta

_SAMPLE_LIFETIME = 300.0
"""Seconds after which a better sample is forgotten: quartz clocks drift by some 10 µs a second."""


class DatabaseClock:
    """Follows the database's clock from answers that carry its time.

    An answer's time lies between the moments of asking and of being answered, so the middle is wrong by at most half
    the round trip; the sample with the shortest round trip of the last five minutes is kept. Time goes on by the
    host's monotonic clock: setting the host's clock changes nothing.
    """

    def __init__(self) -> None:
        self._offset: float | None = None  # database time − monotonic time, in seconds
        self._round_trip = 0.0
        self._sampled_at = 0.0

    def learn(self, database_time: datetime, asked_at: float, answered_at: float) -> None:
        """Take note of an answer.

        :param database_time: the database's time while it worked on the statement
        :param asked_at: ``time.monotonic()`` before the statement was sent
        :param answered_at: ``time.monotonic()`` after the answer had come
        """
        round_trip = answered_at - asked_at
        if self._offset is None or round_trip <= self._round_trip or answered_at - self._sampled_at > _SAMPLE_LIFETIME:
            self._offset = database_time.timestamp() - (asked_at + answered_at) / 2
            self._round_trip = round_trip
            self._sampled_at = answered_at

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
