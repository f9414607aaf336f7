"""Where the benchmarks keep what they make: all of it under ``.bench/`` in the repository, which git ignores."""

from __future__ import annotations

import fcntl
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
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


@contextmanager
def own_directory(kind: str) -> Iterator[Path]:
    """Make a server's data directory for the length of the block, and remove those of runs that were killed."""
    for left in CACHE.glob(f"{kind}-*.lock"):
        with left.open() as lock, suppress(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(left.with_suffix(""), ignore_errors=True)
            left.unlink(missing_ok=True)
    directory = Path(tempfile.mkdtemp(prefix=f"{kind}-", dir=cache(kind).parent))
    note = directory.with_suffix(".lock")
    try:
        with note.open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)
        note.unlink(missing_ok=True)
