"""Jobs that a node has claimed and not started: it holds them in its hand until their time."""

from __future__ import annotations

import heapq
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import count
from uuid import UUID

from apscheduler import Job

from ..options import priority_in


@dataclass(slots=True, eq=False)
class Card:
    """A claimed job.

    :ivar due: database time from which it may start, or is to be confirmed, in seconds since 1970
    :ivar order: which of two of the same time starts first
    :ivar leased_until: database time at which the node's claim ends, if it is not renewed
    :ivar contested: whether another node may have unfinished work of the same schedule
    :ivar is_held: whether the database has it as only held, so that it has to be confirmed before it begins
    :ivar lead: seconds before its time at which it is confirmed
    :ivar decides_overlap: whether an overlapping job is looked for when it starts, because it was claimed ahead
    :ivar priority: of those whose time has come, the highest starts first
    """

    due: float
    order: int
    job: Job
    leased_until: float
    decides_overlap: bool = False
    contested: bool = False
    is_held: bool = False
    lead: float = 0
    priority: int = 0

    def confirm(self) -> None:
        """Take note that the job is no longer only held: it begins at its time. The card must not be in a hand."""
        self.is_held = False
        self.due += self.lead
        self.lead = 0


_Entry = tuple[float, int, Card]


class Hand:
    """Claimed jobs by the time they may start, earliest first; of the same time in the order they came. Of those whose
    time has come, a higher priority goes first.

    Thousands may be held, and each change of a schedule asks for the jobs of that one: they are found without a look
    at the others.
    """

    def __init__(self) -> None:
        # A heap, in which entries of cards stay that have been set aside: those that `_is_current` does not know.
        self._entries: list[_Entry] = []
        # Where some have a priority, those whose time has come are not in that heap but in these two: by what starts
        # first, and by time.
        self._ready: list[tuple[int, _Entry]] = []
        self._overdue: list[_Entry] = []
        self._prioritized = 0
        self._by_job: dict[UUID, Card] = {}
        self._by_schedule: defaultdict[str, set[UUID]] = defaultdict(set)
        self._order = count()

    def __len__(self) -> int:
        return len(self._by_job)

    def __iter__(self) -> Iterator[Card]:
        return iter(self._by_job.values())

    @property
    def next_due(self) -> float | None:
        """When the next job may start; None when there is none."""
        due = self._first(self._entries)
        if not self._overdue:
            return due
        return min((each for each in (due, self._first(self._overdue)) if each is not None), default=None)

    def _first(self, entries: list[_Entry]) -> float | None:
        while entries and not self._is_current(entries[0]):
            heapq.heappop(entries)
        return entries[0][0] if entries else None

    def _is_current(self, entry: _Entry) -> bool:
        due, _, card = entry
        return self._by_job.get(card.job.id) is card and card.due == due

    def take(
        self,
        job: Job,
        due: float,
        leased_until: float,
        *,
        decides_overlap: bool = False,
        contested: bool = False,
        held_for: float | None = None,
    ) -> None:
        """Hold a job until ``due``.

        :param held_for: it has to be confirmed before it begins, so many seconds before ``due``; None: it has not
        """
        lead = held_for or 0
        number = next(self._order)
        card = Card(due - lead, number, job, leased_until, decides_overlap, contested, held_for is not None, lead)
        card.priority = priority_in(job.metadata)
        self._hold(card)

    def put_back(self, cards: Iterable[Card]) -> None:
        """Hold cards again that were drawn or set aside."""
        for card in cards:
            self._hold(card)
        if len(self._entries) + len(self._ready) > 2 * len(self._by_job) + 100:
            self._entries = [(card.due, card.order, card) for card in self]
            heapq.heapify(self._entries)
            self._ready.clear()
            self._overdue.clear()

    def _hold(self, card: Card) -> None:
        job = card.job
        self._prioritized += card.priority > 0
        self._by_job[job.id] = card
        if job.schedule_id is not None:
            self._by_schedule[job.schedule_id].add(job.id)
        heapq.heappush(self._entries, (card.due, card.order, card))

    def _give_away(self, card: Card) -> Card:
        job = card.job
        self._prioritized -= card.priority > 0
        del self._by_job[job.id]
        if job.schedule_id is not None:
            jobs = self._by_schedule[job.schedule_id]
            jobs.discard(job.id)
            if not jobs:
                del self._by_schedule[job.schedule_id]
        return card

    def draw(self, now: float, most: int) -> list[Card]:
        """Give away up to ``most`` jobs whose time has come."""
        if self._prioritized or self._ready:
            return self._draw_by_priority(now, most)
        drawn: list[Card] = []
        while len(drawn) < most and (due := self.next_due) is not None and due <= now:
            drawn.append(self._give_away(heapq.heappop(self._entries)[2]))
        return drawn

    def _draw_by_priority(self, now: float, most: int) -> list[Card]:
        while (due := self._first(self._entries)) is not None and due <= now:
            entry = heapq.heappop(self._entries)
            heapq.heappush(self._overdue, entry)
            heapq.heappush(self._ready, (-entry[2].priority, entry))
        drawn: list[Card] = []
        while self._ready and len(drawn) < most:
            _, entry = heapq.heappop(self._ready)
            if self._is_current(entry):
                drawn.append(self._give_away(entry[2]))
        return drawn

    def has_jobs_of(self, schedule_id: str) -> bool:
        """Return whether jobs of the schedule are held."""
        return schedule_id in self._by_schedule

    def set_aside(self, *, schedules: Iterable[str] = (), jobs: Iterable[UUID] = ()) -> list[Card]:
        """Give away the jobs of these schedules, and these jobs, whether or not their time has come."""
        chosen = {each: None for each in jobs if each in self._by_job}
        for schedule_id in schedules:
            chosen.update(dict.fromkeys(self._by_schedule.get(schedule_id, ())))
        return [self._give_away(self._by_job[each]) for each in chosen]

    def clear(self) -> None:
        """Forget all."""
        self._entries.clear()
        self._ready.clear()
        self._overdue.clear()
        self._prioritized = 0
        self._by_job.clear()
        self._by_schedule.clear()


class Turns:
    """The claimed jobs of schedules whose jobs take turns, held or going: which of them are alone here?"""

    def __init__(self) -> None:
        self._schedules: dict[UUID, str] = {}
        self._count: Counter[str] = Counter()

    def take(self, job: Job) -> None:
        """Take note of a claimed job."""
        if job.schedule_id is not None and job.id not in self._schedules:
            self._schedules[job.id] = job.schedule_id
            self._count[job.schedule_id] += 1

    def let_go(self, job_id: UUID) -> None:
        """Forget a job, if it is known."""
        if (schedule_id := self._schedules.pop(job_id, None)) is not None:
            self._count[schedule_id] -= 1
            if not self._count[schedule_id]:
                del self._count[schedule_id]

    def is_alone(self, job: Job) -> bool:
        """Return whether no other job of the job's schedule is claimed here."""
        return job.schedule_id is None or self._count[job.schedule_id] <= 1

    def clear(self) -> None:
        """Forget all."""
        self._schedules.clear()
        self._count.clear()
