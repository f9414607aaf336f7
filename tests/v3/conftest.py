"""Where v3's table may be; and each test has the applications that it has written itself, and no others."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from duetime import builtin, tasks
from duetime.settings import DatabaseUrl

from .moving import KINDS, V3Side, v3_side


@pytest.fixture(autouse=True)
def no_tasks_of_other_tests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Forget the applications that a test has written and imported, with the tasks that they have registered."""
    builtin.register()  # these are imported once, and no test's
    monkeypatch.setattr(tasks.registry, "_tasks", dict(tasks.registry._tasks))
    yield
    for name, module in list(sys.modules.items()):
        if (getattr(module, "__file__", None) or "").startswith(f"{tmp_path}/"):
            del sys.modules[name]


@pytest.fixture(params=KINDS)
async def side(request: pytest.FixtureRequest, database: DatabaseUrl, tmp_path: Path) -> AsyncIterator[V3Side]:
    """A table of v3 in the same database, in another one, and in a file."""
    async with v3_side(request.param, database, tmp_path) as side:
        yield side
