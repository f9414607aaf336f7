"""The start-up table and its picture, as the README shows them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from . import document, plots
from .results import FAILED, Row, cell
from .suite.peers import distance

BEGIN = "<!-- start-up: written by `python -m benchmarks startup --readme README.md`, not by hand -->"
END = "<!-- end of start-up -->"

PICTURE = Path("docs", "startup.png")

SHOWN = ("/health/live", "ready", "round trips", "longest stall")
DISTANCES = tuple(distance(rtt) for rtt in (0, 0.07))


def put_into(path: Path, rows: Sequence[Row], environment: dict[str, Any]) -> Path:
    """Replace what is between the markers of a README; draw the picture beside it and return its path.

    :raises ValueError: if the file does not have both markers, or start-up was not measured at both distances
    """
    chosen = [row for row in rows if row.benchmark == "startup" and row.variant in DISTANCES]
    missing = [each for each in DISTANCES if not any(row.variant == each and row.figure != FAILED for row in chosen)]
    if missing:
        raise ValueError(f"expected start-up figures at {' and '.join(DISTANCES)}, got none at {' and '.join(missing)}")
    text = f"{table(chosen)}\n\n![Start-up, side by side]({PICTURE.as_posix()})\n\n{about(environment)}"
    document.put_between(path, BEGIN, END, text)
    picture = path.parent / PICTURE
    plots.draw_startup(chosen, picture)
    return picture


def table(rows: Sequence[Row]) -> str:
    """Return one line for each peer: every figure at both distances, or why there are none."""
    names = list(dict.fromkeys(row.peer for row in rows))
    found = {(row.peer, row.variant, row.figure): row for row in rows}
    units = {row.figure: row.unit for row in rows}
    columns = [(figure, each) for figure in SHOWN for each in DISTANCES]
    headers = [f"{figure}{f', {units[figure]}' if units.get(figure) else ''}: {each}" for figure, each in columns]
    lines = [f"|  | {' | '.join(headers)} |", "|---" + "|--:" * len(columns) + "|"]
    for name in names:
        cells = [cell(found[name, each, figure]) if (name, each, figure) in found else "–" for figure, each in columns]
        if any(text != "–" for text in cells):
            lines.append(f"| {name} | {' | '.join(cells)} |")
    reasons = [f"- {row.peer}, {row.variant}: {' '.join(row.note.split())}" for row in rows if row.figure == FAILED]
    return "\n".join([*lines, *([""] if reasons else []), *reasons])


def about(environment: dict[str, Any]) -> str:
    """Return what was measured on, in one sentence."""
    machine = environment["machine"]
    return (
        f"Median (least–greatest) of {environment['repeats']}, measured on {environment['began'][:10]} on "
        f"{machine['cores']} cores of {machine['processor']} with PostgreSQL "
        f"{environment['postgresql']['server_version']}."
    )
