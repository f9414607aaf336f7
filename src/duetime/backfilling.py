"""Backfill: the fires of a range of the past that have not run, made up for on request."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from math import ceil
from typing import Any
from uuid import uuid4

from apscheduler import DeserializationError
from apscheduler.abc import Trigger
from apscheduler.triggers.interval import IntervalTrigger

from . import records
from .commands import Backfill
from .errors import InvalidRequest, InvalidTrigger, TooManyFires, TriggerNeverFires
from .store import PostgresDataStore
from .store.backfilling import make_up
from .store.reads import Reads
from .store.rows import schedule_from
from .triggers import parse_json, to_json, unlimited

MOST_FIRES = 10_000
"""Fires that one backfill makes at most."""

_AT_ONCE = 1000
"""Fires that one statement makes."""

_COUNTED_FOR = 2.0
"""Seconds that the fires of a range which is too long are counted for."""

_MOST_SHOWN = 100

_LENGTHS = ("weeks", "days", "hours", "minutes", "seconds")


class Backfills:
    """Makes up for fires of the past."""

    def __init__(self, store: PostgresDataStore, reads: Reads) -> None:
        self._store = store
        self._reads = reads

    async def of(self, row: Mapping[str, Any], wanted: Backfill, now: datetime) -> records.BackfillResult:
        """Make jobs for the fires of a range that have none, or say how many they would be."""
        if wanted.start >= wanted.end or wanted.end > now:
            raise InvalidRequest(
                f"expected a range that begins before it ends, and ends by now, got {wanted.start.isoformat()} to "
                f"{wanted.end.isoformat()}. What lies ahead fires by itself.",
                details=[{"where": "end", "problem": "it is not after the start, or in the future"}],
            )
        try:
            trigger = unlimited(schedule_from(row, self._store.serializer).trigger)
        except (DeserializationError, ValueError, TypeError) as exc:
            raise InvalidTrigger(f"expected a schedule that can be read, got: {exc}.") from exc
        times = await asyncio.to_thread(_times, trigger, wanted.start, wanted.end)
        schedule_id: str = row["id"]
        counted = await self._reads.fired(schedule_id, times)
        left = [moment for moment in times if moment not in counted]
        made = 0
        overlap = str(wanted.overlap)
        if not wanted.dry_run:
            for place in range(0, len(left), _AT_ONCE):
                batch = [(moment, uuid4()) for moment in left[place : place + _AT_ONCE]]
                made += await make_up(self._store, schedule_id, batch, overlap)
        return records.BackfillResult(
            schedule_id=schedule_id,
            dry_run=wanted.dry_run,
            overlap=overlap,
            fires=len(times),
            already=len(times) - (len(left) if wanted.dry_run else made),
            made=len(left) if wanted.dry_run else made,
            first=times[:_MOST_SHOWN],
        )


def _times(trigger: Trigger, start: datetime, end: datetime) -> list[datetime]:
    """Return the fire times from ``start`` on and before ``end``, in UTC.

    :raises TooManyFires: with their number, if they are too many
    :raises InvalidTrigger: if the trigger is a class of the application's own, which cannot be asked about the past
    """
    form = to_json(trigger)
    if form["type"] == "custom":
        raise InvalidTrigger(
            "expected a trigger that can be asked about the past, got one of a class of the application's own. Add "
            "jobs for the instants in code."
        )
    if form["type"] == "interval" and (begin := datetime.fromisoformat(form["start"])) > start:
        # Its start was moved to when it was added; its rhythm is that of before, too.
        step = timedelta(**{name: form[name] for name in _LENGTHS if name in form})
        form["start"] = (begin - ceil((begin - start) / step) * step).isoformat()
    try:
        again = parse_json(form, now=start - timedelta(microseconds=1))
    except TriggerNeverFires:
        return []
    found: list[datetime] = []
    counted = 0
    stops_at = time.monotonic() + _COUNTED_FOR
    is_whole = True
    while (fire := again.next()) is not None and (moment := fire.astimezone(UTC)) < end:
        if moment < start:
            continue
        counted += 1
        if counted <= MOST_FIRES:
            found.append(moment)
        elif isinstance(again, IntervalTrigger):
            step = found[-1] - found[-2]
            counted = len(found) + int((end - found[-1] - timedelta(microseconds=1)) / step)
            break
        elif time.monotonic() > stops_at:
            is_whole = False
            break
    if counted > MOST_FIRES:
        number = f"{counted:,}" if is_whole else f"more than {counted:,}"
        raise TooManyFires(
            f"expected a range of at most {MOST_FIRES:,} fires, got one of {number}. Backfill shorter ranges, one "
            f"after the other.",
            details=[{"where": "end", "problem": f"{number} fires", "fires": counted}],
        )
    return found
