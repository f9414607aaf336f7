"""How statements get their names, and what many of them say."""

from __future__ import annotations

import re

from ..readable import readable, select_list
from ..schema import quoted

texts: dict[str, str] = {}
"""Every statement, by its name."""

# A listener that does not listen (idle in a transaction, for hours) fills the queue of notifications of the whole
# server, and then no transaction that notifies can commit. A notification is a hint: rather none than that (promise 5).
_HEARD = "pg_notification_queue_usage() < 0.9"

TIMES = "statement_timestamp() as began_at, clock_timestamp() as told_at"
"""The database's time when it began with the statement, and when it tells it."""


# How many schedules that nobody holds are due within a second of the first one: so long before its time a node begins
# to claim them. What is due later than in two minutes is counted when it comes nearer. Index: schedules_due.
_CROWD = """(
    select count(*) from (
        select from {s}.schedules c
        where c.next_fire_time is not null and not c.paused and c.broken_reason is null and c.acquired_by is null
          and c.next_fire_time <= (
              select least(f.next_fire_time, '9999-12-31+00') from {s}.schedules f
              where f.next_fire_time is not null and not f.paused and f.broken_reason is null and f.acquired_by is null
              order by f.next_fire_time limit 1
          ) + interval '1 second'
          and c.next_fire_time <= now() + interval '2 minutes'
        order by c.next_fire_time limit 10000
    ) crowd
)"""


# A connection goes over, after five times, to a plan for any values, if that is expected to cost no more than planning
# for these: it takes every array for ten long, compares each item with each, and is made once, maybe when the tables
# were empty. This costs nothing (one row), and for any values it looks like a thousand million rows: so a statement
# with it is planned each time, which for a batch is little.
_SIZED = """(
    select count(*) from generate_series(1, least(cardinality({array}), 1)) a,
        generate_series(1, least(cardinality({array}), 1)) b, generate_series(1, least(cardinality({array}), 1)) c
) >= 0"""

_FEW = 16
"""Items up to which a plan for any values does."""


def named(name: str, text: str) -> None:
    """Give a statement its name, which ``pg_stat_statements`` shows too.

    With a condition ``{sized: array}`` there are two, of which one is planned anew for each batch.
    """
    text = text.replace("{heard}", _HEARD).replace("{times}", TIMES).replace("{crowd}", _CROWD)
    if sized := re.search(r"\{sized: (.+?)\}", text):
        text, many = text.replace(sized[0], "true"), text.replace(sized[0], _SIZED.replace("{array}", sized[1]))
        texts[f"{name}_many"] = f"/* duetime: {name}_many */ {readable(many)}"
    texts[name] = f"/* duetime: {name} */ {readable(text)}"


class Statements:
    """All statements for one schema; ``statements["acquire_schedules"]`` is the SQL."""

    def __init__(self, schema: str) -> None:
        name = quoted(schema)
        self._texts = {key: text.replace("{s}", name) for key, text in texts.items()}

    def __getitem__(self, name: str) -> str:
        return self._texts[name]

    def for_batch(self, name: str, size: int) -> str:
        """Return a statement for so many items."""
        return self._texts[f"{name}_many" if size > _FEW else name]


SCHEDULE_COLUMNS = select_list(
    "s",
    "id task_id trigger args kwargs paused coalesce misfire_grace_time~ max_jitter~ job_executor "
    "job_result_expiration_time~ metadata last_fire_time@ next_fire_time@ acquired_by acquired_until@ revision "
    "broken_reason engine created_at@ updated_at@ pause_reason",
)

JOB_COLUMNS = select_list(
    "j",
    "id task_id args kwargs schedule_id fire_time@ scheduled_fire_time@ executor jitter~ start_deadline@ "
    "result_expiration_time~ metadata created_at@ run_at@ attempt acquired_by acquired_until@ held waits "
    "cancel_requested_at@ cancel_reason last_error",
)

# Takes jobs back that were claimed ahead of their time (see the function). "changed" is the CTE of the schedules' ids,
# all of which are locked before.
TAKE_BACK = "taken as materialized (select * from {s}.take_back_v1(array(select id from changed)))"

# Of each schedule the jobs that were taken back, to be joined: a look at all of "taken" for each schedule would compare
# each with each.
TAKEN_OF = """taken_of as (
    select schedule_id, min(fire_time) as first_fire, array_agg(id) as jobs from taken group by schedule_id
)"""


def noted(change: str, detail: str = "'{}'::jsonb", where: str = "true") -> str:
    """Return the CTE that takes note of what a statement does to the schedules of its CTE "changed"."""
    return (
        "noted as (insert into {s}.schedule_changes (schedule_id, change, detail) "
        f"select c.id, '{change}', {detail} from changed c where {where})"
    )


def fires_of(job: str, changes: str, where: str = "true") -> str:
    """Return the CTEs that change the ledger rows of jobs.

    A statement that has waited for the rename of a schedule sees its jobs as they are since, but ledger rows as they
    were before: it finds those by a former id, and PostgreSQL then goes on to what they are now.

    :param job: CTE of the jobs, as they are stored
    :param changes: the list of SET, in which the row is "f" and the job "j"
    :param where: which of the jobs, as "j"
    """
    return f"""
    fire as (
        update {{s}}.fires f set {changes}
        from {job} j
        where f.schedule_id = j.schedule_id and f.fire_time = j.fire_time
          and not j.metadata ? 'duetime.renamed' and {where}
    ),
    fire_of_renamed as (
        update {{s}}.fires f set {changes}
        from {job} j
        where j.metadata ? 'duetime.renamed' and f.fire_time = j.fire_time
          and f.schedule_id = any (
              case jsonb_typeof(j.metadata -> 'duetime.renamed')
                  when 'array'
                  then j.schedule_id || array(select jsonb_array_elements_text(j.metadata -> 'duetime.renamed'))
                  else array[j.schedule_id] end
          )
          -- Another schedule may have got the former id since, and the same fire time.
          and (f.schedule_id = j.schedule_id or f.job_id = j.id) and {where}
    )
    """.strip()
