"""The statements about schedules: adding, claiming, releasing, pausing, running by request."""

from __future__ import annotations

from .naming import SCHEDULE_COLUMNS, TAKE_BACK, TAKEN_OF, TIMES, named, noted

_NEW_SCHEDULES = """
    with new as (
        select * from unnest(
            $1::text[], $2::text[], $3::bytea[], $4::bytea[], $5::bytea[], $6::boolean[], $7::text[], $8::interval[],
            $9::interval[], $10::text[], $11::interval[], $12::text[], $13::text[], $14::text[], $15::timestamptz[],
            $16::timestamptz[], $17::uuid[]
        ) as n (
            id, task_id, trigger, args, kwargs, paused, coalesce, misfire_grace_time, max_jitter, job_executor,
            job_result_expiration_time, metadata, tags, engine, last_fire_time, next_fire_time, revision
        )
    ),
    put as (
        insert into {s}.schedules as s (
            id, task_id, trigger, args, kwargs, paused, coalesce, misfire_grace_time, max_jitter, job_executor,
            job_result_expiration_time, metadata, tags, engine, last_fire_time, next_fire_time, revision
        )
        select
            id, task_id, trigger, args, kwargs, paused, coalesce, misfire_grace_time, max_jitter, job_executor,
            job_result_expiration_time, metadata::jsonb, array(select jsonb_array_elements_text(tags::jsonb)), engine,
            last_fire_time, next_fire_time, revision
        from new
        order by id
        {conflict}
        returning s.id, s.xmax = 0 as added
    ),
    {take_back}
    -- Wakes the other nodes, but only when they do not wake early enough by themselves: they do when another schedule
    -- is due before the new one. It must be due late enough for no node to be at work on it while this commits.
    told as (
        select pg_notify($18, $19)
        where $19 <> '' and {heard} and ({has_taken} or (
            select min(n.next_fire_time) from new n where not n.paused
        ) < coalesce((
            select d.next_fire_time from {s}.schedules d
            where d.next_fire_time is not null and not d.paused and d.broken_reason is null and d.acquired_by is null
              and d.next_fire_time >= now() + interval '5 seconds'
            order by d.next_fire_time limit 1
        ), 'infinity'))
    )
    select n.id, put.added, o.revision as stored_revision, (select count(*) from told) as told,
        {taken_back} as taken_back
    from new n
    left join put on put.id = n.id
    left join {s}.schedules o on o.id = n.id
    {and_taken}
"""
named(
    "add_schedule",
    """
    -- The common case, a lone call that adds one schedule, in the form that costs PostgreSQL half of add_schedules.
    -- No row: the id is taken.
    insert into {s}.schedules as s (
        id, task_id, trigger, args, kwargs, paused, coalesce, misfire_grace_time, max_jitter, job_executor,
        job_result_expiration_time, metadata, tags, engine, last_fire_time, next_fire_time, revision
    )
    values (
        $1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12::text::jsonb,
        array(select jsonb_array_elements_text($13::text::jsonb)), $14, $15, $16, $17
    )
    on conflict (id) do nothing
    returning case
        when $19::text <> '' and {heard} and not s.paused and s.next_fire_time is not null and not exists (
            select from {s}.schedules d
            where d.next_fire_time is not null and not d.paused and d.broken_reason is null and d.acquired_by is null
              and d.next_fire_time between now() + interval '5 seconds' and s.next_fire_time
        )
        then pg_notify($18::text, $19::text)
    end::text as told
    """,
)
named(
    "add_schedules",
    _NEW_SCHEDULES.replace("{conflict}", "on conflict (id) do nothing")
    .replace("{take_back}", "")
    .replace("{taken_back}", "null::uuid[]")
    .replace("{and_taken}", "")
    .replace("{has_taken} or ", ""),
)
named(
    "tell_added",
    """
    -- Wakes the other nodes for schedules that were stored, the first of which is due at $3; when, see add_schedules.
    select pg_notify($1, $2)
    where {heard} and not exists (
        select from {s}.schedules d
        where d.next_fire_time is not null and not d.paused and d.broken_reason is null and d.acquired_by is null
          and d.next_fire_time > now() + interval '5 seconds' and d.next_fire_time < $3
    )
    """,
)
named(
    "replace_schedules",
    _NEW_SCHEDULES.replace(
        "{take_back}",
        f"changed as (select id from put where not added), {TAKE_BACK}, {TAKEN_OF}, {noted('replaced')},",
    )
    .replace("{taken_back}", "coalesce(t.jobs, '{}')")
    .replace("{and_taken}", "left join taken_of t on t.schedule_id = n.id")
    .replace("{has_taken}", "exists (select from taken)")
    .replace(
        "{conflict}",
        # The claim is taken away: a node that is at work on the former definition can no longer release it.
        """on conflict (id) do update
        set task_id = excluded.task_id, trigger = excluded.trigger, args = excluded.args, kwargs = excluded.kwargs,
            paused = excluded.paused, coalesce = excluded.coalesce,
            misfire_grace_time = excluded.misfire_grace_time, max_jitter = excluded.max_jitter,
            job_executor = excluded.job_executor,
            job_result_expiration_time = excluded.job_result_expiration_time, metadata = excluded.metadata,
            tags = excluded.tags, engine = excluded.engine, last_fire_time = excluded.last_fire_time,
            next_fire_time = excluded.next_fire_time, revision = excluded.revision,
            acquired_by = null, acquired_until = null, broken_reason = null, pause_reason = null,
            updated_at = now()""",
    ),
)
named(
    "remove_schedules",
    f"""
    -- $4: only in this revision; null: in any.
    with changed as (
        select id, created_at from {{s}}.schedules
        where id = any($1::text[]) and ($4::uuid is null or revision = $4) order by id for update
    ),
    {TAKE_BACK},
    {TAKEN_OF},
    {noted("removed", "jsonb_build_object('created_at', c.created_at)")},
    told as (select pg_notify($2, $3) where $3 <> '' and {{heard}})
    delete from {{s}}.schedules s using changed c left join taken_of t on t.schedule_id = c.id where s.id = c.id
    returning s.id, s.task_id, (select count(*) from told) as told, coalesce(t.jobs, '{{}}') as taken_back
    """,
)
named(
    "schedules",
    f"""
    select {SCHEDULE_COLUMNS} from {{s}}.schedules s where s.id = any($1::text[]) order by s.id
    """,
)
named(
    "all_schedules",
    f"""
    select {SCHEDULE_COLUMNS} from {{s}}.schedules s order by s.id
    """,
)
named(
    "acquire_schedules",
    f"""
    -- Claims schedules that are due, or will be within $4, earliest first. Index: schedules_due.
    with due as (
        select id from {{s}}.schedules
        where next_fire_time is not null and not paused and broken_reason is null
          and next_fire_time <= now() + $4
          and (acquired_until is null or acquired_until < now() or acquired_by = $1)
        order by next_fire_time, id
        limit $3
        for update skip locked
    )
    update {{s}}.schedules s
    set acquired_by = $1, acquired_until = now() + $2
    where s.id = any (array(select id from due))
    returning {SCHEDULE_COLUMNS}, now() as now, {TIMES}
    """,
)
named(
    "release_schedules",
    """
    -- Promise 2: the next fire time, the ledger rows and the jobs of every schedule that is still ours, in one
    -- transaction. A schedule that was claimed by another node, replaced, paused or removed meanwhile is left alone,
    -- and so are its fires. Gives back what was written, and when the next schedule is due.
    -- What was written is looked up by "in" in a list of columns, which is a hash however few rows PostgreSQL expects:
    -- a join of those few would compare each with each.
    with result as (
        select * from unnest($2::text[], $3::uuid[], $4::bytea[], $5::timestamptz[], $6::timestamptz[], $7::text[])
            as r (id, revision, trigger, last_fire_time, next_fire_time, broken_reason)
    ),
    held as (
        select r.* from {s}.schedules s join result r on r.id = s.id
        where s.acquired_by = $1 and s.revision = coalesce(r.revision, s.revision) and {sized: $2::text[]}
        order by s.id
        for update of s
    ),
    released as (
        update {s}.schedules s
        set trigger = coalesce(r.trigger, s.trigger),
            last_fire_time = r.last_fire_time,
            next_fire_time = r.next_fire_time,
            broken_reason = coalesce(r.broken_reason, s.broken_reason),
            acquired_by = null,
            acquired_until = null
        from held r where s.id = r.id
        returning s.*
    ),
    planned as (
        select * from unnest(
            $8::text[], $9::timestamptz[], $10::timestamptz[], $11::text[], $12::text[], $13::uuid[], $14::boolean[],
            $15::timestamptz[], $16::boolean[], $20::text[]
        ) as p (schedule_id, fire_time, run_time, state, reason, job_id, checks_overlap, start_deadline, claim, overlap)
    ),
    decided as (
        select p.*, r.task_id, r.args, r.kwargs, r.job_executor, r.job_result_expiration_time, r.metadata,
            -- One whose time is still to come is looked at when it starts, unless it has come since it was planned.
            p.state = 'pending' and p.checks_overlap and p.fire_time <= now()
                and coalesce(r.metadata ->> 'duetime.overlap', 'allow') = 'skip'
                and (
                    count(*) filter (where p.state = 'pending') over earlier > 0
                    or exists (select from {s}.jobs j where j.schedule_id = p.schedule_id)
                ) as is_overlapping
        from planned p join released r on r.id = p.schedule_id
        window earlier as (
            partition by p.schedule_id order by p.fire_time rows between unbounded preceding and 1 preceding
        )
    ),
    fire as (
        insert into {s}.fires (schedule_id, fire_time, run_time, task_id, state, reason, job_id, node, finished_at)
        select
            schedule_id, fire_time, run_time, task_id,
            case when is_overlapping then 'skipped' else state end,
            case when is_overlapping then 'the job of an earlier fire had not ended (overlap=skip)' else reason end,
            case when not is_overlapping then job_id end,
            $1,
            case when is_overlapping or state <> 'pending' then now() end
        from decided
        -- Retention has removed ledger rows up to there, and with them the key.
        where not exists (
            select from {s}.history_floors h where h.schedule_id = decided.schedule_id and decided.fire_time < h.before
        )
        order by schedule_id, fire_time
        on conflict do nothing
        returning job_id, state
    ),
    made as (
        select d.*, d.job_id in (select f.job_id from fire f where f.state = 'pending') as is_new from decided d
    ),
    job as (
        insert into {s}.jobs as j (
            id, task_id, args, kwargs, schedule_id, fire_time, scheduled_fire_time, executor, jitter, start_deadline,
            result_expiration_time, metadata, run_at, attempt, acquired_by, acquired_until, claimed_at, held
        )
        -- What is made up for has an overlap policy of its own.
        select
            d.job_id, d.task_id, d.args, d.kwargs, d.schedule_id, d.fire_time, d.run_time, d.job_executor,
            d.run_time - d.fire_time, d.start_deadline, d.job_result_expiration_time,
            case
                when d.overlap is null then d.metadata
                else d.metadata || jsonb_build_object('duetime.overlap', d.overlap)
            end,
            d.run_time,
            case when d.claim then 1 else 0 end,
            case when d.claim then $1 end,
            case when d.claim then now() + $17::interval end,
            case when d.claim then now() end,
            d.claim and d.run_time > now() and coalesce(d.metadata ->> 'duetime.on_crash', '') = 'abandon'
        from made d where d.is_new
        returning j.id, j.schedule_id, j.task_id, j.acquired_by, j.acquired_until, j.held
    ),
    told as (
        select pg_notify($18, $19) where $19 <> '' and {heard} and exists (select from job where acquired_by is null)
    )
    select
        array(select id from released) as released,
        array(select id from job where acquired_by is not null) as claimed,
        array(select id from job where acquired_by is null) as queued,
        array(select id from job where held) as held,
        -- While another node may still be at work on an earlier fire: looked at again when they start, if they were
        -- claimed ahead, or wait for their turn.
        array(
            select d.job_id from made d
            where d.is_new
              and case coalesce(d.metadata ->> 'duetime.overlap', 'allow')
                  when 'allow' then false
                  when 'skip' then d.fire_time > now()
                  else true end
              and exists (
                  select from {s}.jobs o where o.schedule_id = d.schedule_id
                    -- A job from before the schedule was renamed is known to its node under the old id.
                    and (o.acquired_by is distinct from $1 or o.metadata ? 'duetime.renamed')
              )
        ) as contested,
        (select min(acquired_until) from job) as leased_until,
        (select {time: d.next_fire_time} from {s}.schedules d
         where d.next_fire_time is not null and not d.paused and d.broken_reason is null and d.acquired_by is null
         order by d.next_fire_time limit 1) as next_due,
        {crowd} as crowd,
        (select {time: h.acquired_until} from {s}.schedules h
         where h.acquired_by <> $1
         order by h.acquired_until limit 1) as next_expiry,
        (select count(*) from told) as told,
        {times}
    """,
)
named(
    "set_aside",
    """
    -- Marks schedules as broken, so that they are seen and can be repaired, and no longer claimed.
    with broken as (
        update {s}.schedules s
        set broken_reason = b.reason, acquired_by = null, acquired_until = null, updated_at = now()
        from unnest($2::text[], $3::text[]) as b (id, reason)
        where s.id = b.id and s.acquired_by = $1
        returning s.id, b.reason
    )
    insert into {s}.schedule_changes (schedule_id, change, detail)
    select id, 'broken', jsonb_build_object('reason', reason) from broken
    """,
)
named(
    "extend_schedules",
    """
    with mine as (
        select id from {s}.schedules where id = any($2::text[]) and acquired_by = $1 order by id for update
    )
    update {s}.schedules s set acquired_until = now() + $3 from mine where s.id = mine.id
    """,
)
named(
    "pause_schedules",
    f"""
    -- $4: only in this revision; null: in any.
    with changed as (
        select id, paused from {{s}}.schedules
        where id = any($1::text[]) and ($4::uuid is null or revision = $4) order by id for update
    ),
    {TAKE_BACK},
    {TAKEN_OF},
    {noted("paused", where="not c.paused")},
    told as (select pg_notify($2, $3) where $3 <> '' and {{heard}})
    update {{s}}.schedules s
    set paused = true, acquired_by = null, acquired_until = null, revision = gen_random_uuid(), updated_at = now(),
        pause_reason = case when s.paused then s.pause_reason end,
        -- What was taken back is due again, so that resuming in time loses nothing.
        next_fire_time = least(s.next_fire_time, t.first_fire)
    from changed c left join taken_of t on t.schedule_id = c.id
    where s.id = c.id
    returning s.id, s.task_id, (select count(*) from told) as told, coalesce(t.jobs, '{{}}') as taken_back
    """,
)
named(
    "resume_schedule",
    """
    -- Only if nobody has changed the schedule since it was read (revision $2).
    with changed as (select id from {s}.schedules where id = $1 and revision = $2 for update),
    noted as (
        insert into {s}.schedule_changes (schedule_id, change, detail)
        select id, 'resumed', jsonb_build_object('from', $7::timestamptz) from changed
    ),
    told as (select pg_notify($5, $6) where $6 <> '' and {heard} and exists (select from changed))
    update {s}.schedules s
    set paused = false, pause_reason = null, broken_reason = null, trigger = $3, next_fire_time = $4,
        acquired_by = null, acquired_until = null, revision = gen_random_uuid(), updated_at = now()
    from changed c where s.id = c.id
    returning s.id, s.task_id, (select count(*) from told) as told
    """,
)
named(
    "run_schedule",
    """
    -- Makes one job ($2) of a schedule now, beside its fire times; the ledger has it as a fire of the instant $3. Says
    -- whose job that instant has already: this one's, if an earlier attempt was committed and its answer was lost.
    with wanted as (select s.*, clock_timestamp() as at from {s}.schedules s where s.id = $1),
    fire as (
        insert into {s}.fires (schedule_id, fire_time, run_time, task_id, state, reason, job_id)
        select id, $3, $3, task_id, 'pending', 'run by request', $2 from wanted
        on conflict do nothing
        returning job_id
    ),
    job as (
        insert into {s}.jobs as j (
            id, task_id, args, kwargs, schedule_id, fire_time, scheduled_fire_time, executor, result_expiration_time,
            metadata, created_at, run_at
        )
        select f.job_id, w.task_id, w.args, w.kwargs, w.id, $3, $3, w.job_executor, w.job_result_expiration_time,
            -- It runs now, whatever else does.
            case
                when w.metadata ->> 'duetime.overlap' in ('buffer_one', 'buffer_all', 'cancel_other')
                    then w.metadata || jsonb_build_object('duetime.overlap', 'allow')
                else w.metadata
            end,
            w.at, w.at
        from wanted w cross join fire f
        returning j.id
    ),
    told as (select pg_notify($4, $5) where $5 <> '' and {heard} and exists (select from job))
    select w.task_id, (select count(*) from job) as made,
        array(select f.job_id from {s}.fires f where f.schedule_id = $1 and f.fire_time = $3) as holders,
        (select count(*) from told) as told
    from wanted w
    """,
)
