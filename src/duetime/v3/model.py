"""What a row of APScheduler 3 says, as inert data: nothing here imports, calls or knows anything of the application."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta, tzinfo
from typing import Any, TypeAlias


@dataclass(frozen=True, slots=True)
class V3Row:
    """A row of ``apscheduler_jobs`` as it is stored.

    :ivar id: text of at most 191 characters
    :ivar next_run_time: seconds since 1970; None if the job is paused
    :ivar job_state: the pickle of a dict of 12 keys
    """

    id: str
    next_run_time: float | None
    job_state: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class V3Zone:
    """A time zone, whatever class it had.

    :ivar name: IANA name, or None if it is a fixed offset
    :ivar tzinfo: a ``ZoneInfo``, or a ``datetime.timezone`` for fixed offsets and UTC
    :ivar flavour: where it came from: ``pytz``, ``shim``, ``zoneinfo``, ``dateutil`` or ``datetime``
    """

    name: str | None
    tzinfo: tzinfo
    flavour: str


@dataclass(frozen=True, slots=True)
class V3Date:
    """Once, at ``run_date`` (aware)."""

    run_date: datetime


@dataclass(frozen=True, slots=True)
class V3Interval:
    """Every ``interval`` from ``start_date`` to ``end_date`` (aware, the end inclusive).

    :ivar jitter: seconds; ± in 3.6 and 3.7, from 0 up in later releases
    """

    interval: timedelta
    start_date: datetime
    end_date: datetime | None
    timezone: V3Zone
    jitter: float | None = None


@dataclass(frozen=True, slots=True)
class V3Cron:
    """The instants whose local time fits all fields.

    :ivar fields: all eight, from ``year`` to ``second``, as text in v3's spelling (weekday 0 is Monday)
    :ivar defaults: names of the fields that were left to their default
    """

    fields: Mapping[str, str]
    start_date: datetime | None
    end_date: datetime | None
    timezone: V3Zone
    jitter: float | None = None
    defaults: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class V3CalendarInterval:
    """Every so many years, months, weeks and days from ``start_date``, at a time of day (3.11)."""

    years: int
    months: int
    weeks: int
    days: int
    hour: int
    minute: int
    second: int
    start_date: date
    end_date: date | None
    timezone: V3Zone
    jitter: float | None = None


@dataclass(frozen=True, slots=True)
class V3And:
    """The instants that all members have in common."""

    triggers: tuple[V3Trigger, ...]
    jitter: float | None = None


@dataclass(frozen=True, slots=True)
class V3Or:
    """The earliest instant of any member."""

    triggers: tuple[V3Trigger, ...]
    jitter: float | None = None


@dataclass(frozen=True, slots=True)
class V3Unknown:
    """A trigger of the application's own, which cannot be read without importing it.

    :ivar reference: ``module:class``
    """

    reference: str


V3Trigger: TypeAlias = V3Date | V3Interval | V3Cron | V3CalendarInterval | V3And | V3Or | V3Unknown


@dataclass(frozen=True, slots=True)
class V3Job:
    """A job of APScheduler 3.

    :ivar func: ``module:qualified.name``, as v3 stored it
    :ivar args: plain data; what could not be carried stands in as :class:`Unreadable`
    :ivar misfire_grace_time: seconds; None: never too late
    :ivar next_run_time: aware; None if the job is paused
    :ivar version: of the pickled state; 1 in all releases from 3.0 on
    """

    id: str
    func: str
    trigger: V3Trigger
    executor: str
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    name: str
    misfire_grace_time: float | None
    coalesce: bool
    max_instances: int
    next_run_time: datetime | None
    version: int = 1


@dataclass(frozen=True, slots=True)
class Unreadable:
    """Stands for a value in a job's arguments that is not carried over.

    :ivar what: the class or function it needs, as ``module:name``
    """

    what: str


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that is to be said of a row.

    :ivar code: stable, such as ``unreadable_pickle`` or ``unknown_class``
    :ivar text: a sentence for the operator: what was found, and what can be done
    :ivar severity: ``note`` (carried over by itself), ``review`` (a person must look) or ``reject`` (never imported)
    """

    code: str
    text: str
    severity: str


@dataclass(frozen=True, slots=True)
class Reading:
    """What a row was found to say.

    :ivar job: None if the row cannot be read at all
    """

    row: V3Row
    job: V3Job | None
    findings: tuple[Finding, ...] = ()
