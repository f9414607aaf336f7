"""Takes a pickle apart without importing or calling anything that it names, in bounded memory and time.

What a pickle would build by a call is kept as a record of that call (:class:`Made`), and a class or function as its
name (:class:`Named`). ``standins.py`` makes values of them. Containers that hash what is put into them are kept as
lists (:class:`Pairs`, :class:`Members`), so no hash is computed here, and nothing recurses.

Protocols 0 to 5, as Python 2.7 and 3 write them (https://docs.python.org/3/library/pickletools.html).
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from typing import Any

from duetime.errors import UnreadablePickle

MAX_PICKLE = 2 * 1024 * 1024
"""Bytes of a pickle that is read."""

MAX_COST = 32 * 1024 * 1024
"""About the bytes of memory that a pickle may take when it is taken apart."""

_STEP, _SLOT, _PAIR, _OBJECT, _MEMO = 64, 16, 120, 160, 128
_LONGEST_INT = 4096
_LONGEST_DIGITS = 4300


class Named:
    """A class or function that a pickle names; nothing was imported."""

    __slots__ = ("module", "name")

    def __init__(self, module: str, name: str) -> None:
        self.module = module
        self.name = name

    @property
    def reference(self) -> str:
        """``module:name``, with the names of Python 3 for those of Python 2's own modules."""
        return f"{_MOVED.get(self.module, self.module)}:{self.name}"


_MOVED = {"__builtin__": "builtins", "copy_reg": "copyreg"}


class Made:
    """What a pickle would make by calling ``maker(*args)``; nothing was called.

    :ivar state: what it would be given to ``__setstate__``; :data:`NOTHING` if there was none
    :ivar items: what would be appended or set on it
    """

    __slots__ = ("args", "items", "maker", "state")

    def __init__(self, maker: Any, args: tuple[Any, ...]) -> None:
        self.maker = maker
        self.args = args
        self.state: Any = NOTHING
        self.items: list[Any] = []

    def extend(self, items: list[Any]) -> None:
        self.items.extend(items)


NOTHING = object()


class Pairs(list[Any]):
    """A dict: keys and values in turn."""

    __slots__ = ()


class Members(list[Any]):
    """A set."""

    __slots__ = ()


class FrozenMembers(list[Any]):
    """A frozenset."""

    __slots__ = ()


class NativeText(bytes):
    """A ``str`` of Python 2: text or bytes, which only its writer knew."""

    __slots__ = ()


def take_apart(pickle: bytes) -> Any:
    """Return what the pickle says, in plain values and the classes above.

    :raises UnreadablePickle: if it is none, is cut off, or would take too much memory
    """
    if len(pickle) > MAX_PICKLE:
        raise UnreadablePickle(
            f"expected a pickle of at most {MAX_PICKLE} bytes, got a longer one. Remove the job in APScheduler 3, or "
            f"schedule it anew with smaller arguments."
        )
    machine = _Machine(pickle)
    try:
        return machine.run()
    except _Broken as exc:
        raise _unreadable(str(exc), machine.position) from None
    except (IndexError, struct.error):
        raise _unreadable("it ends too early, or takes more than it has put down", machine.position) from None
    except UnicodeDecodeError:
        raise _unreadable("a text is not in its encoding", machine.position) from None
    except (ValueError, TypeError, KeyError, OverflowError, AttributeError) as exc:
        raise _unreadable(f"{type(exc).__name__} in it", machine.position) from None


def _unreadable(problem: str, position: int) -> UnreadablePickle:
    return UnreadablePickle(
        f"expected the pickle of a job of APScheduler 3, got something else: {problem}, at byte {position}. Find out "
        f"who wrote the row, and schedule the job anew; APScheduler 3 removes a row that it cannot load itself."
    )


class _Broken(Exception):
    pass


class _Machine:
    """The stack, the memo and the place in the pickle."""

    def __init__(self, pickle: bytes) -> None:
        self.pickle = pickle
        self.position = 0
        self.stack: list[Any] = []
        self.marks: list[list[Any]] = []
        self.memo: dict[int, Any] = {}
        self.left = MAX_COST

    def run(self) -> Any:
        pickle, steps = self.pickle, _STEPS
        while True:
            code = pickle[self.position]
            self.position += 1
            if code == 0x2E:  # STOP
                return self.stack.pop()
            step = steps[code]
            if step is None:
                raise _Broken(f"{bytes([code])!r} is no instruction that a job's pickle has")
            self.left -= _STEP
            if self.left < 0:
                raise _Broken("it would take more memory than a job's arguments may")
            step(self)

    def charge(self, cost: int) -> None:
        self.left -= cost
        if self.left < 0:
            raise _Broken("it would take more memory than a job's arguments may")

    def take(self, size: int) -> bytes:
        end = self.position + size
        if size < 0 or end > len(self.pickle):
            raise _Broken("it is cut off")
        self.charge(size)
        found = self.pickle[self.position : end]
        self.position = end
        return found

    def number(self, form: struct.Struct) -> Any:
        (found,) = form.unpack_from(self.pickle, self.position)
        self.position += form.size
        return found

    def line(self) -> bytes:
        end = self.pickle.find(b"\n", self.position)
        if end < 0:
            raise _Broken("it is cut off")
        found = self.take(end - self.position)
        self.position += 1
        return found

    def text(self, encoded: bytes, encoding: str = "utf-8") -> str:
        self.charge(4 * len(encoded))  # as many bytes as its widest character needs, for each
        return encoded.decode(encoding, "surrogatepass" if encoding == "utf-8" else "strict")

    def pop_mark(self) -> list[Any]:
        items = self.stack
        self.stack = self.marks.pop()
        return items

    def remember(self, index: int) -> None:
        self.charge(_MEMO)
        self.memo[index] = self.stack[-1]

    def recall(self, index: int) -> None:
        try:
            self.stack.append(self.memo[index])
        except KeyError:
            raise _Broken("it refers to something that it has not said") from None

    def append(self, items: list[Any]) -> None:
        self.charge(_SLOT * len(items))
        target = self.stack[-1]
        if type(target) is not list and type(target) is not Made:
            raise _Broken("it appends to something that is no list")
        target.extend(items)

    def set_items(self, items: list[Any]) -> None:
        self.charge(_PAIR * len(items))
        target = self.stack[-1]
        if len(items) % 2:
            raise _Broken("it sets a key without a value")
        if type(target) is not Pairs and type(target) is not Made:
            raise _Broken("it sets items on something that is no dict")
        target.extend(items)

    def make(self, maker: Any, args: Any) -> None:
        self.charge(_OBJECT)
        if type(args) is not tuple:
            raise _Broken("it calls with something that is no tuple")
        # How protocols 0 and 1, and NEWOBJ's predecessors, say "an instance of this class".
        if type(maker) is Named and maker.module in ("copyreg", "copy_reg") and args and type(args[0]) is Named:
            if maker.name == "_reconstructor" and len(args) == 3:
                plain = type(args[1]) is Named and args[1].reference == "builtins:object"
                maker, args = args[0], () if plain else (args[2],)
            elif maker.name == "__newobj__":
                maker, args = args[0], args[1:]
        self.stack.append(Made(maker, args))

    def build(self) -> None:
        state = self.stack.pop()
        target = self.stack[-1]
        if type(target) is not Made or target.state is not NOTHING:
            raise _Broken("it gives a state to something that takes none")
        target.state = state

    def integer(self, encoded: bytes) -> None:
        if len(encoded) > _LONGEST_INT:
            raise _Broken("a number is longer than any job's")
        self.stack.append(int.from_bytes(encoded, "little", signed=True))

    def digits(self) -> int:
        text = self.line().rstrip(b"L")
        if len(text) > _LONGEST_DIGITS:
            raise _Broken("a number is longer than any job's")
        return int(text)

    def name(self, module: str, name: str) -> None:
        self.charge(_OBJECT)
        if len(module) > 1000 or len(name) > 1000:
            raise _Broken("a name is longer than any class's")
        self.stack.append(Named(module, name))


_U1, _U2, _U4, _U8 = (struct.Struct(form) for form in ("<B", "<H", "<I", "<Q"))
_I4, _F8 = struct.Struct("<i"), struct.Struct(">d")

Step = Callable[[_Machine], None]
_STEPS: list[Step | None] = [None] * 256


def _step(code: bytes) -> Callable[[Step], Step]:
    def register(step: Step) -> Step:
        _STEPS[code[0]] = step
        return step

    return register


def _push(code: bytes, make: Callable[[_Machine], Any], cost: int = 0) -> None:
    def step(m: _Machine) -> None:
        if cost:
            m.charge(cost)
        m.stack.append(make(m))

    _STEPS[code[0]] = step


def _constant(code: bytes, value: Any) -> None:
    _STEPS[code[0]] = lambda m: m.stack.append(value)


for _code, _value in ((b"N", None), (b"\x88", True), (b"\x89", False), (b")", ())):
    _constant(_code, _value)
_push(b"]", lambda m: [], _OBJECT)
_push(b"}", lambda m: Pairs(), _OBJECT)
_push(b"\x8f", lambda m: Members(), _OBJECT)
_push(b"K", lambda m: m.number(_U1))
_push(b"M", lambda m: m.number(_U2))
_push(b"J", lambda m: m.number(_I4))
_push(b"G", lambda m: m.number(_F8))
_push(b"X", lambda m: m.text(m.take(m.number(_U4))))
_push(b"\x8c", lambda m: m.text(m.take(m.number(_U1))))
_push(b"\x8d", lambda m: m.text(m.take(m.number(_U8))))
_push(b"V", lambda m: m.text(m.line(), "raw-unicode-escape"))
_push(b"B", lambda m: m.take(m.number(_U4)))
_push(b"C", lambda m: m.take(m.number(_U1)))
_push(b"\x8e", lambda m: m.take(m.number(_U8)))
_push(b"\x96", lambda m: bytearray(m.take(m.number(_U8))))
_push(b"T", lambda m: NativeText(m.take(m.number(_I4))), _SLOT)
_push(b"U", lambda m: NativeText(m.take(m.number(_U1))), _SLOT)
_push(b"L", lambda m: m.digits())
_push(b"F", lambda m: float(m.line()))


@_step(b"I")
def _int_or_bool(m: _Machine) -> None:
    if m.pickle.startswith((b"00\n", b"01\n"), m.position):
        m.stack.append(m.line() == b"01")
    else:
        m.stack.append(m.digits())


@_step(b"S")
def _quoted(m: _Machine) -> None:
    text = m.line()
    if len(text) < 2 or text[:1] != text[-1:] or text[:1] not in b"'\"":
        raise _Broken("a text is not in quotes")
    m.charge(2 * len(text))
    m.stack.append(NativeText(_unescaped(text[1:-1])))


def _unescaped(text: bytes) -> bytes:
    """Undo the escapes of Python 2's ``repr``."""
    return _ESCAPE.sub(lambda match: _ESCAPED.get(match[1]) or bytes([int(match[1][1:], 16)]), text)


_ESCAPE = re.compile(rb"\\(x[0-9a-fA-F]{2}|[nrt'\"\\])")
_ESCAPED = {b"n": b"\n", b"r": b"\r", b"t": b"\t", b"'": b"'", b'"': b'"', b"\\": b"\\"}

_STEPS[0x8A] = lambda m: m.integer(m.take(m.number(_U1)))
_STEPS[0x8B] = lambda m: m.integer(m.take(m.number(_I4)))


@_step(b"(")
def _mark(m: _Machine) -> None:
    m.charge(_STEP)
    m.marks.append(m.stack)
    m.stack = []


@_step(b"0")
def _drop(m: _Machine) -> None:
    if m.stack:
        m.stack.pop()
    else:
        m.pop_mark()


@_step(b"1")
def _drop_to_mark(m: _Machine) -> None:
    m.pop_mark()


_STEPS[ord("2")] = lambda m: m.stack.append(m.stack[-1])
_STEPS[ord("a")] = lambda m: m.append([m.stack.pop()])
_STEPS[ord("e")] = lambda m: m.append(m.pop_mark())
_STEPS[ord("u")] = lambda m: m.set_items(m.pop_mark())


@_step(b"s")
def _set_item(m: _Machine) -> None:
    value = m.stack.pop()
    m.set_items([m.stack.pop(), value])


@_step(b"\x90")
def _add_items(m: _Machine) -> None:
    items = m.pop_mark()
    m.charge(_PAIR * len(items))
    if type(m.stack[-1]) is not Members:
        raise _Broken("it adds to something that is no set")
    m.stack[-1].extend(items)


def _gather(code: bytes, make: Callable[[list[Any]], Any]) -> None:
    def step(m: _Machine) -> None:
        items = m.pop_mark()
        m.charge(_OBJECT + _SLOT * len(items))
        m.stack.append(make(items))

    _STEPS[code[0]] = step


def _paired(items: list[Any]) -> Pairs:
    if len(items) % 2:
        raise _Broken("it sets a key without a value")
    return Pairs(items)


_gather(b"t", tuple)
_gather(b"l", list)
_gather(b"d", _paired)
_gather(b"\x91", FrozenMembers)


def _short_tuple(code: bytes, size: int) -> None:
    def step(m: _Machine) -> None:
        if len(m.stack) < size:
            raise _Broken("it takes more than it has put down")
        m.charge(_OBJECT)
        m.stack[-size:] = [tuple(m.stack[-size:])]

    _STEPS[code[0]] = step


for _size, _code in enumerate((b"\x85", b"\x86", b"\x87"), 1):
    _short_tuple(_code, _size)

_STEPS[ord("p")] = lambda m: m.remember(m.digits())
_STEPS[ord("q")] = lambda m: m.remember(m.number(_U1))
_STEPS[ord("r")] = lambda m: m.remember(m.number(_U4))
_STEPS[0x94] = lambda m: m.remember(len(m.memo))
_STEPS[ord("g")] = lambda m: m.recall(m.digits())
_STEPS[ord("h")] = lambda m: m.recall(m.number(_U1))
_STEPS[ord("j")] = lambda m: m.recall(m.number(_U4))


@_step(b"\x80")
def _protocol(m: _Machine) -> None:
    if (version := m.number(_U1)) > 5:
        raise _Broken(f"it is of protocol {version}, and APScheduler 3 writes up to 5")


@_step(b"\x95")
def _frame(m: _Machine) -> None:
    if m.number(_U8) > len(m.pickle) - m.position:
        raise _Broken("it is cut off")


@_step(b"c")
def _global(m: _Machine) -> None:
    module = m.text(m.line())
    m.name(module, m.text(m.line()))


@_step(b"\x93")
def _stack_global(m: _Machine) -> None:
    name, module = m.stack.pop(), m.stack.pop()
    if type(name) is not str or type(module) is not str:
        raise _Broken("it names a class by something that is no text")
    m.name(module, name)


@_step(b"R")
@_step(b"\x81")
def _call(m: _Machine) -> None:
    args = m.stack.pop()
    m.make(m.stack.pop(), args)


@_step(b"\x92")
def _call_with_keywords(m: _Machine) -> None:
    keywords, args, maker = m.stack.pop(), m.stack.pop(), m.stack.pop()
    m.make(maker, (*args, keywords) if keywords and type(args) is tuple else args)


@_step(b"i")
def _instance(m: _Machine) -> None:
    m_args = m.pop_mark()
    _global(m)
    m.make(m.stack.pop(), tuple(m_args))


@_step(b"o")
def _object(m: _Machine) -> None:
    items = m.pop_mark()
    m.make(items[0], tuple(items[1:]))


_STEPS[ord("b")] = _Machine.build
