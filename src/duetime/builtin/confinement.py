"""Confinement: what code that serves somebody else's URL may do while it runs.

apprise has some 180 services, each with its own way to read host names, file names and further URLs out of
the URL it was given. Which of them reach where cannot be told from the URL, so the doors they must all pass
through are watched: Python raises an audit event (PEP 578) before it connects a socket, opens a file or
starts a process, with the very address it is about to use, and an exception from the hook stops it. A name
that resolves differently the second time gains nothing here.

The hook sees what goes through Python, in the thread that is confined. Services that act through a C library
or from a thread of their own are refused by name (``LOCAL_SCHEMES`` and ``THREADED_SCHEMES`` of ``notify``).
PEP 578 warns that hooks are no sandbox for hostile *code*; the code here is trusted, only its input is not.
"""

from __future__ import annotations

import mimetypes
import os
import socket
import sys
import sysconfig
import zoneinfo
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from .addresses import NOT_AN_ADDRESS, why_refused

_SOCKETS = frozenset({"socket.connect", "socket.sendto", "socket.sendmsg"})
_PROCESSES = frozenset(
    {
        "subprocess.Popen",
        "os.system",
        "os.exec",
        "os.posix_spawn",
        "os.spawn",
        "os.fork",
        "os.forkpty",
        "pty.spawn",
    }
)
_SYSLOG = frozenset({"syslog.openlog", "syslog.syslog"})
_PROOF = "duetime.confinement"
_WATCHED = _SOCKETS | _PROCESSES | _SYSLOG | {"open", _PROOF}


class ConfinementError(PermissionError):
    """What confined code gets instead of the connection, file or process it asked for.

    An ``OSError``, so that libraries take it for a failed connection and clean up.
    """


@dataclass(slots=True)
class Confinement:
    """One stretch of confined code, and what it was refused: network addresses apart from everything else."""

    allow_private: bool
    refused_addresses: list[str] = field(default_factory=list)
    refused_actions: list[str] = field(default_factory=list)

    def judge(self, event: str, args: tuple[Any, ...]) -> None:
        """Raise :class:`ConfinementError` if the action that the audit event announces is not allowed."""
        if event in _SOCKETS:
            self._judge_socket(*args)
        elif event == "open":
            self._judge_open(*args)
        elif event in _PROCESSES:
            self._refuse_action("start a process")
        else:
            self._refuse_action("write to the system's log")

    def _judge_socket(self, sock: socket.socket, address: Any = None) -> None:
        if sock.family not in (socket.AF_INET, socket.AF_INET6):
            self._refuse_action("use a local socket")
        if self.allow_private or address is None:  # None: over a connection, judged when it was made
            return
        kind = why_refused(str(address[0]))
        if kind == NOT_AN_ADDRESS:  # a name in this place is looked up inside the system call
            kind = "a host name whose address cannot be checked"
        if kind is not None:
            self.refused_addresses.append(kind)
            raise ConfinementError(f"connecting to {kind} is not allowed here")

    def _judge_open(self, path: Any, mode: str | None, flags: int) -> None:
        if isinstance(path, int):
            return
        name = os.path.abspath(os.fsdecode(path))  # without symlinks: installed libraries may be links
        writes = flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        if name in _system_files() and not writes:
            return
        if name.startswith(_library_directories()) and (not writes or f"{os.sep}__pycache__{os.sep}" in name):
            return
        if os.path.basename(name) in (".netrc", "_netrc"):
            # requests looks for one before each request and can do without, so it is nothing to report.
            raise ConfinementError("reading this file is not allowed here")
        self._refuse_action("open a file")

    def _refuse_action(self, action: str) -> None:
        self.refused_actions.append(action)
        raise ConfinementError(f"confined code may not {action}")


_active: ContextVar[Confinement | None] = ContextVar("duetime_confinement", default=None)


@contextmanager
def confined(*, allow_private: bool) -> Iterator[Confinement]:
    """Let the code inside, in this thread, connect to checked addresses and read libraries, and nothing else.

    Refused are other files, processes, Unix sockets, the system's log, and, unless ``allow_private``,
    addresses that are not public and host names that the check cannot see resolved. Other threads and tasks
    go on as ever; so does a thread that is started inside. Code on uvloop is not confined: run none inside.

    :raises RuntimeError: if another audit hook of the process keeps this one out
    """
    _install()
    confinement = Confinement(allow_private=allow_private)
    token = _active.set(confinement)
    try:
        yield confinement
    finally:
        _active.reset(token)


@cache
def _install() -> None:
    """Add the hook, once and for the life of the process: Python has no way to take one out again."""
    seen: list[str] = []

    def hook(event: str, args: tuple[Any, ...]) -> None:
        if event not in _WATCHED:  # the common case of the process's many events, so one look-up
            return
        if event == _PROOF:
            seen.append(event)
        elif (confinement := _active.get()) is not None:
            confinement.judge(event, args)

    sys.addaudithook(hook)
    sys.audit(_PROOF)  # an earlier hook can keep a new one out without a word
    if not seen:
        raise RuntimeError("expected to add an audit hook, got kept out by another one. `notify` cannot run with it.")


@cache
def _system_files() -> frozenset[str]:
    return frozenset({*map(str, mimetypes.knownfiles), os.devnull, "/dev/urandom", "/dev/random"})


@cache
def _library_directories() -> tuple[str, ...]:
    standard = [sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")]
    installed = [path for path in sys.path if os.path.basename(path) in ("site-packages", "dist-packages")]
    return tuple(os.path.abspath(path) + os.sep for path in (*standard, *installed, *zoneinfo.TZPATH) if path)
