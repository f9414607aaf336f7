"""Adding schedules: checked, in groups, each call returning after its commit (promise 1)."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any
from uuid import UUID, uuid4

import asyncpg
from apscheduler import ConflictPolicy, Event, Schedule, ScheduleAdded, ScheduleUpdated
from apscheduler.abc import Serializer

from ..errors import ArgumentsTooLarge, InvalidOptions, InvalidScheduleId, ScheduleExists, UnsupportedValue
from ..options import option_problems
from . import rows
from .batches import GroupCommit
from .breathing import Breath
from .database import Database, Fetch, Row
from .transactions import current_transaction

MAX_ID_LENGTH = 500
MAX_DURATION = timedelta(days=36_525)
"""Longest duration of an option; the sum of a longer one and a fire time leads out of Python's calendar."""
_LARGEST_GROUP = 500
_COLUMNS = 17
_COPIED = (
    "id", "task_id", "trigger", "args", "kwargs", "paused", "coalesce", "misfire_grace_time", "max_jitter",
    "job_executor", "job_result_expiration_time", "metadata", "tags", "engine", "last_fire_time", "next_fire_time",
    "revision",
)  # fmt: skip
_WORTH_A_COPY = 50

# What PostgreSQL, or the driver, says of values that it cannot store.
_NOT_STORABLE = (
    asyncpg.DataError,
    asyncpg.IntegrityConstraintViolationError,
    asyncpg.ProgramLimitExceededError,
    ValueError,
    OverflowError,
)
_LAST = datetime.max.replace(tzinfo=UTC)


def check_schedule_id(schedule_id: str) -> str:
    """Return the id if it can be stored.

    :raises InvalidScheduleId: if it is empty, longer than 500 characters, or not printable
    """
    if not 1 <= len(schedule_id) <= MAX_ID_LENGTH:
        raise InvalidScheduleId(
            f"expected a schedule id of 1 to {MAX_ID_LENGTH} characters, got one of {len(schedule_id)}. "
            f"Leave it out to get a new one."
        )
    if schedule_id in (".", ".."):
        raise InvalidScheduleId(
            f"expected a schedule id that can be part of an address, got {schedule_id!r}. Leave it out for a new one."
        )
    if not schedule_id.isprintable():
        raise InvalidScheduleId(
            f"expected a schedule id of printable characters, got {schedule_id[:100]!a}. Leave it out to get a new one."
        )
    return schedule_id


def possible_ids(schedule_ids: Iterable[str]) -> list[str]:
    """Return those of the ids that a stored schedule can have; PostgreSQL refuses even to look for some others."""
    return [each for each in schedule_ids if 1 <= len(each) <= MAX_ID_LENGTH and each.isprintable()]


def check_durations(**options: timedelta | None) -> None:
    """Check options of a schedule or job that are added to a time.

    :raises UnsupportedValue: naming the one that is longer than a century
    """
    for name, duration in options.items():
        if duration is not None and abs(duration) > MAX_DURATION:
            raise UnsupportedValue(f"expected {name} of at most {MAX_DURATION.days} days, got {duration.days} days.")


def check_options(schedule: Schedule) -> None:
    """Check the options that a schedule has of its own and of its task.

    :raises InvalidOptions: naming all that have no meaning or contradict each other
    """
    if problems := option_problems(schedule.metadata):
        raise InvalidOptions(
            f"expected {'; expected '.join(problems)}. These are options of schedule {schedule.id!r:.100}, its task's "
            f"included.",
            details=[{"where": "options", "problem": f"expected {each}"} for each in problems],
        )


def check_size(args: bytes, kwargs: bytes, most: int | None) -> None:
    """Check the size of serialized arguments.

    :raises ArgumentsTooLarge: if they have more than ``most`` bytes
    """
    size = len(args) + len(kwargs)
    if most is not None and size > most:
        raise ArgumentsTooLarge(
            f"expected arguments of at most {most} bytes, got {size}. Store the data elsewhere and pass its key, or "
            f"raise DUETIME_MAX_ARGUMENTS_BYTES."
        )


@contextmanager
def refused(what: str) -> Iterator[None]:
    """Say in our words that PostgreSQL does not take a value (a NUL in a text, a name that is too long)."""
    try:
        yield
    except (asyncpg.DataError, asyncpg.IntegrityConstraintViolationError, ValueError) as exc:
        raise UnsupportedValue(f"expected {what} that PostgreSQL can store, got: {exc}.") from exc


@dataclass(frozen=True, slots=True)
class NewSchedule:
    """A schedule on its way into the store."""

    schedule: Schedule
    values: tuple[Any, ...]
    policy: ConflictPolicy
    # Tells a schedule that an earlier, unanswered attempt of the same call has stored from somebody else's.
    revision: UUID


@dataclass(frozen=True, slots=True)
class Put:
    """What became of a schedule that was to be stored.

    :ivar added: whether it is new; False: it took the place of another, or another was kept
    :ivar taken_back: jobs of the replaced definition that had not started and were taken back
    """

    added: bool
    taken_back: tuple[UUID, ...] = ()


_ADDED = Put(added=True)


class ScheduleWriter:
    """Writes new schedules, those of concurrent calls in one statement and commit.

    :param message: makes channel and payload of the notification that rides in the statement
    """

    def __init__(
        self,
        database: Database,
        serializer: Serializer,
        message: Callable[[Sequence[Event]], tuple[str, str]],
        max_arguments_bytes: int | None,
    ) -> None:
        self._database = database
        self._serializer = serializer
        self._message = message
        self._max_arguments_bytes = max_arguments_bytes
        self._group: GroupCommit[NewSchedule, Put] = GroupCommit(self._write, largest=_LARGEST_GROUP)

    def check(self, schedules: Iterable[Schedule], policy: ConflictPolicy) -> Iterator[NewSchedule]:
        """Yield the schedules of one call as they are stored, each checked."""
        values_of = rows.ScheduleValues(self._serializer).of
        first_revision = uuid4().int & ~0xFFFFFFFF  # room to count in
        checked: object = None
        for place, schedule in enumerate(schedules):
            check_schedule_id(schedule.id)
            check_durations(
                misfire_grace_time=schedule.misfire_grace_time,
                max_jitter=schedule.max_jitter,
                job_result_expiration_time=schedule.job_result_expiration_time,
            )
            if schedule.metadata is not checked:  # many schedules of a call share it
                check_options(schedule)
                checked = schedule.metadata
            values = values_of(schedule)
            check_size(values[3], values[4], self._max_arguments_bytes)
            yield NewSchedule(schedule, values, policy, UUID(int=first_revision + place))

    async def put(self, schedule: Schedule, policy: ConflictPolicy) -> Put:
        """Store one schedule; in the caller's transaction if there is one."""
        [new] = self.check([schedule], policy)
        if transaction := current_transaction.get():
            await self._database.prepare()
            [outcome] = await self._put([new], partial(self._database.fetch_in, transaction))
            if isinstance(outcome, BaseException):
                raise outcome
            return outcome
        try:
            return await self._group.submit(new, deadline=self._database.deadline())
        except TimeoutError as exc:
            raise self._database.unavailable(
                f"The schedule {schedule.id!r} may have been stored or not: look before adding it again."
            ) from (self._database.outage or exc)

    async def drain(self) -> None:
        """Wait until nothing is waiting or being written."""
        await self._group.drain()

    async def put_all(self, schedules: Sequence[Schedule], policy: ConflictPolicy) -> list[Put]:
        """Store many schedules in one statement: all of them, or none.

        :raises ScheduleExists: if an id is taken, or given twice, and the policy is ``exception``
        """
        transaction = current_transaction.get()
        if transaction is not None:
            await self._database.prepare()
            fetch = partial(self._database.fetch_in, transaction)
            outcomes = await self._put([*self.check(schedules, policy)], fetch)
        else:
            many = _Many(self, schedules, policy)
            outcomes = await self._database.attempt(many.put, deadline=self._database.deadline())
        _raise_first(outcomes)
        return [outcome for outcome in outcomes if isinstance(outcome, Put)]

    async def _write(self, group: Sequence[NewSchedule], deadline: float | None) -> Sequence[Put | BaseException]:
        """Write a group of concurrent calls: one statement for those that replace, one for the others."""

        async def fetch(statement: str, *arguments: Any) -> Sequence[Row]:
            return await self._database.query(statement, *arguments, deadline=deadline)

        try:
            return await self._put(group, fetch)
        except _NOT_STORABLE as exc:
            if len(group) == 1:
                return [UnsupportedValue(f"expected a schedule that PostgreSQL can store, got: {exc}.")]
            # One of them cannot be stored: find out which, and store the others.
            alone = [await self._write([new], deadline) for new in group]
            return [outcome for [outcome] in alone]

    async def tell(self, connection: asyncpg.Connection, schedules: Sequence[Schedule]) -> None:
        """Wake the other nodes for schedules that were stored, if they do not wake early enough by themselves."""
        channel, payload = self._message(earliest(schedules))
        if payload:
            due = [each.next_fire_time for each in schedules if each.next_fire_time is not None and not each.paused]
            await connection.fetch(self._database.statements["tell_added"], channel, payload, min(due))

    async def _put(self, group: Sequence[NewSchedule], fetch: Fetch) -> list[Put | BaseException]:
        if len(group) == 1 and group[0].policy is not ConflictPolicy.replace:
            new = group[0]
            message = self._message(earliest([new.schedule]))
            if await fetch(self._database.statements["add_schedule"], *new.values, new.revision, *message):
                return [Put(added=True)]
            # The id is taken: the statement for groups finds out by whom.
        outcomes: dict[int, Put | BaseException] = {}
        remaining = list(enumerate(group))
        while remaining:
            # A statement takes each id once, and either replaces or does not.
            replaces = remaining[0][1].policy is ConflictPolicy.replace
            batch, later, ids = [], [], set()
            for place, new in remaining:
                if (new.policy is ConflictPolicy.replace) == replaces and new.schedule.id not in ids:
                    ids.add(new.schedule.id)
                    batch.append((place, new))
                else:
                    later.append((place, new))
            remaining = later
            arrays = rows.columns([(*new.values, new.revision) for _, new in batch], _COLUMNS)
            found = await fetch(
                self._database.statements["replace_schedules" if replaces else "add_schedules"],
                *arrays,
                *self._message((_each if replaces else earliest)([new.schedule for _, new in batch])),
            )
            by_id = {row["id"]: row for row in found}
            for place, new in batch:
                outcomes[place] = _outcome(new, by_id[new.schedule.id])
        return [outcomes[place] for place in range(len(group))]


class _Many:
    """One call that stores many schedules, which is made again when its answer is lost."""

    def __init__(self, writer: ScheduleWriter, schedules: Sequence[Schedule], policy: ConflictPolicy) -> None:
        self._writer = writer
        self._schedules = schedules
        self._policy = policy
        self._checking = writer.check(schedules, policy)
        self._new: list[NewSchedule] = []
        # A COPY is cheap, and all or none by itself; but it knows no conflicts. They are rare, and then it has done
        # nothing. A few that may be left out are as well off with the statement.
        self._may_copy = policy is ConflictPolicy.exception or (
            policy is ConflictPolicy.do_nothing and len(schedules) >= _WORTH_A_COPY
        )

    async def put(self, connection: asyncpg.Connection) -> list[Put | BaseException]:
        """Store all of them, or none."""
        may_copy, self._may_copy = self._may_copy, False
        if may_copy:
            with suppress(asyncpg.UniqueViolationError):
                await self._copy(connection)
                await self._writer.tell(connection, self._schedules)
                return [_ADDED] * len(self._schedules)
        new = [new async for new in self._checked()]
        if self._policy is not ConflictPolicy.exception and len({each.schedule.id for each in new}) == len(new):
            return await self._writer._put(new, connection.fetch)
        # An id that is refused, or that comes twice and so takes a second statement, has to undo the others.
        async with connection.transaction():
            outcomes = await self._writer._put(new, connection.fetch)
            _raise_first(outcomes)
            return outcomes

    async def _copy(self, connection: asyncpg.Connection) -> None:
        await connection.copy_records_to_table(
            "schedules",
            schema_name=self._writer._database.schema,
            columns=_COPIED,
            records=self._records(),
        )

    async def _records(self) -> AsyncIterator[tuple[Any, ...]]:
        """Yield the rows, worked out while PostgreSQL stores those before. Only the first attempt makes a copy."""
        breath = Breath()
        for new in self._checking:
            self._new.append(new)
            values = new.values
            tags = [] if values[12] == "[]" else json.loads(values[12])
            yield (*values[:12], tags, *values[13:], new.revision)
            await breath.taken()

    async def _checked(self) -> AsyncIterator[NewSchedule]:
        """Yield the schedules from the first, also if an earlier attempt has come only to the middle of them."""
        for new in list(self._new):
            yield new
        breath = Breath()
        for new in self._checking:
            self._new.append(new)
            yield new
            await breath.taken()


def earliest(schedules: Sequence[Schedule]) -> list[Event]:
    """Return the one event that wakes a node early enough for all the schedules."""
    due = [schedule for schedule in schedules if schedule.next_fire_time is not None and not schedule.paused]
    first = min(due, key=lambda schedule: schedule.next_fire_time or _LAST, default=None)
    if first is None:
        return []
    return [ScheduleAdded(schedule_id=first.id, task_id=first.task_id, next_fire_time=first.next_fire_time)]


def _each(schedules: Sequence[Schedule]) -> list[Event]:
    """Return an event for each schedule, the earliest first: other nodes may hold fires of what they replace."""
    events: list[ScheduleUpdated] = [
        ScheduleUpdated(
            schedule_id=schedule.id,
            task_id=schedule.task_id,
            next_fire_time=None if schedule.paused else schedule.next_fire_time,
        )
        for schedule in schedules
    ]
    events.sort(key=lambda event: event.next_fire_time or _LAST)
    return [*events]


def _outcome(new: NewSchedule, row: Row) -> Put | BaseException:
    if row["added"] is not None or row["stored_revision"] == new.revision:
        return Put(row["added"] is not False, tuple(row["taken_back"] or ()))
    if new.policy is ConflictPolicy.exception:
        return ScheduleExists(new.schedule.id)
    return Put(added=False)


def _raise_first(outcomes: Sequence[Put | BaseException]) -> None:
    for outcome in outcomes:
        if isinstance(outcome, BaseException):
            raise outcome
