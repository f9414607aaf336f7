"""Makes a time zone of what a pickle says of one: pytz, its shim, zoneinfo, dateutil, and datetime's own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta, timezone
from functools import lru_cache
from typing import Any

from duetime.errors import UnknownTimeZone
from duetime.triggers.zones import zone

from .model import V3Zone
from .pickles import Made, Named, NativeText


class UnknownZone(Exception):
    """A time zone of a class that is not known, or one whose name this machine does not know.

    :ivar what: the class as ``module:name``, or the name of the zone
    """

    def __init__(self, what: str) -> None:
        super().__init__(what)
        self.what = what


def zone_of(found: Any) -> V3Zone:
    """Return the time zone that a call stands for.

    :raises UnknownZone: if it is none that is known
    """
    if type(found) is Made:
        if type(found.maker) is Made:
            return _unpickled(found)
        make = _MAKERS.get(found.maker.reference) if type(found.maker) is Named else None
        if make is None:
            raise UnknownZone(found.maker.reference if type(found.maker) is Named else "builtins:getattr")
        try:
            return make(found)
        except (ValueError, TypeError, OverflowError, LookupError, StopIteration):
            raise UnknownZone(found.maker.reference) from None
    raise UnknownZone(found.reference if type(found) is Named else f"builtins:{type(found).__name__}")


def in_zone(naive: datetime, found: Any) -> datetime:
    """Return the moment at which that zone's clock says so, as v3 had it, in the zone by its IANA name.

    A datetime of pytz says which of the zone's offsets it means. Where the zone has another one then, as when pytz's
    zone was put into a datetime directly (the local mean time of 1900), the instant is kept, with that offset.

    :raises UnknownZone: if it is none that is known
    """
    where = zone_of(found)
    offset = _offset_of(found) if where.flavour == "pytz" else None
    if offset is None:
        return naive.replace(tzinfo=where.tzinfo)
    moment = (naive - offset).replace(tzinfo=UTC).astimezone(where.tzinfo)
    if moment.replace(tzinfo=None, fold=0) == naive.replace(fold=0):
        return moment
    return naive.replace(tzinfo=timezone(offset))


def _offset_of(found: Any) -> timedelta | None:
    if found.maker.reference != "pytz:_p" or len(found.args) < 2 or type(found.args[1]) is not int:
        return None
    return timedelta(seconds=found.args[1])


def _text(found: Any) -> str:
    text = found.decode("ascii") if type(found) is NativeText else found
    if type(text) is not str or len(text) > 100:
        raise TypeError
    return text


@lru_cache(maxsize=2048)
def _named(name: str, flavour: str) -> V3Zone:
    if name.upper() == "UTC":
        return V3Zone("UTC", UTC, flavour)
    try:
        return V3Zone(name, zone(name), flavour)
    except UnknownTimeZone:
        raise UnknownZone(name) from None


@lru_cache(maxsize=2048)
def _fixed(offset: timedelta, flavour: str) -> V3Zone:
    return V3Zone(None, timezone(offset), flavour) if offset else V3Zone("UTC", UTC, flavour)


def _unpickled(found: Made) -> V3Zone:
    """``getattr(ZoneInfo, "_unpickle")(key, from_cache)``, which is how zoneinfo says it."""
    got = found.maker
    if type(got.maker) is not Named or got.maker.reference != "builtins:getattr" or len(got.args) != 2:
        raise UnknownZone("builtins:getattr")
    cls, attribute = got.args
    if type(cls) is not Named or cls.reference not in _ZONEINFO or attribute not in ("_unpickle", b"_unpickle"):
        raise UnknownZone("builtins:getattr")
    if not 1 <= len(found.args) <= 2:
        raise UnknownZone(cls.reference)
    try:
        return _named(_text(found.args[0]), "zoneinfo")
    except TypeError:
        raise UnknownZone(cls.reference) from None


def _pytz(found: Made) -> V3Zone:
    return _named(_text(found.args[0]), "pytz")


def _pytz_offset(found: Made) -> V3Zone:
    return _fixed(timedelta(minutes=found.args[0]), "pytz")


def _wrapped(found: Made) -> V3Zone:
    inside = found.args[0]
    if type(inside) is Made and type(inside.maker) is Named and inside.maker.reference == found.maker.reference:
        raise TypeError  # no end to it
    inner = zone_of(inside)
    return V3Zone(inner.name, inner.tzinfo, "shim")


def _timezone(found: Made) -> V3Zone:
    return _fixed(_length(found.args[0]), "datetime")


def _dateutil_file(found: Made) -> V3Zone:
    """Up to 2.9.0 the file's name is the last argument; later the zone's name follows the class."""
    name = next(_text(part) for part in found.args if type(part) is str or type(part) is NativeText)
    return _named(name.rpartition("zoneinfo/")[2].removeprefix("posix/"), "dateutil")


def _dateutil_offset(found: Made) -> V3Zone:
    if len(found.args) == 2:
        return _fixed(_length(found.args[1]), "dateutil")
    fields = dict(zip(map(_text, found.state[::2]), found.state[1::2], strict=True))
    return _fixed(_length(fields["_offset"]), "dateutil")


def _length(found: Any) -> timedelta:
    if type(found) is not Made or type(found.maker) is not Named or found.maker.reference != "datetime:timedelta":
        raise TypeError
    return timedelta(*found.args)


def _utc(flavour: str) -> Callable[[Made], V3Zone]:
    return lambda found: V3Zone("UTC", UTC, flavour)


_ZONEINFO = frozenset({"zoneinfo:ZoneInfo", "zoneinfo._zoneinfo:ZoneInfo", "backports.zoneinfo:ZoneInfo"})

_MAKERS: Mapping[str, Callable[[Made], V3Zone]] = {
    "pytz:_p": _pytz,
    "pytz:_UTC": _utc("pytz"),
    "pytz:FixedOffset": _pytz_offset,
    "pytz_deprecation_shim._impl:wrap_zone": _wrapped,
    "datetime:timezone": _timezone,
    "dateutil.tz._tzfile:_unpickle": _dateutil_file,
    "dateutil.tz.tz:tzfile": _dateutil_file,
    "dateutil.tz:tzfile": _dateutil_file,
    "dateutil.zoneinfo:gettz": _dateutil_file,
    "dateutil.tz.tz:tzutc": _utc("dateutil"),
    "dateutil.tz:tzutc": _utc("dateutil"),
    "dateutil.tz.tz:tzoffset": _dateutil_offset,
    "dateutil.tz:tzoffset": _dateutil_offset,
}
