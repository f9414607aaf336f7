"""The documentation says what is so: every setting, error, route, statement and module is in it, and nothing else."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from pydantic.fields import FieldInfo

from duetime import Settings, errors
from duetime.app import create_app
from duetime.settings import ENV_PREFIX, PLATFORM_VARIABLES
from duetime.store import statements
from duetime.store.schema import TABLES
from duetime.web.problems import STATUS

from .documents import CURLS, ROOT, Curl, NewServer, Walkthrough, blocks
from .end_to_end.conftest import new_server as new_server  # a fixture, wanted here too

DOCS = ROOT / "docs"
MARKDOWN = sorted(
    path
    for path in (*ROOT.glob("*.md"), *DOCS.rglob("*.md"), *ROOT.glob("examples/**/*.md"), *ROOT.glob("benchmarks/*.md"))
)


def rows(document: str, header: str) -> Iterator[list[str]]:
    """Yield the rows of the tables that have this header."""
    inside = False
    for line in (DOCS / document).read_text().splitlines():
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip().strip("|"))]
        if line == header:
            inside = True
        elif not line.startswith("|"):
            inside = False
        elif inside and not set(line) <= set("|-"):
            yield cells


# -- settings ---------------------------------------------------------------------------------------------------------


def shown_default(name: str, field: FieldInfo) -> str:
    if name == "node_name":
        return "the host's name"
    default: Any = field.default
    if default is None or default == ():
        return "not set"
    if isinstance(default, timedelta):
        return f"`{default.total_seconds():.10g}`"
    return f"`{str(default).lower() if isinstance(default, bool) else default}`"


def setting_row(name: str, field: FieldInfo) -> str:
    platform = [word for word in PLATFORM_VARIABLES if word == name.upper()]
    variables = ", ".join(f"`{word}`" for word in (*platform, f"{ENV_PREFIX}{name.upper()}"))
    return f"| {variables} | {shown_default(name, field)} | {field.description} |"


def test_every_setting_is_documented_with_its_default_and_meaning() -> None:
    expected = [setting_row(name, field) for name, field in Settings.model_fields.items()]
    lines = (DOCS / "settings.md").read_text().splitlines()
    first = lines.index("| Variable | Default | Meaning |") + 2
    assert lines[first : lines.index("", first)] == expected, "docs/settings.md needs this table:\n" + "\n".join(
        expected
    )


# -- errors -----------------------------------------------------------------------------------------------------------


def all_errors(base: type[errors.DuetimeError] = errors.DuetimeError) -> Iterator[type[errors.DuetimeError]]:
    yield base
    for subclass in base.__subclasses__():
        if subclass.__module__ == errors.__name__:
            yield from all_errors(subclass)


def test_every_error_is_documented_with_its_status() -> None:
    listed = {
        (code.strip("`"), kind.strip("`"), 500 if status == "–" else int(status))
        for code, kind, status, _when, _do in rows("errors.md", "| Code | Class | HTTP | When | What to do |")
    }
    assert listed == {(error.code, error.__name__, STATUS[error.code]) for error in all_errors()}


# -- the API ----------------------------------------------------------------------------------------------------------


def test_every_route_is_documented_with_its_status() -> None:
    app = create_app(Settings(database_url="postgresql://nobody@127.0.0.1/nothing"))
    described = app.openapi()["paths"]
    expected = {
        (f"{method.upper()} {path.removeprefix('/api')}", min(int(status) for status in operation["responses"]))
        for path, operations in described.items()
        for method, operation in operations.items()
    }
    listed = {
        (route.strip("`"), int(answers[:3]))
        for route, _does, answers in rows("http-api.md", "| Route | Does | Answers |")
    }
    assert listed == expected


@pytest.mark.parametrize("curl", CURLS)
@pytest.mark.parametrize("name", ["http-api.md", "errors.md"])
def test_every_example_of_the_api_answers_as_shown(
    name: str, curl: Curl, new_server: NewServer, tmp_path: Path
) -> None:
    walkthrough = Walkthrough(DOCS / name, new_server, tmp_path, curl)
    walkthrough.run()
    assert walkthrough.answered == len([block for block in blocks(DOCS / name) if block.kind == "json"])


# -- the architecture -------------------------------------------------------------------------------------------------

ARCHITECTURE = (DOCS / "architecture.md").read_text()
PACKAGE = ROOT / "src" / "duetime"


def modules(directory: Path) -> set[str]:
    """Return the names of the modules and packages in a directory, the private ones left out."""
    python = (path.stem for path in directory.glob("*.py"))
    packages = (path.name for path in directory.iterdir() if path.is_dir())
    return {name for name in (*python, *packages) if not name.startswith("_")}


def test_the_rooms_and_their_order_are_those_that_are_checked() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    [layers] = [contract["layers"] for contract in settings["contracts"] if contract["type"] == "layers"]
    rooms = [set(re.findall(r"`(\w+)`", room)) for room, _what in rows("architecture.md", "| Room | What is in it |")]
    assert rooms == [set(layer.replace("duetime.", "").split(" | ")) for layer in layers]
    assert set().union(*rooms) == modules(PACKAGE)


def test_every_module_of_the_store_is_described() -> None:
    named = set(re.findall(r"`store/(\w+)(?:\.py)?`", ARCHITECTURE))
    assert named == modules(PACKAGE / "store")


def test_every_statement_and_every_table_is_named() -> None:
    words = set(re.findall(r"`(\w+)`", ARCHITECTURE))
    assert set(statements.texts) <= words, set(statements.texts) - words
    tables = {table.strip("`") for table, _what in rows("architecture.md", "| Table | One row for each |")}
    assert tables == {*TABLES, "schema_version"}


# -- the documents ----------------------------------------------------------------------------------------------------


def anchors(document: Path) -> set[str]:
    """Return the anchors of a document's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", document.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", MARKDOWN, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_link_leads_somewhere(document: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", document.read_text()):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        place = (document.parent / path).resolve() if path else document
        assert place.exists(), target
        assert not anchor or anchor in anchors(place), target


def test_every_document_can_be_reached_from_the_readme() -> None:
    reached, waiting = set(), [ROOT / "README.md"]
    while waiting:
        place = waiting.pop()
        if place.is_dir():
            waiting += [path for path in place.glob("*.md") if path not in reached]
        elif place not in reached:
            reached.add(place)
            if place.suffix == ".md":
                targets = re.findall(r"\]\(([^)#:\s]+)[^):\s]*\)", place.read_text())
                waiting += [(place.parent / target).resolve() for target in targets]
    assert set(MARKDOWN) <= reached, set(MARKDOWN) - reached
