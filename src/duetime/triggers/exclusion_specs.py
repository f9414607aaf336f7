"""The JSON forms of what a trigger leaves out, as Pydantic models that are the API reference."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidatorFunctionWrapHandler, WrapValidator

from .excluding import MAX_EXCLUSIONS, not_an_exclusion


class Period(BaseModel):
    """Days, or times, from one to the other."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, json_schema_extra={"examples": [{"from": "2026-12-27", "to": "2027-01-03"}]}
    )

    from_: Annotated[str, Field(alias="from", description="The first day, or the first instant.")]
    to: Annotated[
        str,
        Field(description="The last day, which is included; or the first instant that is not, if `from` is a time."),
    ]


class Holidays(BaseModel):
    """The holidays of a country, of a part of one, or of a financial market: of each year by the rules of then.

    They come from the package `holidays` (`pip install 'duetime[holidays]'`).
    """

    model_config = ConfigDict(
        extra="forbid", frozen=True, json_schema_extra={"examples": [{"holidays": "DE", "subdivision": "BY"}]}
    )

    holidays: Annotated[
        str,
        Field(
            min_length=1,
            max_length=100,
            description="A country (ISO 3166 code, or its English name), or a financial market.",
            examples=["DE", "US", "NYSE", "ECB"],
        ),
    ]
    subdivision: Annotated[
        str | None,
        Field(
            max_length=100,
            description="A part of the country: its ISO 3166-2 code without the country, or its name.",
            examples=["BY", "CA"],
        ),
    ] = None
    observed: Annotated[
        bool,
        Field(strict=True, description="With the days on which a holiday that falls on a weekend is made up for."),
    ] = True
    categories: Annotated[
        list[str] | None,
        Field(
            min_length=1,
            max_length=20,
            description="Kinds of holidays, where the package knows several of a country; public ones by default.",
            examples=[["public", "bank"]],
        ),
    ] = None


def _one_problem(value: Any, validate: ValidatorFunctionWrapHandler) -> Any:
    # Pydantic would list what is wrong with it as each of the three.
    try:
        return validate(value)
    except ValidationError:
        raise ValueError(not_an_exclusion(value)) from None


Exclusions = Annotated[
    list[Annotated[str | Period | Holidays, WrapValidator(_one_problem)]],
    Field(
        max_length=MAX_EXCLUSIONS,
        description="Holidays and blackouts, on which it does not fire: days (`2026-12-24`), days of every year "
        "(`12-25`), periods, and the public holidays of a country. Days are those of `timezone`.",
        examples=[["2026-12-24", "12-25", {"from": "2026-12-27", "to": "2027-01-03"}, {"holidays": "DE"}]],
    ),
]


ExclusionZone = Annotated[
    str, Field(description="IANA name of the zone whose days `exclude` means.", examples=["Europe/Berlin"])
]
