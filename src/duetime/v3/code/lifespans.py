"""The lifespan of an application, in place of what started and stopped the scheduler."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import libcst as cst

from .literals import code_of, expression, statement

START = "__duetime_start__"
SHUTDOWN = "__duetime_shutdown__"
"""Stand for the statements that started and stopped the scheduler, until it is known what becomes of the place."""

PLACEHOLDER = "__duetime_lifespan__"

_MARKS = (START, SHUTDOWN)


@dataclass(frozen=True, slots=True)
class Handler:
    """A function that an application called when it started or stopped.

    :ivar event: ``startup`` or ``shutdown``
    :ivar call: the statement that calls it
    :ivar touches: it has to do with the scheduler
    """

    event: str
    call: str
    touches: bool


def composed(body: cst.BaseSuite, entering: str | None, touching: Sequence[str]) -> cst.BaseSuite:
    """Return the body of a function without the marks; inside ``async with entering:`` is what has to do with the
    scheduler, up to the ``yield``.

    :param entering: None: nothing is entered
    :param touching: words of statements that have to do with the scheduler
    """
    if not isinstance(body, cst.IndentedBlock):
        return body
    statements = _wrapped(list(body.body), entering, touching) if entering is not None else list(body.body)
    return body.with_changes(body=without_marks(statements) or [statement("pass")])


def _wrapped(statements: list[cst.BaseStatement], entering: str, touching: Sequence[str]) -> list[cst.BaseStatement]:
    place = next((index for index, each in enumerate(statements) if _yields(each)), None)
    if place is None:
        return statements
    holder = statements[place]
    first = next((i for i, each in enumerate(statements[:place]) if _touches(each, touching)), place)
    if isinstance(holder, cst.With) and first == place and isinstance(holder.body, cst.IndentedBlock):
        inner = _wrapped(list(holder.body.body), entering, touching)
        statements[place] = holder.with_changes(body=holder.body.with_changes(body=inner))
        return statements
    block = [_unwrapped(each) for each in statements[first : place + 1]]
    inside = without_marks([each for group in block for each in group])
    lead: Sequence[cst.EmptyLine] = ()
    if inside and isinstance(getattr(inside[0], "leading_lines", None), (list, tuple)):
        lead = inside[0].leading_lines  # type: ignore[attr-defined]
        inside[0] = inside[0].with_changes(leading_lines=[])
    entered = cst.With(
        items=[cst.WithItem(expression(entering))],
        body=cst.IndentedBlock(inside),
        asynchronous=cst.Asynchronous(),
        leading_lines=lead,
    )
    return [*statements[:first], entered, *statements[place + 1 :]]


def _unwrapped(node: cst.BaseStatement) -> list[cst.BaseStatement]:
    """Return what is left of ``try: yield finally: scheduler.shutdown()`` without its end."""
    if not isinstance(node, cst.Try) or node.finalbody is None or node.handlers or node.orelse:
        return [node]
    left = without_marks(list(node.finalbody.body.body))  # type: ignore[arg-type]
    if left or not isinstance(node.body, cst.IndentedBlock):
        return [node]
    return list(node.body.body)


def without_marks(statements: Sequence[cst.BaseStatement]) -> list[cst.BaseStatement]:
    """Return statements without the marks, at any depth."""
    kept: list[cst.BaseStatement] = []
    for each in without(statements, _is_mark):
        node = each.visit(_Unmarking())
        if isinstance(node, cst.BaseStatement):
            kept.append(node)
    return kept


def without(statements: Sequence[cst.BaseStatement], is_gone: Callable[[cst.CSTNode], bool]) -> list[cst.BaseStatement]:
    """Return statements without some of them, whose comments and blank lines go to the next one."""
    kept: list[cst.BaseStatement] = []
    waiting: list[cst.EmptyLine] = []
    for each in statements:
        lines: list[cst.EmptyLine] = [*getattr(each, "leading_lines", ())]
        if is_gone(each):
            waiting += lines
            continue
        comments = [line for line in waiting if line.comment is not None]
        above = [*comments, *lines] if lines or comments else waiting[:1]
        kept.append(each.with_changes(leading_lines=above) if waiting and hasattr(each, "leading_lines") else each)
        waiting = []
    return kept


class _Unmarking(cst.CSTTransformer):
    """Takes the marks out of blocks, and says ``pass`` where nothing else is left."""

    def leave_IndentedBlock(  # noqa: N802 - libcst's name
        self, original_node: cst.IndentedBlock, updated_node: cst.IndentedBlock
    ) -> cst.IndentedBlock:
        kept = without(list(updated_node.body), _is_mark)
        return updated_node.with_changes(body=kept or [statement("pass")])


def _is_mark(node: cst.CSTNode) -> bool:
    return isinstance(node, cst.SimpleStatementLine) and _bare(node) in _MARKS


def _bare(node: cst.CSTNode) -> str:
    """Return a statement's text without what stands above it."""
    return code_of(node.with_changes(leading_lines=[]) if hasattr(node, "leading_lines") else node).strip()


class _Yields(cst.CSTVisitor):
    found = False

    def visit_Yield(self, node: cst.Yield) -> None:  # noqa: N802 - libcst's name
        self.found = True

    def visit_FunctionDef(self, node: cst.FunctionDef) -> bool:  # noqa: N802 - libcst's name
        return False


def _yields(node: cst.CSTNode) -> bool:
    visitor = _Yields()
    node.visit(visitor)
    return visitor.found


class _Words(cst.CSTVisitor):
    def __init__(self) -> None:
        self.names: set[str] = set()

    def visit_Name(self, node: cst.Name) -> None:  # noqa: N802 - libcst's name
        self.names.add(node.value)


def _touches(node: cst.CSTNode, words: Sequence[str]) -> bool:
    visitor = _Words()
    node.visit(visitor)
    return not visitor.names.isdisjoint(words)


def new_lifespan(
    module: cst.Module,
    duetime: str,
    handlers: Sequence[Handler],
    jobs: Sequence[str],
    needs: set[tuple[str, str]],
) -> cst.Module:
    """Return the module with a lifespan for its application: a function of its own if there is more to do in it.

    :param jobs: statements that add jobs
    :param needs: gets the imports that it takes
    """
    place = next(i for i, each in enumerate(module.body) if _touches(each, [PLACEHOLDER]))
    defined = next((i for i, each in enumerate(module.body) if _bare(each).startswith(f"{duetime} = ")), -1)
    if not handlers and not jobs and (defined < place):
        return _named(module, f"{duetime}.lifespan")
    name = "lifespan" if "lifespan" not in _top_names(module) else "duetime_lifespan"
    before = [each.call for each in handlers if each.event == "startup" and not each.touches]
    inside = [*jobs, *(each.call for each in handlers if each.event == "startup" and each.touches), "yield"]
    inside += [each.call for each in handlers if each.event == "shutdown" and each.touches]
    after = [each.call for each in handlers if each.event == "shutdown" and not each.touches]
    lines = ["@asynccontextmanager", f"async def {name}(app: FastAPI) -> AsyncIterator[None]:"]
    lines += [f"    {line}" for line in before]
    lines += [f"    async with {duetime}.lifespan(app):"]
    for text in inside:
        lines += [f"        {line}" for line in text.splitlines()]
    lines += [f"    {line}" for line in after]
    needs |= {("contextlib", "asynccontextmanager"), ("collections.abc", "AsyncIterator"), ("fastapi", "FastAPI")}
    blank = [cst.EmptyLine(indent=False), cst.EmptyLine(indent=False)]
    made = statement("\n".join(lines) + "\n").with_changes(leading_lines=blank)
    following = module.body[place]
    above = list(following.leading_lines)
    while above and above[0].comment is None:
        above.pop(0)
    following = following.with_changes(leading_lines=[*blank, *above])
    body = [*module.body[:place], made, following, *module.body[place + 1 :]]
    return _named(module.with_changes(body=body), name)


def _top_names(module: cst.Module) -> set[str]:
    found = {each.name.value for each in module.body if isinstance(each, (cst.FunctionDef, cst.ClassDef))}
    for each in module.body:
        for small in each.body if isinstance(each, cst.SimpleStatementLine) else ():
            named = small.targets if isinstance(small, cst.Assign) else [small]
            if isinstance(small, (cst.Import, cst.ImportFrom, cst.Assign)):
                for part in named:
                    words = _Words()
                    part.visit(words)
                    found |= words.names
    return found


def _named(module: cst.Module, name: str) -> cst.Module:
    class Naming(cst.CSTTransformer):
        def leave_Name(self, original_node: cst.Name, updated_node: cst.Name) -> cst.BaseExpression:  # noqa: N802
            return expression(name) if original_node.value == PLACEHOLDER else updated_node

    made = module.visit(Naming())
    assert isinstance(made, cst.Module)  # noqa: S101 - what it was
    return made
