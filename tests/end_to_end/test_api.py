from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from threading import Event
from typing import Any
from urllib.parse import quote

import pytest

from duetime.database_url import DatabaseUrl

from .conftest import copy_application
from .server import SERVE, Server, closing, fire_time
from .sink import Sink
from .waiting import until

SECOND = timedelta(seconds=1)
EVERY_SECOND = {"type": "cron", "expression": "* * * * * *"}
PAST = {"type": "date", "run_at": "2020-01-01T00:00:00Z"}
NEVER_YET = {"type": "date", "run_at": "2100-01-01T00:00:00Z"}


@pytest.fixture(scope="module")
def api(own_database: DatabaseUrl, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """``duetime serve`` with some tasks of its own, for all tests here."""
    directory = tmp_path_factory.mktemp("api")
    copy_application("own_tasks", directory)
    settings = {"DATABASE_URL": own_database.text}
    server = Server(directory, *SERVE, "--tasks", "own_tasks", environment=settings)
    with closing([server]):
        server.start()
        server.wait_until_ready()
        yield server
        assert server.stop() == 0


def after_its_end(server: Server, schedule_id: str) -> dict[str, Any]:
    """Return the only fire of a schedule when it is no longer pending."""

    def ended() -> dict[str, Any] | None:
        fires = server.fires(schedule_id)
        return fires[0] if fires and fires[0]["state"] != "pending" else None

    return until(ended, f"the fire of {schedule_id} to end")


def test_a_schedule_is_shown_as_it_was_made(api: Server) -> None:
    made = api.add(
        {
            "id": "shown",
            "task": "greet",
            "kwargs": {"name": "Ada", "times": 2},
            "trigger": {"type": "cron", "expression": "30 9 * * mon-fri", "timezone": "Europe/Berlin"},
            "tags": ["greeting", "weekday"],
            "metadata": {"customer": 42},
            "options": {
                "overlap": "allow",
                "timeout": 12.5,
                "retry": {"max_attempts": 3},
                "misfire_grace_time": 60,
                "coalesce": "earliest",
                "max_jitter": 5,
                "result_ttl": 3600,
                "on_crash": "abandon",
            },
        }
    )

    assert made["task"] == "own_tasks:greet"
    assert made["kwargs"] == {"name": "Ada", "times": 2}
    assert made["trigger"] == {"type": "cron", "expression": "30 9 * * mon-fri", "timezone": "Europe/Berlin"}
    assert "09:30" in made["description"]
    assert "Berlin" in made["description"]
    assert (made["state"], made["tags"], made["metadata"]) == ("active", ["greeting", "weekday"], {"customer": 42})
    options = made["options"]
    assert {name: options[name] for name in ("timeout", "misfire_grace_time", "max_jitter", "result_ttl")} == {
        "timeout": 12.5,
        "misfire_grace_time": 60,
        "max_jitter": 5,
        "result_ttl": 3600,
    }
    assert (options["coalesce"], options["on_crash"], made["overlap"]) == ("earliest", "abandon", "allow")
    assert options["retry"]["max_attempts"] == 3
    assert made["note"] is None

    times = [datetime.fromisoformat(moment) for moment in made["upcoming"]]
    assert len(times) == 5
    assert times[0] == datetime.fromisoformat(made["next_fire_time"])
    assert all(earlier < later for earlier, later in pairwise(times))
    # In the trigger's own zone, so the clock time is the one that was asked for, summer or winter.
    assert {(moment.hour, moment.minute) for moment in times} == {(9, 30)}
    assert all(moment.weekday() < 5 for moment in times)
    assert api.schedule("shown") == made


def test_what_becomes_of_missed_and_overlapping_fires_is_shown_with_its_effective_value(api: Server) -> None:
    daily = {"task": "greet", "kwargs": {"name": "Ada"}, "trigger": {"type": "cron", "expression": "30 9 * * *"}}
    names = ("overlap", "catch_up", "catch_up_window", "catch_up_overlap", "coalesce", "priority")
    given = {"overlap": "buffer_one", "catch_up": "all", "catch_up_window": 3600, "priority": 3}
    made = api.add({**daily, "options": given})
    assert [made["options"][name] for name in names] == ["buffer_one", "all", 3600, "buffer_all", "all", 3]
    assert made["overlap"] == "buffer_one"
    plain = api.add(daily)
    assert [plain["options"][name] for name in names] == ["skip", "latest", None, "buffer_all", "latest", 0]


def test_the_address_of_a_new_schedule_is_where_it_can_be_read(api: Server) -> None:
    response = api.post("/api/schedules", {"task": "wait", "args": [0], "trigger": NEVER_YET})
    assert response.status_code == 201
    made = response.json()
    assert made["args"] == [0]
    assert api.read(response.headers["location"]) == made


@pytest.mark.parametrize(
    "schedule_id",
    ["team/weekly/reüort", "a/pause", "50% off?", "提醒 #1", "...", "a+b&c=d", "é" * 500, "line;drop table"],
)
def test_an_id_may_have_slashes_and_any_letters(api: Server, schedule_id: str) -> None:
    api.add({"id": schedule_id, "task": "greet", "args": ["Ada"], "trigger": NEVER_YET})
    path = f"/api/schedules/{quote(schedule_id, safe='')}"

    assert api.read(path)["id"] == schedule_id
    assert api.post(f"{path}/pause").json()["state"] == "paused"
    assert api.post(f"{path}/resume").json()["state"] == "active"
    assert api.post(f"{path}/run").status_code == 202
    until(lambda: api.read(f"{path}/fires")["items"], "the fire")
    assert {fire["schedule_id"] for fire in api.read(f"{path}/fires")["items"]} == {schedule_id}
    assert api.client.delete(path).status_code == 204
    assert api.get(path).status_code == 404


def test_a_deleted_schedule_is_gone_and_its_history_stays(api: Server) -> None:
    api.add({"id": "short-lived", "task": "greet", "args": ["Ada"], "trigger": PAST})
    fire = after_its_end(api, "short-lived")

    assert api.client.delete("/api/schedules/short-lived").status_code == 204
    for response in (
        api.get("/api/schedules/short-lived"),
        api.client.delete("/api/schedules/short-lived"),
        api.post("/api/schedules/short-lived/pause"),
        api.post("/api/schedules/short-lived/resume"),
        api.post("/api/schedules/short-lived/run"),
    ):
        assert response.status_code == 404
        assert response.json()["code"] == "schedule_not_found"
    assert api.fires("short-lived") == [fire]
    assert [run["outcome"] for run in api.runs("short-lived")] == ["success"]


def test_pages_hold_every_schedule_once_and_filters_narrow_them(api: Server) -> None:
    wanted = [f"page-{number:03}" for number in range(205)]

    def add(schedule_id: str) -> None:
        number = int(schedule_id[-3:])
        trigger = {"type": "date", "run_at": f"{2100 + number % 2}-01-01T00:00:00Z"}
        tags = ["paged", f"mod-{number % 10}"]
        task, args = ("greet", ["Ada"]) if number % 5 else ("wait", [0])
        api.add(
            {"id": schedule_id, "task": task, "args": args, "trigger": trigger, "tags": tags, "paused": number == 7}
        )

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(add, reversed(wanted)))

    def ids(**filters: Any) -> list[str]:
        return [schedule["id"] for schedule in api.everything("/api/schedules", **{"tag": "paged", **filters})]

    assert ids() == wanted
    pages = [api.read("/api/schedules", tag="paged", limit=100)]
    while pages[-1]["next"]:
        pages.append(api.read("/api/schedules", tag="paged", limit=100, after=pages[-1]["next"]))
    assert [len(page["items"]) for page in pages] == [100, 100, 5]
    assert len(api.read("/api/schedules", tag="paged", limit=10_000)["items"]) == 200, "no page is unbounded"

    assert ids(tag="mod-3") == wanted[3::10]
    assert ids(task="wait") == wanted[::5]
    assert ids(task="own_tasks:wait") == wanted[::5]
    assert ids(state="paused") == ["page-007"]
    assert ids(search="PAGE-01") == wanted[10:20]
    assert ids(search="%") == []
    assert ids(due_before="2100-06-01T00:00:00Z") == wanted[::2]
    # Without an offset it is UTC, not the server's own zone, which is hours ahead.
    assert ids(due_before="2101-01-01T00:00:00") == wanted[::2]
    assert ids(due_before="2101-01-01T00:00:01") == wanted
    assert ids(engine="apscheduler", state="active", task="greet", tag="mod-7") == [
        each for each in wanted[7::10] if each != "page-007"
    ]


@pytest.mark.parametrize("cursor", ["nonsense", "WyJhIl0x", "", "W10"])
@pytest.mark.parametrize("path", ["/api/schedules", "/api/fires", "/api/runs", "/api/jobs"])
def test_what_is_no_cursor_is_refused_with_a_reason(api: Server, path: str, cursor: str) -> None:
    response = api.get(path, after=cursor)
    assert response.status_code == 400
    assert response.json()["code"] == "invalid_cursor"


def test_pausing_stops_the_fires_and_resuming_passes_over_what_was_missed(api: Server) -> None:
    api.add({"id": "paused", "task": "greet", "args": ["Ada"], "trigger": EVERY_SECOND})
    until(lambda: len(api.fires("paused")) >= 2, "two fires")

    paused = api.post("/api/schedules/paused/pause").json()
    last = fire_time(api.fires("paused")[-1])
    assert (paused["state"], paused["upcoming"]) == ("paused", [])
    # Another schedule's fires tell that the time has passed in which this one would have fired.
    api.add({"id": "clock", "task": "greet", "args": ["Ada"], "trigger": EVERY_SECOND})
    until(lambda: len(api.fires("clock")) >= 3, "three seconds to pass")
    api.client.delete("/api/schedules/clock")
    assert fire_time(api.fires("paused")[-1]) == last, "a paused schedule has fired"

    resumed_at = datetime.now(UTC)
    resumed = api.post("/api/schedules/paused/resume").json()
    assert resumed["state"] == "active"
    assert datetime.fromisoformat(resumed["next_fire_time"]) >= resumed_at - timedelta(milliseconds=100)
    until(lambda: len([each for each in api.fires("paused") if fire_time(each) > last]) >= 2, "two more fires")
    api.client.delete("/api/schedules/paused")
    later = [each for each in api.fires("paused") if fire_time(each) > last]
    assert fire_time(later[0]) == datetime.fromisoformat(resumed["next_fire_time"])
    assert {each["state"] for each in later} <= {"succeeded", "pending"}, "what was missed is neither run nor recorded"


def test_resuming_an_active_schedule_costs_it_no_fire(
    new_server: Callable[..., Server], empty_database: DatabaseUrl
) -> None:
    # Without looking ahead, there is a moment at which a schedule is due and nobody has claimed it.
    server = new_server(*SERVE, "--tasks", "own_tasks", DATABASE_URL=empty_database.text, DUETIME_LOOK_AHEAD="0")
    copy_application("own_tasks", server.directory)
    server.start()
    server.wait_until_ready()
    server.add({"id": "resumed", "task": "greet", "args": ["Ada"], "trigger": EVERY_SECOND})
    enough = Event()

    def keep_resuming() -> None:
        while not enough.is_set():
            assert server.post("/api/schedules/resumed/resume").json()["state"] == "active"

    with ThreadPoolExecutor(6) as pool:
        resuming = [pool.submit(keep_resuming) for _ in range(6)]
        try:
            until(lambda: len(server.fires("resumed")) >= 6, "six fires")
        finally:
            enough.set()
    server.client.delete("/api/schedules/resumed")
    for each in resuming:
        each.result()
    times = [fire_time(each) for each in server.fires("resumed")]
    assert all(later - earlier == SECOND for earlier, later in pairwise(times))


def test_running_a_schedule_by_request_leaves_its_times_alone(api: Server, sink: Sink) -> None:
    made = api.add(
        {
            "id": "by-request",
            "task": "http_request",
            "kwargs": {"url": sink.url("/by-request"), "method": "POST"},
            "trigger": NEVER_YET,
            "paused": True,
        }
    )
    response = api.post("/api/schedules/by-request/run")

    assert response.status_code == 202
    job = response.json()
    assert (job["task"], job["schedule_id"]) == ("http_request", "by-request")
    fire = after_its_end(api, "by-request")
    assert (fire["state"], fire["job_id"], fire["fire_time"]) == ("succeeded", job["id"], job["fire_time"])
    assert "request" in fire["reason"]
    assert sink.keys("/by-request") == [job["id"]]
    schedule = api.schedule("by-request")
    assert (schedule["state"], schedule["next_fire_time"]) == ("paused", made["next_fire_time"])


def test_a_task_runs_now_without_a_schedule(api: Server, sink: Sink) -> None:
    sink.hold()
    response = api.post("/api/jobs", {"task": "http_request", "kwargs": {"url": sink.url("/now"), "method": "POST"}})
    assert response.status_code == 202
    job = response.json()

    until(lambda: sink.effects("/now"), "the job to begin")
    [running] = [each for each in api.everything("/api/jobs") if each["id"] == job["id"]]
    assert (running["state"], running["attempt"], running["schedule_id"]) == ("running", 1, None)
    assert running["node"] == api.read("/health/ready")["node"]
    sink.let_go()

    def run() -> dict[str, Any] | None:
        return next((each for each in api.everything("/api/runs") if each["job_id"] == job["id"]), None)

    ended = until(run, "the run")
    assert (ended["outcome"], ended["attempt"], ended["schedule_id"]) == ("success", 1, None)
    assert ended["started_at"] <= ended["finished_at"]
    assert ended["duration"] >= 0
    assert api.read(f"/api/runs/{ended['id']}") == ended
    assert sink.keys("/now") == [job["id"]]
    assert job["id"] not in {each["id"] for each in api.everything("/api/jobs")}


def test_a_failing_run_is_tried_again_as_often_as_the_options_say(api: Server) -> None:
    retry = {"max_attempts": 3, "backoff": 0.05}
    for schedule_id, works_at in (("third-time", 3), ("never", 4)):
        arguments = {"attempt": works_at, "key": schedule_id}
        api.add(
            {
                "id": schedule_id,
                "task": "succeed_at",
                "kwargs": arguments,
                "trigger": PAST,
                "options": {"retry": retry},
            }
        )

    fire, runs = after_its_end(api, "third-time"), api.runs("third-time")
    assert (fire["state"], fire["attempts"]) == ("succeeded", 3)
    assert [(run["attempt"], run["outcome"]) for run in runs] == [(1, "error"), (2, "error"), (3, "success")]
    assert {run["job_id"] for run in runs} == {fire["job_id"]}
    assert [run["will_retry_at"] is not None for run in runs] == [True, True, False]
    assert runs[0]["error"] == "ValueError: attempt 1 of third-time fails"

    fire, runs = after_its_end(api, "never"), api.runs("never")
    assert (fire["state"], fire["attempts"]) == ("failed", 3)
    assert "attempt 3 of never fails" in fire["reason"]
    assert [run["outcome"] for run in runs] == ["error"] * 3


@pytest.mark.parametrize("task", ["wait", "in_a_thread"])
def test_a_run_that_takes_too_long_ends_as_timed_out(api: Server, task: str) -> None:
    schedule_id = f"slow-{task}"
    api.add({"id": schedule_id, "task": task, "args": [2], "trigger": PAST, "options": {"timeout": 0.2}})
    assert after_its_end(api, schedule_id)["state"] == "failed"
    [run] = api.runs(schedule_id)
    assert run["outcome"] == "timeout"
    assert "0.2 s" in run["error"]


def test_overlap_decides_whether_a_fire_runs_beside_an_unfinished_one(api: Server, sink: Sink) -> None:
    sink.hold()
    for overlap in ("skip", "allow"):
        api.add(
            {
                "id": overlap,
                "task": "http_request",
                "kwargs": {"url": sink.url(f"/{overlap}"), "method": "POST"},
                "trigger": EVERY_SECOND,
                "options": {"overlap": overlap},
            }
        )
    until(lambda: len(sink.effects("/allow")) >= 3, "three jobs at the same time")
    until(lambda: len(api.fires("skip")) >= 3, "three fires")
    for overlap in ("skip", "allow"):
        api.client.delete(f"/api/schedules/{overlap}")
    sink.let_go()
    for overlap in ("skip", "allow"):
        until(lambda: "pending" not in {each["state"] for each in api.fires(overlap)}, "all to end")  # noqa: B023

    first, *others = api.fires("skip")
    assert first["state"] == "succeeded"
    assert {each["state"] for each in others} == {"skipped"}
    assert all(each["reason"] and each["job_id"] is None for each in others)
    assert sink.keys("/skip") == [first["job_id"]]
    assert {each["state"] for each in api.fires("allow")} == {"succeeded"}


def test_a_start_beyond_its_grace_time_is_recorded_as_missed(api: Server) -> None:
    api.add({"id": "late", "task": "greet", "args": ["Ada"], "trigger": PAST, "options": {"misfire_grace_time": 60}})
    fire = after_its_end(api, "late")
    assert fire["state"] == "missed"
    assert "grace time of 60 s" in fire["reason"]
    assert api.runs("late") == []


def test_fires_and_runs_come_newest_first_in_pages(api: Server) -> None:
    for number in range(5):
        api.add({"id": f"history-{number}", "task": "greet", "args": ["Ada"], "trigger": PAST})
    for number in range(5):
        after_its_end(api, f"history-{number}")

    newest_first: dict[str, Callable[[dict[str, Any]], Any]] = {
        "/api/fires": lambda fire: (fire_time(fire), fire["schedule_id"]),
        "/api/runs": lambda run: run["id"],
    }
    for path, key in newest_first.items():
        everything = api.everything(path)
        assert everything == sorted(everything, key=key, reverse=True)
        by_twos: list[dict[str, Any]] = []
        page = api.read(path, limit=2)
        while page["next"]:
            assert len(page["items"]) == 2
            by_twos += page["items"]
            page = api.read(path, limit=2, after=page["next"])
        assert by_twos + page["items"] == everything
    assert {each["outcome"] for each in api.everything("/api/runs", outcome="timeout")} <= {"timeout"}
    assert {each["task"] for each in api.everything("/api/runs", task="greet")} == {"own_tasks:greet"}
    assert {each["state"] for each in api.everything("/api/fires", state="succeeded")} == {"succeeded"}


def test_tasks_come_with_what_they_take(api: Server) -> None:
    tasks = {task["name"]: task for task in api.read("/api/tasks")["items"]}

    assert {"http_request", "own_tasks:greet", "in_a_thread"} <= tasks.keys()
    greet = tasks["own_tasks:greet"]
    assert "greet" in greet["aliases"]
    assert greet["description"] == "Greet somebody."
    assert greet["arguments"]["properties"]["times"]["maximum"] == 10
    assert greet["arguments"]["required"] == ["name"]
    assert greet["options"]["overlap"] == "skip"


def test_the_documentation_of_the_api_is_served(api: Server) -> None:
    assert "/api/schedules/{schedule_id}/pause" in api.read("/openapi.json")["paths"]
    assert "text/html" in api.get("/docs").headers["content-type"]
