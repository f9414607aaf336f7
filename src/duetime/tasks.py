"""Tasks: ``@task``, and the registry that turns a name into a callable and checks its arguments.

Only what is registered here can be named from outside the process (promise 9).
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from enum import Enum
from functools import partial, wraps
from pathlib import Path
from typing import Any, TypeVar, cast, overload

import apscheduler
from pydantic import (
    BaseModel,
    ConfigDict,
    PydanticSchemaGenerationError,
    PydanticUndefinedAnnotation,
    TypeAdapter,
    ValidationError,
)
from pydantic.errors import PydanticInvalidForJsonSchema
from pydantic_core import ArgsKwargs, to_jsonable_python

from .attempts import NO_RETRY, Retry
from .errors import AmbiguousTask, DuplicateTask, InvalidArguments, InvalidTask, UnknownTask, did_you_mean
from .options import MOST_FAILURES, CatchUp, OnCrash, Overlap, TaskOptions, policy
from .records import Task

AUTO_EXECUTOR = "auto"
"""Name of the executor that awaits ``async def`` functions on the event loop and runs plain ``def`` in threads."""

MAX_NAME_LENGTH = 500

F = TypeVar("F", bound=Callable[..., Any])
T = TypeVar("T")


def reference(func: Callable[..., Any]) -> str:
    """Return ``module:qualname``, the name a function has when it was given none.

    A function of a script run as ``__main__`` is named after the script's importable name, so that
    ``python main.py`` and ``uvicorn main:app`` agree on its stored schedules.
    """
    module = getattr(func, "__module__", None) or "builtins"
    if module == "__main__":
        main = sys.modules["__main__"]
        spec = getattr(main, "__spec__", None)
        if spec is not None:
            module = spec.name.removesuffix(".__main__")
        elif file := getattr(main, "__file__", None):
            module = Path(file).stem
    return f"{module}:{getattr(func, '__qualname__', type(func).__qualname__)}"


def _argument_adapter(func: Callable[..., Any]) -> TypeAdapter[tuple[tuple[Any, ...], dict[str, Any]]]:
    """Return an adapter that checks a call's arguments against the annotations and gives them back, converted."""

    def capture(*args: Any, **kwargs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return args, kwargs

    config = ConfigDict(arbitrary_types_allowed=True)
    try:
        return TypeAdapter(cast("Any", wraps(func)(capture)), config=config)
    except (PydanticUndefinedAnnotation, PydanticSchemaGenerationError, NameError, TypeError):
        # Annotations that cannot be evaluated here (names of a local scope) say nothing: only the names are checked.
        parameters = inspect.signature(func).parameters.values()
        bare = wraps(func, assigned=("__name__", "__qualname__", "__doc__"))(capture)
        del bare.__wrapped__
        bare.__annotations__ = {}
        bare.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
            [parameter.replace(annotation=inspect.Parameter.empty) for parameter in parameters]
        )
        return TypeAdapter(cast("Any", bare), config=config)


def _parameter_names(func: Callable[..., Any]) -> list[str]:
    """Return the function's parameters as a signature shows them, without annotations and defaults."""
    marks: dict[Any, str] = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}
    parameters = inspect.signature(func).parameters.values()
    return [f"{marks.get(parameter.kind, '')}{parameter.name}" for parameter in parameters]


def storable(value: Any) -> Any:
    """Return the value with models, dataclasses, enum members and named tuples in a plain form, at any depth.

    The task function gets them back as what its annotations say, because every call is bound again at run time.
    """
    if isinstance(value, BaseModel) or (hasattr(value, "__dataclass_fields__") and not isinstance(value, type)):
        return to_jsonable_python(value)
    if isinstance(value, dict):
        return {key: storable(item) for key, item in value.items()}
    if isinstance(value, Enum):
        return storable(value.value)
    if isinstance(value, list):
        return [storable(item) for item in value]
    if isinstance(value, tuple):  # a named one is built again from its annotation
        return tuple(storable(item) for item in value)
    if isinstance(value, (set, frozenset)):
        items = [storable(item) for item in value]
        # The JSON form of a model cannot be in a set.
        return items if any(isinstance(item, dict | list) for item in items) else type(value)(items)
    return value


@dataclass(frozen=True, slots=True)
class RegisteredTask:
    """A registered callable: its name, options and argument check."""

    name: str
    func: Callable[..., Any]
    options: TaskOptions
    explicit: bool
    adapter: TypeAdapter[tuple[tuple[Any, ...], dict[str, Any]]] = field(repr=False)

    @property
    def aliases(self) -> tuple[str, ...]:
        """Other names that find this task, unless another task has them too: ``func`` and ``module.func``."""
        if self.explicit:
            return ()
        module, _, qualname = self.name.partition(":")
        return qualname.rpartition(".")[2], f"{module}.{qualname}"

    def bind(
        self, args: Iterable[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Check a call against the function's annotations and return its arguments, converted to them.

        :raises InvalidArguments: naming every argument that is missing, unexpected or of the wrong kind
        """
        given = dict(kwargs or {})
        try:
            bound_args, bound_kwargs = self.adapter.validate_python(ArgsKwargs(tuple(args), given))
        except ValidationError as exc:
            details = [
                {"where": ".".join(map(str, error["loc"])) or "arguments", "problem": error["msg"]}
                for error in exc.errors(include_url=False, include_input=False, include_context=False)
            ]
            listed = "; ".join(f"{detail['where']}: {detail['problem']}" for detail in details)
            raise InvalidArguments(
                f"expected arguments that fit {self.name}({', '.join(_parameter_names(self.func))}), got: {listed}. "
                f"`GET /tasks` shows the JSON Schema of each task's arguments.",
                details=details,
            ) from None
        # Defaults stay the function's own: a stored call must not freeze what they were on the day it was stored.
        return bound_args, {key: value for key, value in bound_kwargs.items() if key in given}

    def record(self) -> Task:
        """Return the task as doors show it."""
        try:
            schema = self.adapter.json_schema()
        except PydanticInvalidForJsonSchema:
            schema = {}
        doc = inspect.getdoc(self.func) or ""
        return Task(
            name=self.name,
            aliases=list(self.aliases),
            description=doc.split("\n\n")[0].replace("\n", " "),
            arguments=schema,
            options=self.options.shown(),
        )


class TaskRegistry:
    """Name → callable, for one process. ``@task`` fills the default one, :data:`registry`."""

    def __init__(self) -> None:
        self._tasks: dict[str, RegisteredTask] = {}

    def add(
        self, func: Callable[..., Any], *, name: str | None = None, options: TaskOptions | None = None
    ) -> RegisteredTask:
        """Register a callable and return it with its argument check.

        Without a name the function's ``module:qualname`` is used, and a later definition of the same function takes
        the place of the earlier one (a reloaded module).

        :raises DuplicateTask: if the explicit name belongs to another function already
        :raises InvalidTask: if the name is not one of 1 to 500 printable characters
        """
        key = reference(func) if name is None else name
        if not (1 <= len(key) <= MAX_NAME_LENGTH and key.isprintable()):
            raise InvalidTask(
                f"expected a task name of 1 to {MAX_NAME_LENGTH} printable characters, got {key[:100]!a}."
            )
        present = self._tasks.get(key)
        if name and present and reference(present.func) != reference(func):
            raise DuplicateTask(
                f"expected each task name once, got {name!r} for {reference(func)} and for "
                f"{reference(present.func)}. Give one of them another name."
            )
        registered = RegisteredTask(
            name=key,
            func=func,
            options=options or TaskOptions(),
            explicit=name is not None,
            adapter=_argument_adapter(func),
        )
        self._tasks[key] = registered
        return registered

    def get(self, name: str) -> RegisteredTask | None:
        """Return the task of exactly that name, or None."""
        return self._tasks.get(name)

    def find(self, name: str) -> RegisteredTask:
        """Return the task of that name or alias.

        :raises UnknownTask: if there is none; the message names the closest
        :raises AmbiguousTask: if the alias fits several tasks
        """
        if exact := self._tasks.get(name):
            return exact
        fitting = [task for task in self._tasks.values() if name in task.aliases]
        if len(fitting) == 1:
            return fitting[0]
        if fitting:
            names = ", ".join(sorted(task.name for task in fitting))
            raise AmbiguousTask(
                f"expected a name that fits one task, got {name!r}, which fits {names}. Use one of them."
            )
        raise UnknownTask(name, [*self._tasks, *(alias for task in self._tasks.values() for alias in task.aliases)])

    def __iter__(self) -> Iterator[RegisteredTask]:
        return iter(sorted(self._tasks.values(), key=lambda task: task.name))

    def __len__(self) -> int:
        return len(self._tasks)


registry = TaskRegistry()
"""The registry that ``@task`` fills and that ``Duetime`` uses unless it is given another."""


class _Checks:
    """Checks the options of ``@task``, and keeps what is wrong with each."""

    def __init__(self) -> None:
        self.problems: list[str] = []

    def of(self, check: Callable[..., T], *given: Any) -> T | None:
        """Return what the check makes of what was given, or None if that has no meaning."""
        try:
            return check(*given)
        except (ValueError, OverflowError) as exc:
            self.problems.append(str(exc))
            return None

    def maybe(self, check: Callable[..., T], *given: Any) -> T | None:
        """Return the same, of an option that may be left out (None)."""
        return None if given[0] is None else self.of(check, *given)

    def raise_any(self) -> None:
        """Do nothing if nothing is wrong.

        :raises InvalidTask: with all that is
        """
        if self.problems:
            raise InvalidTask(f"expected {'; '.join(self.problems)}.")


def _duration(value: float | timedelta, option: str) -> timedelta:
    if isinstance(value, timedelta):
        duration = value
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        try:
            duration = timedelta(seconds=value)
        except (ValueError, OverflowError) as exc:
            raise ValueError(f"{option} in seconds that a timedelta can have, got {value!r}: {exc}") from None
    else:
        raise ValueError(f"{option} in seconds or as a timedelta, got {value!r}")
    if duration <= timedelta(0):
        raise ValueError(f"{option} to be longer than zero, got {value!r}")
    return duration


def _retry(value: Retry) -> Retry:
    if not isinstance(value, Retry):
        raise ValueError(f"retry to be a Retry, such as Retry(max_attempts=5), got {value!r}")
    return value


def _most(value: int) -> int:
    if type(value) is not int or value < 1:
        raise ValueError(f"max_running_jobs to be 1 or more, or None for no limit, got {value!r}")
    return value


def _position(func: Callable[..., Any], name: str) -> int | None:
    """Return the place of a parameter among those that may be given without their names, or None.

    :raises ValueError: if the function has no such parameter
    """
    kinds = inspect.Parameter
    parameters = [
        each
        for each in inspect.signature(func).parameters.values()
        if each.kind not in (kinds.VAR_POSITIONAL, kinds.VAR_KEYWORD)
    ]
    for position, parameter in enumerate(parameters):
        if parameter.name == name:
            return None if parameter.kind is kinds.KEYWORD_ONLY else position
    names = [each.name for each in parameters]
    hint = did_you_mean(name, names).removesuffix(".") if isinstance(name, str) else ""
    raise ValueError(f"concurrency_key to be a parameter of {reference(func)}, got {name!r}{hint}")


def _hook_name(hook: str | Callable[..., Any]) -> str:
    if isinstance(hook, str) and 1 <= len(hook) <= MAX_NAME_LENGTH and hook.isprintable():
        return hook
    if name := next((task.name for task in registry if task.func is hook), None):
        return name
    raise ValueError(
        f"on_failure to be the name of a task, or a function that is decorated with @task above this one, got {hook!r}"
    )


def _failures(count: int) -> int:
    if type(count) is not int or not 1 <= count <= MOST_FAILURES:
        raise ValueError(f"pause_on_failure to be 1 to {MOST_FAILURES}, or None for never, got {count!r}")
    return count


@overload
def task(func: F, /) -> F: ...


@overload
def task(
    *,
    name: str | None = ...,
    timeout: float | timedelta | None = ...,
    retry: Retry | None = ...,
    overlap: Overlap | str = ...,
    on_crash: OnCrash | str = ...,
    catch_up: CatchUp | str | None = ...,
    catch_up_window: float | timedelta | None = ...,
    catch_up_overlap: Overlap | str = ...,
    priority: int = ...,
    concurrency_key: str | None = ...,
    max_running_per_key: int | None = ...,
    start_deadline: float | timedelta | None = ...,
    on_failure: str | Callable[..., Any] | None = ...,
    pause_on_failure: int | None = ...,
    misfire_grace_time: float | timedelta | None = ...,
    max_running_jobs: int | None = ...,
    executor: str = ...,
) -> Callable[[F], F]: ...


def task(
    func: F | None = None,
    /,
    *,
    name: str | None = None,
    timeout: float | timedelta | None = None,
    retry: Retry | None = None,
    overlap: Overlap | str = Overlap.skip,
    on_crash: OnCrash | str = OnCrash.retry,
    catch_up: CatchUp | str | None = None,
    catch_up_window: float | timedelta | None = None,
    catch_up_overlap: Overlap | str = Overlap.buffer_all,
    priority: int = 0,
    concurrency_key: str | None = None,
    max_running_per_key: int | None = None,
    start_deadline: float | timedelta | None = None,
    on_failure: str | Callable[..., Any] | None = None,
    pause_on_failure: int | None = None,
    misfire_grace_time: float | timedelta | None = None,
    max_running_jobs: int | None = None,
    executor: str = AUTO_EXECUTOR,
) -> F | Callable[[F], F]:
    """Register a function as a task, so that it can be scheduled by name and found again after a restart.

    Plain ``def`` functions run in threads and never block the event loop; ``async def`` functions run on it.

    :param name: stable name in the store and in requests; default ``module:function``. A task with a name survives
        moving the function to another module
    :param timeout: seconds (or ``timedelta``) one attempt may take; default no limit. An ``async def`` is cancelled;
        a thread cannot be, so its result is dropped and the run is recorded as timed out
    :param retry: when and how often a failed attempt is made again; default not at all
    :param overlap: what happens when a fire is due and the schedule's last job has not ended; default ``skip``
    :param on_crash: what happens to a job whose node died; default ``retry`` (at least once)
    :param catch_up: which fires run of those that fell due while nobody was up: ``all``, ``latest`` or ``none``;
        default: as the schedule's coalesce policy says, which is ``latest`` unless it is given another
    :param catch_up_window: seconds (or ``timedelta``) that a fire may lie back to be made up for; default no limit
    :param catch_up_overlap: ``overlap`` of several fires that are made up for; default ``buffer_all``
    :param priority: 0 (default) to 9: of the queued jobs that are due, those with a higher one are claimed first
    :param concurrency_key: name of a parameter (``"customer"``): of the jobs with the same argument for it, at most
        ``max_running_per_key`` run at the same time, over all nodes; default: nothing is counted
    :param max_running_per_key: default 1, with a ``concurrency_key``
    :param start_deadline: seconds (or ``timedelta``) that a job may wait in the queue, before each of its attempts,
        from when it could have started; default no limit
    :param on_failure: task (its name, or the decorated function) that is run once when a job has failed for good or was
        abandoned, with the argument ``failure``, a :class:`~duetime.Failure`; default none
    :param pause_on_failure: fires of a schedule that fail in a row before the schedule is paused, 1 to 100; default
        never
    :param misfire_grace_time: seconds (or ``timedelta``) a start may be late, counted from the fire's time, before the
        fire is recorded as missed; default no limit
    :param max_running_jobs: jobs of this task that may run at the same time, over all nodes; default no limit
    :param executor: ``auto`` (default), ``async``, ``threadpool`` or ``processpool``
    :raises InvalidTask: if options have no meaning or contradict each other; the message names all that is wrong
    :raises DuplicateTask: if the name belongs to another function
    """

    def decorate(target: F) -> F:
        if not callable(target):
            raise InvalidTask(f"expected a function to decorate with @task, got {target!r}.")
        checks = _Checks()
        options = TaskOptions(
            timeout=checks.maybe(_duration, timeout, "timeout"),
            retry=checks.maybe(_retry, retry) or NO_RETRY,
            overlap=checks.of(partial(policy, Overlap), overlap, "overlap") or Overlap.skip,
            on_crash=checks.of(partial(policy, OnCrash), on_crash, "on_crash") or OnCrash.retry,
            catch_up=checks.maybe(partial(policy, CatchUp), catch_up, "catch_up"),
            catch_up_window=checks.maybe(_duration, catch_up_window, "catch_up_window"),
            catch_up_overlap=checks.of(partial(policy, Overlap), catch_up_overlap, "catch_up_overlap")
            or Overlap.buffer_all,
            priority=priority,
            concurrency_key=concurrency_key,
            concurrency_position=checks.maybe(partial(_position, target), concurrency_key),
            max_running_per_key=1 if concurrency_key and max_running_per_key is None else max_running_per_key,
            start_deadline=checks.maybe(_duration, start_deadline, "start_deadline"),
            on_failure=checks.maybe(_hook_name, on_failure),
            pause_on_failure=checks.maybe(_failures, pause_on_failure),
        )
        grace_time = checks.maybe(_duration, misfire_grace_time, "misfire_grace_time")
        checks.maybe(_most, max_running_jobs)
        checks.problems += options.problems()
        checks.raise_any()
        registered = registry.add(target, name=name, options=options)
        return apscheduler.task(
            id=registered.name,
            job_executor=executor,
            max_running_jobs=max_running_jobs,
            misfire_grace_time=grace_time,
            metadata=options.to_metadata(),
        )(target)

    return decorate if func is None else decorate(func)
