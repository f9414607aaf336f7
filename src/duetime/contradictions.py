"""Options that cannot all be meant: found out before anything is stored, all at once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

from apscheduler.abc import Trigger

from .errors import InvalidArguments, InvalidOptions, UnknownTask
from .options import METADATA_PREFIX, CatchUp, Overlap, TaskOptions, option_problems
from .records import Failure, FireState
from .tasks import TaskRegistry
from .triggers import upcoming

_LOOKED_AT = 5
"""Fire times that are looked at for how close together they are."""

_EXAMPLE = Failure(
    job_id="00000000-0000-0000-0000-000000000000",
    task="work",
    state=FireState.failed,
    attempts=1,
    error=None,
    failed_at=datetime(2026, 1, 1, tzinfo=UTC),
)


def check_schedule(
    metadata: Mapping[str, Any],
    registry: TaskRegistry,
    trigger: Trigger | None,
    expires_at: datetime | None,
    now: datetime,
    coalesce: str | None = None,
) -> None:
    """Do nothing if the options in a schedule's metadata, its task's included, can all be meant.

    :param registry: where ``on_failure`` is looked up
    :param trigger: when the schedule fires; None: that is not known
    :param expires_at: when its attempts have to be over; None: at no time
    :param coalesce: the policy that the caller has given; None: none
    :raises InvalidOptions: with one detail for each that cannot
    """
    wrong = [*option_problems(metadata), *_contradicted(coalesce, metadata.get(f"{METADATA_PREFIX}catch_up"))]
    details = [{"where": "options", "problem": f"expected {problem}"} for problem in wrong]
    try:
        options = TaskOptions.from_metadata(metadata)
    except ValueError:  # which is among what is wrong
        options = TaskOptions()
    looks_ahead = trigger is not None and options.retry.max_attempts > 1 and options.overlap is not Overlap.allow
    fires = upcoming(trigger, _LOOKED_AT) if trigger is not None and looks_ahead else []
    try:
        check(options, registry, fires, None if expires_at is None else expires_at - now)
    except InvalidOptions as exc:
        if not wrong:
            raise
        details += exc.details
    if details:
        raise InvalidOptions(f"{'; '.join(each['problem'] for each in details)}.", details=details)


def _contradicted(coalesce: str | None, catch_up: Any) -> Iterator[str]:
    if coalesce is not None and catch_up in (CatchUp.all, CatchUp.latest) and coalesce != catch_up:
        yield (
            f"coalesce to be {str(catch_up)!r} or left out with catch_up={str(catch_up)!r}, got {coalesce!r}: both say "
            f"which of several due fires run"
        )


def check(
    options: TaskOptions, registry: TaskRegistry, fires: Sequence[datetime], expires_in: timedelta | None = None
) -> None:
    """Do nothing if the effective options of a schedule can all be meant.

    :param registry: where ``on_failure`` is looked up
    :param fires: the schedule's next fire times
    :param expires_in: the time until its attempts have to be over; None: any
    :raises InvalidOptions: with one detail for each that cannot
    """
    problems = _problems(options, registry, fires, expires_in)
    details = [{"where": f"options.{option}", "problem": problem} for option, problem in problems]
    if details:
        listed = "; ".join(f"{detail['where'].removeprefix('options.')}: {detail['problem']}" for detail in details)
        raise InvalidOptions(f"expected options that can all be meant, but: {listed}.", details=details)


def _problems(
    options: TaskOptions, registry: TaskRegistry, fires: Sequence[datetime], expires_in: timedelta | None
) -> Iterator[tuple[str, str]]:
    retry = options.retry
    if retry.max_attempts > 1:
        if retry.backoff > retry.max_backoff:
            most = f"{retry.max_backoff:g} s"
            yield "retry", f"expected a backoff of at most max_backoff, {most}, got {retry.backoff:g} s"
        yield from _outlived(options, fires)
        if expires_in is not None and expires_in < retry.longest():
            left = f"{max(0.0, expires_in.total_seconds()):.0f} s"
            took = f"its {retry.max_attempts} attempts can wait for {_said(retry.longest())}"
            yield "retry", f"expected attempts that end before the schedule expires, in {left}, but {took}"
    if options.on_failure is not None:
        try:
            registry.find(options.on_failure).bind(kwargs={"failure": _EXAMPLE.model_dump(mode="json")})
        except UnknownTask as exc:
            yield "on_failure", exc.message.removesuffix(".")
        except InvalidArguments as exc:
            yield "on_failure", f"expected a task that takes the argument `failure`; {exc.message.removesuffix('.')}"


def _outlived(options: TaskOptions, fires: Sequence[datetime]) -> Iterator[tuple[str, str]]:
    """Say of a retry policy that it goes on when the schedule fires again.

    It is the waits that count, without the time that the attempts take. With ``overlap=allow`` no fire waits for
    another one, so that no next fire is in the way.
    """
    longest = options.retry.longest()
    gap = min((later - earlier for earlier, later in pairwise(fires)), default=None)
    if options.overlap is not Overlap.allow and gap is not None and longest > gap:
        took = f"its {options.retry.max_attempts} attempts can wait for {_said(longest)}"
        problem = f"expected attempts that end before the next fire, which comes after {_said(gap)}, but {took}. "
        yield "retry", f"{problem}Take fewer attempts or shorter waits, or overlap 'allow'"


def _said(duration: timedelta) -> str:
    return f"{duration.total_seconds():g} s"
