"""Named read queries: one function per question, always bounded, pages by key."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from ..errors import InvalidCursor
from .postgres import PostgresDataStore
from .schema import quoted
from .statements import JOB_COLUMNS, SCHEDULE_COLUMNS

MAX_LIMIT = 200

NEVER_STORED = re.compile("[\x00\ud800-\udfff]")
"""Characters that PostgreSQL's text cannot hold; asking for them is an error, not an empty answer."""

Row = Mapping[str, Any]


def encode_cursor(*key: Any) -> str:
    """Return the key of a page's last row as an opaque text."""
    plain = [part.isoformat() if isinstance(part, datetime) else str(part) for part in key]
    return base64.urlsafe_b64encode(json.dumps(plain).encode()).decode().rstrip("=")


def decode_cursor(cursor: str | None, *kinds: type) -> list[Any] | None:
    """Return the key that :func:`encode_cursor` was given, or None for no cursor.

    :raises InvalidCursor: if the text is not a cursor of this kind of list
    """
    if cursor is None:
        return None
    try:
        parts = json.loads(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
        return [_part(part, kind) for part, kind in zip(parts, kinds, strict=True)]
    except (ValueError, TypeError, AttributeError, RecursionError, OverflowError):
        raise InvalidCursor(
            f"expected `after` to be the `next` of an earlier page of this list, got {cursor[:80]!r}. Leave it out to "
            f"begin with the first page."
        ) from None


def _part(part: Any, kind: type) -> Any:
    """Return one part of a key, as a value that PostgreSQL takes.

    :raises ValueError: if it is none of that kind
    """
    if kind is datetime:
        moment = datetime.fromisoformat(part)
        if moment.tzinfo is None:
            raise ValueError("no offset")
        return moment.astimezone(UTC)
    value = kind(part)
    if kind is str and NEVER_STORED.search(value):
        raise ValueError("not an id")
    if kind is int and not 0 <= value < 2**63:
        raise ValueError("not a bigint")
    return value


class Reads:
    """The read queries of one store."""

    def __init__(self, store: PostgresDataStore) -> None:
        self._database = store.database
        self._schema = quoted(store.schema or "duetime")

    async def _rows(self, sql: str, *arguments: Any) -> Sequence[Row]:
        return await self._database.query(
            sql.replace("{s}", self._schema), *arguments, deadline=self._database.deadline()
        )

    async def schedule(self, schedule_id: str) -> Row | None:
        """Which schedule has this id?"""
        found = await self._rows(
            f"select {SCHEDULE_COLUMNS}, s.tags, now() as now from {{s}}.schedules s where s.id = $1", schedule_id
        )
        return found[0] if found else None

    async def schedules(
        self,
        *,
        limit: int,
        after: str | None = None,
        task: str | None = None,
        tag: str | None = None,
        state: str | None = None,
        engine: str | None = None,
        due_before: datetime | None = None,
        search: str | None = None,
    ) -> Sequence[Row]:
        """Which schedules are there, by id? Index: the primary key, and those of task and tag."""
        return await self._rows(
            f"""
            select {SCHEDULE_COLUMNS}, s.tags, now() as now
            from {{s}}.schedules s
            where ($2::text is null or s.id > $2)
              and ($3::text is null or s.task_id = $3)
              and ($4::text is null or (s.tags <> '{{}}' and s.tags @> array[$4]))
              and ($5::text is null or $5 = case
                      when s.broken_reason is not null then 'broken'
                      when s.next_fire_time is null then 'finished'
                      when s.paused then 'paused'
                      else 'active' end)
              and ($6::text is null or s.engine = $6)
              and ($7::timestamptz is null or s.next_fire_time < $7)
              and ($8::text is null or position(lower($8) in lower(s.id)) > 0
                      or position(lower($8) in lower(s.task_id)) > 0)
            order by s.id
            limit $1
            """,
            limit,
            after,
            task,
            tag,
            state,
            engine,
            due_before,
            search,
        )

    async def fires(
        self,
        *,
        limit: int,
        before: tuple[datetime, str] | None = None,
        schedule_id: str | None = None,
        state: str | None = None,
        job_id: UUID | None = None,
    ) -> Sequence[Row]:
        """What became of the latest fires, newest first? Index: the primary key, or fires_recent.

        A job's fire is looked for within its schedule: give both ids.
        """
        fire_time, before_id = before or (None, None)
        return await self._rows(
            """
            select schedule_id, fire_time, run_time, task_id as task, state, reason, job_id, attempts, node, created_at,
                finished_at
            from {s}.fires
            where ($2::timestamptz is null or (fire_time, schedule_id) < ($2, $3::text))
              and ($4::text is null or schedule_id = $4)
              and ($5::text is null or state = $5)
              and ($6::uuid is null or job_id = $6)
            order by fire_time desc, schedule_id desc
            limit $1
            """,
            limit,
            fire_time,
            before_id,
            schedule_id,
            state,
            job_id,
        )

    async def runs(
        self,
        *,
        limit: int,
        before: int | None = None,
        run_id: int | None = None,
        schedule_id: str | None = None,
        task: str | None = None,
        outcome: str | None = None,
    ) -> Sequence[Row]:
        """How did the latest attempts end, newest first? Index: the primary key, or that of schedule or task."""
        return await self._rows(
            """
            select id, job_id, attempt, schedule_id, fire_time, task_id as task, node, started_at, finished_at,
                extract(epoch from started_at - due_at)::float8 as lateness,
                extract(epoch from finished_at - started_at)::float8 as duration,
                outcome, error, will_retry_at
            from {s}.runs
            where ($2::bigint is null or id < $2)
              and ($3::bigint is null or id = $3)
              and ($4::text is null or schedule_id = $4)
              and ($5::text is null or task_id = $5)
              and ($6::text is null or outcome = $6)
            order by id desc
            limit $1
            """,
            limit,
            before,
            run_id,
            schedule_id,
            task,
            outcome,
        )

    async def jobs(
        self, *, limit: int, after: tuple[datetime, UUID] | None = None, job_id: UUID | None = None
    ) -> Sequence[Row]:
        """Which jobs are queued or running, by the time they are due?"""
        run_at, after_id = after or (None, None)
        return await self._rows(
            f"""
            select {JOB_COLUMNS}, j.acquired_until > now() as running
            from {{s}}.jobs j
            where ($2::timestamptz is null or (j.run_at, j.id) > ($2, $3::uuid))
              and ($4::uuid is null or j.id = $4)
            order by j.run_at, j.id
            limit $1
            """,
            limit,
            run_at,
            after_id,
            job_id,
        )

    async def ping(self) -> None:
        """Does the database answer?"""
        await self._rows("select 1")
