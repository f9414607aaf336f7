from __future__ import annotations

import fcntl
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from duetime.database_url import DatabaseUrl

from .conftest import copy_application
from .server import SERVE, Server, processes_in, wait_until_nothing_runs_in
from .sink import Sink
from .waiting import until

EVERY_SECOND = {"type": "cron", "expression": "* * * * * *"}
PAST = {"type": "date", "run_at": "2020-01-01T00:00:00Z"}
NOT_YET = {
    "task": "http_request",
    "kwargs": {"url": "https://example.com/"},
    "trigger": {"type": "date", "run_at": "2100-01-01T00:00:00Z"},
}


def request_to(sink: Sink, path: str) -> dict[str, Any]:
    return {"task": "http_request", "kwargs": {"url": sink.url(path), "method": "POST"}}


@contextmanager
def nobody_starts_the_database_of(server: Server) -> Iterator[None]:
    """Hold the lock under which the embedded PostgreSQL is started (see ``duetime.local.database``)."""
    directory = server.directory / ".duetime"
    directory.mkdir()
    with (directory / "start.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def postgres_of(server: Server) -> int:
    """Return the process id of the embedded PostgreSQL."""
    return int((server.directory / ".duetime/postgres/postmaster.pid").read_text().split()[0])


def test_a_schedule_posted_while_the_database_starts_waits_for_it(new_server: Callable[..., Server]) -> None:
    server = new_server(DUETIME_CALL_TIMEOUT="25")
    with ThreadPoolExecutor() as pool:
        with nobody_starts_the_database_of(server):
            server.start()
            call = pool.submit(server.post, "/api/schedules", NOT_YET)
            assert server.get("/health/live").status_code == 200
            not_ready = server.get("/health/ready")
            assert not_ready.status_code == 503
            assert not_ready.json()["reason"]
            assert not call.done()
        response = call.result()
    assert response.status_code == 201, response.text
    server.wait_until_ready()
    assert [each["id"] for each in server.everything("/api/schedules")] == [response.json()["id"]]


@pytest.mark.parametrize("signal_number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_server_and_its_database_and_the_next_start_finds_everything(
    new_server: Callable[..., Server], sink: Sink, signal_number: signal.Signals
) -> None:
    server = new_server()
    path = f"/{signal_number.name}"
    server.start()
    server.wait_until_ready()
    server.add({**request_to(sink, path), "id": "tick", "trigger": EVERY_SECOND})
    until(lambda: sink.effects(path), "the first effect")
    database = postgres_of(server)

    server.send(signal_number)
    assert server.wait_until_ended() == 0
    # The server was the database's last user, and waits for its end.
    assert not processes_in(server.directory)
    assert "Traceback" not in server.log

    server.start()
    server.wait_until_ready()
    assert postgres_of(server) != database
    seen = len(sink.effects(path))
    until(lambda: len(sink.effects(path)) > seen, "the schedule to go on")
    assert server.stop() == 0


def test_a_signal_that_comes_while_the_database_starts_ends_the_server_too(
    new_server: Callable[..., Server],
) -> None:
    server = new_server()
    with nobody_starts_the_database_of(server):
        server.start()
        server.send(signal.SIGTERM)
        until(lambda: "Shutting down" in server.log, "the stop to begin")
    assert server.wait_until_ended() == 0
    assert not processes_in(server.directory)
    server.start()
    server.wait_until_ready()


def test_kill_9_leaves_no_database_behind_and_the_next_start_works_at_once(
    new_server: Callable[..., Server],
) -> None:
    server = new_server()
    server.start()
    server.wait_until_ready()
    server.add({**NOT_YET, "id": "kept"})
    database = postgres_of(server)

    server.kill()
    server.start()  # while the old database is still on its way out
    server.wait_until_ready()
    assert postgres_of(server) != database
    assert server.schedule("kept")["state"] == "active"

    server.kill()
    wait_until_nothing_runs_in(server.directory)


def test_a_stop_lets_jobs_end_and_puts_what_does_not_end_back_into_the_queue(
    new_server: Callable[..., Server], empty_database: DatabaseUrl, sink: Sink
) -> None:
    # Leases that outlast every deadline here: only what is given back can be run again.
    server = new_server(DATABASE_URL=empty_database.text, DUETIME_DRAIN_TIMEOUT="20", DUETIME_LEASE_DURATION="600")
    server.start()
    server.wait_until_ready()
    sink.hold()
    server.add({**request_to(sink, "/drained"), "id": "drained", "trigger": PAST})
    until(lambda: sink.effects("/drained"), "the job to begin")
    server.send(signal.SIGTERM)
    until(lambda: "Shutting down" in server.log, "the stop to begin")
    sink.let_go()
    assert server.wait_until_ended(within=40) == 0

    server.environment["DUETIME_DRAIN_TIMEOUT"] = "0.2"
    server.start()
    server.wait_until_ready()
    assert [run["outcome"] for run in server.runs("drained")] == ["success"]
    assert len(sink.effects("/drained")) == 1
    sink.hold()
    server.add({**request_to(sink, "/requeued"), "id": "requeued", "trigger": PAST})
    until(lambda: sink.effects("/requeued"), "the job to begin")
    assert server.stop() == 0

    server.start()
    until(lambda: len(sink.effects("/requeued")) == 2, "the job to begin again, without waiting for its lease")
    sink.let_go()
    until(lambda: server.fires("requeued")[0]["state"] == "succeeded", "the fire to end")
    [fire] = server.fires("requeued")
    assert sink.keys("/requeued") == [fire["job_id"]] * 2


def test_an_application_s_own_tasks_run_by_name(new_server: Callable[..., Server], empty_database: DatabaseUrl) -> None:
    server = new_server(*SERVE, "--tasks", "own_tasks", DATABASE_URL=empty_database.text)
    copy_application("own_tasks", server.directory)
    server.start()
    for task in ("greet", "own_tasks.greet", "own_tasks:greet"):
        made = server.add({"task": task, "kwargs": {"name": "Ada"}, "trigger": PAST})
        assert made["task"] == "own_tasks:greet"
        until(lambda: server.runs(made["id"]), "the run")  # noqa: B023
        assert [run["outcome"] for run in server.runs(made["id"])] == ["success"]


def test_a_task_module_that_cannot_be_imported_is_named_at_the_start(
    new_server: Callable[..., Server],
) -> None:
    server = new_server(*SERVE, "--tasks", "no_such_module")
    server.launch()
    assert server.wait_until_ended() == 2
    assert "expected to import the task module 'no_such_module'" in server.log
    assert not (server.directory / ".duetime").exists()


def test_with_a_token_every_request_but_health_needs_it(
    new_server: Callable[..., Server], empty_database: DatabaseUrl
) -> None:
    token = "correct-horse-battery-staple"
    server = new_server(DATABASE_URL=empty_database.text, DUETIME_API_TOKEN=token)
    server.start()
    server.wait_until_ready()
    for authorization in (None, "Bearer wrong", f"Basic {token}", "Bearer"):
        headers = {} if authorization is None else {"authorization": authorization}
        with server.new_client(headers=headers) as client:
            for response in (client.get("/api/schedules"), client.post("/api/schedules", json=NOT_YET)):
                assert response.status_code == 401
                assert response.json()["code"] == "unauthorized"
                assert response.headers["www-authenticate"].startswith("Bearer")
                assert token not in response.text
    with server.new_client(headers={"authorization": f"Bearer {token}"}) as client:
        assert client.get("/api/schedules").json()["items"] == []
        assert client.post("/api/schedules", json=NOT_YET).status_code == 201
    assert token not in server.log


def test_listening_for_other_machines_without_a_token_is_refused(new_server: Callable[..., Server]) -> None:
    server = new_server(*SERVE, "--host", "0.0.0.0")  # noqa: S104
    server.launch()
    assert server.wait_until_ended() == 2
    assert "DUETIME_API_TOKEN" in server.log


def test_a_port_that_is_taken_is_named_and_costs_nothing(new_server: Callable[..., Server], sink: Sink) -> None:
    server = new_server(PORT=str(sink.port))
    server.launch()
    assert server.wait_until_ended() == 1
    assert f"127.0.0.1:{sink.port}" in server.log
    assert "Traceback" not in server.log
    assert not (server.directory / ".duetime").exists()


# -- several processes on one database ---------------------------------------------------------------------------------


@pytest.fixture
def pair(new_server: Callable[..., Server], empty_database: DatabaseUrl) -> list[Server]:
    """Two servers that started at the same moment on an empty database."""
    settings = {
        "DATABASE_URL": empty_database.text,
        "DUETIME_MAX_CONCURRENT_JOBS": "2",
        "DUETIME_LEASE_DURATION": "2",
        "DUETIME_CALL_TIMEOUT": "1.9",
        "DUETIME_POLL_INTERVAL": "1",
    }
    servers = [new_server(**settings) for _ in range(2)]
    for server in servers:
        server.launch()
    for server in servers:
        server.wait_until_live()
    for server in servers:
        server.wait_until_ready()
    return servers


def test_two_processes_that_start_at_once_share_the_work_and_one_goes_on_alone(pair: list[Server], sink: Sink) -> None:
    first, second = pair
    nodes = {server.read("/health/ready")["node"] for server in pair}
    assert len(nodes) == 2
    sink.hold()
    for number in range(6):
        pair[number % 2].add({**request_to(sink, "/shared"), "id": f"shared-{number}", "trigger": PAST})
    # Each takes two at once, so four at once are both of them.
    until(lambda: len(sink.effects("/shared")) == 4, "both to work")
    assert first.everything("/api/schedules") == second.everything("/api/schedules")
    assert {job["node"] for job in second.everything("/api/jobs") if job["state"] == "running"} == nodes

    first.kill()
    sink.let_go()

    def all_succeeded() -> bool:
        fires = second.everything("/api/fires")
        return len(fires) == 6 and {fire["state"] for fire in fires} == {"succeeded"}

    until(all_succeeded, "the other one to take over")
    fires = second.everything("/api/fires")
    assert Counter(fire["schedule_id"] for fire in fires) == Counter(f"shared-{number}" for number in range(6))
    keys = Counter(sink.keys("/shared"))
    assert set(keys) == {fire["job_id"] for fire in fires}
    assert all(keys[fire["job_id"]] <= fire["attempts"] for fire in fires)
    assert keys.total() == 8, "the two that the killed one had begun are run again, and no others"


def test_two_processes_never_fire_a_schedule_twice(pair: list[Server], sink: Sink) -> None:
    first, second = pair
    ids = [f"once-a-second-{number}" for number in range(3)]
    for number, schedule_id in enumerate(ids):
        pair[number % 2].add({**request_to(sink, "/fired"), "id": schedule_id, "trigger": EVERY_SECOND})
    until(lambda: all(len(first.fires(each)) >= 4 for each in ids), "four seconds of fires")
    for number, schedule_id in enumerate(ids):
        # Removing takes back, on the other node too, what is held and not started.
        assert pair[(number + 1) % 2].client.delete(f"/api/schedules/{schedule_id}").status_code == 204

    def ended() -> bool:
        return "pending" not in {fire["state"] for fire in first.everything("/api/fires")}

    until(ended, "all to end")
    fires = second.everything("/api/fires")
    ran = [fire for fire in fires if fire["state"] == "succeeded"]
    assert len({(fire["schedule_id"], fire["fire_time"]) for fire in fires}) == len(fires)
    assert Counter(sink.keys("/fired")) == Counter(fire["job_id"] for fire in ran)
    assert Counter(run["job_id"] for run in second.everything("/api/runs")) == Counter(fire["job_id"] for fire in ran)


def test_processes_of_one_directory_share_its_database(new_server: Callable[..., Server], tmp_path: Path) -> None:
    data = str(tmp_path / "shared data")
    first, second = new_server(DUETIME_DATA_DIR=data), new_server(DUETIME_DATA_DIR=data)
    for server in (first, second):
        server.launch()
    for server in (first, second):
        server.wait_until_live()
        server.wait_until_ready()
    first.add({**NOT_YET, "id": "common"})
    assert second.schedule("common")["id"] == "common"

    first.kill()
    assert second.schedule("common")["id"] == "common", "one user's end is not the database's"
    assert second.stop() == 0
    wait_until_nothing_runs_in(Path(data))
