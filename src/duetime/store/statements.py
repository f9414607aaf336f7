"""The named statements: each is one round trip, whatever the batch, and decides time by the database's clock.

Statements that lock several rows lock them in the order of their ids, so two of them cannot wait for each other.
``{s}`` is the quoted schema. Nothing a user wrote is ever part of a statement's text.
"""

from __future__ import annotations

from .schema import quoted

_TEXTS: dict[str, str] = {}


def _named(name: str, text: str) -> None:
    _TEXTS[name] = f"/* duetime: {name} */ {text}"


class Statements:
    """All statements for one schema; ``statements["acquire_schedules"]`` is the SQL."""

    def __init__(self, schema: str) -> None:
        name = quoted(schema)
        self._texts = {key: text.replace("{s}", name) for key, text in _TEXTS.items()}

    def __getitem__(self, name: str) -> str:
        return self._texts[name]


SCHEDULE_COLUMNS = """
    s.id, s.task_id, s.trigger, s.args, s.kwargs, s.paused, s.coalesce, s.misfire_grace_time, s.max_jitter,
    s.job_executor, s.job_result_expiration_time, s.metadata::text as metadata, s.last_fire_time, s.next_fire_time,
    s.acquired_by, s.acquired_until, s.revision, s.broken_reason, s.engine, s.created_at, s.updated_at
"""

JOB_COLUMNS = """
    j.id, j.task_id, j.args, j.kwargs, j.schedule_id, j.fire_time, j.scheduled_fire_time, j.executor, j.jitter,
    j.start_deadline, j.result_expiration_time, j.metadata::text as metadata, j.created_at, j.run_at, j.attempt,
    j.acquired_by, j.acquired_until
"""

# -- tasks -----------------------------------------------------------------------------------------------------------

_named(
    "put_task",
    """
    -- Adds a task or replaces its definition; says which of the two it did.
    with told as (select pg_notify($7, $8) where $8 <> '')
    insert into {s}.tasks as t (id, func, job_executor, max_running_jobs, misfire_grace_time, metadata)
    values ($1, $2, $3, $4, $5, $6::text::jsonb)
    on conflict (id) do update
    set func = excluded.func,
        job_executor = excluded.job_executor,
        max_running_jobs = excluded.max_running_jobs,
        misfire_grace_time = excluded.misfire_grace_time,
        metadata = excluded.metadata
    returning t.xmax = 0 as added, (select count(*) from told) as told
    """,
)
_named(
    "remove_task",
    """
    with told as (select pg_notify($2, $3) where $3 <> '')
    delete from {s}.tasks where id = $1 returning id, (select count(*) from told) as told
    """,
)
_named(
    "tasks",
    """
    -- One task, or all of them; running jobs are counted from live leases, so no crash can leave the count wrong.
    select t.id, t.func, t.job_executor, t.max_running_jobs, t.misfire_grace_time, t.metadata::text as metadata,
        (select count(*) from {s}.jobs j
         where j.task_id = t.id and j.acquired_by is not null and j.acquired_until >= now())::int as running_jobs
    from {s}.tasks t
    where $1::text is null or t.id = $1
    order by t.id
    """,
)

# Jobs that were claimed ahead of their time and have not started go with the definition that they were made from, and
# so do their ledger rows: those fires have not happened. "changed" is the CTE of the schedules' ids.
_TAKE_BACK = """
    taken as (
        delete from {s}.jobs j using changed c
        where j.schedule_id = c.id and j.fire_time > clock_timestamp()
        returning j.id, j.schedule_id, j.fire_time
    ),
    unfired as (
        delete from {s}.fires f using taken t where f.schedule_id = t.schedule_id and f.fire_time = t.fire_time
    )
"""

# -- schedules -------------------------------------------------------------------------------------------------------

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
        where $19 <> '' and ({has_taken} or exists (
            select from new n
            where not n.paused and n.next_fire_time is not null and not exists (
                select from {s}.schedules d
                where d.next_fire_time is not null and not d.paused and d.broken_reason is null
                  and d.acquired_by is null
                  and d.next_fire_time between now() + interval '5 seconds' and n.next_fire_time
            )
        ))
    )
    select n.id, put.added, o.revision as stored_revision, (select count(*) from told) as told,
        {taken_back} as taken_back
    from new n
    left join put on put.id = n.id
    left join {s}.schedules o on o.id = n.id
"""
_named(
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
        when $19::text <> '' and not s.paused and s.next_fire_time is not null and not exists (
            select from {s}.schedules d
            where d.next_fire_time is not null and not d.paused and d.broken_reason is null and d.acquired_by is null
              and d.next_fire_time between now() + interval '5 seconds' and s.next_fire_time
        )
        then pg_notify($18::text, $19::text)
    end::text as told
    """,
)
_named(
    "add_schedules",
    _NEW_SCHEDULES.replace("{conflict}", "on conflict (id) do nothing")
    .replace("{take_back}", "")
    .replace("{taken_back}", "null::uuid[]")
    .replace("{has_taken} or ", ""),
)
_named(
    "replace_schedules",
    _NEW_SCHEDULES.replace("{take_back}", f"changed as (select id from put where not added), {_TAKE_BACK.strip()},")
    .replace("{taken_back}", "array(select t.id from taken t where t.schedule_id = n.id)")
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
            acquired_by = null, acquired_until = null, broken_reason = null, updated_at = now()""",
    ),
)
_named(
    "remove_schedules",
    f"""
    with changed as (select id from {{s}}.schedules where id = any($1::text[]) order by id for update),
    {_TAKE_BACK.strip()},
    told as (select pg_notify($2, $3) where $3 <> '')
    delete from {{s}}.schedules s using changed c where s.id = c.id
    returning s.id, s.task_id, (select count(*) from told) as told,
        array(select t.id from taken t where t.schedule_id = s.id) as taken_back
    """,
)
_named(
    "schedules",
    f"""
    select {SCHEDULE_COLUMNS} from {{s}}.schedules s where s.id = any($1::text[]) order by s.id
    """,
)
_named(
    "all_schedules",
    f"""
    select {SCHEDULE_COLUMNS} from {{s}}.schedules s order by s.id
    """,
)
_named(
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
    returning {SCHEDULE_COLUMNS}, now() as now
    """,
)
_named(
    "release_schedules",
    """
    -- Promise 2: the next fire time, the ledger rows and the jobs of every schedule that is still ours, in one
    -- transaction. A schedule that was claimed by another node, replaced, paused or removed meanwhile is left alone,
    -- and so are its fires. Gives back what was written, and when the next schedule is due.
    with result as (
        select * from unnest($2::text[], $3::uuid[], $4::bytea[], $5::timestamptz[], $6::timestamptz[], $7::text[])
            as r (id, revision, trigger, last_fire_time, next_fire_time, broken_reason)
    ),
    held as (
        select s.id from {s}.schedules s join result r on r.id = s.id
        where s.acquired_by = $1 and s.revision = coalesce(r.revision, s.revision)
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
        from result r join held h on h.id = r.id
        where s.id = r.id
        returning s.*
    ),
    planned as (
        select * from unnest(
            $8::text[], $9::timestamptz[], $10::timestamptz[], $11::text[], $12::text[], $13::uuid[], $14::boolean[],
            $15::timestamptz[], $16::boolean[]
        ) as p (schedule_id, fire_time, run_time, state, reason, job_id, checks_overlap, start_deadline, claim)
    ),
    decided as (
        select p.*, r.task_id,
            p.state = 'pending' and p.checks_overlap and r.metadata ->> 'duetime.overlap' = 'skip'
                and exists (select from {s}.jobs j where j.schedule_id = p.schedule_id) as is_overlapping
        from planned p join released r on r.id = p.schedule_id
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
        order by schedule_id, fire_time
        on conflict do nothing
        returning schedule_id, fire_time, job_id, state
    ),
    job as (
        insert into {s}.jobs as j (
            id, task_id, args, kwargs, schedule_id, fire_time, scheduled_fire_time, executor, jitter, start_deadline,
            result_expiration_time, metadata, run_at, attempt, acquired_by, acquired_until, claimed_at
        )
        select
            f.job_id, r.task_id, r.args, r.kwargs, f.schedule_id, f.fire_time, d.run_time, r.job_executor,
            d.run_time - d.fire_time, d.start_deadline, r.job_result_expiration_time, r.metadata, d.run_time,
            case when d.claim then 1 else 0 end,
            case when d.claim then $1 end,
            case when d.claim then now() + $17::interval end,
            case when d.claim then now() end
        from fire f
        join decided d on d.schedule_id = f.schedule_id and d.fire_time = f.fire_time
        join released r on r.id = f.schedule_id
        where f.state = 'pending'
        returning j.id, j.schedule_id, j.task_id, j.acquired_by, j.acquired_until
    ),
    told as (
        select pg_notify($18, $19) where $19 <> '' and exists (select from job where acquired_by is null)
    )
    select
        array(select id from released) as released,
        array(select id from job where acquired_by is not null) as claimed,
        array(select id from job where acquired_by is null) as queued,
        -- Claimed ahead, while another node may still be at work on an earlier fire: looked at again when they start.
        array(
            select f.job_id from fire f join released r on r.id = f.schedule_id
            where f.state = 'pending' and f.fire_time > now() and r.metadata ->> 'duetime.overlap' = 'skip'
              and exists (
                  select from {s}.jobs o where o.schedule_id = f.schedule_id and o.acquired_by is distinct from $1
              )
        ) as contested,
        (select min(acquired_until) from job) as leased_until,
        (select d.next_fire_time from {s}.schedules d
         where d.next_fire_time is not null and not d.paused and d.broken_reason is null and d.acquired_by is null
         order by d.next_fire_time limit 1) as next_due,
        (select min(h.acquired_until) from {s}.schedules h
         where h.acquired_by is not null and h.id <> all($2::text[])) as next_expiry,
        (select count(*) from told) as told,
        clock_timestamp() as now
    """,
)
_named(
    "set_aside",
    """
    -- Marks schedules as broken, so that they are seen and can be repaired, and no longer claimed.
    update {s}.schedules s
    set broken_reason = b.reason, acquired_by = null, acquired_until = null, updated_at = now()
    from unnest($2::text[], $3::text[]) as b (id, reason)
    where s.id = b.id and s.acquired_by = $1
    """,
)
_named(
    "extend_schedules",
    """
    with mine as (
        select id from {s}.schedules where id = any($2::text[]) and acquired_by = $1 order by id for update
    )
    update {s}.schedules s set acquired_until = now() + $3 from mine where s.id = mine.id
    """,
)
_named(
    "pause_schedules",
    f"""
    with changed as (select id from {{s}}.schedules where id = any($1::text[]) order by id for update),
    {_TAKE_BACK.strip()},
    told as (select pg_notify($2, $3) where $3 <> '')
    update {{s}}.schedules s
    set paused = true, acquired_by = null, acquired_until = null, revision = gen_random_uuid(), updated_at = now(),
        -- What was taken back is due again, so that resuming in time loses nothing.
        next_fire_time = least(s.next_fire_time, (select min(t.fire_time) from taken t where t.schedule_id = s.id))
    from changed c where s.id = c.id
    returning s.id, s.task_id, s.next_fire_time, (select count(*) from told) as told,
        array(select t.id from taken t where t.schedule_id = s.id) as taken_back
    """,
)
_named(
    "resume_schedule",
    """
    -- Only if nobody has changed the schedule since it was read (revision $2).
    with told as (select pg_notify($5, $6) where $6 <> '')
    update {s}.schedules
    set paused = false, broken_reason = null, trigger = $3, next_fire_time = $4, acquired_by = null,
        acquired_until = null, revision = gen_random_uuid(), updated_at = now()
    where id = $1 and revision = $2
    returning id, task_id, next_fire_time, (select count(*) from told) as told
    """,
)
_named(
    "run_schedule",
    """
    -- Makes one job of a schedule now, beside its fire times; the ledger has it as a fire of this instant.
    with wanted as (select s.*, clock_timestamp() as at from {s}.schedules s where s.id = $1),
    told as (select pg_notify($3, $4) where $4 <> ''),
    fire as (
        insert into {s}.fires (schedule_id, fire_time, run_time, task_id, state, reason, job_id)
        select id, at, at, task_id, 'pending', 'run by request', $2 from wanted
        returning job_id
    )
    insert into {s}.jobs as j (
        id, task_id, args, kwargs, schedule_id, fire_time, scheduled_fire_time, executor, result_expiration_time,
        metadata, created_at, run_at
    )
    select f.job_id, w.task_id, w.args, w.kwargs, w.id, w.at, w.at, w.job_executor, w.job_result_expiration_time,
        w.metadata, w.at, w.at
    from wanted w cross join fire f
    returning j.id, j.task_id, j.schedule_id, (select count(*) from told) as told
    """,
)

# -- jobs ------------------------------------------------------------------------------------------------------------

_named(
    "add_jobs",
    """
    with new as (
        select * from unnest(
            $1::uuid[], $2::text[], $3::bytea[], $4::bytea[], $5::text[], $6::timestamptz[], $7::text[],
            $8::interval[], $9::timestamptz[], $10::interval[], $11::text[]
        ) as n (
            id, task_id, args, kwargs, schedule_id, scheduled_fire_time, executor, jitter, start_deadline,
            result_expiration_time, metadata
        )
    ),
    put as (
        insert into {s}.jobs (
            id, task_id, args, kwargs, schedule_id, fire_time, scheduled_fire_time, executor, jitter, start_deadline,
            result_expiration_time, metadata
        )
        select id, task_id, args, kwargs, schedule_id, scheduled_fire_time - jitter, scheduled_fire_time, executor,
            jitter, start_deadline, result_expiration_time, metadata::jsonb
        from new
        on conflict (id) do nothing
        returning id
    ),
    told as (select pg_notify($12, $13) where $13 <> '')
    select (select count(*) from put) as added, (select count(*) from told) as told
    """,
)
_named(
    "jobs",
    f"""
    select {JOB_COLUMNS} from {{s}}.jobs j where j.id = any($1::uuid[]) order by j.run_at, j.id
    """,
)
_named(
    "all_jobs",
    f"""
    select {JOB_COLUMNS} from {{s}}.jobs j order by j.run_at, j.id
    """,
)
_named(
    "acquire_jobs",
    f"""
    -- Claims due jobs within the limits of their tasks (see the function for how), and says in the same round trip when
    -- the queue is to be looked at next: one row without a job when there is none. Index: jobs_queue.
    with claimed as materialized (select * from {{s}}.claim_jobs_v1($1, $2, $3, $4)),
    next as (
        select
            -- What is due and was not claimed waits for a place of its task, and must not hide what is due next.
            (select q.run_at from {{s}}.jobs q
             where q.acquired_by is null and q.run_at > now() and q.id <> all (array(select id from claimed))
             order by q.run_at, q.id limit 1) as next_due,
            (select min(r.acquired_until) from {{s}}.jobs r where r.acquired_by is not null) as next_expiry
    )
    select {JOB_COLUMNS}, next.next_due, next.next_expiry, clock_timestamp() as now
    from next left join claimed j on true
    """,
)
_named(
    "next_work",
    """
    -- When is the next schedule due that nobody holds, when the first queued job, and the next one that is not due yet,
    -- and when do the next claims end?
    -- Indexes: schedules_due, schedules_held, jobs_queue, jobs_leases; each gives one row.
    select
        (select d.next_fire_time from {s}.schedules d
         where d.next_fire_time is not null and not d.paused and d.broken_reason is null and d.acquired_by is null
         order by d.next_fire_time, d.id limit 1) as schedule_due,
        (select min(h.acquired_until) from {s}.schedules h where h.acquired_by is not null) as schedule_expiry,
        (select q.run_at from {s}.jobs q where q.acquired_by is null order by q.run_at, q.id limit 1) as job_due,
        (select q.run_at from {s}.jobs q
         where q.acquired_by is null and q.run_at > now() order by q.run_at, q.id limit 1) as next_job_due,
        (select min(r.acquired_until) from {s}.jobs r where r.acquired_by is not null) as job_expiry,
        clock_timestamp() as now
    """,
)
_named(
    "held_jobs",
    """
    -- Which of these jobs are still this node's?
    select id from {s}.jobs where id = any($2::uuid[]) and acquired_by = $1
    """,
)
_named(
    "overlapped_jobs",
    """
    -- Which of these jobs have an unfinished one of an earlier fire of the same schedule? Index: jobs_by_schedule.
    select j.id from {s}.jobs j
    where j.id = any($1::uuid[]) and exists (
        select from {s}.jobs o where o.schedule_id = j.schedule_id and o.fire_time < j.fire_time
    )
    """,
)
_named(
    "extend_jobs",
    """
    with mine as (select id from {s}.jobs where id = any($2::uuid[]) and acquired_by = $1 order by id for update)
    update {s}.jobs j set acquired_until = clock_timestamp() + $3 from mine where j.id = mine.id
    returning j.id
    """,
)
_named(
    "give_back_jobs",
    """
    -- Undoes claims on jobs that have not started.
    with mine as (select id from {s}.jobs where id = any($2::uuid[]) and acquired_by = $1 order by id for update),
    told as (select pg_notify($3, $4) where $4 <> '')
    update {s}.jobs j
    set acquired_by = null, acquired_until = null, claimed_at = null, attempt = j.attempt - 1
    from mine where j.id = mine.id
    returning j.id, (select count(*) from told) as told
    """,
)
_named(
    "leave",
    """
    -- Frees the schedules and jobs that a node which stops has claimed, but for jobs ($2) that have begun.
    -- Indexes: schedules_held, jobs_leases.
    with held as (select id from {s}.schedules where acquired_by = $1 order by id for update),
    freed as (
        update {s}.schedules s set acquired_by = null, acquired_until = null
        where s.id = any (array(select id from held))
        returning s.id
    ),
    mine as (select id from {s}.jobs where acquired_by = $1 and id <> all ($2::uuid[]) order by id for update),
    given_back as (
        update {s}.jobs j
        set acquired_by = null, acquired_until = null, claimed_at = null, attempt = j.attempt - 1
        where j.id = any (array(select id from mine))
        returning j.id
    ),
    told as (
        select pg_notify($3, $4)
        where $4 <> '' and (exists (select from freed) or exists (select from given_back))
    )
    select (select count(*) from freed) as schedules, (select count(*) from given_back) as jobs,
        (select count(*) from told) as told
    """,
)
_named(
    "finish_jobs",
    """
    -- Ends attempts: run rows for all; the job goes, or waits for its next attempt; its fire and its result follow.
    -- Only for jobs that are still ours, in the attempt that we ran: what another node took over is left alone.
    with done as (
        select * from unnest(
            $2::uuid[], $3::integer[], $4::text[], $5::text[], $6::timestamptz[], $7::timestamptz[], $8::text[],
            $9::interval[], $10::text[], $11::timestamptz[], $12::bytea[], $13::bytea[]
        ) as d (
            id, attempt, outcome, fire_state, started_at, finished_at, error, retry_after, result_outcome, expires_at,
            exception, return_value
        )
    ),
    mine as (
        select j.*, d.outcome, d.fire_state, d.started_at, d.finished_at, d.error,
            case when d.retry_after is not null then now() + d.retry_after end as retry_at,
            d.result_outcome, d.expires_at, d.exception, d.return_value
        from {s}.jobs j join done d on d.id = j.id
        where j.acquired_by = $1 and j.attempt = coalesce(d.attempt, j.attempt)
        order by j.id
        for update of j
    ),
    again as (
        update {s}.jobs j
        set acquired_by = null, acquired_until = null, claimed_at = null, run_at = m.retry_at
        from mine m where j.id = m.id and m.retry_at is not null
    ),
    gone as (delete from {s}.jobs j using mine m where j.id = m.id and m.retry_at is null),
    run as (
        insert into {s}.runs (
            job_id, attempt, schedule_id, fire_time, due_at, task_id, node, started_at, finished_at, outcome, error,
            will_retry_at
        )
        select id, attempt, schedule_id, fire_time, run_at, task_id, $1, started_at, finished_at, outcome, error,
            retry_at
        from mine where outcome is not null order by finished_at
    ),
    fire as (
        update {s}.fires f
        set attempts = case when m.outcome is null then f.attempts else m.attempt end,
            job_id = case when m.outcome is null then null else f.job_id end,
            state = case when m.retry_at is null then m.fire_state else f.state end,
            reason = coalesce(m.error, f.reason),
            finished_at = case when m.retry_at is null then m.finished_at end
        from mine m where f.schedule_id = m.schedule_id and f.fire_time = m.fire_time
    ),
    result as (
        insert into {s}.job_results (job_id, outcome, started_at, finished_at, expires_at, exception, return_value)
        select id, result_outcome, started_at, finished_at, expires_at, exception, return_value
        from mine where retry_at is null and expires_at > finished_at
        on conflict (job_id) do nothing
    ),
    told as (select pg_notify($14, payload) from unnest($15::text[]) as payload)
    select id, retry_at, (select count(*) from told) as told from mine
    """,
)
_named(
    "reap_jobs",
    """
    -- Ends the attempts of nodes that vanished (promise 3): a job is queued again, or recorded as abandoned if its task
    -- asks for that ("on_crash") or it has taken 20 nodes with it. $1: only this node's; null: those whose lease has
    -- ended. $2: what a job without the option gets.
    with lost as (
        select j.*, coalesce(j.metadata ->> 'duetime.on_crash', $2) = 'abandon' or j.attempt >= 20 as ends
        from {s}.jobs j
        where j.acquired_by is not null
          and case when $1::text is null then j.acquired_until < clock_timestamp() else j.acquired_by = $1 end
        order by j.id
        limit 1000
        for update skip locked
    ),
    again as (
        update {s}.jobs j
        set acquired_by = null, acquired_until = null, claimed_at = null
        where j.id = any (array(select id from lost where not ends))
    ),
    gone as (delete from {s}.jobs j where j.id = any (array(select id from lost where ends))),
    run as (
        insert into {s}.runs (
            job_id, attempt, schedule_id, fire_time, due_at, task_id, node, started_at, finished_at, outcome, error,
            will_retry_at
        )
        select id, attempt, schedule_id, fire_time, run_at, task_id, acquired_by, claimed_at, clock_timestamp(),
            'abandoned', 'the node vanished: its lease ended and was not renewed',
            case when not ends then clock_timestamp() end
        from lost
    ),
    fire as (
        update {s}.fires f
        set attempts = l.attempt,
            state = case when l.ends then 'abandoned' else f.state end,
            reason = 'the node ' || l.acquired_by || ' vanished while it ran',
            finished_at = case when l.ends then clock_timestamp() end
        from lost l where f.schedule_id = l.schedule_id and f.fire_time = l.fire_time
    ),
    result as (
        insert into {s}.job_results (job_id, outcome, finished_at, expires_at)
        select id, 'abandoned', clock_timestamp(), clock_timestamp() + result_expiration_time
        from lost where ends and result_expiration_time > interval '0'
        on conflict (job_id) do nothing
    )
    select id, task_id, schedule_id, scheduled_fire_time, acquired_by, ends from lost
    """,
)
_named(
    "job_result",
    """
    select job_id, outcome, started_at, finished_at, expires_at, exception, return_value
    from {s}.job_results where job_id = $1 and expires_at > now()
    """,
)

# -- clean-up --------------------------------------------------------------------------------------------------------

_named(
    "purge_results",
    """
    with old as (
        select job_id from {s}.job_results where expires_at <= now() order by job_id limit 1000 for update skip locked
    )
    delete from {s}.job_results r using old where r.job_id = old.job_id returning r.job_id
    """,
)
_named(
    "purge_finished_schedules",
    """
    -- Removes schedules that have no fire left and no job either; their fires and runs stay.
    with finished as (
        select s.id from {s}.schedules s
        where s.next_fire_time is null and s.broken_reason is null and s.acquired_by is null
          and not exists (select from {s}.jobs j where j.schedule_id = s.id)
        order by s.id limit 1000 for update skip locked
    )
    delete from {s}.schedules s using finished where s.id = finished.id returning s.id, s.task_id
    """,
)
