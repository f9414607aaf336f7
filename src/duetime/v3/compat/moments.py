"""Times and time zones as v3's calls take them."""

from __future__ import annotations

import re
from datetime import UTC, date, datetime, time, timedelta, timezone, tzinfo
from typing import Any
from zoneinfo import ZoneInfo

from tzlocal import get_localzone

from ...errors import InvalidArguments
from ...triggers.zones import in_zone, zone, zone_name
from ..model import V3Zone

_TEXT = re.compile(
    r"(?P<year>\d{4})-(?P<month>\d{1,2})-(?P<day>\d{1,2})"
    r"(?:[ T](?P<hour>\d{1,2}):(?P<minute>\d{1,2}):(?P<second>\d{1,2})(?:\.(?P<microsecond>\d{1,6}))?"
    r"(?P<offset>Z|[+-]\d\d:\d\d)?)?$"
)


def as_zone(given: str | tzinfo | None) -> tzinfo:
    """Return a time zone: an IANA name, a zone of pytz or of anybody else; None: the machine's, as in v3.

    :raises UnknownTimeZone: if a name is not one of IANA
    :raises InvalidArguments: if it is no zone at all
    """
    if given is None:
        return get_localzone()
    if isinstance(given, str):
        return zone(given)
    if not isinstance(given, tzinfo):
        raise InvalidArguments(f"expected a time zone or its IANA name, got {given!r:.100}.")
    if isinstance(given, ZoneInfo) or given is UTC:
        return given
    name = getattr(given, "zone", None)  # pytz
    if isinstance(name, str):
        return zone(name)
    offset = given.utcoffset(None)
    if offset is None:
        raise InvalidArguments(
            f"expected a time zone that has a name or one offset, got {given!r:.100}. Name it, as 'Europe/Berlin'."
        )
    return timezone(offset)


def as_v3_zone(given: tzinfo) -> V3Zone:
    """Return the zone as the shared model has it."""
    return V3Zone(zone_name(given), given, "zoneinfo" if isinstance(given, ZoneInfo) else "datetime")


def as_moment(given: datetime | date | str | None, tz: tzinfo, name: str) -> datetime | None:
    """Return an aware time, as v3 takes it: without an offset it is of the zone; a day is its midnight.

    :param name: of the argument, for messages
    :raises InvalidArguments: if it is no time that v3 would take
    """
    if given is None:
        return None
    if isinstance(given, str):
        match = _TEXT.match(given)
        if match is None:
            raise InvalidArguments(
                f"expected {name} as text of the form '2026-06-01 09:00:00', with an offset such as +02:00 or Z after "
                f"it if it has one, got {given!r:.60}."
            )
        parts = match.groupdict()
        if offset := parts.pop("offset"):
            tz = _offset(offset)
        try:
            numbers: dict[str, Any] = {key: int(value or 0) for key, value in parts.items()}
            moment = datetime(**numbers)  # noqa: DTZ001 - its zone follows
        except ValueError as exc:
            raise InvalidArguments(f"expected {name} to be a time of the calendar, got {given!r:.60}: {exc}.") from None
    elif isinstance(given, datetime):
        moment = given
    elif isinstance(given, date):
        moment = datetime.combine(given, time())
    else:
        raise InvalidArguments(f"expected {name} as a datetime, a date or text, got {given!r:.60}.")
    return in_zone(moment, as_zone(moment.tzinfo) if moment.tzinfo is not None and _is_known(moment) else tz)


def _is_known(moment: datetime) -> bool:
    """Return whether the zone of a time can be stored by itself; of pytz' it is its name that is."""
    tz = moment.tzinfo
    return isinstance(tz, (ZoneInfo, timezone)) or isinstance(getattr(tz, "zone", None), str)


def _offset(text: str) -> tzinfo:
    if text == "Z":
        return UTC
    hours, minutes = (int(part) for part in text[1:].split(":"))
    return timezone((-1 if text[0] == "-" else 1) * timedelta(hours=hours, minutes=minutes))
