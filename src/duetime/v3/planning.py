"""What becomes of a row: its verdict with the reasons, the schedule that it is, and the proof of its fire times."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from datetime import UTC, datetime
from typing import Any

from apscheduler.abc import Trigger
from pydantic import ValidationError
from pydantic_core import to_jsonable_python

from duetime.commands import LONGEST, NewSchedule
from duetime.defining import Definition, Problems, Rules, define
from duetime.errors import DuetimeError, UnsupportedValue
from duetime.scheduler import declared
from duetime.serializer import TypedJSONSerializer
from duetime.store.adding import check_size
from duetime.tasks import RegisteredTask, TaskRegistry, storable
from duetime.triggers import parse_json

from . import converting
from .mapping import Tasks
from .model import Finding, Reading, Unreadable, V3Job, V3Unknown
from .proving import DELIBERATE_FIX, NO_CAUSE, UNEXPLAINED, UNSUPPORTED, Difference, compare, our_fire_times
from .rules import Walk, v3_walk

CONVERT = "convert"
"""It is carried over by itself."""

REVIEW = "review"
"""A person must look: it is not carried over as if nothing were wrong."""

REJECT = "reject"
"""It is never carried over."""

VERDICTS = (CONVERT, REVIEW, REJECT)

FIRES = 50
"""Fires that are compared, unless another number is asked for."""

_EARLIEST = datetime.min.replace(tzinfo=UTC)
_PLAIN = (str, int, bool, type(None))
_SERIALIZER = TypedJSONSerializer()
_PAST = "a resume passes over what has passed while it was paused; v3 begins with it, and it may be too late."
_COMBINING = ("and_trigger", "or_with_interval", "or_with_date")


@dataclass(frozen=True, slots=True)
class Context:
    """What rows are planned with.

    :ivar tasks: finds the registered task of a v3 function
    :ivar executors: v3's name of an executor → one of Duetime's
    :ivar fires: fires that are compared, at most 1,000
    :ivar release: the release of v3 that wrote the rows (``"3.10.4"``); None: not known
    :ivar now: the instant that counts as now
    :ivar max_arguments_bytes: of a schedule's arguments as they are stored; None: any number
    """

    registry: TaskRegistry
    tasks: Tasks
    executors: Mapping[str, str] = field(default_factory=dict)
    fires: int = FIRES
    release: str | None = None
    now: datetime = field(default_factory=lambda: datetime.now(UTC))
    rules: Rules = field(default_factory=Rules)
    max_arguments_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Carried:
    """The schedule that is written for a row.

    :ivar next_fire_time: the very time that v3 had stored; None if it is paused, and counts from its resume
    :ivar trigger: gives the times after that one; it may give that one, and times before it, once more
    :ivar options: those that are APScheduler's own, as ``add_schedule`` takes them
    """

    id: str
    task: RegisteredTask
    trigger: Trigger
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    options: dict[str, Any]
    metadata: dict[str, Any]
    paused: bool
    next_fire_time: datetime | None


@dataclass(frozen=True, slots=True)
class Planned:
    """What becomes of a row.

    :ivar record: as it is printed: ``id``, ``verdict``, ``reasons``, ``schedule``, ``fire_times``, ``v3_fire_times``,
        ``differences``
    :ivar definition: what is written; None unless the verdict is ``convert``
    """

    record: dict[str, Any]
    definition: Carried | None

    @property
    def verdict(self) -> str:
        """``convert``, ``review`` or ``reject``."""
        return str(self.record["verdict"])


def plan(reading: Reading, context: Context) -> Planned:
    """Return what becomes of a row. It raises nothing for what is in the row, and its time is bounded."""
    try:
        return _planned(reading, context)
    except Exception as exc:  # one row must not end the plan of all others
        text = f"it could not be planned, which is a fault of Duetime's: {type(exc).__name__}: {exc!s:.300}."
        return Planned(_record(reading.row.id, [*reading.findings, Finding("not_planned", text, REVIEW)]), None)


def _planned(reading: Reading, context: Context) -> Planned:
    found = list(reading.findings)
    job = reading.job
    if job is None:
        if not any(each.severity != "note" for each in found):
            found.append(Finding("unreadable", "the row cannot be read.", REJECT))
        return Planned(_record(reading.row.id, found), None)
    form = converting.convert(job.trigger, job.next_run_time, context.now, context.release)
    is_told = any(each.code in ("unknown_trigger", "unknown_zone") for each in found)
    found += [each for each in form.findings if not (is_told and each.code == "own_trigger")]
    if form.ended:
        found.append(
            Finding("ended", "its trigger has no fire time left: v3 would remove it when it is resumed.", REJECT)
        )
    task = _task(job, context, found)
    definition, body = (None, None) if form.stored is None else _defined(job, form, task, context, found)
    ours, theirs, differences = _proven(job, form, context, found)
    record = _record(job.id, found, body, ours, theirs, differences)
    if record["verdict"] != CONVERT or definition is None:
        return Planned(record, None)
    return Planned(record, _carried(job, definition))


def _record(
    job_id: str,
    found: Sequence[Finding],
    schedule: Mapping[str, Any] | None = None,
    ours: Sequence[datetime] = (),
    theirs: Sequence[datetime] = (),
    differences: Sequence[Difference] = (),
) -> dict[str, Any]:
    severities = {each.severity for each in found}
    verdict = REJECT if REJECT in severities else REVIEW if REVIEW in severities else CONVERT
    return {
        "id": job_id,
        "verdict": verdict,
        "reasons": [f"{each.code}: {each.text}" for each in dict.fromkeys(found)],
        "schedule": None if verdict == REJECT else schedule,
        "fire_times": [each.astimezone(UTC).isoformat() for each in ours],
        "v3_fire_times": [each.astimezone(UTC).isoformat() for each in theirs],
        "differences": [each.record() for each in differences],
    }


def _carried(job: V3Job, definition: Definition) -> Carried:
    return Carried(
        job.id,
        definition.task,
        definition.trigger,
        definition.args,
        definition.kwargs,
        definition.options,
        definition.metadata,
        job.next_run_time is None,
        None if job.next_run_time is None else job.next_run_time.astimezone(UTC),
    )


# -- the task ---------------------------------------------------------------------------------------------------------


def _task(job: V3Job, context: Context, found: list[Finding]) -> RegisteredTask | None:
    if job.version != 1:
        text = f"expected a state of version 1, got {job.version}: a release of v3 after 3.11 wrote it."
        found.append(Finding("unknown_version", text, REVIEW))
    task, said = context.tasks.find(job.func)
    found += said
    if task is not None:
        found += _executor(job, task, context)
    unreadable = [*_unreadable(job.args, "args"), *_unreadable(job.kwargs, "kwargs")]
    if unreadable and not any(each.code == "unreadable_argument" for each in found):
        text = "; ".join(f"{path} needs {value.what}" for path, value in unreadable)
        found.append(Finding("unreadable_argument", f"some of its arguments are not plain data: {text}.", REVIEW))
    return task


def _executor(job: V3Job, task: RegisteredTask, context: Context) -> Iterator[Finding]:
    """Say what has to be known of where a job ran, and where its task runs."""
    name = job.executor
    wanted = context.executors.get(name, "auto" if name == "default" else name)
    if wanted not in ("auto", "async", "threadpool", "processpool"):
        yield Finding(
            "unknown_executor",
            f"it ran in v3's executor {name!r}, of which only the name is stored. Say what it is with "
            f"--executor {name}=threadpool (or async, processpool, auto).",
            REVIEW,
        )
        return
    executor = declared(task).executor
    if wanted == "auto" or wanted == executor or executor != "processpool" != wanted:
        if name in context.executors:
            yield Finding("mapped_executor", f"v3's executor {name!r} is {wanted!r}, as was said.", "note")
        return
    where = "in a thread" if not inspect.iscoroutinefunction(task.func) else "on the event loop"
    runs = f"{where} (executor {executor!r})" if executor != "processpool" else "in a process (executor 'processpool')"
    yield Finding(
        "other_executor",
        f"v3 ran it in {name!r}, and the task {task.name} runs {runs}. Write @task(executor={wanted!r}), or accept "
        f"where the task runs with --executor {name}=auto.",
        REVIEW,
    )


def _unreadable(value: Any, path: str, depth: int = 0) -> Iterator[tuple[str, Unreadable]]:
    """Yield what could not be carried over in arguments, with its place."""
    if isinstance(value, Unreadable):
        yield path, value
    elif depth < 100 and isinstance(value, Mapping):
        for key, item in value.items():
            yield from _unreadable(key, f"a key of {path}", depth + 1)
            yield from _unreadable(item, f"{path}[{key!r:.60}]", depth + 1)
    elif depth < 100 and isinstance(value, (list, tuple, set, frozenset)):
        for index, item in enumerate(value):
            yield from _unreadable(item, f"{path}[{index}]", depth + 1)
    elif depth < 100 and is_dataclass(value) and not isinstance(value, type):
        for each in fields(value):
            yield from _unreadable(getattr(value, each.name), f"{path}.{each.name}", depth + 1)


# -- the schedule -----------------------------------------------------------------------------------------------------


def _defined(
    job: V3Job, form: converting.Form, task: RegisteredTask | None, context: Context, found: list[Finding]
) -> tuple[Definition | None, dict[str, Any] | None]:
    """Return what is stored and the body that says the same, or Nones with what is wrong."""
    options = _options(job, form, task, found)
    if task is None or any(True for _ in (*_unreadable(job.args, ""), *_unreadable(job.kwargs, ""))):
        return None, None
    metadata = {"name": job.name} if _is_text(job.name) else {}
    problems = Problems()
    try:
        new = NewSchedule(
            id=job.id,
            task=task.name,
            args=list(job.args),
            kwargs=dict(job.kwargs),
            trigger=form.stored,
            paused=job.next_run_time is None,
            metadata=metadata,
            options=options,
        )
    except ValidationError as exc:
        listed = "; ".join(f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in exc.errors())
        found.append(Finding("invalid_schedule", f"expected a schedule that can be posted, got: {listed}", REVIEW))
        return None, None
    definition = define(new, context.registry, _begin(job, context), context.rules, problems)
    found += [Finding(error.code, error.message, REVIEW) for error in problems.found]
    if definition is None or not _can_be_stored(definition, context, found):
        return None, None
    _say_converted(job, definition, found)
    body: dict[str, Any] = {"id": job.id, "task": task.name}
    if job.args:
        body["args"] = _json(job.args)
    if job.kwargs:
        body["kwargs"] = _json(job.kwargs)
    body["trigger"] = form.spec
    if job.next_run_time is None:
        body["paused"] = True
    if metadata:
        body["metadata"] = metadata
    body["options"] = options
    if not _is_json(job.args) or not _is_json(job.kwargs):
        text = (
            "some of its arguments are not JSON: the cut-over stores them as what they are; in the body of a request "
            "they are text, and become what the task's annotations say."
        )
        found.append(Finding("typed_arguments", text, "note"))
    return definition, body


def _begin(job: V3Job, context: Context) -> datetime:
    """Return what counts as now for the schedule's trigger: no time of it before the stored one is meant."""
    return context.now if job.next_run_time is None else job.next_run_time.astimezone(UTC)


def _options(job: V3Job, form: converting.Form, task: RegisteredTask | None, found: list[Finding]) -> dict[str, Any]:
    options: dict[str, Any] = {"overlap": "skip" if job.max_instances <= 1 else "allow"}
    if job.max_instances > 1:
        found.append(
            Finding(
                "max_instances",
                f"v3 let {job.max_instances} of its runs go on at once and skipped a further one; overlap=allow sets "
                f"no limit. With @task(max_running_jobs=…) there is one over all schedules of the task, and what is "
                f"too much waits.",
                "note",
            )
        )
    if job.coalesce:
        options["coalesce"] = "latest"
    else:
        # v3 ran those that were due at once one after another, which coalesce alone does not say.
        options |= {"coalesce": "all", "catch_up": "all"}
    if job.misfire_grace_time is not None:
        options["misfire_grace_time"] = min(job.misfire_grace_time, LONGEST)
    elif task is not None and declared(task).misfire_grace_time is not None:
        options["misfire_grace_time"] = LONGEST
        text = "it is never too late, as in v3: a hundred years instead of the grace time that its task has."
        found.append(Finding("misfire_grace_time", text, "note"))
    if form.jitter:
        options["max_jitter"] = min(form.jitter, LONGEST)
    return options


def _can_be_stored(definition: Definition, context: Context, found: list[Finding]) -> bool:
    try:
        sizes = [_SERIALIZER.serialize(each) for each in (definition.args, definition.kwargs)]
        check_size(sizes[0], sizes[1], context.max_arguments_bytes)
    except UnsupportedValue as exc:
        found.append(Finding(exc.code, exc.message, REVIEW))
        return False
    except DuetimeError as exc:
        found.append(Finding(exc.code, exc.message, REVIEW))
        return False
    if any(b"\\u0000" in each for each in sizes):
        found.append(Finding("unsupported_value", "an argument has a NUL, which PostgreSQL cannot store.", REVIEW))
        return False
    return True


def _say_converted(job: V3Job, definition: Definition, found: list[Finding]) -> None:
    """Say which arguments the task's annotations make into something else: v3 passed them as they were."""
    given = (storable(tuple(job.args)), storable(dict(job.kwargs)))
    if repr(given) != repr((definition.args, definition.kwargs)) and given != (definition.args, definition.kwargs):
        text = f"the annotations of {definition.task.name} make some of its arguments into what they say."
        found.append(Finding("converted_arguments", text, "note"))


def _is_text(text: str) -> bool:
    try:
        return "\0" not in text and text.encode() is not None
    except UnicodeEncodeError:
        return False


def _is_json(value: Any) -> bool:
    kind = type(value)
    if kind in _PLAIN:
        return True
    if kind is float:
        return math.isfinite(value)
    if kind is dict:
        return all(type(key) is str and _is_json(item) for key, item in value.items())
    return kind in (list, tuple) and all(map(_is_json, value))


def _json(value: Any) -> Any:
    return to_jsonable_python(value, fallback=str, inf_nan_mode="strings", bytes_mode="base64")


# -- the proof --------------------------------------------------------------------------------------------------------


def _proven(
    job: V3Job, form: converting.Form, context: Context, found: list[Finding]
) -> tuple[list[datetime], list[datetime], list[Difference]]:
    """Return both sides' next fires and their differences; says what was not compared."""
    resumed = context.now if job.next_run_time is None else None
    walk = v3_walk(job, context.fires, release=context.release, now=resumed)
    theirs = walk.fires
    if form.stored is None or form.spec is None:
        text = "Duetime has no such trigger." if isinstance(job.trigger, V3Unknown) else "it is no schedule of Duetime."
        return [], theirs, [Difference(each, None, UNSUPPORTED, text) for each in theirs]
    begin = _begin(job, context)
    trigger = parse_json(form.stored, now=begin)
    ours = our_fire_times(trigger, job.next_run_time, context.fires, resumed=resumed)
    past = [] if resumed is None else [each for each in theirs if each <= resumed]
    until = _compared_until(walk, ours, context.fires)
    if walk.end in ("hangs", "unknown"):
        why = "v3 hangs after them" if walk.end == "hangs" else "v3's times after them are not known"
        found.append(Finding("compared", f"{len(theirs)} of {context.fires} fires were compared: {why}.", "note"))
    fixed = [each for each in form.findings if each.code in _COMBINING]
    otherwise = (DELIBERATE_FIX, fixed[0].text) if fixed else NO_CAUSE
    differences = [Difference(each, None, DELIBERATE_FIX, _PAST) for each in past]
    differences += compare(job.trigger, theirs[len(past) :], ours, until=until, otherwise=otherwise)
    if form.spec is not form.stored:
        posted = our_fire_times(parse_json(form.spec, now=begin), None, context.fires)
        if posted != ours:
            text = "the body of the request does not give the times of the schedule that is stored."
            found.append(Finding("body_differs", text, REVIEW))
    if any(each.cause == UNEXPLAINED for each in differences):
        text = "some of its next fire times differ from v3's, and no known cause explains it."
        found.append(Finding(UNEXPLAINED, text, REVIEW))
    return ours, theirs, differences


def _compared_until(walk: Walk, ours: Sequence[datetime], count: int) -> datetime | None:
    """Return the last instant for which both sides are known; None: all there is."""
    ends = [ours[-1]] if len(ours) == count else []
    if walk.end in ("hangs", "unknown"):
        ends.append(max(walk.fires, default=_EARLIEST))
    elif walk.end is None and walk.fires:
        ends.append(max(walk.fires))
    return min(ends, default=None)
