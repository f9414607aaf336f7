"""The README does what it says: every block of it is carried out."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from duetime.database_url import DatabaseUrl

from .documents import CURLS, ROOT, Curl, NewServer, Walkthrough, blocks, commands
from .end_to_end.conftest import new_server as new_server  # a fixture, wanted here too

README = ROOT / "README.md"


@pytest.mark.parametrize("curl", CURLS)
def test_every_block_of_the_readme_does_what_it_says(
    curl: Curl, new_server: NewServer, tmp_path: Path, database: DatabaseUrl
) -> None:
    # What is served uses the embedded PostgreSQL, as the README says; the programs get SQLAlchemy's form of an address.
    url = database.text.replace("postgresql://", "postgresql+asyncpg://", 1)
    walkthrough = Walkthrough(README, new_server, tmp_path, curl, program_environment={"DATABASE_URL": url})
    walkthrough.run()
    assert walkthrough.answered == len([block for block in blocks(README) if block.kind == "json"])


def test_the_make_commands_of_the_readme_are_targets() -> None:
    scripts = [block.text for block in blocks(README) if block.kind == "bash"]
    named = {words[1] for script in scripts for words in commands(script) if words[0] == "make"}
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert named == {"serve", "test"}
    assert named <= targets


def test_the_extras_of_the_readme_are_those_of_the_package() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    listed = re.findall(
        r"^\| `(\w+)` \| ", README.read_text().partition("| Extra |")[2].partition("## ")[0], re.MULTILINE
    )
    assert listed == list(extras)
