"""What has to be true after a storm, whatever it did; from the ledger, the tasks' diary and the account of troubles."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from ..nodes.desk import LIMITS
from .load import Planned
from .weather import Trouble

ROUNDING = 0.001
SLACK = 2.5
"""Seconds of lateness that a quiet machine may cost in fair weather."""
STEPS = 4
"""How often, from the claim of a schedule to the start of its job, something is sent or waited for."""

Line = Mapping[str, Any]


@dataclass(frozen=True)
class Evidence:
    """What is known after the storm.

    :ivar added: when each schedule had been added, by its id; in seconds since 1970
    :ivar ledger: the rows of ``fires``
    :ivar diary: what the tasks have written down
    :ivar lease: seconds
    :ivar lag: how many seconds late the process that carries the nodes' traffic was woken at the worst
    """

    planned: Sequence[Planned]
    added: Mapping[str, float]
    ledger: Sequence[Mapping[str, Any]]
    diary: Sequence[Line]
    troubles: Sequence[Trouble]
    lease: float
    lag: float = 0

    def problems(self) -> list[str]:
        """Return everything that should not be so, in words."""
        return [*self._ledger_problems(), *self._run_problems(), *self._limit_problems(), *self._late_problems()]

    def _ledger_problems(self) -> Iterable[str]:
        """Every due fire has exactly one row, and no other fire has one."""
        found: dict[str, list[datetime]] = defaultdict(list)
        for row in self.ledger:
            found[row["schedule_id"]].append(row["fire_time"])
        for planned in self.planned:
            rows = Counter(found.pop(planned.schedule.id, []))
            for fire_time in planned.fires - rows.keys():
                yield f"{planned.schedule.id}: its fire of {fire_time} is not in the ledger"
            for fire_time in rows.keys() - planned.fires:
                yield f"{planned.schedule.id}: the ledger has a fire of {fire_time}, which was never due"
            for fire_time, times in rows.items():
                if times > 1:
                    yield f"{planned.schedule.id}: its fire of {fire_time} is in the ledger {times} times"
        yield from (f"{schedule_id}: in the ledger, but nobody's" for schedule_id in found)

    def _run_problems(self) -> Iterable[str]:
        """A fire that is said to have run ran; what may run once ran once; the others did not run at all."""
        began = Counter(_fire(line) for line in self.diary if line["what"] == "began")
        ended = Counter(_fire(line) for line in self.diary if line["what"] == "ended")
        plans = {planned.schedule.id: planned for planned in self.planned}
        for row in self.ledger:
            planned = plans.get(row["schedule_id"])
            if planned is None:
                continue
            fire, state = (row["schedule_id"], row["fire_time"].timestamp()), row["state"]
            what = f"{row['schedule_id']}: its fire of {row['fire_time']} is {state} ({row['reason']})"
            if state not in _possible_states(planned):
                yield f"{what}, which it cannot be"
            if state == "succeeded" and not ended[fire]:
                yield f"{what}, and never ended"
            if state in ("skipped", "coalesced") and began[fire]:
                yield f"{what}, and began {began[fire]} times"
            if planned.task == "once" and began[fire] > 1:
                yield f"{what}, and began {began[fire]} times instead of once"
            if planned.task == "once" and state == "missed" and began[fire]:
                yield f"{what}, and began"
            began.pop(fire, None)
        yield from (f"{fire} began {times} times, and is not in the ledger" for fire, times in began.items())

    def _limit_problems(self) -> Iterable[str]:
        """Never more jobs of a limited task at once than it may have, of those whose node had no trouble.

        A node that is stopped or cut off for longer than its lease goes on with what it had begun, when the place is
        somebody else's already: that cannot be helped, and the leases themselves are watched during the storm.
        """
        for task, most in LIMITS.items():
            events = []
            for begin, end, node in self._runs(task):
                if not any(self._touches(trouble, node, begin, end) for trouble in self.troubles):
                    events += [(begin, 1), (end - ROUNDING, -1)]
            running = 0
            for at, change in sorted(events):
                running += change
                if running > most:
                    yield f"{running} jobs of {task!r} ran at once at {at}, and it may have {most}"

    def _runs(self, task: str) -> Iterable[tuple[float, float, str]]:
        begun: dict[tuple[str, int], float] = {}
        for line in self.diary:
            if line.get("task") == task:
                key = (line["job"], line["pid"])
                if line["what"] == "began":
                    begun[key] = line["at"]
                elif key in begun:
                    yield begun.pop(key), line["at"], line["node"]

    def _touches(self, trouble: Trouble, node: str, begin: float, end: float) -> bool:
        return trouble.node in (None, node) and trouble.begin - self.lease < end and begin < trouble.end + self.lease

    def _late_problems(self) -> Iterable[str]:
        """Nothing begins later than trouble, the leases that it left behind and a busy machine explain."""
        first: dict[tuple[str, float], Line] = {}
        for line in self.diary:
            if line["what"] == "began" and line["task"] not in LIMITS:
                first.setdefault(_fire(line), line)
        # After a trouble a lease has to end, and a node may need a second to find out that its connection is back.
        clouds = _joined((trouble.begin, trouble.end + self.lease + 1) for trouble in self.troubles)
        for fire, line in first.items():
            if fire[0] not in self.added:
                continue  # a problem of its own, which the ledger shows
            due, at = max(line["due"], self.added[fire[0]]), line["at"]
            clouded = sum(max(0.0, min(end, at) - max(begin, due)) for begin, end in clouds)
            if at - due - clouded > SLACK + STEPS * self.lag:
                moment = datetime.fromtimestamp(due, UTC).time()
                yield f"{fire[0]}: due at {moment}, {at - due:.1f} s late, of which trouble explains {clouded:.1f}"
            if at < line["due"] - 0.1 - self.lag:
                yield f"{fire[0]}: began {line['due'] - at:.3f} s before it was due"


def _fire(line: Line) -> tuple[str, float]:
    """Return the key of a line's fire, to the microsecond: an OrTrigger may have two fires within a millisecond."""
    return line["schedule"], line["fire_time"]


def _possible_states(planned: Planned) -> set[str]:
    states = {"succeeded"}
    if planned.may_miss:
        states.add("missed")
    if planned.may_coalesce:
        states.add("coalesced")
    if planned.task == "alone":
        states.add("skipped")
    if planned.task == "once":
        states |= {"abandoned", "cancelled"}
    if planned.task == "unlucky":
        states.add("failed")  # attempts that a crash has ended count as well
    return states


def _joined(spans: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    joined: list[tuple[float, float]] = []
    for begin, end in sorted(spans):
        if joined and begin <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(end, joined[-1][1]))
        else:
            joined.append((begin, end))
    return joined
