"""Public holidays by the name of a country, of a part of one, or of a financial market.

The days come from the package ``holidays`` (the extra ``duetime[holidays]``), which is imported when the first calendar
is used: it loads the rules of all countries at once, which takes 0.1 s. What is stored is the name alone, so next
year's days are those of the release that is installed then.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Mapping
from datetime import date
from difflib import get_close_matches
from functools import lru_cache
from typing import Any, NamedTuple

from duetime.errors import InvalidTrigger

from .wording import listed

PACKAGE = "holidays"
INSTALL = "pip install 'duetime[holidays]'"
REFERENCE = "https://holidays.readthedocs.io/"

_USUAL = ("public",)

# What English calls parts of countries that the package knows by their own names. Accents make no difference anyway.
_ENGLISH: Mapping[str, Mapping[str, str]] = {
    "AT": {
        "2": "Carinthia",
        "3": "Lower Austria",
        "4": "Upper Austria",
        "6": "Styria",
        "7": "Tyrol",
        "9": "Vienna",
    },
    "CH": {"GE": "Geneva", "GR": "Grisons", "LU": "Lucerne", "SG": "St. Gallen", "ZH": "Zurich"},
    "DE": {
        "BY": "Bavaria",
        "HE": "Hesse",
        "MV": "Mecklenburg-Western Pomerania",
        "NI": "Lower Saxony",
        "NW": "North Rhine-Westphalia",
        "RP": "Rhineland-Palatinate",
        "SN": "Saxony",
        "ST": "Saxony-Anhalt",
        "TH": "Thuringia",
    },
    "ES": {
        "AN": "Andalusia",
        "CL": "Castile and León",
        "CN": "Canary Islands",
        "CT": "Catalonia",
        "IB": "Balearic Islands",
        "NC": "Navarre",
        "PV": "Basque Country",
        "VC": "Valencia",
    },
}

_WITH_ARTICLE = re.compile(
    r"United .*|.* (?:Islands?|Emirates|Republic)|Bahamas|Gambia|Maldives|Netherlands|Philippines"
)


class HolidayCalendar(NamedTuple):
    """The holidays of a country, of a part of one, or of a financial market, by name.

    :ivar name: a country's ISO 3166 code or English name, or a market's code
    :ivar subdivision: a part of the country, by its ISO 3166-2 code without the country, or by name
    :ivar observed: with the days on which a holiday that falls on a weekend is made up for
    :ivar categories: kinds of holidays, as the package names them; empty: public holidays
    """

    name: str
    subdivision: str | None = None
    observed: bool = True
    categories: tuple[str, ...] = ()

    @classmethod
    def of(cls, item: Mapping[str, Any]) -> HolidayCalendar:
        """Return the calendar that an exclusion names; whether there is such a one is not looked up.

        :raises ValueError: if the exclusion has another shape
        """
        known = {"holidays": str, "subdivision": (str, type(None)), "observed": bool, "categories": (list, tuple)}
        for name, value in item.items():
            if name not in known or not isinstance(value, known[name]):  # type: ignore[arg-type]
                raise ValueError(name)
        categories = item.get("categories", ())
        if not all(isinstance(each, str) for each in categories):
            raise ValueError("categories")
        categories = tuple(sorted(set(categories)))
        return cls(
            item["holidays"],
            item.get("subdivision"),
            item.get("observed", True),
            () if categories == _USUAL else categories,
        )

    def exclusion(self) -> dict[str, Any]:
        """Return the exclusion that names this calendar."""
        data: dict[str, Any] = {"holidays": self.name}
        if self.subdivision is not None:
            data["subdivision"] = self.subdivision
        if not self.observed:
            data["observed"] = False
        if self.categories:
            data["categories"] = list(self.categories)
        return data

    def resolved(self, where: str) -> HolidayCalendar:
        """Return this calendar by its codes.

        :param where: the place that an error names
        :raises InvalidTrigger: if there is no such calendar, saying what there is, or the package is not installed
        """
        try:
            return _found(self).calendar
        except InvalidTrigger as exc:
            problem = exc.message.rstrip(".")
            raise InvalidTrigger(f"{where}: {problem}.", details=[{"where": where, "problem": problem}]) from None

    @property
    def is_ready(self) -> bool:
        """Whether its days are found out at once: its rules have been loaded, and it is named by its codes."""
        return self.name in _loaded

    @property
    def last_year(self) -> int:
        """The last year whose holidays are known.

        :raises InvalidTrigger: if there is no such calendar, or the package is not installed
        """
        return int(_found(self).rules.end_year)

    def holiday(self, day: date) -> str | None:
        """Return the English name of the holiday that a day is, or None if it is none.

        :raises InvalidTrigger: if there is no such calendar, or the package is not installed
        """
        return _year(self, day.year).get(day)

    def words(self) -> str:
        """Return "public holidays of Germany (Bavaria)"; by the codes where the package is not installed."""
        try:
            found = _found(self)
        except InvalidTrigger:
            return f"public holidays of {self.name}" + (f" ({self.subdivision})" if self.subdivision else "")
        entity, part = found.entity, found.calendar.subdivision
        kinds = listed(each.replace("_", " ") for each in self.categories or _USUAL)
        if entity.is_market:
            words = f"holidays of {entity.code}" + (f" ({entity.words})" if entity.words != entity.code else "")
        else:
            article = "the " if _WITH_ARTICLE.fullmatch(entity.words) else ""
            place = f" ({_part_words(entity, found.rules, part)})" if part else ""
            words = f"{kinds} holidays of {article}{entity.words}{place}"
        return words if self.observed else f"{words}, on their own dates only"


class _Entity(NamedTuple):
    """A country or a market: the code that stands for it, its English name, and all that it may be called."""

    code: str
    words: str
    is_market: bool


class _Found(NamedTuple):
    """A calendar by its codes, with what it is of, and the package's class of its rules."""

    calendar: HolidayCalendar
    entity: _Entity
    rules: Any


_loaded: set[str] = set()


def place_named(text: str) -> HolidayCalendar:
    """Return the calendar of a place in words: "Germany", "DE", "Bavaria", "Germany (Bavaria)", "Bavaria, Germany".

    A name of a country or a market comes before that of a part of a country.

    :raises InvalidTrigger: if there is no such place, or several are called that; or the package is not installed
    """
    said = re.sub(r"^the ", "", text.strip(), flags=re.IGNORECASE)
    pair = re.fullmatch(r"([^()]+) \(([^()]+)\)", said)
    if pair is not None:
        return _found(HolidayCalendar(pair[1], pair[2])).calendar
    part, comma, country = said.rpartition(", ")
    if comma:
        return _found(HolidayCalendar(re.sub(r"^the ", "", country, flags=re.IGNORECASE), part)).calendar
    try:
        return _found(HolidayCalendar(said)).calendar
    except InvalidTrigger:
        found = _parts_named(_folded(said))
        if not found:
            raise
    if len(found) > 1:
        ways = listed((f"'{said}, {each.name}'" for each in found), "or")
        raise InvalidTrigger(f"expected one place, got {text!r:.60}, which is in several countries. Write {ways}.")
    return found[0]


def _parts_named(folded: str) -> list[HolidayCalendar]:
    if len(folded) < 4:  # a code alone says too little
        return []
    countries = {each.code for each in _entities().values() if not each.is_market}
    named = {country: _part_codes(country).get(folded) for country in sorted(countries)}
    return [HolidayCalendar(country, code) for country, code in named.items() if code is not None]


def _package() -> Any:
    try:
        import holidays
        import holidays.registry

        if not hasattr(holidays.HolidayBase, "end_year"):
            raise ImportError("a release of it that is too old")
    except ImportError as exc:
        raise InvalidTrigger(
            f"expected the package {PACKAGE!r}, which knows the public holidays, got none on this node: {exc}. "
            f"Install it on all nodes: {INSTALL}"
        ) from None
    return holidays


@lru_cache(maxsize=1)
def _entities() -> Mapping[str, _Entity]:
    """Return all countries and markets by what they may be called, folded; countries come first."""
    package = _package()
    by_name: dict[str, _Entity] = {}
    for registry, is_market in ((package.registry.COUNTRIES, False), (package.registry.FINANCIAL, True)):
        for key, (name, *codes) in registry.items():
            words = _spaced(name) if is_market else _title(key)
            for called in (*codes, name, key, words):
                code = called if is_market and called in codes else codes[0]
                if not called.startswith("Holidays"):
                    by_name.setdefault(_folded(called), _Entity(code, words, is_market))
    return by_name


def _title(key: str) -> str:
    """Return "Antigua and Barbuda" for "antigua_and_barbuda"."""
    return " ".join(word if word in ("and", "of", "the") else word.capitalize() for word in key.split("_"))


def _spaced(name: str) -> str:
    """Return "New York Stock Exchange" for "NewYorkStockExchange"."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", " ", name)


def _folded(name: str) -> str:
    """Return a name without what makes no difference: accents, case, spaces and signs."""
    plain = unicodedata.normalize("NFKD", name.casefold())
    return "".join(char for char in plain if char.isalnum())


@lru_cache(maxsize=512)
def _found(calendar: HolidayCalendar) -> _Found:
    """Look up a calendar.

    :raises InvalidTrigger: if there is no such one, saying what there is
    """
    known = _entities()
    name, part = calendar.name, calendar.subdivision
    entity = known.get(_folded(name))
    if entity is None and part is None and (both := re.fullmatch(r"([A-Za-z]{2,3})[-/](.+)", name)):  # ISO 3166-2
        entity, part = known.get(_folded(both[1])), both[2]
    if entity is None:
        raise InvalidTrigger(
            f"expected a country (ISO 3166: 'DE', 'US') or a financial market ('NYSE', 'ECB') whose holidays are "
            f"known, got {name!r:.60}{_hint(name, known, lambda each: f'{each.code!r} ({each.words})')} "
            f"What there is: {REFERENCE}"
        )
    rules = getattr(_package(), entity.code)
    if part is not None:
        codes = _part_codes(entity.code)
        code = codes.get(_folded(part))
        if code is None:
            there_is = f"It has {', '.join(rules.subdivisions)}" if codes else "None are known of it"
            raise InvalidTrigger(
                f"expected a subdivision of {entity.words} ({entity.code}), got {part!r:.60}"
                f"{_hint(part, codes, repr)} {there_is}."
            )
        part = code
    kinds = rules.supported_categories
    for kind in calendar.categories:
        if kind not in kinds:
            raise InvalidTrigger(
                f"expected kinds of holidays that are known of {entity.words} ({', '.join(sorted(kinds))}), "
                f"got {kind!r:.60}."
            )
    found = _Found(calendar._replace(name=entity.code, subdivision=part), entity, rules)
    rules(years=date.today().year, language="en_US")  # noqa: DTZ011 - any year: it reads the names of the holidays
    _loaded.add(entity.code)
    return found


def _hint(name: str, known: Mapping[str, Any], shown: Callable[[Any], str]) -> str:
    close = get_close_matches(_folded(name), known, n=1, cutoff=0.7)
    return f", did you mean {shown(known[close[0]])}?" if close else "."


@lru_cache(maxsize=512)
def _part_codes(country: str) -> Mapping[str, str]:
    """Return the codes of a country's subdivisions by what they may be called, folded; a code comes before a name."""
    rules = getattr(_package(), country)
    by_name = {_folded(code): code for code in rules.subdivisions}
    english = {name: code for code, name in _ENGLISH.get(country, {}).items() if code in rules.subdivisions}
    for name, code in {**rules.subdivisions_aliases, **english}.items():
        by_name.setdefault(_folded(name), code)
    return by_name


def _part_words(entity: _Entity, rules: Any, code: str) -> str:
    english = _ENGLISH.get(entity.code, {}).get(code)
    names = [name for name, of in rules.subdivisions_aliases.items() if of == code]
    # Some of the names are abbreviations.
    return english or next((name for name in names if len(name) > 3), max(names, key=len, default=code))


@lru_cache(maxsize=1024)
def _year(calendar: HolidayCalendar, year: int) -> Mapping[date, str]:
    """Return the names of a year's holidays by their days."""
    found = _found(calendar)
    chosen = found.calendar
    days: Mapping[date, str] = found.rules(
        years=year,
        expand=False,
        observed=chosen.observed,
        subdiv=chosen.subdivision,
        categories=chosen.categories or None,
        language="en_US",
    )
    return {day: name.replace("; ", " and ") for day, name in days.items()}
