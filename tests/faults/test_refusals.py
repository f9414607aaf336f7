"""A server that is there and refuses: the reason passes, and nobody has to do anything about it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any

import asyncpg
import pytest
from apscheduler.triggers.date import DateTrigger

from duetime.errors import StoreUnavailable
from duetime.settings import DatabaseUrl
from duetime.store.schema import TABLES

from ..store.parts import ago
from ..waiting import eventually
from .parts import (
    CALL_TIMEOUT,
    MARGIN,
    a_node,
    add_often,
    connected,
    done,
    is_ready,
    is_whole,
    measured,
    works,
)
from .servers import OwnServer, run


@dataclass(frozen=True)
class Refusal:
    """What makes a server refuse, in its database and on the maintenance connection, and what undoes it."""

    name: str
    begin: tuple[str, ...]
    end: tuple[str, ...]
    admin: bool = False
    ends_connections: bool = False


def raising(state: str) -> Refusal:
    """Let every change of a table fail with an error of the server's own."""
    make = (
        "create function refuse() returns trigger language plpgsql as "
        f"$$ begin raise exception 'refused' using errcode = '{state}'; end $$"
    )
    begin = tuple(
        f"create trigger refuse before insert or update or delete on duetime.{table} "
        "for each statement execute function refuse()"
        for table in TABLES
    )
    return Refusal(state, (make, *begin), ("drop function refuse cascade",))


REFUSALS = [
    replace(raising("53100"), name="disk full"),
    replace(raising("53200"), name="out of memory"),
    replace(raising("58030"), name="input or output error"),
    replace(raising("XX000"), name="internal error"),
    replace(raising("40001"), name="serialization failure"),
    replace(raising("40P01"), name="deadlock"),
    replace(raising("57014"), name="statement cancelled"),
    replace(raising("55P03"), name="lock not available"),
    replace(raising("25006"), name="read-only transaction"),
    replace(raising("42501"), name="privilege revoked"),
    Refusal(
        "failover to read-only",
        ("alter system set default_transaction_read_only = on", "select pg_reload_conf()"),
        ("alter system reset default_transaction_read_only", "select pg_reload_conf()"),
        admin=True,
    ),
    Refusal(
        "no more connections",
        ("alter role duetime_app connection limit 0",),
        ("alter role duetime_app connection limit -1",),
        admin=True,
        ends_connections=True,
    ),
    Refusal(
        "password changed",
        ("alter role duetime_app nologin",),
        ("alter role duetime_app login",),
        admin=True,
        ends_connections=True,
    ),
    Refusal(
        "database renamed",
        ("alter database {database} rename to {database}_away",),
        ("alter database {database}_away rename to {database}",),
        admin=True,
        ends_connections=True,
    ),
    Refusal(
        "database refuses connections",
        ("alter database {database} allow_connections false",),
        ("alter database {database} allow_connections true",),
        admin=True,
        ends_connections=True,
    ),
]


async def test_an_error_that_nobody_has_heard_of_is_a_crash_and_work_resumes_by_itself(own: OwnServer) -> None:
    loop = asyncio.get_running_loop()
    refusal = raising("ZZ123")
    async with role(own) as url, a_node(url, crashes=None) as duetime:
        await add_often(duetime)
        await apply(own, own.url, refusal, refusal.begin)
        # Long enough for a back-off that is more than the two seconds within which work has to resume.
        await eventually(lambda: duetime._supervisor.crashes >= 5)
        await apply(own, own.url, refusal, refusal.end)
        before, back_at = len(done), loop.time()
        await eventually(lambda: len(done) > before)
        measured("first fire after an unknown error", loop.time() - back_at)
        assert loop.time() - back_at < 2 + MARGIN
        await works(duetime)
        await is_ready(duetime)
        async with connected(own.url) as connection:
            # A job may have run whose end could not be recorded: it runs again, at once and not when its lease ends.
            await is_whole(duetime, connection, once=False)


async def apply(own: OwnServer, url: DatabaseUrl, refusal: Refusal, statements: tuple[str, ...]) -> None:
    for statement in statements:
        for attempt in range(200):
            try:
                if refusal.ends_connections:
                    await run(own.admin, ENDS.replace("{database}", own.database))
                await run(own.admin if refusal.admin else url, statement.replace("{database}", own.database))
                break
            except asyncpg.ObjectInUseError:  # somebody was quick to come back
                assert attempt < 199
    if refusal.ends_connections:
        await run(own.admin, ENDS.replace("{database}", own.database))


ENDS = "select pg_terminate_backend(pid) from pg_stat_activity where datname like '{database}%'"


@asynccontextmanager
async def role(own: OwnServer) -> AsyncIterator[DatabaseUrl]:
    """Lend the test's database to a role that is no superuser."""
    with suppress(asyncpg.DuplicateObjectError):
        await run(own.admin, "create role duetime_app login")
    await run(
        own.url,
        f"alter database {own.database} owner to duetime_app",
        "alter schema duetime owner to duetime_app",
        *(f"alter table duetime.{table} owner to duetime_app" for table in (*TABLES, "schema_version")),
        "alter function duetime.claim_jobs_v1 owner to duetime_app",
    )
    yield replace(own.url, user="duetime_app")


@pytest.mark.parametrize("refusal", REFUSALS, ids=lambda refusal: refusal.name)
async def test_a_refusal_is_waited_for_and_nothing_is_lost_or_doubled(own: OwnServer, refusal: Refusal) -> None:
    loop = asyncio.get_running_loop()
    async with role(own) as url, a_node(url) as duetime:
        await add_often(duetime)
        await apply(own, own.url, refusal, refusal.begin)
        begun_at = loop.time()
        while loop.time() < begun_at + 1.5:
            for call in calls(duetime):
                began = loop.time()
                try:
                    await call()
                except StoreUnavailable:
                    pass
                else:
                    assert began < begun_at + 0.5, "sessions may take a moment to hear of a new setting"
                assert loop.time() - began < CALL_TIMEOUT + MARGIN
        await duetime.service.readiness()
        before = len(done)
        await apply(own, own.url, replace(refusal, ends_connections=False), refusal.end)
        back_at = loop.time()
        await eventually(lambda: len(done) > before)
        measured(f"first fire after {refusal.name}", loop.time() - back_at)
        await works(duetime)
        await is_ready(duetime)
        async with connected(own.url) as connection:
            await is_whole(duetime, connection)


def calls(duetime: Any) -> list[Callable[[], Awaitable[Any]]]:
    return [
        lambda: duetime.scheduler.add_schedule("work", DateTrigger(ago()), id="never"),
        lambda: duetime.scheduler.add_job("work"),
    ]
