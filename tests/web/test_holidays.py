"""Public holidays as exclusions, through the door of a running node."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from duetime.settings import DatabaseUrl
from duetime.web import build_router, install

from ..calendars import lose_the_package
from ..services import a_service
from .door import DoorRuntime, client_of, problem_of


@pytest.fixture
async def api(database: DatabaseUrl) -> AsyncIterator[httpx.AsyncClient]:
    async with a_service(database) as service:
        runtime = DoorRuntime()
        runtime.service = service
        app = FastAPI()
        install(app)
        app.include_router(build_router(runtime), prefix="/api")
        async with client_of(app) as client:
            yield client


def schedule(*exclude: Any, **fields: Any) -> dict[str, Any]:
    trigger = {"type": "cron", "expression": "0 9 * * mon-fri", "timezone": "Europe/Berlin", "exclude": exclude}
    return {"id": "s", "task": "work", "trigger": trigger, **fields}


async def test_a_schedule_says_whose_holidays_it_leaves_out(api: httpx.AsyncClient) -> None:
    added = await api.post("/api/schedules", json=schedule({"holidays": "Germany", "subdivision": "Bavaria"}))
    assert added.status_code == 201, added.text
    for answer in (added, await api.get("/api/schedules/s")):
        shown = answer.json()
        assert shown["trigger"]["exclude"] == [{"holidays": "DE", "subdivision": "BY"}]
        assert shown["description"].endswith(", except on public holidays of Germany (Bavaria)")
        assert len(shown["upcoming"]) == 5
    sentence = {"type": "text", "text": "every weekday at 9:00 except public holidays in Bavaria in Europe/Berlin"}
    same = await api.patch("/api/schedules/s", json={"trigger": sentence})
    assert same.headers["etag"] == added.headers["etag"]


@pytest.mark.parametrize(
    ("exclusion", "where", "words"),
    [
        ({"holidays": "Germny"}, "trigger.exclude[1]", "did you mean 'DE' (Germany)?"),
        ({"holidays": "DE", "subdivision": "CA"}, "trigger.exclude[1]", "It has BB, BE, BW, BY"),
        ({"holidays": "DE", "categories": ["bank"]}, "trigger.exclude[1]", "known of Germany (catholic, public"),
        ({"holidays": "DE", "observed": "yes"}, "body.trigger.exclude.1", "'observed': false"),
        ({"holidays": 49}, "body.trigger.exclude.1", "{'holidays': 'DE'}"),
        ({"holiday": "DE"}, "body.trigger.exclude.1", "{'holidays': 'DE'}"),
    ],
    ids=str,
)
async def test_an_unknown_calendar_is_refused_with_its_place(
    api: httpx.AsyncClient, exclusion: Any, where: str, words: str
) -> None:
    good = schedule({"holidays": "DE"})
    assert (await api.post("/api/schedules", json=good)).status_code == 201
    bad = schedule("12-24", exclusion, id="other")
    for answer in (
        await api.post("/api/schedules", json=bad),
        await api.patch("/api/schedules/s", json={"trigger": bad["trigger"]}),
    ):
        problem = problem_of(answer)
        assert (problem["status"], problem["code"]) == (422, "invalid_trigger")
        assert [error["where"] for error in problem["errors"]] == [where]
        assert words in problem["errors"][0]["problem"]
    assert (await api.get("/api/schedules/other")).status_code == 404


async def test_without_the_package_the_door_says_what_to_install(
    api: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert (await api.post("/api/schedules", json=schedule({"holidays": "DE"}))).status_code == 201
    lose_the_package(monkeypatch)
    problem = problem_of(await api.post("/api/schedules", json=schedule({"holidays": "DE"}, id="other")))
    assert (problem["status"], problem["code"]) == (422, "invalid_trigger")
    assert [error["where"] for error in problem["errors"]] == ["trigger.exclude[0]"]
    assert "pip install 'duetime[holidays]'" in problem["errors"][0]["problem"]
    for path in ("/api/schedules/s", "/api/schedules"):
        assert (await api.get(path)).status_code == 200
    assert (await api.delete("/api/schedules/s")).status_code == 204
