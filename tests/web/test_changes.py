"""The verbs that change, preview and explain, through the door of a running node, with a database behind it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from duetime.service import Service
from duetime.settings import DatabaseUrl
from duetime.web import build_router, install

from ..services import EVERY_MINUTE, LATER, a_service
from .door import DoorRuntime, client_of, problem_of


@pytest.fixture
async def service(database: DatabaseUrl) -> AsyncIterator[Service]:
    async with a_service(database) as service:
        yield service


@pytest.fixture
async def api(service: Service) -> AsyncIterator[httpx.AsyncClient]:
    runtime = DoorRuntime()
    runtime.service = service
    app = FastAPI()
    install(app)
    app.include_router(build_router(runtime), prefix="/api")
    async with client_of(app) as client:
        yield client


async def added(api: httpx.AsyncClient, **fields: Any) -> httpx.Response:
    response = await api.post("/api/schedules", json={"task": "work", "trigger": LATER, "id": "s", **fields})
    assert response.status_code == 201, response.text
    return response


async def test_an_etag_stays_when_nothing_changes_and_is_new_when_something_does(api: httpx.AsyncClient) -> None:
    first = await added(api)
    assert (await api.get("/api/schedules/s")).headers["etag"] == first.headers["etag"]
    changed = await api.patch("/api/schedules/s", json={"tags": ["x"]})
    assert changed.status_code == 200
    assert changed.json()["tags"] == ["x"]
    assert changed.headers["etag"] != first.headers["etag"]
    assert changed.headers["etag"] == f'"{changed.json()["revision"]}"'
    for verb in ("pause", "resume"):
        response = await api.post(f"/api/schedules/s/{verb}")
        assert response.headers["etag"] == (await api.get("/api/schedules/s")).headers["etag"]


async def test_a_change_for_an_older_etag_is_refused(api: httpx.AsyncClient) -> None:
    etag = (await added(api)).headers["etag"]
    assert (await api.patch("/api/schedules/s", json={"owner": "a"}, headers={"If-Match": etag})).status_code == 200
    late = {"headers": {"If-Match": etag}}
    for response in (
        await api.patch("/api/schedules/s", json={"owner": "b"}, **late),  # type: ignore[arg-type]
        await api.post("/api/schedules/s/pause", **late),  # type: ignore[arg-type]
        await api.post("/api/schedules/s/resume", **late),  # type: ignore[arg-type]
        await api.delete("/api/schedules/s", **late),  # type: ignore[arg-type]
    ):
        problem = problem_of(response)
        assert (problem["status"], problem["code"]) == (412, "precondition_failed")
    stored = await api.get("/api/schedules/s")
    assert (stored.json()["owner"], stored.json()["state"]) == ("a", "active")
    assert (await api.delete("/api/schedules/s", headers={"If-Match": "*"})).status_code == 204


async def test_if_match_takes_several_etags_of_which_one_has_to_fit(api: httpx.AsyncClient) -> None:
    etag = (await added(api)).headers["etag"]
    paused = await api.post("/api/schedules/s/pause", headers={"If-Match": f'"other", {etag}'})
    assert (paused.status_code, paused.json()["state"]) == (200, "paused")
    etag = paused.headers["etag"]
    for others in ('"other", "another"', f"W/{etag}"):
        refused = await api.post("/api/schedules/s/resume", headers={"If-Match": others})
        assert problem_of(refused)["code"] == "precondition_failed", "a weak tag fits nothing"
    resumed = await api.post("/api/schedules/s/resume", headers={"If-Match": etag})
    assert (resumed.status_code, resumed.json()["state"]) == (200, "active")
    assert resumed.headers["etag"] != etag


async def test_a_misspelt_part_of_a_change_is_refused(api: httpx.AsyncClient) -> None:
    await added(api)
    problem = problem_of(await api.patch("/api/schedules/s", json={"tag": ["x"]}))
    assert problem["code"] == "invalid_request"
    assert "did you mean 'tags'?" in problem["detail"]


async def test_a_preview_answers_with_a_verdict_and_stores_nothing(api: httpx.AsyncClient) -> None:
    body = {"task": "work", "trigger": {"type": "text", "text": "every weekday at 9:00"}}
    good = (await api.post("/api/schedules/preview?fires=2", json=body)).json()
    assert (good["verdict"], len(good["upcoming"])) == ("ok", 2)
    assert good["trigger"]["expression"] == "0 9 * * mon-fri"
    bad = (await api.post("/api/schedules/preview", json={**body, "task": "wrk"})).json()
    assert (bad["verdict"], bad["problems"][0]["code"]) == ("refused", "unknown_task")
    assert (await api.get("/api/schedules")).json()["items"] == []
    assert problem_of(await api.post("/api/schedules/preview", json={"task": "work"}))["code"] == "invalid_trigger"


async def test_everything_that_is_wrong_is_refused_at_once(api: httpx.AsyncClient) -> None:
    body = {
        "id": "",
        "task": "wrk",
        "trigger": {"type": "cron", "expression": "0 0 31 2 *"},
        "metadata": {"duetime.x": 1},
    }
    problem = problem_of(await api.post("/api/schedules", json=body))
    assert (problem["status"], problem["code"]) == (422, "invalid_schedule")
    assert {error["code"] for error in problem["errors"]} == {
        "invalid_schedule_id",
        "unknown_task",
        "trigger_never_fires",
        "invalid_request",
    }


async def test_thousands_go_in_and_out_in_a_request_each(api: httpx.AsyncClient) -> None:
    schedules = [{"task": "work", "trigger": LATER, "id": f"s{n}", "tags": ["t"], "args": [n]} for n in range(2000)]
    response = await api.post("/api/schedules/bulk", json={"schedules": schedules})
    assert (response.status_code, response.json()["count"]) == (201, 2000)
    assert (await api.post("/api/schedules/bulk/pause", json={"tag": "t"})).json()["count"] == 2000
    assert (await api.post("/api/schedules/bulk/resume", json={"tag": "t"})).json()["count"] == 2000
    told = (await api.request("DELETE", "/api/schedules/bulk", json={"tag": "t", "dry_run": True})).json()
    assert (told["count"], told["dry_run"]) == (2000, True)
    assert (await api.request("DELETE", "/api/schedules/bulk", json={"tag": "t"})).json()["count"] == 2000
    assert (await api.get("/api/schedules")).json()["items"] == []


async def test_many_with_a_fault_in_one_are_refused_with_its_place(api: httpx.AsyncClient) -> None:
    schedules = [{"task": "work", "trigger": LATER}, {"task": "work", "trigger": {"type": "crn"}}]
    problem = problem_of(await api.post("/api/schedules/bulk", json={"schedules": schedules}))
    assert problem["code"] == "invalid_schedule"
    assert problem["errors"][0]["where"].startswith("schedules[1].trigger")
    assert problem_of(await api.request("DELETE", "/api/schedules/bulk", json={}))["code"] == "invalid_request"
    assert (await api.get("/api/schedules")).json()["items"] == []


async def test_a_backfill_is_tried_first_and_refused_if_it_is_too_long(api: httpx.AsyncClient) -> None:
    await added(api, trigger=EVERY_MINUTE, paused=True)
    hour = {"start": "2026-06-01T00:00:00Z", "end": "2026-06-01T01:00:00Z"}
    told = await api.post("/api/schedules/s/backfill", json={**hour, "dry_run": True})
    assert (told.status_code, told.json()["fires"], told.json()["made"]) == (202, 60, 60)
    assert (await api.post("/api/schedules/s/backfill", json=hour)).json()["made"] == 60
    assert (await api.post("/api/schedules/s/backfill", json=hour)).json()["made"] == 0
    years = {"start": "2023-01-01T00:00:00Z", "end": "2024-12-01T00:00:00Z"}
    problem = problem_of(await api.post("/api/schedules/s/backfill", json=years))
    assert (problem["status"], problem["code"]) == (422, "too_many_fires")
    problem = problem_of(await api.post("/api/schedules/s/backfill", json={**hour, "overlap": "bufer_all"}))
    assert "did you mean 'buffer_all'?" in problem["detail"]


async def test_an_answer_is_given_for_any_instant(api: httpx.AsyncClient) -> None:
    await added(api, trigger=EVERY_MINUTE, paused=True)
    soon = (datetime.now(UTC) + timedelta(minutes=5)).strftime("%Y-%m-%dT%H:%M:%SZ")
    answer = await api.get("/api/schedules/s/explain", params={"at": soon})
    assert (answer.status_code, answer.json()["answer"]) == (200, "paused")
    assert problem_of(await api.get("/api/schedules/x/explain", params={"at": soon}))["code"] == "schedule_not_found"
    assert problem_of(await api.get("/api/schedules/s/explain?at=yesterday"))["code"] == "invalid_request"


async def test_schedules_are_found_by_their_owner(api: httpx.AsyncClient) -> None:
    await added(api, owner="me")
    await added(api, id="t")
    found = (await api.get("/api/schedules", params={"owner": "me"})).json()["items"]
    assert [(each["id"], each["owner"]) for each in found] == [("s", "me")]
