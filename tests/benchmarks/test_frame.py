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
from benchmarks.lab import Case, Database, Figures, FiguresOverTime, Lab
from benchmarks.redis_server import RedisServer
from benchmarks.results import Row, as_markdown, as_text
from benchmarks.scale import SHORT
from benchmarks.server import Server

from benchmarks import document, environments, places, readme, run
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
    assert main(["add", "--peers", "floor,resque"]) == 2
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


async def test_a_value_for_each_second_is_the_median_of_the_repeats_and_in_no_table(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    series = iter(([1.0, 10.0], [3.0, 30.0], [2.0, 20.0]))

    async def measure(_lab: Lab, _case: Case) -> Figures:
        return FiguresOverTime({"p50": (7.0, "ms")}, {"p50": (next(series), "ms")})

    monkeypatch.setattr(LAB, "scale", SimpleNamespace(repeats=3))
    rows = await rows_of(monkeypatch, measure, "floor")
    assert rows["floor", "p50"].values == [7.0, 7.0, 7.0]
    assert rows["floor", "p50, each second"].values == [2.0, 20.0]
    assert "each second" not in as_text(rows.values())


async def test_what_only_counts_goes_on_all_at_once_and_before_what_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    under_way: list[str] = []
    most: list[int] = []

    async def measure(_lab: Lab, case: Case) -> Figures:
        under_way.append(case.peer)
        await asyncio.sleep(0.01)
        most.append(len(under_way))
        under_way.remove(case.peer)
        return {"speed": (1.0, "")}

    counting = benchmark_of(measure, "one", "two")
    counting.TOGETHER = True
    timed = benchmark_of(measure, "three", "four")
    monkeypatch.setattr(run, "module_of", {"add": timed, "idle": counting, "kill": counting}.__getitem__)
    rows = await run.run(LAB, ["add", "idle", "kill"])
    assert most == [4, 3, 2, 1, 1, 1]
    assert [row.benchmark for row in rows] == ["add", "add", "idle", "idle", "kill", "kill"]


async def test_peers_on_redis_take_part_only_when_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    async def measure(_lab: Lab, _case: Case) -> Figures:
        return {"speed": (1.0, "")}

    monkeypatch.setattr(run, "module_of", lambda _name: benchmark_of(measure, "floor", "saq"))
    assert {row.peer for row in await run.run(LAB, ["add"])} == {"floor"}
    assert {row.peer for row in await run.run(LAB, ["add"], ["floor", "saq"])} == {"floor", "saq"}


async def test_without_redis_server_the_rows_say_so_and_the_run_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    lab = Lab(cast("Server", None), SHORT)

    async def measure(_lab: Lab, case: Case) -> Figures:
        if case.on_redis:
            async with lab.database(case):
                pytest.fail("there is no database")
        return {"speed": (7.0, "ops/s")}

    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(run, "module_of", lambda _name: benchmark_of(measure, "saq", "celery", "floor"))
    rows = {(row.peer, row.figure): row for row in await run.run(LAB, ["add"], ["saq", "celery", "floor"])}
    for peer in ("saq", "celery"):
        assert "no redis-server on the PATH" in rows[peer, "failed"].note
    assert rows["floor", "speed"].median == 7.0


@pytest.mark.debian("redis-server")
async def test_the_redis_of_a_run_logs_its_writes_and_leaves_nothing_behind() -> None:
    async with RedisServer() as server:
        settings = await server.settings()
        assert (settings["appendonly"], settings["appendfsync"]) == ("yes", "everysec")
        async with server.database() as first, server.database() as second:
            one, other = await server.connect(first), await server.connect(second)
            await one.command("SET", "key", "value")
            assert await one.fetchval("return redis.call('dbsize')") == 1
            assert await other.fetchval("return redis.call('dbsize')") == 0
            await other.close()
            async with server.database() as third:
                assert third not in (first, second)
        assert await one.fetchval("return redis.call('dbsize')") == 0  # emptied for the next measurement
        await one.close()
        directory = server.directory
        assert directory.exists()
    assert not directory.exists()
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection(*server.address)


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


ENVIRONMENT: dict[str, Any] = {
    "began": "2026-11-23T17:00:00+00:00",
    "repeats": 5,
    "machine": {"cores": 2, "processor": "P"},
    "postgresql": {"server_version": "18.4"},
}


def startup_rows(*distances: str) -> list[Row]:
    return [
        Row.of("startup", peer, distance, figure, unit, [value], "")
        for distance in distances
        for peer, value in (("duetime", 0.25), ("other", 3.5))
        for figure, unit in (("/health/live", "s"), ("ready", "s"), ("round trips", ""), ("longest stall", "ms"))
    ]


def test_the_readme_gets_the_table_and_a_picture_between_its_markers(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    path = tmp_path / "README.md"
    path.write_text(f"before\n{readme.BEGIN}\nold\n{readme.END}\nafter\n")
    failed = Row("startup", "celery", "0 ms", "failed", "", None, [], "not measured: it starts elsewhere")
    picture = readme.put_into(path, [*startup_rows("0 ms", "70 ms + TLS"), failed], ENVIRONMENT)
    text = path.read_text()
    assert text.startswith(f"before\n{readme.BEGIN}\n")
    assert text.endswith(f"{readme.END}\nafter\n")
    assert "old" not in text
    assert "| duetime | 0.25 | 0.25 | 0.25 | 0.25 | 0.25 | 0.25 | 0.25 | 0.25 |" in text
    assert "- celery, 0 ms: not measured: it starts elsewhere" in text
    assert "](docs/startup.png)" in text
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_the_readme_is_not_written_with_half_of_the_start_ups(tmp_path: Path) -> None:
    path = tmp_path / "README.md"
    path.write_text(f"{readme.BEGIN}\nold\n{readme.END}\n")
    with pytest.raises(ValueError, match=r"got none at 70 ms \+ TLS"):
        readme.put_into(path, startup_rows("0 ms"), ENVIRONMENT)
    assert "old" in path.read_text()


def test_the_readme_of_this_repository_has_the_markers() -> None:
    document.around(places.ROOT / "README.md", readme.BEGIN, readme.END)
    document.around(places.ROOT / "docs" / "benchmarks.md", document.BEGIN, document.END)


@pytest.mark.parametrize("option", ["--markdown", "--readme"])
def test_a_document_without_markers_is_refused_before_anything_is_measured(
    option: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "doc.md").write_text("nothing marked")
    assert main([option, str(tmp_path / "doc.md")]) == 2
    assert "expected the lines" in capsys.readouterr().err


@pytest.fixture
async def lab(server: DatabaseUrl) -> AsyncIterator[Lab]:
    async with Server(server) as found, Lab(found, SHORT) as lab:
        yield lab


async def connect(place: dict[str, Any]) -> asyncpg.Connection:
    ssl = "require" if place["tls"] else False
    return await asyncpg.connect(**{name: value for name, value in place.items() if name != "tls"}, ssl=ssl)


async def test_the_way_counts_round_trips_and_statements(lab: Lab) -> None:
    async with lab.server.database() as database, lab.way(Database(lab.server, database), 0) as way:
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
    async with lab.server.database() as database, lab.way(Database(lab.server, database), rtt) as way:
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
