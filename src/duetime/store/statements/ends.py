"""The statements that end attempts of jobs, and what follows from that."""

from __future__ import annotations

from ...tasks import AUTO_EXECUTOR
from .naming import TAKEN_OF, fires_of, named

# What follows from a job that has failed for good, in the transaction that says so. "over" is the CTE of jobs that have
# ended: as a hook, a job of the task that "on_failure" names, told of it, and without a hook of its own; and a pause of
# the schedule, if so many of its latest fires in a row have failed, counted in the ledger since the schedule's last
# change (a resumption is one). Fires that did not run do not count. Indexes: tasks_pkey, schedules_pkey, fires_pkey.
_CONSEQUENCES = f"""
    failed as (select * from over where state in ('failed', 'abandoned')),
    hook as (
        insert into {{s}}.jobs (id, task_id, args, kwargs, executor, metadata)
        select gen_random_uuid(), f.hook, '[]',
            convert_to(json_build_object('failure', json_build_object(
                'job_id', f.id, 'task', f.task_id, 'schedule_id', f.schedule_id, 'fire_time', f.fire_time,
                'state', f.state, 'attempts', f.attempt, 'error', f.error, 'node', f.node, 'failed_at', f.finished_at
            ))::text, 'UTF8'),
            coalesce(t.job_executor, '{AUTO_EXECUTOR}'),
            coalesce(t.metadata, '{{}}') - 'duetime.on_failure'
        from (select *, metadata ->> 'duetime.on_failure' as hook from failed) f
        left join {{s}}.tasks t on t.id = f.hook
        where f.hook <> ''
        returning id
    ),
    asking as (
        select schedule_id, array_agg(fire_time) as fire_times, array_agg(state <> 'succeeded') as are_bad,
            (array_agg(error order by fire_time desc) filter (where asks))[1] as error,
            (array_agg(most order by fire_time desc) filter (where asks))[1] as most
        from (
            select *,
                state <> 'succeeded' and metadata ->> 'duetime.pause_on_failure' is not null as asks,
                case when metadata ->> 'duetime.pause_on_failure' ~ '^[1-9][0-9]?[0-9]?$'
                    then (metadata ->> 'duetime.pause_on_failure')::integer end as most
            from over where schedule_id is not null
        ) o
        group by schedule_id having bool_or(asks)
    ),
    streak as (
        select a.* from asking a join {{s}}.schedules s on s.id = a.schedule_id
        where not s.paused and a.most = (
            select count(*) filter (where latest.is_bad)
            from (
                select * from (
                    select l.fire_time, l.state <> 'succeeded' as is_bad
                    from (
                        select * from {{s}}.fires f where f.schedule_id = a.schedule_id
                        order by f.fire_time desc limit 1000
                    ) l
                    where l.state in ('succeeded', 'failed', 'abandoned') and l.finished_at > s.updated_at
                    union all
                    select * from unnest(a.fire_times, a.are_bad)
                ) counted
                order by fire_time desc
                limit a.most
            ) latest
        )
    ),
    changed as (
        select s.id, k.most, k.error from {{s}}.schedules s join streak k on k.schedule_id = s.id
        order by s.id for update of s
    ),
    taken as materialized (
        select * from {{s}}.take_back_v2(array(select id from changed), array(select id from over))
    ),
    {TAKEN_OF},
    paused as (
        update {{s}}.schedules s
        set paused = true, acquired_by = null, acquired_until = null, revision = gen_random_uuid(), updated_at = now(),
            pause_reason = case when c.most = 1 then 'a fire has' else c.most || ' fires in a row have' end
                || ' failed (pause_on_failure), the last one with: '
                || coalesce(left(c.error, 1000), 'no error'),
            next_fire_time = least(s.next_fire_time, t.first_fire)
        from changed c left join taken_of t on t.schedule_id = c.id
        where s.id = c.id and not s.paused
        returning s.id, s.pause_reason
    ),
    noted as (
        insert into {{s}}.schedule_changes (schedule_id, change, detail)
        select p.id, 'paused', jsonb_build_object('reason', p.pause_reason) from paused p
    ),
"""

_FINISH_JOBS = """
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
        select j.*, d.outcome, d.started_at, d.finished_at, d.error,
            -- Whose cancellation was asked for makes no further attempt.
            case when j.cancel_requested_at is null then now() + d.retry_after end as retry_at,
            case when j.cancel_requested_at is not null and d.fire_state = 'failed' then 'cancelled'
                else d.fire_state end as fire_state,
            case when j.cancel_requested_at is not null and d.fire_state = 'failed'
                then coalesce(j.cancel_reason, 'cancelled by request') else d.error end as reason,
            d.result_outcome, d.expires_at, d.exception, d.return_value
        from {s}.jobs j join done d on d.id = j.id
        where j.acquired_by = $1 and j.attempt = coalesce(d.attempt, j.attempt) and {sized: $2::uuid[]}
        order by j.id
        for update of j
    ),
    again as (
        update {s}.jobs j
        set acquired_by = null, acquired_until = null, claimed_at = null, run_at = m.retry_at,
            last_error = coalesce(m.error, j.last_error),
            -- The grace time is for the start of the first attempt.
            start_deadline = null
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
    {fires},
    result as (
        insert into {s}.job_results (job_id, outcome, started_at, finished_at, expires_at, exception, return_value)
        select id, result_outcome, started_at, finished_at, expires_at, exception, return_value
        from mine where retry_at is null and expires_at > finished_at
        on conflict (job_id) do nothing
    ),
    {consequences}
    told as (select pg_notify($14, payload) from unnest($15::text[]) as payload where {heard})
    select id, retry_at, {is_paused} as is_paused, (select count(*) from told) as told from mine
""".replace(
    "{fires}",
    fires_of(
        "mine",
        """
            attempts = case when j.outcome is null then f.attempts else j.attempt end,
            job_id = case when j.outcome is null then null else f.job_id end,
            state = case when j.retry_at is null then j.fire_state else f.state end,
            reason = coalesce(j.reason, f.reason),
            finished_at = case when j.retry_at is null then j.finished_at end
        """.strip(),
    ),
)
named("finish_jobs", _FINISH_JOBS.replace("{consequences}", "").replace("{is_paused}", "false"))
named(
    "finish_failed_jobs",
    # The same, where a job may have failed for good whose task or schedule wants something done about it.
    _FINISH_JOBS.replace(
        "{consequences}",
        f"""
    over as (
        select id, task_id, schedule_id, fire_time, attempt, fire_state as state, error, $1::text as node, finished_at,
            metadata
        from mine where retry_at is null and fire_state in ('succeeded', 'failed')
    ),
    {_CONSEQUENCES.strip()}
        """.strip(),
    ).replace("{is_paused}", "coalesce(schedule_id = any (array(select p.id from paused p)), false)"),
)
_FIRES_OF_LOST = fires_of(
    "lost",
    """
            attempts = case when j.held then f.attempts else j.attempt end,
            state = case when j.is_cancelled then 'cancelled' when j.ends then 'abandoned' else f.state end,
            reason = j.reason,
            finished_at = case when j.ends then clock_timestamp() end
    """.strip(),
    where="(not j.held or j.ends)",
)
named(
    "reap_jobs",
    f"""
    -- Ends the attempts of nodes that vanished (promise 3): a job is queued again, or recorded as abandoned if its task
    -- asks for that ("on_crash") or it has taken 20 nodes with it. $1: only this node's; null: those whose lease has
    -- ended. $2: what a job without the option gets. A job that was only held has not begun: it is queued as it was.
    with lost as (
        select j.*, j.cancel_requested_at is not null as is_cancelled,
            j.cancel_requested_at is not null
                or not j.held and (coalesce(j.metadata ->> 'duetime.on_crash', $2) = 'abandon' or j.attempt >= 20)
                as ends,
            case when j.cancel_requested_at is null then 'the node ' || j.acquired_by || ' vanished while it ran'
                else coalesce(j.cancel_reason, 'cancelled by request') end as reason
        from {{s}}.jobs j
        where j.acquired_by is not null
          and case when $1::text is null then j.acquired_until < clock_timestamp() else j.acquired_by = $1 end
        order by j.id
        limit 1000
        for update skip locked
    ),
    again as (
        update {{s}}.jobs j
        set acquired_by = null, acquired_until = null, claimed_at = null, held = false,
            attempt = j.attempt - case when j.held then 1 else 0 end,
            last_error = case when j.held then j.last_error else 'the node ' || j.acquired_by || ' vanished' end,
            start_deadline = case when j.held then j.start_deadline end
        where j.id = any (array(select id from lost where not ends))
    ),
    gone as (delete from {{s}}.jobs j where j.id = any (array(select id from lost where ends))),
    run as (
        insert into {{s}}.runs (
            job_id, attempt, schedule_id, fire_time, due_at, task_id, node, started_at, finished_at, outcome, error,
            will_retry_at
        )
        select id, attempt, schedule_id, fire_time, run_at, task_id, acquired_by,
            case when not held then claimed_at end, clock_timestamp(),
            case when held then 'cancelled' else 'abandoned' end,
            case when held then reason else 'the node vanished: its lease ended and was not renewed' end,
            case when not ends then clock_timestamp() end
        from lost where not held or ends
    ),
    {_FIRES_OF_LOST},
    result as (
        insert into {{s}}.job_results (job_id, outcome, finished_at, expires_at)
        select id, case when is_cancelled then 'cancelled' else 'abandoned' end, clock_timestamp(),
            clock_timestamp() + result_expiration_time
        from lost where ends and result_expiration_time > interval '0'
        on conflict (job_id) do nothing
    ),
    over as (
        select id, task_id, schedule_id, fire_time, attempt, 'abandoned' as state, reason as error, acquired_by as node,
            clock_timestamp() as finished_at, metadata
        from lost where ends and not is_cancelled
    ),
    {_CONSEQUENCES.strip().removesuffix(",")}
    select id, task_id, schedule_id, {{time: scheduled_fire_time}} as scheduled_fire_time, acquired_by, ends,
        is_cancelled, ends and metadata ->> 'duetime.on_failure' <> '' as has_hook,
        coalesce(schedule_id = any (array(select p.id from paused p)), false) as is_paused
    from lost
    """,
)
named(
    "job_result",
    """
    select job_id, outcome, started_at, finished_at, expires_at, exception, return_value
    from {s}.job_results where job_id = $1 and expires_at > now()
    """,
)
