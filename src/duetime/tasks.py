"""Tasks: ``@task``, its options, and the registry that turns a name into a callable and checks its arguments.

Only what is registered here can be named from outside the process (promise 9).
Options travel in APScheduler's own ``metadata`` of the task, under flat keys with the prefix ``duetime.``, so the
stock scheduler hands them on from task to schedule to job without knowing them.
"""

from __future__ import annotations

import inspect
import random
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from enum import Enum, StrEnum
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, TypeVar, cast, overload

import apscheduler
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PydanticSchemaGenerationError,
    PydanticUndefinedAnnotation,
    TypeAdapter,
    ValidationError,
)
from pydantic.errors import PydanticInvalidForJsonSchema
from pydantic_core import ArgsKwargs, to_jsonable_python

from .errors import AmbiguousTask, DuplicateTask, InvalidArguments, InvalidTask, UnknownTask
from .records import Task

AUTO_EXECUTOR = "auto"
"""Name of the executor that awaits ``async def`` functions on the event loop and runs plain ``def`` in threads."""

MAX_NAME_LENGTH = 500

METADATA_PREFIX = "duetime."
"""Metadata keys with this prefix are Duetime's own; they are not shown as the caller's metadata."""

F = TypeVar("F", bound=Callable[..., Any])


class Overlap(StrEnum):
    """What happens when a fire is due and an earlier job of the same schedule has not ended.

    ``skip``: the fire is recorded as skipped and nothing runs (the default; as Temporal's) · ``allow``: both run.
    """

    skip = "skip"
    allow = "allow"


class OnCrash(StrEnum):
    """What happens to a job whose node died: ``retry`` runs it again (at least once), ``abandon`` records it as
    abandoned (at most once)."""

    retry = "retry"
    abandon = "abandon"


class Retry(BaseModel):
    """When and how often a failed attempt is made again: exponential back-off with jitter and a cap.

    Attempt *n* is followed, after ``min(max_backoff, backoff * factor ** (n - 1))`` seconds, give or take
    ``jitter`` of it, by attempt *n* + 1, until ``max_attempts`` have failed.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_attempts: Annotated[int, Field(ge=1, le=1000, description="Attempts in all, the first included.")] = 5
    backoff: Annotated[float, Field(ge=0, le=31_536_000, description="Seconds before the second attempt.")] = 1.0
    factor: Annotated[
        float, Field(ge=1, le=1000, description="Each further wait is this many times the one before.")
    ] = 2.0
    max_backoff: Annotated[
        float, Field(ge=0, le=31_536_000, description="No wait is longer than this, in seconds.")
    ] = 300.0
    jitter: Annotated[float, Field(ge=0, le=1, description="Random part of each wait, as a fraction.")] = 0.1

    def delay(self, attempt: int) -> timedelta | None:
        """Return how long to wait after the given failed attempt (1 is the first), or None to give up."""
        if attempt >= self.max_attempts:
            return None
        try:
            wait = min(self.max_backoff, self.backoff * self.factor ** (attempt - 1))
        except OverflowError:  # a float ends long before a thousandth attempt
            wait = self.max_backoff if self.backoff else 0.0
        return timedelta(seconds=wait * (1 + random.uniform(-self.jitter, self.jitter)))  # noqa: S311 - spreading load


NO_RETRY = Retry(max_attempts=1)


@dataclass(frozen=True, slots=True)
class TaskOptions:
    """Options of a task's jobs. Durations are ``timedelta``; None means "no limit"."""

    timeout: timedelta | None = None
    retry: Retry = NO_RETRY
    overlap: Overlap = Overlap.skip
    on_crash: OnCrash = OnCrash.retry

    def to_metadata(self) -> dict[str, Any]:
        """Return the options as APScheduler metadata (flat keys, JSON values, seconds).

        What says "no limit" and "no retry" is left out: metadata rides with every schedule and every job.
        """
        metadata: dict[str, Any] = {
            f"{METADATA_PREFIX}overlap": str(self.overlap),
            f"{METADATA_PREFIX}on_crash": str(self.on_crash),
        }
        if self.timeout is not None:
            metadata[f"{METADATA_PREFIX}timeout"] = self.timeout.total_seconds()
        if self.retry != NO_RETRY:
            metadata[f"{METADATA_PREFIX}retry"] = self.retry.model_dump()
        return metadata

    def shown(self) -> dict[str, Any]:
        """Return the options as doors show them: all of them, in seconds."""
        return {
            "timeout": None if self.timeout is None else self.timeout.total_seconds(),
            "retry": self.retry.model_dump(),
            "overlap": str(self.overlap),
            "on_crash": str(self.on_crash),
        }

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, Any]) -> TaskOptions:
        """Read options back from metadata; a missing key has the stock meaning (no retry, overlap allowed)."""
        timeout = metadata.get(f"{METADATA_PREFIX}timeout")
        retry = metadata.get(f"{METADATA_PREFIX}retry")
        return cls(
            timeout=None if timeout is None else timedelta(seconds=timeout),
            retry=NO_RETRY if retry is None else Retry.model_validate(retry),
            overlap=Overlap(metadata.get(f"{METADATA_PREFIX}overlap", Overlap.allow)),
            on_crash=OnCrash(metadata.get(f"{METADATA_PREFIX}on_crash", OnCrash.retry)),
        )


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


def _as_timedelta(value: float | timedelta | None, option: str) -> timedelta | None:
    if value is None or isinstance(value, timedelta):
        duration = value
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        duration = timedelta(seconds=value)
    else:
        raise InvalidTask(f"expected {option} in seconds or as a timedelta, got {value!r}.")
    if duration is not None and duration <= timedelta(0):
        raise InvalidTask(f"expected {option} to be longer than zero, got {value!r}.")
    return duration


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
    :param misfire_grace_time: seconds (or ``timedelta``) a start may be late before the fire is recorded as missed;
        default no limit
    :param max_running_jobs: jobs of this task that may run at the same time, over all nodes; default no limit
    :param executor: ``auto`` (default), ``async``, ``threadpool`` or ``processpool``
    :raises InvalidTask: if an option has no meaning
    :raises DuplicateTask: if the name belongs to another function
    """

    def decorate(target: F) -> F:
        if not callable(target):
            raise InvalidTask(f"expected a function to decorate with @task, got {target!r}.")
        if retry is not None and not isinstance(retry, Retry):
            raise InvalidTask(f"expected retry to be a Retry, such as Retry(max_attempts=5), got {retry!r}.")
        if max_running_jobs is not None and (type(max_running_jobs) is not int or max_running_jobs < 1):
            raise InvalidTask(
                f"expected max_running_jobs to be 1 or more, or None for no limit, got {max_running_jobs!r}."
            )
        try:
            options = TaskOptions(
                timeout=_as_timedelta(timeout, "timeout"),
                retry=retry or NO_RETRY,
                overlap=Overlap(overlap),
                on_crash=OnCrash(on_crash),
            )
            grace_time = _as_timedelta(misfire_grace_time, "misfire_grace_time")
        except (ValueError, OverflowError) as exc:
            raise InvalidTask(f"expected a known option for @task: {exc}.") from None
        registered = registry.add(target, name=name, options=options)
        return apscheduler.task(
            id=registered.name,
            job_executor=executor,
            max_running_jobs=max_running_jobs,
            misfire_grace_time=grace_time,
            metadata=options.to_metadata(),
        )(target)

    return decorate if func is None else decorate(func)
