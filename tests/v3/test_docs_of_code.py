"""``docs/migrating-code-from-v3.md`` does what it says, and names all that there is."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from duetime.v3 import compat
from duetime.v3.compat.listening import NOT_TOLD

from ..documents import ROOT, NewServer, Walkthrough, blocks, read_curl
from ..end_to_end.conftest import new_server as new_server  # a fixture, wanted here too

DOCUMENT = ROOT / "docs" / "migrating-code-from-v3.md"
TEXT = DOCUMENT.read_text()
WORDS = set(re.findall(r"\w+", TEXT))


def test_every_example_answers_as_shown(new_server: NewServer, tmp_path: Path) -> None:
    walkthrough = Walkthrough(DOCUMENT, new_server, tmp_path, read_curl)
    walkthrough.run()
    assert walkthrough.answered == len([block for block in blocks(DOCUMENT) if block.kind == "json"])


def said_codes() -> set[str]:
    """Return the codes of what is left to a person, from the calls that say it."""
    found: set[str] = set()
    for path in (ROOT / "src/duetime/v3/code").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            name = getattr(getattr(node, "func", None), "attr", getattr(getattr(node, "func", None), "id", None))
            if isinstance(node, ast.Call) and name in ("_say", "say", "Found"):
                texts = [each.value for each in node.args if isinstance(each, ast.Constant)]
                found |= {str(text) for text in texts if re.fullmatch(r"[a-z_]+", str(text))}
    return found


def test_every_code_of_what_is_left_to_a_person_is_explained() -> None:
    table = TEXT.partition("### What is left to a person")[2]
    listed = {
        code for row in re.findall(r"^\| (`.+?`) \| ", table, re.MULTILINE) for code in re.findall(r"`(\w+)`", row)
    }
    assert listed == said_codes() - {"local_zone"}  # which is a note


def test_every_call_and_event_is_named() -> None:
    calls = {name for name in compat.__all__ if not name.startswith("EVENT_")}
    assert calls - WORDS == {
        "JobError",
        "JobEvent",
        "JobExecutionEvent",
        "SchedulerEvent",
        "remove_listener",
        "undefined",
    }
    refused = {name for name, _why in NOT_TOLD.values() if not re.match(r"EVENT_(EXECUTOR|JOBSTORE)_", name)}
    assert {name.removeprefix("EVENT_SCHEDULER") for name in refused} <= WORDS | {"_RESUMED"} | {"_PAUSED"}
