"""Tasks that come with Duetime: ``http_request`` (extra ``server``) and ``notify`` (extra ``notify``).

Importing this package loads neither httpx nor apprise and registers nothing; :func:`register` does.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

from duetime.tasks import TaskRegistry, registry

from .addresses import private_allowed

logger = logging.getLogger(__name__)


def register(into: TaskRegistry = registry) -> list[str]:
    """Register the built-in tasks whose libraries are installed, and return their names.

    Calling it again changes nothing. A task whose library is missing is left out, with a log line that says
    what to install.

    :raises DuplicateTask: if the application has a task of the same name
    """
    names: list[str] = []
    if _installed("httpx", "httpcore", needed_for="http_request", extra="server"):
        from .http import http_request

        _put(into, http_request, "http_request")
        names.append("http_request")
    if _installed("apprise", needed_for="notify", extra="notify"):
        from .notify import notify

        _put(into, notify, "notify")
        names.append("notify")
    return names


def configure(*, allow_private: bool) -> None:
    """Set whether tasks may reach addresses that are not public (private, loopback …); at first they may not.

    It holds for the calling task or thread and for all that is started from it later: call it where the
    scheduler is started, before that. It is ``Settings.http_allow_private``.
    """
    private_allowed.set(allow_private)


def _installed(*modules: str, needed_for: str, extra: str) -> bool:
    missing = [module for module in modules if find_spec(module) is None]
    if missing:
        logger.info(
            "task %s is not available: %s is not installed; pip install 'duetime[%s]'",
            needed_for,
            missing[0],
            extra,
        )
    return not missing


def _put(into: TaskRegistry, func: Callable[..., Any], name: str) -> None:
    # Importing the module has put it into the default registry, where the options of its decorator are.
    if into is not registry:
        into.add(func, name=name, options=registry.find(name).options)
