"""What the figures were measured on."""

from __future__ import annotations

import os
import platform
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from .lab import Lab


def load() -> float:
    """Return how many processes wanted to run, on average over the last minute."""
    return round(os.getloadavg()[0], 2)


def processor() -> str:
    """Return the processor's name, as the kernel says it."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


async def environment(lab: Lab, began: datetime, load_before: float) -> dict[str, Any]:
    """Return the machine, the versions and the server's settings."""
    import psutil

    return {
        "began": began.isoformat(timespec="seconds"),
        "ended": datetime.now(UTC).isoformat(timespec="seconds"),
        "form": lab.scale.name,
        "repeats": lab.scale.repeats,
        "machine": {
            "system": f"{platform.system()} {platform.release()}",
            "processor": processor(),
            "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
            "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
            "load_before": load_before,
        },
        "python": platform.python_version(),
        "event_loop": "asyncio (no uvloop), for every peer",
        "postgresql": await lab.server.settings(),
        **({} if lab.redis_or_none is None else {"redis": await lab.redis_or_none.settings()}),
        "peers": dict(sorted(lab.versions.items())),
    }
