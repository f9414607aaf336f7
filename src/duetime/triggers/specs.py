"""The JSON forms of triggers, as Pydantic models that are the API reference.

The models check the shape; what the values mean (zones, cron text, "does it ever fire") is checked by
``parse``.
"""

from __future__ import annotations

from datetime import date, datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from .clock import OnFold, OnGap
from .exclusion_specs import Exclusions, ExclusionZone
from .rrule_trigger import MAX_EXDATES

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


GapPolicy = Annotated[
    OnGap | None,
    Field(
        description="What becomes of a time that the clock skips in spring: `shift` fires right after the gap (02:30 "
        "becomes 03:00), `skip` does not fire on that day."
    ),
]
FoldPolicy = Annotated[
    OnFold | None,
    Field(
        description="What becomes of a time that the clock shows twice in autumn: it counts the `first` time, the "
        "`last` time, or `both` times."
    ),
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
            description="The first fire, from which the others are counted; now by default, read in "
            "`timezone` without an offset. When it lies in the past, the count goes on from it and the first fire is "
            "the next one due."
        ),
    ] = None
    end: Annotated[
        Instant | None, Field(description="No fire after this instant; read in `timezone` without an offset.")
    ] = None
    timezone: Annotated[
        str,
        Field(
            description="IANA name of the zone of `start`, `end` and `exclude`. The interval is elapsed time in any "
            "zone.",
            examples=["Europe/Berlin"],
        ),
    ] = "UTC"
    exclude: Exclusions = []


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

    Without `on_gap` and `on_fold` a change of the clock is dealt with as Vixie cron does it. Where the hour, the
    minute or the second begins with `*`, the expression says a rhythm, which goes on as time does (`skip`, `both`).
    Other expressions say times of day: none is lost and none counts twice (`shift`, `first`).
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
    on_gap: GapPolicy = None
    on_fold: FoldPolicy = None
    exclude: Exclusions = []
    start: Start = None
    end: End = None


class CalendarIntervalTriggerSpec(Spec):
    """Every so many years, months, weeks and days, always at the same time of day.

    A month that lacks the day of `start_date` is passed over. On a day on which the clock skips that time it fires
    right after the gap, unless `on_gap` says otherwise; of a time that the clock shows twice the first counts, unless
    `on_fold` says otherwise.
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
    on_gap: GapPolicy = None
    on_fold: FoldPolicy = None
    exclude: Exclusions = []


class RRuleTriggerSpec(Spec):
    """At the occurrences of a recurrence rule of calendars (RFC 5545).

    What the rule leaves open (the time of day, the weekday) is taken from `start`. An occurrence at a time that the
    clock skips is moved forward by the length of the gap; of a time that it shows twice the first counts.
    """

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "type": "rrule",
                    "rrule": "FREQ=WEEKLY;INTERVAL=2;BYDAY=MO,FR",
                    "start": "2026-06-01T09:00",
                    "timezone": "Europe/Berlin",
                    "exdate": ["2026-12-25"],
                }
            ]
        }
    )

    type: Literal["rrule"]
    rrule: Annotated[
        str,
        Field(
            description="The rule, without DTSTART and EXDATE: FREQ, INTERVAL, COUNT, UNTIL, WKST and the BY… parts.",
            examples=["FREQ=WEEKLY;BYDAY=MO", "FREQ=MONTHLY;BYDAY=MO,TU,WE,TH,FR;BYSETPOS=-1"],
            max_length=1000,
        ),
    ]
    start: Annotated[
        Instant | None,
        Field(
            description="DTSTART, from which INTERVAL and COUNT are counted; now by default, read in `timezone` "
            "without an offset. It is a fire time only if the rule says so. When it lies in the past, the rule goes "
            "on from it and the first fire is the next one due."
        ),
    ] = None
    timezone: Zone = "UTC"
    exdate: Annotated[
        list[str],
        Field(
            max_length=MAX_EXDATES,
            description="Occurrences that are left out, though COUNT counts them: times (read in `timezone` without an "
            "offset), or days.",
            examples=[["2026-12-25", "2026-12-28T09:00"]],
        ),
    ] = []
    exclude: Exclusions = []


class TextTriggerSpec(Spec):
    """A sentence, which is understood as one of the other forms; the answer shows as which one.

    Understood are sentences such as "in 2 hours", "tomorrow at 9:00", "every weekday at 9:00", "every 90 minutes
    between 8 and 18", "first monday of the month at noon", "every 2 weeks on monday at 9:00", with the zone at the end
    ("… in Europe/Berlin") or public holidays to leave out ("… except public holidays in Germany"), cron expressions,
    and the text of an RRULE.
    """

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"type": "text", "text": "every weekday at 9:00", "timezone": "Europe/Berlin"}]}
    )

    type: Literal["text"]
    text: Annotated[
        str,
        Field(
            min_length=1,
            max_length=300,
            description="The sentence, in English.",
            examples=["every weekday at 9:00", "in 2 hours", "last friday of the month at 17:00"],
        ),
    ]
    timezone: Zone = "UTC"
    exclude: Exclusions = []


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
    timezone: ExclusionZone = "UTC"
    exclude: Exclusions = []


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
    timezone: ExclusionZone = "UTC"
    exclude: Exclusions = []


TriggerSpec = Annotated[
    DateTriggerSpec
    | IntervalTriggerSpec
    | CronTriggerSpec
    | CalendarIntervalTriggerSpec
    | RRuleTriggerSpec
    | TextTriggerSpec
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
    "rrule": RRuleTriggerSpec,
    "text": TextTriggerSpec,
    "and": AndTriggerSpec,
    "or": OrTriggerSpec,
}
