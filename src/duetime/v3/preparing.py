"""What all commands of ``duetime migrate v3`` are told alike, and what they plan with."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import re
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from duetime.errors import DuetimeError
from duetime.importing import problems_of_import
from duetime.tasks import registry

from .mapping import Tasks, read_executors, read_mapping
from .planning import FIRES, Context
from .reading import Allowed

_RELEASE = re.compile(r"3\.(\d{1,2})(\.\d{1,2})?")
_OLDEST, _NEWEST = 6, 11


@dataclass(frozen=True, slots=True)
class Told:
    """What the operator says of v3's world; plain data, so that another process can be told too.

    :ivar tasks: modules with the registered tasks, in the order in which they are imported
    :ivar mapping: file with v3's functions under other names
    :ivar allowed: classes of arguments that may be read, ``module:Class``
    :ivar executors: ``name=executor`` texts
    :ivar release: the release of v3 that wrote the rows; None: not known
    """

    tasks: tuple[str, ...]
    mapping: Path | None = None
    allowed: tuple[str, ...] = ()
    executors: tuple[str, ...] = ()
    release: str | None = None
    fires: int = FIRES
    now: datetime | None = None
    max_arguments_bytes: int | None = None

    def problems(self) -> list[str]:
        """Import the task modules and return one sentence for each thing that cannot be meant."""
        # What a module prints while it is imported is no part of a report.
        with contextlib.redirect_stdout(sys.stderr):
            found = problems_of_import(self.tasks)
        if found:
            return found
        if self.release is not None:
            match = _RELEASE.fullmatch(self.release)
            if match is None or not _OLDEST <= int(match[1]) <= _NEWEST:
                found.append(f"expected a release of v3 from 3.6 to 3.11, such as 3.10.4, got {self.release!r}.")
        try:
            self.context()
            self.allow()
        except DuetimeError as exc:
            found.append(exc.message)
        return found

    def context(self) -> Context:
        """Return what rows are planned with; the task modules are imported already.

        :raises InvalidMapping: if the mapping, or an executor, has no meaning
        """
        mapping = read_mapping(self.mapping) if self.mapping is not None else {}
        return Context(
            registry,
            Tasks(registry, mapping),
            read_executors(self.executors),
            self.fires,
            self.release,
            self.now or datetime.now(UTC),
            max_arguments_bytes=self.max_arguments_bytes,
        )

    def allow(self) -> Allowed:
        """Return the classes that arguments may be of, imported: the operator has named them.

        :raises ClassNotAllowed: if one of them is no enum and no dataclass
        """
        return Allowed(self.allowed)


_there: tuple[Context, Allowed] | None = None


def pool(told: Told, workers: int) -> ProcessPoolExecutor:
    """Return processes that have been told the same; what runs in them asks :func:`told_here`."""
    # Not forked: this process has threads and connections.
    return ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _begin, (told,))


def _begin(told: Told) -> None:
    global _there
    if problems := told.problems():
        raise RuntimeError("\n".join(problems))
    _there = told.context(), told.allow()


def told_here() -> tuple[Context, Allowed]:
    """Return what this process of a :func:`pool` has been told."""
    assert _there is not None  # noqa: S101 - the pool has begun it
    return _there


def processes_for(rows: int) -> int:
    """Return how many processes are worth their start: one is this one."""
    return (
        1 if rows < 2_000 else max(1, min(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 2, 8))
    )
