"""Pictures of the results."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from .results import Row


def draw(rows: Sequence[Row], directory: Path) -> Iterator[Path]:
    """Write a PNG for start-up, lateness and growth, of those that were measured, and yield their paths."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    directory.mkdir(parents=True, exist_ok=True)
    pictures = (
        ("startup", "ready", "seconds until ready, 20 schedules registered"),
        ("steady", "lateness p99", "lateness p99, ms"),
        ("growth", "burst, ratio", "burst beside many schedules, × empty store"),
    )
    for benchmark, figure, title in pictures:
        chosen = [row for row in rows if (row.benchmark, row.figure) == (benchmark, figure) and row.median is not None]
        if not chosen:
            continue
        drawing, axes = pyplot.subplots(figsize=(9, 4.5), layout="constrained")
        _bars(axes, chosen)
        axes.set_title(title)
        if benchmark != "growth":
            axes.set_yscale("log")
        path = directory / f"{benchmark}.png"
        drawing.savefig(path, dpi=120)
        pyplot.close(drawing)
        yield path


def _bars(axes: Any, rows: Sequence[Row]) -> None:
    variants = list(dict.fromkeys(row.variant for row in rows))
    peers = list(dict.fromkeys(row.peer for row in rows))
    width = 0.8 / len(peers)
    for i, peer in enumerate(peers):
        own = {row.variant: row for row in rows if row.peer == peer}
        places = [variants.index(variant) + (i - (len(peers) - 1) / 2) * width for variant in own]
        heights = [row.median for row in own.values()]
        spread = [
            [row.median - min(row.values) for row in own.values() if row.median is not None],
            [max(row.values) - row.median for row in own.values() if row.median is not None],
        ]
        axes.bar(places, heights, width, label=peer, yerr=spread, capsize=2)
    axes.set_xticks(range(len(variants)), variants)
    axes.legend(fontsize="small", ncols=2)
