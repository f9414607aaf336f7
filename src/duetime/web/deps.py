"""What an application's handlers ask for: ``SchedulerDep`` and ``ServiceDep``."""

from __future__ import annotations

from typing import Annotated, cast

from fastapi import Depends
from fastapi.requests import HTTPConnection

from ..errors import NotStarted
from ..scheduler import DuetimeScheduler
from ..service import Service
from .runtime import Runtime

STATE_KEY = "duetime"
"""Name of the running Duetime in ``app.state`` and in the lifespan state (``request.state``)."""


def find_runtime(connection: HTTPConnection) -> Runtime:
    """Return the Duetime whose lifespan this request's or websocket's application runs in.

    :raises NotStarted: if there is none
    """
    application = connection.scope.get("app")
    found = getattr(getattr(application, "state", None), STATE_KEY, None)
    if found is None:  # A mounted application has a state of its own; the lifespan's state reaches it.
        found = connection.scope.get("state", {}).get(STATE_KEY)
    if found is None:
        raise NotStarted(
            "expected a running Duetime, got an application without one. Create it as "
            "`FastAPI(lifespan=duetime.lifespan)`, or enter `async with duetime.lifespan(app):` in its own "
            "lifespan. A test has to run the lifespan too: `with TestClient(app) as client:`."
        )
    return cast("Runtime", found)


# `async def`, because FastAPI sends plain functions through a thread, which costs more than the look-up.
async def get_scheduler(connection: HTTPConnection) -> DuetimeScheduler:
    """Return the running scheduler; the dependency behind :data:`SchedulerDep`.

    Replace it in tests with ``app.dependency_overrides[get_scheduler] = …``.

    :raises NotStarted: outside of the lifespan
    """
    return cast("DuetimeScheduler", find_runtime(connection).scheduler)


async def get_service(connection: HTTPConnection) -> Service:
    """Return the running service; the dependency behind :data:`ServiceDep`.

    :raises NotStarted: outside of the lifespan
    """
    return find_runtime(connection).service


SchedulerDep = Annotated[DuetimeScheduler, Depends(get_scheduler)]
"""A parameter of this type gets the running ``apscheduler.AsyncScheduler``, in handlers and websockets."""

ServiceDep = Annotated[Service, Depends(get_service)]
"""A parameter of this type gets the verbs of the REST API as Python calls."""
