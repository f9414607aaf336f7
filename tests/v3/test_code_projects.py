"""Real projects for APScheduler 3, rewritten and run: they answer and schedule what they did under v3."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from duetime.settings import DatabaseUrl
from duetime.triggers import parse_json
from duetime.v3.code import migrate_code

HERE = Path(__file__).parent
REQUESTS: dict[str, Any] = json.loads((HERE / "projects" / "requests.json").read_text())
FACTS: dict[str, Any] = json.loads((HERE / "projects.json").read_text())
NOW = datetime.fromisoformat(FACTS["now"])

DECISIONS = {
    "module_level": ["not_async"],
    "helpers": ["executors", "jobstores"],
}
"""What is left to a person; in the other projects nothing is."""


@pytest.fixture
def project(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    place = tmp_path / str(request.param)
    shutil.copytree(HERE / "projects" / request.param, place)
    return place


def run(project: Path, database: DatabaseUrl, count: int) -> Any:
    case = REQUESTS[project.name]
    done = subprocess.run(
        [sys.executable, str(HERE / "look_at_project.py"), case["app"], json.dumps(case["requests"]), str(count)],
        cwd=project,
        env={**os.environ, "DATABASE_URL": database.text, "TZ": "UTC"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert "never awaited" not in done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def of_schedule(job: dict[str, Any], schedules: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the schedule that a job of v3 has become: that of its id, or of its function and arguments."""
    is_random = re.fullmatch(r"[0-9a-f]{32}", job["id"])
    fitting = [
        each
        for each in schedules
        if (each["id"] == job["id"] if not is_random else each["task"] == job["func"] and each["args"] == job["args"])
    ]
    assert len(fitting) == 1, (job, schedules)
    return fitting[0]


def times_of(schedule: dict[str, Any], count: int) -> list[str]:
    """Return the fire times of a schedule as they were at the moment for which v3's are known."""
    trigger = parse_json(schedule["trigger"], now=NOW)
    return [moment.astimezone(UTC).isoformat() for _ in range(count) if (moment := trigger.next()) is not None]


@pytest.mark.parametrize("project", list(REQUESTS), indirect=True)
async def test_a_project_does_what_it_did_under_v3(project: Path, database: DatabaseUrl) -> None:
    outcome = migrate_code(project, write=True)
    assert [found.code for found in outcome.decisions] == DECISIONS.get(project.name, [])

    facts = FACTS["projects"][project.name]
    done = run(project, database, len(facts["jobs"]))
    assert done["statuses"] == facts["statuses"]
    assert len(done["schedules"]) == len(facts["jobs"])
    for job in facts["jobs"]:
        schedule = of_schedule(job, done["schedules"])
        options = schedule["options"]
        assert options["misfire_grace_time"] == job["misfire_grace_time"]
        assert options["coalesce"] == ("latest" if job["coalesce"] else "all")
        assert schedule["overlap"] == ("skip" if job["max_instances"] == 1 else "allow")
        assert (schedule["args"], schedule["kwargs"]) == (job["args"], job["kwargs"])
        first = datetime.fromisoformat(job["times"][0])
        if schedule["trigger"]["type"] != "interval" or first.year == 2040:
            assert times_of(schedule, len(job["times"])) == job["times"], schedule["trigger"]
            continue
        # Counted from the start, under v3 as well.
        steps = {later - earlier for earlier, later in pairwise(map(datetime.fromisoformat, job["times"]))}
        assert steps == {first - NOW}
        upcoming = [datetime.fromisoformat(text) for text in schedule["upcoming"]]
        assert {later - earlier for earlier, later in pairwise(upcoming)} == steps
        begun = upcoming[0] - datetime.fromisoformat(done["started"])
        assert timedelta(0) <= begun - (first - NOW) < timedelta(seconds=60)


@pytest.mark.parametrize("project", list(REQUESTS), indirect=True)
async def test_starting_a_rewritten_project_again_doubles_nothing(project: Path, database: DatabaseUrl) -> None:
    migrate_code(project, write=True)
    started = {
        "startup_events": 2,
        "lifespan_inside": 3,
        "package": 2,
        "module_level": 2,
        "helpers": 2,
        "dependency": 0,
    }
    case = REQUESTS[project.name]
    REQUESTS[project.name] = {**case, "requests": []}
    try:
        for _start in range(2):
            assert len(run(project, database, started[project.name])["schedules"]) == started[project.name]
    finally:
        REQUESTS[project.name] = case


@pytest.mark.parametrize("project", list(REQUESTS), indirect=True)
def test_a_second_run_changes_nothing(project: Path) -> None:
    assert migrate_code(project, write=True).changed
    before = {path: path.read_bytes() for path in project.rglob("*.py")}
    again = migrate_code(project, write=True)
    assert [each.diff for each in again.changed] == []
    assert {path: path.read_bytes() for path in project.rglob("*.py")} == before


@pytest.mark.parametrize("project", list(REQUESTS), indirect=True)
def test_nothing_is_written_unless_it_is_wanted(project: Path) -> None:
    before = {path: path.read_bytes() for path in project.rglob("*") if path.is_file()}
    assert migrate_code(project).changed
    assert {path: path.read_bytes() for path in project.rglob("*") if path.is_file()} == before
