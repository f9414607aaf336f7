"""Runs benchmarks: repeats interleaved over the peers, a failure ends in its row and nowhere else."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Iterable, Sequence
from importlib import import_module
from types import ModuleType

from .errors import NotMeasurable, PeerFailed
from .lab import Case, Figures, Lab
from .results import FAILED, Row

BENCHMARKS = ("startup", "add", "burst", "steady", "idle", "growth", "nodes", "cost")

CASE_TIMEOUT = 420.0
"""Seconds after which one measurement of one peer counts as hanging."""


def module_of(name: str) -> ModuleType:
    """Return the module of a benchmark."""
    return import_module(f"benchmarks.suite.{name}")


async def run(lab: Lab, names: Sequence[str], peers: Iterable[str] | None = None) -> list[Row]:
    """Run the benchmarks and return their rows.

    :param peers: only these; None: all
    """
    wanted = None if peers is None else set(peers)
    rows: list[Row] = []
    for name in names:
        module = module_of(name)
        cases = [case for case in module.cases(lab.scale) if wanted is None or case.peer in wanted]
        repeats = 1 if getattr(module, "TOGETHER", False) else lab.scale.repeats
        found: dict[Case, list[Figures]] = {case: [] for case in cases}
        failed: dict[Case, str] = {}
        for repeat in range(repeats):
            if getattr(module, "TOGETHER", False):
                outcomes = await asyncio.gather(*(_measure(lab, name, module, case) for case in cases))
                for case, outcome in zip(cases, outcomes, strict=True):
                    _keep(case, outcome, found, failed)
                continue
            # Interleaved: each repeat goes through all peers, so that a slow minute of the machine hits them alike.
            # Every other one backwards, so that none is always the first.
            for case in cases if repeat % 2 == 0 else reversed(cases):
                if case not in failed:
                    _keep(case, await _measure(lab, name, module, case), found, failed)
        rows += _rows(name, module, cases, found, failed)
    return rows


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
    return rows
