"""Public holidays that a sentence leaves out: "every weekday at 9:00 except public holidays in Germany"."""

from __future__ import annotations

import re
from typing import Any

from duetime.errors import InvalidTrigger

from .holiday_calendars import place_named
from .text_times import refused

EXAMPLE = "every weekday at 9:00 except public holidays in Germany"

EXCEPT = re.compile(
    r"(?P<when>.+?),? (?:except|excluding|but not|not)(?: (?:on|for))?(?: the)?(?: public)? holidays?"
    r"(?: (?:in|of|for) (?P<place>.+))?",
    re.IGNORECASE,
)
"""A sentence with an exception: ``when`` is the rest of it, ``place`` whose holidays are left out."""


def left_out(place: str, text: str) -> dict[str, Any]:
    """Return the exclusion of a place's holidays.

    :raises InvalidTrigger: if there is no such place, or it is not said
    """
    if not place:
        raise refused(f"expected the country whose holidays are left out, as in {EXAMPLE!r}, got {text[:80]!r}")
    try:
        return place_named(place).exclusion()
    except InvalidTrigger as exc:
        raise refused(exc.message.rstrip(".")) from None
