"""Changing what is stored: one schedule in place, or many at once."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Collection, Mapping, Sequence
from contextlib import nullcontext
from copy import deepcopy
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, cast
from uuid import UUID

import attrs
from apscheduler import AsyncScheduler, CoalescePolicy, ConflictPolicy, DeserializationError, Schedule
from apscheduler.abc import Trigger
from pydantic import ValidationError

from . import contradictions
from .commands import NewSchedule, ScheduleChange, ScheduleOptions, Selection
from .defining import (
    EXPIRES_AT,
    MAX_FIRES,
    OWNER,
    Definition,
    Problems,
    Rules,
    check_metadata,
    checked_trigger,
    define,
    limited,
    says_the_same,
    stock_options,
)
from .errors import InvalidRequest, InvalidSchedule, PreconditionFailed, ScheduleNotFound, did_you_mean
from .many import Drafts
from .options import KEY, METADATA_PREFIX
from .store import PostgresDataStore
from .store.adding import check_schedule_id
from .store.changing import ScheduleChanges, Update
from .store.planning import MAX_FIRES as MOST_AHEAD
from .store.planning import BegunTrigger
from .store.reads import NEVER_STORED, Reads
from .store.rows import TAGS, schedule_from
from .tasks import RegisteredTask, TaskRegistry, storable
from .triggers import Limited, parse, to_json

_MOST_STEPS = 1_000_000
"""Fire times in the past that a schedule which had ended is taken over, when it goes on."""

MOST_AT_ONCE = 10_000
"""Schedules that one request changes at most."""

MAX_LISTED = 100
"""Problems that are listed, of schedules that come together."""

_OF_THE_TASK = ("concurrency_key", "concurrency_position", "max_running_per_key")

_STOCK = {
    "coalesce": ("coalesce", CoalescePolicy.latest),
    "misfire_grace_time": ("misfire_grace_time", None),
    "max_jitter": ("max_jitter", None),
    "job_result_expiration_time": ("result_ttl", timedelta(0)),
}
"""Option of APScheduler's → the name that doors call it, and its default."""


Revisions = str | Collection[str]
"""The revision that a caller has read, or several."""


class Changes:
    """Changes schedules in place."""

    def __init__(
        self, scheduler: AsyncScheduler, store: PostgresDataStore, registry: TaskRegistry, reads: Reads, rules: Rules
    ) -> None:
        self._scheduler = scheduler
        self._store = store
        self._registry = registry
        self._reads = reads
        self._rules = rules
        self._changes = ScheduleChanges(store)

    async def row(self, schedule_id: str) -> Mapping[str, Any]:
        """Return the schedule's row.

        :raises ScheduleNotFound: if it is not stored
        """
        row = None if NEVER_STORED.search(schedule_id) else await self._reads.schedule(schedule_id)
        if row is None:
            raise ScheduleNotFound(schedule_id)
        return row

    async def expected(self, schedule_id: str, revision: Revisions | None) -> UUID | None:
        """Return the revision that a change is made for; None for any.

        :param revision: the one that the caller has read, or several
        :raises ScheduleNotFound: if the schedule is not stored
        :raises PreconditionFailed: if it is in another one
        """
        return None if revision is None else _checked(await self.row(schedule_id), revision)

    async def resume(self, schedule_id: str, revision: UUID, now: datetime) -> None:
        """Let a schedule fire again from now on.

        :raises ScheduleNotFound: if it is not stored
        :raises PreconditionFailed: if it is in another revision
        """
        row = await self.row(schedule_id)
        _checked(row, str(revision))
        if not await self._changes.resume([row], now):
            raise PreconditionFailed(schedule_id)

    async def update(self, schedule_id: str, change: ScheduleChange, now: datetime, revision: Revisions | None) -> str:
        """Change a schedule, and return the id that it has now."""
        while True:
            row = await self.row(schedule_id)
            if revision is not None:
                _checked(row, revision)
            update = await self._updated(row, change, now)
            if update is None:
                return schedule_id  # it says what is stored
            if await self._changes.update(row, update) is not None:
                return update.schedule.id
            # Somebody else has changed it, or it has fired: the change is made again for what it is now.

    async def add_all(self, new: Sequence[NewSchedule], now: datetime) -> list[str]:
        """Store many schedules, all of them or none, and return their ids."""
        checked, definitions, failures = await asyncio.to_thread(self._define, new, now)
        if failures:
            raise InvalidSchedule(
                f"expected schedules that can work, got {len(failures)} problems: "
                f"{failures[0]['where']}: {failures[0]['problem']} Nothing was stored.",
                details=failures[:MAX_LISTED],
            )
        made = await Drafts(self._scheduler.configure_task, self._store.begun).schedules(
            {
                "func_or_task_id": definition.task.func,
                "trigger": definition.trigger,
                "id": each.id,
                "args": definition.args,
                "kwargs": definition.kwargs,
                "paused": each.paused,
                "metadata": definition.metadata,
                **_durations(definition.options),
            }
            for each, definition in zip(checked, definitions, strict=True)
        )
        await self._store.add_schedules(made, ConflictPolicy.exception)
        return [schedule.id for schedule in made]

    def _define(
        self, new: Sequence[NewSchedule], now: datetime
    ) -> tuple[list[NewSchedule], list[Definition], list[dict[str, Any]]]:
        """Return what is to be stored, and what is wrong, with its place."""
        definitions: list[Definition] = []
        checked: list[NewSchedule] = []
        failures: list[dict[str, Any]] = []
        taken: dict[str, int] = {}
        for place, given in enumerate(new):
            problems = Problems()
            try:
                each = NewSchedule.model_validate(given)
            except ValidationError as exc:
                failures += [_shape_problem(error, f"schedules[{place}]") for error in exc.errors(include_url=False)]
                continue
            checked.append(each)
            if each.id is not None and (first := taken.setdefault(each.id, place)) != place:
                problem = f"expected each id once, got {each.id!r}, which schedules[{first}] has too"
                problems.found.append(InvalidSchedule(problem, details=[{"where": "id", "problem": problem}]))
            definition = define(each, self._registry, now, self._rules, problems)
            if definition is not None:
                definitions.append(definition)
            failures += [{**detail, "where": f"schedules[{place}].{detail['where']}"} for detail in problems.details()]
        return checked, definitions, failures

    async def chosen(self, selection: Selection, state: str | None = None) -> list[str]:
        """Return the ids of the schedules that are meant, of those in a state.

        :raises InvalidRequest: if nothing says which are meant, or more than 10,000 are
        """
        filters = selection.model_dump(include={"ids", "task", "tag", "state", "owner", "search"}, exclude_none=True)
        if selection.search == "":
            del filters["search"]  # it is a part of every id, and "all of them" has to be said
        if not filters and not selection.everything:
            raise InvalidRequest(
                "expected ids or a filter (task, tag, state, owner, search) that says which schedules are meant, got "
                "none. For all of them say everything=true."
            )
        if filters.keys() - {"ids"} and "ids" in filters:
            raise InvalidRequest("expected either ids or filters, got both. Leave one of them out.")
        if selection.everything and filters:
            raise InvalidRequest("expected either everything=true or a filter, got both. Leave one of them out.")
        for value in (each for given in filters.values() for each in ([given] if isinstance(given, str) else given)):
            if NEVER_STORED.search(value):
                raise InvalidRequest(f"expected texts without NUL characters and lone surrogates, got {value[:80]!a}.")
        if selection.task is not None:
            filters["task"] = self._registry.find(selection.task).name
        found = await self._reads.chosen(limit=MOST_AT_ONCE + 1, **filters)
        if len(found) > MOST_AT_ONCE:
            raise InvalidRequest(
                f"expected at most {MOST_AT_ONCE:,} schedules in one request, got more. Narrow the filter, or send "
                f"several requests."
            )
        missing = set(selection.ids or ()) - {row["id"] for row in found}
        if missing:
            named = ", ".join(repr(each)[:80] for each in sorted(missing)[:5])
            raise InvalidRequest(f"expected ids of stored schedules, got {len(missing)} that are none: {named}.")
        return [row["id"] for row in found if state is None or row["state"] == state]

    async def resume_all(self, selection: Selection, now: datetime) -> list[str]:
        """Let the paused ones of the chosen schedules go on from now, and return which."""
        wanted = await self.chosen(selection, "paused")
        resumed: list[str] = []
        while not selection.dry_run and (left := sorted(set(wanted) - set(resumed))):
            found = [row for row in await self._reads.named(left) if row["paused"]]
            resumed += await self._changes.resume(found, now)
            if not found:
                break  # somebody else has resumed or removed them
        return wanted if selection.dry_run else resumed

    async def _updated(self, row: Mapping[str, Any], change: ScheduleChange, now: datetime) -> Update | None:
        try:
            stored = schedule_from(row, self._store.serializer)
        except (DeserializationError, ValueError, TypeError) as exc:
            raise InvalidSchedule(
                f"expected a schedule that can be read, to change it, got: {exc}. Remove it and add it again."
            ) from exc
        problems = Problems()
        given = change.model_fields_set
        schedule = stored
        if change.id is not None:
            problems.of(partial(check_schedule_id, change.id))
            schedule = attrs.evolve(schedule, id=change.id)
        task = None
        if given & {"task", "args", "kwargs", "options"}:
            task = problems.of(lambda: self._registry.find(change.task or stored.task_id))
        if task is not None and given & {"task", "args", "kwargs"}:
            schedule = self._with_call(schedule, change, task, problems)
        metadata = self._metadata(stored, change, task, problems)
        if change.options is not None:
            schedule = self._with_options(schedule, change.options, problems)
        trigger = await self._trigger(stored, change, metadata, now, problems)
        if given & {"task", "trigger", "options", "expires_at"}:
            expires_at = None if change.options is None or change.options.retry is None else metadata.get(EXPIRES_AT)
            fires = stored.trigger if trigger is None else trigger[0]
            coalesce = None if change.options is None else change.options.coalesce
            check = partial(
                contradictions.check_schedule, metadata, self._registry, fires, _moment(expires_at), now, coalesce
            )
            # A search for fire times may take longer than the event loop may be held (promise 7).
            await asyncio.to_thread(problems.of, check)
        problems.raise_any("a change that can work")
        if task is not None and task.name != stored.task_id:
            definition = await self._scheduler.configure_task(task.func)
            schedule = attrs.evolve(schedule, task_id=definition.id, job_executor=definition.job_executor)
        schedule = attrs.evolve(schedule, metadata=metadata)
        if trigger is None:
            if attrs.astuple(schedule, recurse=False) == attrs.astuple(stored, recurse=False):
                return None
            return Update(schedule, keeps_trigger=True, detail=_detail(given))
        new, position = trigger
        new, following = await self._begin(new, position, stored.next_fire_time, now)
        return Update(
            attrs.evolve(schedule, trigger=new, next_fire_time=cast("datetime", following)),
            keeps_trigger=False,
            wants_position=position,
            detail={**_detail(given), **({} if position else {"trigger": to_json(stored.trigger)})},
        )

    def _with_call(
        self, schedule: Schedule, change: ScheduleChange, task: RegisteredTask, problems: Problems
    ) -> Schedule:
        args = schedule.args if change.args is None else change.args
        kwargs = schedule.kwargs if change.kwargs is None else change.kwargs
        bound = problems.of(lambda: task.bind(args, kwargs))
        return schedule if bound is None else attrs.evolve(schedule, args=storable(bound[0]), kwargs=storable(bound[1]))

    def _with_options(self, schedule: Schedule, options: ScheduleOptions, problems: Problems) -> Schedule:
        given = stock_options(options)
        for name, (shown, default) in _STOCK.items():
            if shown in options.model_fields_set and name not in given:
                given[name] = default
        return attrs.evolve(schedule, **_durations(given))

    def _metadata(
        self, stored: Schedule, change: ScheduleChange, task: RegisteredTask | None, problems: Problems
    ) -> dict[str, Any]:
        """Return the schedule's metadata as it shall be: the caller's entries, and Duetime's own."""
        metadata: dict[str, Any] = dict(stored.metadata)
        given = change.model_fields_set
        if change.metadata is not None:
            problems.of(partial(check_metadata, change.metadata))
            metadata |= change.metadata
            for key in [key for key, value in change.metadata.items() if value is None]:
                del metadata[key]
        if change.tags is not None:
            metadata[TAGS] = change.tags
        if change.options is not None:
            own = change.options.to_metadata()
            default = {} if task is None else task.options.to_metadata()
            for name in change.options.model_fields_set:
                key = f"{METADATA_PREFIX}{name}"
                metadata.pop(key, None)
                if key in own or key in default:
                    metadata[key] = own.get(key, default.get(key))
        if task is not None and task.name != stored.task_id:
            # What limits the jobs of a task by an argument is the task's alone: no schedule overrides it.
            default = task.options.to_metadata()
            for key in (KEY, *(f"{METADATA_PREFIX}{name}" for name in _OF_THE_TASK)):
                metadata.pop(key, None)
                if key in default:
                    metadata[key] = default[key]
        limits = {
            OWNER: change.owner,
            EXPIRES_AT: change.expires_at and change.expires_at.astimezone(UTC).isoformat(),
            MAX_FIRES: change.max_fires,
        }
        for key, value in limits.items():
            if key.removeprefix(METADATA_PREFIX) in given:
                metadata.pop(key, None)
                if value is not None:
                    metadata[key] = value
        return metadata

    async def _trigger(
        self,
        stored: Schedule,
        change: ScheduleChange,
        metadata: Mapping[str, Any],
        now: datetime,
        problems: Problems,
    ) -> tuple[Trigger, bool] | None:
        """Return the new trigger, and whether it goes on from where the stored one stands; None: nothing changes."""
        expires_at, max_fires = _moment(metadata.get(EXPIRES_AT)), metadata.get(MAX_FIRES)
        same_limits = metadata.get(EXPIRES_AT) == stored.metadata.get(EXPIRES_AT) and max_fires == stored.metadata.get(
            MAX_FIRES
        )
        spec = change.trigger
        if spec is not None and not await asyncio.to_thread(says_the_same, spec, stored.trigger, now):
            made = await asyncio.to_thread(
                problems.of,
                lambda: limited(
                    checked_trigger(parse(spec, now=now), self._rules, expires_at, max_fires), expires_at, max_fires
                ),
            )
            if made is None:
                return None
            if isinstance(made, Limited) and isinstance(stored.trigger, Limited):
                made.fired = stored.trigger.fired - (1 if stored.next_fire_time is not None else 0)
            return made, False
        if same_limits:
            return None
        former = stored.trigger
        await asyncio.to_thread(_settle, former, stored.next_fire_time)
        if isinstance(former, Limited):
            former.until, former.max_fires = expires_at, max_fires
            return former, True
        made = limited(former, expires_at, max_fires)
        if isinstance(made, Limited) and stored.next_fire_time is not None:
            made.fired = 1  # the one that is due next
        return made, True

    async def _begin(
        self, trigger: Trigger, goes_on: bool, pending: datetime | None, now: datetime
    ) -> tuple[Trigger, datetime | None]:
        """Return the new trigger and its first fire time.

        :param pending: the fire time that a trigger which goes on has given out last
        """
        if not goes_on:
            begun = await self._store.begun(trigger)
            return (begun.real if isinstance(begun, BegunTrigger) else trigger), begun.next()
        if pending is None:
            return trigger, await asyncio.to_thread(_next_from, trigger, now)
        if isinstance(trigger, Limited):
            too_many = trigger.max_fires is not None and trigger.fired > trigger.max_fires
            if too_many or (trigger.until is not None and pending >= trigger.until):
                trigger.take_back(pending)
                return trigger, None
        return trigger, pending


def _settle(trigger: Trigger, pending: datetime | None) -> None:
    """Have the trigger stand at the schedule's next fire time, or its end: where it was claimed ahead, the stored one
    stands at the first fire that was ahead then."""
    ahead = deepcopy(trigger)
    for _ in range(MOST_AHEAD):
        fire = ahead.next()
        if fire is None or (pending is not None and fire > pending):
            if pending is None:
                trigger.next()  # what it finds beyond an end is kept for later
            break
        trigger.next()


def _next_from(trigger: Trigger, now: datetime) -> datetime | None:
    """Return the trigger's next fire time that is not in the past."""
    with trigger.uncounted() if isinstance(trigger, Limited) else nullcontext():
        for _ in range(_MOST_STEPS):
            fire = trigger.next()
            if fire is None or fire >= now:
                break
        else:
            return None
    if isinstance(trigger, Limited) and fire is not None:
        trigger.take_back(fire)
        trigger.fired += 1
        return trigger.next()
    return fire


def _shape_problem(error: Any, where: str) -> dict[str, Any]:
    """Return what Pydantic says of one value, with its place."""
    steps = (f"[{step}]" if isinstance(step, int) else f".{step}" for step in error["loc"])
    name = str(error["loc"][-1]) if error["loc"] else ""
    problem = str(error["msg"]).removeprefix("Value error, ")
    if error["type"] in ("enum", "literal_error"):
        expected = str(error["ctx"]["expected"])
        hint = did_you_mean(str(error["input"]), re.findall(r"'([^']*)'", expected))
        problem = f"expected {expected}, got {error['input']!r:.80}{hint}"
    if error["type"] == "extra_forbidden":
        problem = f"expected a known field, got {name!r}{did_you_mean(name, NewSchedule.model_fields)}"
    return {"code": "invalid_request", "where": where + "".join(steps), "problem": problem}


def _durations(options: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: timedelta(seconds=value) if isinstance(value, (int, float)) else value for name, value in options.items()
    }


def _moment(text: Any) -> datetime | None:
    return datetime.fromisoformat(text) if isinstance(text, str) else None


def _detail(given: set[str]) -> dict[str, Any]:
    return {"fields": sorted(given)}


def _checked(row: Mapping[str, Any], revision: Revisions) -> UUID:
    """Return the row's revision.

    :raises PreconditionFailed: if it is none of those that are meant
    """
    stored: UUID = row["revision"]
    if str(stored) not in ([revision] if isinstance(revision, str) else revision):
        raise PreconditionFailed(row["id"])
    return stored
