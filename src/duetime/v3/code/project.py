"""A project's files, parsed, and what its names mean: which are schedulers, applications, functions of its own."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import libcst as cst
from libcst.metadata import MetadataWrapper, PositionProvider

_LEFT_OUT = {"node_modules", "site-packages", "__pycache__", "build", "dist", "venv", "env"}

SCHEDULERS = (
    "AsyncIOScheduler", "BackgroundScheduler", "BlockingScheduler", "GeventScheduler", "TornadoScheduler",
    "TwistedScheduler", "QtScheduler", "BaseScheduler",
)  # fmt: skip


def dotted(node: cst.BaseExpression | None) -> str | None:
    """Return ``a.b.c`` of names and attributes, or None."""
    if isinstance(node, cst.Name):
        return node.value
    if isinstance(node, cst.Attribute) and (before := dotted(node.value)) is not None:
        return f"{before}.{node.attr.value}"
    return None


@dataclass(frozen=True, slots=True)
class Definition:
    """Where a module-level name of the project is defined."""

    module: str
    name: str


@dataclass(slots=True, eq=False)
class SourceFile:
    """A parsed file.

    :ivar file: relative to the path that was given
    :ivar module: dotted, as it is imported from the root of the project
    :ivar imports: local name → (module, name in it; None for the module itself)
    :ivar written: local name → module as the import says it, such as ``.scheduling``
    :ivar statements: full name → the import that has it
    """

    path: Path
    file: str
    module: str
    is_package: bool
    content: bytes
    wrapper: MetadataWrapper
    imports: dict[str, tuple[str, str | None]] = field(default_factory=dict)
    written: dict[str, str] = field(default_factory=dict)
    statements: dict[str, cst.CSTNode] = field(default_factory=dict)

    @property
    def tree(self) -> cst.Module:
        """The file's syntax tree."""
        return self.wrapper.module

    def line(self, node: cst.CSTNode) -> int:
        """Return the line of a node of the tree."""
        where = self.wrapper.resolve(PositionProvider).get(node)
        return where.start.line if where is not None else 1

    def origin(self, node: cst.BaseExpression | None) -> str | None:
        """Return the full name of what an expression of names means, as far as imports say: ``module.name``."""
        text = dotted(node)
        if text is None:
            return None
        first, _, rest = text.partition(".")
        if first not in self.imports:
            return text
        module, name = self.imports[first]
        return ".".join(part for part in (module, name, rest) if part)

    def absolute(self, imported: cst.ImportFrom) -> str:
        """Return the module of a ``from … import``, relative ones from the root of the package."""
        module = dotted(imported.module) or ""
        if not imported.relative:
            return module
        package = self.module.split(".") if self.is_package else self.module.split(".")[:-1]
        above = len(imported.relative) - 1
        return ".".join([*package[: len(package) - above], *([module] if module else [])])


class _Imports(cst.CSTVisitor):
    def __init__(self, source: SourceFile) -> None:
        self.source = source

    def visit_Import(self, node: cst.Import) -> None:  # noqa: N802 - libcst's name
        for alias in node.names:
            name = dotted(alias.name) or ""
            self.source.statements[name] = node
            if alias.asname is not None and isinstance(alias.asname.name, cst.Name):
                self.source.imports[alias.asname.name.value] = (name, None)
            else:
                first = name.partition(".")[0]
                self.source.imports[first] = (first, None)

    def visit_ImportFrom(self, node: cst.ImportFrom) -> None:  # noqa: N802 - libcst's name
        if isinstance(node.names, cst.ImportStar):
            return
        module = self.source.absolute(node)
        for alias in node.names:
            name = dotted(alias.name) or ""
            self.source.statements[f"{module}.{name}"] = node
            bound = alias.asname.name if alias.asname is not None else alias.name
            if isinstance(bound, cst.Name):
                self.source.imports[bound.value] = (module, name)
                self.source.written[bound.value] = "." * len(node.relative) + (dotted(node.module) or "")


_MATTERS = re.compile(rb"scheduler|FastAPI|Duetime", re.IGNORECASE)
"""A file without these words is read only if another one names something of it."""


class Project:
    """The files under a path.

    :ivar files: those that matter and could be parsed; more of them may turn out to matter while they are looked at
    :ivar skipped: file → why it could not
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.files: list[SourceFile] = []
        self.skipped: dict[str, str] = {}
        self.looked_at = 0
        self._later: dict[str, Path] = {}
        self._by_module: dict[str, SourceFile] = {}
        self._found: dict[str, SourceFile | None] = {}
        self._resolved: dict[tuple[str, str], Definition | None] = {}
        for path in _python_files(root):
            self.looked_at += 1
            try:
                content = path.read_bytes()
            except OSError as exc:
                self.skipped[self._name(path)] = f"cannot be read: {exc.strerror}"
                continue
            if _MATTERS.search(content):
                self._parse(path, content)
            else:
                self._later[_module_of(path, root)] = path

    def _name(self, path: Path) -> str:
        return path.name if self.root.is_file() else path.relative_to(self.root).as_posix()

    def _parse(self, path: Path, content: bytes) -> SourceFile | None:
        file = self._name(path)
        try:
            tree = cst.parse_module(content)
        except (cst.ParserSyntaxError, UnicodeDecodeError, LookupError, RecursionError) as exc:
            said = str(exc).strip().splitlines()
            self.skipped[file] = f"cannot be read as Python: {said[0] if said else type(exc).__name__}"
            return None
        except Exception as exc:  # whatever the parser makes of a strange file, the others are read
            self.skipped[file] = f"cannot be read as Python: {type(exc).__name__}: {exc}"
            return None
        wrapper = MetadataWrapper(tree, unsafe_skip_copy=True)  # each node is there once
        module = _module_of(path, self.root)
        source = SourceFile(path, file, module, path.name == "__init__.py", content, wrapper)
        source.tree.visit(_Imports(source))
        self.files.append(source)
        self._by_module[module] = source
        return source

    def module(self, name: str) -> SourceFile | None:
        """Return the project's file of a module's name, from whichever directory it is imported."""
        if name not in self._found:
            known = [*self._by_module, *self._later]
            ending = (module for module in known if name and module.endswith(f".{name}"))
            wanted = name if name in self._by_module or name in self._later else next(ending, "")
            if wanted in self._later:
                path = self._later.pop(wanted)
                self._parse(path, path.read_bytes())
            self._found[name] = self._by_module.get(wanted)
        return self._found[name]

    def imports(self, wanted: SourceFile) -> bool:
        """Return whether any other file imports a module, or a name of it, as far as can be told."""
        for source in self.files:
            for module, name in source.imports.values():
                found = [self.module(module), self.module(f"{module}.{name}") if name else None]
                if source is not wanted and wanted in found:
                    return True
        last = wanted.module.rpartition(".")[2].encode()
        return any(last in path.read_bytes() for path in self._later.values())

    def resolve(self, source: SourceFile, text: str, depth: int = 0) -> Definition | None:
        """Return what a dotted name of a file means, if it is defined in the project; re-exports are followed."""
        key = (source.file, text)
        if key not in self._resolved:
            self._resolved[key] = self._look_up(source, text, depth)
        return self._resolved[key]

    def _look_up(self, source: SourceFile, text: str, depth: int) -> Definition | None:
        first, _, rest = text.partition(".")
        if first not in source.imports:
            return None if rest else Definition(source.module, first)
        module, name = source.imports[first]
        path = ".".join(part for part in (module, name, rest) if part)
        before, _, last = path.rpartition(".")
        found = self.module(before)
        if found is None or depth > 5:
            return None
        if last in found.imports:
            return self.resolve(found, last, depth + 1)
        return Definition(found.module, last)


def _python_files(root: Path) -> Iterator[Path]:
    if root.is_file():
        yield root
        return
    for directory, names, files in os.walk(root):
        here = Path(directory)
        names[:] = sorted(
            name
            for name in names
            if not name.startswith(".") and name not in _LEFT_OUT and not (here / name / "pyvenv.cfg").exists()
        )
        yield from (here / name for name in sorted(files) if name.endswith(".py"))


def _module_of(path: Path, root: Path) -> str:
    """Return a file's module as it is imported from the root, or from above it if the root is in a package."""
    base = root if root.is_dir() else root.parent
    parts = list(path.relative_to(base).with_suffix("").parts)
    directory = base.resolve()
    while (directory / "__init__.py").exists():
        parts.insert(0, directory.name)
        directory = directory.parent
    if parts[-1] == "__init__":
        parts.pop()
    return ".".join(parts) or directory.name


class _Bound(cst.CSTVisitor):
    def __init__(self) -> None:
        self.names: set[str] = set()

    def visit_FunctionDef(self, node: cst.FunctionDef) -> None:  # noqa: N802 - libcst's name
        self.names.add(node.name.value)

    def visit_ClassDef(self, node: cst.ClassDef) -> None:  # noqa: N802 - libcst's name
        self.names.add(node.name.value)

    def visit_Param(self, node: cst.Param) -> None:  # noqa: N802 - libcst's name
        self.names.add(node.name.value)

    def visit_AssignTarget(self, node: cst.AssignTarget) -> None:  # noqa: N802 - libcst's name
        if isinstance(node.target, cst.Name):
            self.names.add(node.target.value)


def bound_names(module: cst.Module) -> set[str]:
    """Return the names that a module gives to something of its own, anywhere in it; imports are left out."""
    visitor = _Bound()
    module.visit(visitor)
    return visitor.names
