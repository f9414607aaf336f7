"""Figures: what was measured, how often, with which spread."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass
class Row:
    """One figure of one peer in one variant.

    :ivar median: None where nothing was measured; ``note`` then says why
    :ivar values: one for each repeat, in the order they were taken
    :ivar note: how it was got, or why there is none
    """

    benchmark: str
    peer: str
    variant: str
    figure: str
    unit: str
    median: float | None
    values: list[float] = field(default_factory=list)
    note: str = ""

    @classmethod
    def of(
        cls, benchmark: str, peer: str, variant: str, figure: str, unit: str, values: Sequence[float], note: str
    ) -> Row:
        """Return the row of these values."""
        rounded = [float(f"{value:.6g}") for value in values]
        return cls(benchmark, peer, variant, figure, unit, statistics.median(rounded), rounded, note)

    def as_json(self) -> dict[str, Any]:
        """Return the row as it is written to JSON."""
        return asdict(self)


FAILED = "failed"
"""The figure of a row that says why there are no others."""


def quantile(values: Sequence[float], share: float) -> float:
    """Return the value below which that share of the values lies (nearest rank).

    :raises ValueError: if there are none
    """
    if not values:
        raise ValueError("expected values, got none")
    ranked = sorted(values)
    return ranked[min(len(ranked) - 1, int(share * len(ranked)))]


def shown(value: float | None) -> str:
    """Return a number with three significant digits, as tables show it."""
    if value is None:
        return "–"
    if value and abs(value) < 0.001:
        return f"{value:.1g}"
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def cell(row: Row) -> str:
    """Return the median and, where there are several values, the least and the greatest."""
    if row.median is None or len(row.values) < 2:
        return shown(row.median)
    return f"{shown(row.median)} ({shown(min(row.values))}–{shown(max(row.values))})"


def pivot(rows: Iterable[Row]) -> list[tuple[str, list[str], list[list[str]]]]:
    """Return one table for each benchmark and variant: its title, the header, and a line for each peer."""
    tables: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        tables.setdefault((row.benchmark, row.variant), []).append(row)
    found = []
    for (benchmark, variant), members in tables.items():
        figures = list(dict.fromkeys((row.figure, row.unit) for row in members if row.figure != FAILED))
        peers = list(dict.fromkeys(row.peer for row in members))
        lines = []
        for peer in peers:
            own = {row.figure: row for row in members if row.peer == peer}
            if FAILED in own:
                lines.append([peer, f"failed: {own[FAILED].note}", *[""] * (len(figures) - 1)])
            else:
                lines.append([peer, *(cell(own[figure]) if figure in own else "–" for figure, _ in figures)])
        header = ["", *(f"{figure}, {unit}" if unit else figure for figure, unit in figures)]
        found.append(
            (f"{benchmark}, {variant}" if variant else benchmark, header if len(header) > 1 else ["", ""], lines)
        )
    return found


def as_text(rows: Iterable[Row]) -> str:
    """Return the tables for a terminal."""
    parts = []
    for title, header, lines in pivot(rows):
        failed = [line for line in lines if len(line) > 1 and line[1].startswith("failed: ")]
        whole = [header, *(line for line in lines if line not in failed)]
        widths = [max(len(line[column]) for line in whole) for column in range(len(header))]
        text = [
            "  ".join(
                part.rjust(width) if i else part.ljust(width)
                for i, (part, width) in enumerate(zip(line, widths, strict=True))
            )
            for line in whole
        ]
        parts.append("\n".join([f"== {title}", *text, *(f"{line[0]}  {line[1]}" for line in failed)]))
    return "\n\n".join(parts)


def as_markdown(rows: Iterable[Row]) -> str:
    """Return the tables for a document."""
    parts = []
    for title, header, lines in pivot(rows):
        text = [f"| {' | '.join(header)} |", "|---" + "|--:" * (len(header) - 1) + "|"]
        text += [f"| {' | '.join(part.replace('|', '/') for part in line)} |" for line in lines]
        parts.append(f"#### {title}\n\n" + "\n".join(text))
    return "\n\n".join(parts)
