"""Jobs of v3 as they are read, made by hand."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

from duetime.v3.model import V3Cron, V3Interval, V3Job, V3Trigger, V3Zone

DEFAULTS = {
    "year": "*",
    "month": "*",
    "day": "*",
    "week": "*",
    "day_of_week": "*",
    "hour": "*",
    "minute": "0",
    "second": "0",
}


def utc(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def zone(name: str = "Europe/Berlin", flavour: str = "zoneinfo") -> V3Zone:
    return V3Zone(name, ZoneInfo(name), flavour)


def cron(timezone: V3Zone | None = None, **fields: str) -> V3Cron:
    """Return a cron trigger; fields that are left out are ``*``, but for the minute and the second, which are 0."""
    start, end, jitter = (fields.pop(name, None) for name in ("start_date", "end_date", "jitter"))
    return V3Cron(
        DEFAULTS | fields,
        utc(start) if start else None,
        utc(end) if end else None,
        timezone or zone(),
        float(jitter) if jitter else None,
    )


def interval(start: str, end: str | None = None, jitter: float | None = None, **amounts: float) -> V3Interval:
    return V3Interval(timedelta(**amounts), utc(start), utc(end) if end else None, zone(), jitter)


def job(trigger: V3Trigger, next_run_time: datetime | None, **said: Any) -> V3Job:
    settings: Mapping[str, Any] = {
        "id": "a-job",
        "func": "shop:remind",
        "executor": "default",
        "args": (),
        "kwargs": {},
        "name": "remind",
        "misfire_grace_time": 1,
        "coalesce": True,
        "max_instances": 1,
        **said,
    }
    return V3Job(trigger=trigger, next_run_time=next_run_time, **settings)
