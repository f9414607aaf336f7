"""The loop watchdog: how long the event loop stood still, and which code held it (promise 7)."""

from __future__ import annotations

import asyncio
import logging
import os
import queue
import selectors
import sys
import sysconfig
import threading
import time
from collections import Counter, deque
from collections.abc import Iterator
from concurrent.futures import thread
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from types import CodeType, FrameType

from . import threads

logger = logging.getLogger(__name__)

RECENT = 20
"""Stalls that are kept one by one."""

_SHORTEST_BEAT = 0.05
_LONGEST_BEAT = 1.0
_PATIENCE = 5.0
"""Seconds after which a stall is told of although it goes on."""

_FRAMES = 4
_SAMPLES = 50
_LIBRARIES = tuple(
    {
        f"{directory}{os.sep}"
        for name in ("stdlib", "platstdlib", "purelib", "platlib")
        for directory in (sysconfig.get_path(name), os.path.realpath(sysconfig.get_path(name)))
    }
)
# A thread whose innermost Python code is here probably waits for something to do.
_WAITING = frozenset({threading.__file__, selectors.__file__, queue.__file__, thread.__file__, threads.__file__})

Where = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Stall:
    """One time that the event loop stood still.

    :ivar began_at: when it began, in UTC, by the host's clock
    :ivar duration: seconds
    :ivar where: the code that held it, innermost first, as ``function (file:line)``
    """

    began_at: datetime
    duration: float
    where: Where


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What the watchdog has seen since it was made.

    :ivar stalls: how often the event loop stood still for longer than the threshold
    :ivar longest: seconds of the longest stall
    :ivar total: seconds of all stalls
    :ivar recent: the last :data:`RECENT` stalls, oldest first
    """

    stalls: int = 0
    longest: float = 0.0
    total: float = 0.0
    recent: tuple[Stall, ...] = ()


class LoopWatchdog:
    """Pings the event loop from a thread, and looks at what the loop is at when no answer comes.

    Each stall longer than the threshold is counted, and logged once, when it is over (or after five seconds, if it
    is not over by then), with the code that held the loop. A ping every half threshold is all that it costs: at most
    twenty small wake-ups a second.

    A stall is measured from a ping, so it may be reported up to half a threshold short. When the whole process stood
    still (SIGSTOP, a paused machine, no processor to be had), the thread was late itself and the loop's thread has
    used no processor time: that is not counted. When the loop's thread worked meanwhile, in C code that keeps the
    interpreter to itself, it is counted, and named after where that code was called or has just returned to.

    :param threshold: seconds; 0 switches the watchdog off
    """

    def __init__(self, threshold: float) -> None:
        self._threshold = threshold
        self._beat = min(_LONGEST_BEAT, max(_SHORTEST_BEAT, threshold / 2))
        self._stalls = 0
        self._longest = 0.0
        self._total = 0.0
        self._recent: deque[Stall] = deque(maxlen=RECENT)
        self._figures = threading.Lock()
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Watch the running event loop."""
        if self._threshold <= 0 or self._thread is not None:
            return
        self._stopping = threading.Event()
        watch = _Watch(asyncio.get_running_loop())
        self._thread = threading.Thread(
            target=self._run, args=(watch, self._stopping), name="duetime watchdog", daemon=True
        )
        self._thread.start()

    def stop(self) -> None:
        """End the thread."""
        watching, self._thread = self._thread, None
        if watching is not None:
            self._stopping.set()
            watching.join(timeout=1)

    def snapshot(self) -> Snapshot:
        """Return the figures; may be called from any thread."""
        with self._figures:
            return Snapshot(self._stalls, self._longest, self._total, tuple(self._recent))

    # From here on everything runs in the thread.

    def _run(self, watch: _Watch, stopping: threading.Event) -> None:
        while watch.ping():
            pinged_at = time.monotonic()
            samples: Counter[Where] = Counter()
            is_told = False
            while True:
                due = time.monotonic() + self._beat
                worked = watch.processor_time()
                if stopping.wait(self._beat):
                    return
                late = time.monotonic() - due
                if late > self._threshold / 2:
                    if watch.processor_time() - worked < late / 2:
                        pinged_at += late  # it was not the loop's thread that kept this one from running
                    else:
                        samples[watch.where()] += 1
                        if watch.answered_at is not None and watch.answered_at < due:
                            # The loop had answered before it was held: this thread's own delay is the measure.
                            watch.answered_at, pinged_at = due + late, due
                if watch.answered_at is not None:
                    break
                duration = time.monotonic() - pinged_at
                if duration >= self._threshold and samples.total() < _SAMPLES:
                    samples[watch.where()] += 1
                if duration >= _PATIENCE and not is_told:
                    is_told = True
                    self._tell(duration, _most(samples), "is blocked since")
            duration = watch.answered_at - pinged_at
            if duration >= self._threshold:
                self._count(duration, _most(samples))
                if is_told:
                    logger.warning("The event loop goes on, after %.3f s", duration)
                else:
                    self._tell(duration, _most(samples), "was blocked for")

    def _tell(self, duration: float, where: Where, verb: str) -> None:
        logger.warning("The event loop %s %.3f s by %s", verb, duration, " < ".join(where))

    def _count(self, duration: float, where: Where) -> None:
        stall = Stall(datetime.now(UTC) - timedelta(seconds=duration), duration, where)
        with self._figures:
            self._stalls += 1
            self._longest = max(self._longest, duration)
            self._total += duration
            self._recent.append(stall)


def _most(samples: Counter[Where]) -> Where:
    """Return where the loop was most often; a stall that was over before the thread could look has no place."""
    return samples.most_common(1)[0][0] if samples else ("code that had ended before it could be looked at",)


class _Watch:
    """The event loop, seen from a thread.

    :ivar answered_at: when the loop answered the last ping (``time.monotonic``); None until it does
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.answered_at: float | None = None
        self._loop = loop
        self._thread = threading.get_ident()
        self._clock = time.pthread_getcpuclockid(self._thread) if hasattr(time, "pthread_getcpuclockid") else None
        # The code that runs the loop itself, which is below all that the loop runs.
        self._base: frozenset[CodeType] = frozenset()

    def ping(self) -> bool:
        """Ask the loop for a sign of life, and return whether there still is a loop."""
        self.answered_at = None
        try:
            self._loop.call_soon_threadsafe(self._answer)
        except RuntimeError:
            return False
        return True

    def _answer(self) -> None:
        if not self._base:
            self._base = frozenset(frame.f_code for frame in _outward(sys._getframe(1)))
        self.answered_at = time.monotonic()

    def processor_time(self) -> float:
        """Return the seconds that the loop's thread has had a processor; those of the process where it is not known."""
        return time.process_time() if self._clock is None else time.clock_gettime(self._clock)

    def where(self) -> Where:
        """Return what the loop's thread is at."""
        frames = sys._current_frames()
        own = self._inside(frames.pop(self._thread, None))
        if own:
            return _told(own)
        # The loop itself is ready to go on: somebody else has the interpreter, or the processor.
        busy = [
            _told(list(_outward(frame)))
            for ident, frame in frames.items()
            if ident != threading.get_ident() and frame.f_code.co_filename not in _WAITING
        ]
        others = f"; another thread is in {' < '.join(busy[0])}" if busy else ""
        return (f"no code of its own{others}",)

    def _inside(self, frame: FrameType | None) -> list[FrameType]:
        """Return the frames of what the loop runs, innermost first; none when it waits for something to do."""
        inside: list[FrameType] = []
        for each in _outward(frame):
            if each.f_code in self._base:
                break
            inside.append(each)
        return [] if inside and inside[0].f_code.co_filename == selectors.__file__ else inside


def _outward(frame: FrameType | None) -> Iterator[FrameType]:
    while frame is not None:
        yield frame
        frame = frame.f_back


def _told(frames: list[FrameType]) -> Where:
    """Return the frames worth telling: the application's innermost ones, and the innermost one of all."""
    application = [frame for frame in frames if not frame.f_code.co_filename.startswith((*_LIBRARIES, "<frozen"))]
    chosen = (application or frames)[:_FRAMES]
    if chosen[0] is not frames[0]:
        chosen = [frames[0], *chosen[: _FRAMES - 1]]
    return tuple(f"{each.f_code.co_qualname} ({each.f_code.co_filename}:{each.f_lineno})" for each in chosen)
