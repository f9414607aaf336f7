"""The tasks that the jobs of ``effects.py`` become."""

from __future__ import annotations

from duetime import task


@task(name="note")
async def note(name: str = "") -> None:
    """Stand for the task of the node, for the process that carries over."""
