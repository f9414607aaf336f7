-- Jobs of APScheduler 3 that were carried over, with the bytes that they had: what it takes to go back.

create table {schema}.v3_migrated (
    -- Which table of which database, without user and password.
    source                 text not null,
    id                     text not null,
    -- As v3 had them; null: the job was paused.
    next_run_time          double precision,
    job_state              bytea not null,
    -- Null for a job that v3 has run for the last time while it was to be carried over.
    schedule_id            text,
    -- Same database:     (nothing) -> done -> returned
    -- Another database:  (nothing) -> taking -> deleting -> done -> returning -> restoring -> unparking -> returned
    -- "left" was due for the last time while it was to be carried over, and is v3's.
    state                  text not null check (state in
        ('taking', 'deleting', 'done', 'returning', 'restoring', 'unparking', 'returned', 'left')),
    -- Of the schedule as it was written: another one says that somebody has changed it since.
    revision               uuid,
    -- Whether the schedule is meant to be paused.
    paused                 boolean not null default false,
    first_fire_time        timestamptz,
    -- Fires that were due when the job was looked at, which v3 has made before the job was carried over.
    in_flight              timestamptz[] not null default '{}',
    -- What goes back into v3's table.
    returned_next_run_time double precision,
    returned_job_state     bytea,
    -- The run of the migration that carried it over, and where that ran.
    batch                  uuid not null,
    node                   text not null,
    migrated_at            timestamptz not null default now(),
    updated_at             timestamptz not null default now(),
    primary key (source, id)
);
comment on table {schema}.v3_migrated is 'Jobs carried over from APScheduler 3, and what their rows were.';

-- "What has not been brought to its end?"
create index v3_migrated_under_way on {schema}.v3_migrated (source, id)
    where state not in ('done', 'returned', 'left');
