"""A database as it is after a long time, and the plans that PostgreSQL makes for the store's statements on it."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import asyncpg
from apscheduler.triggers.date import DateTrigger

from duetime.serializer import TypedJSONSerializer
from duetime.settings import DatabaseUrl

ROWS = 200_000

# Two weeks of history in 200,000 fires, one every six seconds; as many schedules, due over the next months; a queue of
# 20,000 jobs, half of them of a task without a free place, and 2,000 that run.
_FILL = """
    insert into duetime.tasks (id, func, job_executor, max_running_jobs, metadata)
    select 'task-' || n, 'tests:work', 'auto', case when n < 4 then 50 end, '{{"duetime.overlap": "skip"}}'
    from generate_series(0, 99) n;

    insert into duetime.schedules (
        id, task_id, trigger, args, kwargs, coalesce, job_executor, metadata, tags, next_fire_time, revision, paused,
        acquired_by, acquired_until
    )
    select 'schedule-' || n, 'task-' || n % 100,
        decode('{trigger}', 'hex'), '[]', '{{}}', 'latest', 'auto', '{{"duetime.overlap": "skip"}}',
        case when n % 10 = 0 then array['tag-' || n % 1000] else '{{}}' end,
        case when n % 50 > 0 then now() + (n - 300) * interval '30 seconds' end,
        gen_random_uuid(), n % 20 = 1,
        case when n % 20000 = 2 then 'another node' end,
        case when n % 20000 = 2 then now() + interval '20 seconds' end
    from generate_series(1, {rows}) n;

    insert into duetime.fires (schedule_id, fire_time, run_time, task_id, state, job_id, attempts, node, finished_at)
    select 'schedule-' || n, at, at, 'task-' || n % 100, case when n % 100 = 0 then 'failed' else 'succeeded' end,
        gen_random_uuid(), 1, 'node', at
    from generate_series(1, {rows}) n, lateral (select now() - n * interval '6 seconds' as at) t;

    insert into duetime.runs (
        job_id, attempt, schedule_id, fire_time, due_at, task_id, node, started_at, finished_at, outcome
    )
    select job_id, 1, schedule_id, fire_time, run_time, task_id, node, run_time, finished_at,
        case when state = 'failed' then 'error' else 'success' end
    from duetime.fires order by fire_time;

    insert into duetime.jobs (
        id, task_id, args, kwargs, schedule_id, fire_time, scheduled_fire_time, executor, run_at, attempt, acquired_by,
        acquired_until, claimed_at
    )
    select gen_random_uuid(),
        case when runs then 'task-' || n % 40 when n % 4 < 2 then 'task-0' else 'task-' || 4 + n % 96 end,
        '[]', '{{}}', 'schedule-' || n, at, at, 'auto', at,
        case when runs then 1 else 0 end,
        case when runs then 'another node' end,
        case when runs then now() + interval '2 minutes' + n * interval '1 millisecond' end,
        case when runs then now() end
    from generate_series(1, {tenth}) n, lateral (
        select n <= 2000 as runs, now() + (case when n % 2 = 0 then -n else n end) * interval '1 second' as at
    ) t;

    insert into duetime.job_results (job_id, outcome, finished_at, expires_at)
    select job_id, 'success', finished_at, now() - interval '5 seconds' + n * interval '1 second'
    from (select *, row_number() over () as n from duetime.runs limit {tenth}) r;
"""


async def fill(database: DatabaseUrl) -> None:
    """Fill Duetime's tables, as they are after weeks of work, and let PostgreSQL learn what is in them."""
    trigger = TypedJSONSerializer().serialize(DateTrigger(datetime.now(UTC)))
    connection = await asyncpg.connect(**database.asyncpg_arguments())
    await connection.execute(_FILL.format(rows=ROWS, tenth=ROWS // 10, trigger=trigger.hex()))
    await connection.execute("vacuum analyze")
    await connection.close()


_SOURCE = "select prosrc from pg_proc where proname = $1"


@dataclass
class Node:
    """One node of a plan, with those below it."""

    values: Mapping[str, Any]

    def __iter__(self) -> Iterator[Mapping[str, Any]]:
        yield self.values
        for below in self.values.get("Plans", ()):
            yield from Node(below)


@dataclass
class Plan:
    """How PostgreSQL goes about a statement."""

    nodes: list[Mapping[str, Any]]

    @classmethod
    def read(cls, explained: str) -> Plan:
        """Return the plan of a statement from ``explain (format json)``."""
        return cls(list(Node(json.loads(explained)[0]["Plan"])))

    def __str__(self) -> str:
        shown = (
            "Node Type",
            "Operation",
            "CTE Name",
            "Relation Name",
            "Index Name",
            "Plan Rows",
            "Actual Rows",
            "Actual Loops",
            "Filter",
            "Rows Removed by Filter",
            "Join Filter",
            "Rows Removed by Join Filter",
        )
        return "\n".join(", ".join(str(node[name]) for name in shown if name in node) for node in self.nodes)

    @property
    def scanned_whole(self) -> set[str]:
        """Tables that are read from one end to the other."""
        return {node["Relation Name"] for node in self.nodes if node["Node Type"] == "Seq Scan"}

    @property
    def indexes(self) -> set[str]:
        """Indexes that are used."""
        return {node["Index Name"] for node in self.nodes if "Index Name" in node}

    @property
    def touched(self) -> int:
        """Rows that its nodes have looked at, those that they have passed over included."""
        given = ("Actual Rows", "Rows Removed by Filter", "Rows Removed by Join Filter")
        looked_at = (sum(node.get(each, 0) for each in given) * node["Actual Loops"] for node in self.nodes)
        return round(float(sum(looked_at)))

    @property
    def spilled(self) -> bool:
        """Whether a sort, a hash or a materialized result did not fit into memory."""
        return any(
            node.get("Sort Space Type") == "Disk" or node.get("Hash Batches", 1) > 1 or node.get("Storage") == "Disk"
            for node in self.nodes
        )


class ExplainedConnections:
    """One connection inside one transaction, which explains each statement before it runs it.

    :ivar plans: by the statement's name the plans that it got, for the values it was run with and for any values
    """

    def __init__(self, connection: asyncpg.Connection) -> None:
        self._connection = connection
        self._probes: dict[str, str] = {}
        self._lent = asyncio.Lock()
        self.plans: dict[str, list[Plan]] = {}

    @asynccontextmanager
    async def acquire(self) -> AsyncIterator[Any]:
        """Lend the connection, as something that explains, to one after the other."""
        async with self._lent:
            yield self

    def probe(self) -> Any:
        """Lend the connection."""
        return self.acquire()

    async def warm(self, count: int, steps: Any) -> None:
        """Do nothing: there is only this one."""

    def prepare_no_more(self) -> None:
        """Do nothing: there is no pooler between."""

    async def close(self) -> None:
        """Do nothing: the connection belongs to the test."""

    def transaction(self) -> Any:
        """Begin a transaction inside the test's own."""
        return self._connection.transaction()

    async def fetchval(self, statement: str, *arguments: Any) -> Any:
        """Run a statement that nobody wants explained."""
        return await self._connection.fetchval(statement, *arguments)

    async def fetch(self, statement: str, *arguments: Any) -> Any:
        """Explain a statement, and run it."""
        named = re.match(r"/\* duetime: (\w+) \*/", statement)
        plans = self.plans.setdefault(named[1] if named else "read", [])
        plans.extend(await self._explain(statement, arguments))
        if "claim_jobs_v3" in statement:
            # PostgreSQL does not look into a function when it explains the statement that calls it.
            for part in await self._parts_of_the_claim():
                wanted = (*arguments, True) if "$4" in part else ()
                self.plans.setdefault("claim_jobs_v3", []).extend(await self._explain(part, wanted))
        if "take_back_v1" in statement:
            ids = arguments[0] if isinstance(arguments[0], list) else []
            await self._explain_function("take_back_v1", r"\breturn query(.*?);", p_schedules=("text[]", ids))
        if "rename_jobs_v1" in statement:
            [old], new = arguments[0], arguments[18]
            await self._explain_function(
                "rename_jobs_v1", r"\bbegin\b(.*?) into jobs_moved", p_old=("text", old), p_new=("text", new)
            )
        return await self._connection.fetch(statement, *arguments)

    async def _explain_function(self, name: str, statement: str, **arguments: tuple[str, Any]) -> None:
        """Explain what a function runs.

        :param statement: pattern whose group is the statement in the function's source
        :param arguments: type and value of each parameter, by its name
        """
        found = re.search(statement, await self._connection.fetchval(_SOURCE, name), re.DOTALL)
        assert found
        text = found[1]
        for place, (parameter, (kind, _)) in enumerate(arguments.items(), start=1):
            text = re.sub(rf"\b{parameter}\b", f"${place}::{kind}", text)
        values = tuple(value for _, value in arguments.values())
        self.plans.setdefault(name, []).extend(await self._explain(text, values))

    async def copy_from_query(self, statement: str, *, output: Any) -> Any:
        """Explain the statement of a COPY, and run it."""
        named = re.search(r"/\* duetime: (\w+) \*/", statement)
        assert named
        self.plans.setdefault(named[1], []).extend(await self._explain(statement, ()))
        return await self._connection.copy_from_query(statement, output=output)

    async def copy_records_to_table(self, *arguments: Any, **options: Any) -> Any:
        """Fill a table, which no plan is made for."""
        return await self._connection.copy_records_to_table(*arguments, **options)

    def get_server_pid(self) -> int:
        """Return the server's process, as the connection does."""
        return int(self._connection.get_server_pid())

    async def _explain(self, statement: str, arguments: tuple[Any, ...]) -> list[Plan]:
        """Return what a statement did by the plan for its values, and by that for any values, which a connection goes
        over to after five times."""
        async with self._undone():
            for_values = await self._connection.fetchval(f"explain (analyze, format json) {statement}", *arguments)
        async with self._undone():
            probe = await self._probe(statement)
            values = ", ".join([await self._literal(probe, place, each) for place, each in enumerate(arguments)])
            execute = f"execute {probe}({values})" if values else f"execute {probe}"
            for_any = await self._connection.fetchval(f"explain (analyze, format json) {execute}")
        return [Plan.read(for_values), Plan.read(for_any)]

    async def _probe(self, statement: str) -> str:
        """Return the name under which a statement was prepared when it was first seen, with its plan for any values."""
        await self._connection.execute("set local plan_cache_mode = force_generic_plan")
        if (known := self._probes.get(statement)) is not None:
            return known
        probe = self._probes[statement] = f"probe_{len(self._probes)}"
        await self._connection.execute(f"prepare {probe} as {statement}")
        places = "select cardinality(parameter_types) from pg_prepared_statements where name = $1"
        nothing = ", ".join(["null"] * await self._connection.fetchval(places, probe))
        await self._connection.execute(f"explain execute {probe}({nothing})" if nothing else f"explain execute {probe}")
        return probe

    async def prepare(self, statements: Iterable[str]) -> None:
        """Prepare statements now, as those that a new connection makes ready for work."""
        async with self._undone():
            for each in statements:
                await self._probe(each)

    @asynccontextmanager
    async def _undone(self) -> AsyncIterator[None]:
        trial = self._connection.transaction()
        await trial.start()
        try:
            yield
        finally:
            await trial.rollback()

    async def _literal(self, probe: str, place: int, value: Any) -> str:
        """Return what stands for an argument in EXECUTE, which takes no parameters of its own."""
        types = "select parameter_types[$2::int] from pg_prepared_statements where name = $1"
        kind = await self._connection.fetchval(types, probe, place + 1)
        name = f"probe.value_{place}"
        text = await self._connection.fetchval(f"select set_config('{name}', $1::{kind}::text, true)", value)
        return "null" if text is None or value is None else f"current_setting('{name}')::{kind}"

    async def _parts_of_the_claim(self) -> list[str]:
        source = await self._connection.fetchval("select prosrc from pg_proc where proname = 'claim_jobs_v3'")
        for place, (name, kind) in enumerate(
            [
                ("p_node", "text"),
                ("p_lease", "interval"),
                ("p_ahead", "interval"),
                ("p_limit", "integer"),
                ("p_confirms", "boolean"),
            ],
            1,
        ):
            source = re.sub(rf"\b{name}\b", f"${place}::{kind}", source)
        source = re.sub(r"\bv_now\b", "now()", source)
        locking = re.search(r"\bperform (.*?);", source, re.DOTALL)
        claiming = re.search(r"\breturn query(.*?);", source, re.DOTALL)
        assert locking
        assert claiming
        return [f"select {locking[1]}", claiming[1]]
