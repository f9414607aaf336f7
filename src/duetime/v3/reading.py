"""Reads a row of APScheduler 3 as data, and says what cannot be carried over."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from duetime.errors import UnreadablePickle

from .allowing import Allowed
from .model import Finding, Reading, V3Job, V3Row, V3Trigger, V3Unknown
from .pickles import Made, Named, take_apart
from .standins import Unfit, Values
from .trigger_states import Damaged, NotKnown, aware, fields_of, text_of, trigger_of

__all__ = ["Allowed", "read"]

_KEYS = (
    "id", "func", "trigger", "executor", "args", "kwargs", "name", "misfire_grace_time", "coalesce", "max_instances",
    "next_run_time",
)  # fmt: skip

_NO_CLASSES = Allowed()


def read(row: V3Row, allowed: Allowed = _NO_CLASSES) -> Reading:
    """Return what the row says, whatever is in it: a row that cannot be read is a reading without a job.

    Nothing that the row names is imported or called. It takes less than 64 MiB and a second, whatever the row holds.

    :param allowed: the application's enums and dataclasses whose values are carried over as data
    """
    values = Values(allowed)
    try:
        job = _job(row, values)
    except UnreadablePickle as exc:
        return Reading(row, None, (Finding(exc.code, exc.message, "reject"),))
    except Damaged as exc:
        text = (
            f"expected the state of a job as APScheduler 3.0 to 3.11 writes it, got something else: {exc}. Find out "
            f"who wrote the row, and schedule the job anew."
        )
        return Reading(row, None, (Finding("not_a_job", text, "reject"),))
    except RecursionError:
        text = "expected a pickle of a job, got one that is nested without end. Find out who wrote the row."
        return Reading(row, None, (Finding("unreadable_pickle", text, "reject"),))
    return Reading(row, job, tuple(values.findings.values()))


def _job(row: V3Row, values: Values) -> V3Job:
    state = fields_of(take_apart(row.job_state))
    if missing := [name for name in _KEYS if name not in state]:
        raise Damaged(f"it has no {', '.join(missing)}")
    version = state.get("version", 1)
    if version != 1:
        raise Damaged(f"it is of version {version!r:.20}, and v3 writes 1")
    job = V3Job(
        id=text_of(state["id"]),
        func=_reference(state["func"]),
        trigger=_trigger(values, state["trigger"]),
        executor=text_of(state["executor"]),
        args=_args(values, state["args"]),
        kwargs=_kwargs(values, state["kwargs"]),
        name=text_of(state["name"]),
        misfire_grace_time=_grace(state["misfire_grace_time"]),
        coalesce=bool(state["coalesce"]),
        max_instances=_instances(state["max_instances"]),
        next_run_time=_next(row, values, state["next_run_time"]),
    )
    _compare(row, job, values)
    return job


def _reference(found: Any) -> str:
    reference = text_of(found)
    module, colon, name = reference.partition(":")
    if not (module and colon and name) or len(reference) > 1000:
        raise Damaged(f"its function is {reference!r:.80}, which is not module:name")
    return reference


def _trigger(values: Values, found: Any) -> V3Trigger:
    try:
        return trigger_of(values, found)
    except NotKnown as exc:
        if exc.is_zone:
            values.say(
                "unknown_zone",
                f"its trigger is in a time zone that cannot be read: {exc.reference:.120}. Schedule the job anew in a "
                f"zone with an IANA name.",
                "review",
            )
        else:
            values.say(
                "unknown_trigger",
                f"its trigger is, or needs, {exc.reference:.120}, which is not a class of APScheduler 3 and is not "
                f"imported. Write the class as a trigger for APScheduler 4, and schedule the job anew.",
                "review",
            )
        return V3Unknown(exc.reference)


def _args(values: Values, found: Any) -> tuple[Any, ...]:
    if type(found) is not tuple and type(found) is not list:
        raise Damaged("its args are no tuple")
    made = values.carried(found, "args")
    return tuple(made) if isinstance(made, list | tuple) else (made,)


def _kwargs(values: Values, found: Any) -> Mapping[str, Any]:
    fields_of(found)
    made = values.carried(found, "kwargs")
    if type(made) is not dict:
        raise Damaged("its kwargs are no dict")
    return made


def _grace(found: Any) -> float | None:
    if found is not None and (type(found) not in (int, float) or not 0 < found < 1e12):
        raise Damaged("its misfire_grace_time is neither a number of seconds nor None")
    return found  # type: ignore[no-any-return]


def _instances(found: Any) -> int:
    if type(found) is not int or found < 1:
        raise Damaged("its max_instances is no number from 1 up")
    return min(found, 2**31 - 1)


def _next(row: V3Row, values: Values, found: Any) -> datetime | None:
    if found is None:
        return None
    if type(found) is not Made or type(found.maker) is not Named or found.maker.reference != "datetime:datetime":
        raise Damaged("its next_run_time is no date")
    try:
        return aware(values, found)
    except (Unfit, ValueError, TypeError, IndexError, OverflowError):
        raise Damaged("its next_run_time is no date") from None
    except NotKnown as exc:
        if row.next_run_time is None:
            raise Damaged(f"its next_run_time is in a time zone that cannot be read: {exc.reference:.80}") from None
        try:
            return datetime.fromtimestamp(row.next_run_time, UTC)  # the instant is there once more
        except (ValueError, OverflowError, OSError):
            raise Damaged(f"its next_run_time is in a time zone that cannot be read: {exc.reference:.80}") from None


def _compare(row: V3Row, job: V3Job, values: Values) -> None:
    """Say where the columns and the state differ: v3 chooses rows by the column, and fires by the state."""
    if row.id != job.id:
        values.say(
            "another_id",
            f"the row's id is {row.id!r:.200}, and its state is that of the job {job.id!r:.200}. Somebody has changed "
            f"the table by hand: find out which of them is meant.",
            "review",
        )
    stored, own = row.next_run_time, job.next_run_time
    is_same = stored is None if own is None else stored is not None and abs(stored - own.timestamp()) <= 0.001
    if not is_same:
        values.say(
            "another_next_run_time",
            "the row's next_run_time is not that of its state. Somebody has changed the table by hand: find out which "
            "of them is meant.",
            "review",
        )
