-- What a cancellation, an attempt that is made again, and a schedule that has failed too often have to remember.

-- Since when somebody wants the job cancelled, and why. The node that has claimed the job cancels it; whoever else comes
-- upon it (a claim, the end of an attempt, the end of a lease) makes no further attempt.
alter table {schema}.jobs add column if not exists cancel_requested_at timestamptz;
alter table {schema}.jobs add column if not exists cancel_reason text;
-- How the attempt before ended, for the task to see in the next one.
alter table {schema}.jobs add column last_error text;
-- Why Duetime has paused the schedule; null when somebody else has. Means nothing while it is not paused.
alter table {schema}.schedules add column pause_reason text;
