"""The schema's migrations: numbered SQL files, applied in order, each once, by whichever node comes first."""

from __future__ import annotations

import re
from functools import cache
from importlib.resources import files

import asyncpg

from ..errors import InvalidSettings, SchemaTooNew

# Any number that no other software is likely to use; it serialises the nodes that start on one database.
_LOCK_KEY = 0x64756574696D65

TABLES = (
    "tasks", "schedules", "jobs", "fires", "runs", "job_results", "schedule_changes", "former_ids", "history_floors",
    "v3_migrated",
)  # fmt: skip


@cache
def migrations() -> tuple[tuple[int, str], ...]:
    """Return every migration as (version, SQL with ``{schema}`` in it), in the order of their versions."""
    found = (
        (int(match[1]), file.read_text(encoding="utf-8"))
        for file in files(__package__).joinpath("migrations").iterdir()
        if (match := re.fullmatch(r"(\d{4})_\w+\.sql", file.name))
    )
    return tuple(sorted(found))


def quoted(schema: str) -> str:
    """Return the schema's name as an SQL identifier.

    :raises InvalidSettings: if the name is not made of letters, digits and underscores
    """
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]{0,62}", schema):
        raise InvalidSettings(
            f"expected a schema name of letters, digits and underscores (at most 63), got {schema!r}."
        )
    return f'"{schema}"'


async def version(connection: asyncpg.Connection, schema: str) -> int:
    """Return the version of the stored schema: 0 when there is none."""
    try:
        found = await connection.fetchval(f"select max(version) from {quoted(schema)}.schema_version")
    except (asyncpg.UndefinedTableError, asyncpg.InvalidSchemaNameError):
        return 0
    return int(found or 0)


async def migrate(connection: asyncpg.Connection, schema: str, *, from_scratch: bool = False) -> None:
    """Bring the schema up to this release's version, in one transaction; does nothing when it is there.

    Nodes that start at the same time wait for each other and find the work done.

    :param from_scratch: drop everything that is stored first
    :raises SchemaTooNew: if a newer release has migrated this database
    """
    latest = migrations()[-1][0]
    if not from_scratch and await version(connection, schema) == latest:
        return
    name = quoted(schema)
    async with connection.transaction():
        await connection.execute("select pg_advisory_xact_lock($1)", _LOCK_KEY)
        await connection.execute(f"create schema if not exists {name}")
        if from_scratch:
            # Only what is ours: an application may keep tables of its own in the same schema.
            tables = ", ".join(f"{name}.{table}" for table in (*TABLES, "schema_version"))
            claims = ", ".join(f"{name}.claim_jobs_v{version}" for version in (1, 2, 3))
            await connection.execute(f"drop function if exists {claims}")
            await connection.execute(f"drop table if exists {tables}")
            functions = (
                "give_turn_on_v1",
                "next_in_turn_v1",
                "settle_jobs_v1",
                "take_back_v1",
                "take_back_v2",
                "rename_jobs_v1",
            )
            await connection.execute(f"drop function if exists {', '.join(f'{name}.{each}' for each in functions)}")
        await connection.execute(
            f"create table if not exists {name}.schema_version "
            "(version integer primary key, applied_at timestamptz not null default now())"
        )
        stored = await version(connection, schema)
        if stored > latest:
            raise SchemaTooNew(
                f"expected schema {schema!r} at version {latest} or older, got version {stored}: a newer Duetime has "
                f"migrated this database. Upgrade this installation."
            )
        for number, sql in migrations():
            if number > stored:
                await connection.execute(sql.replace("{schema}", name))
                await connection.execute(
                    f"insert into {name}.schema_version (version) values ($1)",
                    number,
                )
