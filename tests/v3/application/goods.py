"""The application's dataclasses, which Python 2.7 and 3.6 have not."""

from dataclasses import dataclass, field
from datetime import date


@dataclass
class Order:
    number: int
    colour: object = None
    lines: list = field(default_factory=list)


@dataclass(frozen=True)
class Address:
    town: str
    since: date = date(2020, 1, 1)
