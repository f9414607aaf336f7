"""What the door needs from the house: a protocol, so that nothing here imports the application object."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from typing import Protocol

from apscheduler import AsyncScheduler

from ..service import Service
from ..settings import Settings


class Runtime(Protocol):
    """One Duetime: its parts, and a way to run them. ``duetime.Duetime`` is one."""

    @property
    def service(self) -> Service:
        """The verbs.

        :raises NotStarted: outside of :meth:`running`
        """
        ...

    @property
    def scheduler(self) -> AsyncScheduler:
        """The scheduler that fires this node's schedules.

        :raises NotStarted: outside of :meth:`running`
        """
        ...

    @property
    def settings(self) -> Settings:
        """What the operator set; readable before the start."""
        ...

    def running(self) -> AbstractAsyncContextManager[object]:
        """Run everything until the block ends; entering does not wait for the database."""
        ...
