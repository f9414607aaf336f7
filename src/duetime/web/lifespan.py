"""Duetime inside an application's lifespan."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

from starlette.applications import Starlette

from .deps import STATE_KEY
from .handlers import attach, mounted_applications
from .runtime import Runtime


def lifespan(runtime: Runtime) -> Callable[[Starlette], AbstractAsyncContextManager[dict[str, Runtime]]]:
    """Return a lifespan that runs ``runtime`` as long as the application, and lets ``SchedulerDep`` find it.

    It is an application's whole lifespan (``FastAPI(lifespan=…)``) or a part of one. What the tasks need is
    opened before it and closed after it, because jobs run from its beginning to its end::

        @asynccontextmanager
        async def lifespan(app: FastAPI) -> AsyncIterator[None]:
            engine = create_async_engine(...)
            async with duetime.lifespan(app):
                yield
            await engine.dispose()

    A :class:`~duetime.errors.DuetimeError` that leaves a handler of the application, or of one mounted in it,
    becomes a problem document, unless the application handles it itself (see :func:`duetime.web.attach`).
    """

    @asynccontextmanager
    async def run(app: Starlette) -> AsyncIterator[dict[str, Runtime]]:
        attach(app)
        applications = list(mounted_applications(app))
        async with runtime.running():
            for application in applications:
                setattr(application.state, STATE_KEY, runtime)
            try:
                yield {STATE_KEY: runtime}
            finally:
                for application in applications:
                    if getattr(application.state, STATE_KEY, None) is runtime:
                        delattr(application.state, STATE_KEY)

    return run
