"""Request bodies: how much of them is read, and what counts as JSON."""

from __future__ import annotations

import json
from email.message import Message
from typing import Any, NoReturn

from fastapi import Request
from starlette.types import Receive, Scope

from ..errors import InvalidJson, InvalidRequest, RequestTooLarge, UnsupportedMediaType

MAX_CONTAINERS = 50_000
"""Arrays and objects in a body. Python's garbage collector makes each of them expensive: the 700,000 that fit
into 2 MiB would stop the event loop for a quarter of a second (promise 7)."""

MAX_FIELDS = 2_000
"""Fields and items outside the free-form parts; each can be an error, and 160,000 of them take a second."""

MAX_FIELDS_OF_MANY = 100_000
"""The same where the body holds many schedules: each of them has some ten."""

FREE_FORM = frozenset({"args", "kwargs", "metadata"})
"""Fields of a body whose contents the caller chooses."""

_UNREAD = object()


class BoundedRequest(Request):
    """A request whose body is read up to a limit and is JSON by RFC 8259, without Python's additions."""

    def __init__(self, scope: Scope, receive: Receive, *, limit: int, max_fields: int = MAX_FIELDS) -> None:
        super().__init__(scope, receive)
        self._max_fields = max_fields
        self._limit = limit
        self._bytes: bytes | None = None
        self._document: Any = _UNREAD

    async def body(self) -> bytes:
        """Return the body.

        :raises RequestTooLarge: as soon as it is announced or turns out to be larger than the limit
        """
        if self._bytes is None:
            announced = self.headers.get("content-length", "")
            if announced.isdecimal() and int(announced) > self._limit:
                self._refuse()
            read = bytearray()
            async for chunk in self.stream():
                read += chunk
                if len(read) > self._limit:
                    self._refuse()
            self._bytes = bytes(read)
        return self._bytes

    async def json(self) -> Any:
        """Return the document in the body.

        :raises RequestTooLarge: if it has more bytes than the limit, or more arrays and objects than allowed
        :raises UnsupportedMediaType: if its header does not say that it is JSON
        :raises InvalidJson: if it is not
        :raises InvalidRequest: if it has more fields than any documented body
        """
        if self._document is _UNREAD:
            body = await self.body()
            _check_type(self.headers.get("content-type"))
            if body.count(b"[") + body.count(b"{") > MAX_CONTAINERS:
                raise RequestTooLarge(
                    f"expected at most {MAX_CONTAINERS:,} arrays and objects in the body (brackets in texts "
                    f"count too), got more. Keep large data elsewhere and pass a reference to it."
                )
            document = _parsed(body)
            _check_fields(document, self._max_fields)
            self._document = document
        return self._document

    def _refuse(self) -> NoReturn:
        raise RequestTooLarge(
            f"expected a body of at most {self._limit:,} bytes, got more. Keep large data elsewhere "
            f"and pass a reference to it."
        )


def _check_type(given: str | None) -> None:
    message = Message()
    message["content-type"] = given or ""
    subtype = message.get_content_subtype()
    if message.get_content_maintype() == "application" and (subtype == "json" or subtype.endswith("+json")):
        return
    # Not guessed: texts and forms are what a page of another origin may send without asking us first (CORS).
    raise UnsupportedMediaType(
        f"expected a JSON body with the header `Content-Type: application/json`, got "
        f"{'no such header' if given is None else repr(given)}. "
        f"With curl: -H 'Content-Type: application/json'."
    )


def _parsed(body: bytes) -> Any:
    try:
        return json.loads(body, parse_constant=_refuse_constant)
    except json.JSONDecodeError as exc:
        problem = f"{exc.msg} in line {exc.lineno}, column {exc.colno}"
    except UnicodeDecodeError as exc:
        problem = f"byte {exc.start} is not UTF-8"
    except RecursionError:
        problem = "arrays and objects that are nested too deeply"
    except ValueError as exc:
        problem = str(exc)
    raise InvalidJson(
        f"expected a body that is JSON, got something else: {problem}. Names and texts are written in double quotes."
    )


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name}, which JSON does not have")


def _check_fields(document: Any, most: int) -> None:
    count = 0
    unseen = [document]
    while unseen:
        value = unseen.pop()
        if not isinstance(value, (dict, list)):
            continue
        count += len(value)
        if count > most:
            raise InvalidRequest(
                f"expected at most {most:,} fields and items outside args, kwargs and metadata, got "
                f"more. `/openapi.json` describes the body."
            )
        if isinstance(value, list):
            unseen += value
        else:
            unseen += [inner for name, inner in value.items() if value is not document or name not in FREE_FORM]
