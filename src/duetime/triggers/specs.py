"""The JSON forms of triggers, as Pydantic models that are the API reference.

The models check the shape; what the values mean (zones, cron text, "does it ever fire") is checked by
``parse``.
"""

from __future__ import annotations

from datetime import date, datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

MAX_MEMBERS = 20
"""Members that one ``and`` or ``or`` may have."""

MAX_DEPTH = 5
"""Levels of ``and``/``or`` inside each other."""

MAX_LEAVES = 100
"""Triggers that one tree of ``and``/``or`` may hold in all."""


def _iso_text(value: Any) -> Any:
    # Pydantic would read a bare number as seconds or milliseconds, by its size; nobody can see which one was
    # meant.
    if isinstance(value, datetime):
        return value
    try:
        return datetime.fromisoformat(value)
    except (TypeError, ValueError):
        raise ValueError(
            f"expected a date and time as ISO 8601 text, such as '2026-06-01T09:00:00Z', got {value!r:.60}"
        ) from None


Instant = Annotated[datetime, BeforeValidator(_iso_text)]

Zone = Annotated[str, Field(description="IANA name of a time zone.", examples=["Europe/Berlin"])]
Start = Annotated[
    Instant | None,
    Field(description="No fire before this instant. Without an offset it is read in the trigger's zone."),
]
End = Annotated[
    Instant | None,
    Field(description="No fire after this instant. Without an offset it is read in the trigger's zone."),
]


class Spec(BaseModel):
    """Base of all trigger forms: unknown fields are refused, so a misspelt one never passes silently."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class DateTriggerSpec(Spec):
    """Once, at one instant. An instant in the past is allowed and fires at once."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"type": "date", "run_at": "2026-06-01T09:00:00+02:00"}]})

    type: Literal["date"]
    run_at: Annotated[
        Instant,
        Field(description="The instant, ISO 8601.", examples=["2026-06-01T09:00:00", "2026-06-01T07:00:00Z"]),
    ]
    timezone: Annotated[
        str | None,
        Field(
            description="IANA name of the zone that `run_at` is in when it has no offset; UTC by default.",
            examples=["Europe/Berlin"],
        ),
    ] = None


class IntervalTriggerSpec(Spec):
    """Again and again with a fixed time between, first at `start`; changes of the clock do not matter."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"type": "interval", "minutes": 5}]})

    type: Literal["interval"]
    weeks: Annotated[float, Field(ge=0, le=5_300)] = 0
    days: Annotated[float, Field(ge=0, le=37_000)] = 0
    hours: Annotated[float, Field(ge=0, le=900_000)] = 0
    minutes: Annotated[float, Field(ge=0, le=53_000_000)] = 0
    seconds: Annotated[float, Field(ge=0, le=3_200_000_000)] = 0
    start: Annotated[
        Instant | None,
        Field(
            description="The first fire, from which the others are counted; now by default, read as UTC "
            "without an offset. When it lies in the past, the count goes on from it and the first fire is "
            "the next one due."
        ),
    ] = None
    end: Annotated[Instant | None, Field(description="No fire after this instant; read as UTC without an offset.")] = (
        None
    )


class CronFieldsSpec(Spec):
    """Cron fields by name, for what five or six fields cannot say: years, ISO weeks, `2nd fri`.

    A field left out is `*` when it is larger than the smallest one given, and its lowest value when it is
    smaller: `{"hour": "9"}` is 09:00:00 every day.
    """

    model_config = ConfigDict(json_schema_extra={"examples": [{"day": "2nd fri", "hour": "9"}]})

    year: Annotated[str | int | None, Field(description="1970 to 9999.", examples=["2027"])] = None
    month: Annotated[str | int | None, Field(description="1 to 12 or jan to dec.", examples=["jan,jul"])] = None
    day: Annotated[
        str | int | None,
        Field(
            description="1 to 31, `last`, or a weekday of the month.",
            examples=["2nd fri", "last sun", "last"],
        ),
    ] = None
    week: Annotated[str | int | None, Field(description="ISO week, 1 to 53.", examples=["1-53/2"])] = None
    day_of_week: Annotated[
        str | int | None,
        Field(description="mon to sun, or 0 to 7 where 0 and 7 are Sunday.", examples=["mon-fri"]),
    ] = None
    hour: Annotated[str | int | None, Field(description="0 to 23.", examples=["9-17"])] = None
    minute: Annotated[str | int | None, Field(description="0 to 59.", examples=["*/15"])] = None
    second: Annotated[str | int | None, Field(description="0 to 59.", examples=["0"])] = None


class CronTriggerSpec(Spec):
    """At the times of the clock and calendar of a zone that fit all fields of a cron expression.

    Where both a day of the month and a weekday are limited, both must fit (classic cron: either).
    """

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"type": "cron", "expression": "0 9 * * mon-fri", "timezone": "Europe/Berlin"}]}
    )

    type: Literal["cron"]
    expression: Annotated[
        str | None,
        Field(
            description="`minute hour day month weekday`, or six fields with the second first, or one of "
            "@hourly, @daily, @weekly, @monthly, @yearly. Each field: `*`, values, ranges, lists, steps "
            "(`*/5`, `9-17/2`), names of months and weekdays; 0 and 7 are Sunday. Either this or `fields`.",
            examples=["0 9 * * mon-fri", "*/10 * * * * *", "@daily"],
            max_length=1000,
        ),
    ] = None
    fields: Annotated[CronFieldsSpec | None, Field(description="Instead of `expression`.")] = None
    timezone: Zone = "UTC"
    start: Start = None
    end: End = None


class CalendarIntervalTriggerSpec(Spec):
    """Every so many years, months, weeks and days, always at the same time of day.

    A month that lacks the day of `start_date` is passed over, and so is a day on which the clock skips that
    time.
    """

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "type": "calendar_interval",
                    "months": 1,
                    "hour": 9,
                    "start_date": "2026-06-15",
                    "timezone": "Europe/Berlin",
                }
            ]
        }
    )

    type: Literal["calendar_interval"]
    years: Annotated[int, Field(ge=0, le=100)] = 0
    months: Annotated[int, Field(ge=0, le=1_200)] = 0
    weeks: Annotated[int, Field(ge=0, le=5_300)] = 0
    days: Annotated[int, Field(ge=0, le=37_000)] = 0
    hour: Annotated[int, Field(ge=0, le=23)] = 0
    minute: Annotated[int, Field(ge=0, le=59)] = 0
    second: Annotated[int, Field(ge=0, le=59)] = 0
    start_date: Annotated[
        date | None,
        Field(
            ge=date(1970, 1, 1),
            description="The first day, from which the others are counted; today in the zone by default. "
            "When it lies in the past, the count goes on from it and the first fire is the next one due.",
            examples=["2026-06-15"],
        ),
    ] = None
    end_date: Annotated[date | None, Field(description="No fire after this day.")] = None
    timezone: Zone = "UTC"


class AndTriggerSpec(Spec):
    """When all members fire at the same time, give or take `threshold`."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "type": "and",
                    "triggers": [
                        {"type": "cron", "expression": "0 9 * * *"},
                        {"type": "calendar_interval", "days": 3, "hour": 9},
                    ],
                }
            ]
        }
    )

    type: Literal["and"]
    triggers: Annotated[list[TriggerSpec], Field(min_length=1, max_length=MAX_MEMBERS)]
    threshold: Annotated[
        float, Field(ge=0, le=86_400, description="Seconds that the members' fire times may lie apart.")
    ] = 1.0


class OrTriggerSpec(Spec):
    """At every fire time of every member; once where they coincide."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "type": "or",
                    "triggers": [
                        {"type": "cron", "expression": "0 9 * * mon-fri"},
                        {"type": "cron", "expression": "0 11 * * sat,sun"},
                    ],
                }
            ]
        }
    )

    type: Literal["or"]
    triggers: Annotated[list[TriggerSpec], Field(min_length=1, max_length=MAX_MEMBERS)]


TriggerSpec = Annotated[
    DateTriggerSpec
    | IntervalTriggerSpec
    | CronTriggerSpec
    | CalendarIntervalTriggerSpec
    | AndTriggerSpec
    | OrTriggerSpec,
    Field(discriminator="type", description="When a schedule fires."),
]
"""Any trigger in its JSON form, told apart by ``type``."""

AndTriggerSpec.model_rebuild()
OrTriggerSpec.model_rebuild()

SPECS: dict[str, type[Spec]] = {
    "date": DateTriggerSpec,
    "interval": IntervalTriggerSpec,
    "cron": CronTriggerSpec,
    "calendar_interval": CalendarIntervalTriggerSpec,
    "and": AndTriggerSpec,
    "or": OrTriggerSpec,
}
