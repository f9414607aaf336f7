"""Exception handlers: how errors become problem documents, in our application and in those of others."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Iterator, Mapping
from http import HTTPStatus
from typing import Any, cast

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware.exceptions import ExceptionMiddleware
from starlette.requests import HTTPConnection, Request
from starlette.responses import Response
from starlette.routing import Mount
from starlette.types import ExceptionHandler
from starlette.websockets import WebSocket, WebSocketState

from ..errors import DuetimeError
from .problems import http_problem, internal_error, problem_response, share_schema, status_of
from .validation import explain

logger = logging.getLogger(__name__)


def install(app: FastAPI) -> None:
    """Make every error of an application a problem document, before it starts.

    For an application that is all ours (``duetime serve``): it takes over validation errors, unknown paths
    and methods and unexpected exceptions too. :func:`attach` leaves those alone.
    """
    app.add_exception_handler(DuetimeError, cast("ExceptionHandler", on_duetime_error))
    app.add_exception_handler(RequestValidationError, _on_invalid_request)
    app.add_exception_handler(HTTPException, _on_http_exception)
    app.add_exception_handler(Exception, _on_unexpected)
    build = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            share_schema(build())
        return build()

    app.openapi = openapi  # type: ignore[method-assign]  # FastAPI's documented way to extend the document


def attach(app: Starlette) -> None:
    """Make a :class:`DuetimeError` that leaves a handler of a running application a problem document.

    For applications of others, from inside their lifespan, when their middleware is built already.
    Applications mounted in it are served too. What the application handles by itself, it goes on handling:
    nothing happens if it has a handler for ``DuetimeError``, and one for a specific error or for a base that
    ours share with others (``ScheduleLookupError``, ``ConnectionError``) wins. Only one for ``Exception``
    does not.
    """
    for application in mounted_applications(app):
        own = dict(application.exception_handlers)
        if DuetimeError in own:
            continue
        handler = _handler_beside(own)
        if application.middleware_stack is None:
            application.add_exception_handler(DuetimeError, handler)
        elif (middleware := _exception_middleware(application)) is not None:
            middleware.add_exception_handler(DuetimeError, handler)
        else:
            logger.warning(
                "Errors of Duetime that leave a handler will be answered with status 500, because a "
                "middleware of this application hides its exception handlers. Register ours first: "
                "app.add_exception_handler(DuetimeError, duetime.web.on_duetime_error)."
            )


def mounted_applications(app: Starlette) -> Iterator[Starlette]:
    """Yield the application and those mounted in it, at any depth."""
    yield app
    for route in app.routes:
        if isinstance(route, Mount) and isinstance(route.app, Starlette):
            yield from mounted_applications(route.app)


async def on_duetime_error(connection: HTTPConnection, exc: Exception) -> Response | None:
    """Answer a request, or close a websocket, that ended with a :class:`DuetimeError`."""
    error = cast("DuetimeError", exc)
    status = status_of(error)
    if status == 500:
        logger.error("A request ended with an error: %s", error.message, exc_info=exc)
    if isinstance(connection, WebSocket):
        if connection.client_state is WebSocketState.DISCONNECTED:
            return None
        # RFC 6455, section 7.4.1, and its registry: 1013 try again later, 1011 internal error, 1008 policy
        # violation.
        await connection.close({503: 1013, 500: 1011}.get(status, 1008), reason=error.code)
        return None
    return problem_response(error)


def _handler_beside(own: Mapping[Any, ExceptionHandler]) -> ExceptionHandler:
    """Return the handler for an application that has these handlers of its own."""

    async def handle(connection: HTTPConnection, exc: Exception) -> Response | None:
        for kind in type(exc).__mro__:
            handler: Any = None if kind is Exception else own.get(kind)
            if handler is not None and inspect.iscoroutinefunction(handler):
                return cast("Response | None", await handler(connection, exc))
            if handler is not None:
                return cast("Response | None", await run_in_threadpool(handler, connection, exc))
        return await on_duetime_error(connection, exc)

    return cast("ExceptionHandler", handle)


def _exception_middleware(app: Starlette) -> ExceptionMiddleware | None:
    """Return the layer of a built application that looks up exception handlers, if the others show it."""
    layer: Any = app.middleware_stack
    while layer is not None and not isinstance(layer, ExceptionMiddleware):
        layer = getattr(layer, "app", None)
    return layer


async def _on_invalid_request(request: Request, exc: Exception) -> Response:
    return problem_response(explain(cast("RequestValidationError", exc)))


async def _on_http_exception(request: Request, exc: Exception) -> Response:
    error = cast("HTTPException", exc)
    if error.status_code < 400:
        return Response(status_code=error.status_code, headers=error.headers)
    detail = str(error.detail)
    if error.status_code == 404 and detail == HTTPStatus.NOT_FOUND.phrase:
        detail = (
            f"expected a path of this API, got {request.url.path!r}. `/openapi.json` lists them; a slash "
            f"that belongs to an id is written %2F."
        )
    elif error.status_code == 405 and detail == HTTPStatus.METHOD_NOT_ALLOWED.phrase:
        detail = f"expected one of the methods {(error.headers or {}).get('Allow')}, got {request.method}."
    return http_problem(error.status_code, detail, error.headers)


async def _on_unexpected(request: Request, exc: Exception) -> Response:
    # Not logged here: Starlette raises the exception again after this answer, and the server logs its
    # traceback.
    return internal_error()
