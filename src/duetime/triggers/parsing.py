"""JSON ↔ trigger."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, date, datetime, timedelta, tzinfo
from typing import Any

from apscheduler.abc import Trigger
from apscheduler.triggers.calendarinterval import CalendarIntervalTrigger
from apscheduler.triggers.combining import AndTrigger, OrTrigger
from apscheduler.triggers.cron import CronTrigger
from apscheduler.triggers.date import DateTrigger
from apscheduler.triggers.interval import IntervalTrigger
from pydantic import TypeAdapter, ValidationError

from duetime.errors import InvalidTrigger, TriggerNeverFires, did_you_mean

from .calendar_trigger import CalendarInterval
from .clock import Policy, offsets
from .cron import expression_of, field_values, has_date, why_no_date
from .cron_trigger import Cron
from .excluding import Excluding, Exclusion
from .exclusion_specs import Holidays, Period
from .holiday_calendars import HolidayCalendar
from .limiting import Limited
from .preview import MAX_STEPS, check_fires
from .rrule_trigger import RRule
from .specs import (
    MAX_DEPTH,
    MAX_LEAVES,
    SPECS,
    AndTriggerSpec,
    CalendarIntervalTriggerSpec,
    CronFieldsSpec,
    CronTriggerSpec,
    DateTriggerSpec,
    IntervalTriggerSpec,
    OrTriggerSpec,
    RRuleTriggerSpec,
    TextTriggerSpec,
    TriggerSpec,
)
from .text import understand
from .text_times import refused
from .zones import UTC_ZONE, in_zone, zone, zone_name

SHORTEST_INTERVAL = timedelta(milliseconds=1)

START_GRACE = timedelta(seconds=60)
"""An interval's start this little in the past is a caller's "now" on its way here: it still fires."""

_ADAPTER: TypeAdapter[TriggerSpec] = TypeAdapter(TriggerSpec)


def parse_json(data: Mapping[str, Any], *, now: datetime | None = None) -> Trigger:
    """Return the trigger of its JSON form, which may come from anywhere.

    :param now: the instant that counts as now (aware); the real one by default
    :raises InvalidTrigger: with one detail per problem
    :raises UnknownTimeZone: if a zone is not an IANA name
    :raises TriggerNeverFires: if there is no fire time at all
    """
    try:
        spec = _ADAPTER.validate_python(dict(data) if isinstance(data, Mapping) else data)
    except ValidationError as exc:
        raise _invalid(exc, data) from None
    return parse(spec, now=now)


def parse(spec: TriggerSpec, *, now: datetime | None = None) -> Trigger:
    """Return the trigger that a spec describes.

    No fire lies before ``now``, but for a ``date`` (and an interval's start within the last minute): a
    recurring trigger whose start lies in the past keeps its rhythm and goes on with the next fire that is
    due, so the same JSON can be posted again without firing all that has been.

    :param now: the instant that counts as now (aware); the real one by default
    :raises InvalidTrigger: if a value is out of range
    :raises UnknownTimeZone: if a zone is not an IANA name
    :raises TriggerNeverFires: if there is no fire time at all
    """
    now = now or datetime.now(UTC)
    leaves = _count_leaves(spec, 0)
    if leaves > MAX_LEAVES:
        raise InvalidTrigger(f"expected at most {MAX_LEAVES} triggers inside one trigger, got {leaves}.")
    try:
        trigger = _build(spec, now)
    except OverflowError:
        raise InvalidTrigger("expected times between the years 1 and 9999, got one beyond them.") from None
    check_fires(trigger)
    return trigger


def parses_quickly(spec: TriggerSpec) -> bool:
    """Return whether the first fire of a spec is found within a few milliseconds, whatever its values are."""
    simple = (DateTriggerSpec, IntervalTriggerSpec, CronTriggerSpec, CalendarIntervalTriggerSpec)
    return isinstance(spec, simple) and not getattr(spec, "exclude", None)


def _count_leaves(spec: TriggerSpec, depth: int) -> int:
    if not isinstance(spec, (AndTriggerSpec, OrTriggerSpec)):
        return 1
    if depth == MAX_DEPTH:
        raise InvalidTrigger(f"expected 'and' and 'or' nested at most {MAX_DEPTH} levels deep, got more.")
    return sum(_count_leaves(member, depth + 1) for member in spec.triggers)


def _build(spec: TriggerSpec, now: datetime) -> Trigger:
    if isinstance(spec, TextTriggerSpec):
        understood = understand(spec.text, timezone=spec.timezone, now=now)
        if understood["type"] != "date":
            given = spec.model_dump(by_alias=True, exclude_none=True)["exclude"]
            understood["exclude"] = [*given, *understood.get("exclude", ())]
        try:
            meant = _ADAPTER.validate_python(understood)
        except ValidationError as exc:
            limit = exc.errors()[0]
            problem = f"{limit['loc'][-1]} {str(limit['msg']).replace('Input should', 'should', 1)}"
            raise refused(f"expected a smaller number, got {spec.text!r:.80}: {problem}") from None
        return _build(meant, now)
    trigger = _build_whole(spec, now)
    if isinstance(spec, DateTriggerSpec) or not spec.exclude:
        return trigger
    exclude = [_exclusion(item, f"trigger.exclude[{index}]") for index, item in enumerate(spec.exclude)]
    return Excluding(trigger, exclude, timezone=zone(spec.timezone))


def _exclusion(item: str | Period | Holidays, where: str) -> Exclusion:
    if isinstance(item, Period):
        return {"from": item.from_, "to": item.to}
    if isinstance(item, Holidays):
        calendar = HolidayCalendar.of(item.model_dump(exclude_none=True))
        return calendar.resolved(where).exclusion()
    return item


def _build_whole(spec: Any, now: datetime) -> Trigger:
    if isinstance(spec, DateTriggerSpec):
        return _build_date(spec)
    if isinstance(spec, IntervalTriggerSpec):
        return _build_interval(spec, now)
    if isinstance(spec, CronTriggerSpec):
        return _build_cron(spec, now)
    if isinstance(spec, CalendarIntervalTriggerSpec):
        return _build_calendar_interval(spec, now)
    if isinstance(spec, RRuleTriggerSpec):
        return _build_rrule(spec, now)
    zone(spec.timezone)
    members = []
    for index, member in enumerate(spec.triggers):
        try:
            members.append(_build(member, now))
        except InvalidTrigger as exc:
            place = f"trigger.triggers[{index}]"
            details = [{**detail, "where": detail["where"].replace("trigger", place, 1)} for detail in exc.details]
            raise type(exc)(exc.message, details=details) from None
    if isinstance(spec, OrTriggerSpec):
        return OrTrigger(members)
    # So that one look for the next common time stays within MAX_STEPS steps of the members.
    iterations = min(10_000, MAX_STEPS // _count_leaves(spec, 0))
    return AndTrigger(members, threshold=timedelta(seconds=spec.threshold), max_iterations=iterations)


def _build_date(spec: DateTriggerSpec) -> DateTrigger:
    tz = zone(spec.timezone) if spec.timezone is not None else spec.run_at.tzinfo or UTC_ZONE
    run_at = in_zone(spec.run_at, tz)
    first, last = offsets(run_at.replace(tzinfo=None), tz)
    # A time that its zone has twice equals no time of another zone (PEP 495), so OrTrigger would give it twice.
    return DateTrigger(run_at if first == last else run_at.astimezone(UTC_ZONE))


def _build_interval(spec: IntervalTriggerSpec, now: datetime) -> IntervalTrigger:
    settings: dict[str, Any] = spec.model_dump(include={"weeks", "days", "hours", "minutes", "seconds"})
    step = timedelta(**settings)
    if step < SHORTEST_INTERVAL:
        raise InvalidTrigger(
            f"expected an interval of at least a millisecond, got {step.total_seconds():g} s. Give one or "
            f"more of {', '.join(settings)}.",
            details=[{"where": "trigger", "problem": "the interval is zero or shorter than a millisecond"}],
        )
    # In UTC: IntervalTrigger adds the interval to the wall clock of its start's zone, which goes back once a
    # year.
    timezone = zone(spec.timezone)
    start = (in_zone(spec.start, timezone) if spec.start else now).astimezone(UTC_ZONE)
    if now - start > min(START_GRACE, step):
        start += -((start - now) // step) * step
    end = in_zone(spec.end, timezone).astimezone(UTC_ZONE) if spec.end else None
    if end and end < start:
        raise _ended(end)
    return IntervalTrigger(**settings | {"start_time": start, "end_time": end})


def _build_cron(spec: CronTriggerSpec, now: datetime) -> Cron:
    timezone = zone(spec.timezone)
    if (spec.expression is None) == (spec.fields is None):
        given = "neither" if spec.expression is None else "both"
        raise InvalidTrigger(
            f"expected either 'expression' or 'fields' in a cron trigger, got {given}. "
            f"Example: {{'type': 'cron', 'expression': '0 9 * * mon-fri'}}.",
            details=[{"where": "trigger", "problem": f"{given} of 'expression' and 'fields'"}],
        )
    named = spec.fields.model_dump(exclude_none=True) if spec.fields else {}
    start = max(in_zone(spec.start, timezone), now) if spec.start else now
    trigger = Cron(
        named if spec.expression is None else spec.expression,
        timezone=timezone,
        on_gap=spec.on_gap,
        on_fold=spec.on_fold,
        start_time=start,
        end_time=in_zone(spec.end, timezone) if spec.end else None,
    )
    if not has_date(trigger.values, trigger.start_time.astimezone(timezone).date()):
        reason = why_no_date(trigger.values)
        raise TriggerNeverFires(
            f"expected a cron trigger with at least one fire time, got one that never fires: {reason}. "
            f"Choose another day ('last' is the last one of a month), or leave out the field that excludes the others.",
            details=[{"where": "trigger", "problem": reason}],
        )
    return trigger


def _build_calendar_interval(spec: CalendarIntervalTriggerSpec, now: datetime) -> CalendarInterval:
    timezone = zone(spec.timezone)
    if not (spec.years or spec.months or spec.weeks or spec.days):
        raise InvalidTrigger(
            "expected a calendar interval of at least a day, got none. Give one or more of years, months, "
            "weeks and days.",
            details=[{"where": "trigger", "problem": "the interval is zero"}],
        )
    today = now.astimezone(timezone).date()
    start = spec.start_date or today
    if not (spec.years or spec.months) and start < today:
        step = timedelta(weeks=spec.weeks, days=spec.days)
        start += (today - start) // step * step
    if spec.end_date and start > spec.end_date:
        raise _ended(spec.end_date)
    settings = spec.model_dump(include={"years", "months", "weeks", "days", "hour", "minute", "second", "end_date"})
    settings |= {"timezone": timezone, "on_gap": spec.on_gap or "shift", "on_fold": spec.on_fold or "first"}
    trigger = CalendarInterval(**settings, start_date=start)
    while (fire := trigger.next()) is not None and fire < now:
        pass
    if fire is None:
        raise _ended(spec.end_date)
    return CalendarInterval(**settings, start_date=trigger.day)


def _build_rrule(spec: RRuleTriggerSpec, now: datetime) -> RRule:
    timezone = zone(spec.timezone)
    exdates: list[date] = []
    for index, text in enumerate(spec.exdate):
        try:
            exdates.append(datetime.fromisoformat(text) if len(text) > 10 else date.fromisoformat(text))
        except ValueError:
            where, problem = f"trigger.exdate[{index}]", f"expected a day or a time in ISO 8601, got {text!r:.60}"
            raise InvalidTrigger(f"{where}: {problem}.", details=[{"where": where, "problem": problem}]) from None
    trigger = RRule(spec.rrule, start_time=spec.start or now, timezone=timezone, exdates=exdates)
    trigger.forward(now - timedelta(microseconds=1))
    return trigger


def _ended(end: date | None) -> TriggerNeverFires:
    return TriggerNeverFires(
        f"expected an end after the first fire time, got {end}. Move the end or leave it out.",
        details=[{"where": "trigger", "problem": "it ends before its first fire time"}],
    )


def _invalid(exc: ValidationError, data: Any) -> InvalidTrigger:
    details: list[dict[str, str]] = []
    for error in exc.errors(include_url=False, include_context=True):
        where, problem = _problem(error, data)
        if any(detail["where"] == where for detail in details):
            continue  # what else it is not
        details.append({"where": where, "problem": problem})
    listed = "; ".join(f"{detail['where']}: {detail['problem']}" for detail in details)
    return InvalidTrigger(f"expected a trigger in one of its JSON forms, got {listed}", details=details)


def _problem(error: Any, data: Any) -> tuple[str, str]:
    """Return where a Pydantic error is and what it says, in the words of the JSON that came."""
    where, current = "trigger", data
    tag, at_union = None, True
    location = list(error["loc"])
    while location:
        step = location.pop(0)
        if isinstance(step, int):
            where += f"[{step}]"
        elif at_union and isinstance(current, Mapping) and current.get("type") == step:
            tag, at_union = step, False  # Pydantic puts the member of the union that it chose into the path
            continue
        else:
            where += f".{step}"
        at_union = isinstance(step, int)
        try:
            current = current[step]
        except (KeyError, IndexError, TypeError):
            current = None
    kinds = ", ".join(SPECS)
    if error["type"] == "union_tag_not_found":
        return where, f"expected a 'type', one of {kinds}; got none"
    if error["type"] == "union_tag_invalid":
        name = str(error["ctx"]["tag"])
        if name == "custom":
            return (
                where,
                "a 'custom' trigger is one of the application's own classes and can only be made in its code",
            )
        return where, f"expected 'type' to be one of {kinds}, got {name!r:.60}{did_you_mean(name, SPECS)}"
    if error["type"] == "extra_forbidden" and tag:
        word = str(error["loc"][-1])
        model, what = (SPECS[tag], f"a {tag!r} trigger")
        if error["loc"][-2] == "fields":
            model, what = CronFieldsSpec, "the fields of a 'cron' trigger"
        known = model.model_fields
        return where, f"unknown in {what}{did_you_mean(word, known)} It has {', '.join(known)}"
    if error["type"] == "literal_error":
        words = re.findall(r"'(\w+)'", str(error["ctx"]["expected"]))
        got = f"{error['input']!r:.60}"
        return where, f"expected {error['ctx']['expected']}, got {got}{did_you_mean(str(error['input']), words)}"
    return where, str(error["msg"]).removeprefix("Value error, ")


def to_json(trigger: Trigger, *, now: datetime | None = None) -> dict[str, Any]:
    """Return the JSON form of any trigger: what ``parse_json`` reads, from now on, as the same fire times.

    How far the trigger has got is no part of it. A cron trigger's start is left out once it has passed. A
    class that JSON cannot make, or a zone without an IANA name, gives ``{"type": "custom", "class": …,
    "repr": …}``, which is for reading only. An interval that starts in a zone with daylight saving time is
    given in UTC, as elapsed time.
    """
    now = now or datetime.now(UTC)
    if isinstance(trigger, Limited):
        return to_json(trigger.inner, now=now)
    if type(trigger) is AndTrigger:
        members = [to_json(member, now=now) for member in trigger.triggers]
        return {"type": "and", "triggers": members, "threshold": trigger.threshold.total_seconds()}
    if type(trigger) is OrTrigger:
        return {"type": "or", "triggers": [to_json(member, now=now) for member in trigger.triggers]}
    if type(trigger) is DateTrigger:
        return _date_json(trigger)
    if type(trigger) is IntervalTrigger:
        return _interval_json(trigger)
    if isinstance(trigger, (Cron, CronTrigger)) and (name := _zone_text(trigger.timezone)):
        return _cron_json(trigger, name, now)
    if isinstance(trigger, (CalendarInterval, CalendarIntervalTrigger)) and (name := _zone_text(trigger.timezone)):
        return _calendar_interval_json(trigger, name)
    if isinstance(trigger, RRule) and (name := _zone_text(trigger.timezone)):
        return _rrule_json(trigger, name)
    if isinstance(trigger, Excluding) and (name := _zone_text(trigger.timezone)):
        data = to_json(trigger.inner, now=now)
        if data["type"] != "custom":
            return {**data, **({"timezone": name} if name != "UTC" else {}), "exclude": list(trigger.exclude)}
    kind = type(trigger)
    return {"type": "custom", "class": f"{kind.__module__}.{kind.__qualname__}", "repr": repr(trigger)[:500]}


def _date_json(trigger: DateTrigger) -> dict[str, Any]:
    data = {"type": "date", "run_at": trigger.run_time.isoformat()}
    if (name := zone_name(trigger.run_time.tzinfo)) and name != "UTC":
        data["timezone"] = name
    return data


def _interval_json(trigger: IntervalTrigger) -> dict[str, Any]:
    state = trigger.__getstate__()
    *amounts, microseconds = state["interval"]
    if microseconds or min(amounts) < 0:
        step = timedelta(**dict(zip(("weeks", "days", "hours", "minutes", "seconds"), amounts, strict=True)))
        amounts = [0, 0, 0, 0, (step + timedelta(microseconds=microseconds)).total_seconds()]
    data: dict[str, Any] = {"type": "interval"}
    for name, amount in zip(("weeks", "days", "hours", "minutes", "seconds"), amounts, strict=True):
        if amount:
            data[name] = int(amount) if amount == int(amount) else amount
    data["start"] = state["start_time"].astimezone(UTC).isoformat()
    if state["end_time"]:
        data["end"] = state["end_time"].astimezone(UTC).isoformat()
    return data


def _cron_json(trigger: Cron | CronTrigger, timezone: str, now: datetime) -> dict[str, Any]:
    values = trigger.values if isinstance(trigger, Cron) else field_values(trigger)
    data: dict[str, Any] = {"type": "cron"}
    if expression := expression_of(values):
        data["expression"] = expression
    else:
        # The second is always named, so that no larger field left out takes its lowest value.
        data["fields"] = {name: str(value) for name, value in values.items() if str(value) != "*" or name == "second"}
    data["timezone"] = timezone
    if isinstance(trigger, Cron):
        data |= _policy_json(trigger.policy, trigger.default_policy)
    # The start of a trigger without one is the moment it was made, rounded up.
    if trigger.start_time > now + timedelta(seconds=1):
        data["start"] = in_zone(trigger.start_time, trigger.timezone).isoformat()
    if trigger.end_time:
        data["end"] = in_zone(trigger.end_time, trigger.timezone).isoformat()
    return data


def _rrule_json(trigger: RRule, timezone: str) -> dict[str, Any]:
    data: dict[str, Any] = {"type": "rrule", "rrule": trigger.rule.text, "start": trigger.start.isoformat()}
    data["timezone"] = timezone
    if trigger.exdates:
        data["exdate"] = [each.isoformat() for each in trigger.exdates]
    return data


def _policy_json(policy: Policy, usual: Policy) -> dict[str, str]:
    return {name: word for name, word in policy._asdict().items() if word != getattr(usual, name)}


def _calendar_interval_json(trigger: CalendarInterval | CalendarIntervalTrigger, timezone: str) -> dict[str, Any]:
    state = trigger.__getstate__()
    named = dict(zip(("years", "months", "weeks", "days"), state["interval"], strict=True))
    named |= dict(zip(("hour", "minute", "second"), state["time"], strict=True))
    data: dict[str, Any] = {"type": "calendar_interval"}
    data |= {name: value for name, value in named.items() if value}
    data["start_date"] = state["start_date"].isoformat()
    if state["end_date"]:
        data["end_date"] = state["end_date"].isoformat()
    data["timezone"] = timezone
    # CalendarIntervalTrigger passes over a day on which the clock skips its time.
    policy = trigger.policy if isinstance(trigger, CalendarInterval) else Policy("skip", "first")
    data |= _policy_json(policy, Policy("shift", "first"))
    return data


def _zone_text(tz: tzinfo) -> str | None:
    """Return an IANA name for the zone: its own, or that of a fixed offset of whole hours."""
    name = zone_name(tz) or getattr(tz, "zone", None)  # pytz
    if isinstance(name, str):
        return name
    offset = tz.utcoffset(None)
    if offset is None or offset % timedelta(hours=1):
        return None
    hours = offset // timedelta(hours=1)
    # POSIX counts these west of Greenwich.
    return f"Etc/GMT{-hours:+d}" if -12 <= hours <= 14 and hours else ("UTC" if not hours else None)
