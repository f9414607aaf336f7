-- PostgreSQL compiles a statement to machine code when it takes it for expensive, and takes claiming for that, whose loops
-- it cannot estimate: 0.2 seconds of work, each time, for a millisecond's. A connection of Duetime's own says that it does
-- not want that, but a pooler does not pass it on, and neither does an engine of the application's.
alter function {schema}.claim_jobs_v3(text, interval, interval, integer, boolean) set jit = off;
