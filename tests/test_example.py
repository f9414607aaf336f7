"""The example application works, under a real server, on the embedded PostgreSQL and on that of DATABASE_URL."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import asyncpg
import httpx
import pytest

from duetime.database_url import DatabaseUrl
from duetime.local import LocalDatabase

from .documents import ROOT, NewServer, Walkthrough, blocks, read_curl
from .end_to_end.conftest import new_server as new_server  # a fixture, wanted here too
from .end_to_end.conftest import run_sql
from .end_to_end.server import Server
from .end_to_end.waiting import until
from .waiting import eventually

EXAMPLES = ROOT / "examples"
COMMAND = ("uvicorn", "--app-dir", str(EXAMPLES), "reminders.app:app", "--port", "0")
PAST, FAR = "2026-01-01T09:00:00+01:00", "2999-01-01T09:00:00+01:00"


@contextmanager
def joined(data_dir: Path) -> Iterator[DatabaseUrl]:
    """The embedded PostgreSQL that the application has started, for a look from outside."""
    local = LocalDatabase(data_dir)
    try:
        yield asyncio.run(local.start())
    finally:
        asyncio.run(local.stop())


@pytest.mark.parametrize("where", ["embedded", "DATABASE_URL"])
def test_a_reminder_is_sent_a_digest_runs_and_the_application_keeps_its_tables(
    where: str, new_server: NewServer, tmp_path: Path, empty_database: DatabaseUrl
) -> None:
    settings = {"DUETIME_DATA_DIR": str(tmp_path / "data")}
    if where == "DATABASE_URL":
        settings = {"DATABASE_URL": empty_database.text}
    app = new_server(*COMMAND, **settings)
    app.start()
    if where == "embedded":
        with joined(tmp_path / "data") as database:
            check(app, database)
    else:
        check(app, empty_database)


def check(app: Server, database: DatabaseUrl) -> None:
    reminder = app.post("/reminders", {"title": "Call Ann", "at": PAST})
    assert reminder.status_code == 201, reminder.text
    later = app.post("/reminders", {"title": "Call Bob", "at": FAR}).json()["id"]
    sent = until(
        lambda: run_sql(database, "select sent_at from public.reminders where id = $1", reminder.json()["id"])[0][0],
        "the reminder to be marked as sent",
    )
    assert app.read(f"/reminders/{later}")["sent_at"] is None
    assert app.read(f"/scheduler/schedules/reminder-{later}")["state"] == "active"

    assert app.post("/scheduler/schedules/digest/run").status_code == 202
    digests = until(
        lambda: app.everything("/scheduler/runs", task="send_digest", outcome="success"), "the digest to have run"
    )
    assert len(digests) == 1

    columns = run_sql(
        database,
        "select column_name from information_schema.columns where table_schema = 'public' and table_name = 'tasks' "
        "order by ordinal_position",
    )
    assert [row[0] for row in columns] == ["id", "title", "done"]
    assert [tuple(row) for row in run_sql(database, "select title, done from public.tasks order by id")] == [
        ("Call Ann", False),
        ("Call Bob", False),
    ]
    ours = run_sql(database, "select id from duetime.tasks order by id")
    assert [row[0] for row in ours] == ["send_digest", "send_reminder"]

    app.stop()
    app.start()
    assert [each["id"] for each in app.everything("/scheduler/schedules", task="send_digest")] == ["digest"]
    again = run_sql(database, "select sent_at from public.reminders where sent_at is not null")
    assert [row[0] for row in again] == [sent]


AT_COMMIT = """
    create function wait_at_commit() returns trigger language plpgsql as $$
    begin
        perform pg_advisory_lock(7);
        return null;
    end $$;
    create constraint trigger waits after insert on public.tasks deferrable initially deferred
    for each row execute function wait_at_commit();
"""


async def killed_before_its_commit(app: Server, database: DatabaseUrl) -> None:
    """Kill the application when a request of it has written everything and is about to commit."""
    connection = await asyncpg.connect(**database.asyncpg_arguments())
    try:
        await connection.execute(AT_COMMIT)
        await connection.execute("select pg_advisory_lock(7)")
        request = asyncio.create_task(asyncio.to_thread(app.post, "/reminders", {"title": "Call Ann", "at": FAR}))
        await eventually(lambda: connection.fetchval("select count(*) from pg_locks where not granted"))
        app.kill()
        # Without its client's word the server would go on with the commit.
        await connection.execute("select pg_terminate_backend(pid) from pg_locks where not granted")
        await asyncio.wait([request])
        assert isinstance(request.exception(), httpx.TransportError)
    finally:
        await connection.close()


def test_a_reminder_that_is_not_committed_has_no_schedule(new_server: NewServer, empty_database: DatabaseUrl) -> None:
    app = new_server(*COMMAND, DATABASE_URL=empty_database.text)
    app.start()
    asyncio.run(killed_before_its_commit(app, empty_database))
    assert run_sql(empty_database, "select id from public.tasks union all select id from public.reminders") == []
    assert [row[0] for row in run_sql(empty_database, "select id from duetime.schedules")] == ["digest"]


def test_the_readme_of_the_example_does_what_it_says(new_server: NewServer, tmp_path: Path) -> None:
    document = EXAMPLES / "reminders" / "README.md"
    walkthrough = Walkthrough(document, new_server, tmp_path, read_curl)
    walkthrough.run()
    assert walkthrough.answered == len([block for block in blocks(document) if block.kind == "json"])
