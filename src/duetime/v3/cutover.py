"""Carrying jobs over from v3 to Duetime, with no fire lost or doubled; ``docs/decisions/0016`` says why it is so."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import asyncpg
import attrs
from apscheduler import Schedule, SerializationError

from ..errors import DuetimeError, SourceUnavailable, V3MigrationUnfinished, V3NotChangeable, V3StillRunning
from ..scheduler import DuetimeScheduler
from .migrated import Planned
from .model import V3Row
from .outcomes import (
    CARRIED,
    DUE,
    EXISTS,
    RAN_IN_V3,
    REFUSED,
    REMOVED_IN_V3,
    WOULD_CARRY,
    Result,
    RowOutcome,
)
from .places import Places, open_places
from .setting_aside import LOCK_TIMEOUT, is_free, is_parked, locked
from .sources import open_source

BATCH = 500
"""Rows that are carried over in one transaction, for which v3 waits."""

MARGIN = 1.0
"""Seconds that must be left until a row is due; more than the clocks of v3 and the database may differ."""

WAIT = 15.0
"""Seconds for which rows that are due are watched until v3 has moved them on."""

BEING_CARRIED = "it is being carried over from APScheduler 3"

_LOOK_EVERY = 0.1


@dataclass(frozen=True, slots=True)
class Prepared:
    """What the plan says of a row.

    :ivar schedule: what is written; None unless the verdict is ``convert``
    """

    verdict: str
    reasons: tuple[str, ...]
    schedule: Schedule | None


Prepare = Callable[[Sequence[V3Row]], Awaitable[Sequence[Prepared]]]


@dataclass(frozen=True, slots=True)
class _Ready:
    row: V3Row
    schedule: Schedule

    @property
    def planned(self) -> Planned:
        paused = self.schedule.paused
        return Planned(self.row, self.schedule.id, paused, None if paused else self.schedule.next_fire_time)


@dataclass(slots=True)
class _Taken:
    """Of one batch, by the ids of the rows."""

    carried: set[str]
    existing: set[str]


async def cutover(
    url: str,
    scheduler: DuetimeScheduler,
    prepare: Prepare,
    *,
    table: str = "apscheduler_jobs",
    dry_run: bool = False,
    v3_stopped: bool = False,
    ids: Iterable[str] | None = None,
    batch: int = BATCH,
    margin: float = MARGIN,
    wait: float = WAIT,
    progress: Callable[[int], None] = lambda _rows: None,
) -> Result:
    """Carry over every job that can be by itself, each in one step: its row is set aside, and its schedule written.

    It may be interrupted at any point, also by ``kill -9``, and called again: what was begun is brought to its end.

    :param url: SQLAlchemy URL of v3's database
    :param prepare: plans rows; see :func:`duetime.v3.carrying.preparer`
    :param dry_run: change nothing, and say what would come of it
    :param v3_stopped: no v3 process runs on the table; else rows that are due are v3's until it has moved them on
    :param ids: only these jobs
    :param batch: rows of one transaction
    :param margin: seconds that must be left until a row is due
    :param wait: seconds for which rows that are due are watched
    :param progress: told how many rows more are settled
    :raises NotAV3Table: if the table is not v3's
    :raises SourceUnavailable: if v3's database does not answer
    :raises V3NotChangeable: if its rows may not be deleted and put back; nothing was changed
    :raises V3MigrationRunning: if another migration is at work
    :raises V3MigrationUnfinished: if going back was begun and has not ended
    """
    async with open_source(url, table=table) as source:
        await source.check()
        async with open_places(url, scheduler, table, exclusive=not dry_run) as places:
            if not dry_run:
                await places.table.check_changeable()
            result = Result(places.table.source, dry_run)
            run = _Cutover(places, prepare, result, None if v3_stopped else margin, wait, progress)
            try:
                await run.resume()
                wanted = None if ids is None else [*ids]
                rows = source.rows(batch=batch) if wanted is None else _only(places, wanted, batch)
                async with aclosing(_ahead(rows, run.ready)) as batches:
                    async for ready in batches:
                        await run.carry(ready)
                await run.wait_for_v3()
            except (V3StillRunning, V3NotChangeable, SourceUnavailable) as exc:
                result.interrupted = exc.message
            except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError) as exc:
                result.interrupted = f"{type(exc).__name__}: {exc}"
            return result


async def _only(places: Places, ids: Sequence[str], batch: int) -> AsyncIterator[list[V3Row]]:
    for at in range(0, len(ids), batch):
        found = await places.table.found(ids[at : at + batch])
        yield [found[each] for each in ids[at : at + batch] if each in found]


async def _ahead(
    rows: AsyncIterator[list[V3Row]], ready: Callable[[Sequence[V3Row]], Awaitable[list[_Ready]]]
) -> AsyncGenerator[list[_Ready], None]:
    """Yield what is ready of each batch, and plan the next one meanwhile."""
    following: asyncio.Future[list[_Ready]] | None = None
    try:
        async for found in rows:
            before, following = following, asyncio.ensure_future(ready(found))
            if before is not None:
                yield await before
        if following is not None:
            yield await following
    finally:
        if following is not None and not following.done():
            following.cancel()
            await asyncio.wait([following])


class _Cutover:
    def __init__(
        self,
        places: Places,
        prepare: Prepare,
        result: Result,
        margin: float | None,
        wait: float,
        progress: Callable[[int], None],
    ) -> None:
        self._places, self._prepare, self.result = places, prepare, result
        self._margin, self._wait, self._progress = margin, wait, progress
        self._due: dict[str, V3Row] = {}
        self._in_flight: dict[str, list[float]] = {}
        self._take = self._take_at_once if places.is_same else self._take_in_steps

    # -- what an earlier run has begun --------------------------------------------------------------------------------

    async def resume(self) -> None:
        """Bring to its end what an earlier run has begun, or take it back where it had not got far.

        :raises V3MigrationUnfinished: if it is going back that was begun
        """
        places = self._places
        for row in await places.fetch("elsewhere"):
            self.result.notes.append(
                f"{row['rows']} rows of {row['source']} are half carried over: give the command with that address."
            )
        if self.result.dry_run:
            return
        self.result.resumed += await finish(places, v3_stopped=self._margin is None)

    # -- rows ---------------------------------------------------------------------------------------------------------

    async def carry(self, ready: Sequence[_Ready]) -> None:
        """Carry over what can be of these; what may be in v3's hands is kept for :meth:`wait_for_v3`."""
        if not ready:
            return
        now = await self._places.table.now()
        free = []
        for each in ready:
            if is_free(each.row, now, self._margin):
                free.append(each)
            else:
                self._due[each.row.id] = each.row
        if self.result.dry_run:
            await self._say_what_would_be(free)
        elif free:
            await self._carry_free(free)

    async def ready(self, rows: Sequence[V3Row]) -> list[_Ready]:
        """Plan rows, and return those that can be carried over."""
        ready = []
        for row, prepared in zip(rows, await self._prepare(rows), strict=True):
            if prepared.schedule is None:
                self._settle(row.id, prepared.verdict, text="; ".join(prepared.reasons))
            else:
                ready.append(_Ready(row, prepared.schedule))
        return ready

    def _settle(self, row_id: str, outcome: str, schedule_id: str | None = None, text: str = "") -> None:
        self._due.pop(row_id, None)
        self.result.add(RowOutcome(row_id, outcome, schedule_id, text))
        self._progress(1)

    async def _say_what_would_be(self, free: Sequence[_Ready]) -> None:
        taken = await self._schedules_of(free)
        for each in free:
            if each.schedule.id in taken:
                await self._settle_existing([each])
            else:
                self._settle(each.row.id, WOULD_CARRY, each.schedule.id)

    async def _schedules_of(self, rows: Sequence[_Ready]) -> set[str]:
        async with self._places.connection() as connection:
            found = await self._places.migrated.plain(connection, "taken_ids", [each.schedule.id for each in rows])
        return {row["id"] for row in found}

    async def _carry_free(self, free: Sequence[_Ready]) -> None:
        began = time.monotonic()
        try:
            taken = await self._take(free)
        except (DuetimeError, SerializationError, asyncpg.DataError, ValueError) as exc:
            if isinstance(exc, SourceUnavailable | V3StillRunning) or not _is_of_a_row(exc):
                raise
            # One of them cannot be stored: find out which, and carry the others over.
            if len(free) == 1:
                self._settle(free[0].row.id, REFUSED, free[0].schedule.id, str(exc))
                return
            middle = len(free) // 2
            await self._carry_free(free[:middle])
            await self._carry_free(free[middle:])
            return
        finally:
            self.result.seconds += time.monotonic() - began
        by_id = {each.row.id: each for each in free}
        fires = [(each, fire) for each in taken.carried for fire in self._in_flight.pop(each, ())]
        if fires:
            await self._places.fetch("note_in_flight", [each for each, _ in fires], [fire for _, fire in fires])
        for row_id in sorted(taken.carried):
            self._settle(row_id, CARRIED, by_id[row_id].schedule.id)
        await self._settle_existing([each for each in free if each.row.id in taken.existing])
        await self._look_again([each for each in free if each.row.id not in taken.carried | taken.existing])

    async def _settle_existing(self, rows: Sequence[_Ready]) -> None:
        if not rows:
            return
        found = await self._places.fetch("known", [each.row.id for each in rows])
        ours = {row["id"] for row in found if row["state"] in ("done", "deleting") and row["schedule_id"] is not None}
        for each in rows:
            if each.row.id in ours:
                text = (
                    "it was carried over before, and v3's application has added it again: v3 fires it, and Duetime "
                    "does too. Take the add_job() out of that application, and remove its row."
                )
            else:
                text = "a schedule has this id, which does not come from this table. Rename or remove one of them."
            self._settle(each.row.id, EXISTS, each.schedule.id, text)

    async def _look_again(self, rows: Sequence[_Ready]) -> None:
        """Find out what has become of rows that were others by the time they were to be taken."""
        if not rows:
            return
        there = await self._places.table.found([each.row.id for each in rows])
        for each in rows:
            row = there.get(each.row.id)
            if self._margin is None and row != each.row:
                raise V3StillRunning(
                    f"expected v3 to be stopped, as was said, and somebody has changed the row of {each.row.id!r} "
                    f"since it was read. Stop that process, or leave --v3-stopped out; what was carried over stays so."
                )
            self._due[each.row.id] = each.row

    # -- what v3 may have in its hands --------------------------------------------------------------------------------

    async def wait_for_v3(self) -> None:
        """Carry over rows that were due, once v3 has moved them on; the rest is left to it."""
        ends = time.monotonic() + (0.0 if self.result.dry_run else self._wait)
        while self._due:
            if not self.result.dry_run:
                await self._look_at_due()
            if time.monotonic() >= ends:
                break
            if self._due:
                await asyncio.sleep(_LOOK_EVERY)
        for row in [*self._due.values()]:
            moment = _instant(row.next_run_time or 0.0)
            self._settle(
                row.id,
                DUE,
                text=f"due at {moment}, so v3 may be at work on it. If v3 is stopped, say --v3-stopped; if it "
                f"fires every few seconds, stop v3 or lower --margin, which is {self._margin or 0:g} s.",
            )

    async def _look_at_due(self) -> None:
        places = self._places
        ids = [*self._due][:BATCH]
        there = await places.table.found(ids)
        now = await places.table.now()
        gone, free = [], []
        for row_id in ids:
            old, row = self._due.pop(row_id), there.get(row_id)
            was_due = old.next_run_time is not None and old.next_run_time <= now
            if row is None:
                if was_due:
                    gone.append(old)
                else:
                    self._settle(row_id, REMOVED_IN_V3)
                continue
            if row.next_run_time != old.next_run_time and was_due and old.next_run_time is not None:
                self._in_flight.setdefault(row_id, []).append(old.next_run_time)
            if is_free(row, now, self._margin):
                free.append(row)
            else:
                self._due[row_id] = row  # at the end: the others have their turn first
        if gone:
            async with places.connection() as connection:
                await places.migrated.note_left(connection, gone)
            for old in gone:
                self._say_in_flight(old.id, [old.next_run_time or 0.0])
                self._settle(old.id, RAN_IN_V3, text="v3 has run it for the last time")
        for row in free:
            if row.id in self._in_flight:
                self._say_in_flight(row.id, self._in_flight[row.id])
        if free and (ready := await self.ready(free)):
            await self._carry_free(ready)

    def _say_in_flight(self, row_id: str, fires: Sequence[float]) -> None:
        self.result.in_flight[row_id] = [_instant(fire) for fire in fires]

    # -- one database -------------------------------------------------------------------------------------------------

    async def _take_at_once(self, rows: Sequence[_Ready]) -> _Taken:
        """Write the schedules and set the rows aside in one transaction."""
        places = self._places
        migrated = places.migrated
        migrated.batch = uuid4()
        existing: set[str] = set()

        async def attempt(number: int) -> set[str]:
            existing.clear()
            async with places.transaction() as connection:
                if number and (done := await migrated.of_batch(connection)):
                    return done  # it was committed, and the answer was lost
                added = await places.scheduler.store.add_missing_schedules([each.schedule for each in rows])
                new = [each for each, is_new in zip(rows, added, strict=True) if is_new]
                existing.update(each.row.id for each, is_new in zip(rows, added, strict=True) if not is_new)
                if self._margin is not None:
                    # v3 reads without a lock. This one makes it wait, so nothing that is about to go is read meanwhile.
                    await connection.execute(f"set local lock_timeout = '{int(LOCK_TIMEOUT * 1000)}ms'")
                    await connection.execute(f"lock table {migrated.table} in access exclusive mode")
                taken = await migrated.take(connection, [each.planned for each in new], self._margin)
                if left := [each.schedule.id for each in new if each.row.id not in taken]:
                    await migrated.plain(connection, "drop_schedules", left)
                return taken

        try:
            return _Taken(await places.again(attempt), existing)
        except asyncpg.LockNotAvailableError as exc:
            raise locked(places.table.name, places.patience) from exc

    # -- two databases ------------------------------------------------------------------------------------------------

    async def _take_in_steps(self, rows: Sequence[_Ready]) -> _Taken:
        """Note what is meant to be done, park the rows, let the schedules fire, and delete the rows."""
        places = self._places
        places.migrated.batch = uuid4()
        existing: set[str] = set()

        async def attempt(number: int) -> set[str]:
            done: set[str] = set()
            if number:
                await finish(places, v3_stopped=self._margin is None)
                async with places.connection() as connection:
                    done = await places.migrated.of_batch(connection)
            existing.clear()
            left = [each for each in rows if each.row.id not in done]
            return done | await self._steps(left, existing)

        return _Taken(await places.again(attempt), existing)

    async def _steps(self, rows: Sequence[_Ready], existing: set[str]) -> set[str]:
        places = self._places
        migrated = places.migrated
        async with places.transaction() as connection:
            waiting = [attrs.evolve(each.schedule, paused=True) for each in rows]
            added = await places.scheduler.store.add_missing_schedules(waiting)
            new = [each for each, is_new in zip(rows, added, strict=True) if is_new]
            existing.update(each.row.id for each, is_new in zip(rows, added, strict=True) if not is_new)
            await migrated.plain(connection, "reason", [each.schedule.id for each in new], BEING_CARRIED)
            noted = await migrated.intend(connection, [each.planned for each in new])
            if others := [each for each in new if each.row.id not in noted]:
                await migrated.plain(connection, "drop_schedules", [each.schedule.id for each in others])
                existing.update(each.row.id for each in others)
        meant = [each.row for each in new if each.row.id in noted]
        if not meant:
            return set()
        parked = await places.table.park(meant, margin=self._margin)
        await let_fire(places, [row.id for row in meant if row.id in parked.ids])
        await undo(places, [row.id for row in meant if row.id not in parked.ids])
        await remove(places, [row for row in meant if row.id in parked.ids])
        return set(parked.ids)


def _is_of_a_row(exc: BaseException) -> bool:
    """Return whether the error is about what is in a row, and not about the database as a whole."""
    return not isinstance(exc, ConnectionError) and not (isinstance(exc, DuetimeError) and exc.code.startswith("v3_"))


def _instant(seconds: float) -> str:
    return (datetime.fromtimestamp(0, UTC) + timedelta(seconds=seconds)).isoformat()


# -- the steps between two databases, each of which may be made again --------------------------------------------------


async def finish(places: Places, *, v3_stopped: bool) -> int:
    """Bring to its end, or take back, what was begun between two databases; return how many rows it were.

    A parked row that has fallen due since may be one that was parked too late, unless the table was locked for v3: v3
    may have it in its hands, so it is given back.

    :raises V3MigrationUnfinished: if it is going back that was begun
    """
    after, count = "", 0
    while True:
        found = await places.fetch("under_way", after, BATCH)
        if not found:
            return count
        after = found[-1]["id"]
        count += len(found)
        if back := [row["id"] for row in found if row["state"] not in ("taking", "deleting")]:
            raise V3MigrationUnfinished(
                f"expected nothing under way, got {len(back)} rows that are going back to v3 ({back[0]!r} among them). "
                f"Bring that to its end first: duetime migrate v3 rollback."
            )
        begun = [_row(row) for row in found if row["state"] == "taking"]
        there = await places.table.found([row.id for row in begun])
        now = await places.table.now()
        is_sure = v3_stopped or places.table.makes_v3_wait
        parked: list[str] = []
        doubtful: list[str] = []
        for row in begun:
            if is_parked(there.get(row.id), row):
                (parked if is_sure or is_free(row, now, 0.0) else doubtful).append(row.id)
        await places.table.unpark([row for row in begun if row.id in doubtful])
        await let_fire(places, parked)
        await undo(places, [row.id for row in begun if row.id not in parked])
        await remove(places, [_row(row) for row in found if row["state"] == "deleting" or row["id"] in parked])


async def let_fire(places: Places, ids: Sequence[str]) -> None:
    """Let the schedules of parked rows fire."""
    if ids:
        async with places.transaction() as connection:
            await places.tell(connection, await places.migrated.fetch(connection, "go", [*ids]))


async def undo(places: Places, ids: Sequence[str]) -> None:
    """Forget rows that were to be taken and are v3's as before."""
    if ids:
        await places.fetch("undo", [*ids])


async def remove(places: Places, rows: Sequence[V3Row]) -> None:
    """Delete parked rows whose schedules fire."""
    if rows:
        await places.table.remove_parked(rows)
        await places.fetch("advance", [row.id for row in rows], "deleting", "done")


def _row(row: asyncpg.Record) -> V3Row:
    return V3Row(row["id"], row["next_run_time"], row["job_state"])
