"""Many schedules for one call, each said as :meth:`AsyncScheduler.add_schedule` takes it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping
from datetime import datetime, timedelta
from functools import partial
from inspect import ismethod
from typing import Any, cast
from uuid import uuid4

from apscheduler import CoalescePolicy, Schedule, Task
from apscheduler._utils import unset
from apscheduler.abc import Trigger

from .errors import InvalidArguments, did_you_mean
from .store.breathing import Breath

_NAMES = frozenset(
    {
        "func_or_task_id", "trigger", "id", "args", "kwargs", "paused", "coalesce", "job_executor",
        "misfire_grace_time", "metadata", "max_jitter", "job_result_expiration_time",
    }
)  # fmt: skip


_NO_TIME = timedelta(0)


class Drafts:
    """Makes schedules of what a caller says of each, and asks for each task once.

    :param configure: returns the stored task of a function or of a task's name
    :param begin: returns a trigger that knows its first fire time
    """

    def __init__(
        self, configure: Callable[[Any], Awaitable[Task]], begin: Callable[[Trigger], Awaitable[Trigger]]
    ) -> None:
        self._configure = configure
        self._begin = begin
        self._tasks: dict[Any, Task] = {}

    async def schedules(self, items: Iterable[Schedule | Mapping[str, Any]]) -> list[Schedule]:
        """Return the schedules.

        :raises InvalidArguments: naming the place of one that is not a schedule, and what is wrong with it
        """
        breath = Breath()
        made: list[Schedule] = []
        for place, item in enumerate(items):
            try:
                made.append(item if isinstance(item, Schedule) else await self._schedule(item))
            except (TypeError, ValueError, KeyError) as exc:
                if isinstance(exc, InvalidArguments):
                    raise
                raise InvalidArguments(
                    f"schedules[{place}]: expected the arguments of add_schedule as a dict, or an "
                    f"apscheduler.Schedule, got: {exc}."
                ) from exc
            await breath.taken()
        return made

    async def _schedule(self, item: Mapping[str, Any]) -> Schedule:
        options = dict(item)
        for name in options:
            if name not in _NAMES:
                raise ValueError(f"the unknown name {name!r}{did_you_mean(name, sorted(_NAMES))}")
        func: Any = options.pop("func_or_task_id", None)
        trigger = options.pop("trigger", None)
        if func is None or trigger is None:
            raise ValueError("no func_or_task_id" if func is None else "no trigger")
        if not isinstance(trigger, Trigger):
            raise TypeError(f"a trigger of type {type(trigger).__name__}")
        trigger = await self._begin(trigger)
        args, kwargs = tuple(options.pop("args", None) or ()), dict(options.pop("kwargs", None) or {})
        if isinstance(func, partial):
            func, args, kwargs = func.func, (*func.args, *args), {**func.keywords, **kwargs}
        if ismethod(func):
            func, args = func.__func__, (func.__self__, *args)
        if (task := self._tasks.get(func)) is None:
            task = self._tasks[func] = await self._configure(func)
        own = options.pop("metadata", None)
        given = {name: value for name, value in options.items() if value is not unset}
        if given.get("id") is None:
            given["id"] = str(uuid4())
        values: dict[str, Any] = {
            "coalesce": CoalescePolicy.latest,
            "misfire_grace_time": task.misfire_grace_time,
            "max_jitter": None,
            "job_executor": task.job_executor,
            "job_result_expiration_time": _NO_TIME,
            **given,
        }
        return Schedule(
            task_id=task.id,
            trigger=trigger,
            args=args,
            kwargs=kwargs,
            metadata=task.metadata if not own else {**task.metadata, **own},
            next_fire_time=cast("datetime", trigger.next()),
            **values,
        )
