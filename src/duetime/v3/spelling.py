"""A cron field as APScheduler 3 spells it, said so that it means the same here: weekdays and months by name.

Its weekdays are 0 (Monday) to 6 (Sunday), those of cron are 0 (Sunday) to 6 (Saturday). Of what follows a name
(``mon-fri/2``) it takes no notice.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from ..errors import InvalidTrigger
from ..triggers.cron import MONTHS, WEEKDAYS, runs
from .cron_fields import FIELDS

LOWEST = {"month": "1", "day": "1", "hour": "0", "minute": "0", "second": "0"}
"""What a field is that is smaller than all that were given; others are ``*``."""

_EVERY = re.compile(r"\*(?:/(\d+))?$")
_NUMBERS = re.compile(r"(\d+)(?:-(\d+))?(?:/(\d+))?$")
_WORDS = re.compile(r"([a-z]+)(?:-([a-z]+))?", re.IGNORECASE)
_SEPARATOR = re.compile(" *, *")


def complete(given: Mapping[str, object]) -> dict[str, str]:
    """Return all eight fields, those that were not given by v3's defaults.

    :param given: by name; None: not given
    :raises InvalidTrigger: if one of them has no meaning to v3
    """
    said = {name: str(given[name]).strip() for name in FIELDS if given.get(name) is not None}
    smallest = max((FIELDS.index(name) for name in said), default=len(FIELDS))
    return {
        name: said.get(name, LOWEST.get(name, "*") if place > smallest else "*") for place, name in enumerate(FIELDS)
    }


def spelled_here(name: str, text: str) -> str:
    """Return v3's text of a field in words that mean the same to :class:`duetime.triggers.Cron`.

    :raises InvalidTrigger: if it has no meaning to v3
    """
    if name == "day_of_week":
        numbers = sorted({number for part in _SEPARATOR.split(text) for number in _numbers(name, part, WEEKDAYS, 0)})
        return "*" if len(numbers) == len(WEEKDAYS) else _by_name(numbers, WEEKDAYS, 0)
    if name == "month":
        return ",".join(_month(part) for part in _SEPARATOR.split(text))
    return text


def _month(part: str) -> str:
    if _EVERY.match(part) or _NUMBERS.match(part):
        return part
    return _by_name(sorted(_numbers("month", part, MONTHS, 1)), MONTHS, 1)


def _by_name(numbers: list[int], names: tuple[str, ...], low: int) -> str:
    return ",".join(
        names[first - low] if first == last else f"{names[first - low]}-{names[last - low]}"
        for first, last in runs(numbers)
    )


def _numbers(field: str, part: str, names: tuple[str, ...], low: int) -> range:
    """Return the numbers that one part of a field stands for."""
    high = low + len(names) - 1
    if match := _EVERY.match(part):
        first, last, step = low, high, match[1]
    elif match := _NUMBERS.match(part):
        first, step = int(match[1]), match[3]
        last = int(match[2]) if match[2] else (high if step else first)
    elif match := _WORDS.match(part):
        words = [match[1].lower(), (match[2] or match[1]).lower()]
        if unknown := [word for word in words if word not in names]:
            raise _no_meaning(field, part, f"{unknown[0]!r} is none of {', '.join(names)}")
        first, last, step = names.index(words[0]) + low, names.index(words[1]) + low, None
    else:
        raise _no_meaning(field, part, "it is neither *, nor numbers, nor names")
    if not low <= first <= last <= high:
        raise _no_meaning(field, part, f"expected {low} to {high}, the lower one first")
    if step is not None and not 0 < int(step) <= max(1, last - first):
        raise _no_meaning(field, part, f"a step of {step} leads out of it")
    return range(first, last + 1, int(step) if step else 1)


def _no_meaning(field: str, part: str, why: str) -> InvalidTrigger:
    return InvalidTrigger(
        f"expected {field} as APScheduler 3 reads it, got {part!r:.60}: {why}.",
        details=[{"where": f"trigger.{field}", "problem": why}],
    )
