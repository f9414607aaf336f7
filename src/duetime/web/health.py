"""``/health/live`` and ``/health/ready``, as platforms ask them: without a token, at the root."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any, Literal

from fastapi import APIRouter, Response
from pydantic import BaseModel

from ..errors import DuetimeError
from ..records import Readiness
from .runtime import Runtime

logger = logging.getLogger(__name__)

READY_DEADLINE = 2.0
"""Seconds after which ``/health/ready`` answers "not ready", whatever the database does."""

NO_STORE = {"Cache-Control": "no-store"}


class Liveness(BaseModel):
    """The process answers."""

    status: Literal["live"] = "live"


def health_router(runtime: Runtime) -> APIRouter:
    """Return one node's health routes: ``GET`` and ``HEAD`` of ``/health/live`` and ``/health/ready``."""
    router = APIRouter(tags=["health"])

    async def live(response: Response) -> Liveness:
        """Answer at once, without the database: one that is away is no reason to restart this node."""
        response.headers.update(NO_STORE)
        return Liveness()

    async def ready(response: Response) -> Readiness:
        """Say within about two seconds whether this node can do its work, and if not, why."""
        response.headers.update(NO_STORE)
        readiness = await _readiness(runtime)
        if not readiness.ready:
            response.status_code = 503
        return readiness

    def add(path: str, endpoint: Callable[[Response], Awaitable[Any]], **documented: Any) -> None:
        router.add_api_route(path, endpoint, methods=["GET"], **documented)
        # Some load balancers ask with HEAD. A route of its own, because an operation id names one method.
        router.add_api_route(path, endpoint, methods=["HEAD"], include_in_schema=False)

    add("/health/live", live, summary="Is the process up?", response_description="It is.")
    add(
        "/health/ready",
        ready,
        summary="Can this node do its work?",
        response_description="It can.",
        responses={503: {"model": Readiness, "description": "It cannot; `reason` says why."}},
    )
    return router


async def _readiness(runtime: Runtime) -> Readiness:
    try:
        async with asyncio.timeout(READY_DEADLINE):
            return await runtime.service.readiness()
    except TimeoutError:
        reason = f"expected an answer within {READY_DEADLINE:g} s, got none. Is the database reachable?"
    except DuetimeError as exc:
        reason = exc.message
    except Exception:
        logger.exception("The readiness of this node cannot be found out")
        reason = "expected the state of this node, got an internal error, which the log describes."
    return Readiness(ready=False, reason=reason, scheduler="unknown", database="unknown", node="unknown")
