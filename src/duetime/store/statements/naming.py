"""How statements get their names, and what many of them say."""

from __future__ import annotations

from ..readable import readable, select_list
from ..schema import quoted

texts: dict[str, str] = {}
"""Every statement, by its name."""

# A listener that does not listen (idle in a transaction, for hours) fills the queue of notifications of the whole
# server, and then no transaction that notifies can commit. A notification is a hint: rather none than that (promise 5).
_HEARD = "pg_notification_queue_usage() < 0.9"

TIMES = "statement_timestamp() as began_at, clock_timestamp() as told_at"
"""The database's time when it began with the statement, and when it tells it."""


def named(name: str, text: str) -> None:
    """Give a statement its name, which ``pg_stat_statements`` shows too."""
    texts[name] = f"/* duetime: {name} */ {readable(text.replace('{heard}', _HEARD).replace('{times}', TIMES))}"


class Statements:
    """All statements for one schema; ``statements["acquire_schedules"]`` is the SQL."""

    def __init__(self, schema: str) -> None:
        name = quoted(schema)
        self._texts = {key: text.replace("{s}", name) for key, text in texts.items()}

    def __getitem__(self, name: str) -> str:
        return self._texts[name]


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
