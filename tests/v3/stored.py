"""The rows that real releases of APScheduler 3 have stored, as ``generate.py`` wrote them."""

from __future__ import annotations

import base64
import json
import lzma
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache
from itertools import accumulate
from pathlib import Path
from typing import Any

from duetime.v3.model import V3Row

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Stored:
    """A row, who wrote it, what was asked for, and when the release that wrote it fires.

    :ivar release: such as ``3.6.3``
    :ivar python: such as ``2.7``
    :ivar asked: see ``application/write_rows.py``
    :ivar fires: starting point (UTC, or ``stored`` for the row's own next_run_time) → fire times, and how the list
        ended if it is shorter than 50: ``ended``, ``hangs`` or the name of an exception
    """

    release: str
    python: str
    row: V3Row
    asked: dict[str, Any]
    fires: dict[str, tuple[list[datetime], str | None]]

    @property
    def name(self) -> str:
        return f"{self.release} on {self.python}: {self.row.id}"


@cache
def stored_rows(release: str = "") -> tuple[Stored, ...]:
    """Return all rows, or those of the releases that begin with this."""
    return tuple(
        Stored(
            environment["release"],
            environment["python"],
            V3Row(entry["id"], entry["next_run_time"], base64.b64decode(entry["job_state"])),
            entry["asked"],
            {start: _fires(packed) for start, packed in entry.get("fires", {}).items()},
        )
        for path in sorted((Path(__file__).parent / "rows").glob(f"{release}*.json.xz"))
        for environment in json.loads(lzma.decompress(path.read_bytes()))
        for entry in environment["rows"]
    )


def _fires(packed: list[Any]) -> tuple[list[datetime], str | None]:
    end = packed[-1] if packed and isinstance(packed[-1], str) else None
    steps = packed[:-1] if end else packed
    return [EPOCH + timedelta(microseconds=instant) for instant in accumulate(steps)], end
