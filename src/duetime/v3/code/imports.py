"""The imports of a rewritten file: what is new comes in, what nobody uses any more goes."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import Any

import libcst as cst
from libcst.codemod import CodemodContext
from libcst.codemod.visitors import AddImportsVisitor, ImportItem

from .. import compat
from .lifespans import without
from .literals import code_of, expression, statement
from .project import SourceFile, dotted

_V4_ARGUMENTS = ("start_time", "end_time", "run_time")
"""Arguments that triggers of APScheduler 4 have and those of v3 do not."""


_GONE = cst.Expr(cst.Name("__duetime_gone__"))


def _is_gone(node: cst.CSTNode) -> bool:
    return isinstance(node, cst.SimpleStatementLine) and all(
        isinstance(each, cst.Expr) and code_of(each) == "__duetime_gone__" for each in node.body
    )


class _Names(cst.CSTVisitor):
    """Counts names outside of imports."""

    def __init__(self) -> None:
        self.seen: set[str] = set()
        self.of_v4: set[str] = set()

    def visit_Import(self, node: cst.Import) -> bool:  # noqa: N802 - libcst's name
        return False

    def visit_ImportFrom(self, node: cst.ImportFrom) -> bool:  # noqa: N802 - libcst's name
        return False

    def visit_Call(self, node: cst.Call) -> None:  # noqa: N802 - libcst's name
        if isinstance(node.func, cst.Name) and any(
            each.keyword is not None and each.keyword.value in _V4_ARGUMENTS for each in node.args
        ):
            self.of_v4.add(node.func.value)

    def visit_Name(self, node: cst.Name) -> None:  # noqa: N802 - libcst's name
        self.seen.add(node.value)

    def visit_SimpleString(self, node: cst.SimpleString) -> None:  # noqa: N802 - libcst's name
        """Count names in texts, too: annotations may be some, and ``__all__`` is."""
        self.seen.update(node.raw_value.replace("[", " ").replace("]", " ").replace(",", " ").replace(".", " ").split())


def names_of(module: cst.Module) -> _Names:
    """Return the names of a module."""
    names = _Names()
    module.visit(names)
    return names


class _Cleaning(cst.CSTTransformer):
    """Takes out what nobody uses any more, and takes v3's names from ``duetime.v3.compat``."""

    def __init__(self, source: SourceFile, before: _Names, after: _Names) -> None:
        self.source = source
        self.before = before
        self.after = after
        self.wanted: set[tuple[str, str, str | None]] = set()
        self.remaining: list[str] = []

    def leave_ImportFrom(  # noqa: N802 - libcst's name
        self, original_node: cst.ImportFrom, updated_node: cst.ImportFrom
    ) -> cst.BaseSmallStatement:
        if isinstance(original_node.names, cst.ImportStar):
            return updated_node
        module = self.source.absolute(original_node)
        kept: list[cst.ImportAlias] = []
        for alias in original_node.names:
            name, bound = dotted(alias.name) or "", _bound(alias)
            if bound not in self.after.seen and (bound in self.before.seen or module.startswith("apscheduler")):
                continue
            if _is_of_v3(module, name, bound in self.after.of_v4):
                if name in compat.__all__:
                    self.wanted.add(("duetime.v3.compat", name, bound if bound != name else None))
                    continue
                self.remaining.append(f"{module}.{name}")
            kept.append(alias)
        if not kept:
            return _GONE
        if len(kept) == len(original_node.names):
            return updated_node
        kept[-1] = kept[-1].with_changes(comma=cst.MaybeSentinel.DEFAULT)
        return updated_node.with_changes(names=kept)

    def leave_Module(self, original_node: cst.Module, updated_node: cst.Module) -> cst.Module:  # noqa: N802
        body = without(list(updated_node.body), _is_gone)
        return updated_node.with_changes(body=body)

    def leave_IndentedBlock(  # noqa: N802 - libcst's name
        self, original_node: cst.IndentedBlock, updated_node: cst.IndentedBlock
    ) -> cst.IndentedBlock:
        body = without(list(updated_node.body), _is_gone)
        return updated_node.with_changes(body=body or [statement("pass")])

    def leave_Import(  # noqa: N802 - libcst's name
        self, original_node: cst.Import, updated_node: cst.Import
    ) -> cst.BaseSmallStatement:
        kept = []
        for alias in original_node.names:
            name, bound = dotted(alias.name) or "", _bound(alias)
            if bound not in self.after.seen and (bound in self.before.seen or name.startswith("apscheduler")):
                continue
            if _is_of_v3(name, "", is_of_v4=False):
                self.remaining.append(name)
            kept.append(alias)
        if not kept:
            return _GONE
        if len(kept) == len(original_node.names):
            return updated_node
        kept[-1] = kept[-1].with_changes(comma=cst.MaybeSentinel.DEFAULT)
        return updated_node.with_changes(names=kept)


def _bound(alias: cst.ImportAlias) -> str:
    if alias.asname is not None and isinstance(alias.asname.name, cst.Name):
        return alias.asname.name.value
    return (dotted(alias.name) or "").partition(".")[0]


def _is_of_v3(module: str, name: str, is_of_v4: bool) -> bool:
    """Return whether APScheduler 4 has no such name, or another thing of that name."""
    if not module.startswith("apscheduler"):
        return False
    if module.startswith("apscheduler.triggers"):
        return not is_of_v4
    rooms = ("schedulers", "jobstores", "executors", "events", "job", "util")
    return any(module == f"apscheduler.{room}" or module.startswith(f"apscheduler.{room}.") for room in rooms)


def mended(
    source: SourceFile, module: cst.Module, needs: Iterable[tuple[str, str]], *, is_of_v3: bool
) -> tuple[cst.Module, list[str]]:
    """Return the module with its imports, and the names of v3 that it goes on importing.

    :param needs: (module, name) of what was written into it; ``name as other`` too
    :param is_of_v3: names of APScheduler in this file are those of v3
    """
    remaining: list[str] = []
    items = {_item(*each) for each in needs}
    relative = {each for each in items if each[0].startswith(".")}
    module, items = _with_relative(module, relative), items - relative
    if is_of_v3:
        cleaning = _Cleaning(source, names_of(source.tree), names_of(module))
        cleaned = module.visit(cleaning)
        assert isinstance(cleaned, cst.Module)  # noqa: S101 - what it was
        module, remaining = cleaned, cleaning.remaining
        items |= cleaning.wanted
    return _added(module, items), remaining


def _added(module: cst.Module, items: set[tuple[str, str, str | None]]) -> cst.Module:
    """Return the module with these imports: in statements that are there, else in new ones beside their kind."""
    present = {dotted(each.module) for each in _top_imports(module) if isinstance(each, cst.ImportFrom)}
    there = [ImportItem(*each) for each in sorted(items, key=str) if each[0] in present]
    module = AddImportsVisitor(CodemodContext(), there).transform_module(module)
    new: dict[str, list[str]] = {}
    for name, thing, alias in sorted(items, key=str):
        if name not in present:
            new.setdefault(name, []).append(f"{thing} as {alias}" if alias else thing)
    body: list[Any] = list(module.body)
    for kind in (False, True):
        names = [name for name in sorted(new) if _is_foreign(name) is kind]
        if names:
            lines = [statement(f"from {name} import {', '.join(new[name])}") for name in names]
            place, is_apart = _place(body, is_foreign=kind)
            if is_apart:
                lines[0] = lines[0].with_changes(leading_lines=[cst.EmptyLine(indent=False)])
            body[place:place] = lines
            _set_apart(body, place + len(lines))
    return module.with_changes(body=body)


def _with_relative(module: cst.Module, items: set[tuple[str, str, str | None]]) -> cst.Module:
    """Return the module with more names in relative imports that it has."""

    class Adding(cst.CSTTransformer):
        def leave_ImportFrom(  # noqa: N802 - libcst's name
            self, original_node: cst.ImportFrom, updated_node: cst.ImportFrom
        ) -> cst.ImportFrom:
            written = "." * len(original_node.relative) + (dotted(original_node.module) or "")
            wanted = sorted(thing for name, thing, _alias in items if name == written)
            if isinstance(updated_node.names, cst.ImportStar) or not wanted:
                return updated_node
            there = {dotted(each.name) for each in updated_node.names}
            more = [cst.ImportAlias(cst.Name(thing)) for thing in wanted if thing not in there]
            names = [each.with_changes(comma=cst.MaybeSentinel.DEFAULT) for each in updated_node.names]
            return updated_node.with_changes(names=[*more, *names])

    made = module.visit(Adding()) if items else module
    assert isinstance(made, cst.Module)  # noqa: S101 - what it was
    return made


def _set_apart(body: list[Any], place: int) -> None:
    """See to it that what follows new imports is not right below them: imports of another kind, and the code."""
    if place >= len(body) or body[place].leading_lines:
        return
    following = body[place]
    small = following.body[0] if isinstance(following, cst.SimpleStatementLine) else None
    blank = cst.EmptyLine(indent=False)
    if not isinstance(small, (cst.Import, cst.ImportFrom)):
        lines = [blank] if small is not None else [blank, blank]
        body[place] = following.with_changes(leading_lines=lines)
    elif place and _kind(body[place - 1]) != _kind(following):
        body[place] = following.with_changes(leading_lines=[blank])


def _kind(node: cst.CSTNode) -> bool | None:
    small = node.body[0] if isinstance(node, cst.SimpleStatementLine) else None
    if isinstance(small, cst.ImportFrom):
        return None if small.relative else _is_foreign(dotted(small.module) or "")
    return _is_foreign(dotted(small.names[0].name) or "") if isinstance(small, cst.Import) else None


def _top_imports(module: cst.Module) -> list[cst.Import | cst.ImportFrom]:
    return [
        small
        for each in module.body
        if isinstance(each, cst.SimpleStatementLine)
        for small in each.body
        if isinstance(small, (cst.Import, cst.ImportFrom))
    ]


def _is_foreign(module: str) -> bool:
    return module.partition(".")[0] not in sys.stdlib_module_names


def _place(body: Sequence[cst.CSTNode], *, is_foreign: bool) -> tuple[int, bool]:
    """Return where a new import belongs, and whether it is the first of its kind there."""
    after, is_apart = 0, False
    for place, each in enumerate(body):
        small = each.body[0] if isinstance(each, cst.SimpleStatementLine) else None
        if place == 0 and isinstance(small, cst.Expr) and isinstance(small.value, cst.SimpleString):
            after, is_apart = 1, True  # the docstring
        if isinstance(small, cst.ImportFrom):
            if small.relative:
                break
            name = dotted(small.module) or ""
        elif isinstance(small, cst.Import):
            name = dotted(small.names[0].name) or ""
        else:
            continue
        if name == "__future__":
            after, is_apart = place + 1, True
        elif not _is_foreign(name):
            after, is_apart = place + 1, is_foreign
        elif is_foreign:
            after, is_apart = place + 1, False
    return after, is_apart


def _item(module: str, name: str) -> tuple[str, str, str | None]:
    thing, _, alias = name.partition(" as ")
    return module, thing, alias or None


def with_tasks(module: cst.Module, source: SourceFile, names: Iterable[str]) -> tuple[cst.Module, set[tuple[str, str]]]:
    """Return the module with ``@task`` above these functions, and what has to be imported for it."""
    wanted = set(names)
    taken = source.imports.get("task", ("duetime", "task")) != ("duetime", "task") or _is_bound(module, "task")
    decorator = "duetime_task" if taken else "task"
    needs: set[tuple[str, str]] = set()
    body: list[cst.BaseStatement] = []
    for each in module.body:
        node: cst.BaseStatement = each
        if isinstance(node, cst.FunctionDef) and node.name.value in wanted and not _is_task(source, node):
            added = cst.Decorator(expression(decorator))
            node = node.with_changes(decorators=[added, *node.decorators])
            needs.add(("duetime", "task as duetime_task" if taken else "task"))
        body.append(node)
    return module.with_changes(body=body), needs


def _is_task(source: SourceFile, node: cst.FunctionDef) -> bool:
    for each in node.decorators:
        made = each.decorator.func if isinstance(each.decorator, cst.Call) else each.decorator
        if source.origin(made) in ("duetime.task", "duetime.tasks.task") or code_of(made) == "duetime_task":
            return True
    return False


def _is_bound(module: cst.Module, name: str) -> bool:
    """Return whether a name is defined at the top of a module."""
    for each in module.body:
        if isinstance(each, (cst.FunctionDef, cst.ClassDef)) and each.name.value == name:
            return True
        for small in each.body if isinstance(each, cst.SimpleStatementLine) else ():
            targets = small.targets if isinstance(small, cst.Assign) else ()
            if any(isinstance(target.target, cst.Name) and target.target.value == name for target in targets):
                return True
    return False
