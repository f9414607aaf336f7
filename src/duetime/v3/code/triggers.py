"""A trigger of v3's arguments as the text of a trigger object that means the same, where that can be seen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import libcst as cst

from ...errors import DuetimeError
from ...triggers.cron import expression_of, parse_field
from ..cron_fields import FIELDS
from ..spelling import complete, spelled_here
from .literals import Unclear, code_of, is_plain, value_of, zone_name
from .project import SourceFile

LOCAL = "get_localzone()"
"""The zone of the machine, as v3 took it where none was given."""

CLASSES = {
    "apscheduler.triggers.cron.CronTrigger": "cron",
    "apscheduler.triggers.interval.IntervalTrigger": "interval",
    "apscheduler.triggers.date.DateTrigger": "date",
}
_AMOUNTS = ("weeks", "days", "hours", "minutes", "seconds")

Arguments = Mapping[str, cst.BaseExpression]


@dataclass(slots=True)
class Made:
    """A trigger's text.

    :ivar imports: (module, name) that it needs
    :ivar jitter: text of the schedule's ``max_jitter``
    """

    text: str
    imports: set[tuple[str, str]] = field(default_factory=set)
    jitter: str | None = None


def made(source: SourceFile, alias: str, arguments: Arguments, zone: str | None) -> Made:
    """Return the trigger of an alias and its arguments.

    :param zone: text of the zone where the arguments name none
    :raises Unclear: if only the running program knows what it is, or v3's own words are the shorter ones
    """
    given = dict(arguments)
    jitter = given.pop("jitter", None)
    if "timezone" in given:
        zone = repr(zone_name(source, given.pop("timezone")))
    if zone is None:
        raise Unclear
    trigger = {"cron": _cron, "interval": _interval, "date": _date}.get(alias)
    if trigger is None:
        raise Unclear
    found = trigger(source, given, zone)
    if jitter is not None:
        if not is_plain(jitter):
            raise Unclear
        found.jitter = code_of(jitter)
    if LOCAL in found.text:
        found.imports.add(("tzlocal", "get_localzone"))
    return found


def crontab(text: str) -> dict[str, str]:
    """Return the fields of v3's ``CronTrigger.from_crontab``.

    :raises Unclear: if they are not five
    """
    parts = text.split()
    if len(parts) != 5:
        raise Unclear
    return dict(zip(("minute", "hour", "day", "month", "day_of_week"), parts, strict=True))


def _cron(source: SourceFile, arguments: Arguments, zone: str) -> Made:
    if unknown := arguments.keys() - set(FIELDS):
        raise Unclear(unknown)
    given = {name: value_of(node) for name, node in arguments.items()}
    return Made(cron_text(given, zone), {("duetime.triggers", "Cron")})


def cron_text(given: Mapping[str, object], zone: str) -> str:
    """Return the text of a ``Cron`` of v3's fields.

    :raises Unclear: if v3 refuses them
    """
    try:
        fields = {name: spelled_here(name, text) for name, text in complete(given).items()}
        values = {name: parse_field(name, text) for name, text in fields.items()}
    except (DuetimeError, ValueError) as exc:
        raise Unclear(str(exc)) from None
    said = expression_of(values)
    if said is None:
        # The second is always named, so that no larger field left out takes its lowest value.
        named = {name: str(each) for name, each in values.items() if str(each) != "*" or name == "second"}
        text = "{" + ", ".join(f'"{name}": "{value}"' for name, value in named.items()) + "}"
    else:
        text = f'"{said}"'
    return f"Cron({text}, timezone={_quoted(zone)})"


def _interval(source: SourceFile, arguments: Arguments, zone: str) -> Made:
    if not arguments or arguments.keys() - set(_AMOUNTS) or not all(map(is_plain, arguments.values())):
        raise Unclear
    if not _knows_datetime(source) or _binds(source, "IntervalTrigger"):
        raise Unclear
    amounts = ", ".join(f"{name}={code_of(node)}" for name, node in arguments.items())
    # v3's first run comes after one interval, APScheduler 4's at once.
    text = f"IntervalTrigger({amounts}, start_time=datetime.now(UTC) + timedelta({amounts}))"
    return Made(
        text,
        {
            ("apscheduler.triggers.interval", "IntervalTrigger"),
            ("datetime", "UTC"),
            ("datetime", "datetime"),
            ("datetime", "timedelta"),
        },
    )


def _date(source: SourceFile, arguments: Arguments, zone: str) -> Made:
    if arguments.keys() != {"run_date"} or _binds(source, "DateTrigger"):
        raise Unclear
    node = arguments["run_date"]
    if not _is_aware(source, node):
        raise Unclear
    return Made(f"DateTrigger(run_time={code_of(node)})", {("apscheduler.triggers.date", "DateTrigger")})


def _is_aware(source: SourceFile, node: cst.BaseExpression) -> bool:
    """Return whether an expression says a time with its offset, in one of the usual ways."""
    if isinstance(node, cst.BinaryOperation):
        return _is_aware(source, node.left)
    if isinstance(node, cst.Call) and source.origin(node.func) in ("datetime.datetime.now", "datetime.now"):
        return len(node.args) == 1
    return False


def _knows_datetime(source: SourceFile) -> bool:
    """Return whether the names of the module ``datetime`` are free for what they usually mean."""
    wanted = {"datetime": ("datetime", "datetime"), "timedelta": ("datetime", "timedelta"), "UTC": ("datetime", "UTC")}
    return all(source.imports.get(name, meant) == meant for name, meant in wanted.items())


def _binds(source: SourceFile, name: str) -> bool:
    """Return whether a name means v3's class in a file, where that of APScheduler 4 would be confused with it."""
    return name in source.imports


def _quoted(zone: str) -> str:
    return zone if zone == LOCAL else zone.replace("'", '"')
