-- Jobs that were claimed ahead of their time and have not started go with the definition that they were made from, and so
-- do their ledger rows: those fires have not happened. One that may run at most once, and is no longer only held, is begun:
-- it stays, and so its fire is not made again. Returns what was taken back.
-- It is a function, because each statement of one sees what has been committed by then. The statement that calls it has
-- waited for a release of the schedule, perhaps, and does not see the jobs that came with that: they would run although
-- their schedule is gone. Indexes: jobs_by_schedule, fires_pkey.
create function {schema}.take_back_v1(p_schedules text[])
returns table (id uuid, schedule_id text, fire_time timestamptz)
language plpgsql volatile
as $body$
#variable_conflict use_column
begin
    return query
    with taken as (
        delete from {schema}.jobs j
        where j.schedule_id = any (p_schedules) and j.fire_time > clock_timestamp()
          and (
              j.acquired_by is null or j.held or coalesce(j.metadata ->> 'duetime.on_crash', '') <> 'abandon'
          )
        returning j.id, j.schedule_id, j.fire_time
    ),
    unfired as (
        delete from {schema}.fires f using taken t where f.schedule_id = t.schedule_id and f.fire_time = t.fire_time
    )
    select t.id, t.schedule_id, t.fire_time from taken t;
end
$body$;
