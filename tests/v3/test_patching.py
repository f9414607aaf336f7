"""A row that goes back with another next_run_time is read by real v3 as meant, and is the same in all else."""

from __future__ import annotations

import base64
import pickletools
from collections import Counter
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest

from duetime.v3.patching import Unpatchable, moved
from duetime.v3.rollback import _as_returned

from .moving import instant
from .real import RELEASES, ask
from .stored import Stored, stored_rows

DELAYS = (timedelta(seconds=61, microseconds=7), timedelta(days=1), timedelta(days=180))
"""The last crosses a change of the clock in Berlin, whenever it is counted from."""

PLANNED = [stored for stored in stored_rows() if stored.row.next_run_time is not None]
"""The rows that are not paused."""

_NO_OTHER_TIME = ("is not a whole pickle", "tzstr) is not one that can be looked up")
"""Rows that are damaged, or in a zone that has a rule instead of a name."""


def movable() -> list[tuple[Stored, datetime, bytes]]:
    """Return stored rows that are not paused, with another time and the patched pickle."""
    found = []
    for number, stored in enumerate(PLANNED):
        assert stored.row.next_run_time is not None
        to = instant(stored.row.next_run_time) + DELAYS[number % len(DELAYS)]
        try:
            found.append((stored, to, moved(stored.row.job_state, stored.row.next_run_time, to)))
        except Unpatchable as exc:
            if not any(each in str(exc) for each in _NO_OTHER_TIME):
                raise AssertionError(stored.name) from exc
    return found


@pytest.fixture(scope="module")
def patched() -> list[tuple[Stored, datetime, bytes]]:
    """Every stored row of every release, moved."""
    return movable()


def test_nearly_every_row_can_be_moved(patched: list[tuple[Stored, datetime, bytes]]) -> None:
    assert len(patched) > 0.99 * len(PLANNED) > 1000


def test_a_row_that_is_not_moved_keeps_all_its_bytes() -> None:
    for stored in PLANNED:
        assert stored.row.next_run_time is not None
        same = moved(stored.row.job_state, stored.row.next_run_time, instant(stored.row.next_run_time))
        assert same == stored.row.job_state


def test_only_the_time_is_another(patched: list[tuple[Stored, datetime, bytes]]) -> None:
    """Ten bytes in their place; or all bytes as they were, the length of the last frame aside, and more at the end."""
    how: Counter[str] = Counter()
    for stored, _, state in patched:
        before = stored.row.job_state
        if len(state) == len(before):
            others = [place for place, (one, two) in enumerate(zip(before, state, strict=True)) if one != two]
            assert others[-1] - others[0] < 10, stored.name
            how["in place"] += 1
        else:
            frames = [place for opcode, _, place in pickletools.genops(before) if opcode.name == "FRAME" and place]
            cut = range(frames[-1] + 1, frames[-1] + 9) if frames else range(0)
            same = [
                one == two or place in cut for place, (one, two) in enumerate(zip(before[:-1], state, strict=False))
            ]
            assert all(same), stored.name
            how["at the end"] += 1
    assert min(how["in place"], how["at the end"]) > 100


@pytest.mark.parametrize("release", RELEASES)
def test_real_v3_loads_the_row_and_goes_on_from_the_time(
    release: str, patched: list[tuple[Stored, datetime, bytes]]
) -> None:
    """v3 takes the time from the pickle, and what else it reads is what it would have read."""
    of_release = [each for each in patched if each[0].release == release and each[0].python != "2.7"]
    rows = [[stored.row.id, base64.b64encode(state).decode()] for stored, _, state in of_release]
    rows += [[stored.row.id, base64.b64encode(stored.row.job_state).decode()] for stored, _, _ in of_release]
    answers = ask(release, "load", rows=rows)
    compared = changed = 0
    for (stored, to, _), answer, before in zip(of_release, answers, answers[len(of_release) :], strict=False):
        if "error" in before:  # it needs a package or a Python that is not here
            assert "error" in answer, stored.name
            continue
        compared += 1
        assert instant(answer["next"]) == to, stored.name
        assert answer["rest"] == before["rest"], stored.name
        zone = stored.asked["trigger"].get("timezone")
        was = instant(stored.row.next_run_time or 0.0)
        if zone == "Europe/Berlin" and before["offset"] == _offset(was, zone):  # else the job has a zone of its own
            assert answer["offset"] == _offset(to, zone), stored.name
            changed += before["offset"] != answer["offset"]
        if answer["following"] is not None and not stored.asked["trigger"].get("jitter"):
            assert answer["following"] > answer["next"], stored.name
    assert compared > 100
    assert changed > 10


def _offset(moment: datetime, zone: str) -> float:
    offset = moment.astimezone(ZoneInfo(zone)).utcoffset()
    assert offset is not None
    return offset.total_seconds()


def test_a_paused_row_and_one_that_is_due_as_before_go_back_unread() -> None:
    now = datetime.now(UTC)
    stored = {"id": "a", "job_state": b"no pickle", "next_fire_time": now, "first_fire_time": now}
    assert _as_returned({**stored, "next_run_time": None}).job_state == b"no pickle"
    assert _as_returned({**stored, "next_run_time": 1.5}).next_run_time == 1.5


@pytest.mark.parametrize(
    "state", [b"", b".", b"N.", b"}.", b"\x80\x04}\x94.", b"garbage", b"(" * 1000 + b".", b"R.", b"t.", b"h\x05."]
)
def test_what_is_no_job_is_refused(state: bytes) -> None:
    with pytest.raises(Unpatchable):
        moved(state, 0.0, datetime(2027, 1, 1, tzinfo=UTC))
