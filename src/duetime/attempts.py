"""Attempts: when a failed one is made again, and what a task can know of the one that it is in."""

from __future__ import annotations

import builtins
import random
import re
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import timedelta
from typing import Annotated, Any, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_serializer, model_validator
from pydantic_core.core_schema import SerializerFunctionWrapHandler

from .errors import NotInJob, did_you_mean

MAX_KINDS = 50
"""Kinds of errors that a policy may name."""

_QUALIFIED = re.compile(r"[^\W\d]\w*(\.([^\W\d]\w*|<locals>))*")
_BUILTIN = {name for name, value in vars(builtins).items() if isinstance(value, type) and issubclass(value, Exception)}


def error_name(kind: type[BaseException]) -> str:
    """Return the name by which a policy knows a class of errors: ``ValueError``, ``package.module.Class``."""
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def _kind(given: Any) -> str:
    """Return the name of a kind of errors, given as a class or as a name.

    :raises ValueError: if it is neither
    """
    if isinstance(given, type) and issubclass(given, Exception):
        return error_name(given)
    if not (isinstance(given, str) and len(given) <= 500 and _QUALIFIED.fullmatch(given)):
        raise ValueError(
            f"expected an exception's qualified name such as 'ConnectionError' or 'httpx.ConnectTimeout', got {given!r}"
        )
    name = given.removeprefix("builtins.")
    if "." not in name and name not in _BUILTIN:
        raise ValueError(
            f"expected a name with its module, as 'httpx.ConnectTimeout', or one of Python's own exceptions, got "
            f"{name!r}{did_you_mean(name, _BUILTIN)}"
        )
    return name


_Kinds = tuple[Annotated[str, BeforeValidator(_kind)], ...]


class Retry(BaseModel):
    """When and how often a failed attempt is made again: exponential back-off with jitter and a cap.

    Attempt *n* is followed, after ``min(max_backoff, backoff * factor ** (n - 1))`` seconds, give or take
    ``jitter`` of it, by attempt *n* + 1, until ``max_attempts`` have failed. ``retry_on`` and ``give_up_on`` say for
    which errors; where both fit, ``give_up_on`` does. In code they may be exception classes:
    ``Retry(retry_on=[ConnectionError, httpx.TimeoutException])``.
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
    retry_on: Annotated[
        _Kinds,
        Field(
            max_length=MAX_KINDS,
            description="Exceptions after which it is tried again, by qualified name, with all their subclasses; "
            "empty: after any.",
            examples=[["ConnectionError", "httpx.TimeoutException"]],
        ),
    ] = ()
    give_up_on: Annotated[
        _Kinds,
        Field(
            max_length=MAX_KINDS,
            description="Exceptions after which it is not tried again, by qualified name, with all their subclasses.",
            examples=[["ValueError"]],
        ),
    ] = ()

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        problems = []
        if both := sorted({*self.retry_on} & {*self.give_up_on}):
            problems.append(f"{', '.join(both)} in retry_on or in give_up_on, not in both")
        if self.max_attempts == 1 and (self.retry_on or self.give_up_on):
            problems.append("max_attempts of 2 or more with retry_on or give_up_on, since 1 never tries again")
        if problems:
            raise ValueError("expected " + "; and ".join(problems))
        return self

    @model_serializer(mode="wrap")
    def _without_what_is_empty(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out empty lists: the policy rides with every job, and a release that does not know them reads it."""
        values: dict[str, Any] = write(self)
        return {
            name: list(value) if isinstance(value, tuple) else value for name, value in values.items() if value != ()
        }

    def shown(self) -> dict[str, Any]:
        """Return the policy as doors show it: all of it."""
        return {**self.model_dump(), "retry_on": list(self.retry_on), "give_up_on": list(self.give_up_on)}

    def delay(self, attempt: int) -> timedelta | None:
        """Return how long to wait after the given failed attempt (1 is the first), or None to give up."""
        if attempt >= self.max_attempts:
            return None
        return timedelta(seconds=self._wait(attempt) * (1 + random.uniform(-self.jitter, self.jitter)))  # noqa: S311 - spreading load

    def _wait(self, attempt: int) -> float:
        try:
            return min(self.max_backoff, self.backoff * self.factor ** (attempt - 1))
        except OverflowError:  # a float ends long before a thousandth attempt
            return self.max_backoff if self.backoff else 0.0

    def longest(self) -> timedelta:
        """Return how long all waits together can last; the attempts themselves come on top."""
        return timedelta(seconds=sum(map(self._wait, range(1, self.max_attempts))) * (1 + self.jitter))

    def refuses(self, error: BaseException) -> str | None:
        """Return why no attempt is made again after an error of this kind; None: it may be."""
        if not (self.retry_on or self.give_up_on):
            return None
        names = {error_name(kind) for kind in type(error).__mro__}
        if fitting := next((name for name in self.give_up_on if name in names), None):
            return f"give_up_on has {fitting}"
        if self.retry_on and names.isdisjoint(self.retry_on):
            return "retry_on does not have it"
        return None


NO_RETRY = Retry(max_attempts=1)


@dataclass(frozen=True, slots=True)
class Attempt:
    """The attempt that a task function is in.

    :ivar number: 1 for the first; attempts that a crash or a stop of their node has cut short are counted
    :ivar max_attempts: after how many failed ones the job gives up
    :ivar last_error: how the attempt before ended, as ``Type: text``; None in the first one
    """

    number: int
    max_attempts: int
    last_error: str | None = None

    @property
    def is_last(self) -> bool:
        """Whether the job gives up if this attempt fails."""
        return self.number >= self.max_attempts


attempt_at_hand: ContextVar[Attempt] = ContextVar("duetime_attempt")
"""Set around each call of a task function."""


def current_attempt() -> Attempt:
    """Return the attempt that the calling task function is in, also in a thread and in a worker process. ::

        @task(retry=Retry(max_attempts=3))
        async def charge(order: str) -> None:
            attempt = duetime.current_attempt()
            if attempt.number > 1:
                log.warning("attempt %d, because of %s", attempt.number, attempt.last_error)

    :raises NotInJob: if it is not called by a job
    """
    try:
        return attempt_at_hand.get()
    except LookupError:
        raise NotInJob(
            "expected current_attempt() to be called by a task function that a node runs, got a call from elsewhere. "
            "In a test, call the function through a scheduler."
        ) from None
