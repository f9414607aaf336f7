"""The frame of the benchmarks: a failure ends in its row, no number is filled in, results survive their file."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import asyncpg
import pytest
from benchmarks.__main__ import main
from benchmarks.errors import PeerFailed
from benchmarks.lab import Case, Figures, Lab
from benchmarks.results import Row, as_markdown, as_text
from benchmarks.scale import SHORT
from benchmarks.server import Server

from benchmarks import document, environments, places, run
from duetime.settings import DatabaseUrl

LAB = cast("Lab", SimpleNamespace(scale=SHORT))
Measure = Callable[[Lab, Case], Any]


def benchmark_of(measure: Measure, *peers: str) -> SimpleNamespace:
    """Return a benchmark of these peers, as a module of the suite is one."""
    return SimpleNamespace(HOW="by counting", cases=lambda _scale: [Case(peer) for peer in peers], measure=measure)


async def rows_of(monkeypatch: pytest.MonkeyPatch, measure: Measure, *peers: str) -> dict[tuple[str, str], Row]:
    monkeypatch.setattr(run, "module_of", lambda _name: benchmark_of(measure, *peers))
    return {(row.peer, row.figure): row for row in await run.run(LAB, ["add"])}


def test_an_unknown_benchmark_lists_the_known_ones(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["startupp"]) == 2
    said = capsys.readouterr().err
    assert "'startupp'" in said
    assert "Did you mean 'startup'?" in said
    assert all(name in said for name in run.BENCHMARKS)


def test_an_unknown_peer_lists_the_known_ones(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["add", "--peers", "floor,celery"]) == 2
    assert "apscheduler4" in capsys.readouterr().err


def test_the_list_names_every_benchmark(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--list"]) == 0
    listed = capsys.readouterr().out
    assert all(f"\n{name} " in f"\n{listed}" for name in run.BENCHMARKS)


async def test_a_peer_that_fails_has_the_reason_in_its_row_and_the_run_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    async def measure(_lab: Lab, case: Case) -> Figures:
        if case.peer == "broken":
            raise PeerFailed("its process ended: no such module")
        return {"speed": (7.0, "ops/s")}

    rows = await rows_of(monkeypatch, measure, "broken", "whole")
    assert rows["broken", "failed"].note == "failed: its process ended: no such module"
    assert rows["broken", "failed"].median is None
    assert rows["broken", "failed"].values == []
    assert ("broken", "speed") not in rows
    assert rows["whole", "speed"].median == 7.0
    assert "broken: failed: its process ended: no such module" in as_text(rows.values())


async def test_a_peer_that_hangs_is_given_up_and_the_run_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    async def measure(_lab: Lab, case: Case) -> Figures:
        if case.peer == "stuck":
            await asyncio.Event().wait()
        return {"speed": (7.0, "ops/s")}

    monkeypatch.setattr(run, "CASE_TIMEOUT", 0.05)
    rows = await rows_of(monkeypatch, measure, "stuck", "whole")
    assert "hangs" in rows["stuck", "failed"].note
    assert rows["whole", "speed"].median == 7.0


async def test_a_peer_that_fails_later_keeps_what_was_measured_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Case] = []

    async def measure(_lab: Lab, case: Case) -> Figures:
        asked.append(case)
        if len(asked) > 2:
            raise PeerFailed("enough")
        return {"speed": (float(len(asked)), "ops/s")}

    monkeypatch.setattr(LAB, "scale", SimpleNamespace(repeats=5))
    rows = await rows_of(monkeypatch, measure, "tired")
    assert rows["tired", "speed"].values == [1.0, 2.0]
    assert "repeat 3" in rows["tired", "failed"].note
    assert len(asked) == 3  # a peer that has failed is not asked again


async def test_a_peer_that_cannot_be_installed_is_a_failure_with_pips_reason(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "impossible.txt").write_text("./there-is-no-such-directory\n")
    monkeypatch.setattr(environments, "PEERS", tmp_path)
    monkeypatch.setattr(places, "CACHE", tmp_path / "cache")
    with pytest.raises(PeerFailed, match=r"cannot be installed: .*there-is-no-such-directory"):
        await environments.python_of("impossible")


def test_results_survive_their_file_and_the_environment_is_in_it_once(tmp_path: Path) -> None:
    rows = [
        Row.of("add", "floor", "0 ms", "50 callers", "ops/s", [3.0, 1.0, 2.0], "counted"),
        Row("add", "v4", "0 ms", "failed", "", None, [], "no such module"),
    ]
    path = tmp_path / "out.json"
    document.write(path, rows, {"python": "3.12.1"})
    assert path.read_text().count('"environment"') == 1
    assert document.read(path) == (rows, {"python": "3.12.1"})
    assert rows[0].median == 2.0


def test_tables_show_the_spread_and_no_number_where_there_is_none() -> None:
    rows = [
        Row.of("add", "floor", "0 ms", "alone", "ops/s", [3.0, 1.0, 2.0], "counted"),
        Row.of("add", "other", "0 ms", "together", "ops/s", [5.0], "counted"),
    ]
    lines = as_markdown(rows).splitlines()
    assert "| floor | 2 (1–3) | – |" in lines
    assert "| other | – | 5 |" in lines


def test_tables_replace_what_is_between_the_markers_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "doc.md"
    environment: dict[str, Any] = {
        "began": "2026-11-23T17:00:00+00:00",
        "ended": "2026-11-23T17:05:00+00:00",
        "form": "short",
        "repeats": 1,
        "python": "3.12.1",
        "machine": {"cores": 2, "processor": "P", "memory_gib": 4, "system": "Linux", "load_before": 0.1},
        "postgresql": {"fsync": "on"},
        "peers": {},
    }
    path.write_text(f"before\n{document.BEGIN}\nold\n{document.END}\nafter\n")
    document.put_into(path, [Row.of("add", "floor", "", "alone", "ops/s", [3.0], "")], environment)
    text = path.read_text()
    assert text.startswith(f"before\n{document.BEGIN}\n")
    assert text.endswith(f"{document.END}\nafter\n")
    assert "old" not in text
    assert "| floor | 3 |" in text
    path.write_text("nothing marked")
    with pytest.raises(ValueError, match="expected the lines"):
        document.put_into(path, [], environment)


@pytest.fixture
async def lab(server: DatabaseUrl) -> AsyncIterator[Lab]:
    async with Server(server) as found, Lab(found, SHORT) as lab:
        yield lab


async def connect(place: dict[str, Any]) -> asyncpg.Connection:
    ssl = "require" if place["tls"] else False
    return await asyncpg.connect(**{name: value for name, value in place.items() if name != "tls"}, ssl=ssl)


async def test_the_way_counts_round_trips_and_statements(lab: Lab) -> None:
    async with lab.server.database() as database, lab.way(database, 0) as way:
        connection = await connect(way.place)
        await connection.fetchval("select 1")  # prepared: two round trips, later one
        opened = await way.take()
        assert opened["connections"] == 1
        for _ in range(10):
            await connection.fetchval("select 1")
        assert await way.take() == {"round_trips": 10, "connections": 0, "statements": 10}
        await connection.close()


async def test_the_way_holds_back_every_round_trip_and_speaks_tls(lab: Lab) -> None:
    rtt = 0.02
    async with lab.server.database() as database, lab.way(database, rtt) as way:
        connection = await connect(way.place)
        assert (await way.take())["round_trips"] >= 4  # TCP, the question for TLS, its handshake, PostgreSQL's start
        await connection.fetchval("select 1")
        await way.take()
        began = time.monotonic()
        for _ in range(5):
            await connection.fetchval("select 1")
        assert time.monotonic() - began >= 5 * rtt  # less would be faster than the distance allows
        assert (await way.take())["round_trips"] == 5
        await connection.close()
