"""The statements about jobs before they end: adding, claiming, confirming, giving back, cancelling."""

from __future__ import annotations

from .naming import JOB_COLUMNS, TIMES, fires_of, named

_ADD_JOBS = """
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
        {only}
        on conflict (id) do nothing
        returning id
    ),
    told as (select pg_notify($12, $13) where $13 <> '' and {heard})
    select (select count(*) from put) as added, (select count(*) from told) as told
"""
named("add_jobs", _ADD_JOBS.replace("{only}", ""))
named(
    "add_jobs_again",
    # For an attempt whose answer was lost: a job that it made may have ended already. Index: runs_by_job.
    _ADD_JOBS.replace("{only}", "where not exists (select from {s}.runs r where r.job_id = new.id)"),
)
named(
    "jobs",
    f"""
    select {JOB_COLUMNS} from {{s}}.jobs j where j.id = any($1::uuid[]) order by j.run_at, j.id
    """,
)
named(
    "all_jobs",
    f"""
    select {JOB_COLUMNS} from {{s}}.jobs j order by j.run_at, j.id
    """,
)
named(
    "acquire_jobs",
    f"""
    -- Claims due jobs within the limits of their tasks (see the function for how), and says in the same round trip when
    -- the queue is to be looked at next: one row without a job when there is none. Index: jobs_queue.
    with claimed as materialized (select * from {{s}}.claim_jobs_v3($1, $2, $3, $4, true)),
    next as (
        select
            -- What is due and was not claimed waits for a place of its task, and must not hide what is due next.
            least(
                (select {{time: q.run_at}} from {{s}}.jobs q
                 where q.acquired_by is null and q.run_at > now() and q.id <> all (array(select id from claimed))
                 order by q.run_at, q.id limit 1),
                -- Nor is anything left that may be claimed, while there is room, unless somebody had it locked, as
                -- another claim has more than it takes, or has claimed it meanwhile.
                case when (select count(*) from claimed) < $4 then
                    (select now() + interval '0.1 seconds' from {{s}}.jobs q
                     where q.acquired_by is null and q.run_at <= now() and q.id not in (select id from claimed)
                       and not exists (
                           select from {{s}}.tasks t
                           where t.id = q.task_id
                             and (t.max_running_jobs is not null or t.metadata ? 'duetime.max_running_per_key')
                       )
                     order by q.run_at, q.id limit 1)
                end
            ) as next_due,
            (select {{time: r.acquired_until}} from {{s}}.jobs r where r.acquired_by is not null
             order by r.acquired_until limit 1) as next_expiry
    )
    select {JOB_COLUMNS}, next.next_due, next.next_expiry, {TIMES}
    from next left join claimed j on true
    """,
)
named(
    "lost_claims",
    f"""
    -- Which jobs has an earlier attempt at a claim claimed ($2: known ones aside)? A job that was claimed as it was
    -- made is the release's to find: its claim is as old as it is. Index: jobs_leases.
    select {JOB_COLUMNS} from {{s}}.jobs j
    where j.acquired_by = $1 and j.acquired_until > now() and j.claimed_at > j.created_at and j.id <> all ($2::uuid[])
    order by j.run_at, j.id
    """,
)
named(
    "held_jobs",
    """
    -- Which of these jobs are still this node's?
    select id from {s}.jobs where id = any($2::uuid[]) and acquired_by = $1
    """,
)
named(
    "confirm_jobs",
    """
    -- Jobs that may run at most once, and are still this node's, are about to begin ($3 = false): from then on nobody
    -- takes it for certain that they have not. Or they are held again, which has no effect once their time has come.
    with mine as (
        select id from {s}.jobs
        where id = any($2::uuid[]) and acquired_by = $1 and (not $3 or run_at > clock_timestamp())
        order by id for update
    )
    update {s}.jobs j set held = $3 from mine where j.id = mine.id
    returning j.id
    """,
)
named(
    "overlapped_jobs",
    """
    -- Which of these jobs have an unfinished one of an earlier fire of the same schedule? Index: jobs_by_schedule.
    select j.id from {s}.jobs j
    where j.id = any($1::uuid[]) and exists (
        select from {s}.jobs o where o.schedule_id = j.schedule_id and o.fire_time < j.fire_time
    )
    """,
)
named(
    "settle_jobs",
    """
    -- May these jobs begin, or do earlier ones of their schedules stand before them? See the function.
    -- Indexes: jobs_waiting, jobs_by_schedule.
    select job_id, verdict, reason from {s}.settle_jobs_v1($1, $2, $3)
    """,
)
named(
    "extend_jobs",
    """
    -- Renews leases, also those that have ended and that nobody has taken over; but a limited task's only if there is a
    -- place for them: others may have taken it since.
    with ended as (
        select j.id, t.max_running_jobs, row_number() over (partition by j.task_id order by j.id) + (
            select count(*) from {s}.jobs r
            where r.task_id = j.task_id and r.acquired_by is not null and r.acquired_until >= now()
        ) as places
        from {s}.jobs j join {s}.tasks t on t.id = j.task_id
        where j.id = any($2::uuid[]) and j.acquired_by = $1 and j.acquired_until < now()
          and t.max_running_jobs is not null
    ),
    mine as (
        select id from {s}.jobs
        where id = any($2::uuid[]) and acquired_by = $1
          and not exists (select from ended e where e.id = jobs.id and e.places > e.max_running_jobs)
        order by id for update
    )
    update {s}.jobs j set acquired_until = clock_timestamp() + $3 from mine where j.id = mine.id
    -- The net under the notification of a cancellation.
    returning j.id, j.cancel_requested_at is not null as is_cancelled, j.cancel_reason
    """,
)
named(
    "cancel_job",
    """
    -- Cancels a job ($1) for a reason ($2): at once if nobody has claimed it, with its ledger row, a run that has never
    -- started, and the result that somebody may wait for ($4 tells of it). Otherwise the node that has claimed it is
    -- asked to ($5), and the first one who asks says why. Gives back nothing of the job when there is none, and how its
    -- latest attempt ended. Indexes: jobs_pkey, runs_by_job.
    with wanted as (select * from {s}.jobs where id = $1 for update),
    asked as (
        update {s}.jobs j
        set cancel_requested_at = coalesce(j.cancel_requested_at, clock_timestamp()),
            cancel_reason = case when j.cancel_requested_at is null then $2 else j.cancel_reason end
        from wanted w where j.id = w.id and w.acquired_by is not null
    ),
    gone as (delete from {s}.jobs j using wanted w where j.id = w.id and w.acquired_by is null returning j.*),
    run as (
        insert into {s}.runs (job_id, attempt, schedule_id, fire_time, due_at, task_id, finished_at, outcome, error)
        select id, least(attempt, 2147483646) + 1, schedule_id, fire_time, run_at, task_id, clock_timestamp(),
            'cancelled', $2
        from gone
    ),
    {fires},
    result as (
        insert into {s}.job_results (job_id, outcome, finished_at, expires_at)
        select id, 'cancelled', clock_timestamp(), clock_timestamp() + {duration: result_expiration_time}
        from gone where result_expiration_time > interval '0'
        on conflict (job_id) do nothing
    ),
    told as (
        select pg_notify($3, case when acquired_by is null then $4::text else $5::text end)
        from wanted where $4 <> '' and {heard}
    )
    select w.task_id, w.schedule_id, w.acquired_by, w.id is not null as is_there,
        (select r.outcome from {s}.runs r where r.job_id = $1 order by r.attempt desc limit 1) as last_outcome,
        (select count(*) from told) as told
    from (values (1)) as one left join wanted w on true
    """.replace("{fires}", fires_of("gone", "state = 'cancelled', reason = $2, finished_at = clock_timestamp()")),
)
named(
    "cancel_requests",
    """
    -- Which of these jobs, that this node has claimed, does somebody want cancelled? Index: jobs_pkey.
    select id, cancel_reason from {s}.jobs
    where id = any($2::uuid[]) and acquired_by = $1 and cancel_requested_at is not null
    """,
)
named(
    "give_back_jobs",
    """
    -- Undoes claims on jobs that have not started, but none that is later than $3: a statement that the network has
    -- delayed, and that has been sent again meanwhile, must not undo what has been claimed since.
    with mine as (
        select id from {s}.jobs
        where id = any($2::uuid[]) and acquired_by = $1 and coalesce(claimed_at, '-infinity') <= $3
        order by id for update
    ),
    told as (select pg_notify($4, $5) where $5 <> '' and {heard})
    update {s}.jobs j
    set acquired_by = null, acquired_until = null, claimed_at = null, held = false, attempt = j.attempt - 1
    from mine where j.id = mine.id
    returning j.id, (select count(*) from told) as told
    """,
)
named(
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
        set acquired_by = null, acquired_until = null, claimed_at = null, held = false, attempt = j.attempt - 1
        where j.id = any (array(select id from mine))
        returning j.id
    ),
    told as (
        select pg_notify($3, $4)
        where $4 <> '' and {heard} and (exists (select from freed) or exists (select from given_back))
    )
    select (select count(*) from freed) as schedules, (select count(*) from given_back) as jobs,
        (select count(*) from told) as told
    """,
)
