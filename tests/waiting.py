"""Waiting for what a test is about, with a deadline."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from inspect import isawaitable
from typing import Any, TypeVar, overload

T = TypeVar("T")

WITHIN = 20.0
"""Seconds that anything a test waits for may take; a test that passes never waits that long."""


@overload
async def eventually(check: Callable[[], Awaitable[T]], *, within: float = ...) -> T: ...


@overload
async def eventually(check: Callable[[], T], *, within: float = ...) -> T: ...


async def eventually(check: Callable[[], Any], *, within: float = WITHIN) -> Any:
    """Return what ``check`` returns as soon as it is true; asked again every few milliseconds.

    A failed assertion inside ``check`` counts as not true yet.

    :raises AssertionError: after ``within`` seconds, with the last answer
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + within
    while True:
        problem: AssertionError | None = None
        answer: Any = None
        try:
            outcome = check()
            answer = await outcome if isawaitable(outcome) else outcome
        except AssertionError as exc:
            problem = exc
        if answer:
            return answer
        if loop.time() > deadline:
            raise AssertionError(f"not within {within:g} s; the last answer was {answer!r}") from problem
        await asyncio.sleep(0.01)
