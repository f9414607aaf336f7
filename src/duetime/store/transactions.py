"""Scheduling inside the caller's own database transaction (promise 1)."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from contextvars import ContextVar
from typing import Any, Protocol

import asyncpg
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession

from ..errors import InvalidSettings


class Transaction(Protocol):
    """Runs one statement in a transaction that somebody else commits."""

    async def fetch(self, statement: str, *arguments: Any) -> Sequence[Mapping[str, Any]]:
        """Run the statement and return its rows."""


class _SQLAlchemyTransaction:
    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    async def fetch(self, statement: str, *arguments: Any) -> Sequence[Mapping[str, Any]]:
        # Through SQLAlchemy, not beside it: it opens the transaction with the first statement that it sees.
        result = await self._connection.exec_driver_sql(statement, arguments)
        return [dict(row) for row in result.mappings()]


current_transaction: ContextVar[Transaction | None] = ContextVar("duetime_transaction", default=None)
"""The transaction that scheduling calls of this context write in; None: one of their own."""


@asynccontextmanager
async def scheduler_transaction(
    session_or_connection: AsyncSession | AsyncConnection | asyncpg.Connection,
) -> AsyncIterator[None]:
    """Make the scheduling calls inside the block part of the caller's own transaction.

    ``add_schedule``, ``add_job``, ``remove_schedule``, ``pause_schedule`` and ``unpause_schedule`` write through the
    given session or connection: what they did, and the wake-up of the nodes, commits with the caller or vanishes with
    it. Task definitions are stored at once, on their own. ::

        async with session.begin():
            session.add(order)
            async with scheduler_transaction(session):
                await scheduler.add_schedule(remind, DateTrigger(order.due), kwargs={"order": order.id})

    The database must be the one that Duetime stores in. Nothing is committed by the end of the block itself.

    :param session_or_connection: SQLAlchemy ``AsyncSession`` or ``AsyncConnection`` on asyncpg, or an asyncpg
        connection with a transaction open
    :raises InvalidSettings: if it is something else, or an asyncpg connection without a transaction
    """
    transaction: Transaction
    if isinstance(session_or_connection, AsyncSession):
        transaction = _SQLAlchemyTransaction(await session_or_connection.connection())
    elif isinstance(session_or_connection, AsyncConnection):
        transaction = _SQLAlchemyTransaction(session_or_connection)
    elif hasattr(session_or_connection, "is_in_transaction"):
        if not session_or_connection.is_in_transaction():
            raise InvalidSettings(
                "expected an asyncpg connection with an open transaction, got one without. Use "
                "`async with connection.transaction():` around scheduler_transaction()."
            )
        transaction = session_or_connection
    else:
        raise InvalidSettings(
            f"expected a SQLAlchemy AsyncSession or AsyncConnection or an asyncpg connection, got "
            f"{type(session_or_connection).__name__}."
        )
    token = current_transaction.set(transaction)
    try:
        yield
    finally:
        current_transaction.reset(token)
