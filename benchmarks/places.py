"""Where the benchmarks keep what they make: all of it under ``.bench/`` in the repository, which git ignores."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CACHE = ROOT / ".bench"
PEERS = Path(__file__).resolve().parent / "peers"


def cache(*parts: str) -> Path:
    """Return a place in the cache, its parent made."""
    place = CACHE.joinpath(*parts)
    place.parent.mkdir(parents=True, exist_ok=True)
    ignore = CACHE / ".gitignore"
    if not ignore.exists():
        ignore.write_text("*\n")
    return place
