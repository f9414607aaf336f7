"""Rows that are planned for a cut-over in several processes become what they would in one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from duetime.v3 import carrying
from duetime.v3.carrying import in_processes
from duetime.v3.preparing import Told

from ..waiting import eventually
from .stored import stored_rows
from .tables import APPLICATION


async def test_processes_plan_rows_as_a_thread_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "application_of_carrying.py").write_text(APPLICATION)
    monkeypatch.syspath_prepend(tmp_path)
    told = Told(("application_of_carrying",), fires=2)
    assert told.problems() == []
    context, allowed = told.context(), told.allow()
    rows = [stored.row for stored in stored_rows("3.11.3")][:300]
    async with in_processes(told, context, allowed) as plans:
        here = carrying._plans(rows, context, allowed)
        few = await plans(rows[:10])
        assert [each.reasons for each in few] == [each.reasons for each in here[:10]], "a few are not worth it"

        def not_here(*_: object) -> Any:
            raise AssertionError("planned here")

        monkeypatch.setattr(carrying, "_plans", not_here)
        # The processes have to start first.
        elsewhere = await eventually(lambda: plans(rows), within=60)
    assert [(each.verdict, each.reasons, each.task) for each in elsewhere] == [
        (each.verdict, each.reasons, each.task) for each in here
    ]
    carried = [(each.carried, other.carried) for each, other in zip(here, elsewhere, strict=True)]
    assert sum(one is not None for one, _ in carried) > 100
    for one, other in carried:
        assert (one is None) == (other is None)
        if one is not None and other is not None:
            assert (one.id, one.args, one.kwargs, one.next_fire_time) == (
                other.id, other.args, other.kwargs, other.next_fire_time,
            )  # fmt: skip
            assert repr(one.trigger) == repr(other.trigger)
            assert (one.options, one.metadata, one.paused) == (other.options, other.metadata, other.paused)
