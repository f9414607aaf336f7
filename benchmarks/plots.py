"""Pictures of the results."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .results import OVER_TIME, Row

STARTUP = (
    ("/health/live", "first answer, s"),
    ("ready", "ready, s"),
    ("longest stall", "longest stall of the loop, ms"),
)
GROWTH = ("burst", "add", "start-up", "page of 50", "memory")


def draw(rows: Sequence[Row], directory: Path) -> Iterator[Path]:
    """Write a PNG for start-up, lateness over time and growth, of those that were measured, and yield their paths."""
    directory.mkdir(parents=True, exist_ok=True)
    pictures: tuple[tuple[str, Callable[[Sequence[Row], Path], None]], ...] = (
        ("startup", draw_startup),
        ("steady", draw_lateness),
        ("growth", draw_growth),
    )
    for benchmark, picture in pictures:
        chosen = [row for row in rows if row.benchmark == benchmark and row.median is not None]
        if chosen:
            path = directory / f"{benchmark}.png"
            picture(chosen, path)
            yield path


@contextmanager
def _drawing(path: Path, panels: int, width: float, height: float, **options: Any) -> Iterator[list[Any]]:
    """Give the panels of a picture, side by side, and write it at the end of the block."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    drawing, axes = pyplot.subplots(1, panels, figsize=(width, height), layout="constrained", squeeze=False, **options)
    try:
        yield list(axes[0])
        drawing.savefig(path, dpi=120)
    finally:
        pyplot.close(drawing)


def draw_startup(rows: Sequence[Row], path: Path) -> None:
    """Draw bars of what starting does, a group for each peer and a bar for each distance, on logarithmic axes."""
    rows = [row for row in rows if row.median is not None]
    names = list(dict.fromkeys(row.peer for row in rows))
    distances = list(dict.fromkeys(row.variant for row in rows))
    height = 0.8 / len(distances)
    with _drawing(path, len(STARTUP), 11, 1.5 + 0.3 * len(names), sharey=True) as panels:
        for panel, (figure, title) in zip(panels, STARTUP, strict=True):
            for i, distance in enumerate(distances):
                own = {row.peer: row for row in rows if (row.figure, row.variant) == (figure, distance)}
                places = [names.index(name) + (i - (len(distances) - 1) / 2) * height for name in own]
                panel.barh(
                    places,
                    [row.median for row in own.values()],
                    height,
                    label=distance,
                    xerr=_spread(list(own.values())),
                    capsize=2,
                )
            panel.set_xscale("log")
            panel.set_title(title, fontsize="medium")
            panel.grid(axis="x", alpha=0.3)
        panels[0].set_yticks(range(len(names)), names)
        panels[0].invert_yaxis()
        panels[-1].legend(fontsize="small")


def _spread(rows: Sequence[Row]) -> list[list[float]]:
    """Return how far the least and the greatest value are from the median."""
    known = [(row.median, row.values) for row in rows if row.median is not None]
    return [[median - min(values) for median, values in known], [max(values) - median for median, values in known]]


def draw_lateness(rows: Sequence[Row], path: Path) -> None:
    """Draw how late fires were in each second: half of them (a line) and the latest (a thin one)."""
    variants = list(dict.fromkeys(row.variant for row in rows))
    names = list(dict.fromkeys(row.peer for row in rows))
    with _drawing(path, len(variants), 1 + 4.5 * len(variants), 5, sharey=True) as panels:
        for panel, variant in zip(panels, variants, strict=True):
            for i, name in enumerate(names):
                for figure, style in (("lateness p50", {"linewidth": 2}), ("lateness max", {"linewidth": 0.7})):
                    for row in rows:
                        if (row.peer, row.variant, row.figure) == (name, variant, figure + OVER_TIME):
                            label = name if figure == "lateness p50" else None
                            panel.plot(range(len(row.values)), row.values, color=f"C{i}", label=label, **style)
            panel.set_yscale("symlog", linthresh=1)  # clocks may differ by less, so a fire may seem early
            panel.set_title(variant)
            panel.set_xlabel("second since the first instant")
            panel.grid(alpha=0.3)
            panel.legend(fontsize="small", ncols=2)
        panels[0].set_ylabel("lateness, ms: median (thick), greatest (thin)")


def draw_growth(rows: Sequence[Row], path: Path) -> None:
    """Draw each figure beside many other schedules, as a ratio to the empty store."""
    figures = [name for name in GROWTH if any(row.figure == f"{name}, ratio" for row in rows)]
    variants = list(dict.fromkeys(row.variant for row in rows))
    with _drawing(path, len(figures), 1 + 3 * len(figures), 4) as panels:
        for panel, figure in zip(panels, figures, strict=True):
            for name in dict.fromkeys(row.peer for row in rows):
                own = {row.variant: row for row in rows if (row.peer, row.figure) == (name, f"{figure}, ratio")}
                places = [variants.index(variant) for variant in own]
                panel.errorbar(
                    places,
                    [row.median for row in own.values()],
                    yerr=_spread(list(own.values())),
                    marker="o",
                    capsize=2,
                    label=name,
                )
            panel.axhline(1, color="grey", linewidth=0.7)
            panel.set_yscale("log")
            least, most = panel.get_ylim()
            panel.set_ylim(min(least, 0.5), max(most, 2.0))  # so that a few percents don't look like much
            panel.set_xticks(range(len(variants)), [variant.removesuffix(" others") for variant in variants])
            panel.set_xlabel("other schedules")
            unit = next(row.unit for row in rows if row.figure == figure)
            panel.set_title(f"{figure} ({unit}), × empty store", fontsize="medium")
        panels[-1].legend(fontsize="small")
