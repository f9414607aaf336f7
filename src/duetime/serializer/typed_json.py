"""Typed JSON: what goes into the store comes back as the same values, and nothing in it can name code.

Plain JSON values are stored as they are. A value of another type is an object with one key that begins with
``$``::

    {"$tuple": [1, {"$datetime": ["2026-06-01T09:00:00", "Europe/Berlin"]}]}

A dict that itself looks like that, or has keys that are not text, is stored as ``{"$dict": [[key, value],
…]}``, so every dict comes back as it was. Reading builds values of the types listed here and triggers of
allowed classes; it imports and calls nothing that the data names (promise 9).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NoReturn
from uuid import UUID
from zoneinfo import ZoneInfo

from apscheduler.abc import Serializer, Trigger
from apscheduler.triggers.calendarinterval import CalendarIntervalTrigger
from apscheduler.triggers.combining import AndTrigger, BaseCombiningTrigger, OrTrigger
from apscheduler.triggers.cron import CronTrigger
from apscheduler.triggers.date import DateTrigger
from apscheduler.triggers.interval import IntervalTrigger

from duetime.errors import InvalidTrigger, UnreadableValue, UnsupportedValue, did_you_mean
from duetime.triggers import CalendarInterval, Cron, Excluding, Limited, RRule
from duetime.triggers.moving import restored, with_members

from .values import (
    LEAF_WRITERS,
    READERS,
    Refused,
    exception_parts,
    list_of,
    text_of,
    type_name,
    why_refused,
    write_uuid,
    write_zone,
)

MAX_DEPTH = 100
"""Levels of containers inside each other."""

KNOWN_TRIGGERS: Mapping[str, type[Trigger]] = {
    "date": DateTrigger,
    "interval": IntervalTrigger,
    "cron": CronTrigger,
    "calendar_interval": CalendarIntervalTrigger,
    "and": AndTrigger,
    "or": OrTrigger,
    "duetime.cron": Cron,
    "duetime.calendar_interval": CalendarInterval,
    "duetime.rrule": RRule,
    "duetime.excluding": Excluding,
    "duetime.limited": Limited,
}
"""Stored name → class, of APScheduler's own triggers and of ours. A name never changes: rows are stored under it."""

_SCALARS = frozenset({str, int, float, bool, type(None)})
_TEXT = frozenset({str})


class TypedJSONSerializer(Serializer):
    """Turns arguments, results, exceptions and triggers into typed JSON in UTF-8, and back.

    These come back exactly: ``None``, ``bool``, ``int`` of any size, ``float``, ``str``, ``list``, ``dict``
    with any of these as keys, ``tuple``, ``set``, ``frozenset``, ``bytes``, ``datetime``, ``date``,
    ``time``, ``timedelta``, ``timezone``, ``ZoneInfo``, ``UUID``, ``Decimal``, and triggers of known
    classes with their progress. Types are exact: an enum member, a named tuple or any other subclass is
    refused, since it would come back as something else. A ``datetime`` in a zone without an IANA name keeps
    the offset only, and an exception comes back as a :class:`StoredException`.

    :param triggers: classes of the application's own triggers; see :meth:`register_trigger`
    :raises InvalidTrigger: if one of them is no trigger class
    """

    def __init__(self, *, triggers: Iterable[type[Trigger]] = ()) -> None:
        self._trigger_classes: dict[str, type[Trigger]] = dict(KNOWN_TRIGGERS)
        self._trigger_names: dict[type[Trigger], str] = {cls: name for name, cls in KNOWN_TRIGGERS.items()}
        for cls in triggers:
            self.register_trigger(cls)
        self._encode = _encoder()
        self._decode = json.JSONDecoder(object_hook=self._read_object, parse_constant=_no_constant).decode
        self._writers: dict[type[Any], Callable[[Any, int], Any]] = {
            **LEAF_WRITERS,
            list: self._write_list,
            dict: self._write_dict,
            tuple: lambda value, depth: {"$tuple": self._write_list(value, depth)},
            set: lambda value, depth: {"$set": self._write_list(value, depth)},
            frozenset: lambda value, depth: {"$frozenset": self._write_list(value, depth)},
        }
        self._readers: dict[str, Callable[[Any], Any]] = {**READERS, "$trigger": self._read_trigger}

    def register_trigger(self, cls: type[Trigger], name: str | None = None) -> None:
        """Let triggers of this very class (not of its subclasses) be stored and read back by this serializer.

        The state goes through the class's own ``__getstate__`` and ``__setstate__``, and may hold any value
        that the serializer knows, other triggers included.

        :param name: what the class is called in the store; ``module.qualname`` by default. It must stay the
            same for as long as rows are stored under it.
        :raises InvalidTrigger: if it is no trigger class, or the name belongs to another class
        """
        if not (isinstance(cls, type) and issubclass(cls, Trigger)):
            raise InvalidTrigger(f"expected a subclass of apscheduler.abc.Trigger, got {cls!r}.")
        name = name or f"{cls.__module__}.{cls.__qualname__}"
        present = self._trigger_classes.get(name, cls)
        if present is not cls:
            raise InvalidTrigger(
                f"expected a name that is not in use for {cls!r}, got {name!r}, which is {present!r}. Pass another."
            )
        self._trigger_classes[name] = cls
        self._trigger_names[cls] = name

    def serialize(self, obj: object, *, where: str | None = None) -> bytes:
        """Return the value as typed JSON.

        :param where: what an error calls the value; by default ``args`` for a tuple, ``kwargs`` for a dict
        :raises UnsupportedValue: naming the path of a value without a stored form, and what to pass instead
        """
        # The usual arguments, a flat tuple or dict of plain values, cost little more than json.dumps.
        kind = type(obj)
        try:
            if kind is tuple:
                if _SCALARS.issuperset(map(type, obj)):  # type: ignore[call-overload]
                    return b'{"$tuple":%b}' % self._encode(obj).encode()
            elif kind is dict and _is_flat(obj):  # type: ignore[arg-type]
                return self._encode(obj).encode()
        except ValueError:
            pass  # nan, an infinity, a very long integer, half of a surrogate pair: they take the long way
        try:
            # A lone half of a surrogate pair, which UTF-8 cannot say, is passed through; JSON's escapes would make
            # one character of two halves.
            return self._encode(self._write(obj, 0)).encode("utf-8", "surrogatepass")
        except Refused as exc:
            path = (where or _root(obj)) + "".join(reversed(exc.steps))
            raise UnsupportedValue(
                f"{path}: {exc.problem}", details=[{"where": path, "problem": exc.problem}]
            ) from None
        except RecursionError:
            raise UnsupportedValue(
                f"{where or _root(obj)}: expected a value nested at most {MAX_DEPTH} levels deep, got more."
            ) from None

    def deserialize(self, serialized: bytes) -> Any:
        """Return the value of typed JSON.

        :raises UnreadableValue: if the bytes are not what :meth:`serialize` writes, or name an unknown
            trigger class
        """
        try:
            return self._decode(str(serialized, "utf-8", "surrogatepass"))
        except UnreadableValue:
            raise
        except RecursionError:
            raise UnreadableValue(
                f"expected a stored value nested at most {MAX_DEPTH} levels deep, got a deeper one."
            ) from None
        except Exception as exc:
            raise UnreadableValue(f"expected a value stored as typed JSON in UTF-8, got: {exc}") from exc

    def _write(self, value: Any, depth: int) -> Any:
        kind = type(value)
        if kind is str or kind is bool or value is None:
            return value
        writer = self._writers.get(kind)
        return writer(value, depth) if writer else self._write_other(value, depth)

    def _write_list(self, value: Iterable[Any], depth: int) -> list[Any]:
        _check_depth(depth)
        written: list[Any] = []
        try:
            for item in value:
                written.append(self._write(item, depth + 1))  # noqa: PERF401 - its length is the index
        except Refused as exc:
            exc.steps.append(f"[{len(written)}]")
            raise
        return written

    def _write_dict(self, value: dict[Any, Any], depth: int) -> dict[str, Any]:
        _check_depth(depth)
        key: Any = None
        try:
            if _TEXT.issuperset(map(type, value)) and not _looks_tagged(value):
                written = {}
                for key, item in value.items():
                    written[key] = self._write(item, depth + 1)
                return written
            pairs = []
            for key, item in value.items():
                pairs.append([self._write(key, depth + 1), self._write(item, depth + 1)])
            return {"$dict": pairs}
        except Refused as exc:
            exc.steps.append(_key_step(key))
            raise

    def _write_other(self, value: Any, depth: int) -> Any:
        try:
            return self._write_object(value, depth)
        except (Refused, RecursionError):
            raise
        except Exception as exc:  # a class may do anything when it is looked at
            raise Refused(f"expected a plain value, got {type_name(value)}, which raised {type_name(exc)}.") from exc

    def _write_object(self, value: Any, depth: int) -> Any:
        if isinstance(value, Trigger):
            return {"$trigger": self._write_trigger(value, depth)}
        if isinstance(value, BaseException):
            return {"$exception": exception_parts(value)}
        # These subclasses stand for the same value, and equal it: asyncpg's UUID, pendulum's time zones.
        if isinstance(value, UUID):
            return write_uuid(value, depth)
        if isinstance(value, ZoneInfo):
            return write_zone(value, depth)
        raise Refused(why_refused(value))

    def _write_trigger(self, trigger: Trigger, depth: int) -> list[Any]:
        name = self._trigger_names.get(type(trigger))
        if name is None:
            raise Refused(
                f"expected a trigger of a known class, got {type_name(trigger)}. Register the class with "
                f"TypedJSONSerializer.register_trigger in every process that uses the store."
            )
        try:
            state = trigger.__getstate__()
        except Exception as exc:
            raise Refused(f"expected a trigger that gives its state, got {type_name(trigger)}: {exc!r:.500}") from exc
        if isinstance(trigger, BaseCombiningTrigger) and isinstance(state, dict):
            # Members are stored as triggers under their allowed names, not as APScheduler's "module:class".
            state = {**state, "triggers": list(trigger.triggers)}
        return [name, self._write(state, depth)]

    def _read_object(self, data: dict[str, Any]) -> Any:
        if len(data) != 1:
            return data
        ((tag, content),) = data.items()
        if not tag.startswith("$"):
            return data
        reader = self._readers.get(tag)
        if reader is None:
            raise UnreadableValue(
                f"expected one of the tags {', '.join(self._readers)} in a stored value, got {tag!r:.60}"
                f"{did_you_mean(tag[:60], self._readers)}"
            )
        try:
            return reader(content)
        except UnreadableValue:
            raise
        except Exception as exc:
            raise UnreadableValue(f"expected the content of {tag!r} as Duetime writes it, got: {exc!r:.500}") from exc

    def _read_trigger(self, content: Any) -> Trigger:
        name, state = list_of(content, 2)
        cls = self._trigger_classes.get(text_of(name))
        if cls is None:
            raise UnreadableValue(
                f"expected the stored name of a known trigger class, got {name!r:.100}"
                f"{did_you_mean(name[:100], self._trigger_classes)} "
                f"Known: {', '.join(self._trigger_classes)}."
                f" Register an application's own class with TypedJSONSerializer.register_trigger."
            )
        if not (issubclass(cls, BaseCombiningTrigger) and isinstance(state, dict) and "triggers" in state):
            return restored(cls, state)
        members = list_of(state["triggers"])
        if not all(isinstance(member, Trigger) for member in members):
            raise TypeError(f"the members of {name!r} are not triggers")
        return with_members(cls, state, members)


def _encoder() -> Callable[[Any], str]:
    """Return what writes JSON; ``JSONEncoder.encode`` makes a new C encoder for each value, which costs more than most
    values do."""
    plain = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False, check_circular=False)
    make = getattr(json.encoder, "c_make_encoder", None)  # CPython
    if make is None:
        return plain.encode
    write = make(None, plain.default, json.encoder.encode_basestring, None, ":", ",", False, False, False)
    return lambda value: "".join(write(value, 0))


def _key_step(key: object) -> str:
    if type(key) is not str:
        return f"[{type_name(key)} key]"
    return f".{key}" if key.isidentifier() else f"[{key!r:.60}]"


def _root(obj: object) -> str:
    if isinstance(obj, Trigger):
        return "trigger"
    if type(obj) is tuple:
        return "args"
    return "kwargs" if type(obj) is dict else "value"


def _looks_tagged(value: dict[str, Any]) -> bool:
    return len(value) == 1 and next(iter(value)).startswith("$")


def _is_flat(value: dict[Any, Any]) -> bool:
    """Return whether JSON says the dict as it is: keys of text, plain values, and no look of a tag."""
    return (
        _SCALARS.issuperset(map(type, value.values()))
        and _TEXT.issuperset(map(type, value))
        and not _looks_tagged(value)
    )


def _check_depth(depth: int) -> None:
    if depth >= MAX_DEPTH:
        raise Refused(f"expected a value nested at most {MAX_DEPTH} levels deep, got more. Does it contain itself?")


def _no_constant(name: str) -> NoReturn:
    raise UnreadableValue(f"expected the tag '$float' for a number that JSON cannot say, got a bare {name}.")
