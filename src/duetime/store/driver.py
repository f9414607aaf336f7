"""asyncpg's connection, with fewer round trips before its first statement."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import Any
from uuid import UUID, uuid4

import asyncpg
from asyncpg.pgproto import pgproto

from ..settings import DatabaseUrl

CONNECT_TIMEOUT = 10
"""Seconds that connecting may take, where the address does not say."""

# A statement is planned when it is first prepared, which in a new database is while the tables are empty: reading them
# from one end to the other looks cheap then, and is what the statement goes on doing while thousands of rows come in.
# Nor does it know, until it has counted them, that next to all schedules are free: it would collect "the few" that are
# due at any time in a bitmap and sort them, to find the first one.
PLANS = {"enable_seqscan": "off", "enable_bitmapscan": "off", "jit": "off"}

# The array types that our statements take, by the identifiers that PostgreSQL has given its own types for good
# (src/include/catalog/pg_type.dat): name of the element, its identifier.
_ARRAYS = {
    1000: ("bool", 16),
    1001: ("bytea", 17),
    1005: ("int2", 21),
    1007: ("int4", 23),
    1016: ("int8", 20),
    1022: ("float8", 701),
    1185: ("timestamptz", 1184),
    1187: ("interval", 1186),
    2951: ("uuid", 2950),
}


# Makes the names of prepared statements this process's own: asyncpg counts from 1 in each, so behind a pooler a session
# may have another process's statement under the name of ours, and would run it.
_PROCESS = uuid4().hex[:12]


def new_id() -> UUID:
    """Return a new random id, of the driver's own kind of UUID: that one knows its hash, and a job's id is asked for it
    some thirty times."""
    made: UUID = pgproto.UUID(uuid4().bytes)
    return made


class _Named:
    """Stands for the statement that asyncpg would have asked with; a named one leaves the unnamed one as it was."""

    name = "built in"


class StoreConnection(asyncpg.Connection):  # type: ignore[misc]
    """A connection that knows the arrays of PostgreSQL's own types, and listens in one round trip.

    The plain one asks the server what ``uuid[]`` is before the first statement that takes one, which with switching
    PostgreSQL's compiler off and on again is six round trips; at a distance that is most of a start. Should a later
    asyncpg not call this private method any more, the round trips come back, and nothing else.
    """

    __slots__ = ()

    async def _introspect_types(self, typeoids: Any, timeout: Any) -> Any:
        if all(oid in _ARRAYS for oid in typeoids):
            return [_array(oid) for oid in typeoids], _Named
        return await super()._introspect_types(typeoids, timeout)

    def _get_unique_id(self, prefix: str) -> str:
        return f"{super()._get_unique_id(prefix)}{_PROCESS}_{os.getpid():x}"

    def prepare_no_more(self) -> None:
        """Keep no prepared statements from now on: the server's session is another one each time, behind a pooler."""
        self._stmt_cache_enabled = False  # type: ignore[misc] # a slot of asyncpg's
        self._stmt_cache.set_max_size(0)

    async def fetch(self, query: str, *args: Any, **options: Any) -> Any:
        """Run a statement; ``LISTEN``, which ``add_listener`` runs through here, without preparing it."""
        if query.startswith("LISTEN "):
            await self.execute(query)
            return []
        return await super().fetch(query, *args, **options)


def _array(oid: int) -> dict[str, Any]:
    """Return what asyncpg's own question about an array type would have been answered."""
    element, element_oid = _ARRAYS[oid]
    return {
        "oid": oid,
        "ns": "pg_catalog",
        "name": f"_{element}",
        "kind": b"b",
        "basetype": None,
        "elemtype": element_oid,
        "elemdelim": ",",
        "range_subtype": None,
        "attrtypoids": None,
        "attrnames": None,
        "depth": 0,
        "basetype_name": None,
        "elemtype_name": element,
        "range_subtype_name": None,
    }


def know_arrays(connection: asyncpg.Connection) -> None:
    """Let a plain connection know the same arrays; should a later asyncpg not take it, it asks the server.

    It asks with PostgreSQL's compiler off, but a pooler may have told another session so: that takes half a second.
    """
    with suppress(AttributeError):
        connection._protocol.get_settings().register_data_types([_array(oid) for oid in _ARRAYS])


async def connect(url: DatabaseUrl) -> asyncpg.Connection:
    """Open a plain connection to the database's direct endpoint, outside any pool."""
    return await asyncpg.connect(**_arguments(url))


async def connect_for_the_store(url: DatabaseUrl, *, plans: bool = True) -> asyncpg.Connection:
    """Open a connection that keeps its prepared statements for as long as it lives.

    :param plans: whether to tell the planner how the store's statements are meant. A pooler may refuse to pass that on:
        see :func:`refuses_settings`
    """
    arguments = _arguments(url)
    if plans:
        arguments["server_settings"] = {**PLANS, **arguments.get("server_settings", {})}
    # asyncpg would forget a statement five minutes after it was prepared: in time for the next reminder to be late.
    options = {"connection_class": StoreConnection, "max_cached_statement_lifetime": 0}
    return await asyncpg.connect(**options, **arguments)


def refuses_settings(error: BaseException) -> bool:
    """Return whether a pooler has refused a connection for the settings that came with it."""
    return isinstance(error, asyncpg.ProtocolViolationError) and "startup parameter" in str(error)


def _arguments(url: DatabaseUrl) -> dict[str, Any]:
    return {"timeout": CONNECT_TIMEOUT, **url.direct.asyncpg_arguments()}
