from __future__ import annotations

from typing import Any

import httpx
import pytest

from .door import NEW_SCHEDULE, DoorRuntime, client_of, problem_of, served

TOKEN = "wXb0-a-long-enough-token"


@pytest.fixture
def secured() -> DoorRuntime:
    return DoorRuntime(api_token=TOKEN)


@pytest.mark.parametrize(
    ("headers", "hint"),
    [
        ({}, "got none"),
        ({"authorization": "Basic dXNlcjpwYXNz"}, "got none"),
        ({"authorization": "Bearer"}, "got another one"),
        ({"authorization": f"Bearer {TOKEN}x"}, "got another one"),
        ({"authorization": f"Bearer {TOKEN[:-1]}"}, "got another one"),
        ({"authorization": "Bearer äöü".encode("latin-1")}, "got another one"),
    ],
)
@pytest.mark.parametrize(("method", "path"), [("GET", "/api/tasks"), ("POST", "/api/schedules")])
async def test_with_a_token_set_a_request_without_it_is_refused_and_nothing_is_read(
    secured: DoorRuntime, headers: dict[str, Any], hint: str, method: str, path: str
) -> None:
    async with client_of(served(secured)) as client:
        response = await client.request(method, path, headers=headers, content=b"not json")
    problem = problem_of(response)
    assert (problem["status"], problem["code"]) == (401, "unauthorized")
    assert hint in problem["detail"]
    assert TOKEN not in response.text
    assert response.headers["www-authenticate"].startswith("Bearer ")
    assert secured.answers.calls == []


@pytest.mark.parametrize("scheme", ["Bearer", "bearer"])
async def test_with_the_token_every_request_passes(secured: DoorRuntime, scheme: str) -> None:
    headers = {"authorization": f"{scheme} {TOKEN}", "origin": "https://dashboard.example"}
    async with client_of(served(secured)) as client:
        assert (await client.get("/api/tasks", headers=headers)).status_code == 200
        created = await client.post("/api/schedules", json=NEW_SCHEDULE, headers=headers)
        assert created.status_code == 201


async def test_health_needs_no_token(secured: DoorRuntime) -> None:
    async with client_of(served(secured)) as client:
        assert (await client.get("/health/live")).status_code == 200
        assert (await client.get("/health/ready")).status_code == 200


async def test_an_empty_token_closes_the_api_instead_of_opening_it() -> None:
    async with client_of(served(DoorRuntime(api_token=""))) as client:
        for authorization in ("Bearer ", "Bearer"):
            response = await client.get("/api/tasks", headers={"authorization": authorization})
            assert response.status_code == 401


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "https://evil.example"},
        {"origin": "http://door.test:8080"},
        {"origin": "null"},
        {"origin": "http://[broken"},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
        {"sec-fetch-site": "cross-site", "origin": "http://door.test"},
    ],
)
@pytest.mark.parametrize(
    ("method", "path"),
    [("POST", "/api/schedules/s/run"), ("DELETE", "/api/schedules/s"), ("POST", "/api/jobs")],
)
async def test_a_page_of_another_origin_changes_nothing(
    client: httpx.AsyncClient, runtime: DoorRuntime, headers: dict[str, str], method: str, path: str
) -> None:
    problem = problem_of(await client.request(method, path, headers=headers))
    assert (problem["status"], problem["code"]) == (403, "cross_origin_refused")
    assert runtime.answers.calls == []


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"origin": "http://door.test"},
        {"origin": "HTTP://DOOR.TEST"},
        {"sec-fetch-site": "same-origin", "origin": "https://behind.a.proxy.example"},
        {"sec-fetch-site": "none"},
        {"origin": "https://dashboard.example", "authorization": "Bearer of-the-application"},
    ],
)
async def test_our_own_pages_and_programs_pass(client: httpx.AsyncClient, headers: dict[str, str]) -> None:
    assert (await client.post("/api/schedules/s/run", headers=headers)).status_code == 202


async def test_reading_is_left_to_the_browsers_own_rule(client: httpx.AsyncClient) -> None:
    response = await client.get("/api/tasks", headers={"origin": "https://evil.example"})
    assert response.status_code == 200
    assert "access-control-allow-origin" not in response.headers
