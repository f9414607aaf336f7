"""Do several processes on one store help or hinder each other?"""

from __future__ import annotations

from collections.abc import Iterator

from ..errors import NotMeasurable
from ..lab import Case, Figures, Lab
from ..scale import Scale
from . import firing, peers

QUESTION = "1, 2, 4 processes on one store"
HOW = "a burst as in `burst`; doubles are one-offs whose function ran more than once"


def cases(scale: Scale) -> Iterator[Case]:
    """Yield what is measured."""
    for number in scale.nodes:
        for case in peers.everybody(f"{number} process{'' if number == 1 else 'es'}", size=number):
            if scale.queues or case.on_redis or case.peer in ("duetime", "apscheduler4", "pgqueuer"):
                yield case


async def measure(lab: Lab, case: Case) -> Figures:
    """Measure one case."""
    if case.peer == "apscheduler3" and case.size > 1:
        raise NotMeasurable("its documentation rules out several schedulers on one job store")
    fired = await firing.fire(lab, case, [0.0] * lab.scale.node_jobs, workers=case.size)
    fired.check()
    doubles = len(fired.runs) - len(fired.lateness)
    return fired.rates() | fired.latenesses(0.5, 0.99) | {"doubles": (doubles, "")}
