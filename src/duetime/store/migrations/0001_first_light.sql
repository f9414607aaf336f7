-- Tasks, schedules, jobs, the ledger of fires, runs and results.
-- "{schema}" is replaced by the quoted name of the schema; every name below is qualified, so no search_path matters.

create table {schema}.tasks (
    id                 text primary key check (length(id) between 1 and 500),
    func               text,
    job_executor       text not null,
    max_running_jobs   integer check (max_running_jobs > 0),
    misfire_grace_time interval,
    metadata           jsonb not null default '{}'
);
comment on table {schema}.tasks is 'Registered callables with their options.';

create table {schema}.schedules (
    id                         text primary key check (length(id) between 1 and 500),
    task_id                    text not null,
    trigger                    bytea not null,
    args                       bytea not null,
    kwargs                     bytea not null,
    paused                     boolean not null default false,
    coalesce                   text not null check (coalesce in ('earliest', 'latest', 'all')),
    misfire_grace_time         interval,
    max_jitter                 interval,
    job_executor               text not null,
    job_result_expiration_time interval not null default '0',
    metadata                   jsonb not null default '{}',
    tags                       text[] not null default '{}',
    engine                     text not null default 'apscheduler',
    last_fire_time             timestamptz,
    next_fire_time             timestamptz,
    acquired_by                text,
    acquired_until             timestamptz,
    -- Changes with every change of the definition: a node that claimed an earlier revision can no longer release it.
    revision                   uuid not null,
    -- Why the schedule was set aside; null for a schedule that can fire.
    broken_reason              text,
    created_at                 timestamptz not null default now(),
    updated_at                 timestamptz not null default now()
);
comment on table {schema}.schedules is 'A task + trigger + arguments + options, with an id.';

-- "Which schedules are due?" and "When is the next one due?"
create index schedules_due on {schema}.schedules (next_fire_time, id)
    where next_fire_time is not null and not paused and broken_reason is null;
-- "Whose claim ends next?"
create index schedules_held on {schema}.schedules (acquired_until) where acquired_by is not null;
-- "Which schedules have no fire left?"
create index schedules_finished on {schema}.schedules (id) where next_fire_time is null;
create index schedules_by_task on {schema}.schedules (task_id, id);
create index schedules_by_tag on {schema}.schedules using gin (tags) where tags <> '{}';

create table {schema}.jobs (
    id                     uuid primary key,
    task_id                text not null,
    args                   bytea not null,
    kwargs                 bytea not null,
    schedule_id            text,
    -- The due instant without jitter: with schedule_id the key of the ledger row.
    fire_time              timestamptz,
    scheduled_fire_time    timestamptz,
    executor               text not null,
    jitter                 interval not null default '0',
    start_deadline         timestamptz,
    result_expiration_time interval not null default '0',
    metadata               jsonb not null default '{}',
    created_at             timestamptz not null default now(),
    -- Not started before this instant: the fire's run time, or the end of a retry's wait.
    run_at                 timestamptz not null default now(),
    -- Attempts begun so far; the attempt under way while the job is claimed.
    attempt                integer not null default 0,
    acquired_by            text,
    acquired_until         timestamptz,
    claimed_at             timestamptz
);
comment on table {schema}.jobs is 'Queued and running work. "Running" is a row with a live lease, never a counter.';

-- "Which queued jobs are due, oldest first?"
create index jobs_queue on {schema}.jobs (run_at, id) where acquired_by is null;
-- "Whose lease has ended?"
create index jobs_leases on {schema}.jobs (acquired_until) where acquired_by is not null;
-- "Is a job of this schedule still going?"
create index jobs_by_schedule on {schema}.jobs (schedule_id) where schedule_id is not null;
-- "Which queued job of this task is next?"
create index jobs_queue_by_task on {schema}.jobs (task_id, run_at, id) where acquired_by is null;
-- "How many jobs of this task are running?"
create index jobs_running on {schema}.jobs (task_id, acquired_until) where acquired_by is not null;

create table {schema}.fires (
    schedule_id text not null,
    fire_time   timestamptz not null,
    run_time    timestamptz,
    task_id     text not null,
    state       text not null check (state in
        ('pending', 'succeeded', 'failed', 'skipped', 'coalesced', 'missed', 'cancelled', 'abandoned')),
    reason      text,
    job_id      uuid,
    attempts    integer not null default 0,
    node        text,
    created_at  timestamptz not null default now(),
    finished_at timestamptz,
    -- Promise 2: a fire exists once, for ever, whoever tries to fire it again.
    primary key (schedule_id, fire_time)
);
comment on table {schema}.fires is 'The ledger: what became of every due instant. It outlives its schedule.';

-- "Which fires were the latest, over all schedules?"
create index fires_recent on {schema}.fires (fire_time desc, schedule_id desc);

create table {schema}.runs (
    id            bigint generated always as identity primary key,
    job_id        uuid not null,
    attempt       integer not null,
    schedule_id   text,
    fire_time     timestamptz,
    due_at        timestamptz,
    task_id       text not null,
    node          text,
    started_at    timestamptz,
    finished_at   timestamptz not null,
    outcome       text not null check (outcome in
        ('success', 'error', 'timeout', 'cancelled', 'abandoned', 'missed', 'unreadable')),
    error         text,
    will_retry_at timestamptz
);
comment on table {schema}.runs is 'What happened: one row per attempt.';

create index runs_by_schedule on {schema}.runs (schedule_id, id desc) where schedule_id is not null;
create index runs_by_task on {schema}.runs (task_id, id desc);
create index runs_by_job on {schema}.runs (job_id, attempt);

create table {schema}.job_results (
    job_id       uuid primary key,
    outcome      text not null,
    started_at   timestamptz,
    finished_at  timestamptz not null,
    expires_at   timestamptz not null,
    exception    bytea,
    return_value bytea
);
comment on table {schema}.job_results is 'Return values and errors, readable any number of times until they expire.';

create index job_results_expiry on {schema}.job_results (expires_at);

-- Claims up to p_limit queued jobs that are due, or will be within p_ahead, oldest first, and returns them.
--
-- A task with max_running_jobs gets no more than its free places, counted from job rows with a live lease. The rows of
-- such tasks are locked first, in a statement of their own: the count below then has a snapshot taken after the lock,
-- so two nodes can never both see the same free place. Their jobs are not claimed ahead, which would hold a place idle.
create function {schema}.claim_jobs_v1(p_node text, p_lease interval, p_ahead interval, p_limit integer)
returns setof {schema}.jobs
language plpgsql as $$
declare
    -- A variable, because an index is of no use for a comparison with the volatile clock_timestamp().
    v_now timestamptz := clock_timestamp();
begin
    perform from {schema}.tasks t
    where t.max_running_jobs is not null
      and exists (
          select from {schema}.jobs j where j.task_id = t.id and j.acquired_by is null and j.run_at <= v_now
      )
    order by t.id
    for update;
    v_now := clock_timestamp();

    return query
    with room as (
        select
            t.id,
            greatest(0, t.max_running_jobs - (
                select count(*) from {schema}.jobs r
                where r.task_id = t.id and r.acquired_by is not null and r.acquired_until >= v_now
            )) as places
        from {schema}.tasks t
        where t.max_running_jobs is not null
    ),
    unlimited as (
        select j.id, j.run_at
        from {schema}.jobs j
        where j.acquired_by is null
          and j.run_at <= v_now + p_ahead
          and not exists (select from room where room.id = j.task_id)
        order by j.run_at, j.id
        limit p_limit
        for update of j skip locked
    ),
    limited as (
        select queued.id, queued.run_at
        from room
        cross join lateral (
            select j.id, j.run_at
            from {schema}.jobs j
            where j.task_id = room.id and j.acquired_by is null and j.run_at <= v_now
            order by j.run_at, j.id
            limit least(room.places, p_limit)
            for update skip locked
        ) queued
        where room.places > 0
    ),
    chosen as (
        select due.id from (select * from unlimited union all select * from limited) due
        order by due.run_at, due.id
        limit p_limit
    )
    update {schema}.jobs j
    set acquired_by = p_node,
        acquired_until = v_now + p_lease,
        claimed_at = v_now,
        attempt = j.attempt + 1
    where j.id = any (array(select id from chosen))
    returning j.*;
end
$$;
