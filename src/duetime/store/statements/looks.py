"""The statements that look at everything: what is due next, what a store has to know at first, what to clean up."""

from __future__ import annotations

from .naming import named

MOST_TASKS_READ_AT_ONCE = 1000
"""Definitions of tasks that are read at the start; when there are more, each is read when it is needed."""

named("time", "select {times}")
named(
    "next_work",
    """
    -- When is the next schedule due that nobody holds, when the first queued job, and the next one that is not due yet,
    -- and when do the next claims end?
    -- Indexes: schedules_due, schedules_held, jobs_queue, jobs_leases; each gives one row, but for those that are due
    -- together.
    select
        (select {time: d.next_fire_time} from {s}.schedules d
         where d.next_fire_time is not null and not d.paused and d.broken_reason is null and d.acquired_by is null
         order by d.next_fire_time, d.id limit 1) as schedule_due,
        {crowd} as crowd,
        (select {time: h.acquired_until} from {s}.schedules h where h.acquired_by is not null
         order by h.acquired_until limit 1) as schedule_expiry,
        (select {time: q.run_at} from {s}.jobs q
         where q.acquired_by is null order by q.run_at, q.id limit 1) as job_due,
        (select {time: q.run_at} from {s}.jobs q
         where q.acquired_by is null and q.run_at > now() order by q.run_at, q.id limit 1) as next_job_due,
        (select {time: r.acquired_until} from {s}.jobs r where r.acquired_by is not null
         order by r.acquired_until limit 1) as job_expiry,
        {times}
    """,
)
named(
    "opening",
    f"""
    -- What a store has to know before it begins, as one text: runs as a COPY, so it takes no arguments.
    -- Indexes: those of next_work, and job_results_expiry and schedules_finished for what there is to clean up.
    select encode(convert_to(json_build_object(
        'version', (select max(version) from {{s}}.schema_version),
        'server_pid', pg_backend_pid(),
        'began_at', extract(epoch from statement_timestamp()),
        'told_at', extract(epoch from clock_timestamp()),
        'tasks', (
            select coalesce(json_agg(t), '[]') from (
                select id, func, job_executor, max_running_jobs,
                    extract(epoch from {{duration: misfire_grace_time}}) as misfire_grace_time,
                    metadata::text as metadata
                from {{s}}.tasks order by id limit {MOST_TASKS_READ_AT_ONCE + 1}
            ) t
        ),
        'schedule_due', (
            select extract(epoch from {{time: d.next_fire_time}}) from {{s}}.schedules d
            where d.next_fire_time is not null and not d.paused and d.broken_reason is null and d.acquired_by is null
            order by d.next_fire_time, d.id limit 1
        ),
        'crowd', {{crowd}},
        'schedule_expiry', (
            select extract(epoch from min(h.acquired_until)) from {{s}}.schedules h where h.acquired_by is not null
        ),
        'job_due', (
            select extract(epoch from {{time: q.run_at}}) from {{s}}.jobs q where q.acquired_by is null
            order by q.run_at, q.id limit 1
        ),
        'next_job_due', (
            select extract(epoch from {{time: q.run_at}}) from {{s}}.jobs q
            where q.acquired_by is null and q.run_at > now()
            order by q.run_at, q.id limit 1
        ),
        'job_expiry', (
            select extract(epoch from min(r.acquired_until)) from {{s}}.jobs r where r.acquired_by is not null
        ),
        'is_clean',
            not exists (select from {{s}}.job_results where expires_at <= now())
            and (
                select f.id from {{s}}.schedules f where f.next_fire_time is null and f.broken_reason is null
                order by f.id limit 1
            ) is null
            and not exists (select from {{s}}.jobs l where l.acquired_by is not null and l.acquired_until < now())
    )::text, 'UTF8'), 'hex')
    """,
)
named(
    "purge_results",
    """
    with old as (
        select job_id from {s}.job_results where expires_at <= now() order by job_id limit 1000 for update skip locked
    )
    delete from {s}.job_results r using old where r.job_id = old.job_id returning r.job_id
    """,
)
named(
    "purge_finished_schedules",
    """
    -- Removes schedules that have no fire left and no job either; their fires and runs stay.
    with finished as (
        select s.id from {s}.schedules s
        where s.next_fire_time is null and s.broken_reason is null and s.acquired_by is null
          and not exists (select from {s}.jobs j where j.schedule_id = s.id)
        order by s.id limit 1000 for update skip locked
    )
    , noted as (
        -- Of one that ended by its own limits: the others' last fire says it.
        insert into {s}.schedule_changes (schedule_id, change, detail)
        select s.id, 'finished', jsonb_build_object(
            'created_at', s.created_at, 'last_fire_time', s.last_fire_time,
            'expires_at', s.metadata -> 'duetime.expires_at', 'max_fires', s.metadata -> 'duetime.max_fires'
        )
        from {s}.schedules s join finished on finished.id = s.id
        where s.metadata ?| array['duetime.expires_at', 'duetime.max_fires']
    )
    delete from {s}.schedules s using finished where s.id = finished.id returning s.id, s.task_id
    """,
)
