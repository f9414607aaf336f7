"""Triggers that say what no trigger should: their schedules are refused or set aside, and the others fire."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import asyncpg
import pytest
from apscheduler.abc import Trigger

from duetime import Duetime
from duetime.errors import DuetimeError, InvalidTrigger
from duetime.records import ScheduleState
from duetime.serializer import TypedJSONSerializer
from duetime.settings import DatabaseUrl

from ..store.parts import ago
from ..waiting import eventually
from .parts import CALL_TIMEOUT, MARGIN, a_node, add_neighbours, done, settled, works


class Says(Trigger):
    """Yields what is listed under its key in ``sayings``, one after the other; what is callable is called."""

    def __init__(self, key: str, position: int = 0) -> None:
        self.key, self.position = key, position

    def next(self) -> Any:
        said = sayings[self.key]
        if self.position == len(said):
            return None
        self.position += 1
        what = said[self.position - 1]
        return what() if callable(what) else what

    def __getstate__(self) -> Any:
        return [self.key, self.position]

    def __setstate__(self, state: Any) -> None:
        self.key, self.position = state


def raises() -> Any:
    raise LookupError("no such day")


def exits() -> Any:
    raise SystemExit("no such day")


def never_ends() -> Any:
    while True:
        time.sleep(0.01)


def recurses() -> Any:
    return recurses()


LAST = datetime.max.replace(tzinfo=UTC)
WEST, EAST = timezone(-timedelta(hours=12)), timezone(timedelta(hours=12))
AT = ago(5)

sayings: dict[str, list[Any]] = {
    "naive": [AT.replace(tzinfo=None)],
    "text": ["tomorrow"],
    "number": [5],
    "date": [AT.date()],
    "raises": [raises],
    "exits": [exits],
    "never ends": [never_ends],
    "recurses": [recurses],
    "beyond the last": [LAST.replace(tzinfo=WEST)],
    "before the first": [datetime.min.replace(tzinfo=EAST)],
    "naive later": [AT, AT.replace(tzinfo=None)],
    "number later": [AT, 5],
    "date later": [AT, AT.date()],
    "before the last one": [AT, AT - timedelta(hours=1)],
    "the same again": [AT, AT],
    "the same in another zone": [AT, AT.astimezone(EAST)],
    "exits later": [AT, exits],
    "recurses later": [AT, recurses],
    "beyond the last later": [AT, LAST.replace(tzinfo=WEST)],
    "the first": [AT, datetime.min.replace(tzinfo=UTC)],
    "goes back": [AT, ago(3), ago(4)],
    "nothing": [],
    "the end of time": [AT, LAST],
    "the beginning of time": [datetime.min.replace(tzinfo=UTC)],
    "another zone": [AT.astimezone(WEST), ago(4).astimezone(EAST)],
}
REFUSED = [
    "naive",
    "text",
    "number",
    "date",
    "raises",
    "exits",
    "never ends",
    "recurses",
    "beyond the last",
    "before the first",
]
BROKEN = [
    "naive later",
    "number later",
    "date later",
    "exits later",
    "recurses later",
    "beyond the last later",
    "goes back",
]
ENDED = ["before the last one", "the same again", "the same in another zone", "the first"]
FINE = ["the end of time", "the beginning of time", "another zone"]


@asynccontextmanager
async def a_node_with_triggers(database: DatabaseUrl) -> AsyncIterator[Duetime]:
    async with a_node(database, stall_threshold=0.5) as duetime:
        serializer = duetime._scheduler.store.serializer
        assert isinstance(serializer, TypedJSONSerializer)
        serializer.register_trigger(Says)
        yield duetime


async def test_a_trigger_that_goes_wrong_at_once_is_refused_and_does_not_hold_the_event_loop(
    database: DatabaseUrl,
) -> None:
    loop = asyncio.get_running_loop()
    async with a_node_with_triggers(database) as duetime:
        for key in REFUSED:
            began = loop.time()
            with pytest.raises((DuetimeError, LookupError, RecursionError)) as caught:
                await duetime.scheduler.add_schedule("work", Says(key), id=key)
            assert loop.time() - began < CALL_TIMEOUT + MARGIN
            if key not in ("raises", "recurses", "beyond the last", "before the first"):
                assert isinstance(caught.value, InvalidTrigger), key
        assert await duetime.scheduler.get_schedules() == []
        assert "never_ends" not in str(duetime.watchdog.snapshot())
        await works(duetime)


async def test_a_trigger_that_goes_wrong_later_breaks_its_schedule_with_the_reason(
    database: DatabaseUrl, connection: asyncpg.Connection
) -> None:
    async with a_node_with_triggers(database) as duetime:
        for key in BROKEN + ENDED:
            await duetime.scheduler.add_schedule("work", Says(key), id=key, args=[key])
        await eventually(await add_neighbours(duetime))
        for key in BROKEN:

            async def is_broken() -> bool:
                schedule = await duetime.service.get(key)  # noqa: B023 - asked within this round
                return schedule.state is ScheduleState.broken and bool(
                    re.search("its trigger", schedule.broken_reason or "")
                )

            await eventually(is_broken)
        # The fire that was known is made, once.
        await eventually(lambda: settled(connection))
        assert [key for key in BROKEN + ENDED if done.count(key) != 1 and key != "goes back"] == []
        for key in ENDED:
            assert (await duetime.service.get(key)).state is ScheduleState.finished
        await works(duetime)


async def test_a_trigger_that_is_only_odd_fires(database: DatabaseUrl, connection: asyncpg.Connection) -> None:
    async with a_node_with_triggers(database) as duetime:
        for key in FINE:
            await duetime.scheduler.add_schedule("work", Says(key), id=key, args=[key], max_jitter=10**6)
        await duetime.scheduler.add_schedule("work", Says("nothing"), id="nothing")
        await eventually(lambda: _fires(connection, {"the end of time", "the beginning of time", "another zone"}))
        assert (await duetime.service.get("nothing")).state is ScheduleState.finished
        assert (await duetime.service.get("the end of time")).state is ScheduleState.active
        await works(duetime)


async def _fires(connection: asyncpg.Connection, wanted: set[str]) -> bool:
    return wanted <= {row["schedule_id"] for row in await connection.fetch("select schedule_id from duetime.fires")}
