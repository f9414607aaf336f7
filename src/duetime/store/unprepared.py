"""Statements that cross the network once, the first time too: for what is asked seldom, and at a start.

asyncpg prepares a statement before it runs it, which pays when it runs again. A COPY it sends as it is. So the question
is made a COPY of one value: JSON, in hexadecimal digits, because COPY has a way of its own to write everything else.
Values go the same way there: as digits, so nothing that a user wrote is ever part of a statement's text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import asyncpg

_VALUES = "{values}"


async def ask(connection: asyncpg.Connection, statement: str, values: Mapping[str, Any] | None = None) -> Any:
    """Run a statement that gives one JSON text in hexadecimal digits, and return it read.

    :param statement: where it says ``{values}``, it gets them as hexadecimal digits of JSON
    :param values: what JSON can say
    """
    if values is not None:
        digits = json.dumps(values).encode().hex()
        assert re.fullmatch("[0-9a-f]+", digits)  # noqa: S101 - they become part of a statement
        statement = statement.replace(_VALUES, digits)
    answer = bytearray()

    async def take(data: bytes) -> None:
        answer.extend(data)

    await connection.copy_from_query(statement, output=take)
    return json.loads(bytes.fromhex(answer.decode().strip()))


def interval_text(duration: timedelta) -> str:
    """Return a duration as PostgreSQL reads an interval, exact to the microsecond."""
    return f"{duration // timedelta(microseconds=1)} microseconds"
