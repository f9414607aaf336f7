"""Columns in a form that Python can read, whatever somebody has written into them by hand."""

from __future__ import annotations

import re


def time_of(column: str) -> str:
    """Return SQL for a time that Python can read, whatever somebody has written into the column.

    PostgreSQL's times begin before Python's and end after them, and its infinities come as times without a zone: one
    such row would end the claim that it is a part of, again and again (promise 4).
    """
    first, last = "timestamptz '0001-01-03 00:00+00'", "timestamptz '9999-12-29 00:00+00'"
    return f"case when {column} < {first} then {first} when {column} > {last} then {last} else {column} end"


def duration_of(column: str) -> str:
    """Return SQL for a duration that can be added to a time, at most a century, whatever is in the column."""
    longest = "interval '36525 days'"
    return f"case when {column} > {longest} then {longest} when {column} < -{longest} then -{longest} else {column} end"


def select_list(alias: str, columns: str) -> str:
    """Return the columns of a row; ``name@`` is read as a time, ``name~`` as a duration."""
    listed = []
    for column in columns.split():
        name = column.rstrip("@~")
        qualified = f"{alias}.{name}"
        if column != name:
            qualified = f"{(time_of if column.endswith('@') else duration_of)(qualified)} as {name}"
        listed.append(f"{qualified}::text as metadata" if name == "metadata" else qualified)
    return ", ".join(listed)


def readable(text: str) -> str:
    """Return a statement in which ``{time: column}`` and ``{duration: column}`` are read as such."""
    text = re.sub(r"\{time: ([\w.]+)\}", lambda found: time_of(found[1]), text)
    return re.sub(r"\{duration: ([\w.]+)\}", lambda found: duration_of(found[1]), text)
