from __future__ import annotations

import asyncio

import httpx
import pytest

from duetime import records
from duetime.errors import NotStarted, StoreUnavailable
from duetime.web import health

from .door import READY, DoorRuntime, DoorService


async def test_live_answers_without_a_look_at_anything(client: httpx.AsyncClient, runtime: DoorRuntime) -> None:
    runtime.answers.error = StoreUnavailable("gone")
    response = await client.get("/health/live")
    assert (response.status_code, response.json()) == (200, {"status": "live"})
    assert runtime.answers.calls == []


async def test_ready_is_200_with_the_state_of_the_node(client: httpx.AsyncClient) -> None:
    response = await client.get("/health/ready")
    assert response.status_code == 200
    assert records.Readiness.model_validate(response.json()) == READY


class NotReadyService(DoorService):
    async def readiness(self) -> records.Readiness:
        return records.Readiness(
            ready=False, reason="no connection", scheduler="stopped", database="unreachable", node="n"
        )


async def test_not_ready_is_503_and_says_why(client: httpx.AsyncClient, runtime: DoorRuntime) -> None:
    runtime.service = NotReadyService()
    response = await client.get("/health/ready")
    assert (response.status_code, response.json()["reason"]) == (503, "no connection")


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (NotStarted("expected a started node, got one that is not."), "expected a started node"),
        (StoreUnavailable("expected the database to answer."), "expected the database"),
        (TimeoutError(), "Is the database reachable?"),
        (RuntimeError("swordfish"), "internal error"),
    ],
)
async def test_a_node_that_cannot_tell_its_state_is_not_ready(
    client: httpx.AsyncClient, runtime: DoorRuntime, error: Exception, reason: str
) -> None:
    runtime.answers.error = error
    response = await client.get("/health/ready")
    assert response.status_code == 503
    readiness = records.Readiness.model_validate(response.json())
    assert readiness.reason is not None
    assert reason in readiness.reason
    assert "swordfish" not in response.text


class BlackHole(DoorService):
    async def readiness(self) -> records.Readiness:
        await asyncio.Event().wait()
        raise AssertionError("unreachable")


async def test_ready_answers_by_itself_when_the_database_never_does(
    client: httpx.AsyncClient, runtime: DoorRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(health, "READY_DEADLINE", 0.01)
    runtime.service = BlackHole()
    async with asyncio.timeout(10):
        response = await client.get("/health/ready")
    assert response.status_code == 503
    assert "0.01 s" in response.json()["reason"]


@pytest.mark.parametrize("path", ["/health/live", "/health/ready"])
async def test_health_is_asked_with_head_too_and_never_kept(client: httpx.AsyncClient, path: str) -> None:
    for method in ("GET", "HEAD"):
        response = await client.request(method, path)
        assert (response.status_code, response.headers["cache-control"]) == (200, "no-store")
