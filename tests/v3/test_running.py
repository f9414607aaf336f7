"""A whole table, in one process and in several."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from duetime.errors import SourceUnavailable
from duetime.v3.model import V3Row
from duetime.v3.preparing import Told, processes_for
from duetime.v3.running import BATCH, planned

from .tables import APPLICATION, some_rows


@pytest.fixture
def told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Told:
    (tmp_path / "tasks_of_the_running_test.py").write_text(APPLICATION)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    said = Told(("tasks_of_the_running_test",), fires=1)
    assert said.problems() == []
    return said


async def failing(batches: int) -> AsyncIterator[list[V3Row]]:
    rows = some_rows("cron-crontab") * BATCH
    for _ in range(batches):
        yield rows
    raise SourceUnavailable("expected the database to answer, got nothing.")


@pytest.mark.parametrize("count", [10, 100_000], ids=["one process", "several processes"])
async def test_what_was_read_before_the_database_went_away_is_told(told: Told, count: int) -> None:
    found: list[dict[str, Any]] = []

    async def take() -> None:
        async for records in planned(failing(4), count, told):
            found.extend(records)

    with pytest.raises(SourceUnavailable):
        await take()
    assert len(found) == 4 * BATCH
    assert {each["verdict"] for each in found} == {"convert"}


async def test_rows_are_read_no_further_ahead_than_they_are_planned(told: Told) -> None:
    read = 0

    async def endless() -> AsyncIterator[list[V3Row]]:
        nonlocal read
        while True:
            read += 1
            yield some_rows("cron-crontab")

    taken = 0
    source = planned(endless(), 100_000, told)
    async for _ in source:
        taken += 1
        assert read - taken <= 3 * processes_for(100_000)
        if taken == 40:
            break
    await source.aclose()  # type: ignore[attr-defined]
