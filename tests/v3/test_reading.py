"""What a row says, compared with what the release that wrote it was asked for."""

from __future__ import annotations

import base64
import math
import sys
from collections.abc import Iterator
from datetime import UTC, date, datetime, time, timedelta, timezone, tzinfo
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

import pytest

from duetime.errors import ClassNotAllowed
from duetime.serializer import TypedJSONSerializer
from duetime.v3.model import (
    Reading,
    Unreadable,
    V3And,
    V3CalendarInterval,
    V3Cron,
    V3Date,
    V3Interval,
    V3Or,
    V3Row,
    V3Trigger,
    V3Unknown,
    V3Zone,
)
from duetime.v3.reading import Allowed, read

from .stored import EPOCH, Stored, stored_rows

APPLICATION = Path(__file__).parent / "application"
TYPES: dict[type[V3Trigger], str] = {
    V3Date: "DateTrigger",
    V3Interval: "IntervalTrigger",
    V3Cron: "CronTrigger",
    V3CalendarInterval: "CalendarIntervalTrigger",
    V3And: "AndTrigger",
    V3Or: "OrTrigger",
}


@pytest.fixture
def allowed(monkeypatch: pytest.MonkeyPatch) -> Iterator[Allowed]:
    """What an operator allows whose application has one module with an enum and two dataclasses."""
    monkeypatch.syspath_prepend(str(APPLICATION))
    yield Allowed(["colours:Colour", "colours:Level", "goods:Order", "goods:Address"])
    for name in ("colours", "goods"):
        sys.modules.pop(name, None)


def micros(moment: datetime) -> int:
    return (moment - EPOCH) // timedelta(microseconds=1)


def zone_told(zone: V3Zone) -> str:
    if zone.name is not None:
        return zone.name
    offset = zone.tzinfo.utcoffset(datetime(2026, 1, 1))  # noqa: DTZ001
    assert offset is not None
    return f"fixed{offset // timedelta(seconds=1):+d}"


def trigger_told(trigger: V3Trigger) -> dict[str, Any]:
    """What was read of a trigger, in the words of ``write_rows.py``."""
    assert not isinstance(trigger, V3Unknown)
    told: dict[str, Any] = {"type": TYPES[type(trigger)]}
    for name in ("run_date", "start_date", "end_date"):
        value = getattr(trigger, name, None)
        if value is not None:
            told[name] = micros(value) if isinstance(value, datetime) else value.isoformat()
    if getattr(trigger, "jitter", None) is not None:
        told["jitter"] = trigger.jitter  # type: ignore[union-attr]
    if isinstance(trigger, V3Interval | V3Cron | V3CalendarInterval):
        told["timezone"] = zone_told(trigger.timezone)
    if isinstance(trigger, V3Interval):
        told["interval"] = trigger.interval // timedelta(microseconds=1)
    if isinstance(trigger, V3Cron):
        told |= {"fields": dict(trigger.fields), "defaults": sorted(trigger.defaults)}
    if isinstance(trigger, V3CalendarInterval):
        told["every"] = [trigger.years, trigger.months, trigger.weeks, trigger.days]
        told["time"] = [trigger.hour, trigger.minute, trigger.second]
    if isinstance(trigger, V3And | V3Or):
        told["triggers"] = [trigger_told(member) for member in trigger.triggers]
    return told


def told(value: Any) -> Any:
    """What was read of an argument, in the words of ``write_rows.py``."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return ["str", value]
    if isinstance(value, bytes):
        return ["bytes", base64.b64encode(value).decode()]
    if isinstance(value, Unreadable):
        return ["unknown", value.what]
    if isinstance(value, datetime):
        return ["datetime", value.replace(tzinfo=None).isoformat(), micros(value) if value.tzinfo else None]
    if isinstance(value, tzinfo):
        return ["zone", zone_told(V3Zone(getattr(value, "key", "UTC" if value is UTC else None), value, ""))]
    if isinstance(value, dict):
        return ["dict", sorted([told(key), told(item)] for key, item in value.items())]
    if isinstance(value, list | tuple):
        return [type(value).__name__, [told(item) for item in value]]
    if isinstance(value, set | frozenset):
        return [type(value).__name__, sorted(told(item) for item in value)]
    kind = type(value).__name__
    if isinstance(value, float):
        return [kind, repr(value)]
    if isinstance(value, timedelta):
        return [kind, [value.days, value.seconds, value.microseconds]]
    if isinstance(value, date | time):
        return [kind, value.isoformat()]
    assert isinstance(value, int | UUID | Decimal), value
    return [kind, str(value)]


def expected(asked: Any) -> Any:
    """What of the arguments that were asked for has another form with us."""
    if not isinstance(asked, list):
        return asked
    if asked[:1] == ["py2"]:  # Python 2's str: text where it is text
        raw = base64.b64decode(asked[1])
        try:
            return ["str", raw.decode()]
        except UnicodeDecodeError:
            return ["bytes", asked[1]]
    if asked[:1] == ["bytearray"]:
        return ["bytes", asked[1]]
    if asked[:1] == ["enum"]:
        return {"RED": ["str", "red"], "GREEN": ["str", "green"], "HIGH": ["int", "2"]}[asked[2]]
    if asked[:1] == ["dataclass"]:
        return expected(asked[2])
    if asked[:1] in (["unknown"], ["str"]):
        return {"builtins:type": ["unknown", "shop:Money"], "__builtin__:type": ["unknown", "shop:Money"]}.get(
            asked[1], ["unknown", "shop:remind"] if asked[1].endswith(":function") else asked
        )
    return [expected(part) for part in asked]


def environments() -> list[tuple[str, str]]:
    return sorted({(stored.release, stored.python) for stored in stored_rows()})


def of(environment: tuple[str, str]) -> list[Stored]:
    return [stored for stored in stored_rows() if (stored.release, stored.python) == environment]


@pytest.mark.parametrize("environment", environments(), ids="-".join)
def test_every_row_that_a_release_wrote_is_read_as_it_was_asked_for(
    environment: tuple[str, str], allowed: Allowed
) -> None:
    compared = 0
    for stored in of(environment):
        reading = read(stored.row, allowed)
        job, asked = reading.job, stored.asked
        assert job is not None, (stored.name, reading.findings)
        assert (job.id, job.func, job.executor, job.name) == (
            stored.row.id,
            asked["func"],
            asked["executor"],
            asked["name"],
        )
        assert job.misfire_grace_time == asked["misfire_grace_time"]
        assert (job.coalesce, job.max_instances) == (asked["coalesce"], asked["max_instances"])
        assert (job.next_run_time and micros(job.next_run_time)) == asked["next_run_time"], stored.name
        if not isinstance(job.trigger, V3Unknown):
            if asked["trigger"].get("timezone") == "fixed+0":
                asked["trigger"]["timezone"] = "UTC"
            assert trigger_told(job.trigger) == asked["trigger"], stored.name
        assert told(job.args) == expected(asked["args"]), stored.name
        assert told(dict(job.kwargs)) == expected(asked["kwargs"]), stored.name
        compared += 1
    assert compared > 250


def row(id: str, release: str = "3.11", python: str = "3.13") -> V3Row:  # noqa: A002
    return next(stored.row for stored in stored_rows(release) if stored.row.id == id and stored.python == python)


def codes(reading: Reading) -> dict[str, str]:
    return {finding.code: finding.severity for finding in reading.findings}


def test_what_is_carried_over_can_be_stored(allowed: Allowed) -> None:
    serializer = TypedJSONSerializer()
    stored = 0
    for each in stored_rows():
        reading = read(each.row, allowed)
        assert reading.job is not None
        if not {"unknown_class", "unreadable_argument"} & set(codes(reading)):
            back = serializer.deserialize(serializer.serialize(reading.job.args))
            assert back == reading.job.args
            serializer.serialize(dict(reading.job.kwargs))
            stored += 1
    assert stored > 5000


def test_an_enum_is_carried_as_its_value_and_a_dataclass_as_its_fields_once_they_are_allowed(allowed: Allowed) -> None:
    reading = read(row("args-dataclasses"), allowed)
    assert reading.job is not None
    assert reading.job.args == ({"number": 7, "colour": "red", "lines": [{"town": "Ulm", "since": date(2020, 1, 1)}]},)
    assert codes(reading) == {"enum_as_value": "note", "dataclass_as_dict": "note"}


def test_a_class_that_is_not_allowed_is_named_and_its_value_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("builtins.__import__", None)  # whatever would be imported
    reading = read(row("args-dataclasses"))
    assert reading.job is not None
    assert reading.job.args == (Unreadable("goods:Order"),)
    assert [(finding.code, finding.severity) for finding in reading.findings] == [("unknown_class", "review")] * 2
    assert "expected args[0] to be plain data" in reading.findings[0].text
    assert "goods:Order" in reading.findings[0].text
    assert "kwargs['to']" in reading.findings[1].text


def test_a_trigger_of_the_applications_own_is_named() -> None:
    for id in ("own-trigger", "or-own-trigger"):  # noqa: A001
        reading = read(row(id))
        assert reading.job is not None
        assert reading.job.trigger == V3Unknown("shop:OddMinutes")
        assert codes(reading) == {"unknown_trigger": "review"}


def test_a_zone_that_cannot_be_read_leaves_the_trigger_to_a_person_and_keeps_the_instant() -> None:
    reading = read(row("dateutil-rule-cron"))
    assert reading.job is not None
    assert reading.job.next_run_time is not None
    assert reading.job.next_run_time.timestamp() == reading.row.next_run_time
    assert codes(reading) == {"unknown_zone": "review"}


def test_each_flavour_of_zone_is_told_apart() -> None:
    found = {
        (each.release, job.trigger.timezone.flavour)
        for each in stored_rows()
        if (job := read(each.row).job) and isinstance(job.trigger, V3Cron)
    }
    assert {flavour for release, flavour in found if release == "3.6.3"} == {"pytz", "shim"}
    assert {flavour for release, flavour in found if release == "3.10.4"} == {
        "pytz",
        "shim",
        "zoneinfo",
        "dateutil",
        "datetime",
    }
    assert {flavour for release, flavour in found if release == "3.11.3"} >= {"zoneinfo", "dateutil", "datetime"}


def test_a_moment_of_pytz_keeps_its_instant_in_a_fold_and_in_local_mean_time() -> None:
    folded = read(row("args-folded", "3.6", "2.7")).job
    assert folded is not None
    first, second = folded.args
    assert (first.astimezone(UTC).hour, second.astimezone(UTC).hour) == (0, 1)
    assert first.tzinfo is second.tzinfo is ZoneInfo("Europe/Berlin")
    mean = read(row("args-lmt", "3.6", "2.7")).job
    assert mean is not None
    assert mean.args == (datetime(2026, 7, 1, 12, tzinfo=timezone(timedelta(minutes=53))),)


def test_columns_that_contradict_the_state_are_left_to_a_person() -> None:
    whole = row("cron-01")
    assert codes(read(V3Row("another", whole.next_run_time, whole.job_state))) == {"another_id": "review"}
    assert codes(read(V3Row(whole.id, None, whole.job_state))) == {"another_next_run_time": "review"}
    assert whole.next_run_time is not None
    for column in (whole.next_run_time + 60, 0.0, math.nan, math.inf):
        assert codes(read(V3Row(whole.id, column, whole.job_state))) == {"another_next_run_time": "review"}


def test_a_column_that_is_no_time_takes_the_place_of_none_that_cannot_be_read() -> None:
    for column in (math.nan, math.inf, 1e300):
        reading = read(V3Row("dateutil-rule-cron", column, row("dateutil-rule-cron").job_state))
        assert codes(reading) == {"not_a_job": "reject"}


@pytest.mark.parametrize(
    ("reference", "problem"),
    [
        ("goods", "module:Class"),
        ("goods:Nothing", "can be imported"),
        ("no_such_module_here:Thing", "can be imported"),
        ("datetime:datetime", "an enum or a dataclass"),
    ],
)
def test_a_class_that_cannot_be_allowed_is_refused_before_anything_is_read(
    reference: str, problem: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(APPLICATION))
    with pytest.raises(ClassNotAllowed, match=problem):
        Allowed([reference])
