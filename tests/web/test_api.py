from __future__ import annotations

import json
import re
from typing import Any
from urllib.parse import quote, urljoin

import httpx
import pytest

from duetime.commands import FireQuery, NewJob, NewSchedule, PageRequest, RunQuery, ScheduleQuery
from duetime.errors import (
    ArgumentsTooLarge,
    DuetimeError,
    InvalidArguments,
    InvalidCursor,
    InvalidScheduleId,
    RunNotFound,
    ScheduleExists,
    ScheduleNotFound,
    StoreUnavailable,
    TriggerNeverFires,
    UnknownTask,
    UnknownTimeZone,
    UnreadableValue,
)
from duetime.records import FireState

from .door import JOB_ID, NEW_SCHEDULE, DoorRuntime, problem_of

ODD_IDS = [
    "a/b",
    "a/pause",
    "pause",
    "fires",
    "..",
    ".",
    "%2F",
    "a%b",
    "a b",
    "ä/ß",
    "?#;=&",
    "a//b",
    "/",
    "\\",
    "+",
]


async def test_a_new_schedule_is_answered_with_201_and_the_address_of_the_schedule(
    client: httpx.AsyncClient, runtime: DoorRuntime
) -> None:
    response = await client.post("/api/schedules", json={**NEW_SCHEDULE, "id": "reminder-42"})
    assert response.status_code == 201
    assert response.json()["id"] == "reminder-42"
    assert response.headers["location"] == "/api/schedules/reminder-42"
    [(verb, new)] = runtime.answers.calls
    assert (verb, type(new), new.task, new.kwargs) == ("add", NewSchedule, "send_sms", {"to": "+49"})


@pytest.mark.parametrize("schedule_id", ODD_IDS)
async def test_the_address_of_a_schedule_leads_to_it_whatever_its_id(
    client: httpx.AsyncClient, runtime: DoorRuntime, schedule_id: str
) -> None:
    created = await client.post("/api/schedules", json={**NEW_SCHEDULE, "id": schedule_id})
    # Dots are normalised away by clients, so they are sent encoded, as httpx leaves them.
    location = created.headers["location"]
    address = urljoin(str(created.url), location if schedule_id.strip(".") else encoded(location, schedule_id))
    assert (await client.get(address)).json()["id"] == schedule_id
    assert runtime.answers.calls[-1] == ("get", schedule_id)


def encoded(location: str, schedule_id: str) -> str:
    return location.removesuffix(schedule_id) + schedule_id.replace(".", "%2E")


@pytest.mark.parametrize("schedule_id", ODD_IDS)
@pytest.mark.parametrize(
    ("method", "verb_of_path", "verb", "status"),
    [
        ("GET", "", "get", 200),
        ("DELETE", "", "remove", 204),
        ("POST", "/pause", "pause", 200),
        ("POST", "/resume", "resume", 200),
        ("POST", "/run", "run_schedule", 202),
    ],
)
async def test_an_encoded_id_is_one_segment_of_the_path(
    client: httpx.AsyncClient,
    runtime: DoorRuntime,
    schedule_id: str,
    method: str,
    verb_of_path: str,
    verb: str,
    status: int,
) -> None:
    segment = quote(schedule_id, safe="").replace(".", "%2E")
    response = await client.request(method, f"/api/schedules/{segment}{verb_of_path}")
    assert response.status_code == status
    assert runtime.answers.calls == [(verb, schedule_id)]


async def test_a_slash_that_is_not_encoded_never_belongs_to_an_id(
    client: httpx.AsyncClient, runtime: DoorRuntime
) -> None:
    await client.post("/api/schedules/a/pause")
    await client.post("/api/schedules/a%2Fpause/pause")
    assert runtime.answers.calls == [("pause", "a"), ("pause", "a/pause")]
    problem = problem_of(await client.delete("/api/schedules/a/b"))
    assert (problem["status"], problem["code"]) == (404, "not_found")
    assert "%2F" in problem["detail"]
    assert len(runtime.answers.calls) == 2


async def test_the_fires_of_an_id_with_a_slash_are_found(client: httpx.AsyncClient, runtime: DoorRuntime) -> None:
    response = await client.get("/api/schedules/a%2Ffires/fires?state=skipped&limit=7")
    assert response.json()["items"][0]["schedule_id"] == "a/fires"
    assert runtime.answers.calls == [("fires", FireQuery(schedule_id="a/fires", state=FireState.skipped, limit=7))]


SCHEDULE_FILTERS = {
    "limit": 500,
    "after": "abc",
    "task": "t",
    "tag": "x",
    "state": "paused",
    "engine": "apscheduler",
    "due_before": "2026-11-23T09:00:00Z",
    "search": "rem",
}


@pytest.mark.parametrize(
    ("path", "filters", "verb", "query"),
    [
        ("/schedules", {}, "schedules", ScheduleQuery),
        ("/schedules", SCHEDULE_FILTERS, "schedules", ScheduleQuery),
        ("/fires", {"schedule_id": "a/b", "state": "missed"}, "fires", FireQuery),
        ("/runs", {"task": "t", "schedule_id": "s", "outcome": "error"}, "runs", RunQuery),
        ("/jobs", {"limit": 3}, "jobs", PageRequest),
    ],
)
async def test_a_list_is_a_page_of_what_fits_the_filters(
    client: httpx.AsyncClient,
    runtime: DoorRuntime,
    path: str,
    filters: dict[str, Any],
    verb: str,
    query: type[PageRequest],
) -> None:
    response = await client.get(f"/api{path}", params=filters)
    assert response.status_code == 200
    assert set(response.json()) == {"items", "next"}
    assert runtime.answers.calls == [(verb, query.model_validate(filters))]


async def test_a_run_is_found_by_its_number(client: httpx.AsyncClient, runtime: DoorRuntime) -> None:
    assert (await client.get("/api/runs/7")).json()["id"] == 7
    assert runtime.answers.calls == [("run", 7)]


async def test_a_job_is_accepted_with_202(client: httpx.AsyncClient, runtime: DoorRuntime) -> None:
    response = await client.post("/api/jobs", json={"task": "send_sms", "args": [1]})
    assert response.status_code == 202
    assert response.json()["id"] == str(JOB_ID)
    assert runtime.answers.calls == [("add_job", NewJob(task="send_sms", args=[1]))]


async def test_a_cancellation_says_whether_it_is_done_or_asked_for(
    client: httpx.AsyncClient, runtime: DoorRuntime
) -> None:
    done = await client.post(f"/api/jobs/{JOB_ID}/cancel")
    assert (done.status_code, done.json()["state"]) == (200, "cancelled")
    asked = await client.post(f"/api/jobs/{JOB_ID}/cancel?reason=wrong+customer")
    assert (asked.status_code, asked.json()["state"]) == (202, "requested")
    assert runtime.answers.calls == [("cancel_job", (JOB_ID, None)), ("cancel_job", (JOB_ID, "wrong customer"))]
    assert problem_of(await client.post("/api/jobs/7/cancel"))["code"] == "invalid_request"


async def test_the_tasks_come_as_one_page_with_their_arguments(client: httpx.AsyncClient) -> None:
    page = (await client.get("/api/tasks")).json()
    assert page["next"] is None
    assert [(task["name"], task["arguments"]) for task in page["items"]] == [("send_sms", {"type": "object"})]


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (UnknownTask("send_sm", ["send_sms"]), 422, "unknown_task"),
        (
            InvalidArguments("expected x", details=[{"where": "to", "problem": "missing"}]),
            422,
            "invalid_arguments",
        ),
        (ArgumentsTooLarge("expected less"), 413, "arguments_too_large"),
        (InvalidScheduleId("expected at most 500 characters"), 422, "invalid_schedule_id"),
        (ScheduleExists("s"), 409, "schedule_exists"),
        (UnknownTimeZone("expected a zone"), 422, "unknown_time_zone"),
        (TriggerNeverFires("expected a fire time"), 422, "trigger_never_fires"),
        (StoreUnavailable("expected the database to answer"), 503, "store_unavailable"),
    ],
)
async def test_what_the_service_refuses_is_a_problem_with_its_code_and_its_sentence(
    client: httpx.AsyncClient, runtime: DoorRuntime, error: DuetimeError, status: int, code: str
) -> None:
    runtime.answers.error = error
    problem = problem_of(await client.post("/api/schedules", json={**NEW_SCHEDULE, "id": "x" * 501}))
    assert (problem["status"], problem["code"], problem["detail"]) == (status, code, error.message)
    assert problem["errors"] == list(error.details)


@pytest.mark.parametrize(
    ("method", "path", "error", "status"),
    [
        ("GET", "/schedules/nope", ScheduleNotFound("nope"), 404),
        ("DELETE", "/schedules/nope", ScheduleNotFound("nope"), 404),
        ("POST", "/schedules/nope/pause", ScheduleNotFound("nope"), 404),
        ("GET", "/runs/9", RunNotFound("expected the number of a run, got 9."), 404),
        ("GET", "/schedules?after=%F0%9F", InvalidCursor("expected a cursor"), 400),
        ("GET", "/fires?after=zzz", InvalidCursor("expected a cursor"), 400),
        ("GET", "/tasks", StoreUnavailable("expected the database"), 503),
    ],
)
async def test_every_door_of_the_service_answers_its_errors_as_problems(
    client: httpx.AsyncClient, runtime: DoorRuntime, method: str, path: str, error: DuetimeError, status: int
) -> None:
    runtime.answers.error = error
    problem = problem_of(await client.request(method, f"/api{path}"))
    assert (problem["status"], problem["code"]) == (status, error.code)


async def test_an_unavailable_store_says_when_to_come_again(client: httpx.AsyncClient, runtime: DoorRuntime) -> None:
    runtime.answers.error = StoreUnavailable("expected the database to answer")
    response = await client.get("/api/schedules")
    assert int(response.headers["retry-after"]) > 0


async def test_an_unforeseen_error_shows_nothing_of_the_inside_and_is_logged_with_its_traceback(
    client: httpx.AsyncClient, runtime: DoorRuntime, caplog: pytest.LogCaptureFixture
) -> None:
    runtime.answers.error = RuntimeError("the secret is swordfish")
    response = await client.get("/api/schedules")
    assert problem_of(response)["code"] == "internal_error"
    assert response.status_code == 500
    assert "swordfish" not in response.text
    assert "Traceback" not in response.text
    assert "swordfish" in caplog.text
    assert "Traceback" in caplog.text


async def test_an_error_that_only_an_operator_can_mend_is_logged_with_its_traceback(
    client: httpx.AsyncClient, runtime: DoorRuntime, caplog: pytest.LogCaptureFixture
) -> None:
    runtime.answers.error = ScheduleNotFound("s")
    await client.get("/api/schedules/s")
    assert caplog.text == ""
    runtime.answers.error = UnreadableValue("expected bytes that Duetime wrote.")
    assert problem_of(await client.get("/api/schedules/s"))["status"] == 500
    assert "GET /api/schedules/s failed: expected bytes" in caplog.text
    assert "Traceback" in caplog.text


def with_trigger(trigger: Any) -> dict[str, Any]:
    return {**NEW_SCHEDULE, "trigger": trigger}


INVALID_REQUESTS: list[tuple[Any, str, str]] = [
    ({**NEW_SCHEDULE, "kwarg": {}}, "body.kwarg", "did you mean 'kwargs'?"),
    ({**NEW_SCHEDULE, "options": {"time_out": 3}}, "body.options.time_out", "did you mean 'timeout'?"),
    ({**NEW_SCHEDULE, "task": 5}, "body.task", "got 5"),
    ({"trigger": NEW_SCHEDULE["trigger"]}, "body.task", "expected a value, got none"),
    ({"task": 5, "trigger": {"type": "interval", "minutes": -1}}, "body.trigger.minutes", "got -1"),
    ([1], "body", "expected an object, got an array"),
    (None, "body", "expected a JSON body, got none"),
]

INVALID_TRIGGERS: list[tuple[Any, str, str]] = [
    ({"task": "t"}, "body.trigger", "expected a value, got none"),
    (with_trigger({"type": "crn"}), "body.trigger", "did you mean 'cron'?"),
    (with_trigger({}), "body.trigger", "one of date, interval, cron, calendar_interval"),
    (with_trigger("daily"), "body.trigger", "expected an object, got 'daily'"),
    (with_trigger({"type": "interval", "minutes": 5, "start": 5}), "body.trigger.start", "ISO 8601"),
    (with_trigger({"type": "interval", "minute": 5}), "body.trigger.minute", "did you mean 'minutes'?"),
    (
        with_trigger({"type": "or", "triggers": [{"type": "interval", "minutes": -1}]}),
        "body.trigger.triggers.0.minutes",
        "got -1",
    ),
]


@pytest.mark.parametrize(
    ("code", "body", "place", "hint"),
    [
        *(("invalid_request", *case) for case in INVALID_REQUESTS),
        *(("invalid_trigger", *case) for case in INVALID_TRIGGERS),
    ],
)
async def test_a_body_of_another_shape_is_refused_with_the_place_and_a_hint_and_nothing_is_stored(
    client: httpx.AsyncClient, runtime: DoorRuntime, code: str, body: Any, place: str, hint: str
) -> None:
    content = b"" if body is None else json.dumps(body).encode()
    response = await client.post("/api/schedules", content=content, headers={"content-type": "application/json"})
    problem = problem_of(response)
    assert (problem["status"], problem["code"]) == (422, code)
    [found] = [error["problem"] for error in problem["errors"] if error["where"] == place]
    assert hint in found
    assert found.startswith("expected ")
    assert hint in problem["detail"]
    assert re.search(r"[^.?][.?] `/openapi.json`", problem["detail"])
    assert runtime.answers.calls == []


@pytest.mark.parametrize(
    ("path", "place", "hint"),
    [
        ("/schedules?limt=5", "query.limt", "did you mean 'limit'?"),
        ("/schedules?limit=0", "query.limit", "got '0'"),
        ("/schedules?limit=many", "query.limit", "got 'many'"),
        ("/schedules?state=asleep", "query.state", "got 'asleep'"),
        ("/schedules?due_before=soon", "query.due_before", "got 'soon'"),
        ("/runs/first", "path.run_id", "got 'first'"),
        ("/runs/99999999999999999999", "path.run_id", "9223372036854775807"),
        ("/schedules/s/fires?schedule_id=other", "query.schedule_id", "expected a known field"),
    ],
)
async def test_a_query_of_another_shape_is_refused_with_the_place_and_a_hint(
    client: httpx.AsyncClient, runtime: DoorRuntime, path: str, place: str, hint: str
) -> None:
    problem = problem_of(await client.get(f"/api{path}"))
    assert (problem["status"], problem["code"]) == (422, "invalid_request")
    [error] = problem["errors"]
    assert error["where"] == place
    assert hint in error["problem"]
    assert runtime.answers.calls == []


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("PUT", "/api/schedules", "GET, POST"),
        ("POST", "/api/schedules/a%2Fb", "DELETE, GET, PATCH"),
        ("GET", "/api/schedules/a/pause", "POST"),
        ("DELETE", "/api/runs/1", "GET"),
    ],
)
async def test_a_wrong_method_is_answered_with_all_the_right_ones(
    client: httpx.AsyncClient, method: str, path: str, allowed: str
) -> None:
    response = await client.request(method, path)
    assert problem_of(response)["code"] == "method_not_allowed"
    assert (response.status_code, response.headers["allow"]) == (405, allowed)


async def test_an_unknown_path_of_our_application_is_a_problem(client: httpx.AsyncClient) -> None:
    problem = problem_of(await client.get("/api/scheduls"))
    assert (problem["status"], problem["code"], problem["type"]) == (404, "not_found", "about:blank")
    assert "/api/scheduls" in problem["detail"]
