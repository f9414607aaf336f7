"""What a trigger of v3 is in Duetime's JSON: the meaning is kept, not the spelling.

v3 goes on from the time that it has stored, ``next_run_time``, whatever the trigger says of it. So a form is made for
that time: its first fire is the stored one, and those after it are v3's.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from typing import Any

from duetime.errors import InvalidTrigger, TriggerNeverFires
from duetime.triggers import CalendarInterval, parse_json, upcoming
from duetime.triggers.cron import KINDS, expression_of, parse_field
from duetime.triggers.specs import MAX_MEMBERS

from .clock_policies import policy_like_v3, zone_text
from .model import (
    Finding,
    V3And,
    V3CalendarInterval,
    V3Cron,
    V3Date,
    V3Interval,
    V3Or,
    V3Trigger,
    V3Unknown,
)
from .spelling import spelled_here

Json = dict[str, Any]

_PYTZ = ("pytz", "shim")
"""Flavours of zones under which v3 came to a repeated clock time by its second turn."""

_PLUS_MINUS = ("3.6", "3.7")
"""Releases whose jitter could also be a time before the planned one."""


@dataclass(slots=True)
class Form:
    """A trigger of v3 in Duetime's words.

    :ivar spec: what ``POST /schedules`` takes; its first fire is v3's stored time. None: there is no such form
    :ivar stored: what is stored for a schedule that is given v3's time as its next fire; the same, or without the
        leg for that one time
    :ivar jitter: seconds, for the schedule's ``max_jitter``
    :ivar ended: it has no fire left, and v3 would remove it
    """

    spec: Json | None = None
    stored: Json | None = None
    jitter: float | None = None
    findings: list[Finding] = field(default_factory=list)
    ended: bool = False

    def say(self, severity: str, code: str, text: str) -> None:
        """Note something that is to be said of the row."""
        if not any(each.code == code and each.text == text for each in self.findings):
            self.findings.append(Finding(code, text, severity))


def convert(trigger: V3Trigger, first: datetime | None, now: datetime, release: str | None = None) -> Form:
    """Return what a trigger becomes.

    :param first: the time that v3 has stored as its next one; None for a paused job
    :param now: for the changes of the clock that are to come, and where a paused trigger goes on
    """
    form = Form()
    form.jitter = getattr(trigger, "jitter", None) or None
    _say_jitter(form, trigger, release)
    try:
        rest = _rest(form, trigger, first, now)
    except TriggerNeverFires:
        rest = None
        form.ended = True
    if any(each.severity != "note" for each in form.findings) and rest is None and not form.ended:
        return form
    if first is None:
        if rest is None:
            form.ended = True
        form.spec = form.stored = rest
        return form
    at_first = {"type": "date", "run_at": _text(first)}
    begun = None if rest is None else upcoming(parse_json(rest, now=first), 1)
    if rest is None or not begun:
        if not isinstance(trigger, V3Date):
            form.say("note", "last_fire", "its trigger has no time after the next one; v3 removes the job after it.")
        form.ended = False
        form.spec = form.stored = at_first
    elif begun[0].astimezone(UTC) == first.astimezone(UTC):  # one that comes twice equals none of another zone
        form.spec = form.stored = rest
    else:
        form.stored = rest
        form.spec = _either(at_first, rest)
        if not form.jitter:
            form.say(
                "note",
                "own_next_run_time",
                f"its next run, {_text(first)}, is none of the trigger's times: it is kept, and the trigger's follow.",
            )
    return form


def _either(one: Json, other: Json) -> Json:
    if other["type"] == "or" and len(other["triggers"]) < MAX_MEMBERS:
        return {**other, "triggers": [one, *other["triggers"]]}
    return {"type": "or", "triggers": [one, other]}


def _rest(form: Form, trigger: V3Trigger, first: datetime | None, now: datetime) -> Json | None:
    """Return the JSON form of the trigger from its stored time on, or None if it has no fire then.

    :raises TriggerNeverFires: if it has none
    """
    spec = _spec(form, trigger, first, now)
    if spec is not None:
        try:
            parse_json(spec, now=first or now)
        except TriggerNeverFires:
            raise
        except InvalidTrigger as exc:
            form.say("review", "unsupported_trigger", exc.message)
            return None
    return spec


def _spec(form: Form, trigger: V3Trigger, first: datetime | None, now: datetime) -> Json | None:
    match trigger:
        case V3Date():
            return _date(form, trigger, first, now)
        case V3Interval():
            return _interval(trigger, first)
        case V3Cron():
            return _cron(form, trigger, first, now)
        case V3CalendarInterval():
            return _calendar_interval(form, trigger, first, now)
        case V3And() | V3Or():
            return _combined(form, trigger, first, now)
        case V3Unknown():
            form.say(
                "review",
                "own_trigger",
                f"its trigger is of the application's own class {trigger.reference}, which is not imported: when it "
                f"fires is not known beyond the stored time. Add the schedule by hand.",
            )
            return None


def _text(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat()


def _date(form: Form, trigger: V3Date, first: datetime | None, now: datetime) -> Json:
    run_at = first or trigger.run_date
    if first is not None and first.astimezone(UTC) != trigger.run_date.astimezone(UTC):
        form.say(
            "note",
            "own_next_run_time",
            f"it runs at {_text(first)}, which v3 has stored, and not at the trigger's {_text(trigger.run_date)}.",
        )
    if first is None and run_at <= now:
        form.say(
            "note",
            "past_date",
            f"its date, {_text(run_at)}, has passed while it was paused: a resume passes it over, where v3 would run "
            f"it if it is within its grace time.",
        )
    return {"type": "date", "run_at": _text(run_at)}


def _interval(trigger: V3Interval, first: datetime | None) -> Json | None:
    interval = trigger.interval
    seconds: float = interval.seconds % 60
    if interval.microseconds:
        seconds += interval.microseconds / 1_000_000
    amounts = {
        "days": interval.days,
        "hours": interval.seconds // 3600,
        "minutes": interval.seconds // 60 % 60,
        "seconds": seconds,
    }
    # v3 counts on from the stored time, as elapsed time: UTC, where no clock goes back.
    spec: Json = {"type": "interval", **{name: amount for name, amount in amounts.items() if amount}}
    spec["start"] = _text(first or trigger.start_date)
    if trigger.end_date is not None:
        spec["end"] = _text(trigger.end_date)
    return spec


def _cron(form: Form, trigger: V3Cron, first: datetime | None, now: datetime) -> Json | None:
    zone, said = zone_text(trigger.timezone)
    if said is not None:
        form.say("note" if zone else "review", "fixed_offset", said)
    if zone is None:
        return None
    try:
        # Months stand for the same in both.
        texts = {name: trigger.fields[name] for name in KINDS} | {
            "day_of_week": spelled_here("day_of_week", trigger.fields["day_of_week"])
        }
        values = {name: parse_field(name, text) for name, text in texts.items()}
    except (ValueError, KeyError, InvalidTrigger) as exc:
        form.say("review", "unsupported_trigger", f"expected cron fields that Duetime reads, got: {exc}.")
        return None
    spec: Json = {"type": "cron"}
    if expression := expression_of(values):
        spec["expression"] = expression
    else:
        # The second is always named, so that no larger field left out takes its lowest value.
        spec["fields"] = {name: str(each) for name, each in values.items() if str(each) != "*" or name == "second"}
    spec["timezone"] = zone
    twice = trigger.timezone.flavour not in _PYTZ
    gap, fold = policy_like_v3({name: str(each) for name, each in values.items()}, trigger.timezone, now, twice)
    spec |= {name: word for name, word in (("on_gap", gap), ("on_fold", fold)) if word}
    start = first or trigger.start_date
    if first is not None and trigger.start_date is not None and first < trigger.start_date:
        form.say(
            "note",
            "start_date_passed_over",
            f"its next run lies before its start_date, {_text(trigger.start_date)}, of which v3 takes no notice "
            f"after that run; nor does the schedule.",
        )
    if start is not None and (first is not None or start > now):
        spec["start"] = _text(start)
    if trigger.end_date is not None:
        spec["end"] = _text(trigger.end_date)
    return spec


def _calendar_interval(form: Form, trigger: V3CalendarInterval, first: datetime | None, now: datetime) -> Json | None:
    zone, said = zone_text(trigger.timezone)
    if said is not None:
        form.say("note" if zone else "review", "fixed_offset", said)
    if zone is None:
        return None
    spec: Json = {"type": "calendar_interval"}
    for name in ("years", "months", "weeks", "days", "hour", "minute", "second"):
        if amount := getattr(trigger, name):
            spec[name] = amount
    # v3 counts on from the day of the stored time. It passes over a day on which the clock skips its time, and of a
    # time that comes twice it takes the first.
    # That day is the one of the zone in which the time was stored, which somebody may have chosen.
    day = trigger.start_date if first is None else first.date()
    policy: Json = {"on_gap": "skip", "on_fold": "first"}
    if first is not None:
        day = _next_day(trigger, day, first)
    spec["start_date"] = day.isoformat()
    if trigger.end_date is not None:
        spec["end_date"] = trigger.end_date.isoformat()
    return {**spec, "timezone": zone, **policy}


def _next_day(trigger: V3CalendarInterval, day: date, first: datetime) -> date:
    """Return the day of the first fire at or after the stored time: that day, or the one an interval later."""
    own = CalendarInterval(
        years=trigger.years,
        months=trigger.months,
        weeks=trigger.weeks,
        days=trigger.days,
        hour=trigger.hour,
        minute=trigger.minute,
        second=trigger.second,
        start_date=day,
        timezone=trigger.timezone.tzinfo,
        on_gap="shift",
        on_fold="first",
    )
    if own.next() == first or own.next() is None or own.day is None:
        return day
    return own.day


def _combined(form: Form, trigger: V3And | V3Or, first: datetime | None, now: datetime) -> Json | None:
    if len(trigger.triggers) == 1:
        form.jitter = form.jitter or getattr(trigger.triggers[0], "jitter", None)
        return _spec(form, trigger.triggers[0], first, now)
    is_and = isinstance(trigger, V3And)
    if is_and:
        form.say(
            "review",
            "and_trigger",
            "v3 looks for the next time of an 'and' from each member's time after the last fire alone, and hangs where "
            "those differ. What is meant has to be checked: Duetime fires at every time that all members have.",
        )
    members: list[Json] = []
    for member in trigger.triggers:
        if jitter := getattr(member, "jitter", None):
            form.jitter = max(form.jitter or 0.0, jitter)
            form.say("review", "member_jitter", "a member has jitter of its own; Duetime's is one for the schedule.")
        if not is_and:
            if isinstance(member, (V3Interval, V3CalendarInterval)) or _has_and(member):
                form.say(
                    "review",
                    "or_with_interval",
                    "v3 counts an interval inside an 'or' from the last fire of any member, which moves its rhythm; "
                    "Duetime keeps the members apart. Choose what is meant.",
                )
            if isinstance(member, V3Date) and member.run_date < (first or now):
                continue  # it has been
            if isinstance(member, V3Date) and first is not None and member.run_date > first:
                form.say(
                    "review",
                    "or_with_date",
                    f"v3 asks a date inside an 'or' before the first fire only, so it will not fire at "
                    f"{_text(member.run_date)}; Duetime would. Choose what is meant.",
                )
        if isinstance(member, V3Date):
            members.append({"type": "date", "run_at": _text(member.run_date)})
            continue
        try:
            spec = _rest(form, member, None if is_interval(member) else first, first or now)
        except TriggerNeverFires:
            if is_and:
                raise
            continue
        if spec is None:
            return None
        members.append(spec)
    if not members:
        raise TriggerNeverFires("none of the members has a fire left")
    if len(members) == 1:
        return members[0]
    return {"type": "and", "triggers": members, "threshold": 0} if is_and else {"type": "or", "triggers": members}


def is_interval(trigger: V3Trigger) -> bool:
    """Return whether it counts from its last fire, and not by the clock and the calendar."""
    return isinstance(trigger, (V3Interval, V3CalendarInterval))


def _has_and(trigger: V3Trigger) -> bool:
    if isinstance(trigger, V3And):
        return True
    return isinstance(trigger, V3Or) and any(is_interval(each) or _has_and(each) for each in trigger.triggers)


def _say_jitter(form: Form, trigger: V3Trigger, release: str | None) -> None:
    if not form.jitter:
        return
    text = f"its jitter of {form.jitter:g} s is max_jitter: a delay of up to that, less than the time to the next fire."
    if release is None:
        text += " (v3.6 and v3.7 could also fire before the planned time; Duetime never does.)"
    elif release.startswith(_PLUS_MINUS):
        text += f" v{release} could also fire up to that before the planned time; Duetime never does."
    if isinstance(trigger, V3Interval):
        text += " v3 counted on from the delayed fire, so its rhythm drifted; Duetime's does not."
    form.say("note", "jitter", text)
