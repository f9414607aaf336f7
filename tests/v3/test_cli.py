"""``duetime migrate v3 plan`` as an operator runs it."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from duetime.settings import DatabaseUrl
from duetime.v3.model import V3Row

from .tables import APPLICATION, some_rows, sqlite_table

GOOD = ("cron-00", "cron-05", "cron-crontab", "overridden", "paused")
LEFT = ("own-trigger", "args-unknown", "renamed", "or-interval", "executor")


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "app_tasks.py").write_text(APPLICATION)
    return tmp_path


def run(home: Path, *arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("DUETIME_", "DATABASE_URL"))}
    return subprocess.run(
        [sys.executable, "-P", "-m", "duetime", "migrate", "v3", *arguments],
        cwd=home,
        env={**clean, **settings},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        stdin=subprocess.DEVNULL,
    )


def planned(home: Path, url: str, *more: str) -> tuple[int, dict[str, Any]]:
    done = run(home, "plan", "--from", url, "--tasks", "app_tasks", "--json", *more)
    assert "Traceback" not in done.stderr
    return done.returncode, json.loads(done.stdout)


def test_status_0_says_that_every_job_is_carried_over(home: Path) -> None:
    url = sqlite_table(home / "jobs.sqlite", some_rows(*GOOD))
    status, found = planned(home, url, "--fires", "7")
    assert status == 0, found["summary"]
    assert [row["id"] for row in found["rows"]] == sorted(GOOD)
    assert {row["verdict"] for row in found["rows"]} == {"convert"}
    assert {len(row["fire_times"]) for row in found["rows"]} == {7}
    assert found["summary"] == {
        **found["summary"],
        "rows": 5,
        "convert": 5,
        "review": 0,
        "reject": 0,
        "fires": 7,
        "compared": 5,
        "error": None,
    }
    crontab = next(row for row in found["rows"] if row["id"] == "cron-crontab")
    assert crontab["schedule"]["trigger"]["expression"] == "0 9 * * tue-sat"


def test_status_1_says_that_something_is_left_and_each_row_says_what(home: Path) -> None:
    url = sqlite_table(home / "jobs.sqlite", [*some_rows(*GOOD, *LEFT), V3Row("broken", 1.0, b"garbage")])
    status, found = planned(home, url)
    assert status == 1
    verdicts = {row["id"]: row["verdict"] for row in found["rows"]}
    assert verdicts == {**dict.fromkeys(GOOD, "convert"), **dict.fromkeys(LEFT, "review"), "broken": "reject"}
    assert all(row["reasons"] for row in found["rows"] if row["verdict"] != "convert")


def test_what_the_operator_says_settles_what_was_left(home: Path) -> None:
    url = sqlite_table(home / "jobs.sqlite", some_rows("renamed", "executor"))
    (home / "names.toml").write_text('"shop:renamed_since" = "made-anew"\n')
    assert planned(home, url)[0] == 1
    status, found = planned(home, url, "--map", "names.toml", "--executor", "processpool=auto")
    assert status == 0, found["rows"]
    assert {row["schedule"]["task"] for row in found["rows"]} == {"made-anew", "shop:remind"}


async def test_a_table_in_postgresql_is_read_and_left_as_it_is(
    home: Path, empty_database: DatabaseUrl, server: DatabaseUrl
) -> None:
    connection = await asyncpg.connect(**empty_database.direct.asyncpg_arguments())
    await connection.execute(
        "CREATE TABLE apscheduler_jobs (id VARCHAR(191) PRIMARY KEY, next_run_time DOUBLE PRECISION, "
        "job_state BYTEA NOT NULL)"
    )
    rows = some_rows(*GOOD)
    await connection.executemany(
        "INSERT INTO apscheduler_jobs VALUES ($1, $2, $3)", [(row.id, row.next_run_time, row.job_state) for row in rows]
    )
    status, found = planned(home, empty_database.direct.text)
    assert status == 0, found["summary"]
    assert {row["id"] for row in found["rows"]} == set(GOOD)
    kept = await connection.fetch("SELECT * FROM apscheduler_jobs")
    await connection.close()
    assert {tuple(row) for row in kept} == {(row.id, row.next_run_time, row.job_state) for row in rows}


def test_many_rows_are_planned_in_several_processes_in_order(home: Path) -> None:
    [row] = some_rows("cron-crontab")
    many = [
        V3Row(f"{number:012}", row.next_run_time, row.job_state.replace(b"cron-crontab", f"{number:012}".encode()))
        for number in range(2_500)
    ]
    status, found = planned(home, sqlite_table(home / "jobs.sqlite", many), "--fires", "1")
    assert status == 0
    assert [each["id"] for each in found["rows"]] == [each.id for each in many]


def test_the_table_and_the_page_are_for_the_eye(home: Path) -> None:
    url = sqlite_table(home / "jobs.sqlite", some_rows(*GOOD, *LEFT))
    done = run(home, "plan", "--from", url, "--tasks", "app_tasks")
    assert done.returncode == 1
    assert "cron 0 9 * * tue-sat Europe/Berlin" in done.stdout
    assert "10 rows: 5 convert, 5 review, 0 reject" in done.stdout
    assert done.stderr == ""
    done = run(home, "plan", "--from", url, "--tasks", "app_tasks", "--html", "plan.html")
    assert done.returncode == 1
    assert "10 rows: 5 convert" in done.stdout
    assert "tue-sat" in (home / "plan.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--tasks", "no_such_module"], "no_such_module"),
        (["--map", "nowhere.toml"], "nowhere.toml"),
        (["--executor", "reports"], "NAME=EXECUTOR"),
        (["--allow-class", "app_tasks:nothing"], "app_tasks:nothing"),
        (["--v3-release", "4.0.0"], "3.6 to 3.11"),
        (["--fires", "0"], "--fires"),
    ],
)
def test_wrong_usage_is_status_2_and_one_sentence(home: Path, arguments: list[str], said: str) -> None:
    url = sqlite_table(home / "jobs.sqlite", [])
    done = run(home, "plan", "--from", url, *arguments)
    assert done.returncode == 2, done.stderr
    assert said in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "url", ["sqlite:///nowhere.sqlite", "sqlite:///other.sqlite", "postgresql://nobody:secret@127.0.0.1:1/nothing"]
)
def test_a_source_that_is_none_is_one_sentence_without_the_password(home: Path, url: str) -> None:
    with sqlite3.connect(home / "other.sqlite") as connection:
        connection.execute("CREATE TABLE apscheduler_jobs (id INTEGER, what TEXT)")
    connection.close()
    done = run(home, "plan", "--from", url, "--tasks", "app_tasks", "--json")
    assert done.returncode == 1, done.stderr
    assert json.loads(done.stdout)["rows"] == []
    assert "Error: expected" in done.stderr
    assert "Traceback" not in done.stderr
    assert "secret" not in done.stderr + done.stdout


def test_a_report_that_cannot_be_written_is_one_sentence(home: Path) -> None:
    url = sqlite_table(home / "jobs.sqlite", some_rows(*GOOD))
    done = run(home, "plan", "--from", url, "--tasks", "app_tasks", "--html", "nowhere/plan.html")
    assert done.returncode == 1
    assert "nowhere/plan.html" in done.stderr
    assert "Traceback" not in done.stderr


def test_what_a_task_module_prints_is_no_part_of_the_json(home: Path) -> None:
    (home / "loud.py").write_text("print('hello')\n")
    url = sqlite_table(home / "jobs.sqlite", [])
    done = run(home, "plan", "--from", url, "--tasks", "loud", "--json")
    assert done.returncode == 0
    assert json.loads(done.stdout)["rows"] == []
