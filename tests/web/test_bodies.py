from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from duetime.web.bodies import MAX_CONTAINERS, MAX_FIELDS
from duetime.web.route import MIN_BODY_LIMIT

from .door import NEW_SCHEDULE, DoorRuntime, client_of, problem_of, served

JSON = {"content-type": "application/json"}


async def post(client: httpx.AsyncClient, content: bytes | AsyncIterator[bytes]) -> httpx.Response:
    return await client.post("/api/schedules", content=content, headers=JSON)


@pytest.mark.parametrize(
    ("body", "hint"),
    [
        (b"not json", "line 1, column 1"),
        (b'{"task": "t",}', "line 1, column"),
        (b"{'task': 't'}", "double quotes"),
        (b'{"task": "t"} and more', "Extra data"),
        (b'{"kwargs": {"x": NaN}}', "NaN"),
        (b'{"kwargs": {"x": -Infinity}}', "-Infinity"),
        (b'{"task": "\xff"}', "not UTF-8"),
        (b'{"args": ' + b"[" * 20_000 + b"]" * 20_000 + b"}", "nested too deeply"),
        (b'{"args": [' + b"1" * 5_000 + b"]}", "4300 digits"),
        (b" ", "line 1, column 2"),
    ],
)
async def test_a_body_that_is_not_json_is_refused_with_the_reason(
    client: httpx.AsyncClient, runtime: DoorRuntime, body: bytes, hint: str
) -> None:
    problem = problem_of(await post(client, body))
    assert (problem["status"], problem["code"]) == (400, "invalid_json")
    assert hint in problem["detail"]
    assert runtime.answers.calls == []


@pytest.mark.parametrize("content_type", [None, "text/plain", "application/x-www-form-urlencoded", "json"])
async def test_a_body_that_does_not_say_that_it_is_json_is_refused_with_the_right_header(
    client: httpx.AsyncClient, runtime: DoorRuntime, content_type: str | None
) -> None:
    headers = {} if content_type is None else {"content-type": content_type}
    response = await client.post("/api/jobs", content=json.dumps({"task": "t"}).encode(), headers=headers)
    problem = problem_of(response)
    assert (problem["status"], problem["code"]) == (415, "unsupported_media_type")
    assert "Content-Type: application/json" in problem["detail"]
    assert runtime.answers.calls == []


@pytest.mark.parametrize(
    "content_type",
    ["application/json", "application/json; charset=utf-8", "APPLICATION/JSON", "application/x+json"],
)
async def test_every_way_to_say_json_is_understood(client: httpx.AsyncClient, content_type: str) -> None:
    response = await client.post("/api/jobs", content=b'{"task": "t"}', headers={"content-type": content_type})
    assert response.status_code == 202


async def test_a_body_that_is_announced_too_large_is_refused_before_it_is_read(
    client: httpx.AsyncClient, runtime: DoorRuntime
) -> None:
    read = 0

    async def chunks() -> AsyncIterator[bytes]:
        nonlocal read
        read += 1
        yield b" " * (MIN_BODY_LIMIT + 1)

    headers = {**JSON, "content-length": str(MIN_BODY_LIMIT + 1)}
    response = await client.post("/api/schedules", content=chunks(), headers=headers)
    problem = problem_of(response)
    assert (problem["status"], problem["code"]) == (413, "request_too_large")
    assert f"{MIN_BODY_LIMIT:,} bytes" in problem["detail"]
    assert read == 0
    assert runtime.answers.calls == []


async def test_a_body_that_turns_out_too_large_is_not_read_to_its_end(
    client: httpx.AsyncClient, runtime: DoorRuntime
) -> None:
    read = 0

    async def chunks() -> AsyncIterator[bytes]:
        nonlocal read
        while True:  # nobody could read it to its end
            read += 2**16
            yield b" " * 2**16

    assert problem_of(await post(client, chunks()))["code"] == "request_too_large"
    assert read <= MIN_BODY_LIMIT + 2 * 2**16
    assert runtime.answers.calls == []


async def test_a_sender_that_goes_away_in_the_middle_is_no_failure_of_ours(runtime: DoorRuntime) -> None:
    scope = {"type": "http", "method": "POST", "path": "/api/schedules", "query_string": b"", "headers": []}
    received = iter([{"type": "http.request", "body": b"{", "more_body": True}, {"type": "http.disconnect"}])
    sent: list[Any] = []

    async def receive() -> Any:
        return next(received)

    async def send(message: Any) -> None:
        sent.append(message)

    await served(runtime)(scope, receive, send)
    assert sent[0]["status"] == 400
    assert runtime.answers.calls == []


async def test_a_megabyte_of_arguments_reaches_the_service_which_knows_its_own_limit(
    client: httpx.AsyncClient, runtime: DoorRuntime
) -> None:
    body = json.dumps({**NEW_SCHEDULE, "kwargs": {"text": "x" * 1_000_000}}).encode()
    assert (await post(client, body)).status_code == 201
    assert len(runtime.answers.calls) == 1


async def test_a_larger_limit_of_arguments_lets_larger_bodies_in() -> None:
    runtime = DoorRuntime(max_arguments_bytes=2 * MIN_BODY_LIMIT)
    body = json.dumps({**NEW_SCHEDULE, "kwargs": {"text": "x" * (2 * MIN_BODY_LIMIT)}}).encode()
    async with client_of(served(runtime)) as client:
        assert (await post(client, body)).status_code == 201


async def test_a_body_of_very_many_small_parts_is_refused_before_it_costs_time(
    client: httpx.AsyncClient, runtime: DoorRuntime
) -> None:
    small = json.dumps({**NEW_SCHEDULE, "args": [[]] * (MAX_CONTAINERS - 10)}).encode()
    assert (await post(client, small)).status_code == 201
    large = json.dumps({**NEW_SCHEDULE, "args": [[]] * MAX_CONTAINERS}).encode()
    assert problem_of(await post(client, large))["code"] == "request_too_large"
    assert len(runtime.answers.calls) == 1


MANY = {f"x{number}": 1 for number in range(MAX_FIELDS + 1)}


@pytest.mark.parametrize(
    "part",
    [MANY, {"tags": list(MANY)}, {"options": MANY}, {"trigger": {"type": "or", "triggers": [MANY]}}],
    ids=["body", "tags", "options", "trigger"],
)
async def test_a_body_of_very_many_fields_is_refused_before_each_is_an_error(
    client: httpx.AsyncClient, runtime: DoorRuntime, part: dict[str, Any]
) -> None:
    problem = problem_of(await post(client, json.dumps({**NEW_SCHEDULE, **part}).encode()))
    assert (problem["status"], problem["code"], problem["errors"]) == (422, "invalid_request", [])
    assert runtime.answers.calls == []


async def test_the_free_form_parts_may_have_many_fields(client: httpx.AsyncClient) -> None:
    body = {**NEW_SCHEDULE, "kwargs": MANY, "metadata": MANY, "args": list(MANY)}
    assert (await post(client, json.dumps(body).encode())).status_code == 201


async def test_very_many_wrong_values_are_not_all_listed(client: httpx.AsyncClient) -> None:
    body = {**NEW_SCHEDULE, **{f"x{number}": 1 for number in range(100)}}
    problem = problem_of(await post(client, json.dumps(body).encode()))
    assert len(problem["errors"]) == 20
