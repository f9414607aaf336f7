"""What ``duetime migrate v3 cutover``, ``rollback`` and ``status`` print, and their exit statuses."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from duetime.cli import app
from duetime.settings import DatabaseUrl

from ..matrix.servers import past_the_pooler
from .moving import TABLE
from .real import APPLICATION
from .stored import stored_rows


@pytest.fixture
def url(database: DatabaseUrl, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The address of a file with two jobs of a real release, one of which names a function that is no task."""
    monkeypatch.setenv("DUETIME_DATABASE_URL", past_the_pooler(database).text)
    monkeypatch.syspath_prepend(str(APPLICATION))
    monkeypatch.chdir(tmp_path)
    Path("map.toml").write_text('"shop:remind" = "note"\n')
    wanted = [stored for stored in stored_rows("3.11.3") if stored.python == "3.11"]
    fitting = next(each for each in wanted if each.asked["func"] == "shop:remind" and each.row.id.startswith("cron-"))
    other = next(each for each in wanted if each.asked["func"] == "shop:renamed_since")
    with sqlite3.connect("jobs.sqlite") as connection:
        connection.execute(TABLE.format(name="apscheduler_jobs", bytes="blob"))
        connection.executemany(
            "insert into apscheduler_jobs values (?, ?, ?)",
            [(each.row.id, each.row.next_run_time, each.row.job_state) for each in (fitting, other)],
        )
    connection.close()
    return "sqlite:///jobs.sqlite"


def run(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["migrate", "v3", *arguments])


def test_it_says_what_was_carried_over_and_what_is_left(url: str) -> None:
    carry = ("cutover", "--from", url, "--tasks", "live_tasks", "--map", "map.toml", "--v3-stopped")
    tried = run(*carry, "--dry-run", "--json")
    assert tried.exit_code == 1, tried.output
    assert json.loads(tried.stdout)["counts"] == {"review": 1, "would_carry": 1}

    done = run(*carry)
    assert done.exit_code == 1
    assert "1 carried, 1 review" in done.stdout
    assert "unknown_task" in done.stdout

    standing = run("status", "--from", url)
    assert standing.exit_code == 1
    assert "left in v3's table: 1" in standing.stdout

    back = run("rollback", "--from", url, "--json")
    assert back.exit_code == 0, back.output
    assert json.loads(back.stdout)["counts"] == {"returned": 1}
    assert json.loads(run("status", "--from", url, "--json").stdout)["left_in_v3"] == 2


def test_a_table_that_is_not_v3s_is_refused_in_one_sentence(url: str) -> None:
    for verb in ("cutover", "rollback", "status"):
        told = ("--tasks", "live_tasks") if verb == "cutover" else ()
        refused = run(verb, "--from", url, "--table", "nobodys", *told)
        assert refused.exit_code == 1
        assert "Error: expected a table of APScheduler 3" in refused.output  # click 8.1 mixes its streams
