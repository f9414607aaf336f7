-- Tells jobs that a node only holds for later from those that may have begun.

-- True: claimed ahead of its time by a node that confirms it (sets this to false, if the job is still its own) before the
-- job begins. Only jobs that may run at most once are held so: when their node dies, or their schedule changes, it is
-- certain that they have not begun. A release before this column never sets it, so its claims count as begun.
alter table {schema}.jobs add column held boolean not null default false;

-- Claims up to p_limit queued jobs that are due, or will be within p_ahead, oldest first, and returns them.
--
-- A task with max_running_jobs gets no more than its free places, counted from job rows with a live lease. The rows of
-- such tasks are locked first, in a statement of their own: the count below then has a snapshot taken after the lock,
-- so two nodes can never both see the same free place. Their jobs are not claimed ahead, which would hold a place idle.
-- p_confirms: the node confirms the jobs that it holds for later before it begins them (see the column "held").
create function {schema}.claim_jobs_v2(
    p_node text, p_lease interval, p_ahead interval, p_limit integer, p_confirms boolean
)
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
        -- Within bounds, whatever somebody has written there: one row must not keep the others from being claimed.
        attempt = greatest(0, least(j.attempt, 2147483646)) + 1,
        held = p_confirms and j.run_at > v_now and coalesce(j.metadata ->> 'duetime.on_crash', '') = 'abandon'
    where j.id = any (array(select id from chosen))
    returning j.*;
end
$$;

-- For nodes of the release before, which know nothing of "held".
create or replace function {schema}.claim_jobs_v1(p_node text, p_lease interval, p_ahead interval, p_limit integer)
returns setof {schema}.jobs
language sql as $$
    select * from {schema}.claim_jobs_v2(p_node, p_lease, p_ahead, p_limit, false)
$$;
