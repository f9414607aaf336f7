"""``Duetime``: the one object users hold. It puts the parts together and runs them while an application runs."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from functools import cached_property
from importlib import import_module
from typing import Any, Self

from fastapi import APIRouter, FastAPI
from starlette.middleware.trustedhost import TrustedHostMiddleware

from . import builtin
from .broker import PostgresEventBroker
from .defining import Rules
from .errors import NotStarted
from .garbage import calm_collector
from .local import LocalDatabase
from .observe import LoopWatchdog
from .scheduler import DuetimeScheduler, Supervisor, build_scheduler
from .service import Service
from .settings import DatabaseUrl, Settings
from .store.connections import DirectConnections
from .store.driver import connect
from .tasks import TaskRegistry, registry
from .web import api, handlers, health
from .web.lifespan import lifespan

logger = logging.getLogger(__name__)


class Duetime:
    """Schedules, runs and remembers jobs in PostgreSQL, beside an application, without ever blocking its event loop.

    ::

        duetime = Duetime()
        app = FastAPI(lifespan=duetime.lifespan)
        app.include_router(duetime.router, prefix="/scheduler")  # optional

    Without a web application: ``async with duetime: await duetime.scheduler.add_schedule(…)``.

    :param settings: default: from the environment, see :class:`~duetime.Settings`
    :param registry: the tasks that may be named; default: those that ``@task`` has registered
    :ivar watchdog: how often and where the event loop stood still: ``duetime.watchdog.snapshot()``
    :raises InvalidSettings: if a setting has no meaning
    """

    def __init__(self, settings: Settings | None = None, *, registry: TaskRegistry = registry) -> None:
        self.settings = settings or Settings()
        self.registry = registry
        builtin.register(registry)
        url = self.settings.database
        self._local = LocalDatabase(self.settings.data_dir) if url is None else None
        self._connections = DirectConnections(self._database_url, size=self.settings.pool_size)
        self._broker = PostgresEventBroker("", channel=self.settings.schema_name, shares=self._connections)
        self._scheduler = build_scheduler(self.settings, self._connections, self._broker, registry)
        self._supervisor = Supervisor(self._scheduler, drain_timeout=self.settings.drain_timeout)
        self.watchdog = LoopWatchdog(self.settings.stall_threshold.total_seconds())
        self._service = Service(
            self._scheduler, self._scheduler.store, registry, self._problem, rules=Rules(self.settings.min_interval)
        )
        self._lifespan = lifespan(self)
        self._stack: AsyncExitStack | None = None

    async def _database_url(self) -> DatabaseUrl:
        """Return where the database is; starts the embedded one if that is the one."""
        if self._local is not None:
            return await self._local.start()
        assert self.settings.database is not None  # noqa: S101 - else there is a local one
        return self.settings.database

    async def connect(self) -> Any:
        """Open a connection to the database that Duetime stores in, for the caller to use and to close.

        So an application keeps its own tables in the same database, the embedded one too, which is started if need
        be: ``create_async_engine("postgresql+asyncpg://", async_creator=duetime.connect)``. It goes to the database's
        direct endpoint: past Neon's pooler.

        :returns: an ``asyncpg.Connection``
        :raises LocalDatabaseFailed: if the embedded PostgreSQL cannot be started
        """
        return await connect(await self._database_url())

    def _problem(self) -> str | None:
        crash = self._supervisor.last_crash
        return None if crash is None else f"the scheduler crashed ({type(crash).__name__}: {crash}) and starts again"

    @property
    def scheduler(self) -> DuetimeScheduler:
        """The scheduler, an ``apscheduler.AsyncScheduler``.

        Calls made before it has started wait for the database, within ``call_timeout``.
        """
        return self._scheduler

    @property
    def service(self) -> Service:
        """The verbs behind every door."""
        return self._service

    @cached_property
    def router(self) -> APIRouter:
        """The REST API, to be included under a prefix of the application's choice."""
        return api.build_router(self)

    def lifespan(self, app: FastAPI) -> AbstractAsyncContextManager[Mapping[str, Any]]:
        """Run Duetime for as long as the application runs: ``FastAPI(lifespan=duetime.lifespan)``.

        An application with a lifespan of its own enters this one inside it: ``async with duetime.lifespan(app):``.
        The application is not delayed: the scheduler connects in the background.
        """
        return self._lifespan(app)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Self]:
        """Run Duetime for as long as the block does; ``async with duetime:`` is the same."""
        if self._stack is not None:
            raise NotStarted("expected Duetime to be started once, and it runs already. Make a second Duetime().")
        async with AsyncExitStack() as stack:
            self._stack = stack
            stack.callback(setattr, self, "_stack", None)
            if self._local is not None:
                stack.push_async_callback(self._local.stop)
            stack.push_async_callback(self._connections.close)
            builtin.configure(allow_private=self.settings.http_allow_private)
            for module in self.settings.task_modules:
                import_module(module)
            if self.settings.tune_gc:
                stack.enter_context(calm_collector())
            self.watchdog.start()
            stack.callback(self.watchdog.stop)
            await stack.enter_async_context(self._supervisor)
            yield self

    def begin_stop(self) -> None:
        """Claim and start nothing from now on, ahead of the end of :meth:`running`: the drain time begins.

        For a server that has been told to stop and still has requests to answer. Call it on the event loop.
        """
        self._supervisor.begin_stop()

    def cut_short(self) -> None:
        """Stop without giving running jobs any more time. Call it on the event loop."""
        self._supervisor.cut_short()

    async def __aenter__(self) -> Self:
        self._entered = self.running()
        return await self._entered.__aenter__()

    async def __aexit__(self, *exc_info: object) -> None:
        await self._entered.__aexit__(*exc_info)  # type: ignore[arg-type]


def create_app(settings: Settings | None = None) -> FastAPI:
    """Return an application as ``duetime serve`` runs it: the API under ``/api``, health at the root.

    :param settings: default: from the environment
    """
    return application_of(Duetime(settings))


def application_of(duetime: Duetime) -> FastAPI:
    """Return the application that ``duetime serve`` runs."""
    settings = duetime.settings
    is_unguarded = not settings.is_public and settings.api_token is None and not settings.insecure
    app = FastAPI(
        title="Duetime",
        description="Schedules, fires and runs of jobs kept in PostgreSQL.",
        lifespan=duetime.lifespan,
    )
    handlers.install(app)
    if is_unguarded:
        # A page of a foreign site that has its name resolve to this machine still sends its own name (DNS rebinding).
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=["localhost", "127.0.0.1", "[", "::1"])
    app.include_router(health.health_router(duetime))
    app.include_router(duetime.router, prefix="/api")
    return app
