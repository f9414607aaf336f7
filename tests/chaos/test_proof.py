"""The proof finds what is wrong: each promise that a storm could break, broken by hand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from apscheduler.triggers.date import DateTrigger

from ..nodes.desk import schedule
from .load import Planned
from .proof import Evidence
from .weather import Trouble

T0 = datetime(2027, 3, 28, 1, 0, tzinfo=UTC)
PID = 77


def planned(name: str, task: str) -> Planned:
    return Planned(schedule(name, task, DateTrigger(T0)), frozenset([T0]), may_miss=False, may_coalesce=False)


def row(name: str, **values: Any) -> dict[str, Any]:
    return {"schedule_id": name, "fire_time": T0, "state": "succeeded", "reason": None, **values}


def line(name: str, task: str, what: str, after: float, **values: Any) -> dict[str, Any]:
    due = T0.timestamp()
    return {
        "what": what,
        "schedule": name,
        "task": task,
        "job": name,
        "fire_time": due,
        "due": due,
        "at": due + after,
        "node": "a",
        "pid": PID,
        **values,
    }


def flawless() -> Evidence:
    """Return the evidence of a storm in which two jobs ran, one after the other, and one that may run once."""
    tasks = {"first": "one", "second": "one", "only": "once", "plain": "work"}
    diary = [
        line("first", "one", "began", 0),
        line("first", "one", "ended", 1),
        line("second", "one", "began", 1),
        line("second", "one", "ended", 2),
    ]
    for name in ("only", "plain"):
        diary += [line(name, tasks[name], "began", 0), line(name, tasks[name], "ended", 1)]
    return Evidence(
        planned=[planned(name, task) for name, task in tasks.items()],
        added=dict.fromkeys(tasks, T0.timestamp() - 60),
        ledger=[row(name) for name in tasks],
        diary=diary,
        troubles=[],
        lease=2.0,
    )


def ledger(evidence: Evidence, name: str, **values: Any) -> Evidence:
    return replace(
        evidence, ledger=[{**each, **values} if each["schedule_id"] == name else each for each in evidence.ledger]
    )


def diary(evidence: Evidence, *more: dict[str, Any], without: str = "") -> Evidence:
    return replace(evidence, diary=[*(each for each in evidence.diary if each["schedule"] != without), *more])


FLAWS: dict[str, tuple[Callable[[Evidence], Evidence], str]] = {
    "a fire is lost": (lambda e: replace(e, ledger=e.ledger[1:]), "is not in the ledger"),
    "a fire is doubled": (lambda e: replace(e, ledger=[*e.ledger, e.ledger[0]]), "is in the ledger 2 times"),
    "a fire was never due": (
        lambda e: replace(e, ledger=[*e.ledger, row("plain", fire_time=T0 + timedelta(seconds=1))]),
        "which was never due",
    ),
    "a fire is nobody's": (lambda e: replace(e, ledger=[*e.ledger, row("stray")]), "but nobody's"),
    "a fire is pending": (lambda e: ledger(e, "plain", state="pending"), "which it cannot be"),
    "a fire that must run was skipped": (lambda e: ledger(e, "plain", state="skipped"), "which it cannot be"),
    "a fire did not run": (lambda e: diary(e, without="plain"), "and never ended"),
    "a job that may run once ran twice": (
        lambda e: diary(e, line("only", "once", "began", 1)),
        "began 2 times instead of once",
    ),
    "a job ran that no ledger knows": (
        lambda e: diary(e, line("stray", "work", "began", 0)),
        "and is not in the ledger",
    ),
    "a limit was exceeded": (
        lambda e: diary(e, line("first", "one", "began", 0.5), line("first", "one", "ended", 1.5)),
        "2 jobs of 'one' ran at once",
    ),
    "a job was late": (lambda e: diary(e, line("plain", "work", "began", 9), without="plain"), "9.0 s late"),
    "a job was early": (lambda e: diary(e, line("plain", "work", "began", -1), without="plain"), "before it was due"),
}


def test_a_storm_that_did_no_harm_leaves_no_problem() -> None:
    assert flawless().problems() == []


def test_two_fires_of_a_schedule_within_a_millisecond_are_two() -> None:
    """An OrTrigger of the storm with the seed 617908 has such: each of them began once, and not one of them twice."""
    also = T0 + timedelta(microseconds=373)
    lines = (line("only", "once", what, 0.1, job="also", fire_time=also.timestamp()) for what in ("began", "ended"))
    evidence = diary(flawless(), *lines)
    planned = [replace(each, fires=each.fires | {also}) if each.task == "once" else each for each in evidence.planned]
    evidence = replace(evidence, planned=planned, ledger=[*evidence.ledger, row("only", fire_time=also)])
    assert evidence.problems() == []


@pytest.mark.parametrize("flaw", FLAWS)
def test_what_a_storm_has_broken_is_found(flaw: str) -> None:
    spoil, words = FLAWS[flaw]
    problems = spoil(flawless()).problems()
    assert any(words in problem for problem in problems), problems


@pytest.mark.parametrize(("kind", "node"), [("cut", "a"), ("restart", None), ("cut", "b")])
def test_lateness_is_excused_by_trouble_and_the_lease_it_left_behind(kind: str, node: str | None) -> None:
    """Any node's: the one that had claimed the fire may be another than the one that ran it."""
    late = diary(flawless(), line("plain", "work", "began", 9), line("plain", "work", "ended", 9), without="plain")
    trouble = Trouble(kind, node, T0.timestamp() - 1, T0.timestamp() + 5)
    assert replace(late, troubles=[trouble]).problems() == []
    earlier = Trouble(kind, node, T0.timestamp() - 9, T0.timestamp() - 5)
    assert replace(late, troubles=[earlier]).problems()


def test_a_fire_is_not_late_before_its_schedule_was_added() -> None:
    late = diary(flawless(), line("plain", "work", "began", 9), line("plain", "work", "ended", 9), without="plain")
    assert replace(late, added={**late.added, "plain": T0.timestamp() + 8}).problems() == []


def test_lateness_is_excused_by_a_machine_that_was_as_late_with_everything() -> None:
    late = diary(flawless(), line("plain", "work", "began", 9), line("plain", "work", "ended", 9), without="plain")
    assert replace(late, lag=2.0).problems() == []
    assert replace(late, lag=1.0).problems()


def test_two_at_once_are_excused_only_where_the_node_itself_had_trouble() -> None:
    both = diary(
        flawless(),
        line("first", "one", "began", 0.5, node="b", pid=78),
        line("first", "one", "ended", 1.5, node="b", pid=78),
    )
    begin = T0.timestamp()
    assert replace(both, troubles=[Trouble("stop", "b", begin, begin + 1)]).problems() == []
    assert replace(both, troubles=[Trouble("stop", "c", begin, begin + 1)]).problems()
