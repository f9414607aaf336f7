"""What v3's options of a job become, and whether they have a meaning."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from datetime import timedelta
from functools import partial
from typing import Any

from apscheduler import CoalescePolicy

from ...errors import InvalidArguments
from ...options import METADATA_PREFIX, Overlap
from ...scheduler import DuetimeScheduler

NAME = "name"
"""Metadata key of a job's name."""

MAX_INSTANCES = "max_instances"
"""Metadata key of how many instances of a job v3 let run at once, where that is more than one."""

OVERLAP = f"{METADATA_PREFIX}overlap"


def call_of(
    scheduler: DuetimeScheduler,
    func: Callable[..., Any] | str,
    args: Iterable[Any] | None,
    kwargs: Mapping[str, Any] | None,
    *,
    is_known: bool = False,
) -> tuple[Callable[..., Any] | str, tuple[Any, ...], dict[str, Any]]:
    """Return what is called, and with what, checked against the function's parameters as v3 did.

    :param is_known: the function is the stored one, which this process may not have
    """
    if isinstance(args, str) or (args is not None and not isinstance(args, Iterable)):
        raise InvalidArguments(f"expected args as a list or a tuple, got {args!r:.60}.")
    if kwargs is not None and not isinstance(kwargs, Mapping):
        raise InvalidArguments(f"expected kwargs as a dict, got {kwargs!r:.60}.")
    positional, named = tuple(args or ()), dict(kwargs or {})
    if isinstance(func, str):
        registered = scheduler.registry.get(func) if is_known else scheduler.registry.find(func)
        target = None if registered is None else registered.func
        func = func if registered is None else registered.name
    elif callable(func):
        target = func
    else:
        raise InvalidArguments(f"expected a function or the name of a task, got {func!r:.60}.")
    if target is not None:
        try:
            inspect.signature(target).bind(*positional, **named)
        except TypeError as exc:
            raise InvalidArguments(
                f"expected arguments that fit {name_of(target)}, got args={positional!r:.100} and "
                f"kwargs={named!r:.100}: {exc}."
            ) from None
        except ValueError:  # a built-in function that does not say what it takes
            pass
    return func, positional, named


def name_of(func: Callable[..., Any] | str) -> str:
    if isinstance(func, str):
        return func.rpartition(":")[2]
    if isinstance(func, partial):
        return name_of(func.func)
    return getattr(func, "__qualname__", type(func).__qualname__)


def checked_name(name: Any) -> str:
    if not isinstance(name, str) or not name:
        raise InvalidArguments(f"expected a name that is text and not empty, got {name!r:.60}.")
    return name


def grace_of(seconds: Any) -> timedelta | None:
    if seconds is None:
        return None
    if not isinstance(seconds, (int, float)) or isinstance(seconds, bool) or seconds <= 0:
        raise InvalidArguments(
            f"expected misfire_grace_time in seconds, more than 0, or None for no limit, got {seconds!r:.60}."
        )
    return timedelta(seconds=seconds)


def coalesce_of(given: Any) -> CoalescePolicy:
    return CoalescePolicy.latest if given else CoalescePolicy.all


def overlap_of(instances: Any) -> dict[str, Any]:
    if not isinstance(instances, int) or isinstance(instances, bool) or instances < 1:
        raise InvalidArguments(f"expected max_instances of 1 or more, got {instances!r:.60}.")
    if instances == 1:
        return {OVERLAP: str(Overlap.skip)}
    return {OVERLAP: str(Overlap.allow), MAX_INSTANCES: instances}
