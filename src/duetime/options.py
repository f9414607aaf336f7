"""Options of tasks and schedules: what they mean, what contradicts itself, and how they travel.

They travel in APScheduler's own ``metadata`` of the task, under flat keys with the prefix ``duetime.``, so the stock
scheduler hands them on from task to schedule to job without knowing them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from datetime import timedelta
from difflib import get_close_matches
from enum import StrEnum
from typing import Any, TypeVar

from pydantic_core import to_jsonable_python

from .attempts import NO_RETRY, Retry
from .errors import did_you_mean

MOST_FAILURES = 100
"""Failed fires in a row after which a schedule can be paused at most."""

METADATA_PREFIX = "duetime."
"""Metadata keys with this prefix are Duetime's own; they are not shown as the caller's metadata."""

KEY = f"{METADATA_PREFIX}key"
"""Metadata key of what :func:`concurrency_key` returns."""

_LONGEST_KEY = 200
ON_FAILURE = f"{METADATA_PREFIX}on_failure"
PRIORITY = f"{METADATA_PREFIX}priority"

E = TypeVar("E", bound=StrEnum)
K = TypeVar("K")
V = TypeVar("V")


class Overlap(StrEnum):
    """What happens when a fire is due and an earlier job of the same schedule has not ended.

    ``skip``: the fire is recorded as skipped and nothing runs (the default; as Temporal's) · ``allow``: both run ·
    ``buffer_one``: one job waits until the earlier one has ended, what falls due while it waits is skipped ·
    ``buffer_all``: each waits for its turn, in order · ``cancel_other``: the earlier one is cancelled, and this one
    begins when that has ended.
    """

    skip = "skip"
    allow = "allow"
    buffer_one = "buffer_one"
    buffer_all = "buffer_all"
    cancel_other = "cancel_other"


class CatchUp(StrEnum):
    """What becomes of the fires that fell due while nobody was up to fire them.

    ``all``: each runs, one after another · ``latest``: the last one runs, the others are recorded as coalesced ·
    ``none``: none runs, each is recorded as missed.
    """

    all = "all"
    latest = "latest"
    none = "none"


TAKES_TURNS = frozenset({Overlap.buffer_one, Overlap.buffer_all, Overlap.cancel_other})
"""Policies under which no two jobs of a schedule run at once and some of them wait for their turn."""

SHORTEST_CATCH_UP_WINDOW = timedelta(seconds=10)
"""Of a fire that is later than this, nobody was up to fire it in time; what is less is ordinary lateness."""


class OnCrash(StrEnum):
    """What happens to a job whose node died: ``retry`` runs it again (at least once), ``abandon`` records it as
    abandoned (at most once)."""

    retry = "retry"
    abandon = "abandon"


def policy(kind: type[E], value: E | str, option: str) -> E:
    """Return the policy of that name.

    :raises ValueError: if there is none; the message names the closest
    """
    names = [str(each) for each in kind]
    if value not in names:
        hint = did_you_mean(value, names) if isinstance(value, str) else "."
        raise ValueError(f"{option} to be one of {', '.join(names)}, got {value!r}{hint.removesuffix('.')}")
    return kind(value)


@dataclass(frozen=True, slots=True)
class TaskOptions:
    """Options of a task's jobs. Durations are ``timedelta``; None means "no limit"."""

    timeout: timedelta | None = None
    retry: Retry = NO_RETRY
    overlap: Overlap = Overlap.skip
    on_crash: OnCrash = OnCrash.retry
    catch_up: CatchUp | None = None
    """None: the schedule's coalesce policy decides."""
    catch_up_window: timedelta | None = None
    catch_up_overlap: Overlap = Overlap.buffer_all
    priority: int = 0
    concurrency_key: str | None = None
    """Name of a parameter: so many jobs with the same argument may run at once."""
    concurrency_position: int | None = None
    """Where that parameter's argument is when it is given without its name."""
    max_running_per_key: int | None = None
    start_deadline: timedelta | None = None
    on_failure: str | None = None
    pause_on_failure: int | None = None

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
        if self.catch_up is not None:
            metadata[f"{METADATA_PREFIX}catch_up"] = str(self.catch_up)
        if self.catch_up_window is not None:
            metadata[f"{METADATA_PREFIX}catch_up_window"] = self.catch_up_window.total_seconds()
        if self.catch_up_overlap is not Overlap.buffer_all:
            metadata[f"{METADATA_PREFIX}catch_up_overlap"] = str(self.catch_up_overlap)
        if self.priority:
            metadata[PRIORITY] = self.priority
        for name in ("concurrency_key", "concurrency_position", "max_running_per_key"):
            if (value := getattr(self, name)) is not None:
                metadata[f"{METADATA_PREFIX}{name}"] = value
        if self.start_deadline is not None:
            metadata[f"{METADATA_PREFIX}start_deadline"] = self.start_deadline.total_seconds()
        if self.on_failure is not None:
            metadata[ON_FAILURE] = self.on_failure
        if self.pause_on_failure is not None:
            metadata[f"{METADATA_PREFIX}pause_on_failure"] = self.pause_on_failure
        return metadata

    def problems(self) -> list[str]:
        """Return what contradicts itself in the options, each as a sentence without its full stop."""
        found = []
        if type(self.priority) is not int or not 0 <= self.priority <= 9:
            found.append(f"a priority from 0 to 9, of which 9 comes first, got {self.priority!r}")
        most = self.max_running_per_key
        if most is not None and (type(most) is not int or not 1 <= most < 2**31):
            found.append(f"max_running_per_key to be 1 or more, got {most!r}")
        if (most is None) != (self.concurrency_key is None):
            found.append("max_running_per_key together with concurrency_key, which says what the key is")
        window = self.catch_up_window
        if window is not None and window < SHORTEST_CATCH_UP_WINDOW:
            found.append(
                f"catch_up_window of at least {SHORTEST_CATCH_UP_WINDOW.total_seconds():g} s, got "
                f"{window.total_seconds():g} s: less is ordinary lateness, for which there is misfire_grace_time"
            )
        if self.catch_up is CatchUp.none and window is not None:
            found.append('no catch_up_window with catch_up="none", which makes up for nothing, got both')
        if self.catch_up_overlap is Overlap.skip:
            found.append('a catch_up_overlap other than skip, which would run one of many: that is catch_up="latest"')
        elif self.catch_up_overlap is not Overlap.buffer_all and self.catch_up is not CatchUp.all:
            found.append('catch_up_overlap only with catch_up="all", of which several jobs may be due at once')
        return found

    def shown(self) -> dict[str, Any]:
        """Return the options as doors show them: all of them, in seconds."""
        return {
            "timeout": None if self.timeout is None else self.timeout.total_seconds(),
            "retry": self.retry.shown(),
            "overlap": str(self.overlap),
            "on_crash": str(self.on_crash),
            "catch_up": None if self.catch_up is None else str(self.catch_up),
            "catch_up_window": None if self.catch_up_window is None else self.catch_up_window.total_seconds(),
            "catch_up_overlap": str(self.catch_up_overlap),
            "priority": self.priority,
            "concurrency_key": self.concurrency_key,
            "max_running_per_key": self.max_running_per_key,
            "start_deadline": None if self.start_deadline is None else self.start_deadline.total_seconds(),
            "on_failure": self.on_failure,
            "pause_on_failure": self.pause_on_failure,
        }

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, Any]) -> TaskOptions:
        """Read options back from metadata; a missing key has the stock meaning (no retry, overlap allowed).

        Where a schedule has 0 or an empty text, its task's time-out, deadline or hook is switched off.

        :raises ValueError: if an option has no meaning
        """
        try:
            key = _key(metadata)
            if (known := _read_before.get(key)) is not None:
                return known
        except TypeError:  # a value that is no text and no number
            key = None
        try:
            options = cls._read(metadata)
        except (TypeError, OverflowError) as exc:
            raise ValueError(f"expected options as @task writes them, got: {exc}") from exc
        if key is not None:
            _remember(_read_before, key, options)
        return options

    @classmethod
    def _read(cls, metadata: Mapping[str, Any]) -> TaskOptions:
        timeout = metadata.get(f"{METADATA_PREFIX}timeout")
        retry = metadata.get(f"{METADATA_PREFIX}retry")
        catch_up = metadata.get(f"{METADATA_PREFIX}catch_up")
        window = metadata.get(f"{METADATA_PREFIX}catch_up_window")
        start_deadline = metadata.get(f"{METADATA_PREFIX}start_deadline")
        pause_on_failure = metadata.get(f"{METADATA_PREFIX}pause_on_failure")
        if pause_on_failure and pause_on_failure not in range(1, MOST_FAILURES + 1):
            raise ValueError(f"expected pause_on_failure from 1 to {MOST_FAILURES}, got {pause_on_failure!r}")
        return cls(
            timeout=timedelta(seconds=timeout) if timeout else None,
            retry=NO_RETRY if retry is None else Retry.model_validate(retry),
            overlap=Overlap(metadata.get(f"{METADATA_PREFIX}overlap", Overlap.allow)),
            on_crash=OnCrash(metadata.get(f"{METADATA_PREFIX}on_crash", OnCrash.retry)),
            catch_up=None if catch_up is None else CatchUp(catch_up),
            catch_up_window=None if window is None else timedelta(seconds=window),
            catch_up_overlap=Overlap(metadata.get(f"{METADATA_PREFIX}catch_up_overlap", Overlap.buffer_all)),
            priority=metadata.get(PRIORITY, 0),
            concurrency_key=metadata.get(f"{METADATA_PREFIX}concurrency_key"),
            concurrency_position=metadata.get(f"{METADATA_PREFIX}concurrency_position"),
            max_running_per_key=metadata.get(f"{METADATA_PREFIX}max_running_per_key"),
            start_deadline=timedelta(seconds=start_deadline) if start_deadline else None,
            on_failure=metadata.get(ON_FAILURE) or None,
            pause_on_failure=pause_on_failure or None,
        )


_MOST_REMEMBERED = 1000

_read_before: dict[tuple[Any, ...], TaskOptions] = {}
"""Options by what they were read from: those of a few tasks are those of all jobs, and each job's are read often."""


def _remember(known: dict[K, V], key: K, value: V) -> None:
    """Keep a value, with at most as many others as a process that has been given ever new ones can afford."""
    if len(known) >= _MOST_REMEMBERED:
        known.clear()
    known[key] = value


def _key(metadata: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return what the options in metadata depend on. With the values' types, because ``True == 1``."""
    key: list[Any] = []
    for name, value in metadata.items():
        if name in _KEYS:
            key += (name, repr(value) if isinstance(value, dict) else value, value.__class__)
    return tuple(key)


_POLICIES: dict[str, type[StrEnum]] = {
    "overlap": Overlap,
    "on_crash": OnCrash,
    "catch_up": CatchUp,
    "catch_up_overlap": Overlap,
}
_OPTIONS = tuple(each.name for each in fields(TaskOptions))
_KEYS = frozenset(f"{METADATA_PREFIX}{each}" for each in _OPTIONS)


def option_problems(metadata: Mapping[str, Any]) -> list[str]:
    """Return all that is wrong with the options in a schedule's metadata, each as a sentence without "expected".

    A key that is none of the options, but close to one, is a misspelling of it.
    """
    try:
        names, options = tuple(metadata), _key(metadata)
        if (names, options) in _found_good:
            return []
    except TypeError:  # a value that is no text and no number
        return _problems(metadata)
    found = _problems(metadata)
    if not found:
        _remember(_found_good, (names, options), None)
    return found


_found_good: dict[tuple[tuple[str, ...], tuple[Any, ...]], None] = {}


def _problems(metadata: Mapping[str, Any]) -> list[str]:
    found: list[str] = []
    for key, value in metadata.items():
        if not key.startswith(METADATA_PREFIX):
            continue
        name = key.removeprefix(METADATA_PREFIX)
        if name not in _OPTIONS:
            if close := get_close_matches(name, _OPTIONS, n=1, cutoff=0.8):
                found.append(f"a known option, got {key!r}, did you mean {METADATA_PREFIX + close[0]!r}?")
        elif (kind := _POLICIES.get(name)) is not None:
            try:
                policy(kind, value, name)
            except ValueError as exc:
                found.append(str(exc))
    if not found:
        try:
            found = TaskOptions.from_metadata(metadata).problems()
        except ValueError as exc:
            found = [str(exc).removeprefix("expected ")]
    return found


def concurrency_key(metadata: Mapping[str, Any], args: Iterable[Any], kwargs: Mapping[str, Any]) -> str | None:
    """Return the key that limits a call's job, or None if nothing does: the argument's JSON, or the hash of a long one.

    An argument that is left out is a key of its own.
    """
    name = metadata.get(f"{METADATA_PREFIX}concurrency_key")
    if name is None:
        return None
    position, given = metadata.get(f"{METADATA_PREFIX}concurrency_position"), tuple(args)
    if name in kwargs:
        value = kwargs[name]
    elif isinstance(position, int) and position < len(given):
        value = given[position]
    else:
        return "left out"
    plain = to_jsonable_python(value, fallback=str, inf_nan_mode="strings", bytes_mode="base64")
    text = json.dumps(plain, sort_keys=True)
    return text if len(text) <= _LONGEST_KEY else hashlib.sha256(text.encode()).hexdigest()


def priority_in(metadata: Mapping[str, Any]) -> int:
    """Return the priority of a job with this metadata; 0 where there is none that can be one."""
    priority = metadata.get(PRIORITY, 0)
    return priority if type(priority) is int and 0 <= priority <= 9 else 0


def takes_turns(metadata: Mapping[str, Any]) -> bool:
    """Return whether a job with this metadata begins only when no earlier one of its schedule is left."""
    return metadata.get(f"{METADATA_PREFIX}overlap") in TAKES_TURNS
