"""The statements on ``duetime.v3_migrated``: what was carried over, how far it has come, and what it takes to go back.

They run in a transaction of the caller's. ``{s}`` is the schema and ``{t}`` v3's table, both quoted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

import asyncpg

from ..store.schema import quoted
from .model import V3Row

_NEW = """
    with planned as (
        select * from unnest($1::text[], $2::float8[], $3::bytea[], $4::text[], $5::boolean[], $6::timestamptz[])
            as p (id, next_run_time, job_state, schedule_id, paused, first_fire_time)
    ),
    {gone}
    put as (
        insert into {s}.v3_migrated as m (
            source, id, next_run_time, job_state, schedule_id, state, revision, paused, first_fire_time, batch, node
        )
        select $7, p.id, p.next_run_time, p.job_state, p.schedule_id, '{state}', s.revision, p.paused,
            p.first_fire_time, $8, $9
        from planned p
        join {s}.schedules s on s.id = p.schedule_id
        {join}
        on conflict (source, id) do update
        set next_run_time = excluded.next_run_time, job_state = excluded.job_state,
            schedule_id = excluded.schedule_id, state = excluded.state, revision = excluded.revision,
            paused = excluded.paused, first_fire_time = excluded.first_fire_time, in_flight = '{}',
            returned_next_run_time = null, returned_job_state = null, batch = excluded.batch, node = excluded.node,
            migrated_at = now(), updated_at = now()
        where m.state in ('done', 'returned', 'left')
        returning m.id
    )
    select id from put
"""

_TAKE = _NEW.replace(
    "{gone}",
    """
    -- In the bytes that were planned, and not in v3's hands: $10 seconds before it is due; null: v3 is stopped.
    gone as (
        delete from {t} t using planned p
        where t.id = p.id and t.next_run_time is not distinct from p.next_run_time and t.job_state = p.job_state
          and ($10::float8 is null or t.next_run_time is null
               or t.next_run_time > extract(epoch from clock_timestamp())::float8 + $10)
        returning t.id
    ),""",
).replace("{join}", "join gone g on g.id = p.id")

_SQL = {
    # Takes rows out of v3's table and notes them, in one statement. Index: the primary keys.
    "take": _TAKE.replace("{state}", "done"),
    # Notes that rows are about to be taken out of a table in another database.
    "intend": _NEW.replace("{gone}", "").replace("{join}", "").replace("{state}", "taking"),
    # Lets the schedules of parked rows fire. One that somebody has changed or removed meanwhile stays as it is.
    "go": """
        with wanted as (
            select * from {s}.v3_migrated where source = $1 and id = any($2::text[]) and state = 'taking'
            order by id for update
        ),
        live as (
            update {s}.schedules s
            set paused = w.paused, pause_reason = null, revision = gen_random_uuid(), updated_at = now()
            from wanted w where s.id = w.schedule_id and s.revision = w.revision
            returning s.id, s.revision, s.paused, s.next_fire_time
        )
        update {s}.v3_migrated m set state = 'deleting', revision = coalesce(l.revision, w.revision), updated_at = now()
        from wanted w left join live l on l.id = w.schedule_id
        where m.source = w.source and m.id = w.id
        returning m.id, m.schedule_id, case when not l.paused then l.next_fire_time end as due
    """,
    # Undoes "intend" for rows that were not parked.
    "undo": """
        with unwanted as (
            delete from {s}.v3_migrated where source = $1 and id = any($2::text[]) and state = 'taking'
            returning schedule_id, revision
        )
        delete from {s}.schedules s using unwanted u where s.id = u.schedule_id and s.revision = u.revision
    """,
    "advance": """
        update {s}.v3_migrated set state = $4, updated_at = now()
        where source = $1 and id = any($2::text[]) and state = $3
        returning id
    """,
    # Which rows has this very batch taken already, in an attempt whose answer was lost?
    "of_batch": "select id from {s}.v3_migrated where batch = $1 and state <> 'returned'",
    "note_in_flight": """
        update {s}.v3_migrated m set in_flight = n.fires
        from (
            select id, array_agg(to_timestamp(fire) order by fire) as fires
            from unnest($2::text[], $3::float8[]) as n (id, fire) group by id
        ) n
        where m.source = $1 and m.id = n.id
    """,
    # A job that v3 has run for the last time while it was to be carried over.
    "note_left": """
        insert into {s}.v3_migrated as m (source, id, next_run_time, job_state, state, in_flight, batch, node)
        select $1, n.id, n.fire, n.job_state, 'left', array[to_timestamp(n.fire)], $5, $6
        from unnest($2::text[], $3::float8[], $4::bytea[]) as n (id, fire, job_state)
        on conflict (source, id) do update
        set next_run_time = excluded.next_run_time, job_state = excluded.job_state, schedule_id = null,
            state = 'left', in_flight = excluded.in_flight, batch = excluded.batch, node = excluded.node,
            migrated_at = now(), updated_at = now()
        where m.state in ('returned', 'left')
    """,
    "reason": "update {s}.schedules set pause_reason = $2 where id = any($1::text[])",
    "drop_schedules": "delete from {s}.schedules where id = any($1::text[])",
    "known": """
        select id, state, schedule_id from {s}.v3_migrated where source = $1 and id = any($2::text[])
    """,
    "taken_ids": "select id from {s}.schedules where id = any($1::text[])",
    # What has not been brought to its end? Index: v3_migrated_under_way.
    "under_way": """
        select * from {s}.v3_migrated
        where source = $1 and state not in ('done', 'returned', 'left') and id > $2
        order by id limit $3
    """,
    "elsewhere": """
        select source, count(*) as rows from {s}.v3_migrated
        where source <> $1 and state not in ('done', 'returned', 'left') group by source order by source
    """,
    "counts": "select state, count(*) as rows from {s}.v3_migrated where source = $1 group by state",
    "sources": "select distinct source from {s}.v3_migrated order by source",
    "page": """
        select m.*, s.id is not null as is_there, s.revision as now_revision
        from {s}.v3_migrated m left join {s}.schedules s on s.id = m.schedule_id
        where m.source = $1 and m.state = any($4::text[]) and m.id > $2 order by m.id limit $3
    """,
    "done_ids": "select id from {s}.v3_migrated where source = $1 and state = 'done' and id > $2 order by id limit $3",
    # -- going back ---------------------------------------------------------------------------------------------------
    # Lets no further fire be claimed, and what is claimed already come to its end: the revision stays.
    "hold": """
        with wanted as (
            select * from {s}.v3_migrated where source = $1 and id = any($2::text[]) and state = 'done'
            order by id for update
        ),
        held as (
            update {s}.schedules s set paused = true, pause_reason = $3, updated_at = now()
            from wanted w where s.id = w.schedule_id and s.revision = w.revision and s.paused = w.paused
            returning s.id
        )
        update {s}.v3_migrated m set state = 'returning', updated_at = now()
        from wanted w join held h on h.id = w.schedule_id
        where m.source = w.source and m.id = w.id
        returning m.id
    """,
    # Undoes "hold" for schedules that have not come to rest.
    "release": """
        with wanted as (
            select * from {s}.v3_migrated where source = $1 and id = any($2::text[]) and state = 'returning'
            order by id for update
        ),
        live as (
            update {s}.schedules s set paused = w.paused, pause_reason = null, updated_at = now()
            from wanted w where s.id = w.schedule_id and s.revision = w.revision
            returning s.id, s.paused, s.next_fire_time
        )
        update {s}.v3_migrated m set state = 'done', updated_at = now()
        from wanted w left join live l on l.id = w.schedule_id
        where m.source = w.source and m.id = w.id
        returning m.id, m.schedule_id, case when not l.paused then l.next_fire_time end as due
    """,
    # The claims are looked at by a statement of their own: its snapshot is taken after the locks.
    "lock": """
        select s.id from {s}.schedules s join {s}.v3_migrated m on m.schedule_id = s.id
        where m.source = $1 and m.id = any($2::text[]) and m.state = 'returning'
        order by s.id for update of s
    """,
    "at_rest": """
        select m.id, m.schedule_id, m.next_run_time, m.job_state, m.paused, m.first_fire_time,
            s.id is not null as is_there, coalesce(s.revision = m.revision, false) as is_ours, s.next_fire_time,
            s.acquired_by is null and not exists (select from {s}.jobs j where j.schedule_id = s.id) as is_idle
        from {s}.v3_migrated m left join {s}.schedules s on s.id = m.schedule_id
        where m.source = $1 and m.id = any($2::text[]) and m.state = 'returning'
    """,
    "note_return": """
        update {s}.v3_migrated m
        set state = $5, returned_next_run_time = n.next_run_time, returned_job_state = n.job_state, updated_at = now()
        from unnest($2::text[], $3::float8[], $4::bytea[]) as n (id, next_run_time, job_state)
        where m.source = $1 and m.id = n.id and m.state = 'returning'
        returning m.id, m.schedule_id
    """,
    "put_back": """
        insert into {t} (id, next_run_time, job_state)
        select * from unnest($1::text[], $2::float8[], $3::bytea[]) as n
        on conflict do nothing
        returning id
    """,
    # The schedules of rows that are in v3's table again. History stays.
    "end_schedules": """
        with gone as (
            delete from {s}.schedules s using {s}.v3_migrated m
            where m.source = $1 and m.id = any($2::text[]) and s.id = m.schedule_id and s.revision = m.revision
            returning s.id, s.created_at
        )
        insert into {s}.schedule_changes (schedule_id, change, detail)
        select id, 'removed', jsonb_build_object('created_at', created_at, 'to', 'APScheduler 3') from gone
    """,
    "fired": """
        select m.id, exists (
            select from {s}.fires f where f.schedule_id = m.schedule_id and f.fire_time >= m.first_fire_time
        ) as has_fired
        from {s}.v3_migrated m where m.source = $1 and m.id = any($2::text[])
    """,
}


@dataclass(frozen=True, slots=True)
class Planned:
    """A row that is ready to be carried over.

    :ivar paused: whether its schedule is meant to be paused
    """

    row: V3Row
    schedule_id: str
    paused: bool
    first_fire_time: datetime | None


class Migrated:
    """Runs the statements for one source.

    :param table: the quoted name of v3's table, if it is in the same database
    :ivar batch: which transaction, or sequence of steps, rows are carried over in
    """

    def __init__(self, schema: str, source: str, *, table: str = "", batch: UUID, node: str) -> None:
        name = quoted(schema)
        self._sql = {
            key: f"/* duetime: v3 {key} */ " + text.replace("{s}", name).replace("{t}", table)
            for key, text in _SQL.items()
        }
        self.source, self.table, self.batch, self._node = source, table, batch, node

    async def _new(self, name: str, connection: asyncpg.Connection, rows: Sequence[Planned], *more: Any) -> set[str]:
        columns = [
            [each.row.id for each in rows],
            [each.row.next_run_time for each in rows],
            [each.row.job_state for each in rows],
            [each.schedule_id for each in rows],
            [each.paused for each in rows],
            [each.first_fire_time for each in rows],
        ]
        found = await connection.fetch(self._sql[name], *columns, self.source, self.batch, self._node, *more)
        return {row["id"] for row in found}

    async def take(self, connection: asyncpg.Connection, rows: Sequence[Planned], margin: float | None) -> set[str]:
        """Take rows out of v3's table in the same database, with their schedules stored; return which it were."""
        return await self._new("take", connection, rows, margin)

    async def intend(self, connection: asyncpg.Connection, rows: Sequence[Planned]) -> set[str]:
        """Note that rows are about to be taken; return which are noted."""
        return await self._new("intend", connection, rows)

    async def fetch(self, connection: asyncpg.Connection, name: str, *arguments: Any) -> list[asyncpg.Record]:
        """Run a statement whose first argument is the source."""
        found: list[asyncpg.Record] = await connection.fetch(self._sql[name], self.source, *arguments)
        return found

    async def plain(self, connection: asyncpg.Connection, name: str, *arguments: Any) -> list[asyncpg.Record]:
        """Run a statement that has nothing to do with the source."""
        found: list[asyncpg.Record] = await connection.fetch(self._sql[name], *arguments)
        return found

    async def of_batch(self, connection: asyncpg.Connection) -> set[str]:
        """Return which rows this batch has taken."""
        return {row["id"] for row in await self.plain(connection, "of_batch", self.batch)}

    async def note_left(self, connection: asyncpg.Connection, rows: Sequence[V3Row]) -> None:
        """Note jobs that v3 has run for the last time."""
        columns = [[row.id for row in rows], [row.next_run_time for row in rows], [row.job_state for row in rows]]
        await self.fetch(connection, "note_left", *columns, self.batch, self._node)
