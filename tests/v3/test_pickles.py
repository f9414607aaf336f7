"""What a pickle may not do: import, call, or take more memory and time than a job's row needs."""

from __future__ import annotations

import pickle
import random
import struct
import sys
import time
import tracemalloc
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from duetime.errors import UnreadablePickle
from duetime.v3.model import Reading, Unreadable, V3Row
from duetime.v3.pickles import MAX_PICKLE, Made, Named, NativeText, take_apart
from duetime.v3.reading import read

from .stored import stored_rows

PROTO = b"\x80\x04"


def reading_of(pickled: bytes) -> Reading:
    return read(V3Row("a", 0.0, pickled))


def state_with(args: bytes) -> bytes:
    """The pickle of a whole job, with that as the pickle of its args (without PROTO and STOP)."""

    def text(word: str) -> bytes:
        return b"X" + struct.pack("<I", len(word)) + word.encode()

    trigger = (
        b"capscheduler.triggers.date\nDateTrigger\n)\x81}(" + text("version") + b"K\x01" + text("run_date")
        + b"cdatetime\ndatetime\nC\x0a\x07\xea\x01\x01\x00\x00\x00\x00\x00\x00cdatetime\ntimezone\n"
        + b"cdatetime\ntimedelta\nK\x00K\x00K\x00\x87R\x85R\x86Rub"
    )  # fmt: skip
    parts = {
        "version": b"K\x01",
        "id": text("a"),
        "func": text("shop:remind"),
        "trigger": trigger,
        "executor": text("default"),
        "args": args,
        "kwargs": b"}",
        "name": text("remind"),
        "misfire_grace_time": b"K\x01",
        "coalesce": b"\x88",
        "max_instances": b"K\x01",
        "next_run_time": b"N",
    }
    return PROTO + b"}(" + b"".join(text(name) + value for name, value in parts.items()) + b"u."


HONEST = state_with(b"(" + b"X\x01\x00\x00\x00a" * 160_000 + b"l\x85") + b"."
"""A megabyte of short texts."""


def seconds_of(pickled: bytes) -> float:
    """Return the processor time that reading a row takes."""
    began = time.thread_time()
    reading_of(pickled)
    return time.thread_time() - began


class Boom:
    """Writes itself as a call of a function."""

    def __init__(self, call: Callable[..., Any], *args: Any) -> None:
        self.call, self.args = call, args

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call, self.args


def test_a_whole_job_put_together_by_hand_is_read() -> None:
    reading = read(V3Row("a", None, state_with(b"K\x07\x85")))
    assert reading.job is not None, reading.findings
    assert reading.job.args == (7,)


def test_nothing_that_a_pickle_names_is_called_or_imported(tmp_path: Path) -> None:
    mark = tmp_path / "called"
    calls = [
        Boom(exec, f"open({str(mark)!r}, 'w')"),
        Boom(open, str(mark), "w"),
        Boom(getattr, Path, "unlink"),
        Boom(__import__, "antigravity"),
    ]
    for call in calls:
        pickled = pickle.dumps((call,))
        reading = reading_of(state_with(pickled[2:-1]))
        assert reading.job is not None, reading.findings
        (argument,) = reading.job.args
        assert isinstance(argument, Unreadable)
        assert [finding.severity for finding in reading.findings if finding.code == "unknown_class"] == ["review"]
    assert not mark.exists()
    assert "antigravity" not in sys.modules


def test_getattr_is_let_in_for_zoneinfo_alone() -> None:
    def zone(module: str, name: str, attribute: str) -> bytes:
        call = f"cbuiltins\ngetattr\nc{module}\n{name}\n".encode() + b"X" + struct.pack("<I", len(attribute))
        return call + attribute.encode() + b"\x86RX\x0d\x00\x00\x00Europe/BerlinK\x01\x86R\x85"

    good = reading_of(state_with(zone("zoneinfo", "ZoneInfo", "_unpickle"))).job
    assert good is not None
    assert [getattr(arg, "key", None) for arg in good.args] == ["Europe/Berlin"]
    for wrong in (
        ("zoneinfo", "ZoneInfo", "clear_cache"),
        ("os", "ZoneInfo", "_unpickle"),
        ("os", "path", "_unpickle"),
    ):
        job = reading_of(state_with(zone(*wrong))).job
        assert job is not None
        assert job.args == (Unreadable("builtins:getattr"),)


def hostile() -> dict[str, bytes]:
    """Pickles that would take gigabytes, hours or the process, if they were loaded."""
    laughs = b"]q\x00" + b"".join(
        b"](" + b"h" + bytes([level]) + b"h" + bytes([level]) + b"eq" + bytes([level + 1]) for level in range(100)
    )
    tuples = b")\x94" + b"".join(b"h" + bytes([level]) + b"h" + bytes([level]) + b"\x86\x94" for level in range(60))
    collide = b"(" + b"".join(b"\x8a\x0a" + ((2**61 - 1) * n).to_bytes(10, "little") + b"N" for n in range(1, 60_000))
    return {
        "memo index of four gigabytes": b"Nr\xff\xff\xff\xff",
        "memo index in digits": b"Np" + b"9" * 4000 + b"\n",
        "memo index past all digits": b"Np" + b"9" * 100_000 + b"\n",
        "a frame of exabytes": b"\x95" + b"\xff" * 7 + b"\x7f" + b"N",
        "bytes of exabytes": b"\x8e" + b"\xff" * 7 + b"\x7f",
        "bytearray of exabytes": b"\x96" + b"\xff" * 7 + b"\x7f",
        "negative length": b"T\xff\xff\xff\xffabc",
        "a long of two megabytes": b"\x8b" + struct.pack("<i", 2_000_000) + b"\x7f" * 2_000_000,
        "a long in decimal digits": b"L" + b"9" * 1_000_000 + b"L\n",
        "a float in digits": b"F" + b"9" * 1_000_000 + b"\n",
        "empty lists": b"]" * 2_000_000,
        "empty sets": b"\x8f" * 2_000_000,
        "empty dicts": b"}" * 2_000_000,
        "marks": b"(" * 2_000_000,
        "dup": b"K\x01" + b"2" * 2_000_000,
        "memoize": b"N" + b"\x94" * 2_000_000,
        "classes": b"cos\nsystem\n" * 180_000,
        "calls in calls": b"cos\nsystem\n" + b")R" * 900_000,
        "deep lists": b"]" * 100_000 + b"a" * 99_999,
        "deep tuples": b")" + b"\x85" * 150_000,
        "deep tuples in a job": state_with(b")" + b"\x85" * 100_000)[2:-1],
        "laughs in a job": state_with(laughs + b"\x85")[2:-1],
        "laughs as a key": state_with(b"}" + tuples + b"Ns\x85")[2:-1],
        "laughs in a set": state_with(b"\x8f(" + tuples + b"\x90\x85")[2:-1],
        "keys that all collide": state_with(b"}" + collide + b"u\x85")[2:-1],
        "members that all collide": state_with(b"\x8f" + collide.replace(b"N", b"") + b"\x90\x85")[2:-1],
        "a list in itself": state_with(b"]q\x00h\x00a\x85")[2:-1],
        "a dict in itself": state_with(b"}q\x00K\x01h\x00s\x85")[2:-1],
        "bytes of a gigabyte by a call": state_with(b"cbuiltins\nbytes\nJ\x00\x00\x00\x40\x85R\x85")[2:-1],
        "bytearray of a gigabyte by a call": state_with(b"cbuiltins\nbytearray\nJ\x00\x00\x00\x40\x85R\x85")[2:-1],
        "a long key, again and again": state_with(
            b"X" + struct.pack("<I", 1_000_000) + b"k" * 1_000_000 + b"q\x00}q\x01(" + b"h\x00]" * 50_000 + b"u\x86"
        )[2:-1],
        "zones in zones": state_with(
            b"cpytz_deprecation_shim._impl\nwrap_zone\nq\x00" + b"h\x00" * 20_000 + b"N" + b"N\x86R" * 20_000 + b"\x85"
        )[2:-1],
        "a set of a list, again and again": state_with(
            b"](" + b"K\x01" * 20_000 + b"eq\x00cbuiltins\nset\nq\x01](" + b"h\x01h\x00\x85R" * 20_000 + b"e\x85"
        )[2:-1],
        "build again and again": b"cos\nsystem\n)R" + b"}b" * 500_000,
        "appends to a call": b"cos\nsystem\n)R" + b"Na" * 500_000,
        "a persistent id": b"Pos.system\n",
        "an extension": b"\x82\x01",
        "a decimal with an exponent": state_with(b"cdecimal\nDecimal\nX\x0b\x00\x00\x001e999999999\x85R\x85")[2:-1],
        "a decimal of many digits": state_with(
            b"cdecimal\nDecimal\nX" + struct.pack("<I", 1_000_000) + b"9" * 1_000_000 + b"\x85R\x85"
        )[2:-1],
        "a zone of a long name": state_with(
            b"cpytz\n_p\nX" + struct.pack("<I", 1_000_000) + b"Z" * 1_000_000 + b"\x85R\x85"
        )[2:-1],
        "a zone that is a path": state_with(b"cpytz\n_p\nX\x10\x00\x00\x00../../etc/passwd\x85R\x85")[2:-1],
    }


@pytest.mark.parametrize("name", hostile())
def test_a_hostile_row_takes_little_memory_and_time_and_is_never_carried_over(name: str) -> None:
    pickled = PROTO + hostile()[name] + b"."
    reading = reading_of(pickled)
    # Less than a second, where an honest row of a megabyte takes a tenth of one: here and now, whatever else goes on.
    assert any(seconds_of(pickled) < 12 * seconds_of(HONEST) for _ in range(3))
    tracemalloc.start()
    try:
        reading_of(pickled)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 64 * 1024 * 1024
    assert any(finding.severity in ("review", "reject") for finding in reading.findings) or name in HARMLESS
    assert all(len(finding.text) < 1000 for finding in reading.findings)


HARMLESS = ("a decimal with an exponent",)
"""Read as what they are."""


def test_the_honest_row_that_hostile_ones_are_compared_with_is_read() -> None:
    assert reading_of(HONEST).job is not None


def test_a_row_that_is_cut_off_anywhere_is_rejected_and_never_carried_over() -> None:
    for release in ("3.6", "3.11"):
        whole = next(stored.row for stored in stored_rows(release) if stored.row.id == "cron-06")
        for length in range(len(whole.job_state)):
            reading = read(V3Row(whole.id, whole.next_run_time, whole.job_state[:length]))
            assert reading.job is None
            assert [finding.severity for finding in reading.findings] == ["reject"]


def test_bytes_that_were_changed_at_random_never_raise() -> None:
    dice = random.Random(6)
    rows = [stored.row for stored in stored_rows("3.10")]
    for _ in range(3000):
        whole = dice.choice(rows)
        damaged = bytearray(whole.job_state[:4000])
        for _ in range(dice.choice((1, 1, 3, 20))):
            damaged[dice.randrange(len(damaged))] = dice.randrange(256)
        reading = read(V3Row(whole.id, whole.next_run_time, bytes(damaged)))
        assert reading.job is not None or reading.findings[0].severity == "reject"


@pytest.mark.parametrize(
    "garbage",
    [b"", b".", b"N.", b"not a pickle", b"\x00" * 100, b"\x80\x04", b"\x80\x09N.", b"{'id': 1}", "ü".encode() * 50],
)
def test_garbage_is_rejected_with_a_sentence_that_says_what_to_do(garbage: bytes) -> None:
    reading = reading_of(garbage)
    assert reading.job is None
    (finding,) = reading.findings
    assert finding.severity == "reject"
    assert finding.code in ("unreadable_pickle", "not_a_job")
    assert finding.text.startswith("expected ")
    assert "schedule the job anew" in finding.text


def test_a_row_that_is_longer_than_any_jobs_is_not_looked_at() -> None:
    with pytest.raises(UnreadablePickle, match="at most"):
        take_apart(b"N" * (MAX_PICKLE + 1))


def test_each_protocol_is_taken_apart_as_pythons_own_unpickler_reads_it() -> None:
    numbers: list[Any] = [1, -1, 255, 70_000, -70_000, 2**70, 1.5, True, None]
    whole = [*numbers, "grün ☕\n", "\\u", "x" * 300, b"\x00\xff", (1,), (), [[]]]
    for protocol in range(3, 6):
        assert take_apart(pickle.dumps(whole, protocol)) == whole
    for protocol in range(3):  # bytes are a call there
        plain = [item for item in whole if item != b"\x00\xff"]
        assert take_apart(pickle.dumps(plain, protocol)) == plain


def test_what_python_2_wrote_is_told_from_text() -> None:
    assert take_apart(b"S'it\\'s\\n\\xff'\np0\n.") == NativeText(b"it's\n\xff")
    assert take_apart(b"U\x02abT\x01\x00\x00\x00c0.") == NativeText(b"ab")
    assert take_apart(b"I01\n.") is True
    assert take_apart(b"(lp0\nI5\naV\\u00fc\na.") == [5, "ü"]


def test_the_old_ways_to_say_an_instance_are_understood() -> None:
    for pickled in (b"(ishop\nMoney\n.", b"(cshop\nMoney\no.", b"cshop\nMoney\n)\x81.", b"cshop\nMoney\n)}\x92."):
        found = take_apart(pickled)
        assert isinstance(found, Made)
        assert isinstance(found.maker, Named)
        assert (found.maker.reference, found.args) == ("shop:Money", ())


def test_what_was_read_does_not_depend_on_the_clock() -> None:
    row = next(stored.row for stored in stored_rows("3.11") if stored.row.id == "args-aware")
    assert read(row) == read(row)
    job = read(row).job
    assert job is not None
    assert job.args[0] == datetime(2026, 3, 1, tzinfo=UTC)
