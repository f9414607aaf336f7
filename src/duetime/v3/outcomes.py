"""What a cut-over, or going back, has come to: of each row, and in all."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

CARRIED = "carried"
"""The schedule is in Duetime, and the row is set aside."""

WOULD_CARRY = "would_carry"
"""It would be carried over (``--dry-run``)."""

RAN_IN_V3 = "ran_in_v3"
"""It was due for the last time meanwhile; v3 has run it and removed its row."""

REMOVED_IN_V3 = "removed_in_v3"
"""v3's application has removed it meanwhile."""

REVIEW, REJECT = "review", "reject"
"""The plan's verdicts; the row is v3's as before."""

DUE = "due"
"""v3 may be at work on it, and has not moved it on in time; the row is v3's as before."""

EXISTS = "exists"
"""A schedule has its id; the row is v3's as before."""

REFUSED = "refused"
"""The schedule cannot be stored; the row is v3's as before."""

RETURNED = "returned"
"""The row is in v3's table again, and the schedule is gone."""

WOULD_RETURN = "would_return"
"""It would go back (``--dry-run``)."""

FINISHED = "finished"
"""It has fired for the last time: there is nothing to go back to."""

REMOVED = "removed"
"""Its schedule was removed in Duetime: it is not brought back."""

CHANGED = "changed"
"""Its schedule was changed in Duetime, and stays there; or its row in v3, which is fired there."""

BUSY = "busy"
"""Its jobs have not ended in time; the schedule goes on as before."""

TAKEN = "taken"
"""v3's table has another row of that id; the schedule goes on as before."""

UNMOVABLE = "unmovable"
"""Its pickle cannot be given another time; the schedule goes on as before."""

ENDED = frozenset({CARRIED, WOULD_CARRY, RAN_IN_V3, REMOVED_IN_V3, RETURNED, WOULD_RETURN, FINISHED, REMOVED})
"""Outcomes after which nothing is left to do."""


@dataclass(frozen=True, slots=True)
class RowOutcome:
    """What became of a row.

    :ivar outcome: one of this module's words
    :ivar text: why, for whoever has to do something about it
    """

    id: str
    outcome: str
    schedule_id: str | None = None
    text: str = ""

    def record(self) -> dict[str, Any]:
        """Return it as JSON."""
        return {"id": self.id, "outcome": self.outcome, "schedule_id": self.schedule_id, "text": self.text}


@dataclass(slots=True)
class Result:
    """What a whole run has come to.

    :ivar source: the table, without user and password
    :ivar counts: rows by outcome
    :ivar rows: of each row what became of it
    :ivar in_flight: fires that v3 had begun, or was about to, by the id of their job: they are v3's, as ISO texts
    :ivar resumed: rows that an earlier run had begun, and this one has brought to their end
    :ivar notes: what else has to be known
    :ivar interrupted: why the run ended before its end
    :ivar seconds: how long writing took, planning aside
    """

    source: str
    dry_run: bool = False
    counts: Counter[str] = field(default_factory=Counter)
    rows: list[RowOutcome] = field(default_factory=list)
    in_flight: dict[str, list[str]] = field(default_factory=dict)
    resumed: int = 0
    notes: list[str] = field(default_factory=list)
    interrupted: str | None = None
    seconds: float = 0.0

    def add(self, outcome: RowOutcome) -> None:
        """Take note of a row."""
        self.counts[outcome.outcome] += 1
        self.rows.append(outcome)

    @property
    def is_complete(self) -> bool:
        """Whether nothing is left to do."""
        return self.interrupted is None and not self.counts.keys() - ENDED

    def record(self) -> dict[str, Any]:
        """Return it as JSON."""
        return {
            "source": self.source,
            "dry_run": self.dry_run,
            "complete": self.is_complete,
            "counts": dict(sorted(self.counts.items())),
            "in_flight": self.in_flight,
            "resumed": self.resumed,
            "seconds": round(self.seconds, 3),
            "notes": self.notes,
            "interrupted": self.interrupted,
            "rows": [row.record() for row in self.rows],
        }
