"""Runs nodes that are killed before or after one of their statements; started by a test as a process of its own.

Reads one order a line, as JSON, and forks a node for each:

``address``    the database
``statement``  name of the statement to die at, or null to live until the work is done
``occurrence`` which of them, 1 for the first since the node has begun to claim schedules
``when``       ``before`` or ``after``
``log``        file that takes the names of the statements, in order

Answers with one line each: the exit status, negative for a signal.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import asyncpg
from apscheduler import current_job

from duetime.broker import PostgresEventBroker
from duetime.options import OnCrash, TaskOptions
from duetime.scheduler import build_scheduler
from duetime.settings import DatabaseUrl, Settings
from duetime.store.connections import DirectConnections
from duetime.tasks import TaskRegistry

WORK_LEFT = """
    select exists (select from duetime.schedules where next_fire_time <= now()) or exists (select from duetime.jobs)
"""


class Failpoint:
    """Kills this process at a statement, and writes down those that came before."""

    def __init__(self, order: dict[str, Any]) -> None:
        self._order = order
        self._seen: Counter[str] = Counter()
        self._log = Path(order["log"]).open("a", encoding="utf-8")  # noqa: SIM115 - open for as long as the process
        self._real = asyncpg.Connection._execute

    def install(self) -> None:
        failpoint = self

        async def execute(self: asyncpg.Connection, query: str, *args: Any, **options: Any) -> Any:
            name = failpoint.pass_by(query)
            outcome = await failpoint._real(self, query, *args, **options)
            failpoint.reach(name, "after")
            return outcome

        asyncpg.Connection._execute = execute

    def pass_by(self, query: str) -> str | None:
        match = re.match(r"\s*/\* duetime: (\w+) \*/", query)
        if match is None or not (self._seen or match[1] == "acquire_schedules"):
            return None
        name = match[1]
        self._seen[name] += 1
        print(name, file=self._log, flush=True)
        self.reach(name, "before")
        return name

    def reach(self, name: str | None, when: str) -> None:
        order = self._order
        if (name, when) == (order["statement"], order["when"]) and self._seen[name or ""] == order["occurrence"]:
            os.kill(os.getpid(), signal.SIGKILL)


async def live(database: DatabaseUrl) -> None:
    """Run a node until there is nothing left to do."""
    effects = await asyncpg.connect(**database.asyncpg_arguments())
    looking = await asyncpg.connect(**database.asyncpg_arguments())
    lock = asyncio.Lock()

    async def effect() -> None:
        async with lock:
            await effects.fetch(
                "/* duetime: effect */ insert into effects (job_id, schedule_id) values ($1, $2)",
                current_job.get().id,
                current_job.get().schedule_id,
            )

    registry = TaskRegistry()
    for on_crash in OnCrash:
        registry.add(effect, name=str(on_crash), options=TaskOptions(on_crash=on_crash))
    scheduler = build_scheduler(
        Settings(database_url=database.text),
        DirectConnections(database),
        PostgresEventBroker(database.text),
        registry,
    )
    async with scheduler:
        await scheduler.start_in_background()
        while await looking.fetchval(WORK_LEFT):  # noqa: ASYNC110 - the database is what is waited for
            await asyncio.sleep(0.01)
        os._exit(0)


def main() -> None:
    for line in sys.stdin:
        order = json.loads(line)
        child = os.fork()
        if child == 0:
            Failpoint(order).install()
            asyncio.run(live(DatabaseUrl.parse(order["address"])))
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)  # noqa: T201 - the test reads it


main()
