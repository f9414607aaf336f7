"""How late do one-offs run that come due evenly?"""

from __future__ import annotations

from collections.abc import Iterator

from ..lab import Case, Figures, FiguresOverTime, Lab
from ..scale import Scale
from . import firing, peers

QUESTION = "50 and 500 fires/s at known instants, at 0 and 70 ms"
HOW = (
    "one-offs at even distances, stored beforehand past the proxy; lateness is from the due instant to the "
    "function's start"
)


def cases(scale: Scale) -> Iterator[Case]:
    """Yield what is measured."""
    for rate, seconds, rtt in scale.steady:
        for case in peers.everybody(f"{rate}/s, {peers.distance(rtt)}", rtt=rtt, size=rate, seconds=seconds):
            # At a distance raw APScheduler 4 falls behind for longer than the short form takes as a whole.
            if (
                scale.queues
                or case.on_redis
                or case.peer in ("floor", "duetime", "pgqueuer")
                or (case.peer.startswith("ap") and not rtt)
            ):
                yield case


async def measure(lab: Lab, case: Case) -> Figures:
    """Measure one case."""
    number = int(case.size * case.seconds)
    fired = await firing.fire(lab, case, [i / case.size for i in range(number)])
    fired.check()
    return FiguresOverTime(fired.latenesses(0.5, 0.99), fired.over_time(int(case.seconds)))
