from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from duetime.database_url import DatabaseUrl

from .conftest import copy_application, run_sql
from .gate import Gate, gate_to
from .server import Server, closing
from .sink import Sink
from .waiting import until

PAST = "2020-01-01T00:00:00Z"
CALL_TIMEOUT = "1"


@pytest.fixture(scope="module")
def gate(own_database: DatabaseUrl) -> Iterator[Gate]:
    """What is between the application and its database."""
    with gate_to(own_database) as gate:
        gate.open()
        yield gate


@pytest.fixture(scope="module")
def shop(own_database: DatabaseUrl, gate: Gate, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The application ``orders``, run by uvicorn as its users would."""
    directory = tmp_path_factory.mktemp("shop")
    copy_application("orders", directory)
    server = Server(
        directory,
        *("uvicorn", "orders:app", "--port", "0"),
        environment={
            "DATABASE_URL": gate.url.text,
            "APPLICATION_DATABASE": gate.url.text,
            "DUETIME_CALL_TIMEOUT": CALL_TIMEOUT,
            "DUETIME_LEASE_DURATION": "3",
            "DUETIME_TASK_MODULES": "orders",
        },
    )
    with closing([server]):
        server.start()
        yield server
        stops_cleanly(server)


def stops_cleanly(server: Server) -> None:
    assert server.stop() == -signal.SIGTERM  # uvicorn ends by the signal itself once it has stopped
    assert "Application shutdown complete" in server.log
    assert "Traceback" not in server.log


def reminder(sink: Sink, path: str, text: str = "hello", at: str = PAST) -> dict[str, Any]:
    return {"to": sink.url(path), "text": text, "at": at}


def test_a_handler_that_awaits_add_schedule_makes_a_job_that_runs_on_time(shop: Server, sink: Sink) -> None:
    at = datetime.now(UTC) + timedelta(seconds=1)
    response = shop.post("/reminders", reminder(sink, "/on-time", at=at.isoformat()))

    assert response.status_code == 201
    until(lambda: sink.effects("/on-time"), "the job to run")
    assert datetime.now(UTC) >= at, "never early"
    assert [effect.body for effect in sink.effects("/on-time")] == [b"hello"]
    [run] = until(lambda: shop.read("/scheduler/runs", schedule_id=response.json()["id"])["items"], "the run")
    assert (run["task"], run["outcome"]) == ("orders:send", "success")
    assert run["lateness"] >= 0


def test_the_router_is_under_the_application_s_prefix_and_says_what_handlers_have_made(
    shop: Server, sink: Sink
) -> None:
    made = shop.post("/reminders", reminder(sink, "/later", at="2100-01-01T00:00:00Z")).json()
    schedule = shop.read(f"/scheduler/schedules/{made['id']}")
    assert schedule["task"] == "orders:send"
    assert schedule["options"]["timeout"] == 30
    assert schedule["options"]["retry"]["max_attempts"] == 5
    response = shop.post("/scheduler/schedules", {"task": "send", "trigger": {"type": "date", "run_at": PAST}})
    assert (response.status_code, response.json()["code"]) == (422, "invalid_arguments")
    # The application's own answers to its own requests stay what FastAPI makes of them.
    assert isinstance(shop.post("/reminders", {}).json()["detail"], list)
    assert shop.get("/nowhere").json() == {"detail": "Not Found"}


def test_the_application_s_own_lifespan_and_tables_are_its_own(shop: Server, own_database: DatabaseUrl) -> None:
    assert shop.read("/opened") == ["the application's own"]
    columns = run_sql(own_database, "select column_name from information_schema.columns where table_schema = 'public'")
    assert {row["column_name"] for row in columns} == {"id", "item"}


def test_a_function_that_was_not_decorated_is_found_again_after_a_restart(shop: Server, sink: Sink) -> None:
    at = datetime.now(UTC) + timedelta(seconds=2)
    made = shop.post("/plain", reminder(sink, "/plain", at=at.isoformat())).json()
    assert shop.read(f"/scheduler/schedules/{made['id']}")["task"] == "orders:plain"
    shop.kill()
    shop.start()
    until(lambda: sink.effects("/plain"), "the job to run")
    until(lambda: shop.read("/scheduler/runs", schedule_id=made["id"])["items"], "the run")
    assert len(sink.effects("/plain")) == 1


def test_a_schedule_made_in_the_application_s_transaction_exists_only_with_it(
    shop: Server, own_database: DatabaseUrl, sink: Sink
) -> None:
    def order(item: str, then: str) -> dict[str, Any]:
        return {"item": item, "url": sink.url(f"/{item}"), "at": PAST, "then": then}

    assert shop.post("/orders", order("refused", "refuse")).status_code == 409
    assert shop.post("/orders", order("taken", "commit")).status_code == 201

    until(lambda: sink.effects("/taken"), "the job of the committed one to run")
    assert [effect.body for effect in sink.effects("/taken")] == [b"taken"]
    assert shop.get("/scheduler/schedules/refused").status_code == 404
    assert shop.read("/scheduler/fires", schedule_id="refused")["items"] == []
    assert sink.effects("/refused") == []
    assert [row["item"] for row in run_sql(own_database, "select item from public.tasks")] == ["taken"]


def test_nothing_runs_before_the_application_s_transaction_commits(shop: Server, sink: Sink) -> None:
    sink.hold()
    body = {"item": "waiting", "url": sink.url("/waiting"), "at": PAST, "then": "wait"}
    with ThreadPoolExecutor() as pool:
        call = pool.submit(shop.post, "/orders", body)
        until(lambda: sink.effects("/waiting/committing"), "the handler to be about to commit")
        # Other work goes on meanwhile, and sees nothing of it.
        assert shop.get("/scheduler/schedules/waiting").status_code == 404
        other = shop.post("/reminders", reminder(sink, "/meanwhile")).json()
        until(lambda: sink.effects("/meanwhile"), "another job to run")
        assert shop.read(f"/scheduler/schedules/{other['id']}")["id"] == other["id"]
        assert sink.effects("/waiting") == []
        sink.let_go()
        assert call.result().status_code == 201
    until(lambda: sink.effects("/waiting"), "the job to run")


def test_a_database_that_is_gone_is_a_503_problem_in_the_application_s_own_handler(
    shop: Server, gate: Gate, sink: Sink
) -> None:
    gate.shut()
    response = shop.post("/reminders", reminder(sink, "/lost"))
    assert response.status_code == 503
    assert response.headers["content-type"] == "application/problem+json"
    problem = response.json()
    assert problem["code"] == "store_unavailable"
    assert problem["detail"].startswith(f"expected the database to answer within {CALL_TIMEOUT} s")
    assert shop.read("/opened"), "the rest of the application goes on"

    gate.open()
    until(lambda: shop.post("/reminders", reminder(sink, "/found")).status_code == 201, "the database to be used again")
    until(lambda: sink.effects("/found"), "the job to run")
    assert sink.effects("/lost") == []


def test_the_smallest_application_runs_on_the_embedded_database(new_server: Callable[..., Server]) -> None:
    server = new_server("uvicorn", "smallest:app", "--port", "0")
    copy_application("smallest", server.directory)
    server.start()
    # At once, while its database is still being made.
    assert server.post("/reminders", {"text": "hello", "at": PAST}).status_code == 201
    until(lambda: server.read("/done") == ["hello"], "the job to run")
    stops_cleanly(server)
