"""From what a caller says of a schedule to what is stored; everything that is wrong with it is found at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any, TypeVar

from apscheduler import CoalescePolicy
from apscheduler.abc import Trigger
from apscheduler.triggers.combining import OrTrigger

from . import contradictions
from .commands import NewSchedule, ScheduleOptions
from .errors import DuetimeError, FiresTooOften, InvalidRequest, InvalidSchedule, TriggerNeverFires
from .options import METADATA_PREFIX, SHORTEST_CATCH_UP_WINDOW, CatchUp, TaskOptions
from .store.adding import check_schedule_id
from .store.rows import ENGINE, TAGS
from .tasks import RegisteredTask, TaskRegistry, storable
from .triggers import Limited, RRule, TriggerSpec, parse, parse_json, to_json, unlimited, upcoming
from .triggers.specs import TextTriggerSpec

T = TypeVar("T")

OWNER = f"{METADATA_PREFIX}owner"
EXPIRES_AT = f"{METADATA_PREFIX}expires_at"
MAX_FIRES = f"{METADATA_PREFIX}max_fires"
HISTORY_MAX_AGE = f"{METADATA_PREFIX}history_max_age"
HISTORY_MAX_FIRES = f"{METADATA_PREFIX}history_max_fires"

_LOOKED_AT = 50
"""Fire times that are looked at for how close together they are."""

_FREQUENT = timedelta(seconds=2)
"""Fires of an endless RRULE that are closer together than this are taken for a mistake, unless a setting permits it."""


@dataclass(frozen=True, slots=True)
class Rules:
    """What a door allows.

    :ivar min_interval: the time that has to lie between two fires of a schedule; None: any, but no RRULE that fires
        every second for ever
    """

    min_interval: timedelta | None = None


@dataclass(frozen=True, slots=True)
class Definition:
    """A schedule as it will be stored."""

    task: RegisteredTask
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    trigger: Trigger
    metadata: dict[str, Any]
    options: dict[str, Any]
    """Those that are APScheduler's own, as ``add_schedule`` takes them."""


def is_too_late(definition: Definition, late: timedelta, grace_time: float | None) -> bool:
    """Return whether a date that lies so far in the past is missed: beyond its grace time (seconds) or its catch-up."""
    options = TaskOptions.from_metadata({**definition.task.options.to_metadata(), **definition.metadata})
    window = SHORTEST_CATCH_UP_WINDOW if options.catch_up is CatchUp.none else options.catch_up_window
    grace = None if grace_time is None else timedelta(seconds=grace_time)
    return any(limit is not None and late > limit for limit in (grace, window))


class Problems:
    """Collects what is wrong."""

    def __init__(self) -> None:
        self.found: list[DuetimeError] = []

    def of(self, work: Callable[[], T]) -> T | None:
        """Return what ``work`` returns, or None, and keep the error, if it raises one of ours."""
        try:
            return work()
        except DuetimeError as exc:
            self.found.append(exc)
            return None

    def details(self) -> list[dict[str, Any]]:
        """Return one ``{code, where, problem}`` for each."""
        listed: list[dict[str, Any]] = []
        for error in self.found:
            details = error.details or ({"where": _WHERE.get(error.code, "schedule"), "problem": error.message},)
            listed += [{"code": error.code, **detail} for detail in details]
        return listed

    def raise_any(self, what: str = "a schedule that can work") -> None:
        """Do nothing if nothing is wrong.

        :raises DuetimeError: the error itself if there is one
        :raises InvalidSchedule: with all of them if there are several
        """
        if len(self.found) == 1:
            raise self.found[0]
        if self.found:
            listed = "\n".join(f"- {error.message}" for error in self.found)
            raise InvalidSchedule(f"expected {what}, got {len(self.found)} problems:\n{listed}", details=self.details())


_WHERE = {
    "invalid_schedule_id": "id",
    "unknown_task": "task",
    "ambiguous_task": "task",
    "invalid_trigger": "trigger",
    "unknown_time_zone": "trigger.timezone",
    "trigger_never_fires": "trigger",
    "fires_too_often": "trigger",
    "invalid_arguments": "kwargs",
    "arguments_too_large": "kwargs",
    "invalid_options": "options",
}


def define(
    new: NewSchedule, registry: TaskRegistry, now: datetime, rules: Rules, problems: Problems
) -> Definition | None:
    """Return what is to be stored, or None if something is wrong, which ``problems`` then has."""
    before = len(problems.found)
    if new.id is not None:
        given = new.id
        problems.of(lambda: check_schedule_id(given))
    task = problems.of(lambda: registry.find(new.task))
    bound = problems.of(lambda: task.bind(new.args, new.kwargs)) if task is not None else None
    trigger = problems.of(lambda: checked_trigger(parse(new.trigger, now=now), rules, new.expires_at, new.max_fires))
    metadata = problems.of(lambda: metadata_of(new))
    meant = {**({} if task is None else task.options.to_metadata()), **new.options.to_metadata()}
    fires = None if trigger is None else limited(trigger, new.expires_at, new.max_fires)
    expires_at = None if new.options.retry is None else new.expires_at
    coalesce = new.options.coalesce
    problems.of(lambda: contradictions.check_schedule(meant, registry, fires, expires_at, now, coalesce))
    if len(problems.found) > before or task is None or bound is None or fires is None or metadata is None:
        return None
    return Definition(
        task,
        storable(bound[0]),
        storable(bound[1]),
        fires,
        metadata,
        stock_options(new.options),
    )


def limited(trigger: Trigger, expires_at: datetime | None, max_fires: int | None) -> Trigger:
    """Return the trigger with these limits, if there are any."""
    if expires_at is None and max_fires is None:
        return trigger
    return Limited(trigger, until=expires_at, max_fires=max_fires)


def checked_trigger(trigger: Trigger, rules: Rules, expires_at: datetime | None, max_fires: int | None) -> Trigger:
    """Return the trigger if the door allows it.

    :raises TriggerNeverFires: if it fires at or after ``expires_at`` for the first time
    :raises FiresTooOften: if its fires are closer together than is allowed
    """
    # Looking ahead takes long for some triggers: no further than is needed, on the event loop (promise 7).
    looks_closely = rules.min_interval is not None
    times = upcoming(trigger, _LOOKED_AT if looks_closely else 1) if looks_closely or expires_at is not None else []
    if expires_at is not None and times and times[0] >= expires_at:
        problem = f"its first fire, {times[0].isoformat()}, is not before it expires, at {expires_at.isoformat()}"
        raise TriggerNeverFires(
            f"expected a schedule that expires after its first fire, got one that never fires: {problem}. Put off "
            f"expires_at or leave it out.",
            details=[{"where": "expires_at", "problem": problem}],
        )
    if rules.min_interval is None:
        if expires_at is None and max_fires is None:
            _check_endless_rules(trigger)
        return trigger
    least = _least(times)
    if least is not None and least < rules.min_interval:
        problem = f"fires {least.total_seconds():g} s apart, and {rules.min_interval.total_seconds():g} s are the least"
        raise FiresTooOften(
            f"expected fires at least {rules.min_interval.total_seconds():g} s apart, got {least.total_seconds():g} s. "
            f"Make it rarer, or lower DUETIME_MIN_INTERVAL.",
            details=[{"where": "trigger", "problem": problem}],
        )
    return trigger


def _check_endless_rules(trigger: Trigger) -> None:
    """Do nothing if each RRULE without an end, members of an "or" too, fires less often than every other second.

    :raises FiresTooOften: if one does not
    """
    if isinstance(trigger, OrTrigger):
        for member in trigger.triggers:
            _check_endless_rules(member)
        return
    inner = getattr(trigger, "inner", trigger)
    if isinstance(inner, OrTrigger):
        _check_endless_rules(inner)
    if not isinstance(inner, RRule) or inner.rule.count is not None or inner.rule.until is not None:
        return
    least = _least(upcoming(trigger, _LOOKED_AT))
    if least is not None and least < _FREQUENT:
        raise FiresTooOften(
            f"expected an RRULE that ends, or that fires less often, got one that fires every "
            f"{least.total_seconds():g} s for ever. Give it a COUNT or UNTIL, an INTERVAL or a larger FREQ; or set "
            f"DUETIME_MIN_INTERVAL={least.total_seconds():g} to permit it.",
            details=[{"where": "trigger", "problem": f"it fires every {least.total_seconds():g} s for ever"}],
        )


def _least(times: Sequence[datetime]) -> timedelta | None:
    """Return the shortest time between two fires; None if there are no two."""
    return min((later - earlier for earlier, later in pairwise(_instants(times))), default=None)


def _instants(times: Sequence[datetime]) -> Iterator[datetime]:
    # Times of one zone are subtracted by the clock on the wall, which goes back once a year.
    return (time.astimezone(UTC) for time in times)


def stock_options(options: ScheduleOptions) -> dict[str, Any]:
    """Return the options that are APScheduler's own, as ``add_schedule`` takes them; what is not given is left out."""
    given: dict[str, Any] = {}
    if options.coalesce is not None:
        given["coalesce"] = CoalescePolicy[options.coalesce]
    if options.misfire_grace_time is not None:
        given["misfire_grace_time"] = options.misfire_grace_time
    if options.max_jitter is not None:
        given["max_jitter"] = options.max_jitter
    if options.result_ttl is not None:
        given["job_result_expiration_time"] = options.result_ttl
    return given


def metadata_of(new: NewSchedule) -> dict[str, Any]:
    """Return the schedule's metadata: the caller's, and Duetime's own under its prefix.

    :raises InvalidRequest: if a key of the caller's has the prefix
    """
    check_metadata(new.metadata)
    own: dict[str, Any] = {TAGS: new.tags, ENGINE: str(new.engine), **new.options.to_metadata()}
    if new.owner is not None:
        own[OWNER] = new.owner
    if new.expires_at is not None:
        own[EXPIRES_AT] = new.expires_at.astimezone(UTC).isoformat()
    if new.max_fires is not None:
        own[MAX_FIRES] = new.max_fires
    return {**new.metadata, **own}


def check_metadata(metadata: Mapping[str, Any]) -> None:
    """Do nothing if all keys may be the caller's.

    :raises InvalidRequest: if one has Duetime's own prefix
    """
    reserved = [key for key in metadata if key.startswith(METADATA_PREFIX)]
    if reserved:
        raise InvalidRequest(
            f"expected metadata keys that do not begin with {METADATA_PREFIX!r}, which is Duetime's own, got "
            f"{', '.join(map(repr, reserved))}."
        )


def says_the_same(spec: TriggerSpec, stored: Trigger, now: datetime) -> bool:
    """Return whether a trigger's JSON form means the fire times that a stored trigger has from now on.

    A start that is left out is no other start: the rhythm of the stored trigger counts.
    """
    try:
        form = to_json(unlimited(stored), now=now)
        wanted = spec.model_dump(mode="json", by_alias=True, exclude_unset=True)
        if isinstance(spec, TextTriggerSpec):
            wanted = to_json(parse(spec, now=now), now=now)
            if wanted["type"] in _COUNTED_FROM:
                wanted.pop(_COUNTED_FROM[wanted["type"]], None)
        _take_start(wanted, form)
        one, other = (parse_json(each, now=now) for each in (wanted, form))
        return _in_one_unit(to_json(one, now=now)) == _in_one_unit(to_json(other, now=now))
    except DuetimeError:  # one of them has no fire time left, or no JSON form
        return False


def _in_one_unit(form: dict[str, Any]) -> dict[str, Any]:
    """Return a trigger's JSON form with 300 seconds for 5 minutes, and for 4 minutes and 60 seconds; members too."""
    if "triggers" in form:
        return {**form, "triggers": [_in_one_unit(member) for member in form["triggers"]]}
    if form.get("type") != "interval":
        return form
    units = ("weeks", "days", "hours", "minutes", "seconds")
    length = timedelta(**{unit: form[unit] for unit in units if unit in form})
    return {**{name: value for name, value in form.items() if name not in units}, "length": length}


_COUNTED_FROM = {"interval": "start", "rrule": "start", "calendar_interval": "start_date"}


def _take_start(wanted: Any, form: Any) -> None:
    """Let a trigger that says no start be counted from that of another one of its kind, members too."""
    kind = wanted.get("type")
    if kind != form.get("type"):
        return
    name = _COUNTED_FROM.get(kind)
    if name and wanted.get(name) is None and name in form:
        wanted[name] = form[name]
    for member, other in zip(wanted.get("triggers", ()), form.get("triggers", ()), strict=False):
        _take_start(member, other)
