-- Lets the jobs of a schedule run one after another: the overlap policies buffer_one, buffer_all and cancel_other.

-- True: queued, but its turn has not come, because an earlier job of its schedule has not ended. Its run_at is the end of
-- all times for as long, so that no node claims it, of this release or an earlier one.
alter table {schema}.jobs add column waits boolean not null default false;
-- Jobs of a schedule take turns in this order: when they were made, or fall due, whichever is later. What is made up for
-- comes after what was there before, and a run by request before a fire that was claimed ahead of its time.
alter table {schema}.jobs add column turn timestamptz generated always as (greatest(created_at, fire_time)) stored;
-- Set when somebody wants a claimed job to end; the node that has claimed it sees to that.
alter table {schema}.jobs add column if not exists cancel_requested_at timestamptz;
alter table {schema}.jobs add column if not exists cancel_reason text;

-- "Whose turn is next in this schedule?"
create index jobs_waiting on {schema}.jobs (schedule_id, turn, fire_time) where waits;
-- "Is a job of this schedule still going?", as before, and "does one come before this one?", however many wait.
drop index {schema}.jobs_by_schedule;
create index jobs_by_schedule on {schema}.jobs (schedule_id, turn, fire_time) where schedule_id is not null;

-- Gives the turn to the next waiting job of each schedule, if no earlier one is left; returns how many got it.
--
-- The waiting job is locked first, and what stands before it is looked for by a statement of its own, whose snapshot is
-- taken after the lock: of two transactions that each end one of two jobs, the later one sees that both are gone.
-- Several schedules have to come in the order of their ids.
create function {schema}.next_in_turn_v1(p_schedules text[]) returns integer
language plpgsql as $$
declare
    v_schedule text;
    v_next record;
    v_count integer := 0;
begin
    foreach v_schedule in array p_schedules loop
        select j.id, j.turn, j.fire_time into v_next
        from {schema}.jobs j
        where j.schedule_id = v_schedule and j.waits
        order by j.turn, j.fire_time
        limit 1
        for update;
        continue when not found;
        if not exists (
            select from {schema}.jobs o
            where o.schedule_id = v_schedule and not o.waits
              and (o.turn, o.fire_time) < (v_next.turn, v_next.fire_time)
        ) then
            update {schema}.jobs j set waits = false, run_at = coalesce(j.scheduled_fire_time, j.created_at)
            where j.id = v_next.id;
            v_count := v_count + 1;
        end if;
    end loop;
    return v_count;
end
$$;

-- Runs after each statement that deletes jobs, whichever it is and whichever release makes it: a job that is gone gives
-- its turn on. Costs one look at an empty index where nobody waits. The channel of the nodes is named after the schema.
create function {schema}.give_turn_on_v1() returns trigger
language plpgsql as $$
declare
    v_schedules text[];
begin
    perform from {schema}.jobs w where w.waits order by w.schedule_id, w.turn, w.fire_time limit 1;
    if not found then
        return null;
    end if;
    select array_agg(g.schedule_id order by g.schedule_id) into v_schedules
    from (select distinct schedule_id from gone where schedule_id is not null) g
    cross join lateral (
        select from {schema}.jobs w
        where w.schedule_id = g.schedule_id and w.waits
        order by w.turn, w.fire_time
        limit 1
    ) waiting;
    if v_schedules is not null and {schema}.next_in_turn_v1(v_schedules) > 0 and pg_notification_queue_usage() < 0.9 then
        perform pg_notify(
            tg_table_schema, '*' || e'\n' || 'JobAdded ' || json_build_object('job_id', gen_random_uuid(), 'task_id', '')
        );
    end if;
    return null;
end
$$;

create trigger jobs_give_turn_on after delete on {schema}.jobs
referencing old table as gone
for each statement execute function {schema}.give_turn_on_v1();

-- Decides, just before they begin, what becomes of jobs that this node has claimed and whose schedule has them take
-- turns. Of each it says in "verdict":
--   start  nothing stands before it
--   wait   an earlier job has not ended; the job is back in the queue, until its turn comes
--   skip   the same, and another one waits already (buffer_one); the node has yet to end it
--   again  the earlier job is just ending: ask again in a moment
-- With cancel_other, earlier jobs that nobody has claimed end here, and those that are claimed are asked to.
--
-- The one job that this one then waits for is locked until the commit, so it cannot go without seeing who waits for it.
-- What somebody else has locked is not waited for, so this never takes part in a deadlock.
create function {schema}.settle_jobs_v1(p_node text, p_jobs uuid[], p_channel text)
returns table (job_id uuid, verdict text, reason text)
language plpgsql as $$
declare
    v_job record;
    v_before record;
    v_is_waiting boolean;
    v_asked uuid[];
begin
    perform from {schema}.jobs j where j.id = any (p_jobs) and j.acquired_by = p_node order by j.id for update;
    for v_job in
        select j.id, j.schedule_id, j.turn, j.fire_time, j.metadata ->> 'duetime.overlap' as overlap
        from {schema}.jobs j
        where j.id = any (p_jobs) and j.acquired_by = p_node
        order by j.turn, j.fire_time, j.id
    loop
        job_id := v_job.id;
        reason := null;
        if v_job.overlap = 'cancel_other' then
            with other as (
                select o.id, o.acquired_by
                from {schema}.jobs o
                where o.schedule_id = v_job.schedule_id and o.id <> v_job.id
                  and (o.turn, o.fire_time) < (v_job.turn, v_job.fire_time)
                order by o.id
                for update skip locked
            ),
            gone as (
                delete from {schema}.jobs j using other o where j.id = o.id and o.acquired_by is null
                returning j.schedule_id, j.fire_time
            ),
            fire as (
                update {schema}.fires f
                set state = 'cancelled', reason = 'a later fire took its place (overlap=cancel_other)',
                    finished_at = clock_timestamp()
                from gone g where f.schedule_id = g.schedule_id and f.fire_time = g.fire_time
            ),
            asked as (
                update {schema}.jobs j
                set cancel_requested_at = clock_timestamp(),
                    cancel_reason = 'a later fire took its place (overlap=cancel_other)'
                from other o
                where j.id = o.id and o.acquired_by is not null and j.cancel_requested_at is null
                returning j.id
            )
            select array_agg(a.id) into v_asked from asked a;
            if p_channel <> '' and pg_notification_queue_usage() < 0.9 then
                perform pg_notify(
                    p_channel, '*' || e'\n' || 'JobRemoved ' || json_build_object('job_id', asked.id, 'task_id', '')
                )
                from unnest(v_asked) as asked (id);
            end if;
        end if;

        select o.fire_time into v_before
        from {schema}.jobs o
        where o.schedule_id = v_job.schedule_id and o.waits
          and (o.turn, o.fire_time) < (v_job.turn, v_job.fire_time)
        order by o.turn, o.fire_time
        limit 1
        for share skip locked;
        v_is_waiting := found;
        if not v_is_waiting then
            select o.fire_time into v_before
            from {schema}.jobs o
            where o.schedule_id = v_job.schedule_id and not o.waits and o.id <> v_job.id
              and (o.turn, o.fire_time) < (v_job.turn, v_job.fire_time)
            limit 1
            for share skip locked;
            if not found then
                verdict := case when exists (
                    select from {schema}.jobs o
                    where o.schedule_id = v_job.schedule_id and o.id <> v_job.id
                      and (o.turn, o.fire_time) < (v_job.turn, v_job.fire_time)
                ) then 'again' else 'start' end;
                return next;
                continue;
            end if;
        end if;
        if v_is_waiting and v_job.overlap = 'buffer_one' then
            verdict := 'skip';
            reason := 'the fire of ' || to_char(v_before.fire_time at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"')
                || ' was waiting already (overlap=buffer_one)';
            return next;
            continue;
        end if;
        update {schema}.jobs j
        set waits = true, run_at = timestamptz '9999-12-29 00:00+00', acquired_by = null, acquired_until = null,
            claimed_at = null, held = false, attempt = greatest(0, j.attempt - 1)
        where j.id = v_job.id;
        update {schema}.fires f
        set reason = 'it waited for the job of an earlier fire (overlap=' || v_job.overlap || ')'
        where f.schedule_id = v_job.schedule_id and f.fire_time = v_job.fire_time;
        verdict := 'wait';
        return next;
    end loop;
end
$$;

-- What limits a job beside the limit of its task: so many jobs of one task that have the same key may run at once. From the
-- metadata, so that whoever makes a job, of whichever release, makes it with them.
alter table {schema}.jobs add column concurrency_key text generated always as (left(metadata ->> 'duetime.key', 500)) stored;
-- Which of the queued jobs that are due is claimed first: 9 before 0.
alter table {schema}.jobs add column priority smallint not null generated always as (
    case
        when metadata ->> 'duetime.priority' ~ '^[0-9]$' then (metadata ->> 'duetime.priority')::smallint
        else 0
    end
) stored;

-- "Which queued jobs come before all others?"
create index jobs_queue_by_priority on {schema}.jobs (priority desc, run_at, id)
    where acquired_by is null and priority > 0;
-- "Which queued jobs of this task come before its others?"
create index jobs_queue_by_task_and_priority on {schema}.jobs (task_id, priority desc, run_at, id)
    where acquired_by is null and priority > 0;
-- "Which keys of this task are waiting?" and "Which job of this key is next?"
create index jobs_queue_by_key on {schema}.jobs (task_id, concurrency_key, priority desc, run_at, id)
    where acquired_by is null and concurrency_key is not null;
-- "How many jobs of this key are running?"
create index jobs_running_by_key on {schema}.jobs (task_id, concurrency_key)
    where acquired_by is not null and concurrency_key is not null;

-- Claims up to p_limit queued jobs that are due, or will be within p_ahead, by priority and then oldest first.
--
-- A task with max_running_jobs gets no more than its free places, and one whose jobs have keys no more than so many for
-- each key; both are counted from job rows. The rows of such tasks are locked first, in a statement of their own: the
-- count below then has a snapshot taken after the lock, so two nodes can never both see the same free place. Their jobs
-- are not claimed ahead, which would hold a place idle. A key's place is taken until its job has been ended or reaped,
-- also when the lease has ended.
-- p_confirms: the node confirms the jobs that it holds for later before it begins them (see the column "held").
create function {schema}.claim_jobs_v3(
    p_node text, p_lease interval, p_ahead interval, p_limit integer, p_confirms boolean
)
returns setof {schema}.jobs
language plpgsql as $$
declare
    -- A variable, because an index is of no use for a comparison with the volatile clock_timestamp().
    v_now timestamptz := clock_timestamp();
begin
    perform from {schema}.tasks t
    where (t.max_running_jobs is not null or t.metadata ? 'duetime.max_running_per_key')
      and exists (
          select from {schema}.jobs j where j.task_id = t.id and j.acquired_by is null and j.run_at <= v_now
      )
    order by t.id
    for update;
    v_now := clock_timestamp();

    return query
    with recursive room as (
        select
            t.id,
            case
                when t.max_running_jobs is null then p_limit
                else greatest(0, t.max_running_jobs - (
                    select count(*) from {schema}.jobs r
                    where r.task_id = t.id and r.acquired_by is not null and r.acquired_until >= v_now
                ))
            end as places,
            case
                when t.metadata ->> 'duetime.max_running_per_key' ~ '^[0-9]{1,9}$'
                    then (t.metadata ->> 'duetime.max_running_per_key')::integer
            end as per_key
        from {schema}.tasks t
        where t.max_running_jobs is not null or t.metadata ? 'duetime.max_running_per_key'
    ),
    urgent as (
        select j.id, j.priority, j.run_at, j.task_id, null::bigint as places
        from {schema}.jobs j
        where j.acquired_by is null
          and j.priority > 0
          and j.run_at <= v_now + p_ahead
          and not exists (select from room where room.id = j.task_id)
        order by j.priority desc, j.run_at, j.id
        limit p_limit
        for update of j skip locked
    ),
    unlimited as (
        select j.id, j.priority, j.run_at, j.task_id, null::bigint as places
        from {schema}.jobs j
        where j.acquired_by is null
          and j.priority = 0
          and j.run_at <= v_now + p_ahead
          and not exists (select from room where room.id = j.task_id)
        order by j.run_at, j.id
        limit p_limit
        for update of j skip locked
    ),
    limited_urgent as (
        select queued.id, queued.priority, queued.run_at, room.id as task_id, room.places
        from room
        cross join lateral (
            select j.id, j.priority, j.run_at
            from {schema}.jobs j
            where j.task_id = room.id and j.acquired_by is null and j.priority > 0 and j.run_at <= v_now
              and (room.per_key is null or j.concurrency_key is null)
            order by j.priority desc, j.run_at, j.id
            limit least(room.places, p_limit)
            for update skip locked
        ) queued
        where room.places > 0
    ),
    limited as (
        select queued.id, queued.priority, queued.run_at, room.id as task_id, room.places
        from room
        cross join lateral (
            select j.id, j.priority, j.run_at
            from {schema}.jobs j
            where j.task_id = room.id and j.acquired_by is null and j.priority = 0 and j.run_at <= v_now
              and (room.per_key is null or j.concurrency_key is null)
            order by j.run_at, j.id
            limit least(room.places, p_limit)
            for update skip locked
        ) queued
        where room.places > 0
    ),
    -- Each key that waits, found by one look at the index after the other, however many jobs wait for it.
    keys as (
        select room.id as task_id, (
            select min(j.concurrency_key) from {schema}.jobs j
            where j.task_id = room.id and j.acquired_by is null and j.concurrency_key is not null
        ) as key
        from room
        where room.places > 0 and room.per_key is not null
        union all
        select k.task_id, (
            select min(j.concurrency_key) from {schema}.jobs j
            where j.task_id = k.task_id and j.acquired_by is null and j.concurrency_key > k.key
        )
        from keys k
        where k.key is not null
    ),
    keyed as (
        select free.id, free.priority, free.run_at, room.id as task_id, room.places
        from room
        cross join lateral (
            select queued.id, queued.priority, queued.run_at
            from keys k
            cross join lateral (
                select j.id, j.priority, j.run_at
                from {schema}.jobs j
                where j.task_id = k.task_id and j.concurrency_key = k.key and j.acquired_by is null
                  and j.run_at <= v_now
                order by j.priority desc, j.run_at, j.id
                limit greatest(0, room.per_key - (
                    select count(*) from {schema}.jobs r
                    where r.task_id = k.task_id and r.concurrency_key = k.key and r.acquired_by is not null
                ))
                for update skip locked
            ) queued
            where k.task_id = room.id and k.key is not null
            order by queued.priority desc, queued.run_at, queued.id
            limit least(room.places, p_limit)
        ) free
        where room.places > 0 and room.per_key is not null
    ),
    chosen as (
        select due.id
        from (
            select
                found.*,
                row_number() over (partition by found.task_id order by found.priority desc, found.run_at, found.id) as nth
            from (
                select * from urgent union all select * from unlimited
                union all select * from limited_urgent union all select * from limited union all select * from keyed
            ) found
        ) due
        where due.places is null or due.nth <= due.places
        order by due.priority desc, due.run_at, due.id
        limit p_limit
    )
    update {schema}.jobs j
    set acquired_by = p_node,
        acquired_until = v_now + p_lease,
        claimed_at = v_now,
        attempt = greatest(0, least(j.attempt, 2147483646)) + 1,
        held = p_confirms and j.run_at > v_now and coalesce(j.metadata ->> 'duetime.on_crash', '') = 'abandon'
    where j.id = any (array(select id from chosen))
    returning j.*;
end
$$;

-- For nodes of the release before, which know nothing of keys and priorities.
create or replace function {schema}.claim_jobs_v2(
    p_node text, p_lease interval, p_ahead interval, p_limit integer, p_confirms boolean
)
returns setof {schema}.jobs
language sql as $$
    select * from {schema}.claim_jobs_v3(p_node, p_lease, p_ahead, p_limit, p_confirms)
$$;
