"""What v3's scheduler was constructed with, for a v4 scheduler: its time zone and what jobs get by default."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import tzinfo
from typing import Any
from weakref import WeakKeyDictionary

from apscheduler import AsyncScheduler
from tzlocal import get_localzone

from ...errors import InvalidArguments, InvalidSettings, NoEquivalent, did_you_mean
from ...scheduler import DuetimeScheduler
from ...tasks import AUTO_EXECUTOR
from .moments import as_zone

EXECUTORS = (AUTO_EXECUTOR, "async", "threadpool", "processpool")
"""Executors that there are; v3's ``default`` is that of the task."""


@dataclass(frozen=True, slots=True)
class Defaults:
    """What a job gets that says nothing of its own; v3's defaults, which are none of APScheduler 4.

    :ivar timezone: of triggers that have none, and of times without an offset; None: the machine's, as in v3
    :ivar misfire_grace_time: seconds; None: never too late
    :ivar executors: v3's alias → the executor here
    """

    timezone: tzinfo | None = None
    misfire_grace_time: int | None = 1
    coalesce: bool = True
    max_instances: int = 1
    executors: Mapping[str, str] = field(default_factory=dict)

    @property
    def zone(self) -> tzinfo:
        """The time zone of triggers that have none."""
        return get_localzone() if self.timezone is None else self.timezone


_STOCK = Defaults()
_given: WeakKeyDictionary[AsyncScheduler, Defaults] = WeakKeyDictionary()


def configure(
    scheduler: AsyncScheduler,
    *,
    timezone: str | tzinfo | None = None,
    job_defaults: Mapping[str, Any] | None = None,
    executors: Mapping[str, str] | None = None,
) -> None:
    """Say what v3's scheduler was constructed with, for the calls of this module on that scheduler.

    :param timezone: of triggers that have none, and of times without an offset; default: the machine's, as in v3
    :param job_defaults: ``misfire_grace_time`` (default 1), ``coalesce`` (default True), ``max_instances`` (default 1)
    :param executors: v3's alias of an executor → ``auto``, ``async``, ``threadpool`` or ``processpool``
    :raises InvalidSettings: if one of them has no meaning
    """
    given = dict(job_defaults or {})
    known = ("misfire_grace_time", "coalesce", "max_instances")
    for name in given:
        if name not in known:
            raise InvalidSettings(
                f"expected job_defaults of {', '.join(known)}, got {name!r}{did_you_mean(name, known)}"
            )
    for alias, name in (executors or {}).items():
        if name not in EXECUTORS:
            raise InvalidSettings(
                f"expected the executor {alias!r} to be one of {', '.join(EXECUTORS)}, got {name!r}. Pools and their "
                f"sizes are not configured here; Settings.max_concurrent_jobs limits a node."
            )
    grace = given.get("misfire_grace_time", _STOCK.misfire_grace_time)
    _given[own(scheduler)] = Defaults(
        timezone=None if timezone is None else as_zone(timezone),
        misfire_grace_time=None if grace is None else int(grace),
        coalesce=bool(given.get("coalesce", _STOCK.coalesce)),
        max_instances=int(given.get("max_instances", _STOCK.max_instances)),
        executors=dict(executors or {}),
    )


def defaults_of(scheduler: AsyncScheduler) -> Defaults:
    """Return what :func:`configure` was told of a scheduler, or v3's own defaults."""
    return _given.get(scheduler, _STOCK)


def own(scheduler: AsyncScheduler) -> DuetimeScheduler:
    """Return the scheduler if it is Duetime's.

    :raises InvalidArguments: if it is another one, of which nobody knows whether it could keep v3's meaning
    """
    if not isinstance(scheduler, DuetimeScheduler):
        raise InvalidArguments(
            f"expected Duetime's scheduler (duetime.scheduler, or a SchedulerDep), got {type(scheduler).__name__}."
        )
    return scheduler


def executor_of(scheduler: AsyncScheduler, alias: str) -> str | None:
    """Return the executor that v3's alias stands for; None: the task's own.

    :raises NoEquivalent: if it stands for none
    """
    chosen = defaults_of(scheduler).executors.get(alias, alias)
    if chosen in EXECUTORS:
        return chosen
    if chosen == "default":
        return None
    raise NoEquivalent(
        f"expected an executor that stands for one here, got {alias!r}. Say which: configure(scheduler, "
        f"executors={{{alias!r}: 'threadpool'}}); there are {', '.join(EXECUTORS)}."
    )


def only_store(jobstore: str | None) -> None:
    """Do nothing if the job store is the one that there is.

    :raises NoEquivalent: if it is another one
    """
    if jobstore not in (None, "default"):
        raise NoEquivalent(
            f"expected the job store 'default', got {jobstore!r}: there is one store, which is PostgreSQL. Leave the "
            f"job store out; a tag can tell such jobs from the others."
        )
