"""How far a migration has come, and what is not as it should be."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ..scheduler import DuetimeScheduler
from .places import open_places
from .sources import open_source

_PAGE = 2_000


@dataclass(slots=True)
class Standing:
    """How a migration stands.

    :ivar counts: rows of ``duetime.v3_migrated`` by state
    :ivar left_in_v3: rows that v3's table has
    :ivar under_way: rows that an interrupted run has left between two steps
    :ivar added_again: jobs that were carried over, and that v3's application has added again
    :ivar other_sources: tables from which rows were carried over, too
    """

    source: str
    counts: dict[str, int] = field(default_factory=dict)
    left_in_v3: int = 0
    under_way: int = 0
    added_again: list[str] = field(default_factory=list)
    other_sources: list[str] = field(default_factory=list)

    @property
    def is_complete(self) -> bool:
        """Whether v3's table is empty and nothing is under way."""
        return not (self.left_in_v3 or self.under_way or self.added_again)

    def record(self) -> dict[str, Any]:
        """Return it as JSON."""
        return {
            "source": self.source,
            "complete": self.is_complete,
            "counts": dict(sorted(self.counts.items())),
            "left_in_v3": self.left_in_v3,
            "under_way": self.under_way,
            "added_again": self.added_again,
            "other_sources": self.other_sources,
        }


async def status(url: str, scheduler: DuetimeScheduler, *, table: str = "apscheduler_jobs") -> Standing:
    """Return how the migration from a table stands; changes nothing.

    :raises NotAV3Table: if the table is not v3's
    :raises SourceUnavailable: if v3's database does not answer
    """
    async with open_source(url, table=table) as source:
        await source.check()
    async with open_places(url, scheduler, table, exclusive=False) as places:
        standing = Standing(places.table.source)
        standing.counts = {row["state"]: row["rows"] for row in await places.fetch("counts")}
        standing.under_way = sum(
            count for state, count in standing.counts.items() if state not in ("done", "returned", "left")
        )
        standing.left_in_v3 = await places.table.count()
        async with places.connection() as connection:
            sources = [row["source"] for row in await places.migrated.plain(connection, "sources")]
        standing.other_sources = [each for each in sources if each != standing.source]
        after = ""
        while standing.left_in_v3 and (page := await places.fetch("done_ids", after, _PAGE)):
            after = page[-1]["id"]
            standing.added_again += sorted(await places.table.present([row["id"] for row in page]))
        return standing
