"""Makes a trigger of the state in which v3 pickled it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from datetime import date, datetime, time, timedelta
from typing import Any

from .cron_fields import FIELDS, MONTHS, POSITIONS, WEEKDAYS, following
from .model import (
    V3And,
    V3CalendarInterval,
    V3Cron,
    V3Date,
    V3Interval,
    V3Or,
    V3Trigger,
    V3Zone,
)
from .pickles import NOTHING, Made, Named, NativeText, Pairs
from .standins import Unfit, Values, delta, moment
from .zones import UnknownZone, zone_of

MAX_MEMBERS = 100
"""Members of an And or Or, those of their members included."""


class Damaged(Exception):
    """The state is not one that v3 writes."""


class NotKnown(Exception):
    """The state needs a class of the application's own, or a zone that is not known.

    :ivar reference: ``module:class``, or the zone's name
    """

    def __init__(self, reference: str, *, is_zone: bool = False) -> None:
        super().__init__(reference)
        self.reference = reference
        self.is_zone = is_zone


def trigger_of(values: Values, found: Any) -> V3Trigger:
    """Return the trigger that a call and its state stand for.

    :raises NotKnown: if it needs a class that is not v3's own, or a zone that is not known
    :raises Damaged: if its state is not one that v3 writes
    """
    if type(found) is not Made or type(found.maker) is not Named or found.args or found.state is NOTHING:
        if type(found) is Made and type(found.maker) is Named and found.maker.reference not in _READERS:
            raise NotKnown(found.maker.reference)
        raise Damaged("its trigger is no trigger")
    return _Trigger(values).read(found.maker.reference, found.state)


class _Trigger:
    """Reads one trigger and its members, and counts them."""

    def __init__(self, values: Values) -> None:
        self.values = values
        self.count = 0

    def read(self, reference: str, raw: Any) -> V3Trigger:
        self.count += 1
        if self.count > MAX_MEMBERS:
            raise Damaged(f"its trigger has more than {MAX_MEMBERS} members")
        reader = _READERS.get(reference)
        if reader is None:
            raise NotKnown(reference)
        newest, read = reader
        state = fields_of(raw)
        version = state.get("version", 1)
        if type(version) is not int or not 1 <= version <= newest:
            raise Damaged(f"the state of {reference} is of version {version!r:.20}, and v3 writes up to {newest}")
        try:
            return read(self, state)
        except KeyError as exc:
            raise Damaged(f"the state of {reference} has no {exc}") from None
        except (Unfit, ValueError, TypeError, OverflowError, IndexError) as exc:
            raise Damaged(
                f"the state of {reference} is not what v3 writes ({type(exc).__name__}: {exc!s:.80})"
            ) from None

    def date(self, state: Mapping[str, Any]) -> V3Date:
        run_date = self.moment(state["run_date"])
        if run_date is None:
            raise Damaged("its run_date is missing")
        return V3Date(run_date)

    def interval(self, state: Mapping[str, Any]) -> V3Interval:
        start = self.moment(state["start_date"])
        length = delta(state["interval"])
        if start is None or length <= timedelta(0):
            raise Damaged("its interval has no start, or does not go forward")
        end = self.moment(state["end_date"])
        return V3Interval(length, start, end, self.zone(state["timezone"]), _jitter(state))

    def cron(self, state: Mapping[str, Any]) -> V3Cron:
        found = state["fields"]
        if type(found) is not list or len(found) != len(FIELDS):
            raise Damaged("its cron trigger has not the eight fields")
        fields, defaults = {}, set()
        for name, field in zip(FIELDS, found, strict=True):
            own = _own_state(field, _FIELD_CLASSES)
            if text_of(own["name"]) != name:
                raise Damaged(f"its field {name!r} is not where it should be")
            fields[name] = ",".join(_expressions(own["expressions"]))
            following(name, fields[name])  # raises ValueError if it is none
            if own["is_default"]:
                defaults.add(name)
        return V3Cron(
            fields,
            self.moment(state["start_date"]),
            self.moment(state["end_date"]),
            self.zone(state["timezone"]),
            _jitter(state),
            frozenset(defaults),
        )

    def calendar_interval(self, state: Mapping[str, Any]) -> V3CalendarInterval:
        years, months, weeks, days = (_whole(part, 0, 100_000) for part in _list(state["interval"], 4))
        hour, minute, second = (_whole(part, 0, 59) for part in _list(state["time"], 3))
        time(hour, minute, second)
        start, end = (self.values.value(state[name]) for name in ("start_date", "end_date"))
        if (
            not isinstance(start, date)
            or not (end is None or isinstance(end, date))
            or not years + months + weeks + days
        ):
            raise Damaged("its calendar interval has no start, or does not go forward")
        zone = self.zone(state["timezone"])
        return V3CalendarInterval(years, months, weeks, days, hour, minute, second, start, end, zone, _jitter(state))

    def all_of(self, state: Mapping[str, Any]) -> V3And:
        return V3And(tuple(self.members(state)), _jitter(state))

    def any_of(self, state: Mapping[str, Any]) -> V3Or:
        return V3Or(tuple(self.members(state)), _jitter(state))

    def members(self, state: Mapping[str, Any]) -> Iterator[V3Trigger]:
        for member in _list(state["triggers"], None):
            reference, raw = _list(member, 2)
            yield self.read(text_of(reference), raw)

    def moment(self, found: Any) -> datetime | None:
        if found is None:
            return None
        if type(found) is not Made or type(found.maker) is not Named or found.maker.reference != "datetime:datetime":
            raise Damaged("one of its dates is no date")
        return aware(self.values, found)

    def zone(self, found: Any) -> V3Zone:
        try:
            return zone_of(found)
        except UnknownZone as exc:
            raise NotKnown(exc.what, is_zone=True) from None


def aware(values: Values, found: Made) -> datetime:
    """Return the moment that a datetime stands for.

    :raises NotKnown: if its zone is not known
    :raises Damaged: if it is none, or has no zone
    """
    if len(found.args) == 2 and found.args[1] is not None:
        try:
            zone_of(found.args[1])
        except UnknownZone as exc:
            raise NotKnown(exc.what, is_zone=True) from None
    made = moment(values, found)
    if made.tzinfo is None:
        raise Damaged("one of its dates has no time zone")
    return made


def fields_of(found: Any) -> dict[str, Any]:
    """Return the stand-ins of a state by name.

    :raises Damaged: if it is no dict with text for keys
    """
    if type(found) is not Pairs or len(found) > 2000:
        raise Damaged("one of its states is no dict")
    return dict(zip(map(text_of, found[::2]), found[1::2], strict=True))


def text_of(found: Any) -> str:
    """Return text, Python 2's too.

    :raises Damaged: if it is none
    """
    if type(found) is str:
        return found
    if type(found) is NativeText:
        try:
            return found.decode("utf-8")
        except UnicodeDecodeError:
            pass
    raise Damaged("something in its place for text is no text")


def _own_state(found: Any, classes: Mapping[str, Any]) -> dict[str, Any]:
    if type(found) is not Made or type(found.maker) is not Named:
        raise Damaged("one of its cron fields is none")
    if found.maker.reference not in classes:
        raise NotKnown(found.maker.reference)
    return fields_of(found.state)


def _expressions(found: Any) -> Iterator[str]:
    if type(found) is not list or not 1 <= len(found) <= 1000:
        raise Damaged("one of its cron fields has no expressions")
    for expression in found:
        state = _own_state(expression, _EXPRESSIONS)
        yield _EXPRESSIONS[expression.maker.reference](state)


def _every(state: Mapping[str, Any]) -> str:
    return f"*{_step(state)}"


def _range(state: Mapping[str, Any]) -> str:
    first, last, step = _number(state["first"]), state.get("last"), _step(state)
    if last is None:
        return f"{first}{step}"
    last = _number(last)
    return str(first) if first == last and not step else f"{first}-{last}{step}"


def _names(names: tuple[str, ...], base: int) -> Callable[[Mapping[str, Any]], str]:
    def text(state: Mapping[str, Any]) -> str:
        first, last = names[_number(state["first"]) - base], state.get("last")
        return first if last is None or last == state["first"] else f"{first}-{names[_number(last) - base]}"

    return text


def _position(state: Mapping[str, Any]) -> str:
    return f"{POSITIONS[_number(state['option_num'])]} {WEEKDAYS[_number(state['weekday'])]}"


def _step(state: Mapping[str, Any]) -> str:
    step = state.get("step")
    return "" if step is None else f"/{_whole(step, 1, 9999)}"


def _number(found: Any) -> int:
    return _whole(found, 0, 9999)


def _whole(found: Any, lowest: int, highest: int) -> int:
    if type(found) is not int or not lowest <= found <= highest:
        raise Damaged(f"one of its numbers is not from {lowest} to {highest}")
    return found


def _list(found: Any, length: int | None) -> list[Any] | tuple[Any, ...]:
    if type(found) not in (list, tuple) or (length is not None and len(found) != length):
        raise Damaged("something in its place for a list is none")
    return found  # type: ignore[no-any-return]


def _jitter(state: Mapping[str, Any]) -> float | None:
    jitter = state.get("jitter")
    if jitter is not None and (type(jitter) not in (int, float) or not 0 <= abs(jitter) < 1e9):
        raise Damaged("its jitter is no number of seconds")
    return jitter


_CRON = "apscheduler.triggers.cron"
_FIELD_CLASSES = {
    f"{_CRON}.fields:{name}": None
    for name in ("BaseField", "WeekField", "DayOfMonthField", "DayOfWeekField", "MonthField")
}
_EXPRESSIONS: Mapping[str, Callable[[Mapping[str, Any]], str]] = {
    f"{_CRON}.expressions:AllExpression": _every,
    f"{_CRON}.expressions:RangeExpression": _range,
    f"{_CRON}.expressions:MonthRangeExpression": _names(MONTHS, 1),
    f"{_CRON}.expressions:WeekdayRangeExpression": _names(WEEKDAYS, 0),
    f"{_CRON}.expressions:WeekdayPositionExpression": _position,
    f"{_CRON}.expressions:LastDayOfMonthExpression": lambda state: "last",
}

_READERS: Mapping[str, tuple[int, Callable[[_Trigger, Mapping[str, Any]], V3Trigger]]] = {
    "apscheduler.triggers.date:DateTrigger": (1, _Trigger.date),
    "apscheduler.triggers.interval:IntervalTrigger": (2, _Trigger.interval),
    f"{_CRON}:CronTrigger": (2, _Trigger.cron),
    "apscheduler.triggers.calendarinterval:CalendarIntervalTrigger": (1, _Trigger.calendar_interval),
    "apscheduler.triggers.combining:AndTrigger": (1, _Trigger.all_of),
    "apscheduler.triggers.combining:OrTrigger": (1, _Trigger.any_of),
}
