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
    :ivar values: one for each repeat, in the order they were taken; of a figure whose name ends in :data:`OVER_TIME`
        one for each second of the measurement
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


OVER_TIME = ", each second"
"""The end of the names of figures that have a value for each second; pictures show them, tables don't."""

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


@dataclass(frozen=True)
class Table:
    """One benchmark in one variant.

    :ivar lines: the peer, then a cell for each figure
    :ivar reasons: peer → why it has no line, or why its line is not whole
    """

    title: str
    header: list[str]
    lines: list[list[str]]
    reasons: dict[str, str]


def tables(rows: Iterable[Row]) -> list[Table]:
    """Return one table for each benchmark and variant."""
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        if not row.figure.endswith(OVER_TIME):
            groups.setdefault((row.benchmark, row.variant), []).append(row)
    found = []
    for (benchmark, variant), members in groups.items():
        figures = dict.fromkeys((row.figure, row.unit) for row in members if row.figure != FAILED)
        measured: dict[str, dict[str, Row]] = {}
        for row in members:
            if row.figure != FAILED:
                measured.setdefault(row.peer, {})[row.figure] = row
        found.append(
            Table(
                title=f"{benchmark}, {variant}" if variant else benchmark,
                header=["", *(f"{figure}, {unit}" if unit else figure for figure, unit in figures)],
                lines=[
                    [peer, *(cell(own[figure]) if figure in own else "–" for figure, _ in figures)]
                    for peer, own in measured.items()
                ],
                reasons={row.peer: row.note for row in members if row.figure == FAILED},
            )
        )
    return found


def as_text(rows: Iterable[Row]) -> str:
    """Return the tables for a terminal."""
    parts = []
    for table in tables(rows):
        lines = [table.header, *table.lines] if table.lines else []
        widths = [max(len(line[column]) for line in lines) for column in range(len(table.header))] if lines else []
        text = [f"== {table.title}"]
        for first, *cells in lines:
            aligned = [part.rjust(width) for part, width in zip(cells, widths[1:], strict=True)]
            text.append("  ".join([first.ljust(widths[0]), *aligned]))
        text += [f"{peer}: {reason}" for peer, reason in table.reasons.items()]
        parts.append("\n".join(text))
    return "\n\n".join(parts)


def as_markdown(rows: Iterable[Row]) -> str:
    """Return the tables for a document."""
    parts = []
    for table in tables(rows):
        text = [f"#### {table.title}", ""]
        if table.lines:
            text += [f"| {' | '.join(table.header)} |", "|---" + "|--:" * (len(table.header) - 1) + "|"]
            text += [f"| {' | '.join(line)} |" for line in table.lines]
        if table.lines and table.reasons:
            text.append("")
        text += [f"- {peer}: {' '.join(reason.split())}" for peer, reason in table.reasons.items()]
        parts.append("\n".join(text))
    return "\n\n".join(parts)
