"""A trigger that ends by itself: at an instant, or after so many fires."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Any

from apscheduler.abc import Trigger

from duetime.errors import InvalidTrigger

from .cron_trigger import check_version

_MOST_AHEAD = 1_001


class Limited(Trigger):
    """Fires as another trigger does, until an instant, and so many times at most.

    :param inner: the trigger whose fire times are given out; it moves along
    :param until: aware; no fire time at or after it. None: no end
    :param max_fires: fire times that are given out at most, those counted that were given out already. None: any number
    :ivar fired: how many were given out
    :raises InvalidTrigger: if a limit has no meaning
    """

    __slots__ = ("_counts", "_held", "fired", "inner", "max_fires", "until")

    def __init__(self, inner: Trigger, *, until: datetime | None = None, max_fires: int | None = None) -> None:
        if until is not None and until.tzinfo is None:
            raise InvalidTrigger(f"expected an end with an offset or a zone, got {until.isoformat()}.")
        if max_fires is not None and max_fires < 1:
            raise InvalidTrigger(f"expected at least one fire, got {max_fires}.")
        self.inner = inner
        self.until = until
        self.max_fires = max_fires
        self.fired = 0
        # A time of the inner trigger that lay beyond the end: it comes first if the end is put off.
        self._held: datetime | None = None
        self._counts = True

    def next(self) -> datetime | None:
        """Return the next fire time of the inner trigger that is within the limits, or None."""
        if self._counts and self.max_fires is not None and self.fired >= self.max_fires:
            return None
        fire = self._held or self.inner.next()
        self._held = None
        if fire is None:
            return None
        if self.until is not None and fire >= self.until:
            self._held = fire
            return None
        if self._counts:
            self.fired += 1
        return fire

    def take_back(self, fire: datetime) -> None:
        """Have the fire time that was given out last be the next one again, if the limits still allow it."""
        self._held = fire
        self.fired -= 1

    @property
    def reason(self) -> str | None:
        """Why there is no fire time left, if the limits are the reason."""
        if self.max_fires is not None and self.fired >= self.max_fires:
            return f"it has fired {self.fired} times, and its max_fires is {self.max_fires}"
        if self.until is not None and self._held is not None:
            return f"it expired at {self.until.isoformat()}"
        return None

    def run_out(self) -> str | None:
        """Go on to the end, which is near, and return the reason for it, if the limits are it.

        A stored trigger stands up to a thousand fires before the schedule's next fire time, or its end.
        """
        for _ in range(_MOST_AHEAD):
            if self.next() is None:
                break
        return self.reason

    @contextmanager
    def uncounted(self) -> Iterator[None]:
        """Give out fire times without counting them: those that are passed over do not happen."""
        self._counts = False
        try:
            yield
        finally:
            self._counts = True

    def __getstate__(self) -> dict[str, Any]:
        return {
            "version": 1,
            "inner": self.inner,
            "until": self.until,
            "max_fires": self.max_fires,
            "fired": self.fired,
            "held": self._held,
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        check_version(state, 1)
        self.__init__(state["inner"], until=state["until"], max_fires=state["max_fires"])  # type: ignore[misc]
        self.fired = state["fired"]
        self._held = state["held"]

    def __repr__(self) -> str:
        return f"Limited({self.inner!r}, until={self.until!r}, max_fires={self.max_fires!r})"


def unlimited(trigger: Trigger) -> Trigger:
    """Return the trigger without its limits."""
    return trigger.inner if isinstance(trigger, Limited) else trigger
