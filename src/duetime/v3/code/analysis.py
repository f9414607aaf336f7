"""What a project does with its schedulers, before anything is changed."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import libcst as cst
from libcst.metadata import ParentNodeProvider

from .jobs import SchedulerOptions
from .literals import Unclear, value_of, zone_name
from .project import SCHEDULERS, Definition, Project, SourceFile, dotted
from .triggers import LOCAL

_REFERENCE = re.compile(r"([\w.]+):[\w.]+")

AWAITED = (
    "add_job", "get_job", "get_jobs", "modify_job", "pause_job", "print_jobs", "remove_all_jobs", "remove_job",
    "reschedule_job", "resume_job",
)  # fmt: skip
"""Methods of v3's scheduler that are awaited functions of ``duetime.v3.compat``."""

NOT_AWAITED = ("add_listener", "remove_listener")

READ = (
    *AWAITED, *NOT_AWAITED, "add_executor", "add_jobstore", "configure", "export_jobs", "import_jobs", "pause",
    "remove_executor", "remove_jobstore", "resume", "running", "shutdown", "start", "timezone", "wakeup",
)  # fmt: skip
"""What v3's scheduler has and APScheduler 4's has not, or means something else by."""

POOLS = {"ThreadPoolExecutor": "threadpool", "ProcessPoolExecutor": "processpool", "AsyncIOExecutor": "auto"}


@dataclass(slots=True, eq=False)
class Made:
    """A scheduler that is constructed.

    :ivar function: the function that it is made in; None: at the top of the module
    :ivar is_new: it is Duetime's already, from an earlier run
    """

    source: SourceFile
    name: str
    statement: cst.SimpleStatementLine
    call: cst.Call | None
    function: cst.FunctionDef | None
    options: SchedulerOptions
    is_new: bool = False


@dataclass(slots=True, eq=False)
class App:
    """A FastAPI application that is constructed.

    :ivar lifespan: what it is given as its lifespan
    """

    source: SourceFile
    name: str | None
    call: cst.Call
    lifespan: cst.BaseExpression | None
    is_at_top: bool


@dataclass(slots=True)
class Use:
    """A name of a function of the project, where it is not the definition.

    :ivar inside: the function that it is used in
    :ivar is_called: as a statement of its own: ``name(…)``
    """

    source: SourceFile
    inside: cst.FunctionDef | None
    is_called: bool


@dataclass(slots=True, eq=False)
class Analysis:
    """What was found in all files."""

    project: Project
    schedulers: list[Made] = field(default_factory=list)
    odd: list[tuple[SourceFile, cst.CSTNode]] = field(default_factory=list)
    """Schedulers that are made in a way that is not rewritten."""
    states: set[str] = field(default_factory=set)
    """Attributes of an application's ``state`` that hold a scheduler."""
    apps: list[App] = field(default_factory=list)
    functions: dict[Definition, tuple[SourceFile, cst.FunctionDef]] = field(default_factory=dict)
    uses: dict[Definition, list[Use]] = field(default_factory=dict)
    calls: list[tuple[SourceFile, cst.FunctionDef | None, str]] = field(default_factory=list)
    """Calls on schedulers: where, inside which function, which method."""

    @property
    def is_of_v3(self) -> bool:
        """Whether anything here is constructed by APScheduler 3."""
        return any(not each.is_new for each in self.schedulers) or bool(self.odd)

    def scheduler_of(self, source: SourceFile, node: cst.BaseExpression) -> Made | None:
        """Return the scheduler that an expression of a file means."""
        text = dotted(node)
        if text is None:
            return None
        local = next((each for each in self.schedulers if each.source is source and each.name == text), None)
        if local is not None:
            return local
        found = self.project.resolve(source, text)
        for each in self.schedulers:
            if found == Definition(each.source.module, each.name):
                return each
        if ".state." in text and text.rpartition(".state.")[2] in self.states:
            return self.schedulers[0] if self.schedulers else None
        if text in self.typed.get(source.file, ()):
            return self.schedulers[0] if self.schedulers else None
        return None

    typed: dict[str, set[str]] = field(default_factory=dict)
    """File → parameters that are annotated as schedulers, and attributes of ``self`` that hold one."""


def analyse(project: Project) -> Analysis:
    """Return what the project does with its schedulers."""
    found = Analysis(project)
    for source in project.files:
        if b"Scheduler" in source.content or b"FastAPI" in source.content or b"Duetime" in source.content:
            source.tree.visit(_Makers(source, found))
    if found.schedulers or found.odd:
        for source in project.files:
            source.tree.visit(_Users(source, found))
    return found


class _Walker(cst.CSTVisitor):
    def __init__(self, source: SourceFile, found: Analysis) -> None:
        self.source = source
        self.found = found
        self.stack: list[cst.FunctionDef] = []
        self.classes = 0
        self.parents = source.wrapper.resolve(ParentNodeProvider)

    def visit_FunctionDef(self, node: cst.FunctionDef) -> None:  # noqa: N802 - libcst's name
        self.stack.append(node)

    def leave_FunctionDef(self, original_node: cst.FunctionDef) -> None:  # noqa: N802 - libcst's name
        self.stack.pop()

    def visit_ClassDef(self, node: cst.ClassDef) -> None:  # noqa: N802 - libcst's name
        self.classes += 1

    def leave_ClassDef(self, original_node: cst.ClassDef) -> None:  # noqa: N802 - libcst's name
        self.classes -= 1

    def parent(self, node: cst.CSTNode) -> cst.CSTNode | None:
        return self.parents.get(node)


class _Makers(_Walker):
    """Finds what is constructed."""

    def visit_Call(self, node: cst.Call) -> None:  # noqa: N802 - libcst's name
        origin = self.source.origin(node.func) or ""
        if origin.startswith("apscheduler.schedulers.") and origin.rpartition(".")[2] in SCHEDULERS:
            self._scheduler(node)
        elif origin in ("fastapi.FastAPI", "fastapi.applications.FastAPI"):
            lifespan = next(
                (each.value for each in node.args if each.keyword and each.keyword.value == "lifespan"), None
            )
            name, _ = self._target(node)
            self.found.apps.append(App(self.source, name, node, lifespan, not self.stack and not self.classes))

    def visit_Attribute(self, node: cst.Attribute) -> None:  # noqa: N802 - libcst's name
        """Find ``scheduler = duetime.scheduler``, which an earlier run has left."""
        name, statement = self._target(node)
        if node.attr.value != "scheduler" or name is None or statement is None or self.stack:
            return
        if isinstance(node.value, cst.Name) and _is_duetime(self.source, node.value.value):
            made = Made(self.source, name, statement, None, None, _configured(self.source, name), is_new=True)
            self.found.schedulers.append(made)

    def _target(self, node: cst.BaseExpression) -> tuple[str | None, cst.SimpleStatementLine | None]:
        """Return the one name that a value is assigned to, and the statement."""
        assign = self.parent(node)
        statement = self.parent(assign) if assign is not None else None
        if not isinstance(statement, cst.SimpleStatementLine) or len(statement.body) != 1:
            return None, None
        if isinstance(assign, cst.Assign) and assign.value is node and len(assign.targets) == 1:
            target: cst.BaseExpression = assign.targets[0].target
        elif isinstance(assign, cst.AnnAssign) and assign.value is node:
            target = assign.target
        else:
            return None, None
        return (target.value if isinstance(target, cst.Name) else None), statement

    def _scheduler(self, node: cst.Call) -> None:
        name, statement = self._target(node)
        function = self.stack[-1] if self.stack else None
        is_first = not any(not each.is_new for each in self.found.schedulers)
        is_simple = not self.classes and (
            function is None or (len(self.stack) == 1 and function.asynchronous is not None and not _globals(function))
        )
        if name is None or statement is None or not is_simple or not is_first:
            self.found.odd.append((self.source, node))
            return
        made = Made(self.source, name, statement, node, function, _options(self.source, node))
        self.found.schedulers.append(made)


class _Users(_Walker):
    """Finds what is done with it."""

    def visit_FunctionDef(self, node: cst.FunctionDef) -> None:  # noqa: N802 - libcst's name
        if not self.stack and not self.classes:
            self.found.functions[Definition(self.source.module, node.name.value)] = (self.source, node)
        for each in (*node.params.params, *node.params.kwonly_params):
            if each.annotation is not None and self._is_typed(each.annotation.annotation):
                self._type(each.name.value)
        super().visit_FunctionDef(node)

    def _is_typed(self, annotation: cst.BaseExpression) -> bool:
        if isinstance(annotation, cst.Subscript) and annotation.slice:
            inner = annotation.slice[0].slice
            return isinstance(inner, cst.Index) and self._is_typed(inner.value)
        return (self.source.origin(annotation) or "").startswith("apscheduler.schedulers.")

    def visit_Assign(self, node: cst.Assign) -> None:  # noqa: N802 - libcst's name
        target = dotted(node.targets[0].target) or ""
        if self.found.scheduler_of(self.source, node.value) is None:
            return
        if ".state." in target:
            self.found.states.add(target.rpartition(".state.")[2])
        elif target.startswith("self."):
            self._type(target)

    def visit_AnnAssign(self, node: cst.AnnAssign) -> None:  # noqa: N802 - libcst's name
        """Find attributes that are annotated as schedulers: of ``self``, or in the body of a class."""
        target = dotted(node.target) or ""
        if not self.classes or not self._is_typed(node.annotation.annotation):
            return
        if target.startswith("self.") or (not self.stack and node.value is None):
            self._type(f"self.{target.removeprefix('self.')}")

    def _type(self, text: str) -> None:
        self.found.typed.setdefault(self.source.file, set()).add(text)

    def visit_Call(self, node: cst.Call) -> None:  # noqa: N802 - libcst's name
        if isinstance(node.func, cst.Attribute) and self.found.scheduler_of(self.source, node.func.value) is not None:
            inside = self.stack[-1] if self.stack else None
            self.found.calls.append((self.source, inside, node.func.attr.value))

    def visit_SimpleString(self, node: cst.SimpleString) -> None:  # noqa: N802 - libcst's name
        """Have the module of a reference such as ``"app.jobs:send"`` looked at."""
        if match := _REFERENCE.fullmatch(node.raw_value):
            self.found.project.module(match[1])

    def visit_Name(self, node: cst.Name) -> None:  # noqa: N802 - libcst's name
        self._use(node, node.value)

    def visit_Attribute(self, node: cst.Attribute) -> None:  # noqa: N802 - libcst's name
        if (text := dotted(node)) is not None:
            self._use(node, text)

    def _use(self, node: cst.BaseExpression, text: str) -> None:
        parent = self.parent(node)
        if (
            isinstance(parent, (cst.FunctionDef, cst.Param, cst.ImportAlias, cst.AsName, cst.Arg))
            and getattr(parent, "name", None) is node
        ):
            return
        if isinstance(parent, cst.AssignTarget) or (isinstance(parent, cst.Arg) and parent.keyword is node):
            return
        if isinstance(parent, cst.Attribute) and parent.attr is node:
            return
        definition = self.found.project.resolve(self.source, text)
        if definition is None:
            return
        statement = self.parent(parent) if parent is not None else None
        is_called = isinstance(parent, cst.Call) and parent.func is node and isinstance(statement, cst.Expr)
        use = Use(self.source, self.stack[-1] if self.stack else None, is_called)
        self.found.uses.setdefault(definition, []).append(use)


def _globals(function: cst.FunctionDef) -> bool:
    class Finder(cst.CSTVisitor):
        found = False

        def visit_Global(self, node: cst.Global) -> None:  # noqa: N802 - libcst's name
            self.found = True

    finder = Finder()
    function.visit(finder)
    return finder.found


def _is_duetime(source: SourceFile, name: str) -> bool:
    """Return whether a name of a file's top is a ``Duetime()``."""
    for statement in source.tree.body:
        if not isinstance(statement, cst.SimpleStatementLine):
            continue
        for each in statement.body:
            if isinstance(each, cst.Assign) and isinstance(each.value, cst.Call):
                target = each.targets[0].target
                made = source.origin(each.value.func)
                if (
                    isinstance(target, cst.Name)
                    and target.value == name
                    and made in ("duetime.Duetime", "duetime.app.Duetime")
                ):
                    return True
    return False


def _configured(source: SourceFile, name: str) -> SchedulerOptions:
    """Return what ``configure(scheduler, …)`` says, which an earlier run has left."""
    for statement in source.tree.body:
        for each in statement.body if isinstance(statement, cst.SimpleStatementLine) else ():
            if isinstance(each, cst.Expr) and isinstance(each.value, cst.Call):
                call = each.value
                is_configure = source.origin(call.func) == "duetime.v3.compat.configure" and call.args
                if is_configure and dotted(call.args[0].value) == name:
                    return _options(source, call.with_changes(args=call.args[1:]))
    return SchedulerOptions()


def _options(source: SourceFile, call: cst.Call) -> SchedulerOptions:
    given = {each.keyword.value: seen(source, each.value) for each in call.args if each.keyword is not None}
    is_clear = all(each.keyword is not None for each in call.args)
    zone: str | None = LOCAL
    if "timezone" in given:
        try:
            zone = repr(zone_name(source, given["timezone"]))
        except Unclear:
            zone = None
    defaults: Any = {}
    if "job_defaults" in given:
        try:
            defaults = value_of(given["job_defaults"])
        except Unclear:
            defaults = None
    return SchedulerOptions(
        zone=zone if is_clear else None,
        job_defaults=defaults if is_clear and isinstance(defaults, dict) else None,
        executors=_executors(source, given.get("executors")),
        persists="jobstores" in given or not is_clear,
    )


def seen(source: SourceFile, node: cst.BaseExpression) -> cst.BaseExpression:
    """Return what a name at the top of the module was given, if it was given something once."""
    if not isinstance(node, cst.Name):
        return node
    values = [
        each.value
        for statement in source.tree.body
        for each in (statement.body if isinstance(statement, cst.SimpleStatementLine) else ())
        if isinstance(each, cst.Assign) and any(dotted(target.target) == node.value for target in each.targets)
    ]
    return values[0] if len(values) == 1 else node


def _executors(source: SourceFile, node: cst.BaseExpression | None) -> dict[str, str]:
    """Return alias → executor of what can be seen of ``executors={…}``."""
    found: dict[str, str] = {}
    for element in node.elements if isinstance(node, cst.Dict) else ():
        if not isinstance(element, cst.DictElement):
            continue
        try:
            alias = value_of(element.key)
        except Unclear:
            continue
        kind: str | None = None
        if isinstance(element.value, cst.Call):
            kind = POOLS.get((source.origin(element.value.func) or "").rpartition(".")[2])
        else:
            try:
                said = value_of(element.value)
            except Unclear:
                continue
            name = said.get("type") if isinstance(said, dict) else said
            kind = {"threadpool": "threadpool", "processpool": "processpool", "asyncio": "auto"}.get(str(name))
            kind = kind or (str(name) if name in ("auto", "async") else None)
        if isinstance(alias, str) and kind is not None and alias != "default":
            found[alias] = kind
    return found


def promoted(found: Analysis) -> set[Definition]:
    """Return the plain functions that may become ``async def``: they call a scheduler, and whoever uses them awaits
    them then, because it is the start of the application, an ``async def``, or a function that becomes one."""
    wanted = {
        definition
        for definition, (source, node) in found.functions.items()
        if node.asynchronous is None
        and any(each[0] is source and each[1] is node and each[2] in AWAITED for each in found.calls)
    }
    candidates = set(wanted)
    # What calls such a function has to await it, so it is one, too.
    grown = True
    while grown:
        grown = False
        for definition in list(candidates):
            for use in found.uses.get(definition, ()):
                inside = use.inside
                if inside is None or inside.asynchronous is not None or not use.is_called:
                    continue
                above = Definition(use.source.module, inside.name.value)
                if above not in candidates and found.functions.get(above, (None, None))[1] is inside:
                    candidates.add(above)
                    grown = True
    # And those that somebody uses in another way stay as they are, with all that they call.
    shrunk = True
    while shrunk:
        shrunk = False
        for definition in list(candidates):
            if not _may_be_async(found, definition, candidates):
                candidates.discard(definition)
                shrunk = True
    return candidates


def _may_be_async(found: Analysis, definition: Definition, candidates: set[Definition]) -> bool:
    _source, node = found.functions[definition]
    at_start = [is_event(each) for each in node.decorators]
    if at_start and not all(at_start):
        return False
    uses = found.uses.get(definition, [])
    if not at_start and not uses:
        return False
    for use in uses:
        inside = use.inside
        if not use.is_called or inside is None:
            return False
        is_async = inside.asynchronous is not None or Definition(use.source.module, inside.name.value) in candidates
        if not is_async:
            return False
    return True


def is_event(decorator: cst.Decorator, kinds: Sequence[str] = ("startup", "shutdown")) -> bool:
    """Return whether a decorator is ``@app.on_event("startup")`` or the like."""
    call = decorator.decorator
    if not (isinstance(call, cst.Call) and isinstance(call.func, cst.Attribute) and call.func.attr.value == "on_event"):
        return False
    try:
        return bool(call.args) and value_of(call.args[0].value) in kinds
    except Unclear:
        return False
