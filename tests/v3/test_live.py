"""A real v3 process and a Duetime node on the same jobs, through a cut-over with a kill in its middle, and back."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import asyncpg
import pytest
from apscheduler import current_job

from duetime.settings import DatabaseUrl

from ..matrix.servers import past_the_pooler
from ..store.parts import node, running, tasks
from ..waiting import eventually
from .moving import V3Side, v3_side
from .real import APPLICATION, ask, command_of, environment_of, read_diary

IDLE = 300
"""Jobs that are far from due, so that the cut-over takes a while."""

Fires = Counter[tuple[str, float]]


class Application:
    """What v3 and Duetime do of the jobs, as pairs of a job and the instant that it was due."""

    def __init__(self, folder: Path, begin: float) -> None:
        self.diary = folder / "diary"
        self.begin = begin
        self.here: Fires = Counter()

    def jobs(self) -> list[dict[str, Any]]:
        """Return what v3 is told: intervals, cron and dates that are due soon and often, and many that are not."""
        common = {"func": "effects:note", "misfire_grace_time": 60, "coalesce": False, "max_instances": 20}
        jobs: list[dict[str, Any]] = []
        for number in range(10):
            times = {"seconds": 2 + number % 3, "start_date": _text(self.begin + 1 + number / 10)}
            jobs.append({"trigger": "interval", "id": f"interval-{number}", **times})
        jobs += [{"trigger": "cron", "id": f"cron-{number}", "second": f"{number}-59/3"} for number in range(3)]
        jobs += [
            {"trigger": "date", "id": f"date-{number}", "run_date": _text(self.begin + 2 + number * 1.5)}
            for number in range(16)
        ]
        jobs += [{"trigger": "interval", "id": f"later-{number}", "hours": 5} for number in range(IDLE)]
        return [{**common, "args": [job["id"]], **job} for job in jobs]

    def expected(self, until: float) -> Fires:
        """Return what is due before an instant."""
        due: Fires = Counter()
        for number in range(10):
            fire = self.begin + 1 + number / 10
            while fire < until:
                due[f"interval-{number}", round(fire, 3)] = 1
                fire += 2 + number % 3
        for number in range(16):
            if self.begin + 2 + number * 1.5 < until:
                due[f"date-{number}", round(self.begin + 2 + number * 1.5, 3)] = 1
        for second in range(int(self.begin) + 1, int(until) + 1):
            if second < until:
                due[f"cron-{second % 60 % 3}", float(second)] = 1
        return due

    async def note(self, name: str) -> None:
        """Take note of what the node does."""
        job = current_job.get()
        assert job.scheduled_fire_time is not None
        self.here[name, round((job.scheduled_fire_time - job.jitter).timestamp(), 3)] += 1

    def in_v3(self) -> Fires:
        """Return what v3 has done, by its own events."""
        lines = read_diary(self.diary)
        assert not [line for line in lines if line["what"] not in ("up", "ran")]
        return Counter((line["job"], round(line["fire"], 3)) for line in lines if line["what"] == "ran")

    def check(self, until: float) -> None:
        """Compare, for all instants before that: none lost, none doubled."""
        done = self.in_v3() + self.here
        doubled = {each for each, count in done.items() if count > 1}
        lost = self.expected(until).keys() - done.keys()
        assert not doubled
        assert not lost


def _v3_url(side: V3Side) -> str:
    return side.url.replace("postgresql://", "postgresql+psycopg2://")


def _text(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, ZoneInfo("Europe/Berlin")).strftime("%Y-%m-%d %H:%M:%S.%f")


@asynccontextmanager
async def v3_running(release: str, side: V3Side, application: Application) -> AsyncIterator[None]:
    """Run a process of v3 for as long as the block does."""
    lines = len(read_diary(application.diary))
    order = {"what": "run", "url": _v3_url(side), "diary": str(application.diary)}
    process = await asyncio.create_subprocess_exec(*command_of(order), env=environment_of(release))
    try:
        await eventually(lambda: len(read_diary(application.diary)) > lines)
        yield
        assert process.returncode is None
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def migrate(
    database: DatabaseUrl, folder: Path, *arguments: str
) -> tuple[asyncio.subprocess.Process, asyncio.Task[tuple[bytes, bytes]]]:
    """Start ``duetime migrate v3``."""
    (folder / "map.toml").write_text('"effects:note" = "note"\n')
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "duetime", "migrate", "v3", *arguments, "--json",
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, cwd=folder,
        env={**os.environ, "DUETIME_DATABASE_URL": past_the_pooler(database).text, "PYTHONPATH": str(APPLICATION)},
    )  # fmt: skip
    return process, asyncio.create_task(process.communicate())


async def finished(database: DatabaseUrl, folder: Path, *arguments: str) -> dict[str, Any]:
    """Run ``duetime migrate v3`` and return what it prints."""
    process, output = await migrate(database, folder, *arguments)
    said, problems = await output
    assert said, problems.decode()
    answer: dict[str, Any] = {**json.loads(said), "status": process.returncode}
    return answer


@pytest.mark.parametrize(("release", "kind"), [("3.11.3", "same"), ("3.6.3", "same"), ("3.10.4", "sqlite")])
async def test_no_fire_is_lost_or_doubled_on_the_way_to_duetime_and_back(
    release: str, kind: str, database: DatabaseUrl, connection: asyncpg.Connection, tmp_path: Path
) -> None:
    environment_of(release)  # before anything is due
    carry = ("--tasks", "live_tasks", "--map", "map.toml", "--batch", "5", "--wait", "60")
    async with v3_side(kind, past_the_pooler(database), tmp_path) as side:
        application = Application(tmp_path, float(int(time.time()) + 4))
        ask(release, "add", url=_v3_url(side), jobs=application.jobs())
        before = await side.rows()
        async with running(node(database, tasks(application.note))):
            async with v3_running(release, side, application):
                await eventually(lambda: len(application.in_v3()) > 10)

                process, output = await migrate(database, tmp_path, "cutover", "--from", side.url, *carry)
                some = "select count(*) from duetime.v3_migrated where state = 'done'"
                await eventually(lambda: _more_than(connection, some, 50))
                os.kill(process.pid, signal.SIGKILL)
                await output
                assert len(await side.rows()) > 50, "it was killed too late"

                answer = await finished(database, tmp_path, "cutover", "--from", side.url, *carry)
                assert answer["complete"], answer
                assert answer["status"] == 0
                assert await side.rows() == {}
                await eventually(lambda: application.here.total() > 30)
                application.check(time.time() - 2)
            both = application.in_v3(), application.here
            assert all(fires.total() > 5 for fires in both)

            answer = await finished(database, tmp_path, "rollback", "--from", side.url, "--wait", "60")
            assert answer["complete"], answer
            async with v3_running(release, side, application):
                ran = application.in_v3().total()
                await eventually(lambda: application.in_v3().total() > ran + 30)
                end = time.time() - 2
                await eventually(
                    lambda: application.expected(end).keys() <= (application.in_v3() + application.here).keys()
                )
                application.check(end)
            after = await side.rows()
            assert {f"later-{number}" for number in range(IDLE)} <= after.keys()
            assert all(after[name] == before[name] for name in after if name.startswith("later"))
            assert not await connection.fetchval(
                "select count(*) from duetime.schedules where next_fire_time is not null"
            )


async def _more_than(connection: asyncpg.Connection, query: str, number: int) -> bool:
    return int(await connection.fetchval(query)) > number


async def test_v3_goes_on_with_what_is_left_after_its_rows_have_gone(
    database: DatabaseUrl, connection: asyncpg.Connection, tmp_path: Path
) -> None:
    """v3 wakes for a row that is gone, finds nothing, and fires the others as before."""
    release = "3.11.3"
    environment_of(release)
    async with v3_side("same", past_the_pooler(database), tmp_path) as side:
        begin = float(int(time.time()) + 4)
        application = Application(tmp_path, begin)
        common = {"func": "effects:note", "trigger": "interval", "misfire_grace_time": 60}
        jobs = [
            {**common, "id": "goes", "args": ["goes"], "seconds": 4, "start_date": _text(begin + 6)},
            {**common, "id": "stays", "args": ["stays"], "seconds": 1, "start_date": _text(begin)},
        ]
        ask(release, "add", url=_v3_url(side), jobs=jobs)
        async with v3_running(release, side, application):
            await eventually(lambda: application.in_v3().total() > 0)
            answer = await finished(
                database, tmp_path, "cutover", "--from", side.url, "--tasks", "live_tasks", "--map", "map.toml", "--id",
                "goes",
            )  # fmt: skip
            assert answer["counts"] == {"carried": 1}
            before = [fire for fire in application.in_v3() if fire[0] == "goes"]  # while the command started, perhaps
            past = datetime.now(ZoneInfo("UTC")) + timedelta(seconds=8)
            await eventually(lambda: ("stays", round(past.timestamp()) * 1.0) in application.in_v3())
            assert [fire for fire in application.in_v3() if fire[0] == "goes"] == before
