"""Runs benchmarks: repeats interleaved over the peers, a failure ends in its row and nowhere else."""

from __future__ import annotations

import asyncio
import statistics
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from types import ModuleType

from .errors import NotMeasurable, PeerFailed
from .lab import Case, Figures, FiguresOverTime, Lab
from .results import FAILED, OVER_TIME, Row

BENCHMARKS = ("startup", "add", "burst", "steady", "idle", "growth", "nodes", "cost", "kill")

CASE_TIMEOUT = 420.0
"""Seconds after which one measurement of one peer counts as hanging."""


def module_of(name: str) -> ModuleType:
    """Return the module of a benchmark."""
    return import_module(f"benchmarks.suite.{name}")


@dataclass
class Part:
    """One benchmark of a run, and what became of its cases."""

    name: str
    module: ModuleType
    cases: list[Case]
    found: dict[Case, list[Figures]] = field(default_factory=dict)
    failed: dict[Case, str] = field(default_factory=dict)

    @property
    def counts(self) -> bool:
        """Whether it counts what does not depend on speed, so that all of it may go on at once."""
        return getattr(self.module, "TOGETHER", False)


async def run(lab: Lab, names: Sequence[str], peers: Iterable[str] | None = None) -> list[Row]:
    """Run the benchmarks and return their rows.

    :param peers: only these; None: all that need no Redis
    """
    wanted = None if peers is None else set(peers)
    parts = []
    for name in names:
        module = module_of(name)
        cases = [
            case for case in module.cases(lab.scale) if (not case.on_redis if wanted is None else case.peer in wanted)
        ]
        parts.append(Part(name, module, cases, {case: [] for case in cases}))
    await _run_together(lab, [part for part in parts if part.counts])
    for part in parts:
        if not part.counts:
            await _run_in_turn(lab, part)
    return [row for part in parts for row in _rows(part.name, part.module, part.cases, part.found, part.failed)]


async def _run_together(lab: Lab, parts: Sequence[Part]) -> None:
    waiting = [(part, case) for part in parts for case in part.cases]
    outcomes = await asyncio.gather(*(_measure(lab, part.name, part.module, case) for part, case in waiting))
    for (part, case), outcome in zip(waiting, outcomes, strict=True):
        _keep(case, outcome, part.found, part.failed)


async def _run_in_turn(lab: Lab, part: Part) -> None:
    # Interleaved: each repeat goes through all peers, so that a slow minute of the machine hits them alike.
    # Every other one backwards, so that none is always the first.
    for repeat in range(lab.scale.repeats):
        for case in part.cases if repeat % 2 == 0 else reversed(part.cases):
            if case not in part.failed:
                _keep(case, await _measure(lab, part.name, part.module, case), part.found, part.failed)


def _keep(case: Case, outcome: Figures | str, found: dict[Case, list[Figures]], failed: dict[Case, str]) -> None:
    if isinstance(outcome, str):
        failed[case] = outcome
    else:
        found[case].append(outcome)


async def _measure(lab: Lab, name: str, module: ModuleType, case: Case) -> Figures | str:
    """Return what was measured, or the reason why nothing was."""
    began = time.monotonic()
    outcome: Figures | str
    try:
        outcome = await asyncio.wait_for(module.measure(lab, case), CASE_TIMEOUT)
    except NotMeasurable as exc:
        outcome = f"not measured: {exc}"
    except PeerFailed as exc:
        outcome = f"failed: {exc}"
    except TimeoutError:
        outcome = f"failed: it hangs, not done after {CASE_TIMEOUT:g} s"
    except Exception as exc:  # one peer's trouble is no reason to lose the others' figures
        outcome = f"failed: {type(exc).__name__}: {exc}"
    said = outcome if isinstance(outcome, str) else "done"
    print(
        f"{name}, {case.variant or 'once'}, {case.name}: {said} ({time.monotonic() - began:.1f} s)",
        file=sys.stderr,
        flush=True,
    )
    return outcome


def _rows(
    name: str, module: ModuleType, cases: Iterable[Case], found: dict[Case, list[Figures]], failed: dict[Case, str]
) -> list[Row]:
    rows = []
    for case in cases:
        taken = found[case]
        note = module.HOW
        if case in failed:
            reason = failed[case] + (
                f" (in repeat {len(taken) + 1}; the values before that are given)" if taken else ""
            )
            rows.append(Row(name, case.name, case.variant, FAILED, "", None, [], reason))
        for figure in taken[0] if taken else ():
            values = [figures[figure][0] for figures in taken if figure in figures]
            rows.append(Row.of(name, case.name, case.variant, figure, taken[0][figure][1], values, note))
        rows += _over_time(name, case, [figures for figures in taken if isinstance(figures, FiguresOverTime)], note)
    return rows


def _over_time(name: str, case: Case, taken: Sequence[FiguresOverTime], note: str) -> Iterator[Row]:
    for figure, (_, unit) in taken[0].series.items() if taken else ():
        seconds = zip(*(figures.series[figure][0] for figures in taken), strict=True)
        values = [statistics.median(repeats) for repeats in seconds]
        how = f"{note}; one value for each second since the first instant, the median of {len(taken)} repeat(s)"
        yield Row.of(name, case.name, case.variant, figure + OVER_TIME, unit, values, how)
