"""How fast do one-offs run that are all due at one instant?"""

from __future__ import annotations

from collections.abc import Iterator

from ..lab import Case, Figures, Lab
from ..scale import Scale
from . import firing, peers

QUESTION = "How fast do 1,000, 5,000, 10,000 one-offs run that are due at one instant?"
HOW = (
    "stored beforehand by another process; 'ran' counts until the last job's function ran, 'ran and recorded' "
    "until the database held none that has not ended"
)


def cases(scale: Scale) -> Iterator[Case]:
    """Yield what is measured."""
    for size in scale.bursts:
        yield from peers.everybody(f"{size:,} one-offs", size=size)


async def measure(lab: Lab, case: Case) -> Figures:
    """Measure one case."""
    fired = await firing.fire(lab, case, [0.0] * case.size)
    fired.check()
    return fired.rates() | fired.latenesses(0.5, 0.99)
