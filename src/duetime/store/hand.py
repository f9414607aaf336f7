"""Jobs that a node has claimed and not started: it holds them in its hand until their time."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from itertools import count
from uuid import UUID

from apscheduler import Job


@dataclass(order=True, slots=True)
class Card:
    """A claimed job.

    :ivar due: database time from which it may start, or is to be confirmed, in seconds since 1970
    :ivar leased_until: database time at which the node's claim ends, if it is not renewed
    :ivar contested: whether another node may have unfinished work of the same schedule
    :ivar is_held: whether the database has it as only held, so that it has to be confirmed before it begins
    :ivar lead: seconds before its time at which it is confirmed
    :ivar decides_overlap: whether an overlapping job is looked for when it starts, because it was claimed ahead
    """

    due: float
    order: int
    job: Job = field(compare=False)
    leased_until: float = field(compare=False)
    decides_overlap: bool = field(compare=False, default=False)
    contested: bool = field(compare=False, default=False)
    is_held: bool = field(compare=False, default=False)
    lead: float = field(compare=False, default=0)

    def confirm(self) -> None:
        """Take note that the job is no longer only held: it begins at its time. The card must not be in a hand."""
        self.is_held = False
        self.due += self.lead
        self.lead = 0


class Hand:
    """Claimed jobs by the time they may start, earliest first; of the same time in the order they came."""

    def __init__(self) -> None:
        self._cards: list[Card] = []
        self._order = count()

    def __len__(self) -> int:
        return len(self._cards)

    def __iter__(self) -> Iterator[Card]:
        return iter(self._cards)

    @property
    def next_due(self) -> float | None:
        """When the next job may start; None when there is none."""
        return self._cards[0].due if self._cards else None

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
        heapq.heappush(self._cards, card)

    def put_back(self, cards: Collection[Card]) -> None:
        """Hold cards again that were drawn or set aside."""
        for card in cards:
            heapq.heappush(self._cards, card)

    def draw(self, now: float, most: int) -> list[Card]:
        """Give away up to ``most`` jobs whose time has come."""
        drawn: list[Card] = []
        while self._cards and len(drawn) < most and self._cards[0].due <= now:
            drawn.append(heapq.heappop(self._cards))
        return drawn

    def set_aside(self, *, schedules: Collection[str] = (), jobs: Collection[UUID] = ()) -> list[Card]:
        """Give away the jobs of these schedules, and these jobs, whether or not their time has come."""
        chosen = [card for card in self._cards if card.job.schedule_id in schedules or card.job.id in jobs]
        if chosen:
            gone = {card.order for card in chosen}
            self._cards = [card for card in self._cards if card.order not in gone]
            heapq.heapify(self._cards)
        return chosen

    def clear(self) -> None:
        """Forget all."""
        self._cards.clear()


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
