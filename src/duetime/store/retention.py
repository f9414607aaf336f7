"""How long history is kept: old fires, runs and changes are removed in small batches, beside the work.

A batch is one statement over at most a thousand rows, which it finds by an index, and passes over rows that somebody
else has locked; after each the database has as long to itself as it took. What a removed ledger row protected, that its
instant is not fired again (promise 2), is kept as one row for a schedule that goes on: its history floor.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from .clock import DatabaseClock

Fetch = Callable[..., Awaitable[list[Mapping[str, Any]]]]

BATCH = 1000
"""Rows that one statement looks at."""

_BEGINNING = datetime(1, 1, 3, tzinfo=UTC)
_LONGEST_REST = 1.0


class Retention:
    """Removes history that is too old, or too much.

    :param fetch: runs a named statement
    :param max_age: how long fires, runs and changes are kept; None: for ever
    :param max_fires: how many fires of a schedule are kept, with their runs; None: all
    """

    def __init__(self, fetch: Fetch, clock: DatabaseClock, *, max_age: timedelta | None, max_fires: int | None) -> None:
        self._fetch = fetch
        self._clock = clock
        self._max_age = max_age
        self._max_fires = max_fires

    async def clean(self) -> None:
        """Remove what is not to be kept any longer; a schedule's own limits take the place of the node's."""
        if self._max_age is not None:
            await self._clean_by_age(self._clock.now() - self._max_age)
        await self._clean_own()
        if self._max_fires is not None:
            await self._clean_by_count(self._max_fires)

    async def _batch(self, name: str, *arguments: Any) -> list[Mapping[str, Any]]:
        loop = asyncio.get_running_loop()
        begun = loop.time()
        found = await self._fetch(name, *arguments)
        await asyncio.sleep(min(_LONGEST_REST, loop.time() - begun))
        return found

    async def _clean_by_age(self, cutoff: datetime) -> None:
        key: tuple[datetime, str] = (_BEGINNING, "")
        while True:
            [row] = await self._batch("purge_fires", cutoff, *key)
            if row["looked_at"] < BATCH:
                break
            key = row["last_time"], row["last_id"]
        for name in ("purge_runs", "purge_changes"):
            last = 0
            while True:
                [row] = await self._batch(name, cutoff, last)
                # They are numbered as they come, so what follows a younger one is younger still.
                if row["looked_at"] < BATCH or row["gone"] == 0:
                    break
                last = row["last_id"]
        await self._batch("purge_floors", cutoff)

    async def _clean_own(self) -> None:
        last = ""
        while found := await self._batch("own_histories", last):
            for row in found:
                age, count = _number(row["max_age"]), _number(row["max_fires"])
                await self._clean_one(row["id"], None if age is None else timedelta(seconds=age), count)
            last = found[-1]["id"]

    async def _clean_by_count(self, most: int) -> None:
        last = ""
        while True:
            [row] = await self._batch("long_histories", last, most)
            for schedule_id in row["ids"]:
                await self._clean_one(schedule_id, None, most)
            if row["last_id"] is None:
                break
            last = row["last_id"]

    async def _clean_one(self, schedule_id: str, age: timedelta | None, count: float | None) -> None:
        cutoff = None if age is None else self._clock.now() - age
        keep = None if count is None else int(count)
        while True:
            [row] = await self._batch("purge_history_of", schedule_id, cutoff, keep)
            if row["fires"] < BATCH and row["runs"] < BATCH:
                break


def _number(text: str | None) -> float | None:
    """Return a limit, or None for what somebody has written into it by hand and is none."""
    try:
        value = None if text is None else float(text)
    except ValueError:
        return None
    return value if value is not None and 0 < value < 10**10 else None
