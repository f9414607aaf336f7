from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from duetime.database_url import DatabaseUrl

from .conftest import copy_application, run_sql
from .gate import Gate, gate_to
from .server import SERVE, Server, closing
from .waiting import until

DAILY = {"type": "cron", "expression": "0 9 * * *"}
GOOD: dict[str, Any] = {"task": "greet", "kwargs": {"name": "Ada"}, "trigger": DAILY}
CALL_TIMEOUT = 1.0
EVERYTHING_STORED = " union all ".join(
    f"select '{table}', to_jsonb(t)::text from duetime.{table} t"  # noqa: S608 - names of our own
    for table in ("tasks", "schedules", "jobs", "fires", "runs", "job_results")
)


@pytest.fixture(scope="module")
def api(own_database: DatabaseUrl, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """``duetime serve`` with one schedule stored, for all tests here."""
    directory = tmp_path_factory.mktemp("bad input")
    copy_application("own_tasks", directory)
    server = Server(directory, *SERVE, "--tasks", "own_tasks", environment={"DATABASE_URL": own_database.text})
    with closing([server]):
        server.start()
        server.wait_until_ready()
        server.add({**GOOD, "id": "taken"})
        yield server
        assert server.stop() == 0


@pytest.fixture
def stored(own_database: DatabaseUrl, api: Server) -> Iterator[Callable[[], list[Any]]]:
    """Reads what the database holds; after each test it must be what it was, and the same process must run."""

    def read() -> list[Any]:
        return sorted(tuple(row) for row in run_sql(own_database, EVERYTHING_STORED))

    before, pid, listed = read(), api.pid, api.everything("/api/schedules")
    yield read
    assert read() == before
    assert api.everything("/api/schedules") == listed
    assert api.is_up
    assert api.pid == pid
    assert api.get("/health/ready").status_code == 200


def problem_of(response: Any, status: int, code: str | None) -> dict[str, Any]:
    """Return the problem document of a response, which must be of that kind (any kind for None)."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    problem: dict[str, Any] = response.json()
    assert (problem["code"], problem["status"]) == (code or problem["code"], status)
    assert problem["type"] == f"urn:duetime:error:{problem['code']}"
    assert problem["detail"].startswith("expected "), "a detail says what was expected, what came and what to do"
    assert "Traceback" not in response.text
    return problem


@pytest.mark.parametrize(
    ("change", "status", "code", "advice"),
    [
        pytest.param({"task": "gret"}, 422, "unknown_task", "did you mean 'greet'?", id="unknown task"),
        pytest.param({"task": "os:system"}, 422, "unknown_task", "--tasks my_module", id="function of another module"),
        pytest.param({"kwargs": {}}, 422, "invalid_arguments", "name", id="missing argument"),
        pytest.param(
            {"kwargs": {"name": "Ada", "tiems": 2}}, 422, "invalid_arguments", "tiems", id="misspelt argument"
        ),
        pytest.param({"kwargs": {"name": ["Ada"]}}, 422, "invalid_arguments", "name: ", id="argument of another kind"),
        pytest.param({"kwargs": {"name": "Ada", "times": 11}}, 422, "invalid_arguments", "times: ", id="out of range"),
        pytest.param(
            {"trigger": {"type": "cron", "expression": "0 9 31 2 *"}},
            422,
            "trigger_never_fires",
            "there is no day 31 in February. Choose another day",
            id="31 February",
        ),
        pytest.param(
            {"trigger": {**DAILY, "end": "2020-01-01T00:00:00Z"}},
            422,
            "trigger_never_fires",
            "end",
            id="ended long ago",
        ),
        pytest.param(
            {"trigger": {**DAILY, "timezone": "Europe/Berlim"}}, 422, "unknown_time_zone", "'Europe/Berlin'", id="zone"
        ),
        pytest.param(
            {"trigger": {"type": "cron", "expression": "61 * * * *"}}, 422, "invalid_trigger", "minute", id="minute 61"
        ),
        pytest.param(
            {"trigger": {"type": "corn", "expression": "* * * * *"}},
            422,
            "invalid_trigger",
            "'cron'?",
            id="no such type",
        ),
        pytest.param({"trigger": "0 9 * * *"}, 422, "invalid_trigger", "object", id="trigger as text"),
        pytest.param(
            {"trigger": {"type": "date", "run_at": 7}}, 422, "invalid_trigger", "ISO 8601", id="date as number"
        ),
        pytest.param({"id": "taken"}, 409, "schedule_exists", "Leave the id out", id="duplicate id"),
        pytest.param(
            {"id": "x" * 501}, 422, "invalid_schedule_id", "1 to 500 characters, got one of 501", id="501 characters"
        ),
        pytest.param({"id": ".."}, 422, "invalid_schedule_id", "part of an address", id="dots as id"),
        pytest.param({"id": ""}, 422, "invalid_schedule_id", "1 to 500", id="empty id"),
        pytest.param({"id": "a\nb"}, 422, "invalid_schedule_id", "printable", id="line break in the id"),
        pytest.param({"id": "a\x00b"}, 422, "invalid_schedule_id", "printable", id="NUL in the id"),
        pytest.param({"id": "\ud800"}, 422, "invalid_schedule_id", "printable", id="half a character as id"),
        pytest.param(
            {"kwargs": {"name": "x" * 1_000_000}},
            413,
            "arguments_too_large",
            "DUETIME_MAX_ARGUMENTS_BYTES",
            id="1 MB of arguments",
        ),
        pytest.param(
            {"kwargs": {"name": "x" * 3_000_000}}, 413, "request_too_large", "reference", id="3 MB of arguments"
        ),
        pytest.param({"tirgger": DAILY}, 422, "invalid_request", "did you mean 'trigger'?", id="misspelt field"),
        pytest.param(
            {"options": {"overlap": "maybe"}},
            422,
            "invalid_request",
            "buffer_all, cancel_other, got 'maybe'",
            id="unknown option value",
        ),
        pytest.param(
            {"options": {"catch_up": "all", "coalesce": "latest"}},
            422,
            "invalid_request",
            "both say which of several due fires run",
            id="catch_up against coalesce",
        ),
        pytest.param(
            {"options": {"catch_up": "none", "catch_up_window": 5, "catch_up_overlap": "allow"}},
            422,
            "invalid_options",
            "catch_up_window of at least 10 s, got 5 s",
            id="options that contradict each other",
        ),
        pytest.param({"options": {"timeout": -1}}, 422, "invalid_request", "options.timeout", id="negative timeout"),
        pytest.param(
            {"metadata": {"duetime.overlap": "allow"}}, 422, "invalid_request", "duetime.", id="reserved metadata"
        ),
        pytest.param({"tags": ["a\x00b"]}, 422, None, "", id="NUL in a tag"),
        pytest.param({"metadata": {"a": "\x00"}}, 422, None, "", id="NUL in the metadata"),
        pytest.param({"metadata": {"a": "\ud800"}}, 422, None, "", id="half a character in the metadata"),
        pytest.param({"tags": ["\ud800"]}, 422, None, "", id="half a character in a tag"),
        pytest.param({"engine": "steam"}, 422, "invalid_request", "engine", id="unknown engine"),
        pytest.param(
            {"options": {"misfire_grace_time": 1e300}}, 422, "invalid_request", "grace", id="endless grace time"
        ),
        pytest.param(
            {"options": {"max_jitter": 1e15}}, 422, "invalid_request", "jitter", id="jitter of millions of years"
        ),
        pytest.param({"options": {"result_ttl": 1e12}}, 422, "invalid_request", "ttl", id="result kept for ever"),
        pytest.param({"options": {"timeout": float("inf")}}, 400, "invalid_json", "Infinity", id="infinite timeout"),
        pytest.param(
            {"options": {"retry": {"max_backoff": 1e300}}}, 422, "invalid_request", "backoff", id="endless wait"
        ),
        pytest.param(
            {"options": {"retry": {"factor": 1e300}}}, 422, "invalid_request", "factor", id="wait that explodes"
        ),
    ],
)
def test_a_bad_schedule_is_refused_with_what_to_do_and_nothing_is_stored(
    api: Server, stored: Callable[[], list[Any]], change: dict[str, Any], status: int, code: str | None, advice: str
) -> None:
    response = api.client.post(
        "/api/schedules",
        content=json.dumps({**GOOD, **change}),  # httpx would refuse half a character
        headers={"content-type": "application/json"},
    )
    problem = problem_of(response, status, code)
    assert advice in problem["detail"]


@pytest.mark.parametrize(
    ("body", "media_type", "status", "code"),
    [
        pytest.param(b'{"task": greet}', "application/json", 400, "invalid_json", id="not JSON"),
        pytest.param(b"", "application/json", 422, "invalid_request", id="nothing"),
        pytest.param(b"[]", "application/json", 422, "invalid_request", id="an array"),
        pytest.param(b'{"task": "greet", "kwargs": {"name": NaN}}', "application/json", 400, "invalid_json", id="NaN"),
        pytest.param(
            b'{"task": "greet", "args": ["Ada"], "metadata": {"a": 1e400},'
            b' "trigger": {"type": "date", "run_at": "2100-01-01"}}',
            "application/json",
            422,
            None,
            id="a number that is too large",
        ),
        pytest.param(b"\xff\xfe", "application/json", 400, "invalid_json", id="not UTF-8"),
        pytest.param(b"[" * 100_000, "application/json", None, None, id="nested 100,000 deep"),
        pytest.param(b"task=greet", "application/x-www-form-urlencoded", 415, "unsupported_media_type", id="a form"),
    ],
)
@pytest.mark.parametrize("path", ["/api/schedules", "/api/jobs"])
def test_a_body_that_is_no_document_is_refused(
    api: Server,
    stored: Callable[[], list[Any]],
    path: str,
    body: bytes,
    media_type: str,
    status: int | None,
    code: str | None,
) -> None:
    response = api.client.post(path, content=body, headers={"content-type": media_type})
    assert 400 <= response.status_code < 500
    problem_of(response, status or response.status_code, code)


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({"task": "gret"}, 422, "unknown_task"),
        ({"task": "greet", "kwargs": {"nam": "Ada"}}, 422, "invalid_arguments"),
        ({"task": "greet", "kwargs": {"name": "x" * 1_000_000}}, 413, "arguments_too_large"),
        ({"task": "greet", "kwargs": {"name": "Ada"}, "when": "now"}, 422, "invalid_request"),
    ],
)
def test_a_bad_job_is_refused_and_nothing_is_queued(
    api: Server, stored: Callable[[], list[Any]], body: dict[str, Any], status: int, code: str
) -> None:
    problem_of(api.post("/api/jobs", body), status, code)


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        ("/api/schedules?limit=0", 422, "invalid_request"),
        ("/api/schedules?limit=many", 422, "invalid_request"),
        ("/api/schedules?state=asleep", 422, "invalid_request"),
        ("/api/schedules?due_before=tomorrow", 422, "invalid_request"),
        ("/api/schedules?colour=red", 422, "invalid_request"),
        ("/api/schedules?task=gret", 422, "unknown_task"),
        ("/api/schedules?search=%00", 422, "invalid_request"),
        ("/api/schedules?tag=%00", 422, "invalid_request"),
        ("/api/schedules/%00", 404, "schedule_not_found"),
        ("/api/schedules/%FF", 404, "schedule_not_found"),
        ("/api/fires?schedule_id=%00", 422, "invalid_request"),
        ("/api/runs/0", 422, "invalid_request"),
        ("/api/runs/99999999999999999999", 422, "invalid_request"),
        ("/api/runs/123456789", 404, "run_not_found"),
        ("/api/schedules?due_before=9999999999999999", 422, "invalid_request"),
        ("/api/schedules/%00/fires", 422, "invalid_request"),
        ("/api/schedules?after=WyJcdTAwMDAiXQ", 400, "invalid_cursor"),  # ["\\u0000"]
        ("/api/runs?after=WyI5OTk5OTk5OTk5OTk5OTk5OTk5OSJd", 400, "invalid_cursor"),  # ["99999999999999999999"]
        ("/api/fires?after=WyIyMDI2LTAxLTAxIiwgImEiXQ", 400, "invalid_cursor"),  # ["2026-01-01", "a"]
        (f"/api/fires?after={'W1tb' * 4000}", 400, "invalid_cursor"),  # [[[…
    ],
)
def test_a_bad_question_gets_an_answer_that_says_what_to_do(
    api: Server, stored: Callable[[], list[Any]], path: str, status: int, code: str
) -> None:
    problem_of(api.get(path), status, code)


@pytest.mark.parametrize("verb", ["/pause", "/resume", "/run", ""])
def test_an_id_that_nothing_can_have_is_not_found(api: Server, stored: Callable[[], list[Any]], verb: str) -> None:
    method = "POST" if verb else "DELETE"
    problem_of(api.client.request(method, f"/api/schedules/a%00b{verb}"), 404, "schedule_not_found")


def test_a_date_in_the_past_runs_at_once_and_the_answer_says_so(api: Server) -> None:
    made = api.add({**GOOD, "trigger": {"type": "date", "run_at": "2020-01-01T09:00:00+01:00"}})

    assert "past" in made["note"]
    assert "at once" in made["note"]
    until(lambda: [run["outcome"] for run in api.runs(made["id"])] == ["success"], "the run")
    [fire] = api.fires(made["id"])
    assert fire["fire_time"] == "2020-01-01T08:00:00Z"


def test_a_fire_that_the_ledger_has_already_does_not_run_again_and_the_answer_says_so(
    api: Server, own_database: DatabaseUrl
) -> None:
    past = {**GOOD, "id": "again", "trigger": {"type": "date", "run_at": "2020-01-01T00:00:00Z"}}
    api.add(past)
    until(lambda: api.runs("again"), "the run")
    run_sql(
        own_database, "update duetime.fires set created_at = created_at - interval '1 hour' where schedule_id = 'again'"
    )
    assert api.client.delete("/api/schedules/again").status_code == 204

    note = api.add(past)["note"]
    assert "does not run again" in note
    until(lambda: api.schedule("again")["state"] == "finished", "the second one to be through")
    assert len(api.runs("again")) == 1


# -- a database that does not answer -----------------------------------------------------------------------------------


@pytest.fixture
def gate(empty_database: DatabaseUrl) -> Iterator[Gate]:
    with gate_to(empty_database) as gate:
        yield gate


@pytest.mark.parametrize("silent", [False, True], ids=["refuses connections", "accepts connections and says nothing"])
def test_a_server_whose_database_is_away_at_start_stays_up_and_takes_work_when_it_comes(
    gate: Gate, new_server: Callable[..., Server], silent: bool
) -> None:
    if silent:
        gate.open_silently()
    server = new_server(
        *SERVE,
        "--tasks",
        "own_tasks",
        DATABASE_URL=gate.url.text,
        DUETIME_CALL_TIMEOUT=str(CALL_TIMEOUT),
        DUETIME_LEASE_DURATION="5",
    )
    copy_application("own_tasks", server.directory)
    server.start()

    with ThreadPoolExecutor() as pool:
        called_at = time.monotonic()
        calls = [
            pool.submit(server.post, "/api/schedules", {**GOOD, "id": "early"}),
            pool.submit(server.post, "/api/jobs", {"task": "greet", "args": ["Ada"]}),
            pool.submit(server.get, "/api/schedules"),
            pool.submit(server.post, "/api/schedules/early/pause"),
        ]
        assert server.get("/health/live").status_code == 200
        assert not any(call.done() for call in calls), "it is live without waiting for the database"
        for call in calls:
            problem = problem_of(call.result(), 503, "store_unavailable")
            assert "DATABASE_URL" in problem["detail"]
            assert f"{CALL_TIMEOUT:g} s" in problem["detail"]
            assert call.result().headers["retry-after"]
        assert time.monotonic() - called_at < CALL_TIMEOUT + 5, "calls end within their time-out"
    # What is wrong with the request itself is said without the database.
    problem_of(server.post("/api/schedules", {**GOOD, "task": "gret"}), 422, "unknown_task")
    not_ready = server.get("/health/ready")
    assert not_ready.status_code == 503
    assert not_ready.json()["database"] == "unreachable"
    assert "database does not answer" in not_ready.json()["reason"]
    pid = server.pid

    gate.open()
    server.wait_until_ready()
    assert server.pid == pid
    assert server.everything("/api/schedules") == [], "what was refused was stored"
    made = server.add({**GOOD, "trigger": {"type": "date", "run_at": "2020-01-01T00:00:00Z"}})
    until(lambda: server.runs(made["id"]), "the run")


def test_a_server_whose_database_goes_away_says_so_and_goes_on_when_it_is_back(
    gate: Gate, new_server: Callable[..., Server]
) -> None:
    gate.open()
    server = new_server(
        *SERVE,
        "--tasks",
        "own_tasks",
        DATABASE_URL=gate.url.text,
        DUETIME_CALL_TIMEOUT=str(CALL_TIMEOUT),
        DUETIME_LEASE_DURATION="2",
    )
    copy_application("own_tasks", server.directory)
    server.start()
    server.wait_until_ready()
    server.add({**GOOD, "id": "tick", "trigger": {"type": "cron", "expression": "* * * * * *"}})
    until(lambda: server.runs("tick"), "the first run")
    before = len(server.runs("tick"))

    gate.shut()
    problem_of(server.post("/api/schedules", GOOD), 503, "store_unavailable")
    assert server.get("/health/live").status_code == 200
    assert server.get("/health/ready").status_code == 503

    gate.open()
    server.wait_until_ready()
    until(lambda: len(server.runs("tick")) >= before + 3, "the cron to go on")
    server.client.delete("/api/schedules/tick")
    fires = server.fires("tick")
    runs = [run["job_id"] for run in server.runs("tick") if run["outcome"] == "success"]
    assert sorted(runs) == sorted({fire["job_id"] for fire in fires if fire["state"] == "succeeded"})


def test_a_wrong_database_address_is_refused_at_the_start_without_showing_the_password(
    new_server: Callable[..., Server], tmp_path: Path
) -> None:
    server = new_server(DATABASE_URL="mysql://me:secret@localhost/db")
    server.launch()
    assert server.wait_until_ended() == 2
    assert "postgresql://" in server.log
    assert "secret" not in server.log
