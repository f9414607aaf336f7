"""The statements about definitions of tasks."""

from __future__ import annotations

from .naming import named

named(
    "put_task",
    """
    -- Adds a task, or replaces its definition unless that is to be kept; says which it did. Runs unprepared.
    with given as (
        select * from json_to_record(convert_from(decode('{values}', 'hex'), 'UTF8')::json) as g (
            id text, func text, job_executor text, max_running_jobs integer, misfire_grace_time interval,
            metadata text, channel text, payload text, keep boolean
        )
    ),
    told as (select pg_notify(channel, payload) from given where payload <> '' and {heard}),
    put as (
        insert into {s}.tasks as t (id, func, job_executor, max_running_jobs, misfire_grace_time, metadata)
        select id, func, job_executor, max_running_jobs, misfire_grace_time, metadata::jsonb from given
        on conflict (id) do update
        set func = excluded.func,
            job_executor = excluded.job_executor,
            max_running_jobs = excluded.max_running_jobs,
            misfire_grace_time = excluded.misfire_grace_time,
            metadata = excluded.metadata
        where not (select keep from given)
        returning t.xmax = 0 as added
    )
    select encode(convert_to(json_build_object(
        'added', (select added from put), 'told', (select count(*) from told)
    )::text, 'UTF8'), 'hex')
    """,
)
named(
    "remove_task",
    """
    with told as (select pg_notify($2, $3) where $3 <> '' and {heard})
    delete from {s}.tasks where id = $1 returning id, (select count(*) from told) as told
    """,
)
named(
    "tasks",
    """
    -- One task, or all of them; running jobs are counted from live leases, so no crash can leave the count wrong.
    select t.id, t.func, t.job_executor, t.max_running_jobs, {duration: t.misfire_grace_time} as misfire_grace_time,
        t.metadata::text as metadata,
        (select count(*) from {s}.jobs j
         where j.task_id = t.id and j.acquired_by is not null and j.acquired_until >= now())::int as running_jobs
    from {s}.tasks t
    where $1::text is null or t.id = $1
    order by t.id
    """,
)
