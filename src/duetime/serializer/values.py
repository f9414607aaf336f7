"""The types with a stored form of their own: how each is written and read, and why others are refused."""

from __future__ import annotations

import base64
import math
from collections.abc import Callable
from dataclasses import is_dataclass
from datetime import date, datetime, time, timedelta, timezone, tzinfo
from decimal import Decimal
from enum import Enum
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

from duetime.triggers.zones import zone, zone_name

MAX_EXCEPTION_TEXT = 8_000
"""Characters of an exception's text that are kept."""

# Bits. Python limits how many digits a decimal integer may have (sys.set_int_max_str_digits, 640 at least).
_LONGEST_DECIMAL = 2_048


class StoredException(Exception):
    """An exception as it is read back: the name of its class and its text, never an instance of the class.

    :ivar type: qualified name of the exception's class, such as ``ValueError`` or ``httpx.ConnectError``
    :ivar message: its text, at most 8,000 characters
    """

    def __init__(self, type: str, message: str) -> None:  # noqa: A002 - the stored form's own word
        super().__init__(type, message)
        self.type = type
        self.message = message

    def __str__(self) -> str:
        return f"{self.type}: {self.message}" if self.message else self.type


class Refused(Exception):
    """A value has no stored form; its path is put together on the way out."""

    def __init__(self, problem: str) -> None:
        super().__init__(problem)
        self.problem = problem
        self.steps: list[str] = []


def _write_int(value: int, _depth: int) -> Any:
    return value if value.bit_length() <= _LONGEST_DECIMAL else {"$int": hex(value)}


def _write_float(value: float, _depth: int) -> Any:
    return value if math.isfinite(value) else {"$float": repr(value)}


def _write_datetime(value: datetime, _depth: int) -> dict[str, Any]:
    return {"$datetime": _clock(value)}


def _write_time(value: time, _depth: int) -> dict[str, Any]:
    return {"$time": _clock(value)}


def _clock(value: datetime | time) -> Any:
    """Return ISO text with its offset, if any, or ``[text, name of the zone or null, fold]``."""
    name = zone_name(value.tzinfo) if isinstance(value.tzinfo, ZoneInfo) else None
    if name is None:
        if value.tzinfo is not None and value.utcoffset() is None:
            raise Refused(
                f"expected a time in a zone with an IANA name or of a fixed offset, got {value!r}. Pass a "
                f"zoneinfo.ZoneInfo as its tzinfo."
            )
        return [value.isoformat(), None, 1] if value.fold else value.isoformat()
    text = value.replace(tzinfo=None).isoformat()
    return [text, name, 1] if value.fold else [text, name]


def _read_clock(kind: type[Any]) -> Callable[[Any], Any]:
    def read(content: Any) -> Any:
        if isinstance(content, str):
            return kind.fromisoformat(content)
        text, name, fold = (*list_of(content), 0)[:3]
        value = kind.fromisoformat(text).replace(fold=fold)
        return value if name is None else value.replace(tzinfo=zone(name))

    return read


def write_zone(value: ZoneInfo, _depth: int) -> dict[str, str]:
    name = zone_name(value)
    if name is None:
        raise Refused(
            f"expected a time zone with an IANA name, got {value!r}, which other machines do not know. Pass "
            f"timezone='Europe/Berlin' or the like."
        )
    return {"$zone": name}


def write_uuid(value: UUID, _depth: int) -> dict[str, str]:
    return {"$uuid": str(value)}


def _offset_parts(value: timedelta | None) -> list[int]:
    length = value or timedelta(0)
    return [length.days, length.seconds, length.microseconds]


def _read_timedelta(content: Any) -> timedelta:
    days, seconds, microseconds = list_of(content, 3)
    return timedelta(days=days, seconds=seconds, microseconds=microseconds)


def exception_parts(value: BaseException) -> dict[str, str]:
    if isinstance(value, StoredException):
        return {"type": value.type, "message": value.message}
    try:
        message = str(value)
    except BaseException:  # whatever it raises, it is not ours to let out
        message = "(the exception has no readable text)"
    return {"type": type_name(value), "message": message[:MAX_EXCEPTION_TEXT]}


def _read_exception(content: Any) -> StoredException:
    name, message = content["type"], content["message"]
    if not (isinstance(name, str) and isinstance(message, str)):
        raise TypeError("'type' and 'message' are not text")
    return StoredException(name, message)


def _read_dict(content: Any) -> dict[Any, Any]:
    return dict(tuple(list_of(pair, 2)) for pair in list_of(content))


def list_of(content: Any, length: int | None = None) -> list[Any]:
    if not isinstance(content, list) or (length is not None and len(content) != length):
        raise TypeError(f"expected a list{f' of {length}' if length else ''}, got {type(content).__name__}")
    return content


def text_of(content: Any) -> str:
    if not isinstance(content, str):
        raise TypeError(f"expected text, got {type(content).__name__}")
    return content


def type_name(value: object) -> str:
    kind = type(value)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def why_refused(value: object) -> str:
    """Return what is wrong with a value that has no stored form, and what to pass instead."""
    if isinstance(value, Enum):
        instead = "Pass its .value."
    elif hasattr(type(value), "model_dump"):
        instead = "Pass model.model_dump()."
    elif is_dataclass(value) and not isinstance(value, type):
        instead = "Pass dataclasses.asdict(value)."
    elif isinstance(value, type) or callable(value):
        instead = "Code is not stored; pass a name and look it up in the task."
    elif isinstance(value, tzinfo):
        instead = "Pass a zoneinfo.ZoneInfo."
    elif isinstance(value, (bytearray, memoryview)):
        instead = "Pass bytes(value)."
    else:
        base = next((kind for kind in LEAF_WRITERS | _CONTAINERS if isinstance(value, kind)), None)
        instead = (
            f"Subclasses come back as something else; pass a plain {base.__name__}."
            if base
            else "Pass plain values and build the object in the task."
        )
    return (
        f"expected JSON values, tuples, sets, bytes, dates, times, time zones, UUIDs or Decimals, got "
        f"{type_name(value)}. {instead}"
    )


_CONTAINERS: dict[type[Any], None] = dict.fromkeys((str, list, dict, tuple, set, frozenset))

# A datetime is a date too, so it comes first.
LEAF_WRITERS: dict[type[Any], Callable[[Any, int], Any]] = {
    int: _write_int,
    float: _write_float,
    datetime: _write_datetime,
    date: lambda value, _depth: {"$date": value.isoformat()},
    time: _write_time,
    timedelta: lambda value, _depth: {"$timedelta": _offset_parts(value)},
    timezone: lambda value, _depth: {"$timezone": _offset_parts(value.utcoffset(None))},
    ZoneInfo: write_zone,
    UUID: write_uuid,
    Decimal: lambda value, _depth: {"$decimal": str(value)},
    bytes: lambda value, _depth: {"$bytes": base64.b64encode(value).decode("ascii")},
}

READERS: dict[str, Callable[[Any], Any]] = {
    "$tuple": lambda content: tuple(list_of(content)),
    "$set": lambda content: set(list_of(content)),
    "$frozenset": lambda content: frozenset(list_of(content)),
    "$dict": _read_dict,
    "$int": lambda content: int(text_of(content), 16),
    "$float": lambda content: {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}[content],
    "$datetime": _read_clock(datetime),
    "$date": lambda content: date.fromisoformat(content),
    "$time": _read_clock(time),
    "$timedelta": _read_timedelta,
    "$timezone": lambda content: timezone(_read_timedelta(content)),
    "$zone": lambda content: zone(text_of(content)),
    "$uuid": lambda content: UUID(text_of(content)),
    "$decimal": lambda content: Decimal(text_of(content)),
    "$bytes": lambda content: base64.b64decode(text_of(content), validate=True),
    "$exception": _read_exception,
}
