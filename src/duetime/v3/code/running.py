"""One run over a project: read it all, rewrite it all, and write it if that is wanted."""

from __future__ import annotations

import os
import tempfile
from contextlib import suppress
from pathlib import Path

import libcst as cst

from . import reasons
from .analysis import Analysis, App, analyse, is_event, promoted
from .findings import Found, Outcome, Rewritten
from .imports import mended, with_tasks
from .literals import code_of
from .project import Definition, Project, SourceFile, dotted
from .rewriting import Plan, Rewriter


def migrate_code(path: Path, *, write: bool = False) -> Outcome:
    """Rewrite the calls of APScheduler 3 under a path, and return what changes and what is left to a person.

    :param path: a project's directory, or one file
    :param write: change the files; else nothing is changed. Each file is replaced as a whole
    :raises FileNotFoundError: if there is no such path
    """
    if not path.exists():
        raise FileNotFoundError(path)
    project = Project(path)
    analysis = analyse(project)
    if not analysis.schedulers and not analysis.odd and not any(map(_has_rooms, project.files)):
        return Outcome([], [], project.skipped, project.looked_at, written=write)
    plan = _plan(analysis)
    trees: dict[str, cst.Module] = {}
    needs: dict[str, set[tuple[str, str]]] = {}
    for source in project.files:
        rewriter = Rewriter(source, plan)
        made = source.tree.visit(rewriter)
        assert isinstance(made, cst.Module)  # noqa: S101 - what it was
        trees[source.file], needs[source.file] = made, rewriter.needs
    changed = []
    for source in project.files:
        tree = trees[source.file]
        names = [each.name for each in plan.tasks if each.module == source.module]
        if names:
            tree, imports = with_tasks(tree, source, names)
            needs[source.file] |= imports
        is_touched = not tree.deep_equals(source.tree) or b"apscheduler" in source.content
        is_of_v3 = (analysis.is_of_v3 and is_touched) or _has_rooms(source)
        tree, remaining = mended(source, tree, needs[source.file], is_of_v3=is_of_v3)
        for name in remaining:
            line = source.line(source.statements[name])
            plan.found.append(Found(source.file, line, "import", reasons.remaining_import(name)))
        after = tree.bytes
        if after != source.content and tree.code != source.tree.code:
            cst.parse_module(after)  # what is written can be read
            changed.append(Rewritten(source.path, source.file, source.content, after, tree.encoding))
    _say_what_is_odd(analysis, plan)
    if write:
        for each in changed:
            _replace(each.path, each.after)
    return Outcome(changed, sorted(set(plan.found)), project.skipped, project.looked_at, written=write)


def _has_rooms(source: SourceFile) -> bool:
    rooms = ("apscheduler.schedulers", "apscheduler.jobstores", "apscheduler.events", "apscheduler.job")
    return any(module.startswith(rooms) for module, _name in source.imports.values())


def _plan(analysis: Analysis) -> Plan:
    main = next((each for each in analysis.schedulers if not each.is_new), None) or next(
        iter(analysis.schedulers), None
    )
    plan = Plan(analysis, main, None, None, promoted(analysis), set())
    if main is None:
        return plan
    plan.duetime = _name_of_duetime(analysis, main.source)
    plan.app = None if main.is_new else _app(analysis)
    if plan.app is not None and plan.app.lifespan is not None:
        text = dotted(plan.app.lifespan)
        definition = None if text is None else analysis.project.resolve(plan.app.source, text)
        if definition in analysis.functions:
            plan.lifespan = definition
    plan.at_start = _at_start(analysis, plan)
    return plan


def _app(analysis: Analysis) -> App | None:
    """Return the application that runs the scheduler: the only one, or the one whose file has to do with it."""
    if len(analysis.apps) <= 1:
        return next(iter(analysis.apps), None)
    near = [app for app in analysis.apps if any(source is app.source for source, _where, _method in analysis.calls)]
    return near[0] if len(near) == 1 else None


def _at_start(analysis: Analysis, plan: Plan) -> set[Definition]:
    """Return the functions that run when the application starts, and nowhere else."""
    found = {
        definition
        for definition, (_source, node) in analysis.functions.items()
        if definition == plan.lifespan or any(is_event(each, ("startup",)) for each in node.decorators)
    }
    grown = True
    while grown:
        grown = False
        for definition in analysis.functions.keys() - found:
            uses = analysis.uses.get(definition, [])
            above = [
                None if use.inside is None else Definition(use.source.module, use.inside.name.value) for use in uses
            ]
            if above and all(each in found for each in above):
                found.add(definition)
                grown = True
    return found


def _name_of_duetime(analysis: Analysis, source: SourceFile) -> str:
    taken = set(source.imports) | {each.name for each in analysis.functions if each.module == source.module}
    return "duetime_app" if "duetime" in taken else "duetime"


def _say_what_is_odd(analysis: Analysis, plan: Plan) -> None:
    def say(source: SourceFile, node: cst.CSTNode, reason: str, text: str) -> None:
        plan.found.append(Found(source.file, source.line(node), reason, text))

    for source, node in analysis.odd:
        say(source, node, "scheduler", reasons.odd_scheduler(code_of(node)))
    main = plan.main
    if main is None or main.is_new:
        return
    if plan.app is None:
        text = reasons.no_application(plan.duetime, has_several=bool(analysis.apps))
        say(main.source, main.statement, "no_application", text)
    for source, node in analysis.functions.values():
        is_elsewhere = plan.app is None or source is not plan.app.source or plan.app.lifespan is not None
        if is_elsewhere and any(map(is_event, node.decorators)):
            say(source, node, "on_event", reasons.ON_EVENT)


def _replace(path: Path, content: bytes) -> None:
    """Put a text in the place of a file's, at once: nobody sees half of it, whatever happens."""
    target = path.resolve()
    descriptor, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, target.stat().st_mode & 0o7777)
        os.replace(temporary, target)
    except BaseException:
        with suppress(OSError):
            os.unlink(temporary)
        raise
