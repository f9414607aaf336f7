-- What answers need beyond the ledger, and what retention leaves behind.

-- When a schedule was paused, changed or removed: why an instant of then did not fire. Adding is not in it, and neither
-- is the end of a schedule without limits: the schedule's own row and the ledger say that.
create table {schema}.schedule_changes (
    id          bigint generated always as identity primary key,
    schedule_id text not null,
    at          timestamptz not null default clock_timestamp(),
    change      text not null check (change in
        ('updated', 'replaced', 'paused', 'resumed', 'broken', 'renamed', 'removed', 'finished')),
    detail      jsonb not null default '{}'
);
comment on table {schema}.schedule_changes is 'What was done to schedules, and when; it outlives them as the ledger does.';

-- "What was done to this schedule, latest first?"
create index schedule_changes_by_schedule on {schema}.schedule_changes (schedule_id, id desc);

-- Under which ids a schedule was known before: its history of then is found under those.
create table {schema}.former_ids (
    schedule_id text not null,
    former_id   text not null,
    renamed_at  timestamptz not null default now(),
    primary key (schedule_id, former_id)
);
comment on table {schema}.former_ids is 'Ids that schedules had before they were renamed.';

-- Retention removes ledger rows, and with them the key that keeps an instant from being fired again (promise 2). What it
-- leaves is one row for each schedule that goes on: no instant before this is fired any more.
create table {schema}.history_floors (
    schedule_id text primary key,
    before      timestamptz not null,
    updated_at  timestamptz not null default now()
);
comment on table {schema}.history_floors is 'The end of the deleted part of a schedule''s ledger: nothing before it is fired.';

-- "Which schedules keep their history for a time, or a number, of their own?"
create index schedules_own_history on {schema}.schedules (id)
    where metadata ?| array['duetime.history_max_age', 'duetime.history_max_fires'];
