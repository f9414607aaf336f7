"""Triggers through a real server: they fire, and a preview of them stores nothing."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

import pytest

from duetime.database_url import DatabaseUrl

from .conftest import copy_application
from .server import SERVE, Server, closing, fire_time
from .waiting import until


@pytest.fixture(scope="module")
def api(own_database: DatabaseUrl, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    directory = tmp_path_factory.mktemp("triggers")
    copy_application("own_tasks", directory)
    server = Server(directory, *SERVE, "--tasks", "own_tasks", environment={"DATABASE_URL": own_database.text})
    with closing([server]):
        server.start()
        server.wait_until_ready()
        yield server
        assert server.stop() == 0


def greeting(trigger: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"task": "greet", "kwargs": {"name": "Ada"}, "trigger": trigger, **more}


@pytest.mark.parametrize(
    ("name", "trigger"),
    [
        ("cron", {"type": "cron", "expression": "* * * * * *", "timezone": "Europe/Berlin"}),
        ("rrule", {"type": "rrule", "rrule": "FREQ=SECONDLY;COUNT=3600", "timezone": "Europe/Berlin"}),
        ("text", {"type": "text", "text": "every second"}),
        ("or", {"type": "or", "triggers": [{"type": "cron", "expression": f"{odd}-59/2 * * * * *"} for odd in (0, 1)]}),
        ("excluding", {"type": "cron", "expression": "* * * * * *", "exclude": ["1999-12-31"]}),
    ],
)
def test_every_form_fires_each_second_once(api: Server, name: str, trigger: dict[str, Any]) -> None:
    if name == "excluding":
        now = datetime.now(UTC)
        blackout = {"from": (now - timedelta(hours=1)).isoformat(), "to": (now + timedelta(seconds=2)).isoformat()}
        trigger = {**trigger, "exclude": ["1999-12-31", blackout]}
    api.add(greeting(trigger, id=f"each-{name}", options={"overlap": "allow", "coalesce": "all"}))

    def succeeded() -> list[dict[str, Any]] | None:
        fires = [fire for fire in api.fires(f"each-{name}") if fire["state"] == "succeeded"]
        return fires if len(fires) >= 4 else None

    fires = until(succeeded, f"four fires of {name}")
    seconds = {after - before for before, after in pairwise(map(fire_time, fires))}
    assert (
        seconds <= {timedelta(seconds=1), timedelta(seconds=2)} if name == "or" else seconds == {timedelta(seconds=1)}
    )
    if name == "excluding":
        assert fire_time(fires[0]) >= now + timedelta(seconds=2)
    assert api.client.delete(f"/api/schedules/each-{name}").status_code == 204


def test_a_preview_says_what_a_schedule_would_be_and_stores_nothing(api: Server) -> None:
    before = api.everything("/api/schedules")
    body = greeting({"type": "text", "text": "every weekday at 9:00", "timezone": "Europe/Berlin"}, id="previewed")
    response = api.post("/api/schedules/preview?fires=12", body)
    assert response.status_code == 200, response.text
    preview = response.json()
    assert (preview["verdict"], preview["problems"], preview["warnings"]) == ("ok", [], [])
    assert preview["near_duplicates"] == []
    assert preview["trigger"] == {"type": "cron", "expression": "0 9 * * mon-fri", "timezone": "Europe/Berlin"}
    assert preview["description"] == "at 09:00, Monday to Friday (Europe/Berlin)"
    assert len(preview["upcoming"]) == 12
    assert {fire["fire_time"][11:19] for fire in preview["upcoming"]} == {"09:00:00"}
    assert api.everything("/api/schedules") == before
    added = api.add(body)
    assert added["upcoming"] == [fire["fire_time"] for fire in preview["upcoming"]][:5]


def test_a_preview_names_what_is_the_same_and_what_is_taken(api: Server) -> None:
    hourly = {"type": "interval", "hours": 1}
    api.add(greeting(hourly, id="same"))
    api.add(greeting({"type": "interval", "hours": 2}, id="another-rhythm"))
    api.add({**greeting(hourly, id="another-name"), "kwargs": {"name": "Bob"}})

    def preview(body: dict[str, Any]) -> dict[str, Any]:
        answer: dict[str, Any] = api.post("/api/schedules/preview", body).json()
        return answer

    twins = {twin["id"]: twin["reason"] for twin in preview(greeting(hourly))["near_duplicates"]}
    assert "the same task, arguments and" in twins["same"]
    assert twins["another-rhythm"] == "the same task and arguments, at other times"
    assert twins["same"] in preview(greeting(hourly))["warnings"][0]
    taken = preview(greeting(hourly, id="same"))
    assert (taken["verdict"], [problem["code"] for problem in taken["problems"]]) == ("refused", ["schedule_exists"])


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (greeting({"type": "text", "text": "whenever"}), "invalid_trigger"),
        (greeting({"type": "cron", "expression": "0 0 30 2 *"}), "trigger_never_fires"),
        (greeting({"type": "interval", "hours": 1}) | {"task": "gret"}, "unknown_task"),
        (greeting({"type": "interval", "hours": 1}) | {"kwargs": {}}, "invalid_arguments"),
        (greeting({"type": "interval", "hours": 1}) | {"kwargs": {"name": "x" * 2_000_000}}, "arguments_too_large"),
        (greeting({"type": "interval", "hours": 1}, id="x" * 501), "invalid_schedule_id"),
        (greeting({"type": "interval", "hours": 1}, metadata={"duetime.x": 1}), "invalid_request"),
    ],
)
def test_a_preview_refuses_what_adding_refuses(api: Server, body: dict[str, Any], code: str) -> None:
    previewed, added = (api.post(path, body).json() for path in ("/api/schedules/preview", "/api/schedules"))
    assert (previewed["verdict"], [problem["code"] for problem in previewed["problems"]]) == ("refused", [code])
    assert added["code"] == code
    assert previewed["problems"][0]["problem"] in (added["detail"], *(each["problem"] for each in added["errors"]))


def test_a_preview_of_what_is_no_schedule_is_an_error(api: Server) -> None:
    response = api.post("/api/schedules/preview", greeting({"type": "interval", "hours": 1}) | {"colour": "red"})
    assert (response.status_code, response.json()["code"]) == (422, "invalid_request")


def test_a_schedule_may_be_called_preview(api: Server) -> None:
    api.add(greeting({"type": "interval", "hours": 1}, id="preview"))
    assert api.schedule("preview")["id"] == "preview"
    assert api.client.delete("/api/schedules/preview").status_code == 204


def test_the_note_of_a_date_that_has_passed_says_what_would_happen(api: Server) -> None:
    answer = api.post("/api/schedules/preview", greeting({"type": "date", "run_at": "2020-01-01T00:00:00Z"})).json()
    assert answer["verdict"] == "doubtful"
    assert "would run at once" in answer["warnings"][0]
