# -*- coding: utf-8 -*-
"""Adds jobs to a real scheduler of the APScheduler 3 that is installed, and prints what it stored, as JSON.

``tests/v3/generate.py`` runs it in each environment. It runs on Python 2.7 too.

For each job: the row, what was asked for (``asked``), and the fire times that this release calculates: from the
stored ``next_run_time`` on, and from starting points around changes of the clock (``fires``: microseconds since
1970; the first as it is, the others as the difference to the one before; then ``"ended"``, ``"hangs"`` or the name
of an exception, if the list is shorter than asked for).
"""

from __future__ import print_function, unicode_literals

import base64
import calendar
import datetime as dt
import decimal
import json
import os
import pickle
import shutil
import signal
import sqlite3
import sys
import tempfile
import uuid
import warnings

warnings.simplefilter("ignore")

import apscheduler
from apscheduler.jobstores.sqlalchemy import SQLAlchemyJobStore
from apscheduler.schedulers.background import BackgroundScheduler
from apscheduler.triggers.combining import AndTrigger, OrTrigger
from apscheduler.triggers.cron import CronTrigger
from apscheduler.triggers.date import DateTrigger
from apscheduler.triggers.interval import IntervalTrigger

try:
    from apscheduler.triggers.calendarinterval import CalendarIntervalTrigger
except ImportError:  # before 3.11
    CalendarIntervalTrigger = None

import dateutil.tz
import pytz

import shop

try:
    from zoneinfo import ZoneInfo
except ImportError:
    try:
        from backports.zoneinfo import ZoneInfo
    except ImportError:
        ZoneInfo = None
try:
    from pytz_deprecation_shim import timezone as shim
except ImportError:
    shim = None

PY2 = sys.version_info[0] == 2
COUNT = 50
EPOCH = dt.datetime(1970, 1, 1, tzinfo=pytz.utc)

FLAVOURS = {"text": lambda name: name, "pytz": pytz.timezone, "dateutil": dateutil.tz.gettz}
if ZoneInfo:
    FLAVOURS["zoneinfo"] = ZoneInfo
if shim:
    FLAVOURS["shim"] = shim

# UTC. Before and in each gap and fold, and a start far from any. Havana, whose clocks change at midnight, has another
# rule from 2026 on in newer data, so it is not looked at there.
STARTS = {
    "Europe/Berlin": [
        "2026-01-15 10:00:30",
        "2026-03-27 11:00:00",
        "2026-03-29 00:40:00",
        "2026-03-29 01:00:00",
        "2026-10-24 21:00:00",
        "2026-10-25 00:10:00",
        "2026-10-25 01:10:00",
    ],
    "America/New_York": ["2026-03-07 20:00:00", "2026-03-08 06:50:00", "2026-11-01 05:20:00", "2026-11-01 06:20:00"],
    "Australia/Lord_Howe": ["2026-04-04 14:20:00", "2026-04-04 15:10:00", "2026-10-03 14:50:00"],
    "Australia/Sydney": ["2026-04-03 20:00:00", "2026-04-04 15:40:00", "2026-10-02 20:00:00", "2037-12-28 20:00:00"],
    "America/Havana": ["2025-03-08 10:00:00", "2025-03-09 04:50:00", "2025-11-02 03:50:00", "2025-11-02 05:10:00"],
    "Europe/Dublin": ["2026-03-28 20:00:00", "2026-10-24 23:40:00", "2026-10-25 01:10:00"],
    "Pacific/Apia": ["2011-12-29 04:00:00", "2011-12-30 09:50:00"],
    "Asia/Kolkata": ["2026-05-05 05:05:05"],
    "UTC": ["2026-02-27 22:59:59", "2028-02-28 23:00:00"],
}

CRONS = [
    {},
    {"hour": 0},
    {"hour": 2, "minute": 30},
    {"minute": "*/15"},
    {"minute": "7-59/20", "second": "*/30"},
    {"day_of_week": 0, "hour": 0},
    {"day_of_week": "mon-fri", "hour": "9,17", "minute": 30},
    {"day_of_week": "0-4", "hour": 9},
    {"day_of_week": "0-6/2", "hour": 1, "minute": 59},
    {"day_of_week": "sat,sun", "hour": 3},
    {"day_of_week": "*/3", "hour": 3},
    {"day": 1},
    {"day": "last", "hour": 23, "minute": 59, "second": 59},
    {"day": "2nd fri", "hour": 12},
    {"day": "last sun", "hour": 2, "minute": 15},
    {"day": "1st mon,3rd wed,last", "hour": 6},
    {"day": "5th tue"},
    {"day": "31"},
    {"day": "*/10", "hour": "8-18/4"},
    {"day": "10-25/5,28"},
    {"day": "25/3"},
    {"month": "jan-mar,jul", "day": 29},
    {"month": "*/4", "day": "last"},
    {"month": 2, "day": 29},
    {"week": "10-50/10"},
    {"week": 53, "day_of_week": 6},
    {"week": 1, "day_of_week": "mon", "hour": 8},
    {"year": "2026-2028", "month": 12, "day": 31, "hour": 23},
    {"year": "*/2", "month": 3, "day": "last sun", "hour": 2, "minute": "*/20"},
    {"day": 13, "day_of_week": "fri"},
    {"second": "*/10"},
    {"hour": "*/5"},
    {"hour": "1-3", "minute": "0,30"},
    {"year": 2026, "hour": 0, "minute": 30},
]
# In every flavour of every zone: the ones in which flavours differ.
CHANGES = [
    {"hour": 0},
    {"hour": 2, "minute": 30},
    {"hour": 1, "minute": 30},
    {"minute": "*/15"},
    {"hour": "*/2"},
    {"day_of_week": "sun"},
    {"hour": "0-3", "minute": "10,40"},
]
INTERVALS = [{"minutes": 30}, {"hours": 5}, {"days": 1}, {"weeks": 1, "seconds": 1}]


def naive(text):
    return dt.datetime.strptime(text, "%Y-%m-%d %H:%M:%S")


def micros(value):
    """Microseconds since 1970; UTC arithmetic, whatever the zone's class."""
    offset = value.utcoffset()
    delta = value.replace(tzinfo=None) - offset - dt.datetime(1970, 1, 1)
    return (delta.days * 86400 + delta.seconds) * 1000000 + delta.microseconds


def in_zone(instant, zone):
    """What ``datetime.now(zone)`` says at that instant."""
    utc = dt.datetime(1970, 1, 1) + dt.timedelta(microseconds=instant)
    return zone.fromutc(utc.replace(tzinfo=zone))


class Hangs(Exception):
    pass


def _alarm(*_):
    raise Hangs


signal.signal(signal.SIGVTALRM, _alarm)


def chain(trigger, first, zone, count=COUNT):
    """The fires from one on, each calculated five milliseconds after the one before, as a scheduler on time does."""
    fires, found = [], []
    fire = first
    end = None
    while True:
        if fire is None:
            end = "ended"
            break
        found.append(fire)
        if len(found) == count:
            break
        fire, end = following(trigger, fire, in_zone(micros(fire) + 5000, zone))
        if end:
            break
    before = 0
    for fire in found:
        now = micros(fire)
        fires.append(now - before)
        before = now
    return fires + ([end] if end else [])


def following(trigger, previous, now):
    signal.setitimer(signal.ITIMER_VIRTUAL, 0.6)
    try:
        return trigger.get_next_fire_time(previous, now), None
    except Hangs:
        return None, "hangs"
    except Exception as exc:
        return None, type(exc).__name__
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)


def oracle(trigger, start, zone):
    now = in_zone(micros(pytz.utc.localize(naive(start))), zone)
    fire, end = following(trigger, None, now)
    return [end] if end else chain(trigger, fire, zone)


def zone_name(zone):
    if zone is None:
        return None
    for attribute in ("zone", "key", "_filename"):
        name = getattr(zone, attribute, None)
        if name:
            return name.split("zoneinfo/")[-1]
    offset = zone.utcoffset(dt.datetime(2026, 1, 1))
    return "fixed%+d" % (offset.days * 86400 + offset.seconds)


def asked_of(trigger):
    """What the trigger says of itself, in plain JSON."""
    what = {"type": type(trigger).__name__}
    for name in ("run_date", "start_date", "end_date"):
        value = getattr(trigger, name, None)
        if isinstance(value, dt.datetime):
            what[name] = micros(value)
        elif value is not None:
            what[name] = value.isoformat()
    if getattr(trigger, "jitter", None) is not None:
        what["jitter"] = trigger.jitter
    if hasattr(trigger, "timezone"):
        what["timezone"] = zone_name(trigger.timezone)
    if hasattr(trigger, "interval"):
        interval = trigger.interval
        what["interval"] = (interval.days * 86400 + interval.seconds) * 1000000 + interval.microseconds
    if hasattr(trigger, "fields"):
        what["fields"] = {field.name: str(field) for field in trigger.fields}
        what["defaults"] = sorted(field.name for field in trigger.fields if field.is_default)
    if hasattr(trigger, "_time"):
        what["every"] = [trigger.years, trigger.months, trigger.weeks, trigger.days]
        what["time"] = [trigger._time.hour, trigger._time.minute, trigger._time.second]
    if hasattr(trigger, "triggers"):
        what["triggers"] = [asked_of(member) for member in trigger.triggers]
    return what


def told(value):
    """The value as plain JSON that tells its type, in the words of Python 3."""
    if value is None or isinstance(value, bool):
        return value
    if shop.enum and isinstance(value, shop.enum.Enum):
        return ["enum", type(value).__name__, value.name]
    if isinstance(value, float):
        return ["float", repr(value)]
    if isinstance(value, (int, long if PY2 else int)):  # noqa: F821
        return ["int", "%d" % value]
    if isinstance(value, type("")):
        return ["str", value]
    if isinstance(value, bytes):
        return ["py2" if PY2 else "bytes", base64.b64encode(value).decode("ascii")]
    if isinstance(value, bytearray):
        return ["bytearray", base64.b64encode(bytes(value)).decode("ascii")]
    if isinstance(value, shop.Point):
        return ["unknown", "shop:Point"]
    if isinstance(value, dict):
        return ["dict", sorted([told(key), told(item)] for key, item in value.items())]
    if isinstance(value, (list, tuple)):
        return [type(value).__name__, [told(item) for item in value]]
    if isinstance(value, (set, frozenset)):
        return [type(value).__name__, sorted(told(item) for item in value)]
    if isinstance(value, dt.datetime):
        aware = value.tzinfo is not None
        return ["datetime", value.replace(tzinfo=None).isoformat(), micros(value) if aware else None]
    if isinstance(value, (dt.date, dt.time)):
        return [type(value).__name__, value.isoformat()]
    if isinstance(value, dt.timedelta):
        return ["timedelta", [value.days, value.seconds, value.microseconds]]
    if isinstance(value, (uuid.UUID, decimal.Decimal)):
        return [type(value).__name__, str(value)]
    if isinstance(value, dt.tzinfo):
        return ["zone", zone_name(value)]
    if hasattr(value, "__dataclass_fields__"):
        return ["dataclass", type(value).__name__, told(dict(value.__dict__))]
    return ["unknown", "%s:%s" % (type(value).__module__, type(value).__name__)]


def arguments():
    """Arguments of every kind: (name, args, kwargs)."""
    utc = pytz.utc
    berlin = pytz.timezone("Europe/Berlin")
    yield "plain", (1, -5, 2**70, -(2**70), 1.5, float("inf"), True, None, "text", "grün ☕ 😀", ""), {"to": "x"}
    yield "native", (str("ascii"), b"bytes", str("key")), {"a": [1, [2, [3]]], "b": {str("k"): (1, 2)}}
    yield "high-bytes", (b"\xff\x00\xfe", "gr\xfcn".encode("utf-8")), {}
    yield "datetimes", (dt.datetime(2026, 3, 1, 9, 30, 15, 123456), dt.date(2026, 3, 1), dt.time(9, 30), dt.time(1, 2, 3, 4)), {}
    yield "aware", (utc.localize(dt.datetime(2026, 3, 1)), berlin.localize(dt.datetime(2026, 7, 1, 12))), {"zone": berlin}
    yield "folded", (berlin.localize(dt.datetime(2026, 10, 25, 2, 30), True), berlin.localize(dt.datetime(2026, 10, 25, 2, 30), False)), {}
    yield "lmt", (dt.datetime(2026, 7, 1, 12, tzinfo=berlin),), {}
    yield "offset", (dt.datetime(2026, 7, 1, 12, tzinfo=pytz.FixedOffset(330)),), {}
    yield "dateutil", (dt.datetime(2026, 7, 1, 12, tzinfo=dateutil.tz.gettz("Europe/Berlin")), dt.datetime(2026, 7, 1, tzinfo=dateutil.tz.tzutc()), dt.datetime(2026, 7, 1, tzinfo=dateutil.tz.tzoffset(None, 3600))), {}
    yield "deltas", (dt.timedelta(days=-1, seconds=5, microseconds=7), dt.timedelta(weeks=3)), {}
    yield "uuids", (uuid.UUID("12345678123456781234567812345678"), uuid.UUID(int=2**128 - 1)), {}
    yield "decimals", (decimal.Decimal("1.10"), decimal.Decimal("-0"), decimal.Decimal("1E+30")), {}
    yield "sets", ({1, 2}, frozenset(["a"]), set()), {"nested": [{"k": {(1, 2)}}]}
    yield "nested", ([[[[[[[[[[1]]]]]]]]]],), {"deep": {"a": {"b": {"c": {"d": [dt.date(2026, 1, 1)]}}}}}
    shared = [1, 2]
    yield "shared", (shared, shared, {"again": shared}), {}
    yield "bytearray", (bytearray(b"\x00\xff"),), {}
    yield "long", ("x" * 3000, list(range(2000))), {}
    yield "unknown", (shop.Money(5), "kept"), {"point": shop.Point(1, 2)}
    yield "nested-unknown", ([{"money": shop.Money(5)}],), {}
    yield "class-itself", (shop.Money,), {}
    yield "function-itself", (shop.remind,), {}
    if ZoneInfo:
        yield "zoneinfo", (dt.datetime(2026, 7, 1, 12, tzinfo=ZoneInfo("Europe/Berlin")), ZoneInfo("UTC")), {}
        yield "zoneinfo-fold", (dt.datetime(2026, 10, 25, 2, 30, fold=1, tzinfo=ZoneInfo("Europe/Berlin")),), {}
    if hasattr(dt, "timezone"):
        yield "timezone", (dt.datetime(2026, 7, 1, tzinfo=dt.timezone.utc), dt.timezone(dt.timedelta(hours=-3))), {}
    if shop.enum:
        yield "enums", (shop.Colour.RED, shop.Level.HIGH), {"colours": [shop.Colour.GREEN]}
    if shop.goods:
        order = shop.goods.Order(7, shop.Colour.RED, [shop.goods.Address("Ulm")])
        yield "dataclasses", (order,), {"to": shop.goods.Address("Bonn")}


def cases():
    """(id, func, trigger, options of add_job, name of the zone whose starting points are used or None)."""
    for number, fields in enumerate(CRONS):
        yield "cron-%02d" % number, "shop:remind", lambda f=fields: CronTrigger(timezone="Europe/Berlin", **f), {}, "Europe/Berlin"
    for flavour in sorted(FLAVOURS):
        make = FLAVOURS[flavour]
        for zone in sorted(STARTS):
            if zone != "Europe/Berlin" and flavour in ("pytz",) and sys.version_info[:2] not in ((2, 7), (3, 8), (3, 11)):
                continue  # the same as "text" is in these releases
            for number, fields in enumerate(CHANGES):
                yield "%s-%s-cron-%d" % (flavour, zone, number), "shop:remind", lambda m=make, z=zone, f=fields: CronTrigger(timezone=m(z), **f), {}, zone
            for number, length in enumerate(INTERVALS):
                yield (
                    "%s-%s-interval-%d" % (flavour, zone, number),
                    "shop:remind",
                    lambda m=make, z=zone, l=length: IntervalTrigger(timezone=m(z), start_date="2011-10-01 02:30:00", **l),
                    {},
                    zone,
                )
    at = "2026-02-01 00:00:00.5"
    later = "2026-11-20 09:00:00"
    yield "cron-start-end", "shop:remind", lambda: CronTrigger(hour="*/6", start_date=at, end_date=later, timezone="Europe/Berlin"), {}, "Europe/Berlin"
    yield "cron-end-inclusive", "shop:remind", lambda: CronTrigger(hour="*", end_date="2026-10-25 12:00:00", timezone="Europe/Berlin"), {"next_run_time": pytz.utc.localize(dt.datetime(2026, 10, 24, 20))}, "Europe/Berlin"
    yield "cron-no-hit", "shop:remind", lambda: CronTrigger(year=2036, month=2, day=30, timezone="Europe/Berlin"), {"next_run_time": pytz.utc.localize(dt.datetime(2036, 1, 1))}, "Europe/Berlin"
    yield "cron-jitter", "shop:remind", lambda: CronTrigger(hour=4, jitter=120, timezone="Europe/Berlin"), {}, None
    yield "cron-crontab", "shop:remind", lambda: CronTrigger.from_crontab("0 9 * * 1-5", timezone="Europe/Berlin"), {}, "Europe/Berlin"
    yield "interval-none", "shop:remind", lambda: IntervalTrigger(timezone="Europe/Berlin"), {}, None
    yield "interval-end", "shop:remind", lambda: IntervalTrigger(hours=7, start_date=at, end_date="2026-10-30 22:00:00", timezone="Europe/Berlin"), {}, "Europe/Berlin"
    yield "interval-future", "shop:remind", lambda: IntervalTrigger(days=3, start_date="2026-10-22 02:30:00", timezone="Europe/Berlin"), {}, "Europe/Berlin"
    yield "interval-jitter", "shop:remind", lambda: IntervalTrigger(minutes=10, jitter=30, timezone="Europe/Berlin"), {}, None
    yield "interval-micro", "shop:remind", lambda: IntervalTrigger(seconds=0.25, start_date="2026-10-25 01:00:00.1", timezone="Europe/Berlin"), {}, "Europe/Berlin"
    yield "interval-no-zone", "shop:remind", lambda: IntervalTrigger(hours=1), {}, None
    yield "date", "shop:remind", lambda: DateTrigger(dt.datetime(2037, 5, 5, 5, 5, 5), timezone="Europe/Berlin"), {}, "Europe/Berlin"
    yield "date-fold", "shop:remind", lambda: DateTrigger(pytz.timezone("Europe/Berlin").localize(dt.datetime(2037, 10, 25, 2, 30), False)), {}, "Europe/Berlin"
    yield "date-lmt", "shop:remind", lambda: DateTrigger(dt.datetime(2037, 5, 5, tzinfo=pytz.timezone("Europe/Berlin"))), {}, "Europe/Berlin"
    if hasattr(dt, "timezone"):
        fixed = dt.timezone(dt.timedelta(hours=5, minutes=30))
        yield "fixed-datetime-cron", "shop:remind", lambda: CronTrigger(hour=3, timezone=fixed), {}, "Asia/Kolkata"
        yield "fixed-datetime-interval", "shop:remind", lambda: IntervalTrigger(hours=3, timezone=fixed, start_date=at), {}, "Asia/Kolkata"
        yield "fixed-datetime-date", "shop:remind", lambda: DateTrigger(dt.datetime(2037, 1, 1, tzinfo=fixed)), {}, "Asia/Kolkata"
        yield "fixed-utc-cron", "shop:remind", lambda: CronTrigger(hour=3, timezone=dt.timezone.utc), {}, "UTC"
    yield "fixed-pytz-cron", "shop:remind", lambda: CronTrigger(hour=3, timezone=pytz.FixedOffset(330)), {}, "Asia/Kolkata"
    yield "fixed-pytz-interval", "shop:remind", lambda: IntervalTrigger(hours=3, timezone=pytz.FixedOffset(330), start_date=at), {}, "Asia/Kolkata"
    yield "fixed-dateutil-cron", "shop:remind", lambda: CronTrigger(hour=3, timezone=dateutil.tz.tzoffset("X", 3600)), {}, "UTC"
    yield "utc-dateutil-cron", "shop:remind", lambda: CronTrigger(hour=3, timezone=dateutil.tz.tzutc()), {}, "UTC"
    yield "dateutil-local-cron", "shop:remind", lambda: CronTrigger(hour=3, timezone=dateutil.tz.tzlocal()), {}, None
    yield "dateutil-rule-cron", "shop:remind", lambda: CronTrigger(hour=3, timezone=dateutil.tz.tzstr("EST5EDT")), {}, None
    yield "cron-other-zone-start", "shop:remind", lambda: CronTrigger(hour=3, start_date=pytz.timezone("Asia/Tokyo").localize(dt.datetime(2026, 3, 28, 5, 5)), timezone="Europe/Berlin"), {}, "Europe/Berlin"
    yield "cron-zone-of-start", "shop:remind", lambda: CronTrigger(hour=3, start_date=pytz.timezone("Asia/Tokyo").localize(dt.datetime(2026, 3, 28))), {}, "UTC"

    def berlin(cls, **options):
        return cls(timezone="Europe/Berlin", **options)

    combined = {
        "or-crons": lambda: OrTrigger([berlin(CronTrigger, hour=2, minute=30), berlin(CronTrigger, day_of_week="sun", hour=0)]),
        "or-interval": lambda: OrTrigger([berlin(IntervalTrigger, hours=5, start_date=at), berlin(CronTrigger, hour=12)]),
        "or-dates": lambda: OrTrigger([DateTrigger("2026-10-25 01:30:00", timezone="Europe/Berlin"), DateTrigger("2037-05-05", timezone="Europe/Berlin")]),
        "or-date-cron": lambda: OrTrigger([DateTrigger("2026-03-29 03:33:33", timezone="Europe/Berlin"), berlin(CronTrigger, hour=6)]),
        "or-jitter": lambda: OrTrigger([berlin(CronTrigger, hour=2)], jitter=5),
        "and-same": lambda: AndTrigger([berlin(CronTrigger, hour=2), berlin(CronTrigger, hour=2)]),
        "and-crons": lambda: AndTrigger([berlin(CronTrigger, hour=2), berlin(CronTrigger, day_of_week="sun", hour=2)]),
        "and-within": lambda: AndTrigger([berlin(CronTrigger, hour="*/2"), berlin(CronTrigger, hour="*/2", minute="0")]),
        "and-date": lambda: AndTrigger([DateTrigger("2026-10-26 02:00:00", timezone="Europe/Berlin"), berlin(CronTrigger, hour=2)]),
        "and-interval": lambda: AndTrigger([berlin(IntervalTrigger, hours=24, start_date="2026-01-01 12:00:00"), berlin(CronTrigger, hour=12)]),
        "and-jitter": lambda: AndTrigger([berlin(CronTrigger, hour=2), berlin(CronTrigger, hour=2)], jitter=9),
        "nested": lambda: OrTrigger([AndTrigger([berlin(CronTrigger, hour=2), berlin(CronTrigger, hour=2, minute=0)]), berlin(CronTrigger, hour=3, minute=3), OrTrigger([berlin(CronTrigger, day="last")])]),
    }
    for name in sorted(combined):
        stored = {"next_run_time": pytz.utc.localize(dt.datetime(2037, 1, 4, 1))}
        yield name, "shop:remind", combined[name], stored, None if "jitter" in name else "Europe/Berlin"
    yield "or-own-trigger", "shop:remind", lambda: OrTrigger([shop.OddMinutes(), berlin(CronTrigger, hour=2)]), {}, None
    yield "own-trigger", "shop:remind", lambda: shop.OddMinutes(3), {}, None
    if CalendarIntervalTrigger:
        for number, options in enumerate(
            [
                {"days": 1, "hour": 2, "minute": 30},
                {"months": 1, "start_date": dt.date(2026, 1, 31), "hour": 9},
                {"years": 1, "start_date": dt.date(2024, 2, 29)},
                {"months": 1, "days": 3, "weeks": 1, "start_date": dt.date(2026, 1, 15), "second": 7},
                {"weeks": 2, "start_date": dt.date(2026, 1, 4), "end_date": dt.date(2026, 12, 24), "hour": 2},
            ]
        ):
            options.setdefault("start_date", dt.date(2026, 3, 20))
            stored = {"next_run_time": pytz.utc.localize(dt.datetime(2026, 3, 20, 1, 30))} if number == 0 else {}
            for zone in ("Europe/Berlin", "Australia/Sydney", "Pacific/Apia"):
                yield "calendar-%d-%s" % (number, zone), "shop:remind", lambda o=options, z=zone: CalendarIntervalTrigger(timezone=z, **o), stored, zone
        yield "calendar-jitter", "shop:remind", lambda: CalendarIntervalTrigger(days=2, timezone="Europe/Berlin", jitter=60), {}, None

    def hourly():
        return berlin(CronTrigger, minute=5)

    options = {
        "paused": {"next_run_time": None},
        "misfire-none": {"misfire_grace_time": None},
        "misfire-30": {"misfire_grace_time": 30},
        "coalesce": {"coalesce": True},
        "no-coalesce": {"coalesce": False},
        "instances": {"max_instances": 7},
        "named": {"name": "Erinnerung für Jürgen ☕"},
        "executor": {"executor": "processpool"},
        "overridden": {"next_run_time": pytz.utc.localize(dt.datetime(2036, 6, 1, 12, 34, 56, 789))},
        "overridden-naive": {"next_run_time": dt.datetime(2036, 6, 1, 12, 34, 56)},
    }
    for name in sorted(options):
        yield name, "shop:remind", hourly, options[name], None
    for flavour in sorted(FLAVOURS):
        if flavour != "text":
            zone = FLAVOURS[flavour]("Europe/Berlin")
            override = zone.localize(dt.datetime(2036, 6, 1, 12)) if flavour == "pytz" else dt.datetime(2036, 6, 1, 12, tzinfo=zone)
            yield "overridden-" + flavour, "shop:remind", hourly, {"next_run_time": override}, None
    yield "überschrift id", "shop:remind", hourly, {}, None
    yield "x" * 191, "shop:remind", hourly, {}, None
    yield "bound", shop.Shop("Ulm").open, hourly, {"kwargs": {"hour": 8}}, None
    yield "bound-text", "shop:Shop.open", hourly, {"args": (shop.Shop("Ulm"),)}, None
    yield "classmethod", shop.Shop.close, hourly, {}, None
    yield "static", "shop:Shop.count", hourly, {"args": ["pears"]}, None
    yield "callable", shop.remind, hourly, {}, None
    yield "builtin", "operator:truth", hourly, {"args": [1]}, None
    yield "renamed", shop.renamed_since, hourly, {"args": ["a"]}, None
    for name, args, kwargs in arguments():
        yield "args-" + name, "shop:remind", hourly, {"args": args, "kwargs": kwargs}, None


ALL_ARGS = [case for case in arguments() if case[0] in ("plain", "native", "aware", "sets", "uuids", "decimals", "unknown", "deltas", "datetimes")]


def write(path, made, refused, protocol, wanted):
    """Add the jobs to a scheduler whose store uses that protocol of pickle, and yield the stored rows with them."""
    store = SQLAlchemyJobStore(url="sqlite:///" + path, pickle_protocol=protocol)
    scheduler = BackgroundScheduler(jobstores={"default": store}, timezone="UTC")
    scheduler.add_executor("threadpool", "processpool")
    scheduler.start(paused=True)
    jobs = {}
    for name, func, trigger, options, zone in wanted:
        try:
            job = scheduler.add_job(func, trigger(), id=name, misfire_grace_time=options.get("misfire_grace_time", 1), **{k: v for k, v in options.items() if k != "misfire_grace_time"})
        except Exception as exc:
            refused[name] = "%s: %s" % (type(exc).__name__, exc)
            continue
        jobs[name] = job, zone
    connection = sqlite3.connect(path)
    for name, next_run_time, state in connection.execute("SELECT id, next_run_time, job_state FROM apscheduler_jobs ORDER BY id"):
        state = bytes(state)
        job, zone = jobs[name]
        loaded = pickle.loads(state)
        trigger = loaded["trigger"]
        entry = {
            "id": name,
            "next_run_time": next_run_time,
            "job_state": base64.b64encode(state).decode("ascii"),
            "asked": {
                "func": loaded["func"],
                "trigger": asked_of(trigger),
                "executor": loaded["executor"],
                "name": loaded["name"],
                "misfire_grace_time": loaded["misfire_grace_time"],
                "coalesce": loaded["coalesce"],
                "max_instances": loaded["max_instances"],
                "next_run_time": loaded["next_run_time"] and micros(loaded["next_run_time"]),
                "args": told(tuple(loaded["args"])),
                "kwargs": told(dict(loaded["kwargs"])),
            },
        }
        if not isinstance(trigger, shop.OddMinutes) and "jitter" not in name and not name.startswith("or-own") and protocol == pickle.HIGHEST_PROTOCOL:
            clock = getattr(trigger, "timezone", None) or pytz.utc
            if zone:
                entry["fires"] = {start: oracle(trigger, start, clock) for start in STARTS[zone]}
            if loaded["next_run_time"] and zone != "America/Havana":
                entry.setdefault("fires", {})["stored"] = chain(trigger, loaded["next_run_time"], clock)
        made.append(entry)
    connection.close()


def main():
    made, refused = [], {}
    folder = tempfile.mkdtemp()
    write(os.path.join(folder, "jobs.sqlite"), made, refused, pickle.HIGHEST_PROTOCOL, cases())
    for protocol in range(pickle.HIGHEST_PROTOCOL):
        wanted = [
            ("protocol-%d-%s" % (protocol, name), "shop:remind", lambda: CronTrigger(hour=2, timezone="Europe/Berlin"), {"args": args, "kwargs": kwargs}, None)
            for name, args, kwargs in ALL_ARGS
        ]
        wanted.append(("protocol-%d-interval" % protocol, "shop:remind", lambda: IntervalTrigger(hours=2, timezone="Europe/Berlin"), {}, None))
        wanted.append(("protocol-%d-or" % protocol, "shop:remind", lambda: OrTrigger([CronTrigger(hour=2, timezone="Europe/Berlin"), DateTrigger("2037-01-01", timezone="UTC")]), {}, None))
        write(os.path.join(folder, "jobs%d.sqlite" % protocol), made, refused, protocol, wanted)
    out = {"release": apscheduler.version, "python": "%d.%d" % sys.version_info[:2], "refused": refused, "rows": made}
    text = json.dumps(out, ensure_ascii=True, sort_keys=True)
    sys.stdout.write(text + "\n")
    sys.stdout.flush()
    shutil.rmtree(folder)
    os._exit(0)  # an orderly shutdown would run the jobs that are due


main()
