"""v3's table with rows of real releases in it, for the commands."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from pathlib import Path

from duetime.v3.model import V3Row

from .stored import stored_rows

CREATE = (
    "CREATE TABLE apscheduler_jobs (id VARCHAR(191) NOT NULL, next_run_time FLOAT, job_state BLOB NOT NULL, "
    "PRIMARY KEY (id))"
)


def sqlite_table(path: Path, rows: Iterable[V3Row]) -> str:
    """Make a table of v3's in a new SQLite file and return its URL."""
    with sqlite3.connect(path) as connection:
        connection.execute(CREATE)
        connection.executemany(
            "INSERT INTO apscheduler_jobs VALUES (?, ?, ?)",
            [(row.id, row.next_run_time, row.job_state) for row in rows],
        )
    connection.close()
    return f"sqlite:///{path}"


def some_rows(*ids: str, release: str = "3.11.3") -> list[V3Row]:
    """Return rows of a release by their ids, those of the newest Python."""
    found = {stored.row.id: stored.row for stored in stored_rows(release)}
    return [found[each] for each in ids]


APPLICATION = '''
from duetime import task

def remind(*args, **kwargs):
    """The function of v3's rows."""

remind.__module__, remind.__qualname__ = "shop", "remind"
task(remind)

@task(name="made-anew")
def renamed(to=None):
    """Was shop:renamed_since."""
'''
