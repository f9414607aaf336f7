"""Carrying rows over from MariaDB, and back."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from duetime.settings import DatabaseUrl
from duetime.v3.cutover import cutover
from duetime.v3.model import V3Row
from duetime.v3.outcomes import Result
from duetime.v3.rollback import rollback

from .moving import Crash, a_row, carrier, crashing, preparing
from .test_sources import MariaDB
from .test_sources import mariadb as mariadb  # the fixture


class _Jobs:
    """v3's table in MariaDB, to look at and to write into."""

    def __init__(self, server: MariaDB) -> None:
        self._server = server

    def run(self, sql: str, rows: list[tuple[Any, ...]] | None = None) -> list[Any]:
        with self._server.connect(database="jobs", autocommit=True) as connection, connection.cursor() as cursor:
            if rows is None:
                cursor.execute(sql)
            else:
                cursor.executemany(sql, rows)
            return list(cursor.fetchall())

    def put(self, *rows: V3Row) -> None:
        self.run(
            "insert into apscheduler_jobs values (%s, %s, %s)",
            [(row.id, row.next_run_time, row.job_state) for row in rows],
        )

    def rows(self) -> dict[str, V3Row]:
        return {row[0]: V3Row(row[0], row[1], bytes(row[2])) for row in self.run("select * from apscheduler_jobs")}


@pytest.mark.debian("mariadb-server")
def test_rows_of_mariadb_are_carried_over_and_go_back(
    mariadb: MariaDB, database: DatabaseUrl, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = _Jobs(mariadb)
    jobs.run("delete from apscheduler_jobs")
    due, rows = a_row("due", -1), [a_row("a", 3600.123457), a_row("paused", None), a_row("ü'\"; --")]

    async def carry() -> Result:
        async with carrier(database) as scheduler:
            return await cutover(mariadb.url, scheduler, preparing(scheduler), wait=0)

    async def go_back() -> Result:
        async with carrier(database) as scheduler:
            return await rollback(mariadb.url, scheduler, wait=0)

    jobs.put(due, *rows)
    assert asyncio.run(carry()).counts == {"due": 1, "carried": 3}
    assert jobs.rows() == {"due": due}
    assert asyncio.run(go_back()).counts == {"returned": 3}
    before = {row.id: row for row in [due, *rows]}
    assert jobs.rows() == before

    jobs.run("delete from apscheduler_jobs where id = 'due'")
    del before["due"]
    at = 0
    while True:
        at += 1
        with crashing(monkeypatch, at) as crashes:
            for step in (carry, go_back):
                try:
                    asyncio.run(step())
                except Crash:
                    break
        assert asyncio.run(go_back()).is_complete, at
        assert jobs.rows() == before, at
        if crashes.seen < at:
            break
    assert at > 20
