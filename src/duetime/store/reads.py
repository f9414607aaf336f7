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
from .readable import readable
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


# The ids that a schedule ($4) has had, and until when: null for the one that it has.
_NAMES = """(
    select $4::text as of_id, null::timestamptz as until
    union all
    select former_id, renamed_at from {s}.former_ids where schedule_id = $4
) name"""

_RUN_COLUMNS = """id, job_id, attempt, schedule_id, {time: fire_time} as fire_time, task_id as task, node,
    {time: started_at} as started_at, {time: finished_at} as finished_at,
    extract(epoch from {time: started_at} - {time: due_at})::float8 as lateness,
    extract(epoch from {time: finished_at} - {time: started_at})::float8 as duration,
    outcome, error, {time: will_retry_at} as will_retry_at"""


class Reads:
    """The read queries of one store."""

    def __init__(self, store: PostgresDataStore) -> None:
        self._database = store.database
        self._schema = quoted(store.schema or "duetime")

    async def _rows(self, sql: str, *arguments: Any) -> Sequence[Row]:
        return await self._database.query(
            readable(sql).replace("{s}", self._schema), *arguments, deadline=self._database.deadline()
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
        owner: str | None = None,
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
              and ($9::text is null or s.metadata ->> 'duetime.owner' = $9)
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
            owner,
        )

    async def chosen(
        self,
        *,
        limit: int,
        ids: Sequence[str] | None = None,
        task: str | None = None,
        tag: str | None = None,
        state: str | None = None,
        owner: str | None = None,
        search: str | None = None,
    ) -> Sequence[Row]:
        """Which schedules does somebody mean, and in which state are they? Index: as for a page of schedules."""
        return await self._rows(
            """
            select s.id, case
                when s.broken_reason is not null then 'broken'
                when s.next_fire_time is null then 'finished'
                when s.paused then 'paused'
                else 'active' end as state
            from {s}.schedules s
            where ($2::text[] is null or s.id = any($2))
              and ($3::text is null or s.task_id = $3)
              and ($4::text is null or (s.tags <> '{}' and s.tags @> array[$4]))
              and ($5::text is null or $5 = case
                      when s.broken_reason is not null then 'broken'
                      when s.next_fire_time is null then 'finished'
                      when s.paused then 'paused'
                      else 'active' end)
              and ($6::text is null or s.metadata ->> 'duetime.owner' = $6)
              and ($7::text is null or position(lower($7) in lower(s.id)) > 0
                      or position(lower($7) in lower(s.task_id)) > 0)
            order by s.id
            limit $1
            """,
            limit,
            ids,
            task,
            tag,
            state,
            owner,
            search,
        )

    async def named(self, schedule_ids: Sequence[str]) -> Sequence[Row]:
        """Which of these schedules are there? Index: the primary key."""
        return await self._rows(
            f"""
            select {SCHEDULE_COLUMNS}, now() as now from {{s}}.schedules s where s.id = any($1::text[]) order by s.id
            """,
            list(schedule_ids),
        )

    async def alike(self, task: str, args: bytes, kwargs: bytes, first: datetime | None) -> Sequence[Row]:
        """Which schedules of a task have these arguments, or are due first at about the same time?

        Index: schedules_by_task. At most the first 10,000 of the task are looked at.
        """
        return await self._rows(
            f"""
            select {SCHEDULE_COLUMNS}, s.tags, now() as now
            from (select * from {{s}}.schedules where task_id = $1 order by id limit 10000) s
            where (s.args = $2 and s.kwargs = $3)
              or abs(extract(epoch from s.next_fire_time - $4::timestamptz)) < 1
            order by (s.args = $2 and s.kwargs = $3) desc, s.id
            limit 50
            """,
            task,
            args,
            kwargs,
            first,
        )

    async def fires(
        self,
        *,
        limit: int,
        before: tuple[datetime, str] | None = None,
        schedule_id: str | None = None,
        state: str | None = None,
        job_id: UUID | None = None,
        start: datetime | None = None,
        end: datetime | None = None,
        oldest_first: bool = False,
    ) -> Sequence[Row]:
        """What became of the latest fires, newest first? Index: the primary key, or fires_recent.

        A job's fire is looked for within its schedule: give both ids. So is a span of time, both ends included. The
        fires of a schedule are also those from before it was renamed.
        """
        fire_time, before_id = before or (None, None)
        if schedule_id is not None:
            direction = "asc" if oldest_first else "desc"
            return await self._rows(
                f"""
                select f.schedule_id, {{time: f.fire_time}} as fire_time, {{time: f.run_time}} as run_time,
                    f.task_id as task, f.state, f.reason, f.job_id, f.attempts, f.node,
                    {{time: f.created_at}} as created_at, {{time: f.finished_at}} as finished_at
                from {_NAMES} cross join lateral (
                    select * from {{s}}.fires each
                    where each.schedule_id = name.of_id and (name.until is null or each.created_at <= name.until)
                      and ($2::timestamptz is null or (each.fire_time, each.schedule_id) < ($2, $3::text))
                      and ($5::text is null or each.state = $5)
                      and ($6::uuid is null or each.job_id = $6)
                      and ($7::timestamptz is null or each.fire_time >= $7)
                      and ($8::timestamptz is null or each.fire_time <= $8)
                    order by each.fire_time {direction}
                    limit $1
                ) f
                order by f.fire_time {direction}, f.schedule_id {direction}
                limit $1
                """,
                limit,
                fire_time,
                before_id,
                schedule_id,
                state,
                job_id,
                start,
                end,
            )
        return await self._rows(
            """
            select schedule_id, {time: fire_time} as fire_time, {time: run_time} as run_time, task_id as task, state,
                reason, job_id, attempts, node, {time: created_at} as created_at, {time: finished_at} as finished_at
            from {s}.fires
            where ($2::timestamptz is null or (fire_time, schedule_id) < ($2, $3::text))
              and ($4::text is null or state = $4)
            order by fires.fire_time desc, schedule_id desc
            limit $1
            """,
            limit,
            fire_time,
            before_id,
            state,
        )

    async def runs_of(self, job_id: UUID) -> Sequence[Row]:
        """How did the attempts of a job end, in order? Index: runs_by_job. At most the last hundred."""
        found = await self._rows(
            f"select {_RUN_COLUMNS} from {{s}}.runs where job_id = $1 order by attempt desc, id desc limit 100", job_id
        )
        return list(reversed(found))

    async def changes(self, schedule_id: str) -> Sequence[Row]:
        """What was done to a schedule, in order? Index: schedule_changes_by_schedule. At most the last thousand."""
        found = await self._rows(
            f"""
            select c.id, {{time: c.at}} as at, c.change, c.detail::text as detail
            from {_NAMES} cross join lateral (
                select * from {{s}}.schedule_changes each
                where each.schedule_id = name.of_id and (name.until is null or each.at <= name.until)
                order by each.id desc limit $1
            ) c
            order by c.id desc
            limit $1
            """.replace("$4", "$2"),
            1000,
            schedule_id,
        )
        return list(reversed(found))

    async def fired(self, schedule_id: str, times: Sequence[datetime]) -> set[datetime]:
        """Which of these instants of a schedule have had a job, or had it before their rows were deleted?

        Index: the primary key.
        """
        if not times:
            return set()
        found = await self._rows(
            f"""
            select wanted.at from unnest($1::timestamptz[]) as wanted (at)
            where exists (
                select from {_NAMES} join {{s}}.fires f on f.schedule_id = name.of_id and f.fire_time = wanted.at
                where (name.until is null or f.created_at <= name.until)
                  and (name.until is not null or f.state not in ('skipped', 'missed', 'coalesced'))
            ) or exists (
                select from {{s}}.history_floors h where h.schedule_id = $2 and wanted.at < h.before
            )
            """.replace("$4", "$2"),
            list(times),
            schedule_id,
        )
        return {row["at"] for row in found}

    async def floor(self, schedule_id: str) -> datetime | None:
        """Up to when has the ledger of a schedule been deleted? Index: the primary key."""
        found = await self._rows("select before from {s}.history_floors where schedule_id = $1", schedule_id)
        return found[0]["before"] if found else None

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
        """How did the latest attempts end, newest first? Index: the primary key, or that of schedule or task.

        Those of a schedule are also those from before it was renamed.
        """
        if schedule_id is not None and run_id is None:
            return await self._rows(
                f"""
                select {_RUN_COLUMNS}
                from {_NAMES} cross join lateral (
                    select * from {{s}}.runs each
                    where each.schedule_id = name.of_id and (name.until is null or each.finished_at <= name.until)
                      and ($2::bigint is null or each.id < $2)
                      and ($5::text is null or each.task_id = $5)
                      and ($6::text is null or each.outcome = $6)
                      and $3::bigint is null
                    order by each.id desc
                    limit $1
                ) run
                order by run.id desc
                limit $1
                """,
                limit,
                before,
                run_id,
                schedule_id,
                task,
                outcome,
            )
        return await self._rows(
            f"""
            select {_RUN_COLUMNS}
            from {{s}}.runs
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
