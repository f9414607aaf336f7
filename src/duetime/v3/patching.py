"""Moving ``next_run_time`` inside a row's pickle: v3 computes what to run from there, and only selects by the column.

Nothing is unpickled. The opcodes are followed as far as it takes to find the datetime, and its ten bytes are replaced
in their place. Where that would move something else too (an interval's ``start_date`` may be the very same object), or
where the zone object says the offset of an instant, as those of pytz do, a new datetime is put into the dict at the
end of the pickle instead. Everything else keeps its bytes.
"""

from __future__ import annotations

import pickletools
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

KEY = "next_run_time"

_MARK = object()
_PAYLOAD = 10
_BYTES = {"SHORT_BINBYTES": 2, "SHORT_BINSTRING": 2, "BINBYTES": 5, "BINSTRING": 5, "BINBYTES8": 9}
"""Opcodes of a datetime's ten bytes, and how many bytes stand before them."""

_FIXED = frozenset(
    {
        "datetime timezone", "pytz _UTC", "pytz UTC", "pytz FixedOffset", "pytz _FixedOffset",
        "dateutil.tz.tz tzutc", "dateutil.tz tzutc", "dateutil.tz.tz tzoffset", "dateutil.tz tzoffset",
    }
)  # fmt: skip


class Unpatchable(Exception):
    """The pickle is not one whose ``next_run_time`` can be moved; the text says why."""


@dataclass(eq=False, slots=True)
class _Node:
    """A value that some opcodes push.

    :ivar parts: of a tuple its members; of a call the callable and its arguments; of a dict keys and values in turn
    :ivar memo: its places in the memo
    :ivar fetched: whether it is taken out of the memo again
    """

    op: str
    start: int
    end: int
    value: Any = None
    parts: list[_Node] = field(default_factory=list)
    memo: list[int] = field(default_factory=list)
    fetched: bool = False


def moved(job_state: bytes, stored: float, to: datetime) -> bytes:
    """Return the pickle with another ``next_run_time``, in the same zone; the same bytes if it is that already.

    :param stored: the instant that the pickle says now, in seconds since 1970: the row's column
    :param to: aware
    :raises Unpatchable: if it cannot be done without a doubt
    """
    old = datetime.fromtimestamp(0, UTC) + timedelta(seconds=round(stored, 6))
    new = to.astimezone(UTC)
    if old == new:
        return job_state
    state = _followed(job_state)
    place, is_own = _value_of(state, KEY)
    payload, zone = _parts_of(place)
    wall = _read(payload)
    offset = wall.replace(fold=0) - old.replace(tzinfo=None)
    name = _zone_name(zone)
    if name is None:
        patched = _patched(job_state, state, place, payload, zone, new + offset, is_own=is_own)
    else:
        info = ZoneInfo(name)
        is_known = old.astimezone(info).utcoffset() == offset or wall.replace(tzinfo=info).astimezone(UTC) == old
        local = new.astimezone(info)
        if _callable_of(zone) != "pytz _p":
            if not is_known:
                raise Unpatchable(f"the time zones here do not have {name} at the offset that its {wall} has")
            if local.fold and _protocol(job_state) < 4:
                raise Unpatchable(f"its pickle has no way to say the second {local:%H:%M} of {local:%Y-%m-%d}")
            patched = _patched(job_state, state, place, payload, zone, local, is_own=is_own)
        elif is_known and local.utcoffset() != offset:
            patched = _appended(job_state, local.replace(fold=0), _pytz_zone(name, local))
        else:  # pytz's object is an offset; where its tables are others than ours, the instant is right all the same
            local = (new + offset).replace(tzinfo=None)
            patched = _patched(job_state, state, place, payload, zone, local, is_own=is_own)
    _check(patched, new, name)
    return patched


def _check(patched: bytes, meant: datetime, name: str | None) -> None:
    """Follow the patched pickle again: what is written back must say what is meant."""
    place, _ = _value_of(_followed(patched), KEY)
    payload, zone = _parts_of(place)
    if name is None or _callable_of(zone) == "pytz _p":
        return
    if _read(payload).replace(tzinfo=ZoneInfo(name)).astimezone(UTC) != meant:
        raise Unpatchable(f"{meant.isoformat()} is not a time that {name} has")


def _patched(
    pickle: bytes, state: _Node, place: _Node, payload: _Node, zone: _Node | None, wall: datetime, *, is_own: bool
) -> bytes:
    at = _BYTES.get(payload.op)
    if is_own and at is not None and not place.fetched and not payload.fetched:
        start = payload.start + at
        return pickle[:start] + _ten_bytes(wall) + pickle[start + _PAYLOAD :]
    if zone is None or not zone.memo:
        raise Unpatchable("its time zone cannot be referred to a second time")
    number = zone.memo[-1]
    fetch = b"h" + bytes([number]) if number < 256 else b"j" + number.to_bytes(4, "little")
    return _appended(pickle, wall, fetch)


def _appended(pickle: bytes, wall: datetime, zone: bytes) -> bytes:
    """Return the pickle with a new datetime put into its dict just before the end.

    :param zone: opcodes that push the zone
    """
    ten = _ten_bytes(wall)
    # Python 2 knows no bytes, and Python 3 takes a protocol 2 string for ASCII: this is what Python 3 itself writes.
    pushed = b"C\x0a" + ten if _protocol(pickle) > 2 else b"c_codecs\nencode\n" + _text(ten.decode("latin-1")) + _LATIN1
    added = _text(KEY) + b"cdatetime\ndatetime\n" + pushed + zone + b"\x86Rs"
    body = bytearray(pickle[:-1] + added + pickle[-1:])
    frame = None
    for opcode, argument, position in _opcodes(pickle):
        if opcode.name == "FRAME":
            frame = (position, int(argument))
    if frame is not None and frame[0] + 9 + frame[1] == len(pickle):
        body[frame[0] + 1 : frame[0] + 9] = (frame[1] + len(added)).to_bytes(8, "little")
    return bytes(body)


def _protocol(pickle: bytes) -> int:
    return pickle[1] if pickle[:1] == b"\x80" else 0


def _text(text: str) -> bytes:
    encoded = text.encode()
    return b"X" + len(encoded).to_bytes(4, "little") + encoded


_LATIN1 = _text("latin1") + b"\x86R"


def _pytz_zone(name: str, local: datetime) -> bytes:
    """Return opcodes for pytz's object of a zone at one of its offsets."""
    numbers = [int(each.total_seconds()) for each in (local.utcoffset(), local.dst()) if each is not None]
    pushed = b"".join(b"J" + number.to_bytes(4, "little", signed=True) for number in numbers)
    return b"cpytz\n_p\n(" + _text(name) + pushed + _text(local.tzname() or "") + b"tR"


def _ten_bytes(wall: datetime) -> bytes:
    """Return a datetime's state as it pickles itself; the fold is the first bit of the month."""
    micro = wall.microsecond
    return bytes(
        [
            wall.year >> 8, wall.year & 255, wall.month | (wall.fold << 7), wall.day, wall.hour, wall.minute,
            wall.second, micro >> 16, micro >> 8 & 255, micro & 255,
        ]
    )  # fmt: skip


def _read(payload: _Node) -> datetime:
    """Return the time on the wall that ten bytes say."""
    text = payload.value
    if payload.op == "REDUCE" and _callable_of(payload) == "_codecs encode" and payload.parts[1].parts:
        text = payload.parts[1].parts[0].value
    ten = text.encode("latin-1") if isinstance(text, str) else text
    if not isinstance(ten, bytes) or len(ten) != _PAYLOAD:
        raise Unpatchable("its next_run_time is not a datetime of ten bytes")
    year, month, day, hour, minute, second = ten[0] << 8 | ten[1], *ten[2:7]
    try:
        return datetime(  # noqa: DTZ001 - the time on the wall
            year, month & 127, day, hour, minute, second, int.from_bytes(ten[7:], "big"), fold=month >> 7
        )
    except ValueError as exc:
        raise Unpatchable(f"its next_run_time is no time: {exc}") from exc


def _parts_of(node: _Node) -> tuple[_Node, _Node | None]:
    """Return the ten bytes and the zone of a datetime."""
    if node.op != "REDUCE" or _callable_of(node) != "datetime datetime" or not 1 <= len(node.parts[1].parts) <= 2:
        raise Unpatchable("its next_run_time is not a datetime")
    arguments = node.parts[1].parts
    if len(arguments) < 2:
        raise Unpatchable("its next_run_time has no time zone")
    return arguments[0], arguments[1]


def _callable_of(node: _Node | None) -> str | None:
    """Return ``module name`` of what is called to make the value."""
    while node is not None and node.op == "REDUCE":
        node = node.parts[0]
    return node.value if node is not None and node.op == "GLOBAL" else None


def _zone_name(zone: _Node | None) -> str | None:
    """Return the IANA name that is in a zone's pickle; None if the zone is one of a fixed offset.

    :raises Unpatchable: if it is neither
    """
    names = {name for text in _texts(zone) if (name := _iana(text)) is not None}
    if len(names) == 1:
        return names.pop()
    made_by = _callable_of(zone)
    if made_by in _FIXED and not names:
        return None
    raise Unpatchable(f"its time zone ({made_by or 'of an unknown kind'}) is not one that can be looked up")


def _iana(text: str) -> str | None:
    name = text.rpartition("zoneinfo/")[2]
    if not name or len(name) > 100 or not (name[0].isalpha() and name[0].isupper()):
        return None
    try:
        return ZoneInfo(name).key
    except Exception:  # whatever a text that is no zone's name leads to
        return None


def _texts(node: _Node | None, depth: int = 0) -> Iterator[str]:
    if node is None or depth > 8:
        return
    if node.op in ("CONSTANT", *_BYTES) and isinstance(node.value, str):
        # pytz says the abbreviation of an offset too, and some of those (`CET`) are zones.
        yield node.value
    parts = node.parts
    if _callable_of(node) == "pytz _p" and len(parts) == 2:
        parts = parts[1].parts[:1]
    for part in parts:
        yield from _texts(part, depth + 1)


def _value_of(state: _Node, key: str) -> tuple[_Node, bool]:
    """Return the value of a key of the dict, and whether it is made there and not taken from the memo."""
    found = None
    for name, value in zip(state.parts[::2], state.parts[1::2], strict=True):
        if name.value == key and name.op in ("CONSTANT", *_BYTES):
            found = value
    if found is None:
        raise Unpatchable(f"it has no {key}")
    return (found.parts[0], False) if found.op == "FETCHED" else (found, True)


def _opcodes(pickle: bytes) -> Iterator[tuple[pickletools.OpcodeInfo, Any, int]]:
    try:
        for opcode, argument, position in pickletools.genops(pickle):
            yield opcode, argument, position or 0
    except Exception as exc:  # what pickletools says of bytes that are no pickle differs
        raise Unpatchable(f"it is not a whole pickle: {exc}") from exc


def _followed(pickle: bytes) -> _Node:
    """Return the dict that the pickle makes, as the opcodes that make it."""
    try:
        found = _Follower(pickle).follow()
    except (IndexError, KeyError, AttributeError, TypeError) as exc:
        raise Unpatchable("its opcodes do not fit together") from exc
    if found.op != "DICT":
        raise Unpatchable("it is not the pickle of a dict")
    return found


class _Follower:
    """Follows opcodes and keeps what each value is made of; makes nothing."""

    def __init__(self, pickle: bytes) -> None:
        self._pickle = pickle
        self._stack: list[Any] = []
        self._memo: dict[int, _Node] = {}

    def follow(self) -> _Node:
        """Return what is on the stack at the end."""
        found = [*_opcodes(self._pickle)]
        ends = [position for _, _, position in found[1:]] + [len(self._pickle)]
        for (opcode, argument, position), end in zip(found, ends, strict=True):
            self._step(opcode, argument, position, end)
        top = self._stack[-1]
        return top.parts[0] if top.op == "FETCHED" else top  # type: ignore[no-any-return]

    def _real(self, node: _Node) -> _Node:
        return node.parts[0] if node.op == "FETCHED" else node

    def _down_to_mark(self) -> list[_Node]:
        at = len(self._stack) - 1
        while self._stack[at] is not _MARK:
            at -= 1
            if at < 0:
                raise IndexError
        above = self._stack[at + 1 :]
        del self._stack[at:]
        return above

    def _pop(self, count: int) -> list[_Node]:
        if count > len(self._stack):
            raise IndexError
        taken = self._stack[len(self._stack) - count :]
        del self._stack[len(self._stack) - count :]
        return taken

    def _push(self, op: str, start: int, end: int, value: Any = None, parts: list[_Node] | None = None) -> None:
        first = parts[0].start if parts and op in ("TUPLE", "REDUCE") else start
        self._stack.append(_Node(op, min(first, start), end, value, parts or []))

    def _step(self, opcode: pickletools.OpcodeInfo, argument: Any, start: int, end: int) -> None:
        name = opcode.name
        stack = self._stack
        if name in ("PROTO", "FRAME", "STOP"):
            return
        if name == "MARK":
            stack.append(_MARK)
        elif name == "MEMOIZE" or name.endswith("PUT"):
            number = len(self._memo) if name == "MEMOIZE" else int(argument)
            node = self._real(stack[-1])
            node.memo.append(number)
            self._memo[number] = node
        elif name.endswith("GET"):
            node = self._memo[int(argument)]
            node.fetched = True
            self._push("FETCHED", start, end, node.value, [node])
        elif name in ("EMPTY_DICT", "DICT"):
            parts = [] if name == "EMPTY_DICT" else self._down_to_mark()
            self._push("DICT", start, end, None, parts)
        elif name in ("SETITEM", "SETITEMS"):
            items = self._pop(2) if name == "SETITEM" else self._down_to_mark()
            # A key that comes a second time may stand in the memo.
            self._real(stack[-1]).parts.extend(
                self._real(each) if at % 2 == 0 else each for at, each in enumerate(items)
            )
        elif name in ("APPEND", "APPENDS", "ADDITEMS", "BUILD"):
            if name in ("APPEND", "BUILD"):
                self._pop(1)
            else:
                self._down_to_mark()
        elif name in ("TUPLE1", "TUPLE2", "TUPLE3", "EMPTY_TUPLE", "TUPLE"):
            parts = self._down_to_mark() if name == "TUPLE" else self._pop(int(name[-1]) if name[-1].isdigit() else 0)
            self._push("TUPLE", start, end, None, [self._real(each) for each in parts])
        elif name in ("REDUCE", "NEWOBJ"):
            self._push("REDUCE", start, end, None, [self._real(each) for each in self._pop(2)])
        elif name == "GLOBAL":
            self._push("GLOBAL", start, end, argument)
        elif name == "STACK_GLOBAL":
            module, attribute = (self._real(each).value for each in self._pop(2))
            self._push("GLOBAL", start, end, f"{module} {attribute}")
        elif name in _BYTES:
            self._push(name, start, end, argument)
        elif not opcode.stack_before and len(opcode.stack_after) == 1:
            self._push("CONSTANT", start, end, argument)
        elif opcode.stack_before and opcode.stack_before[0] is pickletools.markobject:
            self._down_to_mark()
            self._push("OTHER", start, end)
        else:
            self._pop(len(opcode.stack_before))
            for _ in opcode.stack_after:
                self._push("OTHER", start, end)
