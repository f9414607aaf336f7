"""v3's ``scheduler.add_job(...)`` as ``add_schedule(...)`` of APScheduler 4, or as the call that keeps v3's meaning."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from typing import Any

import libcst as cst

from .literals import Unclear, argument, call_of, code_of, expression, is_plain, value_of
from .project import SourceFile, dotted
from .triggers import CLASSES, LOCAL, Made, crontab, made

_POSITIONAL = (
    "func", "trigger", "args", "kwargs", "id", "name", "misfire_grace_time", "coalesce", "max_instances",
    "next_run_time", "jobstore", "executor", "replace_existing",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class SchedulerOptions:
    """What a scheduler was constructed with, as far as its code says.

    :ivar zone: text of its zone; None: known when the program runs
    :ivar job_defaults: None: known when the program runs
    :ivar executors: alias → executor here
    :ivar persists: it had a job store of its own
    """

    zone: str | None = LOCAL
    job_defaults: Mapping[str, Any] | None = field(default_factory=dict)
    executors: Mapping[str, str] = field(default_factory=dict)
    persists: bool = False


@dataclass(slots=True)
class NewCall:
    """What takes the place of a call.

    :ivar imports: (module, name) that it needs
    :ivar is_stock: it is ``add_schedule``, which returns the id
    """

    call: cst.Call
    imports: set[tuple[str, str]]
    is_stock: bool


def arguments_of(call: cst.Call, positional: tuple[str, ...]) -> dict[str, cst.BaseExpression]:
    """Return the arguments of a call by name.

    :raises Unclear: if some come as ``*args`` or ``**kwargs``
    """
    given: dict[str, cst.BaseExpression] = {}
    for place, each in enumerate(call.args):
        if each.star or (each.keyword is None and place >= len(positional)):
            raise Unclear
        given[each.keyword.value if each.keyword is not None else positional[place]] = each.value
    return given


def new_call(
    source: SourceFile,
    scheduler: str,
    call: cst.Call,
    options: SchedulerOptions,
    *,
    stock: bool,
    at_start: str | None = None,
    taken: AbstractSet[str] = frozenset(),
) -> NewCall:
    """Return the call that adds a job, not yet awaited.

    :param scheduler: text of the scheduler
    :param stock: ``add_schedule`` may be called: nobody uses the job that ``add_job`` returns
    :param at_start: the id of a job without one that is added at each start; None: it is added by a request
    :param taken: names that mean something else in the file
    """
    if stock:
        try:
            new = _stock(source, scheduler, call, options, at_start)
            if not any(name in taken for _module, name in new.imports if name not in source.imports):
                return new
        except Unclear:
            pass
    arguments = [cst.Arg(expression(scheduler)), *call.args]
    names = {each.keyword.value for each in call.args if each.keyword is not None}
    has_stars = any(each.star for each in call.args)
    if at_start is not None and not has_stars and len(call.args) < len(_POSITIONAL) - 1:
        if "id" not in names and not any(each.keyword is None for each in call.args[4:5]):
            arguments.append(argument("id", f'"{at_start}"'))
        if "replace_existing" not in names and not options.persists:
            arguments.append(argument("replace_existing", "True"))
    name = "v3_add_job" if "add_job" in taken else "add_job"
    wanted = "add_job" if name == "add_job" else f"add_job as {name}"
    return NewCall(call_of(name, arguments, call), {("duetime.v3.compat", wanted)}, is_stock=False)


def _stock(
    source: SourceFile, scheduler: str, call: cst.Call, options: SchedulerOptions, at_start: str | None
) -> NewCall:
    given = arguments_of(call, _POSITIONAL)
    func = given.pop("func")
    if dotted(func) is None or options.job_defaults is None:
        raise Unclear
    if "jobstore" in given and value_of(given.pop("jobstore")) != "default":
        raise Unclear
    arguments = [cst.Arg(func)]
    own = {name: given.pop(name) for name in _POSITIONAL if name in given}
    trigger = _trigger(source, own.pop("trigger", None), given, options)
    arguments.append(cst.Arg(expression(trigger.text)))
    imports = set(trigger.imports)
    keyword = [argument(name, own.pop(name)) for name in ("args", "kwargs") if name in own]
    has_id = "id" in own and code_of(own["id"]) != "None"
    identity = own.pop("id", None)
    if has_id and identity is not None:
        keyword.insert(0, argument("id", identity))
    elif at_start is not None:
        keyword.insert(0, argument("id", f'"{at_start}"'))
    metadata: list[str] = []
    if "name" in own:
        metadata.append(f'"name": {code_of(own.pop("name"))}')
    defaults = {"misfire_grace_time": 1, "coalesce": True, "max_instances": 1, **options.job_defaults}
    grace = own.pop("misfire_grace_time", None)
    if grace is not None and not is_plain(grace):
        raise Unclear
    text = repr(defaults["misfire_grace_time"]) if grace is None else code_of(grace)
    if text != "None":
        keyword.append(argument("misfire_grace_time", text))
    if not (value_of(own.pop("coalesce")) if "coalesce" in own else defaults["coalesce"]):
        keyword.append(argument("coalesce", "CoalescePolicy.all"))
        imports.add(("apscheduler", "CoalescePolicy"))
    if (value_of(own.pop("max_instances")) if "max_instances" in own else defaults["max_instances"]) != 1:
        metadata.append('"duetime.overlap": "allow"')
    if trigger.jitter is not None:
        keyword.append(argument("max_jitter", trigger.jitter))
    if "next_run_time" in own:
        if code_of(own.pop("next_run_time")) != "None":
            raise Unclear
        keyword.append(argument("paused", "True"))
    if "executor" in own:
        alias = value_of(own.pop("executor"))
        executor = options.executors.get(alias, alias)
        if executor not in ("default", "auto", "async", "threadpool", "processpool"):
            raise Unclear
        if executor != "default":
            keyword.append(argument("job_executor", f'"{executor}"'))
    if metadata:
        keyword.append(argument("metadata", "{" + ", ".join(metadata) + "}"))
    replaces = value_of(own.pop("replace_existing")) if "replace_existing" in own else False
    if replaces or (at_start is not None and not (options.persists and has_id)):
        keyword.append(argument("conflict_policy", "ConflictPolicy.replace"))
        imports.add(("apscheduler", "ConflictPolicy"))
    elif has_id:  # APScheduler 4 keeps the stored one without a word
        keyword.append(argument("conflict_policy", "ConflictPolicy.exception"))
        imports.add(("apscheduler", "ConflictPolicy"))
    return NewCall(call_of(f"{scheduler}.add_schedule", [*arguments, *keyword], call), imports, is_stock=True)


def _trigger(
    source: SourceFile,
    trigger: cst.BaseExpression | None,
    arguments: dict[str, cst.BaseExpression],
    options: SchedulerOptions,
) -> Made:
    """Return the text of a job's trigger: one of v3's aliases, or one of its classes that is called right there."""
    if isinstance(trigger, cst.Call):
        return trigger_object(source, trigger)
    alias = value_of(trigger) if trigger is not None else "date"
    if not isinstance(alias, str):
        raise Unclear
    return made(source, alias, arguments, options.zone)


def trigger_object(source: SourceFile, call: cst.Call) -> Made:
    """Return the text of a trigger that v3's class makes, which takes the machine's zone where it is given none.

    :raises Unclear: if only the running program knows what it is
    """
    origin = source.origin(call.func) or ""
    if origin.endswith(".CronTrigger.from_crontab"):
        given = arguments_of(call, ("expr", "timezone"))
        text = value_of(given.pop("expr"))
        zone = given.pop("timezone", None)
        if given or not isinstance(text, str):
            raise Unclear
        named = {name: expression(repr(value)) for name, value in crontab(text).items()}
        if zone is not None:
            named["timezone"] = zone
        return made(source, "cron", named, LOCAL)
    if (alias := CLASSES.get(origin)) is None:
        raise Unclear
    order = {"date": ("run_date", "timezone"), "interval": ("weeks", "days", "hours", "minutes", "seconds")}
    return made(source, alias, arguments_of(call, order.get(alias, ())), LOCAL)
