"""How each release of v3 does its sums on each kind of time zone, faults included.

Three kinds of zones behave differently in Python. A datetime of **pytz** has one fixed offset, so adding to it goes
by UTC, and ``normalize`` and ``localize`` find the offset that holds. One of **zoneinfo** (the shim is one inside) adds
and compares by the clock on the wall, and forgets in which half of a fold it is. **dateutil** does as zoneinfo from its
release 4 on; earlier ones take the later offset in a gap, and no row says which it was. And v3 has done its sums in
three ways: by the zone's own ``normalize`` and ``localize`` up to 3.8, by timestamps of wall-clock sums in 3.9 and
3.10, and by UTC in 3.11.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone, tzinfo
from functools import lru_cache
from zoneinfo import ZoneInfo

from .model import V3Zone

# pytz's data ends there: it goes on with the offset that holds then.
_END_OF_PYTZ = datetime(2037, 12, 31, tzinfo=UTC)

_MICROSECOND = timedelta(microseconds=1)


class Clock:
    """A time zone as the release that runs the trigger sees it.

    :ivar zone: what its datetimes have for a zone; for pytz, what finds their offsets
    """

    def __init__(self, zone: tzinfo, *, is_pytz: bool, settles: bool, localizes: bool, by_utc: bool) -> None:
        self.zone = zone
        self.is_pytz = is_pytz
        self.settles = settles
        self.localizes = localizes
        self.by_utc = by_utc

    def here(self, moment: datetime) -> datetime:
        """Return the moment as ``astimezone`` gives it, which leaves one that is in the zone already as it is."""
        return pytz_time(moment, self.zone) if self.is_pytz else moment.astimezone(self.zone)

    def settled(self, moment: datetime) -> datetime:
        """Return a moment that was added to, as ``normalize`` gives it: moved out of a gap, or not."""
        if self.is_pytz:
            return pytz_time(moment, self.zone)
        if self.settles:
            return moment.astimezone(UTC).astimezone(moment.tzinfo)
        return moment.astimezone(self.zone)

    def at(self, naive: datetime, fold: int) -> datetime:
        """Return the moment at which the zone's clock says so, as ``localize`` gives it."""
        if self.is_pytz:
            return _localized(naive, self.zone)
        if self.by_utc:
            return naive.replace(tzinfo=self.zone, fold=fold)
        moment = naive.replace(tzinfo=self.zone)
        return self.settled(moment) if self.localizes else moment

    def plus(self, moment: datetime, length: timedelta) -> datetime:
        """Return the moment with that added, by UTC or by the clock on the wall."""
        if self.by_utc:
            return (moment.astimezone(UTC) + length).astimezone(moment.tzinfo)
        return moment + length

    def after(self, moment: datetime) -> datetime:
        """Return the moment, rounded up to a second if it is not whole, and more than it if it is."""
        return self.plus(moment, timedelta(microseconds=1_000_000 - moment.microsecond))

    def rounded_up(self, moment: datetime) -> datetime:
        """Return the moment, rounded up to a second."""
        return self.after(moment) if moment.microsecond else moment


def clock_of(where: V3Zone, release: tuple[int, int], *, of_cron: bool) -> Clock:
    """Return the clock of a trigger's zone, in that release.

    :param of_cron: whether it is a cron trigger's: in 3.11, that one turns a zone of pytz into one of zoneinfo
    """
    by_utc = release >= (3, 11)
    is_pytz = where.flavour == "pytz" and isinstance(where.tzinfo, ZoneInfo) and not (by_utc and of_cron)
    settles = release >= (3, 9)
    return Clock(
        where.tzinfo,
        is_pytz=is_pytz,
        settles=settles,
        localizes=settles and where.flavour != "shim",
        by_utc=by_utc,
    )


def native(moment: datetime, where: V3Zone | None) -> datetime:
    """Return a moment that was read from a row as v3 has it in memory: with the zone's own class.

    :param where: the trigger's zone; that of its dates is taken to be of the same kind
    """
    if where is None or not isinstance(moment.tzinfo, ZoneInfo):
        return moment
    if where.flavour == "pytz":
        offset = moment.utcoffset()
        return moment.replace(tzinfo=timezone(offset or timedelta(0)), fold=0)
    return moment


def pytz_time(moment: datetime, zone: tzinfo) -> datetime:
    """Return the moment in a zone of pytz: with the offset that holds, as a fixed one."""
    utc = moment.astimezone(UTC)
    if utc > _END_OF_PYTZ:
        return utc.astimezone(_fixed(_offset(_END_OF_PYTZ, zone)))
    local = utc.astimezone(zone)
    return local.replace(tzinfo=_fixed(local.utcoffset()), fold=0)


def _localized(naive: datetime, zone: tzinfo) -> datetime:
    """``localize(naive)`` of pytz: in a fold standard time, in a gap the offset before it."""
    if naive > _END_OF_PYTZ.replace(tzinfo=None):
        return naive.replace(tzinfo=_fixed(_offset(_END_OF_PYTZ, zone)))
    first, second = (naive.replace(tzinfo=zone, fold=fold) for fold in (0, 1))
    before, after = first.utcoffset(), second.utcoffset()
    if before == after:
        return naive.replace(tzinfo=_fixed(before))
    if before is not None and after is not None and before < after:  # a gap
        return _localized(naive - timedelta(hours=6), zone) + timedelta(hours=6)
    summer = bool(second.dst()) and not first.dst()
    return naive.replace(tzinfo=_fixed(before if summer else after))


def _offset(moment: datetime, zone: tzinfo) -> timedelta | None:
    return moment.astimezone(zone).utcoffset()


@lru_cache(maxsize=4096)
def _fixed(offset: timedelta | None) -> timezone:
    return timezone(offset or timedelta(0))
