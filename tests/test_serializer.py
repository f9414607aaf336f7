"""Promise 9 (data is data), and that what is stored comes back as it was."""

from __future__ import annotations

import enum
import json
import math
import sys
from collections import OrderedDict, namedtuple
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta, timezone, tzinfo
from decimal import Decimal
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

import pytest
from apscheduler import DeserializationError, SerializationError
from apscheduler.abc import Trigger
from apscheduler.triggers.calendarinterval import CalendarIntervalTrigger
from apscheduler.triggers.combining import AndTrigger, OrTrigger
from apscheduler.triggers.cron import CronTrigger
from apscheduler.triggers.date import DateTrigger
from apscheduler.triggers.interval import IntervalTrigger
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from duetime.errors import InvalidTrigger, UnreadableValue, UnsupportedValue
from duetime.serializer import StoredException, TypedJSONSerializer

BERLIN = ZoneInfo("Europe/Berlin")

# A busy machine is no reason to fail.
unhurried = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

serializer = TypedJSONSerializer()


def round_trip(value: Any) -> Any:
    return serializer.deserialize(serializer.serialize(value))


def same(one: Any, other: Any) -> bool:
    """Whether two values are alike in type, content, zone and fold, at every level."""
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        return len(one) == len(other) and all(
            same(a, b) and same(one[a], other[b]) for a, b in zip(one, other, strict=True)
        )
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, float):
        return (math.isnan(one) and math.isnan(other)) or (
            one == other and math.copysign(1, one) == math.copysign(1, other)
        )
    if isinstance(one, (datetime, time)):
        return repr(one) == repr(other)
    if isinstance(one, Decimal):
        return str(one) == str(other)
    return bool(one == other)


zones = st.sampled_from([None, UTC, timezone(timedelta(hours=5, minutes=45)), BERLIN, ZoneInfo("America/New_York")])
hashable_leaves = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(min_value=2**2040, max_value=2**2060) | st.just(-(10**4200)),
    st.floats(allow_nan=False),
    st.text(),
    st.text(alphabet=st.characters(categories=["Cs"]), max_size=2),
    st.binary(),
    st.datetimes(timezones=zones, allow_imaginary=True),
    st.dates(),
    st.times(timezones=zones),
    st.timedeltas(),
    st.uuids(),
    st.decimals(allow_nan=False),
    zones.filter(bool),
    st.sampled_from(["$tuple", "$trigger", "$dict", "$", "_apscheduler_json"]),
)
leaves = hashable_leaves | st.just(math.nan) | st.just(Decimal("NaN"))
hashables = st.recursive(
    hashable_leaves,
    lambda inner: st.lists(inner, max_size=3).map(tuple) | st.frozensets(inner, max_size=3),
    max_leaves=5,
)
values = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.lists(inner, max_size=4).map(tuple),
        st.dictionaries(hashables, inner, max_size=4),
        st.dictionaries(st.sampled_from(["$tuple", "$trigger", "$nothing", "a"]), inner, max_size=1),
        st.sets(hashables, max_size=3),
        st.frozensets(hashables, max_size=3),
    ),
    max_leaves=20,
)


@unhurried
@given(values)
def test_every_value_comes_back_as_it_was(value: Any) -> None:
    assert same(round_trip(value), value)


@unhurried
@given(st.lists(values, max_size=3).map(tuple), st.dictionaries(st.text(), values, max_size=3))
def test_every_call_comes_back_as_it_was(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    assert same(round_trip(args), args)
    assert same(round_trip(kwargs), kwargs)


@pytest.mark.parametrize(
    "value",
    [
        {"$tuple": [1, 2]},
        {"$trigger": ["date", {}]},
        {"$dict": []},
        {"$unknown": 1},
        {"$": 1},
        {"": 1},
        {1: "one", "1": "text", None: 0, False: 2},
        {(1, 2): {date(2026, 1, 1)}},
        [((), [()])],
        datetime(2026, 10, 25, 2, 30, tzinfo=BERLIN, fold=1),
        datetime(2026, 10, 25, 2, 30, fold=1),  # noqa: DTZ001 - a naive one stays naive
        time(2, 30, fold=1),
        "\ud800",
        {"\udfff": ("\ud800",)},
        "\x00",
        (math.inf, -math.inf, -0.0),
        10**10_000,
        (1, -(10**5000)),
    ],
    ids=lambda value: type(value).__name__,
)
def test_awkward_values_come_back_as_they_were(value: Any) -> None:
    assert same(round_trip(value), value)


def test_plain_arguments_are_plain_json() -> None:
    kwargs = {"to": "Zoë", "n": 1, "nested": {"list": [1, 2.5, None, True]}}
    assert json.loads(serializer.serialize(kwargs)) == kwargs
    assert "Zoë".encode() in serializer.serialize(kwargs)
    assert json.loads(serializer.serialize(("a", 1))) == {"$tuple": ["a", 1]}


def test_a_time_in_a_zone_without_an_iana_name_keeps_its_instant() -> None:
    class Odd(tzinfo):
        def utcoffset(self, when: datetime | None) -> timedelta:
            return timedelta(hours=3)

        def dst(self, when: datetime | None) -> timedelta:
            return timedelta(0)

        def tzname(self, when: datetime | None) -> str:
            return "somewhere"

    moment = datetime(2026, 6, 1, 9, tzinfo=Odd())
    assert round_trip(moment) == moment
    assert round_trip(moment).utcoffset() == timedelta(hours=3)


def test_a_subclass_that_equals_its_base_is_stored_as_the_base() -> None:
    class DriverUUID(UUID):  # as asyncpg's
        pass

    value = DriverUUID("12345678123456781234567812345678")
    assert round_trip(value) == value
    assert type(round_trip(value)) is UUID


class Colour(enum.Enum):
    red = 1


class Level(enum.IntEnum):
    high = 1


class Word(enum.StrEnum):
    yes = "yes"


class Address(BaseModel):
    street: str


@dataclass
class Point:
    x: int


Pair = namedtuple("Pair", "a b")  # noqa: PYI024 - the untyped one, as found in the wild


class Secret:
    pass


class Unprintable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


def nested(levels: int, wrap: Callable[[Any], Any]) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = wrap(value)
    return value


@pytest.mark.parametrize(
    ("value", "path", "advice"),
    [
        ({"user": {"address": Address(street="x")}}, "kwargs.user.address", "model_dump"),
        ({"user": [1, Point(1)]}, "kwargs.user[1]", "asdict"),
        ((1, {"colour": Colour.red}), "args[1].colour", ".value"),
        (({"a b": Level.high},), "args[0]['a b']", ".value"),
        ((Word.yes,), "args[0]", ".value"),
        ((Pair(1, 2),), "args[0]", "plain tuple"),
        ({"x": OrderedDict(a=1)}, "kwargs.x", "plain dict"),
        ({"x": bytearray(b"x")}, "kwargs.x", "bytes(value)"),
        ({"x": print}, "kwargs.x", "pass a name"),
        ({"x": Secret}, "kwargs.x", "pass a name"),
        ({"x": Secret()}, "kwargs.x", "plain values"),
        ({"x": (n for n in [1])}, "kwargs.x", "plain values"),
        ({1: {Secret()}}, "kwargs[int key]", "plain values"),
        ({Secret(): 1}, "key]", "plain values"),
        (Secret(), "value", "plain values"),
        (1 + 2j, "value", "plain values"),
    ],
)
def test_a_value_without_a_stored_form_is_refused_with_its_path_and_what_to_pass(
    value: Any, path: str, advice: str
) -> None:
    with pytest.raises(UnsupportedValue) as refused:
        serializer.serialize(value)
    assert refused.value.code == "unsupported_value"
    assert path in refused.value.details[0]["where"]
    assert advice in str(refused.value)


def test_the_caller_can_name_the_value_in_the_error() -> None:
    with pytest.raises(UnsupportedValue, match=r"^result\.x: "):
        serializer.serialize({"x": Secret()}, where="result")


def test_a_value_that_contains_itself_is_refused() -> None:
    ring: list[Any] = []
    ring.append([ring, ring])
    loop: dict[str, Any] = {}
    loop["self"] = (loop,)
    for value in (ring, loop):
        with pytest.raises(UnsupportedValue, match="contain itself"):
            serializer.serialize(value)


@pytest.mark.parametrize(
    "wrap", [lambda value: [value], lambda value: (value,), lambda value: {"$": value}, lambda value: {1: value}]
)
def test_a_hundred_levels_come_back_and_one_more_is_refused(wrap: Callable[[Any], Any]) -> None:
    assert round_trip(nested(100, wrap)) == nested(100, wrap)
    with pytest.raises(UnsupportedValue, match="100 levels"):
        serializer.serialize(nested(101, wrap))


def test_exceptions_come_back_as_the_name_and_text_of_what_was_raised() -> None:
    read = round_trip(ValueError("too many"))
    assert (type(read), read.type, read.message, str(read)) == (
        StoredException,
        "ValueError",
        "too many",
        "ValueError: too many",
    )
    assert round_trip(Unprintable()).type.endswith("test_serializer.Unprintable")
    assert round_trip(KeyboardInterrupt()).type == "KeyboardInterrupt"
    assert len(round_trip(ValueError("x" * 100_000)).message) == 8_000
    again = round_trip(read)
    assert (again.type, again.message) == ("ValueError", "too many")


START = datetime(2026, 3, 27, 22, 15, 30, tzinfo=BERLIN)


def stock_triggers() -> list[Trigger]:
    cron = CronTrigger(hour=9, day_of_week="mon-fri", timezone=BERLIN, start_time=START)
    interval = IntervalTrigger(hours=1, microseconds=5, start_time=START, end_time=START + timedelta(days=30))
    calendar = CalendarIntervalTrigger(months=1, hour=9, start_date=date(2026, 1, 31), timezone=BERLIN)
    return [
        DateTrigger(START),
        interval,
        cron,
        calendar,
        AndTrigger(
            [
                CronTrigger(hour=9, timezone=BERLIN, start_time=START),
                CalendarIntervalTrigger(days=2, hour=9, start_date=START.date(), timezone=BERLIN),
            ],
            threshold=timedelta(seconds=2.5),
            max_iterations=77,
        ),
        OrTrigger([DateTrigger(START), OrTrigger([CronTrigger(hour="*/2", timezone=BERLIN, start_time=START)])]),
    ]


@pytest.mark.parametrize("index", range(len(stock_triggers())))
@pytest.mark.parametrize("fired", [0, 1, 3])
def test_a_trigger_goes_on_where_it_stood(index: int, fired: int) -> None:
    trigger = stock_triggers()[index]
    for _ in range(fired):
        trigger.next()
    copy = round_trip(trigger)
    assert type(copy) is type(trigger)
    for _ in range(5):
        assert same(copy.next(), trigger.next())
    assert getattr(copy, "max_iterations", None) == getattr(trigger, "max_iterations", None)


class EveryOther(Trigger):
    """An application's own trigger, with a stock one inside."""

    def __init__(self, inner: Trigger) -> None:
        self.inner = inner

    def next(self) -> datetime | None:
        self.inner.next()
        return self.inner.next()

    def __getstate__(self) -> Any:
        return {"inner": self.inner}

    def __setstate__(self, state: Any) -> None:
        self.inner = state["inner"]


def test_an_application_adds_its_own_trigger_class() -> None:
    own = TypedJSONSerializer(triggers=[EveryOther])
    trigger = OrTrigger([EveryOther(IntervalTrigger(minutes=1, start_time=START))])
    copy = own.deserialize(own.serialize(trigger))
    assert [copy.next(), copy.next()] == [START + timedelta(minutes=1), START + timedelta(minutes=3)]
    with pytest.raises(UnreadableValue, match="known trigger class"):
        serializer.deserialize(own.serialize(trigger))


def test_a_trigger_class_that_is_not_registered_is_refused() -> None:
    with pytest.raises(UnsupportedValue, match=r"^trigger\.triggers\[0\]: .*EveryOther.*register_trigger"):
        serializer.serialize(OrTrigger([EveryOther(DateTrigger(START))]))

    class Mine(DateTrigger):
        pass

    with pytest.raises(UnsupportedValue, match="Mine"):
        serializer.serialize(Mine(START))


def test_a_name_of_a_trigger_class_cannot_be_taken_over() -> None:
    own = TypedJSONSerializer()
    with pytest.raises(InvalidTrigger, match="'date'"):
        own.register_trigger(EveryOther, "date")
    with pytest.raises(InvalidTrigger, match="subclass"):
        own.register_trigger(dict)  # type: ignore[arg-type]


def test_a_trigger_in_a_zone_that_other_machines_do_not_know_is_refused() -> None:
    class Local(tzinfo):
        def utcoffset(self, when: datetime | None) -> timedelta:
            return timedelta(hours=3)

        def dst(self, when: datetime | None) -> timedelta:
            return timedelta(0)

        def tzname(self, when: datetime | None) -> str:
            return "somewhere"

    with pytest.raises(UnsupportedValue, match=r"^trigger\.timezone: .*ZoneInfo"):
        serializer.serialize(CronTrigger(hour=1, timezone=Local()))


HOSTILE = [
    b'{"$trigger": ["os:system", {"version": 1}]}',
    b'{"$trigger": ["antigravity:x", {}]}',
    b'{"$trigger": ["apscheduler.triggers.date:DateTrigger", {"version": 1}]}',
    b'{"$trigger": ["or", {"version": 1, "triggers": [["antigravity:x", {}]], "next_fire_times": []}]}',
    b'{"$trigger": ["and", {"version": 1, "triggers": [["this:s", {}]], "threshold": 1, "max_iterations": 1}]}',
    b'{"$trigger": ["or", {"version": 1, "next_fire_times": []}]}',
    b'{"$trigger": ["or", {"version": 1, "triggers": "this", "next_fire_times": []}]}',
    b'{"$trigger": ["or", [["this:s", {}]]]}',
    b'{"$trigger": [["date"], {}]}',
    b'{"$trigger": "date"}',
    b'{"$trigger": ["date", {"version": 2, "run_time": null, "completed": false}]}',
    b'{"$trigger": ["date", {"run_time": null}]}',
    b'{"$trigger": ["date", {"version": 1, "run_time": "nope", "completed": false}]}',
    b'{"$trigger": ["cron", {"version": 1, "timezone": {"$zone": "UTC"}, "fields": ["x"], "start_time": null}]}',
    b'{"$exception": {"type": "ValueError"}}',
    b'{"$exception": {"type": ["os", "system"], "message": ""}}',
    b'{"$object": ["os:system", ["true"]]}',
    b'{"$zone": "../../etc/passwd"}',
    b'{"$zone": "antigravity"}',
    b'{"$zone": ["Europe", "Berlin"]}',
    b'{"$datetime": ["2026-01-01T00:00:00", "this/s"]}',
    b'{"$datetime": "soon"}',
    b'{"$datetime": 5}',
    b'{"$time": ["09:00"]}',
    b'{"$timedelta": [1]}',
    b'{"$timedelta": [1e300, 0, 0]}',
    b'{"$timezone": [5, 0, 0]}',
    b'{"$set": [[]]}',
    b'{"$tuple": "text"}',
    b'{"$dict": [[1]]}',
    b'{"$dict": [[[], 1]]}',
    b'{"$dict": {"a": 1}}',
    b'{"$int": "zz"}',
    b'{"$int": 5}',
    b'{"$float": "5"}',
    b'{"$uuid": "x"}',
    b'{"$uuid": 5}',
    b'{"$decimal": "five"}',
    b'{"$decimal": [0, [1], 0]}',
    b'{"$bytes": "*"}',
    b'{"$date": null}',
    b'{"$tupel": []}',
    b"NaN",
    b"[Infinity]",
    b"",
    b"{",
    b"\xff",
    b"1" * 10_000,
    b"[" * 100_000,
    b'{"$tuple":[' * 100_000,
    b"\x80\x05K\x01.",
]


def imported_since(before: set[str]) -> set[str]:
    # Looking up the names of time zones for a hint loads Python's own resource reader.
    return {name for name in set(sys.modules) - before if not name.startswith(("importlib", "tzdata"))}


@pytest.mark.parametrize("stored", HOSTILE, ids=lambda stored: stored[:40].decode("latin-1"))
def test_bytes_that_duetime_did_not_write_are_unreadable_and_import_nothing(stored: bytes) -> None:
    before = set(sys.modules)
    with pytest.raises(UnreadableValue) as unreadable:
        serializer.deserialize(stored)
    assert unreadable.value.message
    assert imported_since(before) == set()


@pytest.mark.parametrize("not_bytes", [None, 5, "[]", object()])
def test_what_is_not_bytes_is_unreadable(not_bytes: Any) -> None:
    with pytest.raises(UnreadableValue):
        serializer.deserialize(not_bytes)


def test_apscheduler_catches_our_errors_as_its_own() -> None:
    assert issubclass(UnreadableValue, DeserializationError)
    assert issubclass(UnsupportedValue, SerializationError)


def test_apschedulers_own_marker_of_a_class_is_just_a_dict() -> None:
    # The stock JSON serializer imports and builds what stands here (CVE-2026-31072).
    stored = b'{"_apscheduler_json": ["antigravity:x", {"version": 1}]}'
    before = set(sys.modules)
    assert serializer.deserialize(stored) == {"_apscheduler_json": ["antigravity:x", {"version": 1}]}
    assert imported_since(before) == set()


@unhurried
@given(
    st.binary()
    | st.recursive(
        st.none() | st.booleans() | st.integers() | st.text() | st.sampled_from(["UTC", "date", "cron"]),
        lambda inner: (
            st.lists(inner)
            | st.dictionaries(
                st.sampled_from(
                    [
                        "$tuple",
                        "$set",
                        "$dict",
                        "$trigger",
                        "$datetime",
                        "$time",
                        "$timedelta",
                        "$zone",
                        "$int",
                        "$exception",
                        "version",
                        "triggers",
                        "type",
                        "message",
                        "timezone",
                    ]
                ),
                inner,
                max_size=3,
            )
        ),
    ).map(lambda value: json.dumps(value).encode())
)
def test_reading_any_bytes_gives_a_value_or_says_unreadable(stored: bytes) -> None:
    with suppress(UnreadableValue):
        serializer.deserialize(stored)
