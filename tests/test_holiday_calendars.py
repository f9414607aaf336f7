"""Public holidays by the name of a country, of a part of one, or of a financial market.

The days are written down here from the laws and the markets' announcements, not computed.
"""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from typing import Any

import pytest

from duetime.commands import FireQuery, NewSchedule, ScheduleChange, ScheduleQuery
from duetime.errors import InvalidTrigger, TriggerNeverFires
from duetime.records import Answer, ScheduleState, Verdict
from duetime.serializer import TypedJSONSerializer
from duetime.settings import DatabaseUrl
from duetime.store.slow_plans import is_quick, is_stock
from duetime.triggers import (
    Cron,
    Excluding,
    Limited,
    describe,
    holiday_calendars,
    parse_json,
    to_json,
    upcoming,
    upcoming_fires,
)

from .calendars import forget, lose_the_package
from .services import a_service, new
from .waiting import eventually

BERLIN = {"type": "cron", "expression": "0 9 * * *", "timezone": "Europe/Berlin"}
NEW_YORK = {"type": "cron", "expression": "30 9 * * mon-fri", "timezone": "America/New_York"}
WEEKDAYS = {"type": "cron", "expression": "0 9 * * mon-fri", "timezone": "Europe/Berlin"}
GERMANY, BAVARIA = {"holidays": "DE"}, {"holidays": "DE", "subdivision": "BY"}
SPRING = datetime(2026, 4, 1, 12, tzinfo=UTC)  # the Wednesday before Easter

GERMAN = {
    "2026-01-01 2026-04-03 2026-04-06 2026-05-01 2026-05-14 2026-05-25 2026-10-03 2026-12-25 2026-12-26",
    "2027-01-01 2027-03-26 2027-03-29 2027-05-01 2027-05-06 2027-05-17 2027-10-03 2027-12-25 2027-12-26",
}
BAVARIAN = GERMAN | {"2026-01-06 2026-06-04 2026-11-01", "2027-01-06 2027-05-27 2027-11-01"}
# 4 July 2026 is a Saturday, 19 June and 25 December 2027 are Saturdays, 4 July 2027 is a Sunday, and 1 January 2028 is
# a Saturday: its substitute lies in the year before.
AMERICAN = {
    "2026-01-01 2026-01-19 2026-02-16 2026-05-25 2026-06-19 2026-07-04 2026-09-07 2026-10-12 2026-11-11 2026-11-26",
    "2026-12-25 2027-01-01 2027-01-18 2027-02-15 2027-05-31 2027-06-19 2027-07-04 2027-09-06 2027-10-11 2027-11-11",
    "2027-11-25 2027-12-25",
}
SUBSTITUTES = {"2026-07-03 2027-06-18 2027-07-05 2027-12-24 2027-12-31"}
# The exchange does not make up for 1 January 2028 in the old year.
NYSE = {
    "2026-01-01 2026-01-19 2026-02-16 2026-04-03 2026-05-25 2026-06-19 2026-07-03 2026-09-07 2026-11-26 2026-12-25",
    "2027-01-01 2027-01-18 2027-02-15 2027-03-26 2027-05-31 2027-06-18 2027-07-05 2027-09-06 2027-11-25 2027-12-24",
}
TARGET = {
    "2026-01-01 2026-04-03 2026-04-06 2026-05-01 2026-12-25 2026-12-26",
    "2027-01-01 2027-03-26 2027-03-29 2027-05-01 2027-12-25 2027-12-26",
}


def days_of(lines: set[str]) -> set[date]:
    return {date.fromisoformat(day) for line in lines for day in line.split()}


def left_out_of(form: dict[str, Any]) -> set[date]:
    """Return the days of 2026 and 2027 on which a daily trigger does not fire."""
    trigger = parse_json(form, now=datetime(2025, 12, 31, 12, tzinfo=UTC))
    fired = {fire.date() for fire in upcoming(trigger, 800)}
    return {day for n in range(730) if (day := date(2026, 1, 1) + timedelta(days=n)) not in fired}


@pytest.fixture
def _forgotten() -> Iterator[None]:
    """Forget what was loaded, before and after."""
    forget()
    yield
    forget()


@pytest.fixture
def _missing(_forgotten: None, monkeypatch: pytest.MonkeyPatch) -> None:
    lose_the_package(monkeypatch)


# -- the days ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("exclusion", "expected"),
    [
        (GERMANY, GERMAN),
        (BAVARIA, BAVARIAN),
        ({"holidays": "US"}, AMERICAN | SUBSTITUTES),
        ({"holidays": "US", "observed": False}, AMERICAN),
        ({"holidays": "NYSE"}, NYSE),
        ({"holidays": "ECB"}, TARGET),
    ],
    ids=["Germany", "Bavaria", "US", "US, not observed", "NYSE", "ECB"],
)
def test_exactly_the_holidays_of_a_calendar_are_left_out(exclusion: dict[str, Any], expected: set[str]) -> None:
    assert left_out_of({**BERLIN, "exclude": [exclusion]}) == days_of(expected)


def test_a_holiday_by_the_moon_is_left_out() -> None:
    turkey = left_out_of({**BERLIN, "timezone": "Europe/Istanbul", "exclude": [{"holidays": "TR"}]})
    # The feasts at the end of Ramadan, by the calendar of Turkey's Presidency of Religious Affairs.
    assert days_of({"2026-03-20 2026-03-21 2026-03-22 2027-03-09 2027-03-10 2027-03-11"}) <= turkey


def test_weekdays_without_holidays_go_on_over_the_turn_of_the_year() -> None:
    trigger = parse_json({**WEEKDAYS, "exclude": [BAVARIA]}, now=datetime(2026, 12, 23, 12, tzinfo=UTC))
    shown = [f"{fire:%m-%d}" for fire in upcoming(trigger, 9)]
    assert shown == ["12-24", "12-28", "12-29", "12-30", "12-31", "01-04", "01-05", "01-07", "01-08"]


def test_a_holiday_is_a_day_of_the_triggers_zone() -> None:
    hourly = {"type": "cron", "expression": "0 * * * *", "exclude": [{"holidays": "NYSE"}]}
    in_zone = parse_json({**hourly, "timezone": "America/New_York"}, now=datetime(2026, 11, 26, 4, tzinfo=UTC))
    assert [fire.astimezone(UTC) for fire in upcoming(in_zone, 2)] == [
        datetime(2026, 11, 26, 4, tzinfo=UTC),
        datetime(2026, 11, 27, 5, tzinfo=UTC),
    ]


def test_calendars_and_other_exclusions_add_up_in_every_form() -> None:
    exclude = [
        "2026-04-02",
        GERMANY,
        {"holidays": "ES", "subdivision": "AN"},
        {"from": "2026-04-07", "to": "2026-04-08"},
    ]
    for form in (
        WEEKDAYS,
        {"type": "interval", "hours": 24, "start": "2026-04-01T09:00"},
        {"type": "calendar_interval", "days": 1, "hour": 9, "start_date": "2026-04-01"},
        {"type": "rrule", "rrule": "FREQ=DAILY;BYDAY=MO,TU,WE,TH,FR", "start": "2026-04-01T09:00"},
        {"type": "text", "text": "every weekday at 9:00"},
        {"type": "or", "triggers": [WEEKDAYS]},
    ):
        data = {**form, "timezone": "Europe/Berlin", "exclude": exclude}
        trigger = parse_json(data, now=SPRING)
        fires = [fire for fire in upcoming(trigger, 40) if fire.weekday() < 5]
        assert [f"{fire:%m-%d %H:%M}" for fire in fires[:2]] == ["04-09 09:00", "04-10 09:00"], form
        again = to_json(trigger, now=SPRING)
        assert again["exclude"] == exclude
        assert upcoming(parse_json(again, now=SPRING), 40) == upcoming(trigger, 40)


# -- what is stored ----------------------------------------------------------------------------------------------------


def test_the_name_is_stored_and_not_the_days() -> None:
    trigger = parse_json({**WEEKDAYS, "exclude": [BAVARIA, {"holidays": "US", "observed": False}]}, now=SPRING)
    stored = TypedJSONSerializer().serialize(trigger)
    assert b'"exclude":[{"holidays":"DE","subdivision":"BY"},{"holidays":"US","observed":false}]' in stored
    again = TypedJSONSerializer().deserialize(stored)
    assert upcoming(again, 50) == upcoming(trigger, 50)


@pytest.mark.parametrize(
    ("given", "stored"),
    [
        ({"holidays": "germany", "subdivision": "bavaria", "observed": True}, BAVARIA),
        ({"holidays": "DEU", "subdivision": "Bayern", "categories": ["public"]}, BAVARIA),
        ({"holidays": "DE-BY"}, BAVARIA),
        ({"holidays": "United States", "subdivision": "California"}, {"holidays": "US", "subdivision": "CA"}),
        ({"holidays": "uk", "subdivision": None}, {"holidays": "GB"}),
        ({"holidays": "nyse"}, {"holidays": "NYSE"}),
        (
            {"holidays": "DE", "subdivision": "BY", "categories": ["public", "catholic", "public"]},
            {**BAVARIA, "categories": ["catholic", "public"]},
        ),
    ],
    ids=str,
)
def test_a_calendar_is_stored_by_its_codes(given: dict[str, Any], stored: dict[str, Any]) -> None:
    trigger = parse_json({**WEEKDAYS, "exclude": [given]}, now=SPRING)
    assert to_json(trigger, now=SPRING)["exclude"] == [stored]


def test_a_kind_of_holidays_can_be_asked_for() -> None:
    assert date(2026, 8, 15) not in left_out_of({**BERLIN, "exclude": [BAVARIA]})
    catholic = {**BAVARIA, "categories": ["public", "catholic"]}
    assert left_out_of({**BERLIN, "exclude": [catholic]}) == days_of(BAVARIAN | {"2026-08-15 2027-08-15"})


@pytest.mark.parametrize("damage", [None, 5, [], {"a": 1}, "XX", "", ["x", 3]])
@pytest.mark.parametrize("name", ["holidays", "subdivision", "observed", "categories", "more"])
def test_a_damaged_calendar_is_found_when_it_is_read_or_does_no_harm(name: str, damage: Any) -> None:
    trigger = Excluding(Cron("0 9 * * *"), [BAVARIA])
    state = {**trigger.__getstate__(), "exclude": [{**BAVARIA, name: damage}]}
    broken = Excluding.__new__(Excluding)
    try:
        broken.__setstate__(state)
    except InvalidTrigger:
        return
    describe(broken)
    to_json(broken)
    upcoming(broken, 2)


# -- what is refused ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("exclude", "words"),
    [
        ({"holidays": "Germny"}, "did you mean 'DE' (Germany)?"),
        ({"holidays": "NYSEE"}, "did you mean 'NYSE' (New York Stock Exchange)?"),
        ({"holidays": "XX"}, "got 'XX'"),
        ({"holidays": ""}, "got {'holidays': ''}"),
        ({"holidays": "__class__"}, "got '__class__'"),
        ({"holidays": "DE", "subdivision": "Bavria"}, "did you mean 'BY'?"),
        ({"holidays": "DE", "subdivision": "CA"}, "It has BB, BE, BW, BY"),
        ({"holidays": "NYSE", "subdivision": "CA"}, "None are known"),
        ({"holidays": "DE", "categories": ["bank"]}, "known of Germany (catholic, public"),
        ({"holidays": "DE", "categories": []}, "'categories': ['public']"),
        ({"holidays": "DE", "observed": "yes"}, "'observed': false"),
        ({"holidays": "DE", "subdivison": "BY"}, "'subdivision': 'BY'"),
        ({"holidays": ["DE"]}, "{'holidays': 'DE'}"),
    ],
    ids=str,
)
def test_a_calendar_that_is_unknown_is_refused_with_its_place(exclude: dict[str, Any], words: str) -> None:
    member = {**WEEKDAYS, "exclude": ["12-24", exclude]}
    for form, where in (
        (member, "trigger.exclude[1]"),
        ({"type": "or", "triggers": [member]}, "trigger.triggers[0].exclude[1]"),
    ):
        with pytest.raises(InvalidTrigger) as refused:
            parse_json(form, now=SPRING)
        assert refused.value.code == "invalid_trigger"
        assert [detail["where"] for detail in refused.value.details] == [where]
        assert words in refused.value.message


def test_a_trigger_that_only_fires_on_holidays_is_refused() -> None:
    for expression in ("0 9 25 12 *", "0 9 1 1 *"):
        with pytest.raises(TriggerNeverFires, match="exclusions that leave nothing"):
            parse_json({**BERLIN, "expression": expression, "exclude": [GERMANY]}, now=SPRING)


@pytest.mark.usefixtures("_missing")
def test_without_the_package_a_calendar_is_refused_with_what_to_install() -> None:
    with pytest.raises(InvalidTrigger, match=r"pip install 'duetime\[holidays\]'") as refused:
        parse_json({**WEEKDAYS, "exclude": ["12-24", GERMANY]}, now=SPRING)
    assert [detail["where"] for detail in refused.value.details] == ["trigger.exclude[1]"]
    with pytest.raises(InvalidTrigger, match=r"pip install 'duetime\[holidays\]'"):
        parse_json({"type": "text", "text": "every weekday at 9:00 except public holidays in Germany"}, now=SPRING)
    assert len(upcoming(parse_json({**WEEKDAYS, "exclude": ["12-24"]}, now=SPRING), 3)) == 3


@pytest.mark.usefixtures("_missing")
def test_without_the_package_a_stored_trigger_is_shown_by_its_codes() -> None:
    trigger = Excluding(Cron("0 9 * * *", start_time=SPRING), [BAVARIA])
    assert describe(trigger, now=SPRING) == "every day at 09:00 (UTC), except on public holidays of DE (BY)"
    assert to_json(trigger, now=SPRING)["exclude"] == [BAVARIA]
    assert upcoming(trigger, 2) == []


# -- in words ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("exclude", "words"),
    [
        ([BAVARIA], "on public holidays of Germany (Bavaria)"),
        ([{"holidays": "US", "observed": False}], "on public holidays of the United States, on their own dates only"),
        ([{"holidays": "ECB"}], "on holidays of ECB (European Central Bank)"),
        (
            ["12-24", {"holidays": "AT", "subdivision": "9"}],
            "24 December of every year and on public holidays of Austria (Vienna)",
        ),
        ([{**BAVARIA, "categories": ["catholic", "public"]}], "on catholic and public holidays of Germany (Bavaria)"),
    ],
    ids=str,
)
def test_a_calendar_in_words(exclude: list[Any], words: str) -> None:
    assert describe(parse_json({**BERLIN, "exclude": exclude}, now=SPRING), now=SPRING) == (
        f"every day at 09:00 (Europe/Berlin), except {words}"
    )


@pytest.mark.parametrize(
    ("text", "exclude", "zone"),
    [
        ("every weekday at 9:00 except public holidays in Germany", GERMANY, "UTC"),
        ("every weekday at 9:00 in Europe/Berlin, except on public holidays in Bavaria.", BAVARIA, "Europe/Berlin"),
        ("every weekday at 9:00 except holidays in DE in Europe/Berlin", GERMANY, "Europe/Berlin"),
        ("every weekday at 9:00 excluding the public holidays of DE/BY", BAVARIA, "UTC"),
        ("every weekday at 9:00, but not on public holidays in Bavaria, Germany", BAVARIA, "UTC"),
        ("Every weekday at 9:00 EXCEPT PUBLIC HOLIDAYS IN GERMANY (BAVARIA)", BAVARIA, "UTC"),
        ("every weekday at 9:00 except public holidays in the US", {"holidays": "US"}, "UTC"),
        ("0 9 * * mon-fri except holidays of NYSE in America/New_York", {"holidays": "NYSE"}, "America/New_York"),
        ("every weekday at 9:00 except public holidays in England", {"holidays": "GB", "subdivision": "ENG"}, "UTC"),
    ],
)
def test_a_sentence_leaves_public_holidays_out(text: str, exclude: dict[str, Any], zone: str) -> None:
    trigger = parse_json({"type": "text", "text": text}, now=SPRING)
    assert to_json(trigger, now=SPRING) == {
        "type": "cron",
        "expression": "0 9 * * mon-fri",
        "timezone": zone,
        "exclude": [exclude],
    }


def test_the_exceptions_of_a_sentence_come_after_those_beside_it() -> None:
    data = {
        "type": "text",
        "text": "daily at 9:00 except holidays in Germany",
        "exclude": ["12-24", {"holidays": "FR"}],
    }
    assert to_json(parse_json(data, now=SPRING), now=SPRING)["exclude"] == ["12-24", {"holidays": "FR"}, GERMANY]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("every weekday at 9:00 except public holidays", "expected the country whose holidays are left out"),
        ("every weekday at 9:00 except public holidays in Germny", "did you mean 'DE' (Germany)?"),
        ("every weekday at 9:00 except public holidays in La Rioja", "'La Rioja, AR' or 'La Rioja, ES'"),
        ("every weekday at 9:00 except german holidays", "'every weekday at 9:00 except public holidays in Germany'"),
        (
            "every weekday at 9:00 except bank holidays in DE",
            "'every weekday at 9:00 except public holidays in Germany'",
        ),
        ("tomorrow at 9:00 except public holidays in Germany", "expected times again and again"),
        ("every weekday except public holidays in Germany", "The nearest form is 'every weekday at 9:00'"),
    ],
)
def test_an_exception_that_is_not_understood_is_refused_with_what_is(text: str, words: str) -> None:
    with pytest.raises(InvalidTrigger) as refused:
        parse_json({"type": "text", "text": text}, now=SPRING)
    assert [detail["where"] for detail in refused.value.details] == ["trigger.text"]
    assert words in refused.value.message


def test_a_look_ahead_names_what_is_left_out() -> None:
    trigger = parse_json({**WEEKDAYS, "exclude": ["2026-04-02", GERMANY]}, now=SPRING)
    fires = upcoming_fires(Limited(trigger, max_fires=10), 2)
    assert [(f"{fire.fire_time:%m-%d}", fire.note, fire.left_out) for fire in fires] == [
        (
            "04-07",
            None,
            "left out before it: 2 April 2026, 3 April 2026 (Good Friday) and 6 April 2026 (Easter Monday)",
        ),
        ("04-08", None, None),
    ]
    blackout = {"from": "2026-04-02", "to": "2026-04-12"}
    hourly = parse_json({**BERLIN, "expression": "0 * * * *", "exclude": [blackout]}, now=SPRING)
    [*_, found] = upcoming_fires(hourly, 10, after=SPRING)
    assert found.left_out is not None
    assert found.left_out.endswith("5 April 2026, 6 April 2026 and 6 more days")


def test_a_look_ahead_says_where_a_calendar_ends() -> None:
    trigger = parse_json({**WEEKDAYS, "exclude": [GERMANY]}, now=datetime(2100, 12, 30, tzinfo=UTC))
    notes = [(f"{fire.fire_time:%Y-%m-%d}", fire.note) for fire in upcoming_fires(trigger, 4)]
    assert notes == [
        ("2100-12-30", None),
        ("2100-12-31", None),
        ("2101-01-03", "no public holidays of Germany are known after 2100, so none is left out from here on"),
        ("2101-01-04", None),
    ]


# -- in a running node -------------------------------------------------------------------------------------------------


def test_the_package_is_not_imported_at_the_start() -> None:
    code = "import duetime.app, duetime.web, duetime.cli, sys; print('holidays' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


@pytest.mark.usefixtures("_forgotten")
def test_the_planner_makes_quick_plans_once_a_calendar_is_loaded() -> None:
    trigger = Excluding(Cron("0 9 * * *", start_time=SPRING), [BAVARIA])
    assert (is_quick(trigger), is_stock(trigger)) == (False, True)
    trigger.next()
    assert is_quick(trigger)
    assert not is_quick(Excluding(Cron("0 9 * * *"), [BAVARIA, {"holidays": "FR"}]))


@pytest.mark.usefixtures("_forgotten")
def test_a_year_of_a_calendar_is_worked_out_once() -> None:
    for _ in range(3):
        upcoming(parse_json({**WEEKDAYS, "exclude": [BAVARIA]}, now=SPRING), 50)
    assert holiday_calendars._year.cache_info().misses == 1
    assert holiday_calendars._year.cache_info().maxsize == 1024


def without_holidays(**fields: Any) -> NewSchedule:
    """Return a schedule that fires each second: there are Catholic holidays in parts of Germany only."""
    trigger = {"type": "cron", "expression": "* * * * * *", "exclude": [{"holidays": "DE", "categories": ["catholic"]}]}
    return new(trigger=trigger, **fields)


@pytest.mark.usefixtures("_forgotten")
async def test_no_calendar_is_loaded_on_the_event_loop(database: DatabaseUrl, monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[threading.Thread] = []
    real = holiday_calendars._found.__wrapped__

    def found(calendar: Any) -> Any:
        if not calendar.is_ready:
            threads.append(threading.current_thread())
        return real(calendar)

    def forgotten() -> None:
        """Stand for a process that has just begun."""
        holiday_calendars._year.cache_clear()
        holiday_calendars._loaded.clear()

    monkeypatch.setattr(holiday_calendars, "_found", found)
    monkeypatch.setattr(found, "cache_clear", lambda: None, raising=False)
    form = {**WEEKDAYS, "exclude": [BAVARIA]}
    january = datetime(2026, 1, 1, tzinfo=UTC)
    expiry = ScheduleChange.model_validate({"expires_at": "2099-01-01T00:00:00Z"})
    earlier = ScheduleChange.model_validate({"trigger": {**form, "expression": "0 8 * * *"}})
    async with a_service(database) as service:
        forgotten()
        await service.add(new(id="s", trigger=form))
        for act in (
            lambda: service.get("s"),
            lambda: service.schedules(ScheduleQuery()),
            lambda: service.preview(new(trigger=form)),
            lambda: service.explain("s", SPRING),
            lambda: service.update("s", expiry),
            lambda: service.update("s", earlier),
            lambda: service.backfill("s", january, SPRING, dry_run=True),
        ):
            forgotten()
            threads.clear()
            await act()
            assert threads
            assert threading.main_thread() not in threads
        await service.add(without_holidays(id="each second"))
        threads.clear()
        forgotten()
        await eventually(lambda: threads)
        query = FireQuery.model_validate({"schedule_id": "each second", "state": "succeeded"})

        async def fired() -> bool:
            return len((await service.fires(query)).items) >= 3

        await eventually(fired)
    assert threading.main_thread() not in threads


@pytest.mark.usefixtures("_forgotten")
async def test_on_a_node_without_the_package_the_schedule_is_broken_and_the_others_fire(
    database: DatabaseUrl, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with a_service(database) as service:
        await service.add(without_holidays(id="with holidays"))
        await service.add(new(id="neighbour", trigger={"type": "cron", "expression": "* * * * * *"}))
        lose_the_package(monkeypatch)

        async def broken() -> Any:
            stored = await service.get("with holidays")
            return stored if stored.state is ScheduleState.broken else None

        stored = await eventually(broken)
        assert "pip install 'duetime[holidays]'" in stored.broken_reason
        assert stored.trigger["exclude"] == [{"holidays": "DE", "categories": ["catholic"]}]
        since = stored.updated_at

        async def neighbour_fires() -> bool:
            query = FireQuery.model_validate({"schedule_id": "neighbour", "state": "succeeded"})
            return any(fire.fire_time > since + timedelta(seconds=1) for fire in (await service.fires(query)).items)

        await eventually(neighbour_fires)
        explanation = await service.explain("with holidays", stored.updated_at + timedelta(seconds=2))
        assert explanation.answer is Answer.broken
        monkeypatch.undo()
        plain = {"type": "cron", "expression": "* * * * * *", "exclude": [GERMANY]}
        mended = await service.update("with holidays", ScheduleChange.model_validate({"trigger": plain}))
        assert mended.state is ScheduleState.active


async def test_the_same_calendar_by_another_name_is_no_change(database: DatabaseUrl) -> None:
    async with a_service(database) as service:
        before = await service.add(new(id="s", trigger={**WEEKDAYS, "exclude": ["12-24", BAVARIA]}))
        same = {**WEEKDAYS, "exclude": ["12-24", {"holidays": "Germany", "subdivision": "Bavaria"}]}
        after = await service.update("s", ScheduleChange.model_validate({"trigger": same}))
        assert after.revision == before.revision
        other = {**WEEKDAYS, "exclude": ["12-24", GERMANY]}
        changed = await service.update("s", ScheduleChange.model_validate({"trigger": other}))
        assert changed.revision != before.revision
        assert changed.trigger["exclude"] == ["12-24", GERMANY]


async def test_a_preview_and_an_explanation_name_the_holiday(database: DatabaseUrl) -> None:
    async with a_service(database) as service:
        # The Bavarian holidays of the next twelve months, whichever they are, are named on the day after.
        daily = {**BERLIN, "exclude": [BAVARIA]}
        preview = await service.preview(new(trigger=daily), fires=400)
        noted = [fire.note for fire in preview.upcoming if fire.note and "Christmas Day" in fire.note]
        assert len(noted) == 1
        assert preview.verdict is not Verdict.refused
        await service.add(new(id="s", trigger={**daily, "start": "2026-01-01T00:00"}))
        coming = datetime(datetime.now(UTC).year + 1, 12, 25, 8, tzinfo=UTC)
        explanation = await service.explain("s", coming)
        assert explanation.answer is Answer.not_a_fire_time
        assert "Christmas Day, one of the public holidays of Germany (Bavaria)" in explanation.because
        elsewhen = await service.explain("s", coming + timedelta(hours=1))
        assert "left out" not in elsewhen.because


async def test_a_backfill_leaves_the_holidays_out(database: DatabaseUrl) -> None:
    async with a_service(database) as service:
        await service.add(new(id="s", trigger={**WEEKDAYS, "exclude": [BAVARIA]}))
        monday = datetime(2026, 6, 1, tzinfo=UTC)
        result = await service.backfill("s", monday, monday + timedelta(days=5), dry_run=True)
        assert [f"{fire:%m-%d}" for fire in result.first] == ["06-01", "06-02", "06-03", "06-05"]


async def test_an_unknown_calendar_in_a_trigger_made_in_code_is_refused(database: DatabaseUrl) -> None:
    async with a_service(database) as service:
        trigger = Excluding(Cron("0 9 * * *"), [{"holidays": "Germny"}])
        with pytest.raises(InvalidTrigger, match="did you mean 'DE'"):
            await service._scheduler.add_schedule("work", trigger, id="s")
        assert (await service.schedules(ScheduleQuery())).items == []
