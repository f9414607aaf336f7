"""What does one fire cost the database?"""

from __future__ import annotations

from collections.abc import Iterator

from ..lab import Case, Figures, Lab
from ..scale import Scale
from . import firing, peers

QUESTION = "What does one fire cost the database?"
HOW = (
    "200 one-offs due at one instant, from the start of the worker until all are recorded; adding is not part "
    "of it. Statements are the messages Query and Execute; WAL is the server's (Redis: its "
    "append-only log); CPU is user and system time of the worker and of the server"
)
JOBS = 200


def cases(scale: Scale) -> Iterator[Case]:
    """Yield what is measured."""
    for case in peers.everybody(f"{JOBS} one-offs"):
        if scale.queues or case.peer not in ("dbos", "procrastinate", "chancy"):
            yield case


async def measure(lab: Lab, case: Case) -> Figures:
    """Measure one case."""
    fired = await firing.fire(lab, case, [0.0] * JOBS, counted=True)
    fired.check()
    figures: Figures = {
        "round trips": (fired.counts["round_trips"] / JOBS, "per job"),
        **({} if case.on_redis else {"statements": (fired.counts["statements"] / JOBS, "per job")}),
        "WAL": (fired.wal / JOBS, "bytes per job"),
        "worker's CPU": (fired.used * 1000 / JOBS, "ms per job"),
    }
    if fired.server_used is not None:
        figures["the server's CPU"] = (fired.server_used * 1000 / JOBS, "ms per job")
    return figures
