from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

from .server import Server, fire_time
from .sink import Sink
from .waiting import until

SECOND = timedelta(seconds=1)
# Longer than the lease, and than the look-ahead: several fires fall due that nobody has seen coming.
DOWN = 4 * SECOND
# Small, so that what a killed process held is free again soon.
QUICK = {"DUETIME_LEASE_DURATION": "2", "DUETIME_CALL_TIMEOUT": "1.9"}


def every_second(sink: Sink, path: str) -> dict[str, Any]:
    return {
        "id": path.strip("/"),
        "task": "http_request",
        "kwargs": {"url": sink.url(path), "method": "POST"},
        "trigger": {"type": "cron", "expression": "* * * * * *"},
        # The default would skip a second that falls due while the job that the killed process had is run again.
        "options": {"overlap": "allow"},
    }


def has_run(server: Server, schedule_id: str, times: int) -> Callable[[], bool]:
    return lambda: Counter(fire["state"] for fire in server.fires(schedule_id))["succeeded"] >= times


def test_schedules_made_over_http_run_on_time_and_go_on_after_kill_9(
    new_server: Callable[..., Server], sink: Sink
) -> None:
    server = new_server(**QUICK)
    server.start()
    server.wait_until_ready()
    in_a_second = datetime.now(UTC) + SECOND
    once = server.add(
        {
            "task": "http_request",
            "kwargs": {"url": sink.url("/once"), "method": "POST", "json": {"hello": "world"}},
            "trigger": {"type": "date", "run_at": in_a_second.isoformat()},
        }
    )
    server.add(every_second(sink, "/tick"))

    until(has_run(server, "tick", 4), "the cron to run")
    until(has_run(server, once["id"], 1), "the one-off to run")
    [effect] = sink.effects("/once")
    assert effect.body == b'{"hello":"world"}'

    server.kill()
    killed_at = datetime.now(UTC)
    until(lambda: datetime.now(UTC) > killed_at + DOWN, "some fires to fall due")
    server.start()
    server.wait_until_ready()
    ready_at = datetime.now(UTC)
    until(lambda: fire_time(server.fires("tick")[-1]) > ready_at + 3 * SECOND, "the cron to go on")
    server.add({**every_second(sink, "/end"), "paused": True})  # the store takes new schedules as before
    server.post("/api/schedules/tick/pause")
    until(lambda: "pending" not in {fire["state"] for fire in server.fires("tick")}, "the last fire to end")

    ledger = server.fires("tick")
    times = [fire_time(fire) for fire in ledger]
    assert times == [times[0] + n * SECOND for n in range(len(times))], "each second has a row, and one only"
    for fire in ledger:
        if killed_at - SECOND <= fire_time(fire) <= ready_at + SECOND:
            assert fire["state"] in ("succeeded", "coalesced"), fire
            assert fire["reason"] or fire["state"] == "succeeded", fire
        else:
            assert fire["state"] == "succeeded", fire  # it fell due while the server was up
    late = [fire for fire in ledger if killed_at < fire_time(fire) < ready_at]
    assert "coalesced" in {fire["state"] for fire in late}, "of those that fell due while it was down"
    assert "succeeded" in {fire["state"] for fire in late}, "one ran for all"
    ran = [fire for fire in ledger if fire["state"] == "succeeded"]

    # The sink agrees with the ledger: no effect without a fire, no fire without its effect, none doubled.
    effects = Counter(sink.keys("/tick"))
    assert set(effects) == {fire["job_id"] for fire in ran}
    for fire in ran:
        assert effects[fire["job_id"]] <= fire["attempts"], fire
        # Only what the killed process had in its hands is attempted again.
        assert fire["attempts"] == 1 or abs(fire_time(fire) - killed_at) < 2 * SECOND, fire

    [fire] = server.fires(once["id"])
    assert (fire["state"], fire["attempts"]) == ("succeeded", 1)
    assert datetime.fromisoformat(fire["fire_time"]) == in_a_second
    assert sink.keys("/once") == [fire["job_id"]]


def test_a_job_that_kill_9_interrupts_is_run_again_under_the_same_id(
    new_server: Callable[..., Server], sink: Sink
) -> None:
    server = new_server(**QUICK)
    server.start()
    server.wait_until_ready()
    sink.hold()
    server.add(every_second(sink, "/interrupted") | {"trigger": {"type": "date", "run_at": "2020-01-01T00:00:00Z"}})
    until(lambda: sink.effects("/interrupted"), "the job to begin")
    server.kill()
    sink.let_go()

    server.start()
    until(has_run(server, "interrupted", 1), "the job to be run again")
    [fire] = server.fires("interrupted")
    assert fire["attempts"] == 2
    assert sink.keys("/interrupted") == [fire["job_id"]] * 2
    assert [run["outcome"] for run in server.runs("interrupted")] == ["abandoned", "success"]
