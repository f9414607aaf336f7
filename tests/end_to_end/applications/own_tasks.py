"""An application's own tasks, for ``duetime serve --tasks own_tasks``; tests copy it into the server's directory."""

import asyncio
import time
from collections import Counter
from typing import Annotated

from pydantic import Field

from duetime import task

_calls: Counter[str] = Counter()


@task
async def greet(name: str, times: Annotated[int, Field(ge=1, le=10)] = 1) -> str:
    """Greet somebody.

    The second paragraph is for readers of the source.
    """
    return f"Hello {name}! " * times


@task(name="in_a_thread")
def in_a_thread(seconds: float) -> None:
    """Block a thread for a while."""
    time.sleep(seconds)


@task
async def wait(seconds: float) -> None:
    """Wait on the event loop."""
    await asyncio.sleep(seconds)


@task
async def succeed_at(attempt: int, key: str) -> str:
    """Fail until the given attempt."""
    _calls[key] += 1
    if _calls[key] < attempt:
        raise ValueError(f"attempt {_calls[key]} of {key} fails")
    return f"attempt {_calls[key]}"
