"""The named statements that change schedules in place, and that answer and clean up their history."""

from __future__ import annotations

from .naming import TAKE_BACK, named

named(
    "update_schedule",
    f"""
    -- Changes one schedule, if nobody has since it was read (revision $2). Without a new trigger ($3) trigger and next
    -- fire time stay those of the row, which a fire may have moved since; with $4 only if none has.
    -- A new id takes along the jobs that have not ended, with their ledger rows; all others stay under the old one.
    -- Indexes: schedules_pkey, jobs_by_schedule, fires_pkey.
    with changed as (
        select s.* from {{s}}.schedules s
        where s.id = any ($1::text[]) and s.revision = $2 and (not $4 or s.next_fire_time is not distinct from $5)
        for update
    ),
    {TAKE_BACK},
    moved as materialized (
        -- The last argument has it come after what is taken back. It runs because the answer asks for it.
        select {{s}}.rename_jobs_v1(c.id, $19::text, (select count(*) from taken)) as jobs
        from changed c where $19 <> c.id
    ),
    formerly as (
        insert into {{s}}.former_ids as o (schedule_id, former_id, renamed_at)
        select $19, each.id, max(each.at) from (
            select c.id, now() as at from changed c
            union all select f.former_id, f.renamed_at from {{s}}.former_ids f join changed c on c.id = f.schedule_id
        ) each
        where $19 <> (select id from changed) and each.id <> $19
        group by each.id
        on conflict (schedule_id, former_id) do update set renamed_at = excluded.renamed_at
    ),
    floor as (
        insert into {{s}}.history_floors as h (schedule_id, before)
        select $19, f.before from {{s}}.history_floors f join changed c on c.id = f.schedule_id where $19 <> c.id
        on conflict (schedule_id) do update set before = greatest(h.before, excluded.before)
    ),
    noted as (
        insert into {{s}}.schedule_changes (schedule_id, change, detail)
        select c.id, 'updated', $20::text::jsonb from changed c
        union all
        select each.id, 'renamed', jsonb_build_object('from', c.id, 'to', $19::text)
        from changed c, unnest(array[c.id, $19]) as each (id) where $19 <> c.id
    ),
    told as (select pg_notify($21, $22) where $22 <> '' and {{heard}} and exists (select from changed))
    update {{s}}.schedules s
    set id = $19, task_id = $6, args = $8, kwargs = $9, coalesce = $10, misfire_grace_time = $11, max_jitter = $12,
        job_executor = $13, job_result_expiration_time = $14, metadata = $15::text::jsonb,
        tags = array(select jsonb_array_elements_text($16::text::jsonb)), engine = $17,
        trigger = case when $3 then s.trigger else $7 end,
        -- What was taken back is due again, under the new definition.
        next_fire_time = case
            when $3 then least(s.next_fire_time, (select min(t.fire_time) from taken t))
            when $4 then least($18, (select min(t.fire_time) from taken t))
            else $18 end,
        broken_reason = case when $3 then s.broken_reason end,
        acquired_by = null, acquired_until = null, revision = gen_random_uuid(), updated_at = now()
    from changed c where s.id = c.id
    returning s.id, s.task_id, s.next_fire_time, s.paused, s.revision, (select count(*) from told) as told,
        array(select t.id from taken t) as taken_back, (select sum(m.jobs) from moved m) as moved
    """,
)
named(
    "resume_schedules",
    """
    -- Lets many paused schedules fire again; each only if nobody has changed it since it was read (its revision).
    with wanted as (
        select * from unnest($1::text[], $2::uuid[], $3::bytea[], $4::timestamptz[])
            as w (id, revision, trigger, next_fire_time)
    ),
    changed as (
        select s.id, w.trigger, w.next_fire_time from {s}.schedules s join wanted w on w.id = s.id
        where s.revision = w.revision order by s.id for update of s
    ),
    noted as (
        insert into {s}.schedule_changes (schedule_id, change, detail)
        select id, 'resumed', jsonb_build_object('from', $5::timestamptz) from changed
    ),
    told as (select pg_notify($6, $7) where $7 <> '' and {heard})
    update {s}.schedules s
    set paused = false, pause_reason = null, broken_reason = null, trigger = c.trigger,
        next_fire_time = c.next_fire_time,
        acquired_by = null, acquired_until = null, revision = gen_random_uuid(), updated_at = now()
    from changed c where s.id = c.id
    returning s.id, s.task_id, (select count(*) from told) as told
    """,
)
named(
    "backfill_schedule",
    """
    -- Makes jobs for instants of the past that have had none: those that the ledger does not have, and those that were
    -- skipped, missed or coalesced, whose rows become pending. An instant that has had a job is left alone (promise 2).
    -- Indexes: schedules_pkey, fires_pkey.
    with wanted as (select s.*, clock_timestamp() as at from {s}.schedules s where s.id = $1),
    planned as (
        select p.fire_time, p.job_id, row_number() over (order by p.fire_time) as place
        from unnest($2::timestamptz[], $3::uuid[]) as p (fire_time, job_id)
        where not exists (select from {s}.history_floors h where h.schedule_id = $1 and p.fire_time < h.before)
          and not exists (
              select from {s}.former_ids n
              join {s}.fires o on o.schedule_id = n.former_id and o.fire_time = p.fire_time
              where n.schedule_id = $1 and o.created_at <= n.renamed_at
          )
    ),
    fire as (
        insert into {s}.fires as f (schedule_id, fire_time, run_time, task_id, state, reason, job_id)
        select w.id, p.fire_time, p.fire_time, w.task_id, 'pending', 'backfilled by request', p.job_id
        from wanted w cross join planned p
        order by p.fire_time
        on conflict (schedule_id, fire_time) do update
        set state = 'pending', reason = 'backfilled by request; it was ' || f.state || ' before',
            job_id = excluded.job_id, run_time = excluded.run_time, node = null, finished_at = null
        where f.state in ('skipped', 'missed', 'coalesced')
        returning f.fire_time, f.job_id
    ),
    job as (
        insert into {s}.jobs as j (
            id, task_id, args, kwargs, schedule_id, fire_time, scheduled_fire_time, executor, result_expiration_time,
            metadata, created_at, run_at
        )
        select f.job_id, w.task_id, w.args, w.kwargs, w.id, f.fire_time, f.fire_time, w.job_executor,
            w.job_result_expiration_time, w.metadata || jsonb_build_object('duetime.overlap', $4::text),
            -- Oldest first.
            w.at + p.place * interval '1 microsecond', w.at + p.place * interval '1 microsecond'
        from fire f join planned p on p.job_id = f.job_id cross join wanted w
        returning j.id
    ),
    told as (select pg_notify($5, $6) where $6 <> '' and {heard} and exists (select from job))
    select (select count(*) from job) + (
            -- Those of an earlier attempt, whose answer was lost.
            select count(*) from {s}.fires f join planned p on p.fire_time = f.fire_time
            where f.schedule_id = $1 and f.job_id = p.job_id
        ) as made,
        (select count(*) from told) as told
    """,
)

# -- retention -------------------------------------------------------------------------------------------------------

# No instant of a schedule that goes on is fired again because its ledger row is gone.
_FLOOR = """
    floor as (
        insert into {s}.history_floors as h (schedule_id, before)
        select o.schedule_id, max(o.fire_time) + interval '1 microsecond'
        from old o join {s}.schedules s on s.id = o.schedule_id
        group by o.schedule_id order by o.schedule_id
        on conflict (schedule_id) do update
        set before = greatest(h.before, excluded.before), updated_at = now()
    )
"""
named(
    "purge_fires",
    """
    -- Of a thousand ledger rows, the oldest ones after ($2, $3), removes those that have ended before $1, but for
    -- schedules that say themselves how long theirs are kept. Index: fires_recent, backwards.
    with looked as materialized (
        select f.schedule_id, f.fire_time, f.state, coalesce(f.finished_at, f.created_at) as ended
        from {s}.fires f
        where f.fire_time < $1 and (f.fire_time, f.schedule_id) > ($2::timestamptz, $3::text)
        order by f.fire_time, f.schedule_id
        limit 1000
    ),
    old as materialized (
        select f.schedule_id, f.fire_time
        from looked l join {s}.fires f on f.schedule_id = l.schedule_id and f.fire_time = l.fire_time
        where l.state <> 'pending' and l.ended < $1
          and not exists (
              select from {s}.schedules s where s.id = l.schedule_id and s.metadata ? 'duetime.history_max_age'
          )
        for update of f skip locked
    ),
    {floor},
    gone as (
        delete from {s}.fires f using old o where f.schedule_id = o.schedule_id and f.fire_time = o.fire_time
        returning 1
    )
    select (select count(*) from looked) as looked_at, (select count(*) from gone) as gone,
        last.fire_time as last_time, last.schedule_id as last_id
    from (select 1) one
    left join (
        select fire_time, schedule_id from looked order by fire_time desc, schedule_id desc limit 1
    ) last on true
    """.replace("{floor}", _FLOOR.strip()),
)
named(
    "purge_runs",
    """
    -- Of a thousand runs, the first after $2, removes those that ended before $1; see purge_fires. Index: runs_pkey.
    with looked as materialized (
        select id, schedule_id, finished_at from {s}.runs where id > $2 order by id limit 1000
    ),
    old as materialized (
        select r.id from looked l join {s}.runs r on r.id = l.id
        where l.finished_at < $1
          and not exists (
              select from {s}.schedules s where s.id = l.schedule_id and s.metadata ? 'duetime.history_max_age'
          )
        for update of r skip locked
    ),
    gone as (delete from {s}.runs r where r.id = any (array(select id from old)) returning 1)
    select (select count(*) from looked) as looked_at,
        -- Those that are kept for longer count too: there may be older ones behind them.
        (select count(*) from looked where finished_at < $1) + 0 * (select count(*) from gone) as gone,
        (select max(id) from looked) as last_id
    """,
)
named(
    "purge_changes",
    """
    -- The same of what was done to schedules, but for the last thing that was done to one that goes on: it may be
    -- paused since. Indexes: schedule_changes_pkey, schedule_changes_by_schedule.
    with looked as materialized (
        select id, schedule_id, at from {s}.schedule_changes where id > $2 order by id limit 1000
    ),
    old as materialized (
        select c.id from looked l join {s}.schedule_changes c on c.id = l.id
        where l.at < $1 and not exists (
            select from {s}.schedules s
            where s.id = l.schedule_id and (
                s.metadata ? 'duetime.history_max_age' or not exists (
                    select from {s}.schedule_changes later where later.schedule_id = l.schedule_id and later.id > l.id
                )
            )
        )
        for update of c skip locked
    ),
    gone as (delete from {s}.schedule_changes c where c.id = any (array(select id from old)) returning 1)
    select (select count(*) from looked) as looked_at,
        (select count(*) from looked where at < $1) + 0 * (select count(*) from gone) as gone,
        (select max(id) from looked) as last_id
    """,
)
named(
    "purge_floors",
    """
    -- A schedule that is gone keeps its floor for as long as history is kept: until then its id may come back.
    with old as (
        select h.schedule_id from {s}.history_floors h
        where h.updated_at < $1 and not exists (select from {s}.schedules s where s.id = h.schedule_id)
        limit 1000
        for update of h skip locked
    )
    delete from {s}.history_floors h using old where h.schedule_id = old.schedule_id returning h.schedule_id
    """,
)
named(
    "own_histories",
    """
    -- The next schedules that say themselves how long, or how much of, their history is kept.
    -- Index: schedules_own_history.
    select s.id, s.metadata ->> 'duetime.history_max_age' as max_age,
        s.metadata ->> 'duetime.history_max_fires' as max_fires
    from {s}.schedules s
    where s.metadata ?| array['duetime.history_max_age', 'duetime.history_max_fires'] and s.id > $1
    order by s.id
    limit 500
    """,
)
named(
    "long_histories",
    """
    -- Of the next 500 schedules in the ledger: which have more than $2 fires, and do not say themselves how many are
    -- kept? Index: fires_pkey, from one schedule to the next.
    with recursive ids as (
        (select f.schedule_id, 1 as place from {s}.fires f where f.schedule_id > $1 order by f.schedule_id limit 1)
        union all
        select (
                select f.schedule_id from {s}.fires f where f.schedule_id > ids.schedule_id
                order by f.schedule_id limit 1
            ), ids.place + 1
        from ids where ids.schedule_id is not null and ids.place < 500
    )
    select array(
            select i.schedule_id from ids i
            where exists (
                select from {s}.fires f where f.schedule_id = i.schedule_id
                order by f.fire_time desc offset $2::integer limit 1
            ) and not exists (
                select from {s}.schedules s where s.id = i.schedule_id and s.metadata ? 'duetime.history_max_fires'
            )
        ) as ids,
        (select schedule_id from ids where place = 500) as last_id
    """,
)
named(
    "purge_history_of",
    """
    -- Removes up to a thousand fires of a schedule that have ended before $2, or come after the $3 latest ones; and as
    -- many runs. Indexes: fires_pkey, runs_by_schedule.
    with bound as materialized (
        select f.fire_time from {s}.fires f where $3::integer is not null and f.schedule_id = $1
        order by f.fire_time desc offset coalesce($3::integer, 0) limit 1
    ),
    old as materialized (
        select f.schedule_id, f.fire_time from {s}.fires f
        where f.schedule_id = $1 and f.state <> 'pending' and (
            (f.fire_time < $2::timestamptz and coalesce(f.finished_at, f.created_at) < $2)
            or f.fire_time <= (select fire_time from bound)
        )
        order by f.fire_time
        limit 1000
        for update of f skip locked
    ),
    {floor},
    gone as (
        delete from {s}.fires f using old o where f.schedule_id = o.schedule_id and f.fire_time = o.fire_time
        returning 1
    ),
    old_runs as (
        select r.id from {s}.runs r
        where r.schedule_id = $1
          and (r.finished_at < $2::timestamptz or r.fire_time <= (select fire_time from bound))
        order by r.id
        limit 1000
        for update of r skip locked
    ),
    gone_runs as (delete from {s}.runs r where r.id = any (array(select id from old_runs)) returning 1)
    select (select count(*) from gone) as fires, (select count(*) from gone_runs) as runs
    """.replace("{floor}", _FLOOR.strip()),
)
