"""The read queries: pages that are complete and without doubles, filters, and cursors that nobody can abuse."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from duetime.errors import InvalidCursor
from duetime.settings import DatabaseUrl
from duetime.store.reads import Reads, decode_cursor, encode_cursor

from .parts import a_store

NOON = datetime(2026, 6, 1, 12, tzinfo=UTC)
KINDS: list[tuple[type, ...]] = [(str,), (int,), (datetime, str), (datetime, UUID)]
"""What the cursors of the lists of schedules, runs, fires and jobs are made of."""


@pytest.fixture
async def reads(database: DatabaseUrl) -> AsyncIterator[Reads]:
    async with a_store(database) as store:
        yield Reads(store)


async def fill(connection: asyncpg.Connection, rows: int = 250) -> None:
    """Store as many schedules, fires, runs and jobs; several of the latter share their times."""
    await connection.execute(
        f"""
        insert into duetime.schedules (
            id, task_id, trigger, args, kwargs, coalesce, job_executor, tags, engine, next_fire_time, paused,
            broken_reason, revision
        )
        select 's' || n, 'task-' || n % 5, '', '', '', 'latest', 'auto',
            case when n % 10 = 0 then array['tag', 'tag-' || n] else '{{}}' end, 'apscheduler',
            case when n % 4 > 0 then timestamptz '2026-06-01 12:00Z' + n * interval '1 minute' end, n % 4 = 1,
            case when n % 4 = 2 then 'x' end, gen_random_uuid()
        from generate_series(1, {rows}) n;

        insert into duetime.fires (schedule_id, fire_time, task_id, state)
        select 's' || n % 50, timestamptz '2026-06-01 12:00Z' + n / 50 * interval '1 minute', 'task-' || n % 5,
            (array['pending', 'succeeded', 'failed', 'skipped'])[n % 4 + 1]
        from generate_series(1, {rows}) n;

        insert into duetime.runs (job_id, attempt, schedule_id, task_id, finished_at, outcome)
        select gen_random_uuid(), 1, case when n % 3 > 0 then 's' || n % 50 end, 'task-' || n % 5, now(),
            (array['success', 'error'])[n % 2 + 1]
        from generate_series(1, {rows}) n;

        insert into duetime.jobs (id, task_id, args, kwargs, executor, run_at, acquired_by, acquired_until)
        select gen_random_uuid(), 'task-' || n % 5, '', '', 'auto',
            timestamptz '2026-06-01 12:00Z' + n / 10 * interval '1 second', case when n % 7 = 0 then 'one' end,
            case when n % 7 = 0 then now() + interval '1 minute' end
        from generate_series(1, {rows}) n;
        """  # noqa: S608 - a number
    )


async def pages_of_schedules(reads: Reads, limit: int, **filters: Any) -> list[str]:
    found: list[str] = []
    while page := await reads.schedules(limit=limit, after=found[-1] if found else None, **filters):
        assert len(page) <= limit
        found += [row["id"] for row in page]
    return found


# -- pages -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [1, 7, 100, 249, 250, 251])
async def test_pages_of_schedules_are_complete_and_without_doubles(
    reads: Reads, connection: asyncpg.Connection, limit: int
) -> None:
    rows = 250 if limit > 1 else 10
    await fill(connection, rows)
    found = await pages_of_schedules(reads, limit)
    expected = await connection.fetch("select id from duetime.schedules order by id")
    assert found == [row["id"] for row in expected]


async def test_pages_of_fires_are_complete_and_without_doubles_newest_first(
    reads: Reads, connection: asyncpg.Connection
) -> None:
    await fill(connection)
    found: list[tuple[datetime, str]] = []
    while page := await reads.fires(limit=7, before=found[-1] if found else None):
        found += [(row["fire_time"], row["schedule_id"]) for row in page]
    assert len(found) == len(set(found)) == 250
    assert found == sorted(found, reverse=True)


async def test_pages_of_runs_are_complete_and_without_doubles_newest_first(
    reads: Reads, connection: asyncpg.Connection
) -> None:
    await fill(connection)
    found: list[int] = []
    while page := await reads.runs(limit=7, before=found[-1] if found else None):
        found += [row["id"] for row in page]
    assert found == list(range(250, 0, -1))


async def test_pages_of_jobs_are_complete_and_without_doubles_by_the_time_they_are_due(
    reads: Reads, connection: asyncpg.Connection
) -> None:
    await fill(connection)
    found: list[tuple[datetime, UUID]] = []
    while page := await reads.jobs(limit=7, after=found[-1] if found else None):
        found += [(row["run_at"], row["id"]) for row in page]
    assert len(found) == len(set(found)) == 250
    assert found == sorted(found)


async def test_what_is_added_and_removed_between_two_pages_neither_doubles_nor_drops_the_others(
    reads: Reads, connection: asyncpg.Connection
) -> None:
    await fill(connection, 100)
    there = {row["id"] for row in await connection.fetch("select id from duetime.schedules")}
    first = [row["id"] for row in await reads.schedules(limit=50)]
    await connection.execute("delete from duetime.schedules where id = any($1)", [first[0], first[-1]])
    await connection.execute(
        "insert into duetime.schedules (id, task_id, trigger, args, kwargs, coalesce, job_executor, revision)"
        " values ('a', 't', '', '', '', 'latest', 'auto', gen_random_uuid())"
    )
    rest = [row["id"] for row in await reads.schedules(limit=100, after=first[-1])]
    assert set(first) | set(rest) == there
    assert not set(first) & set(rest)


# -- filters ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("filters", "condition"),
    [
        ({"task": "task-1"}, "task_id = 'task-1'"),
        ({"task": "none"}, "false"),
        ({"tag": "tag"}, "'tag' = any(tags)"),
        ({"tag": "tag-30"}, "id = 's30'"),
        ({"state": "broken"}, "broken_reason is not null"),
        ({"state": "finished"}, "broken_reason is null and next_fire_time is null"),
        ({"state": "paused"}, "broken_reason is null and next_fire_time is not null and paused"),
        ({"state": "active"}, "broken_reason is null and next_fire_time is not null and not paused"),
        ({"engine": "apscheduler"}, "true"),
        ({"engine": "dbos"}, "false"),
        ({"due_before": NOON + timedelta(minutes=100)}, "next_fire_time < timestamptz '2026-06-01 13:40Z'"),
        ({"search": "S1"}, "position('s1' in id) > 0"),
        ({"search": "TASK-3"}, "task_id = 'task-3'"),
        ({"search": "%"}, "false"),
        ({"task": "task-0", "state": "active", "tag": "tag"}, "task_id = 'task-0' and n_active and 'tag' = any(tags)"),
    ],
)
async def test_a_filter_leaves_what_fits_and_nothing_else(
    reads: Reads, connection: asyncpg.Connection, filters: dict[str, Any], condition: str
) -> None:
    await fill(connection)
    condition = condition.replace("n_active", "broken_reason is null and next_fire_time is not null and not paused")
    expected = await connection.fetch(f"select id from duetime.schedules where {condition} order by id")  # noqa: S608
    assert await pages_of_schedules(reads, 20, **filters) == [row["id"] for row in expected]


async def test_fires_runs_and_jobs_have_filters_too(reads: Reads, connection: asyncpg.Connection) -> None:
    await fill(connection)
    fires = await reads.fires(limit=200, schedule_id="s3", state="skipped")
    assert {(row["schedule_id"], row["state"]) for row in fires} == {("s3", "skipped")}
    runs = await reads.runs(limit=200, schedule_id="s1", task="task-1", outcome="error")
    assert {(row["schedule_id"], row["task"], row["outcome"]) for row in runs} == {("s1", "task-1", "error")}
    assert [row["id"] for row in await reads.runs(limit=1, run_id=17)] == [17]
    assert await reads.runs(limit=1, run_id=2**62) == []
    [job] = await reads.jobs(limit=1)
    assert [row["id"] for row in await reads.jobs(limit=9, job_id=job["id"])] == [job["id"]]
    states = {row["running"] for row in await reads.jobs(limit=200)}
    assert states <= {True, False, None}


async def test_one_schedule_is_found_by_its_id(reads: Reads, connection: asyncpg.Connection) -> None:
    await fill(connection, 3)
    row = await reads.schedule("s2")
    assert row is not None
    assert row["id"] == "s2"
    assert await reads.schedule("none") is None


@pytest.mark.parametrize("text", ["x" * 1_000_000, "'; drop table x --", "\\", "%", "ü\n"])
async def test_no_text_of_a_request_makes_a_read_fail(reads: Reads, text: str) -> None:
    assert await reads.schedule(text) is None
    requests: list[dict[str, Any]] = [{"task": text}, {"tag": text}, {"search": text}, {"after": text, "task": "none"}]
    for filters in requests:
        assert list(await reads.schedules(limit=1, **filters)) == []
    assert list(await reads.fires(limit=1, schedule_id=text)) == []
    assert list(await reads.runs(limit=1, schedule_id=text)) == []
    assert list(await reads.runs(limit=1, task=text)) == []


# -- cursors ---------------------------------------------------------------------------------------------------------


def test_a_cursor_gives_back_what_it_was_made_of() -> None:
    job = uuid4()
    assert decode_cursor(None, str) is None
    assert decode_cursor(encode_cursor("s ü/+"), str) == ["s ü/+"]
    assert decode_cursor(encode_cursor(17), int) == [17]
    precise = NOON + timedelta(microseconds=1)
    assert decode_cursor(encode_cursor(precise, "s"), datetime, str) == [precise, "s"]
    assert decode_cursor(encode_cursor(precise, job), datetime, UUID) == [precise, job]


@given(st.text(min_size=1, max_size=500).filter(str.isprintable))
def test_any_id_survives_its_cursor(schedule_id: str) -> None:
    assert decode_cursor(encode_cursor(schedule_id), str) == [schedule_id]


def encoded(value: Any) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).decode()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.datetimes().map(str),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


@given(kinds=st.sampled_from(KINDS), cursor=st.text() | st.binary().map(lambda data: data.decode("latin-1")))
@example(kinds=(str,), cursor="")
@example(kinds=(str,), cursor="=")
@example(kinds=(int,), cursor="é")
def test_a_text_that_is_no_cursor_is_refused_and_nothing_else(kinds: tuple[type, ...], cursor: str) -> None:
    accepted_or_refused(kinds, cursor)


@given(kinds=st.sampled_from(KINDS), value=JSON | st.lists(JSON, min_size=1, max_size=2))
@example(kinds=(int,), value=[1e999])
@example(kinds=(int,), value=[2**63])
@example(kinds=(int,), value=[-1])
@example(kinds=(int,), value=["1" * 5000])
@example(kinds=(str,), value=["\x00"])
@example(kinds=(str,), value=["\ud800"])
@example(kinds=(datetime, str), value=["2026-01-01T00:00:00", "s"])
@example(kinds=(datetime, str), value=["0001-01-01T00:00:00+14:00", "s"])
@example(kinds=(datetime, str), value=["9999-12-31T23:59:59-14:00", "s"])
@example(kinds=(datetime, UUID), value=["2026-01-01T00:00:00Z", {}])
@example(kinds=(datetime, UUID), value={"2026-01-01T00:00:00Z": 1, "b": 2})
def test_a_cursor_of_another_kind_is_refused_and_nothing_else(kinds: tuple[type, ...], value: Any) -> None:
    accepted_or_refused(kinds, encoded(value))


def accepted_or_refused(kinds: tuple[type, ...], cursor: str) -> None:
    try:
        key = decode_cursor(cursor, *kinds)
    except InvalidCursor:
        return
    assert key is not None
    assert [type(part) for part in key] == list(kinds)
    for part in key:
        assert_storable(part)


def assert_storable(part: Any) -> None:
    """Check that PostgreSQL takes a part of a key as what it is compared with."""
    if isinstance(part, int):
        assert -(2**63) <= part < 2**63
    elif isinstance(part, str):
        assert "\x00" not in part
        part.encode()
    elif isinstance(part, datetime):
        assert part.tzinfo is not None
        part.astimezone(UTC)


@pytest.mark.parametrize("depth", [1_000, 100_000])
def test_a_cursor_that_is_nested_deeply_is_refused(depth: int) -> None:
    nested = base64.urlsafe_b64encode(b"[" * depth + b"]" * depth).decode()
    with pytest.raises(InvalidCursor):
        decode_cursor(nested, str)
