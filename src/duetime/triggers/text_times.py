"""Times, days and numbers in plain English, as the forms of ``text`` use them."""

from __future__ import annotations

import re
from datetime import UTC, date, datetime, time, timedelta
from difflib import get_close_matches

from duetime.errors import InvalidTrigger

from .cron import MONTHS, WEEKDAYS
from .wording import DAY_NAMES, MONTH_NAMES

TIME = r"(?:noon|midnight|\d{1,2}(?::\d{2}){0,2} ?(?:am|pm|o'?clock|h)?)"
TIMES = rf"{TIME}(?:(?:,| and|, and) ?(?:at )?{TIME})*"

_DAY = rf"(?:{'|'.join(f'{name.lower()}s?' for name in DAY_NAMES)}|{'|'.join(WEEKDAYS)}|tues|wednes|thur|thurs)"
ONE_DAY = rf"(?:{'|'.join(name.lower() for name in DAY_NAMES)}|{'|'.join(WEEKDAYS)}|tues|wednes|thur|thurs)"
_SPAN = rf"(?:{_DAY}(?: ?(?:-|to|through|until) ?{_DAY})?|weekdays?|workdays?|weekends?|days?)"
DAYS = rf"{_SPAN}(?:(?:,| and|, and| or) ?(?:every |on )?{_SPAN})*"

_MONTH = rf"(?:{'|'.join(name.lower() for name in MONTH_NAMES)}|{'|'.join(MONTHS)}|sept)\.?"
MONTH_LIST = rf"{_MONTH}(?:(?:,| and|, and) ?{_MONTH})*"
DATE = (
    rf"(?:\d{{4}}-\d{{2}}-\d{{2}}|\d{{1,2}}(?:st|nd|rd|th)?\.?(?: of)? {_MONTH},?(?: \d{{4}})?"
    rf"|{_MONTH} \d{{1,2}}(?:st|nd|rd|th)?,?(?: \d{{4}})?)"
)

_NUMBERS = {
    word: number
    for number, words in enumerate(
        (
            "a an one",
            "two other second",
            "three third",
            "four fourth",
            "five fifth",
            "six sixth",
            "seven",
            "eight",
            "nine",
            "ten",
            "eleven",
            "twelve",
        ),
        start=1,
    )
    for word in words.split()
}
NUMBER = rf"(?:\d{{1,6}}|{'|'.join(_NUMBERS)})"

_UNITS = {
    "second": "seconds?|secs?",
    "minute": "minutes?|mins?",
    "hour": "hours?|hrs?",
    "day": "days?",
    "week": "weeks?",
    "month": "months?",
    "year": "years?",
}
UNIT = rf"(?:{'|'.join(_UNITS.values())})"

_ORDINALS = {"first": "1st", "second": "2nd", "third": "3rd", "fourth": "4th", "fifth": "5th", "last": "last"}
ORDINAL = rf"(?:{'|'.join(_ORDINALS)}|[1-5](?:st|nd|rd|th))"


def number(text: str) -> int:
    """Return a number in digits or words."""
    return int(text) if text.isdecimal() else _NUMBERS[text]


def unit(text: str) -> str:
    """Return the name of a unit of time: second to year."""
    return next(name for name, pattern in _UNITS.items() if re.fullmatch(pattern, text))


def ordinal(text: str) -> str:
    """Return ``1st`` to ``5th``, or ``last``."""
    found = _ORDINALS.get(text, text)
    return f"{found[0]}{ {'1': 'st', '2': 'nd', '3': 'rd'}.get(found[0], 'th') }" if found[0].isdecimal() else found


def clock(text: str) -> time:
    """Return a time of day.

    :raises InvalidTrigger: if there is no such time
    """
    text = text.strip()
    if text in ("noon", "midnight"):
        return time(12 if text == "noon" else 0)
    match = re.fullmatch(r"(\d{1,2})(?::(\d{2}))?(?::(\d{2}))? ?(am|pm|o'?clock|h)?", text)
    if match is not None:
        hour, minute, second = (int(part or 0) for part in match.groups()[:3])
        half = match[4] if match[4] in ("am", "pm") else None
        if half and not 1 <= hour <= 12:
            raise refused(f"expected an hour from 1 to 12 with {half}, got {text!r}")
        hour = hour % 12 + (12 if half == "pm" else 0) if half else hour
        if hour <= 23 and minute <= 59 and second <= 59:
            return time(hour, minute, second)
    raise refused(f"expected a time of day such as 9:00, 17:30 or 9 pm, got {text!r}")


def clocks(text: str) -> list[time]:
    """Return several times of day, ascending.

    :raises InvalidTrigger: if there is no such time, or it can be one in the morning and one in the evening
    """
    texts = re.findall(TIME, text)
    for index, early in enumerate(texts):
        for late in texts[index + 1 :]:
            _check_half(early, late)
    return sorted({clock(each) for each in texts})


def end_of_span(start: str, end: str) -> time:
    """Return the time of day at which "between … and …" ends.

    :raises InvalidTrigger: for "9 and 5", which may go over midnight or end in the afternoon, "1 and 5 pm" and the like
    """
    first, last = clock(start), clock(end)
    _check_half(start, end)
    if last <= first and first.hour <= 12 and re.fullmatch(_WITHOUT_HALF, end.strip()):
        raise refused(
            f"expected a span that surely ends in the afternoon or goes over midnight, got {start!r} and {end!r}; "
            f"write '{end.strip()} pm' or '{end.strip()} am'"
        )
    return last


_WITHOUT_HALF = r"(?:[1-9]|1[0-2])(?::\d{2}){0,2}(?: ?o'?clock)?"
"""A time of day that is one of the morning to some, and one of the morning or the afternoon to others."""


def _check_half(early: str, late: str) -> None:
    """Do nothing, unless a time without am or pm comes before one with pm and can be meant with pm itself.

    :raises InvalidTrigger: for "7 and 8 pm", of which the first is 7:00 or 19:00, and not for "9 and 5 pm"
    """
    if not re.fullmatch(_WITHOUT_HALF, early.strip()) or not late.strip().endswith("pm"):
        return
    first = clock(early)
    if first.hour < 12 and first.replace(hour=first.hour + 12) < clock(late):
        raise refused(f"expected am or pm with each time, got {early.strip()!r} before {late.strip()!r}")


def weekdays(text: str) -> frozenset[int]:
    """Return the weekdays (Monday is 0) that a text names; all seven for "day"."""
    found: set[int] = set()
    for span in re.findall(_SPAN, text):
        if span.startswith(("weekday", "workday")):
            found.update(range(5))
        elif span.startswith("weekend"):
            found.update((5, 6))
        elif span in ("day", "days"):
            found.update(range(7))
        else:
            first, *rest = (_weekday(name) for name in re.findall(_DAY, span))
            last = rest[0] if rest else first
            found.update(day % 7 for day in range(first, (last if last >= first else last + 7) + 1))
    return frozenset(found)


def _weekday(name: str) -> int:
    return next(index for index, known in enumerate(WEEKDAYS) if name.startswith(known))


def months(text: str) -> list[int]:
    """Return the months that a text names."""
    return sorted({MONTHS.index(name[:3]) + 1 for name in re.findall(_MONTH, text)})


def day_of_year(text: str) -> tuple[int | None, int, int]:
    """Return the year (None if it is not said), the month and the day.

    :raises InvalidTrigger: if there is no such day
    """
    text = text.strip()
    if match := re.fullmatch(r"(\d{4})-(\d{2})-(\d{2})", text):
        year, month, day = map(int, match.groups())
    else:
        [month] = months(text)
        numbers = [int(each) for each in re.findall(r"\d+", text)]
        year, day = next((each for each in numbers if each > 31), 0), next((each for each in numbers if each <= 31), 0)
    try:
        date(year or 2024, month, day)
    except ValueError:
        raise refused(f"expected a day that exists, got {text!r}") from None
    return year or None, month, day


def shifted(moment: datetime, amount: int, name: str) -> datetime:
    """Return the moment (in a zone) so much later: units up to hours are elapsed time, days keep the time of day."""
    if name in ("second", "minute", "hour"):
        tz = moment.tzinfo
        utc = moment.astimezone(UTC) + timedelta(**{f"{name}s": amount})
        return utc.astimezone(tz)
    if name in ("day", "week"):
        return (moment.replace(tzinfo=None) + timedelta(**{f"{name}s": amount})).replace(tzinfo=moment.tzinfo)
    total = moment.year * 12 + moment.month - 1 + amount * (12 if name == "year" else 1)
    for day in (moment.day, 30, 29, 28):
        try:
            return moment.replace(year=total // 12, month=total % 12 + 1, day=day)
        except ValueError:
            if not 1 <= total // 12 <= 9999:
                raise OverflowError from None
    raise AssertionError("every month has 28 days")


def refused(problem: str) -> InvalidTrigger:
    """Return the error about a text that is almost understood."""
    end = "" if problem.endswith("?") else "."
    return InvalidTrigger(f"{problem}{end}", details=[{"where": "trigger.text", "problem": problem}])


def nearest_word(word: str) -> str:
    """Return ", did you mean …?" for a word that is almost one of the language's, or "."."""
    known = [
        *(name.lower() for name in (*DAY_NAMES, *MONTH_NAMES)),
        *_UNITS,
        *(f"{name}s" for name in _UNITS),
        *_ORDINALS,
        *(f"{name.lower()}s" for name in DAY_NAMES),
        *("every", "weekday", "weekdays", "weekend", "weekends", "between", "noon", "midnight", "tomorrow", "today"),
        *("hourly", "daily", "weekly", "monthly", "yearly"),
    ]
    close = get_close_matches(word, known, n=1, cutoff=0.8)
    return f", did you mean {close[0]!r}?" if close else "."
