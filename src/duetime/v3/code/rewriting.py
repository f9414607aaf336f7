"""Rewrites one file: the scheduler, its calls, what starts and stops it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import libcst as cst
from libcst.metadata import ParentNodeProvider, ScopeProvider

from . import reasons
from .analysis import AWAITED, NOT_AWAITED, READ, Analysis, App, Made, is_event, seen
from .findings import Found
from .jobs import new_call, trigger_object
from .lifespans import SHUTDOWN, START, Handler, composed, new_lifespan, without_marks
from .literals import WIDTH, Unclear, argument, call_of, code_of, expression, statement, value_of
from .project import SCHEDULERS, Definition, SourceFile, bound_names, dotted
from .triggers import made

_OF_A_JOB = ("modify", "pause", "remove", "reschedule", "resume")
_PARENTHESISED = (cst.Attribute, cst.Subscript, cst.Call, cst.BinaryOperation)


@dataclass(slots=True)
class Plan:
    """What holds for the whole project.

    :ivar main: the scheduler that becomes Duetime's
    :ivar app: the application that runs it
    :ivar lifespan: the function that is the application's lifespan already
    :ivar promoted: functions that become ``async def``
    :ivar at_start: functions that run when the application starts
    :ivar tasks: functions that are scheduled, and so have to be tasks
    """

    analysis: Analysis
    main: Made | None
    app: App | None
    lifespan: Definition | None
    promoted: set[Definition]
    at_start: set[Definition]
    duetime: str = "duetime"
    tasks: set[Definition] = field(default_factory=set)
    ids: set[str] = field(default_factory=set)
    found: list[Found] = field(default_factory=list)

    def new_id(self, name: str) -> str:
        """Return an id for a job that has none and is added at each start, where it has to be the same."""
        candidate, count = name, 1
        while candidate in self.ids:
            count += 1
            candidate = f"{name}-{count}"
        self.ids.add(candidate)
        return candidate


class Rewriter(cst.CSTTransformer):
    """Rewrites a file.

    :ivar needs: (module, name) to be imported
    """

    def __init__(self, source: SourceFile, plan: Plan) -> None:
        super().__init__()
        self.source = source
        self.plan = plan
        self.parents = source.wrapper.resolve(ParentNodeProvider)
        self.needs: set[tuple[str, str]] = set()
        self.stack: list[cst.FunctionDef | cst.Lambda | cst.ClassDef] = []
        self.hoisted: list[cst.BaseStatement] = []
        self.moved: list[str] = []
        self.handlers: list[Handler] = []
        self.is_app = plan.app is not None and plan.app.source is source
        self.scopes = source.wrapper.resolve(ScopeProvider)
        self.bound = bound_names(source.tree)

    # -- where we are -------------------------------------------------------------------------------------------------

    def visit_FunctionDef(self, node: cst.FunctionDef) -> None:  # noqa: N802 - libcst's name
        self.stack.append(node)

    def visit_Lambda(self, node: cst.Lambda) -> None:  # noqa: N802 - libcst's name
        self.stack.append(node)

    def visit_ClassDef(self, node: cst.ClassDef) -> None:  # noqa: N802 - libcst's name
        self.stack.append(node)

    def leave_Lambda(self, original_node: cst.Lambda, updated_node: cst.Lambda) -> cst.Lambda:  # noqa: N802
        self.stack.pop()
        return updated_node

    def leave_ClassDef(self, original_node: cst.ClassDef, updated_node: cst.ClassDef) -> cst.ClassDef:  # noqa: N802
        self.stack.pop()
        return updated_node

    def _definition(self, node: cst.CSTNode | None) -> Definition | None:
        if isinstance(node, cst.FunctionDef):
            definition = Definition(self.source.module, node.name.value)
            if self.plan.analysis.functions.get(definition, (None, None))[1] is node:
                return definition
        return None

    def _say(self, node: cst.CSTNode, code: str, text: str, *, decide: bool = True) -> None:
        self.plan.found.append(Found(self.source.file, self.source.line(node), code, text, decide))

    def _where(self) -> str:
        """Return ``module``, ``async`` or ``sync``: what surrounds the node."""
        if not self.stack:
            return "module"
        inner = self.stack[-1]
        if isinstance(inner, cst.FunctionDef):
            is_promoted = self._definition(inner) in self.plan.promoted
            return "async" if inner.asynchronous is not None or is_promoted else "sync"
        return "sync"

    def _is_at_start(self) -> bool:
        return not self.stack or self._definition(self.stack[-1]) in self.plan.at_start

    # -- attributes ---------------------------------------------------------------------------------------------------

    def visit_Attribute(self, node: cst.Attribute) -> None:  # noqa: N802 - libcst's name
        """Say where something of the scheduler is read or passed on: ``add_task(scheduler.remove_job, id)``."""
        parent = self.parents.get(node)
        if node.attr.value not in READ or (isinstance(parent, cst.Call) and parent.func is node):
            return
        scheduler = self.plan.analysis.scheduler_of(self.source, node.value)
        if scheduler is not None and not scheduler.is_new and not self._goes(node):
            self._say(node, "no_equivalent", reasons.passed_on(node.attr.value))

    def _goes(self, node: cst.Attribute) -> bool:
        """Return whether it goes with ``atexit.register(scheduler.shutdown)`` or ``if not scheduler.running: …``."""
        above = self.parents.get(node)
        while isinstance(above, (cst.UnaryOperation, cst.Lambda, cst.Arg)):
            above = self.parents.get(above)
        if isinstance(above, cst.Call):
            return self.source.origin(above.func) == "atexit.register"
        return isinstance(above, cst.If) and node.attr.value == "running" and self._only_starts(above)

    def _only_starts(self, node: cst.If) -> bool:
        lines = [each.body for each in node.body.body if isinstance(each, cst.SimpleStatementLine)]
        calls = [small.value for line in lines for small in line if isinstance(small, cst.Expr)]
        if node.orelse is not None or len(calls) != len(node.body.body):
            return False
        return all(
            isinstance(each, cst.Call)
            and isinstance(each.func, cst.Attribute)
            and each.func.attr.value in ("start", "shutdown")
            for each in calls
        )

    # -- calls --------------------------------------------------------------------------------------------------------

    def leave_Call(self, original_node: cst.Call, updated_node: cst.Call) -> cst.BaseExpression:  # noqa: N802
        if self.plan.app is not None and original_node is self.plan.app.call and self.plan.main is not None:
            return self._application(updated_node)
        func = original_node.func
        parent = self.parents.get(original_node)
        if isinstance(parent, cst.Decorator):
            return updated_node
        definition = self.plan.analysis.project.resolve(self.source, dotted(func) or "")
        if definition in self.plan.promoted and isinstance(parent, cst.Expr) and self._where() == "async":
            return cst.Await(updated_node)
        if isinstance(func, cst.Attribute):
            scheduler = self.plan.analysis.scheduler_of(self.source, func.value)
            if scheduler is not None:
                return self._scheduler_call(original_node, updated_node, func.attr.value, scheduler)
            if func.attr.value in _OF_A_JOB and not isinstance(parent, cst.Await) and self._is_job(func.value):
                if self._where() == "async" and not self._is_lazy(original_node):
                    return self._awaited(original_node, updated_node)
                self._say_not_async(original_node, f"job.{func.attr.value}")
        return updated_node

    def _scheduler_call(
        self, original: cst.Call, updated: cst.Call, method: str, scheduler: Made
    ) -> cst.BaseExpression:
        assert isinstance(updated.func, cst.Attribute)  # noqa: S101 - as the original is
        said = code_of(updated.func.value)
        parent = self.parents.get(original)
        if isinstance(parent, cst.Await):
            return updated  # a call of APScheduler 4 already
        if method in NOT_AWAITED:
            return call_of(self._compat(method), [cst.Arg(expression(said)), *updated.args], updated)
        if method not in AWAITED:
            if method not in ("start", "shutdown", "scheduled_job") and not scheduler.is_new:
                self._say(original, "no_equivalent", reasons.no_equivalent(method))
            return updated
        where = self._where()
        if where == "sync":
            self._say_not_async(original, f"scheduler.{method}")
            return updated
        if where == "module":
            if method == "add_job" and isinstance(parent, cst.Expr) and self._may_move(self.parents.get(parent)):
                return updated  # with its statement
            return self._at_import(original, updated, method)
        if method != "add_job":
            return self._awaited(
                original, call_of(self._compat(method), [cst.Arg(expression(said)), *updated.args], updated)
            )
        self._know_task(original)
        at_start = (
            self.plan.new_id(self._job_name(original)) if self._is_at_start() and not self._has_id(original) else None
        )
        if at_start is None and self._is_at_start():
            at_start = ""
        new = new_call(
            self.source,
            said,
            updated,
            scheduler.options,
            stock=isinstance(parent, cst.Expr),
            at_start=at_start,
            taken=self.bound,
        )
        self.needs |= new.imports
        return self._awaited(original, new.call)

    def _say_not_async(self, call: cst.Call, method: str) -> None:
        inner = next((each.name.value for each in reversed(self.stack) if isinstance(each, cst.FunctionDef)), None)
        self._say(call, "not_async", reasons.not_async(method, inner if self._where() == "sync" else None))

    def _compat(self, name: str) -> str:
        """Return the name of a function of ``duetime.v3.compat`` in this file, and have it imported."""
        local = f"v3_{name}" if name in self.bound else name
        self.needs.add(("duetime.v3.compat", name if local == name else f"{name} as {local}"))
        return local

    def _at_import(self, original: cst.Call, updated: cst.Call, method: str) -> cst.BaseExpression:
        """A call while the module is imported, when nothing can be awaited."""
        if method != "add_job" or not isinstance(self.parents.get(original), cst.Expr):
            self._say(original, "at_import", reasons.at_import(method, self.plan.duetime))
            return updated
        self._know_task(original)
        assert isinstance(updated.func, cst.Attribute)  # noqa: S101 - as the original is
        said = code_of(updated.func.value)
        func = next((each for each in updated.args if each.keyword is None or each.keyword.value == "func"), None)
        if func is None or any(each.star for each in updated.args):
            self._say(original, "at_import", reasons.STARS)
            return updated
        others = [
            each
            for each in updated.args
            if each is not func and not (each.keyword and each.keyword.value == "replace_existing")
        ]
        has_id = self._has_id(original)
        arguments = [cst.Arg(expression(said)), *others]
        if not has_id:
            arguments.append(argument("id", f'"{self.plan.new_id(self._job_name(original))}"'))
        made_call = call_of(self._compat("scheduled_job"), arguments)
        return cst.Call(made_call, [cst.Arg(func.value)])

    def _awaited(self, original: cst.Call, call: cst.Call) -> cst.Await:
        parent = self.parents.get(original)
        if isinstance(parent, _PARENTHESISED):
            return cst.Await(call, lpar=[cst.LeftParen()], rpar=[cst.RightParen()])
        return cst.Await(call)

    def _has_id(self, call: cst.Call) -> bool:
        named = next((each for each in call.args if each.keyword and each.keyword.value == "id"), None)
        found = named or (call.args[4] if len(call.args) > 4 and call.args[4].keyword is None else None)
        return found is not None and code_of(found.value) != "None"

    def _job_name(self, call: cst.Call) -> str:
        func = self._func(call)
        return (dotted(func) or "job").rpartition(".")[2] if func is not None else "job"

    def _func(self, call: cst.Call) -> cst.BaseExpression | None:
        named = next((each.value for each in call.args if each.keyword and each.keyword.value == "func"), None)
        return named or (call.args[0].value if call.args and call.args[0].keyword is None else None)

    def _know_task(self, call: cst.Call) -> None:
        """See to it that the function of a job is found again after a restart, or say that it is not."""
        func = self._func(call)
        if isinstance(func, cst.Call) and (self.source.origin(func.func) or "").endswith("partial") and func.args:
            func = func.args[0].value
        project, functions = self.plan.analysis.project, self.plan.analysis.functions
        if isinstance(func, (cst.SimpleString, cst.ConcatenatedString)):
            module, _, name = str(value_of(func)).partition(":")
            found = project.module(module)
            definition = None if found is None else Definition(found.module, name)
            if definition not in functions or found is None:
                self._say(call, "text_reference", reasons.text_reference(code_of(func)))
                return
            if not project.imports(found):
                self._say(call, "not_imported", reasons.not_imported(module))
        else:
            text = None if func is None else dotted(func)
            definition = None if text is None else project.resolve(self.source, text)
        if definition is not None and definition in functions:
            self.plan.tasks.add(definition)
            return
        what = "a lambda" if isinstance(func, cst.Lambda) else f"`{code_of(func)}`" if func is not None else "that"
        self._say(call, "not_a_task", reasons.not_a_task(what))

    # -- jobs that calls return ---------------------------------------------------------------------------------------

    def _is_job(self, node: cst.BaseExpression) -> bool:
        """Return whether an expression is a job that a scheduler has returned."""
        if self._is_from(node, "add_job", "get_job"):
            return True
        if isinstance(node, cst.Subscript):
            return self._are_jobs(node.value)
        return any(
            self._are_jobs(value) if is_member else self._is_from(value, "add_job", "get_job")
            for value, is_member in self._given(node)
        )

    def _are_jobs(self, node: cst.BaseExpression) -> bool:
        return self._is_from(node, "get_jobs") or any(
            self._is_from(value, "get_jobs") for value, is_member in self._given(node) if not is_member
        )

    def _is_from(self, node: cst.BaseExpression, *methods: str) -> bool:
        """Return whether an expression calls one of these methods of a scheduler."""
        if not (isinstance(node, cst.Call) and isinstance(node.func, cst.Attribute)):
            return False
        return (
            node.func.attr.value in methods
            and self.plan.analysis.scheduler_of(self.source, node.func.value) is not None
        )

    def _given(self, node: cst.BaseExpression) -> Iterator[tuple[cst.BaseExpression, bool]]:
        """Yield what a name is given where it is seen, and whether it is a member of that, as in a loop."""
        scope = self.scopes.get(node) if isinstance(node, cst.Name) else None
        if scope is None or not isinstance(node, cst.Name):
            return
        for assignment in scope[node.value]:
            place = self.parents.get(getattr(assignment, "node", None))  # type: ignore[arg-type]
            if isinstance(place, cst.AssignTarget):
                place = self.parents.get(place)
            if isinstance(place, (cst.Assign, cst.AnnAssign, cst.NamedExpr)) and place.value is not None:
                yield place.value, False
            elif isinstance(place, (cst.For, cst.CompFor)):
                yield place.iter, True

    def _is_lazy(self, node: cst.CSTNode) -> bool:
        """Return whether it is inside of a generator expression, where an ``await`` would change what that is."""
        above = self.parents.get(node)
        while above is not None and not isinstance(above, cst.BaseStatement):
            if isinstance(above, cst.GeneratorExp):
                return True
            above = self.parents.get(above)
        return False

    # -- decorators ---------------------------------------------------------------------------------------------------

    def leave_Decorator(  # noqa: N802 - libcst's name
        self, original_node: cst.Decorator, updated_node: cst.Decorator
    ) -> cst.Decorator | cst.RemovalSentinel:
        call = original_node.decorator
        if self._is_handler(original_node):
            return cst.RemoveFromParent()
        if not (isinstance(call, cst.Call) and isinstance(call.func, cst.Attribute)):
            return updated_node
        if call.func.attr.value != "scheduled_job":
            return updated_node
        scheduler = self.plan.analysis.scheduler_of(self.source, call.func.value)
        updated = updated_node.decorator
        if scheduler is None or not isinstance(updated, cst.Call) or not isinstance(updated.func, cst.Attribute):
            return updated_node
        definition = self._definition(self.stack[-1] if self.stack else None)
        if definition is not None:
            self.plan.tasks.add(definition)
        else:
            self._say(original_node, "not_a_task", reasons.NESTED)
        arguments = self._with_trigger(updated, scheduler)
        return updated_node.with_changes(
            decorator=call_of(
                self._compat("scheduled_job"), [cst.Arg(expression(code_of(updated.func.value))), *arguments], updated
            )
        )

    def _with_trigger(self, call: cst.Call, scheduler: Made) -> Sequence[cst.Arg]:
        """Return the arguments with a trigger object in the place of ``"cron"`` and its fields, if that can be seen."""
        named = {each.keyword.value: each for each in call.args if each.keyword is not None}
        first = call.args[0] if call.args and call.args[0].keyword is None and not call.args[0].star else None
        trigger = first or named.get("trigger")
        others = (
            "args",
            "kwargs",
            "id",
            "name",
            "misfire_grace_time",
            "coalesce",
            "max_instances",
            "next_run_time",
            "jobstore",
            "executor",
        )
        fields = {name: each.value for name, each in named.items() if name not in (*others, "trigger")}
        if trigger is None or "jitter" in fields or len([each for each in call.args if each.keyword is None]) > 1:
            return call.args
        try:
            if isinstance(trigger.value, cst.Call):
                new = trigger_object(self.source, trigger.value)
            elif value_of(trigger.value) == "cron":
                new = made(self.source, "cron", fields, scheduler.options.zone)
            else:
                return call.args
        except Unclear:
            return call.args
        if new.jitter is not None or "start_time" in new.text:
            return call.args
        self.needs |= new.imports
        return [cst.Arg(expression(new.text)), *(named[name] for name in others if name in named)]

    def _is_handler(self, decorator: cst.Decorator) -> bool:
        return self.is_app and self.plan.main is not None and len(self.stack) == 1 and is_event(decorator)

    # -- names --------------------------------------------------------------------------------------------------------

    def leave_Name(self, original_node: cst.Name, updated_node: cst.Name) -> cst.BaseExpression:  # noqa: N802
        module, name = self.source.imports.get(original_node.value, ("", None))
        if not module.startswith("apscheduler.schedulers") or name not in SCHEDULERS or self.plan.main is None:
            return updated_node
        parent = self.parents.get(original_node)
        if isinstance(parent, (cst.ImportAlias, cst.AsName)) or (
            isinstance(parent, cst.Call) and parent.func is original_node
        ):
            return updated_node
        self.needs.add(("duetime", "DuetimeScheduler"))
        return updated_node.with_changes(value="DuetimeScheduler")

    # -- statements ---------------------------------------------------------------------------------------------------

    def leave_SimpleStatementLine(  # noqa: N802 - libcst's name
        self, original_node: cst.SimpleStatementLine, updated_node: cst.SimpleStatementLine
    ) -> cst.BaseStatement | cst.FlattenSentinel[cst.BaseStatement] | cst.RemovalSentinel:
        main = self.plan.main
        if main is not None and not main.is_new and original_node is main.statement:
            return self._construction(original_node, updated_node, main)
        if len(original_node.body) != 1:
            return updated_node
        if self._is_spent(original_node.body[0]):
            return statement(SHUTDOWN).with_changes(leading_lines=updated_node.leading_lines)
        if not isinstance(original_node.body[0], cst.Expr):
            return updated_node
        marker = self._lifecycle(original_node.body[0].value)
        if marker is not None:
            return statement(marker).with_changes(leading_lines=updated_node.leading_lines)
        call = original_node.body[0].value
        if isinstance(call, cst.Call) and self._adds(call) and self._may_move(original_node):
            return self._moved(original_node, updated_node, call)
        return updated_node

    def _is_spent(self, node: cst.BaseSmallStatement) -> bool:
        """Return whether it names job stores or executors for the scheduler, and nothing else uses the name."""
        main = self.plan.main
        if not isinstance(node, cst.Assign) or main is None or main.call is None or main.source is not self.source:
            return False
        name = dotted(node.targets[0].target)
        given = [each for each in main.call.args if each.keyword and each.keyword.value in ("jobstores", "executors")]
        if name is None or self.stack or not any(dotted(each.value) == name for each in given):
            return False
        return len(self.plan.analysis.uses.get(Definition(self.source.module, name), ())) == 1

    def _may_move(self, node: cst.CSTNode | None) -> bool:
        """Return whether a statement at the top of the application's module goes into the lifespan that it gets."""
        app = self.plan.app
        if app is None or not self.is_app or not app.is_at_top or app.lifespan is not None or self.stack:
            return False
        if not isinstance(node, cst.SimpleStatementLine) or not isinstance(self.parents.get(node), cst.Module):
            return False
        return '"""' not in code_of(node) and "'''" not in code_of(node)  # which would be indented

    def _adds(self, call: cst.Call) -> bool:
        func = call.func
        return (
            isinstance(func, cst.Attribute)
            and func.attr.value == "add_job"
            and self.plan.analysis.scheduler_of(self.source, func.value) is not None
        )

    def _moved(
        self, original: cst.SimpleStatementLine, updated: cst.SimpleStatementLine, call: cst.Call
    ) -> cst.RemovalSentinel:
        """Take a job that is added at import into the lifespan."""
        assert isinstance(call.func, cst.Attribute)  # noqa: S101 - as _adds() has seen
        scheduler = self.plan.analysis.scheduler_of(self.source, call.func.value)
        assert scheduler is not None  # noqa: S101 - as _adds() has seen
        self._know_task(call)
        at_start = "" if self._has_id(call) else self.plan.new_id(self._job_name(call))
        new = new_call(
            self.source,
            code_of(call.func.value),
            call,
            scheduler.options,
            stock=True,
            at_start=at_start,
            taken=self.bound,
        )
        self.needs |= new.imports
        self.moved.append(f"await {code_of(new.call)}")
        return cst.RemoveFromParent()

    def _lifecycle(self, value: cst.BaseExpression) -> str | None:
        """Return the marker of a statement that starts or stops the scheduler."""
        if not isinstance(value, cst.Call):
            return None
        if self.source.origin(value.func) == "atexit.register" and value.args:
            return SHUTDOWN if self._stops(value.args[0].value) else None
        func = value.func
        if not isinstance(func, cst.Attribute) or func.attr.value not in ("start", "shutdown"):
            return None
        if self.plan.analysis.scheduler_of(self.source, func.value) is None:
            return None
        if func.attr.value == "start" and value.args:
            self._say(value, "started_paused", reasons.started_paused(code_of(value.args[0])))
        return START if func.attr.value == "start" else SHUTDOWN

    def _stops(self, node: cst.BaseExpression) -> bool:
        if isinstance(node, cst.Lambda) and isinstance(node.body, cst.Call):
            node = node.body.func
        if not isinstance(node, cst.Attribute) or node.attr.value != "shutdown":
            return False
        return self.plan.analysis.scheduler_of(self.source, node.value) is not None

    def leave_If(  # noqa: N802 - libcst's name
        self, original_node: cst.If, updated_node: cst.If
    ) -> cst.BaseStatement | cst.FlattenSentinel[cst.BaseStatement]:
        """Take the start out of ``if not scheduler.running: scheduler.start()``."""
        if updated_node.orelse is not None or not isinstance(updated_node.body, cst.IndentedBlock):
            return updated_node
        test = original_node.test
        inner = test.expression if isinstance(test, cst.UnaryOperation) else test
        if not (isinstance(inner, cst.Attribute) and inner.attr.value == "running"):
            return updated_node
        if self.plan.analysis.scheduler_of(self.source, inner.value) is None:
            return updated_node
        if all(code_of(each).strip() in (START, SHUTDOWN) for each in updated_node.body.body):
            return cst.FlattenSentinel(updated_node.body.body)
        return updated_node

    def _construction(
        self, original: cst.SimpleStatementLine, updated: cst.SimpleStatementLine, main: Made
    ) -> cst.FlattenSentinel[cst.BaseStatement] | cst.RemovalSentinel:
        assert main.call is not None  # noqa: S101 - it is not Duetime's yet
        self.needs.add(("duetime", "Duetime"))
        lines = [f"{self.plan.duetime} = Duetime()", f"{main.name} = {self.plan.duetime}.scheduler"]
        given = {each.keyword.value: each.value for each in main.call.args if each.keyword is not None}
        options = [f"{name}={code_of(given[name])}" for name in ("timezone", "job_defaults") if name in given]
        if main.options.executors:
            pairs = ", ".join(f'"{alias}": "{name}"' for alias, name in main.options.executors.items())
            options.append(f"executors={{{pairs}}}")
        if options:
            configure = self._compat("configure")
            line = f"{configure}({', '.join([main.name, *options])})"
            if len(line) > WIDTH:
                line = f"{configure}(\n    " + ",\n    ".join([main.name, *options]) + ",\n)"
            lines.append(line)
        self._say_of_construction(main.call, given)
        made_lines = [statement(line) for line in lines]
        made_lines[1] = made_lines[1].with_changes(trailing_whitespace=updated.trailing_whitespace)
        made_lines[0] = made_lines[0].with_changes(leading_lines=updated.leading_lines if main.function is None else [])
        if main.function is None:
            return cst.FlattenSentinel(made_lines)
        self.hoisted = made_lines
        return cst.RemoveFromParent()

    def _say_of_construction(self, call: cst.Call, given: dict[str, cst.BaseExpression]) -> None:
        if any(each.keyword is None for each in call.args):
            self._say(call, "configuration", reasons.NOT_SEEN)
        if "jobstores" in given:
            self._say(call, "jobstores", reasons.job_stores(code_of(seen(self.source, given["jobstores"]))))
        if "executors" in given:
            self._say(call, "executors", reasons.executors(code_of(seen(self.source, given["executors"]))))
        known = {"timezone", "job_defaults", "jobstores", "executors", "event_loop", "daemon"}
        for name in sorted(given.keys() - known):
            self._say(call, "configuration", reasons.option(name))
        if "timezone" not in given:
            self._say(call, "local_zone", reasons.LOCAL_ZONE, decide=False)

    # -- functions ----------------------------------------------------------------------------------------------------

    def leave_FunctionDef(  # noqa: N802 - libcst's name
        self, original_node: cst.FunctionDef, updated_node: cst.FunctionDef
    ) -> cst.BaseStatement | cst.FlattenSentinel[cst.BaseStatement] | cst.RemovalSentinel:
        events = [each for each in original_node.decorators if self._is_handler(each)]
        self.stack.pop()
        if self.stack:
            return updated_node.with_changes(body=composed(updated_node.body, None, ()))
        definition = self._definition(original_node)
        node = updated_node
        if definition is not None and definition == self.plan.lifespan and self.plan.main is not None:
            node = node.with_changes(body=composed(node.body, self._entering(node), self._touching()))
        else:
            node = node.with_changes(body=composed(node.body, None, ()))
        if definition in self.plan.promoted:
            node = node.with_changes(asynchronous=cst.Asynchronous())
        if events and definition is not None and not self._keep_handler(original_node, node, events, definition):
            return cst.RemoveFromParent()
        if self.hoisted:
            hoisted, self.hoisted = self.hoisted, []
            first = hoisted[0].with_changes(leading_lines=node.leading_lines)
            blank = [cst.EmptyLine(indent=False), cst.EmptyLine(indent=False)]
            return cst.FlattenSentinel([first, *hoisted[1:], node.with_changes(leading_lines=blank)])
        return node

    def _keep_handler(
        self, original: cst.FunctionDef, node: cst.FunctionDef, events: list[cst.Decorator], definition: Definition
    ) -> bool:
        """Note a handler of an event for the lifespan, and return whether anything is left of it."""
        is_used = bool(self.plan.analysis.uses.get(definition))
        is_empty = all(code_of(each).strip() in ("pass", "") for each in node.body.body)
        if is_empty and not is_used:
            return False
        touches = any(word in code_of(original) for word in self._touching())
        for event in events:
            call = event.decorator
            assert isinstance(call, cst.Call)  # noqa: S101 - as is_event() has seen
            is_async = original.asynchronous is not None or definition in self.plan.promoted
            text = f"{'await ' if is_async else ''}{original.name.value}()"
            self.handlers.append(Handler(str(value_of(call.args[0].value)), text, touches))
        return True

    def _touching(self) -> list[str]:
        """Return words of statements that have to do with the scheduler."""
        names = [name for name in self.source.imports if self.plan.analysis.scheduler_of(self.source, cst.Name(name))]
        names += [each.name for each in self.plan.analysis.schedulers if each.source is self.source]
        for definition in self.plan.at_start | self.plan.promoted:
            found = self.plan.analysis.functions.get(definition)
            if found is None or definition == self.plan.lifespan:
                continue
            if any(each[0] is found[0] and each[1] is found[1] for each in self.plan.analysis.calls):
                names.append(definition.name)
        return [START, SHUTDOWN, *names]

    def _entering(self, node: cst.FunctionDef) -> str:
        """Return what enters Duetime's lifespan in that of the application."""
        first = node.params.params[0].name.value if node.params.params else "app"
        return f"{self._duetime()}.lifespan({first})"

    def _duetime(self) -> str:
        """Return the name of the ``Duetime()`` in this file, and have it imported if it is in another one."""
        main = self.plan.main
        assert main is not None  # noqa: S101 - else nobody asks
        if main.source is not self.source:
            self.needs.add((self._module_of_main(main), self.plan.duetime))
        return self.plan.duetime

    def _module_of_main(self, main: Made) -> str:
        """Return the module of the scheduler as this file, or the one nearest to it, imports it."""
        for name, (_module, imported) in self.source.imports.items():
            found = self.plan.analysis.project.resolve(self.source, name)
            if imported is not None and found is not None and found.module == main.source.module:
                return self.source.written.get(name, main.source.module)
        return main.source.module

    # -- the application ----------------------------------------------------------------------------------------------

    def _application(self, call: cst.Call) -> cst.Call:
        app = self.plan.app
        assert app is not None  # noqa: S101 - as the caller has seen
        if app.lifespan is not None:
            if self.plan.lifespan is None:
                self._say(app.call, "lifespan", reasons.lifespan(self.plan.duetime))
            return call
        if any(each.keyword is not None and each.keyword.value in ("on_startup", "on_shutdown") for each in call.args):
            self._say(app.call, "on_event", reasons.ON_EVENT)
        self.wants_lifespan = True
        args = [*call.args, argument("lifespan", "__duetime_lifespan__")]
        return call_of(code_of(call.func), args, call)

    wants_lifespan = False

    def leave_Module(self, original_node: cst.Module, updated_node: cst.Module) -> cst.Module:  # noqa: N802
        body = without_marks(list(updated_node.body))
        made_module = updated_node.with_changes(body=body)
        if self.wants_lifespan:
            made_module = new_lifespan(made_module, self._duetime(), self.handlers, self.moved, self.needs)
        return made_module
