"""Makes plain values of what a pickle says: an allow-list of classes, and for each what it stands for.

No class of the application is called. An enum or a dataclass that the operator has allowed is carried as data: the enum
as its value, the dataclass as a dict of its fields, because the store has no form for either; a task that is annotated
with the class gets it back from that. Everything else becomes :class:`~duetime.v3.model.Unreadable`.
"""

from __future__ import annotations

import dataclasses
import enum
import time as clock
from collections.abc import Callable, Iterable, Mapping
from datetime import date, datetime, time, timedelta, tzinfo
from decimal import Decimal
from typing import Any
from uuid import UUID

from duetime.errors import UnreadablePickle

from .allowing import Allowed
from .model import Finding, Unreadable
from .pickles import NOTHING, FrozenMembers, Made, Members, Named, NativeText, Pairs
from .zones import UnknownZone, in_zone, zone_of

MAX_DEPTH = 90
"""Levels of containers inside each other; the store takes 100."""

MAX_VALUES = 400_000
"""Values in a row's arguments, those counted again that are in several places."""

_PATIENCE = 0.4
"""Seconds of the processor's time for one dict or set: keys can be chosen so that each collides with all others."""


class Unfit(Exception):
    """What a class was to be made of is not what it takes."""


class Values:
    """Makes values of the stand-ins of one row, and collects what is to be said of them.

    :ivar findings: one for each thing that was found
    """

    def __init__(self, allowed: Allowed) -> None:
        self.classes = allowed.classes
        self.findings: dict[tuple[str, str], Finding] = {}
        self._path: list[Any] = []
        self._done: dict[int, tuple[Any, int]] = {}
        self._open: set[int] = set()
        self._size = 0

    def carried(self, found: Any, name: str) -> Any:
        """Return the value, with :class:`Unreadable` for what cannot be carried.

        :param name: what a finding calls it: ``args``, ``kwargs``
        :raises UnreadablePickle: if it is too large
        """
        self._path = [name]
        return self.value(found)

    def value(self, found: Any) -> Any:
        """Return the value of a stand-in, or of a plain value."""
        kind = type(found)
        if kind in _PLAIN:
            self._size += 1
            return found
        key = id(found)
        done = self._done.get(key)
        if done is not None:
            self._count(done[1])
            return done[0]
        if key in self._open:
            return self.unreadable("list", "it contains itself")
        if len(self._open) >= MAX_DEPTH:
            return self.unreadable("list", f"it is nested more than {MAX_DEPTH} levels deep")
        self._open.add(key)
        before = self._size
        self._count(1)
        made = _BY_KIND[kind](self, found)
        self._open.discard(key)
        self._done[key] = made, self._size - before
        return made

    def _count(self, size: int) -> None:
        self._size += size
        if self._size > MAX_VALUES:
            raise UnreadablePickle(
                f"expected arguments of at most {MAX_VALUES} values, got more. Schedule the job anew with smaller "
                f"arguments, such as the id of what is to be worked on."
            )

    def say(self, code: str, text: str, severity: str, about: str = "") -> None:
        """Note a finding, once for each code and what it is about."""
        self.findings.setdefault((code, about), Finding(code, text, severity))

    @property
    def where(self) -> str:
        """The path of the value that is being made, such as ``kwargs['order'][0]``."""
        root, *steps = self._path[:8]
        return str(root) + "".join(map(_step, steps)) + ("…" if len(self._path) > 8 else "")

    def unknown(self, what: str) -> Unreadable:
        """Note that a value needs a class or function that is not in the list."""
        self.say(
            "unknown_class",
            f"expected {self.where} to be plain data, got a value that needs {what:.200}. Allow that with "
            f"--allow-class if it is an enum or a dataclass; otherwise schedule the job anew with plain arguments.",
            "review",
            what,
        )
        return Unreadable(what)

    def unreadable(self, what: str, why: str) -> Unreadable:
        """Note that a value cannot be carried over although its class is known."""
        self.say(
            "unreadable_argument",
            f"expected {self.where} to be data that can be carried over, got a {what:.200}: {why}. Schedule the job "
            f"anew with other arguments.",
            "review",
            what,
        )
        return Unreadable(what)

    def listed(self, found: Iterable[Any]) -> list[Any]:
        """Return the values of several stand-ins."""
        made = []
        path = self._path
        for index, item in enumerate(found):
            if type(item) in _PLAIN:
                self._size += 1
                made.append(item)
                continue
            path.append(index)
            made.append(self.value(item))
            path.pop()
        self._count(0)
        return made

    def paired(self, found: list[Any]) -> Any:
        """Return the dict of keys and values in turn."""
        path = self._path
        pairs = []
        for index in range(0, len(found), 2):
            key = self.value(found[index])
            path.append(key)
            pairs.append((key, self.value(found[index + 1])))
            path.pop()
        made = _hashed(pairs, dict)
        return self.unreadable("dict", "its keys cannot be keys") if made is None else made

    def member_set(self, found: list[Any], kind: Callable[[Any], Any]) -> Any:
        """Return the set of these members."""
        made = _hashed([(item, None) for item in self.listed(found)], dict)
        return self.unreadable("set", "its members cannot be in a set") if made is None else kind(made)

    def native_text(self, found: NativeText) -> Any:
        """Return Python 2's ``str`` as text if it is, which in ASCII nobody can tell apart, or as bytes."""
        try:
            text = found.decode("utf-8")
        except UnicodeDecodeError:
            text = None
        if text is None or not text.isascii():
            kind = "bytes" if text is None else "text in UTF-8"
            self.say(
                "native_text",
                f"{self.where} is a str of Python 2 with other characters than ASCII's; it is carried over as {kind}.",
                "note" if text is not None else "review",
                kind,
            )
        return bytes(found) if text is None else text

    def made(self, found: Made) -> Any:
        """Return the value that a call stands for, if its class is in the list."""
        maker = found.maker
        if type(maker) is not Named:
            zone = self._zone(found)
            return zone if zone is not None else self.unknown("builtins:getattr")
        reference = maker.reference
        make = MAKERS.get(reference)
        try:
            if make is not None:
                return make(self, found)
            if reference in self.classes:
                return self._allowed(reference, self.classes[reference], found)
            zone = self._zone(found)
        except (Unfit, ValueError, TypeError, LookupError, ArithmeticError, AttributeError) as exc:
            return self.unreadable(reference, f"it is not what it should be ({type(exc).__name__})")
        return zone if zone is not None else self.unknown(reference)

    def say_enum(self, reference: str) -> None:
        """Note that an enum's member is carried over as its value."""
        self.say("enum_as_value", f"{self.where} is a {reference}; it is carried over as its value.", "note", reference)

    def _zone(self, found: Made) -> tzinfo | None:
        try:
            return zone_of(found).tzinfo
        except UnknownZone:
            return None

    def _allowed(self, reference: str, cls: type[Any], found: Made) -> Any:
        if issubclass(cls, enum.Enum):
            if len(found.args) != 1:
                raise Unfit
            value = self.value(found.args[0])
            if not issubclass(cls, enum.Flag) and value not in [member.value for member in cls]:
                return self.unreadable(reference, "the enum has no such member any more")
            self.say(
                "enum_as_value", f"{self.where} is a {reference}; it is carried over as its value.", "note", reference
            )
            return value
        names = [field.name for field in dataclasses.fields(cls)]
        state = found.state
        if type(state) is tuple and len(state) == 2 and state[0] is None:  # slots
            state = state[1]
        if type(state) is list:  # slots and frozen
            state = Pairs(part for pair in zip(names, state, strict=True) for part in pair)
        fields = None if state is NOTHING else self.value(state)
        if type(fields) is not dict or set(fields) != set(names):
            return self.unreadable(reference, "its fields are not those that were stored")
        self.say(
            "dataclass_as_dict", f"{self.where} is a {reference}; it is carried over as a dict.", "note", reference
        )
        return fields


def _step(step: Any) -> str:
    if type(step) is int or type(step) is str:
        return f"[{step[:40]!r}]" if type(step) is str else f"[{step}]"
    return f"[a {type(step).__name__}]"


def _hashed(pairs: list[tuple[Any, Any]], kind: type[dict[Any, Any]]) -> dict[Any, Any] | None:
    """Return the dict, or None if a key cannot be hashed.

    :raises UnreadablePickle: if it takes far longer than so many keys do
    """
    made = kind()
    try:
        if len(pairs) < 512:
            made.update(pairs)
            return made
        began = clock.thread_time()
        for start in range(0, len(pairs), 256):
            made.update(pairs[start : start + 256])
            if clock.thread_time() - began > _PATIENCE:
                raise UnreadablePickle(
                    "expected arguments that can be read in good time, got a dict or set whose keys all collide. "
                    "Somebody has made it so: find out who wrote the row."
                )
    except TypeError:
        return None
    return made


# --- the list --------------------------------------------------------------------------------------------------------

Maker = Callable[[Values, Made], Any]


def _bytes_of(values: Values, found: Any) -> bytes:
    """Return bytes as each protocol says them: plain, as Python 2's text, or encoded in Latin-1."""
    if type(found) is Made:
        found = values.value(found)
    if type(found) is str:  # protocol 0 of Python 2, read as text
        return found.encode("latin-1")
    if not isinstance(found, bytes):
        raise Unfit
    return bytes(found)


def _encoded(values: Values, found: Made) -> bytes:
    text, encoding = found.args
    if type(text) is not str or values.value(encoding) not in ("latin1", "latin-1"):
        raise Unfit
    return text.encode("latin-1")


def _bytes(values: Values, found: Made) -> bytes:
    if found.args:
        raise Unfit  # bytes(10**9) is a gigabyte
    return b""


def _bytearray(values: Values, found: Made) -> bytes:
    values.say("bytearray_as_bytes", f"{values.where} is a bytearray; it is carried over as bytes.", "note")
    if not found.args:
        return b""
    if len(found.args) == 2 and type(found.args[0]) is str and values.value(found.args[1]) in ("latin1", "latin-1"):
        return found.args[0].encode("latin-1")
    if len(found.args) != 1 or not isinstance(found.args[0], bytes | bytearray):
        raise Unfit
    return bytes(found.args[0])


def _set(kind: Callable[[Any], Any]) -> Maker:
    def make(values: Values, found: Made) -> Any:
        (members,) = found.args or ([],)
        if type(members) is not list and type(members) is not tuple:
            raise Unfit
        return values.member_set(list(members), kind)

    return make


def _ordered(values: Values, found: Made) -> Any:
    pairs = list(found.items)
    for key, item in found.args[0] if found.args else ():  # Python 2 and protocol 0
        pairs += [key, item]
    values.say("ordered_dict", f"{values.where} is an OrderedDict; it is carried over as a dict.", "note")
    return values.paired(pairs)


def moment(values: Values, found: Made) -> datetime:
    """Return the datetime that a call stands for, with its zone as a ``ZoneInfo`` if it has a name.

    :raises Unfit: if it is none, or its zone is not known
    """
    raw = _bytes_of(values, found.args[0])
    if len(raw) != 10:
        raise Unfit
    year, month, day, hour, minute, second = raw[0] << 8 | raw[1], raw[2] & 127, *raw[3:7]
    micros = int.from_bytes(raw[7:], "big")
    naive = datetime(year, month, day, hour, minute, second, micros, fold=raw[2] >> 7)  # noqa: DTZ001 - its zone comes
    if len(found.args) == 1 or found.args[1] is None:
        return naive
    try:
        return in_zone(naive, found.args[1])
    except UnknownZone as exc:
        raise Unfit(exc.what) from None


def _date(values: Values, found: Made) -> date:
    raw = _bytes_of(values, found.args[0])
    if len(raw) != 4:
        raise Unfit
    return date(raw[0] << 8 | raw[1], raw[2], raw[3])


def _time(values: Values, found: Made) -> time:
    raw = _bytes_of(values, found.args[0])
    if len(raw) != 6:
        raise Unfit
    zone = None
    if len(found.args) > 1 and found.args[1] is not None:
        try:
            zone = zone_of(found.args[1]).tzinfo
        except UnknownZone as exc:
            raise Unfit(exc.what) from None
    return time(raw[0] & 127, raw[1], raw[2], int.from_bytes(raw[3:], "big"), zone, fold=raw[0] >> 7)


def delta(found: Any) -> timedelta:
    """Return the timedelta that a call stands for.

    :raises Unfit: if it is none
    """
    fits = type(found) is Made and type(found.maker) is Named and found.maker.reference == "datetime:timedelta"
    if not fits or len(found.args) != 3 or not all(type(part) is int for part in found.args):
        raise Unfit
    days, seconds, microseconds = found.args
    return timedelta(days, seconds, microseconds)


def _uuid(values: Values, found: Made) -> UUID:
    state = found.state
    if type(state) is tuple and len(state) == 2:  # slots
        state = state[1] or state[0]
    fields = values.value(state) if type(state) is Pairs else {}
    if type(fields) is not dict or type(fields.get("int")) is not int:
        raise Unfit
    return UUID(int=fields["int"])


def _decimal(values: Values, found: Made) -> Decimal:
    (text,) = found.args
    if type(text) is NativeText:
        text = text.decode("ascii")
    if type(text) is not str or len(text) > 4300:
        raise Unfit
    return Decimal(text)


def _got(values: Values, found: Made) -> Any:
    """A member of an enum by its name, as Python 3.11.0 to 3.11.3 say it; any other getattr is not let in."""
    cls, name = found.args
    if type(cls) is not Named or not issubclass(values.classes.get(cls.reference, object), enum.Enum):
        return values.unknown("builtins:getattr")
    values.say_enum(cls.reference)
    return values.classes[cls.reference].__members__[name].value


MAKERS: Mapping[str, Maker] = {
    "_codecs:encode": _encoded,
    "builtins:getattr": _got,
    "builtins:bytes": _bytes,
    "builtins:bytearray": _bytearray,
    "builtins:set": _set(set),
    "builtins:frozenset": _set(frozenset),
    "collections:OrderedDict": _ordered,
    "datetime:datetime": moment,
    "datetime:date": _date,
    "datetime:time": _time,
    "datetime:timedelta": lambda values, found: delta(found),
    "decimal:Decimal": _decimal,
    "uuid:UUID": _uuid,
}

_PLAIN = frozenset({str, int, float, bool, bytes, type(None)})
_BY_KIND: Mapping[type[Any], Callable[[Values, Any], Any]] = {
    list: Values.listed,
    tuple: lambda values, found: tuple(values.listed(found)),
    Pairs: Values.paired,
    Members: lambda values, found: values.member_set(found, set),
    FrozenMembers: lambda values, found: values.member_set(found, frozenset),
    NativeText: Values.native_text,
    bytearray: lambda values, found: _bytearray(values, Made(None, (found,))),
    Made: Values.made,
    Named: lambda values, found: values.unknown(found.reference),
}
