"""Going back to v3: rows as they were, with ``next_run_time`` moved to the first fire that Duetime has not made."""

from __future__ import annotations

import asyncio
import time
from calendar import timegm
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial

import asyncpg

from ..errors import SourceUnavailable, V3NotChangeable
from ..scheduler import DuetimeScheduler
from .cutover import BATCH, remove, undo
from .migrated import Migrated
from .model import V3Row
from .outcomes import (
    BUSY,
    CHANGED,
    FINISHED,
    REMOVED,
    RETURNED,
    TAKEN,
    UNMOVABLE,
    WOULD_RETURN,
    Result,
    RowOutcome,
)
from .patching import Unpatchable, moved
from .places import Places, open_places
from .sources import open_source

WAIT = 30.0
"""Seconds for which jobs that are queued or running are waited for."""

GOING_BACK = "it is going back to APScheduler 3"

_LOOK_EVERY = 0.1
_BEGUN = ("taking", "deleting")


@dataclass(frozen=True, slots=True)
class _Return:
    """A row on its way back.

    :ivar row: as it is put into v3's table
    """

    row: V3Row
    schedule_id: str


async def rollback(
    url: str,
    scheduler: DuetimeScheduler,
    *,
    table: str = "apscheduler_jobs",
    dry_run: bool = False,
    ids: Iterable[str] | None = None,
    batch: int = BATCH,
    wait: float = WAIT,
    progress: Callable[[int], None] = lambda _rows: None,
) -> Result:
    """Put the rows that were carried over into v3's table again, and remove their schedules.

    A row has the bytes that it had; only its ``next_run_time`` is moved, in the column and in the pickle, to the first
    fire that Duetime has not made. It may be interrupted at any point and called again. A v3 process that runs sees
    rows that come back at its next wake-up; start it afterwards, or call its ``wakeup()``.

    :param dry_run: change nothing, and say what would come of it
    :param ids: only these jobs of v3
    :param wait: seconds for which jobs that are queued or running are waited for; no new ones are made meanwhile
    :param progress: told how many rows more are settled
    :raises NotAV3Table: if the table is not v3's
    :raises SourceUnavailable: if v3's database does not answer
    :raises V3NotChangeable: if rows may not be put into it; nothing was changed
    :raises V3MigrationRunning: if another migration is at work
    """
    async with open_source(url, table=table) as source:
        await source.check()
    async with open_places(url, scheduler, table, exclusive=not dry_run) as places:
        if not dry_run:
            await places.table.check_changeable()
        result = Result(places.table.source, dry_run)
        run = _Rollback(places, result, wait, progress)
        try:
            if not dry_run:
                await run.resume()
            await run.go_back(None if ids is None else {*ids}, batch)
        except (V3NotChangeable, SourceUnavailable) as exc:
            result.interrupted = exc.message
        except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError) as exc:
            result.interrupted = f"{type(exc).__name__}: {exc}"
        return result


class _Rollback:
    def __init__(self, places: Places, result: Result, wait: float, progress: Callable[[int], None]) -> None:
        self._places, self.result, self._wait, self._progress = places, result, wait, progress

    @property
    def _migrated(self) -> Migrated:
        return self._places.migrated

    def _settle(self, row_id: str, outcome: str, schedule_id: str | None, text: str = "") -> None:
        self.result.add(RowOutcome(row_id, outcome, schedule_id, text))
        self._progress(1)

    # -- what an earlier run has begun --------------------------------------------------------------------------------

    async def resume(self) -> None:
        """Take back a cut-over that was begun, and bring to its end what was going back."""
        places, after = self._places, ""
        while found := await places.fetch("under_way", after, BATCH):
            after = found[-1]["id"]
            rows = {row["id"]: V3Row(row["id"], row["next_run_time"], row["job_state"]) for row in found}
            of = {state: [row["id"] for row in found if row["state"] == state] for state in {r["state"] for r in found}}
            self.result.resumed += len(found)
            taking = of.get("taking", [])
            await places.table.unpark([rows[each] for each in taking])
            await undo(places, taking)
            await remove(places, [rows[each] for each in of.get("deleting", [])])
            # Those that had not come to rest go on in Duetime, and have their turn below.
            await self._release(of.get("returning", []))
            noted = {
                row["id"]: _Return(
                    V3Row(row["id"], row["returned_next_run_time"], row["returned_job_state"]), row["schedule_id"]
                )
                for row in found
                if row["state"] in ("restoring", "unparking")
            }
            restored = await self._restore([noted[each] for each in of.get("restoring", [])])
            await self._release([each for each, (outcome, *_) in restored.items() if outcome == TAKEN])
            await self._unpark([noted[each] for each in of.get("unparking", [])])

    # -- batches ------------------------------------------------------------------------------------------------------

    async def go_back(self, ids: Collection[str] | None, batch: int) -> None:
        """Bring all rows back that can be."""
        after = ""
        while True:
            found = await self._places.fetch("page", after, batch, ["done"])
            if not found:
                return
            after = found[-1]["id"]
            rows = [row for row in found if ids is None or row["id"] in ids]
            began = time.monotonic()
            if self.result.dry_run:
                await self._say_what_would_be(rows)
            else:
                await self._places.again(partial(self._bring_back, rows))
            self.result.seconds += time.monotonic() - began

    async def _say_what_would_be(self, rows: Sequence[asyncpg.Record]) -> None:
        for row in await self._without_schedule(rows):
            if row["now_revision"] != row["revision"]:
                self._settle(row["id"], CHANGED, row["schedule_id"], _CHANGED)
            else:
                self._settle(row["id"], WOULD_RETURN, row["schedule_id"])

    async def _without_schedule(self, rows: Sequence[asyncpg.Record]) -> list[asyncpg.Record]:
        """Settle the rows whose schedules are gone, and return the others."""
        gone = [row for row in rows if not row["is_there"]]
        if gone:
            fired = {
                row["id"]: row["has_fired"] for row in await self._places.fetch("fired", [row["id"] for row in gone])
            }
            for row in gone:
                if fired[row["id"]]:
                    self._settle(row["id"], FINISHED, row["schedule_id"], _FINISHED)
                else:
                    self._settle(row["id"], REMOVED, row["schedule_id"], "its schedule was removed in Duetime")
        return [row for row in rows if row["is_there"]]

    async def _bring_back(self, rows: Sequence[asyncpg.Record], attempt: int) -> None:
        settled = {row.id for row in self.result.rows}
        if attempt:  # what an attempt without an answer has begun
            await self.resume()
            for row in await self._places.fetch("known", [row["id"] for row in rows]):
                if row["state"] == "returned" and row["id"] not in settled:
                    settled.add(row["id"])
                    self._settle(row["id"], RETURNED, row["schedule_id"])
        rows = await self._without_schedule([row for row in rows if row["id"] not in settled])
        there = await self._places.table.present([row["id"] for row in rows])
        wanted = []
        for row in rows:
            if row["id"] in there:
                self._settle(row["id"], TAKEN, row["schedule_id"], _TAKEN)
            else:
                wanted.append(row)
        schedules = {row["id"]: row["schedule_id"] for row in wanted}
        held = {row["id"] for row in await self._places.fetch("hold", [*schedules], GOING_BACK)}
        for row_id in sorted(schedules.keys() - held):
            self._settle(row_id, CHANGED, schedules[row_id], _CHANGED)
        resting, ends = set(held), time.monotonic() + self._wait
        while resting:
            resting -= await self._return_idle(sorted(resting))
            if not resting or time.monotonic() >= ends:
                break
            await asyncio.sleep(_LOOK_EVERY)
        await self._release(sorted(resting))
        for row_id in sorted(resting):
            self._settle(
                row_id, BUSY, schedules[row_id],
                f"its jobs have not ended in {self._wait:g} s (queued, running or waiting for another attempt); give "
                f"the command again, or a longer --wait.",
            )  # fmt: skip

    async def _release(self, ids: Sequence[str]) -> None:
        if ids:
            async with self._places.transaction() as connection:
                await self._places.tell(connection, await self._migrated.fetch(connection, "release", [*ids]))

    async def _return_idle(self, ids: Sequence[str]) -> set[str]:
        """Bring back those whose jobs have ended; return which are settled."""
        settled: dict[str, tuple[str, str | None, str]] = {}
        async with self._places.transaction() as connection:
            await self._migrated.fetch(connection, "lock", [*ids])
            found = await self._migrated.fetch(connection, "at_rest", [*ids])
            returns = []
            for row in found:
                outcome = _unreturnable(row)
                if outcome is not None:
                    settled[row["id"]] = (outcome[0], row["schedule_id"], outcome[1])
                elif row["is_idle"]:
                    try:
                        returns.append(_Return(_as_returned(row), row["schedule_id"]))
                    except Unpatchable as exc:
                        settled[row["id"]] = (UNMOVABLE, row["schedule_id"], f"{exc}; fires stay in Duetime")
            state = "returned" if self._places.is_same else "restoring"
            back = [each.row for each in returns]
            if self._places.is_same and back:
                put = await self._migrated.plain(connection, "put_back", *_columns(back))
                put_ids = {row["id"] for row in put}
                for each in returns:
                    if each.row.id not in put_ids:
                        settled[each.row.id] = (TAKEN, each.schedule_id, _TAKEN)
                returns = [each for each in returns if each.row.id in put_ids]
                await self._migrated.fetch(connection, "end_schedules", [each.row.id for each in returns])
            await self._migrated.fetch(connection, "note_return", *_columns([each.row for each in returns]), state)
        if not self._places.is_same:
            settled |= await self._restore(returns)
        else:
            settled |= {each.row.id: (RETURNED, each.schedule_id, "") for each in returns}
        await self._release([row_id for row_id, (outcome, *_) in settled.items() if outcome != RETURNED])
        for row_id, (word, schedule_id, text) in settled.items():
            self._settle(row_id, word, schedule_id, text)
        return {*settled}

    # -- two databases ------------------------------------------------------------------------------------------------

    async def _restore(self, returns: Sequence[_Return]) -> dict[str, tuple[str, str | None, str]]:
        """Put rows in, parked; remove their schedules; and let v3 have them."""
        if not returns:
            return {}
        taken = await self._places.table.put_back([each.row for each in returns])
        if taken:
            await self._places.fetch("advance", [*taken], "restoring", "returning")
        free = [each for each in returns if each.row.id not in taken]
        ids = [each.row.id for each in free]
        async with self._places.transaction() as connection:
            await self._migrated.fetch(connection, "end_schedules", ids)
            await self._migrated.fetch(connection, "advance", ids, "restoring", "unparking")
        await self._unpark(free)
        settled: dict[str, tuple[str, str | None, str]] = {
            each.row.id: (RETURNED, each.schedule_id, "") for each in free
        }
        return settled | {each.row.id: (TAKEN, each.schedule_id, _TAKEN) for each in returns if each.row.id in taken}

    async def _unpark(self, returns: Sequence[_Return]) -> None:
        if returns:
            await self._places.table.unpark([each.row for each in returns])
            await self._places.fetch("advance", [each.row.id for each in returns], "unparking", "returned")


_CHANGED = "its schedule was changed, paused or resumed since it was carried over, and stays in Duetime"
_FINISHED = "it has fired for the last time, so v3 would have removed its row"
_TAKEN = "v3's table has another row of that id: its application has added it again. Remove one of the two."


def _unreturnable(row: asyncpg.Record) -> tuple[str, str] | None:
    """Return why a schedule that is to go back does not; None if it may."""
    if not row["is_there"]:
        return REMOVED, "its schedule was removed in Duetime"
    if not row["is_ours"]:
        return CHANGED, _CHANGED
    if row["next_fire_time"] is None and not row["paused"]:
        return FINISHED, _FINISHED
    return None


def _as_returned(row: asyncpg.Record) -> V3Row:
    """Return the row as v3 goes on from it.

    :raises Unpatchable: if its pickle cannot be given the time
    """
    stored: V3Row = V3Row(row["id"], row["next_run_time"], row["job_state"])
    if stored.next_run_time is None or row["next_fire_time"] == row["first_fire_time"]:
        return stored
    moment: datetime = row["next_fire_time"].astimezone(UTC)
    state = moved(stored.job_state, stored.next_run_time, moment)
    return replace(
        stored, next_run_time=timegm(moment.utctimetuple()) + moment.microsecond / 1_000_000, job_state=state
    )


def _columns(rows: Sequence[V3Row]) -> tuple[list[str], list[float | None], list[bytes]]:
    return [row.id for row in rows], [row.next_run_time for row in rows], [row.job_state for row in rows]
