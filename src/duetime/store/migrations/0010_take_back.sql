-- As take_back_v1, but for jobs (p_ended) that the calling statement ends itself: a job that fails at once may end, by the
-- database's clock, a moment before its time, and PostgreSQL refuses a statement that ends it twice.
-- Indexes: jobs_by_schedule, fires_pkey.
create function {schema}.take_back_v2(p_schedules text[], p_ended uuid[])
returns table (id uuid, schedule_id text, fire_time timestamptz)
language plpgsql volatile
as $body$
#variable_conflict use_column
begin
    return query
    with taken as (
        delete from {schema}.jobs j
        where j.schedule_id = any (p_schedules) and j.fire_time > clock_timestamp() and j.id <> all (p_ended)
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
