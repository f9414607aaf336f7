"""How long a run takes: how often and how much is measured."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Scale:
    """The amounts of one form of the benchmarks. Times in seconds, ``rtt`` are round-trip times.

    :ivar queues: whether the peers beside APScheduler, pgqueuer and the floor take part in everything
    """

    name: str
    repeats: int
    startup_rtts: tuple[float, ...]
    add_rtts: tuple[float, ...]
    add_seconds: float
    bursts: tuple[int, ...]
    steady: tuple[tuple[int, float, float], ...]  # fires per second, for how long, rtt
    idle_seconds: float
    others: tuple[int, ...]
    nodes: tuple[int, ...]
    node_jobs: int
    kill_seconds: float  # for how long what was interrupted is waited for
    queues: bool


FULL = Scale(
    name="full",
    repeats=5,
    startup_rtts=(0, 0.005, 0.07, 0.15),
    add_rtts=(0, 0.005),
    add_seconds=2.0,
    bursts=(1_000, 5_000, 10_000),
    steady=((50, 20.0, 0), (500, 10.0, 0), (50, 20.0, 0.07), (500, 10.0, 0.07)),
    idle_seconds=180.0,
    others=(10_000, 100_000, 1_000_000),
    nodes=(1, 2, 4),
    node_jobs=4_000,
    kill_seconds=150.0,
    queues=True,
)

SHORT = Scale(
    name="short",
    repeats=1,
    startup_rtts=(0, 0.07),
    add_rtts=(0,),
    add_seconds=1.0,
    bursts=(1_000,),
    steady=((50, 5.0, 0), (50, 5.0, 0.07)),
    idle_seconds=60.0,
    others=(10_000,),
    nodes=(1, 2),
    node_jobs=500,
    kill_seconds=40.0,
    queues=False,
)
