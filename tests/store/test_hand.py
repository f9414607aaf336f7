"""The jobs that a node holds: by their time, and found by their schedule without a look at the others."""

from __future__ import annotations

import random
from uuid import UUID

import pytest
from apscheduler import Job

from duetime.store.hand import Hand

from .parts import a_job


def held(hand: Hand, *dues: float, schedule_id: str | None = None) -> list[Job]:
    jobs = [a_job(schedule_id=schedule_id) for _ in dues]
    for job, due in zip(jobs, dues, strict=True):
        hand.take(job, due, leased_until=1e9)
    return jobs


def drawn(hand: Hand, now: float, most: int = 1000) -> list[UUID]:
    return [card.job.id for card in hand.draw(now, most)]


def test_jobs_are_drawn_by_their_time_and_of_one_time_in_the_order_they_came() -> None:
    hand = Hand()
    third, first, fourth, second, later = held(hand, 3.0, 1.0, 3.0, 2.0, 9.0)
    assert hand.next_due == 1.0
    assert drawn(hand, 5.0, most=2) == [first.id, second.id]
    assert drawn(hand, 5.0) == [third.id, fourth.id]
    assert (len(hand), hand.next_due) == (1, 9.0)
    assert [card.job for card in hand] == [later]


def of_priorities(hand: Hand, *given: tuple[int, float]) -> list[Job]:
    jobs = [a_job(metadata={"duetime.priority": priority}) for priority, _ in given]
    for job, (_, due) in zip(jobs, given, strict=True):
        hand.take(job, due, leased_until=1e9)
    return jobs


def test_of_those_whose_time_has_come_a_higher_priority_is_drawn_first() -> None:
    hand = Hand()
    low, high, middle, early, later = of_priorities(hand, (0, 1.0), (9, 2.0), (5, 2.0), (5, 1.5), (9, 7.0))
    assert drawn(hand, 3.0, most=2) == [high.id, early.id]
    assert hand.next_due == 1.0, "that of the lowest counts, too"
    [waiting] = hand.set_aside(jobs=[middle.id])
    hand.put_back([waiting])
    assert drawn(hand, 3.0) == [middle.id, low.id]
    assert hand.next_due == 7.0
    [plain] = held(hand, 3.5)
    assert drawn(hand, 4.0) == [plain.id]
    assert drawn(hand, 8.0) == [later.id]
    assert len(hand) == 0
    assert hand.next_due is None


@pytest.mark.parametrize("priority", [10, -1, True, "9", None, 1.5])
def test_what_cannot_be_a_priority_is_none(priority: object) -> None:
    hand = Hand()
    plain = a_job()
    hand.take(plain, 1.0, leased_until=1e9)
    hand.take(a_job(metadata={"duetime.priority": priority}), 2.0, leased_until=1e9)
    assert drawn(hand, 3.0, most=1) == [plain.id]


def test_what_was_set_aside_is_not_drawn_and_comes_back_in_its_old_place() -> None:
    hand = Hand()
    first, second, third = held(hand, 1.0, 1.0, 1.0)
    [card] = hand.set_aside(jobs=[second.id, UUID(int=7)])
    assert card.job is second
    assert len(hand) == 2
    hand.put_back([card])
    assert drawn(hand, 1.0) == [first.id, second.id, third.id]
    assert hand.next_due is None


def test_the_time_of_a_card_may_change_while_it_is_set_aside() -> None:
    hand = Hand()
    first, second = held(hand, 1.0, 2.0)
    [card] = hand.set_aside(jobs=[first.id])
    card.due = 3.0
    hand.put_back([card])
    assert hand.next_due == 2.0
    assert drawn(hand, 2.5) == [second.id]
    assert drawn(hand, 3.0) == [first.id]
    assert drawn(hand, 9.0) == []


def test_a_schedule_has_its_jobs_set_aside_and_no_others() -> None:
    hand = Hand()
    mine = held(hand, 1.0, 5.0, schedule_id="mine")
    held(hand, 1.0, schedule_id="yours")
    held(hand, 1.0)
    assert hand.has_jobs_of("mine")
    assert {card.job.id for card in hand.set_aside(schedules=["mine", "nobody's"])} == {job.id for job in mine}
    assert not hand.has_jobs_of("mine")
    assert hand.has_jobs_of("yours")
    assert len(hand) == 2


def test_a_job_that_is_named_twice_is_set_aside_once() -> None:
    hand = Hand()
    [job] = held(hand, 1.0, schedule_id="s")
    assert len(hand.set_aside(schedules=["s", "s"], jobs=[job.id, job.id])) == 1
    assert len(hand) == 0


def test_setting_aside_again_and_again_leaves_nothing_behind() -> None:
    """As each reconnection does, with all of them."""
    hand = Hand()
    jobs = held(hand, *range(100, 200))
    for _ in range(1000):
        hand.put_back(hand.set_aside(jobs=[job.id for job in jobs]))
    assert len(hand._entries) <= 400
    assert drawn(hand, 1000.0) == [job.id for job in jobs]


@pytest.mark.parametrize("highest", [0, 3])
@pytest.mark.parametrize("most", [1000, 2])
def test_any_order_of_steps_gives_each_job_away_once_and_in_time(highest: int, most: int) -> None:
    chance = random.Random(4)
    hand, aside, gone = Hand(), [], []
    given = [(chance.randint(0, highest), chance.uniform(0, 100)) for _ in range(300)]
    jobs = {job.id: job for job in of_priorities(hand, *given)}
    for now in range(101):
        aside += hand.set_aside(jobs=chance.sample(sorted(jobs), 5))
        chance.shuffle(aside)
        hand.put_back([aside.pop() for _ in range(len(aside) // 2)])
        cards = hand.draw(now, most)
        assert all(card.due <= now for card in cards)
        places = [(-card.priority, card.due) for card in cards]
        assert places == sorted(places)
        left = [(-card.priority, card.due) for card in hand if card.due <= now]
        assert not left or (len(cards) == most and min(left) >= places[-1]), "what is left has to wait"
        assert hand.next_due == min((card.due for card in hand), default=None)
        gone += [card.job.id for card in cards]
    hand.put_back(aside)
    gone += drawn(hand, 1000)
    assert sorted(gone) == sorted(jobs)
