"""Who takes part in what."""

from __future__ import annotations

from collections.abc import Iterator

from ..lab import ON_REDIS, Case

FIRST = (("floor", ""), ("duetime", ""), ("apscheduler4", ""), ("pgqueuer", ""))
VERSION_3 = (("apscheduler3", "queuepool2"), ("apscheduler3", "nullpool"))
QUEUES = (("procrastinate", ""), ("dbos", ""), ("chancy", ""))

REDIS = tuple((peer, "") for peer in ON_REDIS)

NAMES = ("floor", "duetime", "apscheduler4", "apscheduler3", "pgqueuer", "procrastinate", "dbos", "chancy", *ON_REDIS)


def everybody(variant: str, *, rtt: float = 0.0, size: int = 0, seconds: float = 0.0) -> Iterator[Case]:
    """Yield a case for every peer, version 3 with the better of its pools; a run leaves out those it doesn't want."""
    for peer, store in (*FIRST, VERSION_3[0], *QUEUES, *REDIS):
        yield Case(peer, store, variant, rtt, size, seconds)


def distance(rtt: float) -> str:
    """Return how a round-trip time is named."""
    return f"{rtt * 1000:g} ms + TLS" if rtt else "0 ms"
