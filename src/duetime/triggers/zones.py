"""Time zones by name: one lookup for everything that comes from outside or from the store."""

from __future__ import annotations

import re
from datetime import UTC, datetime, tzinfo
from functools import lru_cache
from importlib.resources import files
from zoneinfo import ZoneInfo

from duetime.errors import UnknownTimeZone, did_you_mean

# Only such names are handed to ZoneInfo, which turns them into file and package names.
_NAME = re.compile(r"[A-Za-z0-9_+-]{1,40}(/[A-Za-z0-9_+-]{1,40}){0,3}")

# What some systems keep beside the IANA names: the machine's own zone (different on the next node), zones
# that count leap seconds, and a placeholder.
_NOT_IANA = re.compile(r"(posix|right)/.*|localtime|posixrules|Factory|local")

UTC_ZONE = ZoneInfo("UTC")


@lru_cache(maxsize=1)
def _known_names() -> list[str]:
    # zoneinfo.available_timezones() opens every file of the zone database (45 ms); this list is one small
    # file.
    return files("tzdata").joinpath("zones").read_text("utf-8").split()


@lru_cache(maxsize=1024)
def zone(name: str) -> ZoneInfo:
    """Return the IANA time zone of that name.

    :raises UnknownTimeZone: naming the closest known zone
    """
    if _NAME.fullmatch(name) and not _NOT_IANA.fullmatch(name):
        try:
            return ZoneInfo(name)
        except (KeyError, ValueError, OSError):
            pass
    by_lower = {known.lower(): known for known in _known_names()}
    hint = (
        f", did you mean {by_lower[name.lower()]!r}?"
        if name.lower() in by_lower
        else did_you_mean(name, _known_names())
    )
    raise UnknownTimeZone(
        f"expected the IANA name of a time zone, such as 'Europe/Berlin' or 'UTC', got {name[:60]!r}{hint}",
        details=[{"where": "trigger.timezone", "problem": f"unknown time zone {name[:60]!r}"}],
    )


def zone_name(tz: tzinfo | None) -> str | None:
    """Return the IANA name that :func:`zone` finds the zone by, or None if it has no such name."""
    key = "UTC" if tz is UTC else getattr(tz, "key", None)
    if not isinstance(key, str):
        return None
    try:
        zone(key)
    except UnknownTimeZone:
        return None
    return key


def in_zone(moment: datetime, tz: tzinfo) -> datetime:
    """Return the instant in that zone; a moment without an offset is that zone's clock.

    A clock time that the zone skips is moved forward by the length of the gap, and of a time that it has
    twice the first is taken, as RFC 5545 has it for both.
    """
    aware = moment if moment.tzinfo else moment.replace(tzinfo=tz, fold=0)
    return aware.astimezone(UTC).astimezone(tz)
