"""The web door: REST API, health, lifespan and dependencies for FastAPI."""

from __future__ import annotations

from .api import build_router as build_router
from .deps import SchedulerDep as SchedulerDep
from .deps import ServiceDep as ServiceDep
from .deps import get_scheduler as get_scheduler
from .deps import get_service as get_service
from .handlers import attach as attach
from .handlers import install as install
from .handlers import on_duetime_error as on_duetime_error
from .health import health_router as health_router
from .lifespan import lifespan as lifespan
from .problems import Problem as Problem
from .runtime import Runtime as Runtime
