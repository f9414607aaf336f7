"""A request's way through the door: who may pass, how much is read, what the path names, how errors leave."""

from __future__ import annotations

import functools
import inspect
import logging
from collections import defaultdict
from collections.abc import Awaitable, Callable, Coroutine
from typing import Annotated, Any, ClassVar, get_args, get_origin
from urllib.parse import unquote_to_bytes

from fastapi import Request, Response, params
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic import BaseModel
from starlette.requests import ClientDisconnect
from starlette.routing import Match
from starlette.types import Receive, Scope, Send

from ..errors import DuetimeError
from .auth import admit
from .bodies import MAX_FIELDS, MAX_FIELDS_OF_MANY, BoundedRequest
from .problems import http_problem, internal_error, method_not_allowed, problem_response, status_of
from .runtime import Runtime
from .validation import explain

logger = logging.getLogger(__name__)

MIN_BODY_LIMIT = 2 * 1024 * 1024
"""Bytes that a body may have; more if ``Settings.max_arguments_bytes`` asks for more."""


class DoorRoute(APIRoute):
    """A route of ours, in our application or in another's: its errors are problem documents in both.

    A path parameter is exactly one segment of the path as it was sent, decoded after the match: an id may
    hold any character, and ``a%2Fpause`` is the id ``a/pause`` where ``a/pause`` is the id ``a`` and the verb
    ``pause``.
    """

    runtime: ClassVar[Runtime]
    methods_of: ClassVar[defaultdict[str, set[str]]]

    def __init__(self, path: str, endpoint: Callable[..., Awaitable[Any]], **options: Any) -> None:
        super().__init__(path, _foreseen(endpoint), **options)
        self.shapes = _shapes(endpoint)
        self.methods_of[self.path] |= self.methods or set()

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        """Match the path as it was sent, so that an encoded slash does not end a segment."""
        sent = sent_path(scope) if scope["type"] == "http" else None
        if sent is None:
            return super().matches(scope)
        match, child_scope = super().matches({**scope, "path": sent})
        if match is not Match.NONE:
            found = child_scope["path_params"]
            own = {name: _decoded(found[name]) for name in self.param_convertors if isinstance(found[name], str)}
            child_scope["path_params"] = {**found, **own}
        return match, child_scope

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer the request; a wrong method too, naming all that the path has."""
        if self.methods and scope["method"] not in self.methods:
            response = method_not_allowed(scope["method"], sorted(self.methods_of[self.path]))
            await response(scope, receive, send)
        else:
            await super().handle(scope, receive, send)

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return FastAPI's handler with ours around it."""
        handle = super().get_route_handler()

        async def answer(request: Request) -> Response:
            try:
                admit(request, self.runtime)
                limit = max(MIN_BODY_LIMIT, 2 * self.runtime.settings.max_arguments_bytes)
                most = MAX_FIELDS_OF_MANY if self.path.endswith("/bulk") else MAX_FIELDS
                bounded = BoundedRequest(request.scope, request.receive, limit=limit, max_fields=most)
                if self.body_field is not None and await bounded.body():
                    await bounded.json()
                return await handle(bounded)
            except RequestValidationError as exc:
                return problem_response(explain(exc, self.shapes))
            except DuetimeError as exc:
                if status_of(exc) == 500:
                    logger.error("%s %s failed: %s", request.method, request.url.path, exc.message, exc_info=exc)
                return problem_response(exc)
            except ClientDisconnect:
                return http_problem(400, "expected the whole body, got a part of it.")  # to nobody

        return answer


def door_route(runtime: Runtime) -> type[DoorRoute]:
    """Return the route class of one runtime's router."""
    return type("DoorRoute", (DoorRoute,), {"runtime": runtime, "methods_of": defaultdict(set)})


def sent_path(scope: Scope) -> str | None:
    """Return the path with the ``/`` and ``%`` inside its segments still encoded, or None where there are none.

    ``raw_path`` is optional in ASGI, and a middleware may have changed ``path`` alone. Where it does not tell
    about ``path``, the segments of ``path`` are all there is, and an id with a slash cannot be named.
    """
    path: str = scope["path"]
    root: str = scope.get("root_path", "")
    raw: bytes = (scope.get("raw_path") or b"").partition(b"?")[0]
    if b"%" not in raw and "%" not in path:
        return None
    if not path.startswith(root):
        root = ""
    segments = raw.split(b"/")
    first = root.count("/") + 1  # what Starlette compares with the root path stays as it is
    if _decoded(raw) != path or _decoded(b"/".join(segments[:first])) != root:
        return root + _encoded(path[len(root) :])
    return "/".join([root, *(_encoded(_decoded(segment), slash="%2F") for segment in segments[first:])])


def external_path(scope: Scope) -> str:
    """Return the request's path as its sender sees it, before a proxy took the ``root_path`` away."""
    path: str = scope["path"]
    root: str = scope.get("root_path", "").rstrip("/")
    return path if path.startswith(root) else root + path


def _encoded(text: str, slash: str = "/") -> str:
    return text.replace("%", "%25").replace("/", slash)


def _decoded(text: str | bytes) -> str:
    return unquote_to_bytes(text).decode("utf-8", "replace")


def _foreseen(endpoint: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    """Return the endpoint with an answer to exceptions that nobody foresaw.

    Around the endpoint and not around the whole route, because what an application's own dependencies raise
    is for the application's own handlers.
    """

    @functools.wraps(endpoint)
    async def answer(*args: Any, **kwargs: Any) -> Any:
        try:
            return await endpoint(*args, **kwargs)
        except DuetimeError:
            raise
        except Exception:
            logger.exception("%s failed", endpoint.__name__)
            return internal_error()

    return answer


def _shapes(endpoint: Callable[..., Any]) -> dict[str, Any]:
    """Return the models of an endpoint's parameters by the part of the request that they describe."""
    shapes = {}
    for parameter in inspect.signature(endpoint).parameters.values():
        model, *notes = (
            get_args(parameter.annotation) if get_origin(parameter.annotation) is Annotated else (parameter.annotation,)
        )
        if isinstance(model, type) and issubclass(model, BaseModel):
            shapes["query" if any(isinstance(note, params.Query) for note in notes) else "body"] = model
    return shapes
