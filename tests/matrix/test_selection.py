"""What the runs of ``make matrix`` are told about tests is about tests that there are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from . import selection

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("reasons", [selection._ONCE, selection._PAST_THE_POOLER, {"": selection._HEART}])
def test_every_name_is_the_beginning_of_a_tests_name(reasons: Mapping[str, Sequence[str]]) -> None:
    for name in (each for names in reasons.values() for each in names):
        path, _, test = name.partition("::")
        files = list(ROOT.glob(f"{path}*" if not path.endswith("/") else f"{path}test_*.py"))
        assert files, name
        assert not test or f"def {test.partition('[')[0]}" in files[0].read_text(), name


def test_the_tests_of_the_store_are_never_left_out() -> None:
    assert selection.reason_to_leave_out("tests/store/test_once.py::test", (), other_versions=False) is None
    assert selection.reason_to_leave_out("tests/test_triggers.py::test", (), other_versions=True) is None
    assert selection.reason_to_leave_out("tests/test_triggers.py::test", (), other_versions=False)
    assert selection.reason_to_leave_out("tests/test_local.py::test", ("server",), other_versions=True)
