"""What a process that has just begun knows of the calendars of holidays: nothing."""

from __future__ import annotations

import sys

import pytest

from duetime.triggers import holiday_calendars


def forget() -> None:
    """Forget what was loaded."""
    for cache in (
        holiday_calendars._entities,
        holiday_calendars._found,
        holiday_calendars._part_codes,
        holiday_calendars._year,
    ):
        cache.cache_clear()
    holiday_calendars._loaded.clear()


def lose_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    """Be a node on which the package is not installed, until the end of the test."""
    monkeypatch.setitem(sys.modules, "holidays", None)
    forget()
