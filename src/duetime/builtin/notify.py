"""The task ``notify``: a message by SMS, e-mail, push or chat, to a service that apprise knows."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import TYPE_CHECKING, Annotated, Literal
from urllib.parse import unquote

from pydantic import AfterValidator, Field, JsonValue, WithJsonSchema
from pydantic_core import PydanticCustomError

from duetime.errors import AddressRefused, InvalidArguments, NotificationFailed
from duetime.tasks import task

from .addresses import private_allowed, refused
from .confinement import Confinement, confined

if TYPE_CHECKING:
    from apprise import NotifyBase

LOCAL_SCHEMES = frozenset(
    {
        "blink1",
        "dbus",
        "deltachat",
        "deltachats",
        "gio",
        "glib",
        "gnome",
        "kde",
        "macosx",
        "qt",
        "syslog",
        "windows",
    }
)
"""Services of apprise that act on the server itself: its desktop, its log, its lights, its programs."""

THREADED_SCHEMES = frozenset({"mqtt", "mqtts", "xmpp", "xmpps"})
"""Services that connect from a thread of their own, where the confinement does not reach."""

MAX_URLS = 50
MAX_URL_LENGTH = 4_000
_SOCKET_SECONDS = 60.0
"""Longest wait for one answer of a service; a URL may ask for less (``?rto=``, ``?cto=``), not for more."""

_URL = re.compile(r"([A-Za-z0-9]{1,32})://\S")
_SEPARATORS = re.compile(r"[/?&=:@,;+#\s]+")
_METHODS = frozenset({"get", "post", "put", "patch", "head", "delete"})


def shown(url: str) -> str:
    """Return what errors, logs and results may show of an apprise URL: any other part can be a password."""
    match = _URL.match(url)
    return f"{match[1].lower()}://…" if match else "a text without a scheme"


def _problem(url: str) -> str | None:
    match = _URL.match(url)
    if match is None or len(url) > MAX_URL_LENGTH:
        return "expected a URL such as mailtos://user:password@example.com, one per list item"
    if match[1].lower() in LOCAL_SCHEMES:
        return "expected a service that is reached over the network, got one of the server itself"
    return None


def _apprise_url(url: str) -> str:
    if problem := _problem(url):
        raise PydanticCustomError("apprise_url", "{problem} ({shown})", {"problem": problem, "shown": shown(url)})
    return url


AppriseUrl = Annotated[
    str,
    AfterValidator(_apprise_url),
    WithJsonSchema(
        {
            "type": "string",
            "format": "uri",
            "maxLength": MAX_URL_LENGTH,
            "examples": [
                "mailtos://user:app-password@gmail.com",
                "twilio://sid:token@from/to",
                "ntfys://ntfy.sh/topic",
            ],
        }
    ),
]


@task(name="notify", timeout=300)
def notify(
    urls: Annotated[
        AppriseUrl | Annotated[list[AppriseUrl], Field(min_length=1, max_length=MAX_URLS)],
        Field(description="apprise URL or URLs, one for each recipient; https://appriseit.com/services/."),
    ],
    body: Annotated[str, Field(min_length=1, description="The message.")],
    title: Annotated[str, Field(description="Its subject; services without one put it before the message.")] = "",
    format: Annotated[  # noqa: A002 - apprise's word, and part of the task's stored arguments
        Literal["text", "markdown", "html"],
        Field(description="How the message is written; it is converted to what each service understands."),
    ] = "text",
) -> dict[str, JsonValue]:
    """Send a message by SMS, e-mail, push or chat: to each of the given apprise URLs.

    The result is ``{"delivered": ["mailtos://…", …]}``. A plain ``def``: it runs in a thread and blocks
    nothing. After a crash, and when a failed run is tried again, services that had the message get it once
    more; give each its own schedule if that matters.

    Private, loopback and other non-public addresses are refused unless the operator allows them
    (``DUETIME_HTTP_ALLOW_PRIVATE``), at the moment of connecting. Files, processes and sockets of the server
    are out of reach of any URL, so what a URL may name as a local file (a template, a key) is refused.
    Passwords in the URLs never appear in errors, logs or results; they are stored with the schedule's
    arguments. Unless private addresses are allowed, services whose connections cannot be checked (``mqtt``,
    ``xmpp``) are refused too.

    :raises InvalidArguments: if a URL is not one of a service that can be used; nothing is sent then
    :raises AddressRefused: if the URL leads to an address that tasks may not reach
    :raises NotificationFailed: if the service did not take the message; of several, if any failed,
        whatever the reason. The others were tried all the same
    """
    given = [urls] if isinstance(urls, str) else urls
    _prepare()
    services = [_service(url) for url in given]
    delivered: list[JsonValue] = []
    failed: list[tuple[str, Exception]] = []
    for url, service in zip(given, services, strict=True):
        try:
            _deliver(service, url, body=body, title=title, body_format=format)
        except (AddressRefused, InvalidArguments, NotificationFailed) as exc:
            failed.append((url, exc))
        else:
            delivered.append(shown(url))
    if not failed:
        return {"delivered": delivered}
    if len(given) == 1:
        raise failed[0][1]
    raise NotificationFailed(
        f"expected {len(given)} services to take the message, got {len(delivered)} that did. "
        + " ".join(f"{shown(url)} {exc}" for url, exc in failed),
        details=[{"where": shown(url), "problem": str(exc)} for url, exc in failed],
    )


def _service(url: str) -> NotifyBase:
    """Return apprise's object for a URL."""
    from apprise import Apprise, AppriseAsset

    if problem := _problem(url):
        raise InvalidArguments(f"{problem}: {shown(url)}")
    allow_private = private_allowed.get()
    if not allow_private and url.partition("://")[0].lower() in THREADED_SCHEMES:
        raise refused(shown(url), "a service whose connections cannot be checked")
    asset = AppriseAsset(
        async_mode=False,  # with the next line: everything in this thread, where the confinement holds
        service_timeout=0,
        http_redirects=False,
        storage_mode="memory",
        pgp_autogen=False,
        pem_autogen=False,
        app_id="Duetime",
        app_desc="Duetime",
    )
    service: NotifyBase | None = None
    with _quiet(url) as log, confined(allow_private=allow_private) as confinement:
        try:
            service = Apprise.instantiate(url, asset=asset)
        except Exception as exc:  # each of the services has a parser of its own
            log.note(type(exc).__name__)
    if service is None:
        _raise_if_refused(confinement, url)
        raise InvalidArguments(
            f"expected the URL of a service that apprise can use here, got {shown(url)}{log.reason()} "
            f"https://appriseit.com/services/ has each service's form, and the package it needs if any."
        )
    # A URL of a service's own web site (https://…) has told its scheme only now.
    schemes: set[str] = service.schemas()  # type: ignore[no-untyped-call]
    refused_schemes = LOCAL_SCHEMES if allow_private else LOCAL_SCHEMES | THREADED_SCHEMES
    if schemes & refused_schemes or not type(service).__module__.startswith("apprise.plugins."):
        raise InvalidArguments(f"expected one of apprise's own services of the network, got {shown(url)}.")
    service.socket_connect_timeout = min(service.socket_connect_timeout, _SOCKET_SECONDS)
    service.socket_read_timeout = min(service.socket_read_timeout, _SOCKET_SECONDS)
    return service


def _deliver(service: NotifyBase, url: str, *, body: str, title: str, body_format: str) -> None:
    from apprise import Apprise

    with _quiet(url) as log, confined(allow_private=private_allowed.get()) as confinement:
        messenger = Apprise()
        messenger.add(service)
        taken = messenger.notify(body=body, title=title, body_format=body_format)
    if taken:
        return
    _raise_if_refused(confinement, url)
    raise NotificationFailed(f"expected {shown(url)} to take the message, got a failure{log.reason()}")


def _raise_if_refused(confinement: Confinement, url: str) -> None:
    if confinement.refused_addresses:
        raise refused(shown(url), confinement.refused_addresses[0])
    if confinement.refused_actions:
        raise InvalidArguments(
            f"expected a URL that only reaches a service over the network, got {shown(url)}, which makes the "
            f"server {confinement.refused_actions[0]}. Leave out what names a local thing."
        )


@cache
def _prepare() -> None:
    """Load apprise's services and take over their log lines: half a second, once, before a URL is in hand."""
    from apprise import NotificationManager

    services = NotificationManager()  # type: ignore[no-untyped-call]
    services.load_modules()  # type: ignore[no-untyped-call]
    for name in ("apprise", "urllib3.connectionpool"):  # both write whole URLs at level DEBUG
        logging.getLogger(name).addFilter(_to_our_log)


class _Log:
    """What apprise says while it works on one URL: kept out of the log, as parts of the URL are in it."""

    def __init__(self, url: str) -> None:
        self._parts = [_pattern(part) for part in _secret_parts(url)]
        self._lines: list[str] = []

    def add(self, record: logging.LogRecord) -> None:
        if record.levelno >= logging.WARNING:
            self.note(record.getMessage())

    def note(self, line: str) -> None:
        line = re.sub(r"://\S+", "://…", line)
        for part in self._parts:
            line = part.sub("…", line)
        self._lines.append(" ".join(line.split())[:300].rstrip("."))

    def reason(self) -> str:
        """Return the end of a sentence: what was said, if anything."""
        return f": {'; '.join(self._lines[:3])}." if self._lines else "."


def _secret_parts(url: str) -> list[str]:
    rest = url.partition("://")[2]
    parts = {part for text in (rest, unquote(rest)) for part in _SEPARATORS.split(text)}
    return sorted((part for part in parts if part and part.lower() not in _METHODS), key=len, reverse=True)


def _pattern(part: str) -> re.Pattern[str]:
    # A short part is taken out as a word only, or the text would be unreadable.
    edge = (r"(?<!\w)", r"(?!\w)") if len(part) < 4 else ("", "")
    return re.compile(edge[0] + re.escape(part) + edge[1], re.IGNORECASE)


_log: ContextVar[_Log | None] = ContextVar("duetime_notify_log", default=None)


@contextmanager
def _quiet(url: str) -> Iterator[_Log]:
    log = _Log(url)
    token = _log.set(log)
    try:
        yield log
    finally:
        _log.reset(token)


def _to_our_log(record: logging.LogRecord) -> bool:
    log = _log.get()
    if log is not None:
        log.add(record)
    return log is None
