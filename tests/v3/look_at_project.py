"""Runs an application that was rewritten, asks it what it is told to, and prints what is scheduled then.

``python look_at_project.py MODULE:APP REQUESTS COUNT``, in the project's directory: COUNT schedules are waited for.
"""

from __future__ import annotations

import asyncio
import json
import sys
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path
from typing import Any

from fastapi.testclient import TestClient

from duetime.commands import ScheduleQuery


async def schedules(app: Any, count: int) -> list[dict[str, Any]]:
    """Return all schedules, when there are so many."""
    deadline = asyncio.get_running_loop().time() + 20
    while True:
        page = await app.state.duetime.service.schedules(ScheduleQuery(limit=200))
        if len(page.items) >= count or asyncio.get_running_loop().time() > deadline:
            return [each.model_dump(mode="json") for each in page.items]
        await asyncio.sleep(0.02)


def main(name: str, requests: str, count: str) -> None:
    """Print statuses and schedules as one line of JSON."""
    sys.path.insert(0, str(Path.cwd()))
    module, _, attribute = name.partition(":")
    app = getattr(import_module(module), attribute)
    started = datetime.now(UTC)
    with TestClient(app) as client:
        statuses = [client.request(method, path, json=body).status_code for method, path, body in json.loads(requests)]
        assert client.portal is not None
        found = client.portal.call(schedules, app, int(count))
    print(json.dumps({"started": started.isoformat(), "statuses": statuses, "schedules": found}))  # noqa: T201


if __name__ == "__main__":
    main(*sys.argv[1:])
