-- A schedule that gets a new id takes along the jobs that have not ended, with their ledger rows. Each of these jobs keeps
-- the ids that it had before: what ends it at this moment knows its ledger row by one of them. Returns how many there were.
-- It is a function, because each statement of one sees what has been committed by then: the statement that calls it has
-- waited for a release of the schedule, perhaps, whose jobs would be left behind under the old id, where no overlap policy
-- sees them. Indexes: jobs_by_schedule, fires_pkey.
create function {schema}.rename_jobs_v1(p_old text, p_new text, p_after bigint)
returns bigint
language plpgsql volatile
as $body$
#variable_conflict use_column
declare
    jobs_moved bigint;
begin
    with moved as (
        update {schema}.jobs j
        set schedule_id = p_new,
            metadata = j.metadata || jsonb_build_object(
                'duetime.renamed',
                case jsonb_typeof(j.metadata -> 'duetime.renamed')
                    when 'array' then j.metadata -> 'duetime.renamed' else '[]' end || to_jsonb(p_old)
            )
        where j.schedule_id = p_old
        returning j.fire_time
    ),
    moved_fires as (
        update {schema}.fires f set schedule_id = p_new
        from moved m where f.schedule_id = p_old and f.fire_time = m.fire_time
    )
    select count(*) from moved into jobs_moved;
    return jobs_moved;
end
$body$;
