"""What the projects in ``projects/`` do under APScheduler 3.11.3: writes ``projects.json``.

Run it where that release is, and nothing of Duetime::

    python3.12 -m venv .v3
    .v3/bin/pip install apscheduler==3.11.3 sqlalchemy fastapi httpx time-machine pytz
    .v3/bin/python tests/v3/projects_of_v3.py

Time stands still at NOW. Each project's application is started, asked what ``requests.json`` says, and its jobs are
written down with their next fire times.
"""

# mypy: ignore-errors

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from datetime import datetime, timedelta
from importlib import import_module
from pathlib import Path
from zoneinfo import ZoneInfo

NOW = datetime(2027, 6, 2, 14, 30, 15, tzinfo=ZoneInfo("UTC"))
FIRES = 5
HERE = Path(__file__).parent


def times(job):
    """Return the job's fire times as v3 goes through them, without the jitter, which is made of chance."""
    found, moment = [], job.next_run_time
    if getattr(job.trigger, "jitter", None):
        job.trigger.jitter = None
        moment = job.trigger.get_next_fire_time(None, NOW)
    while moment is not None and len(found) < FIRES:
        found.append(moment.astimezone(ZoneInfo("UTC")).isoformat())
        moment = job.trigger.get_next_fire_time(moment, moment + timedelta(microseconds=1))
    return found


def look(name, requests):
    """Run one project in this process, and print what it does."""
    import time_machine
    from fastapi.testclient import TestClient

    sys.path.insert(0, str(Path.cwd()))
    with time_machine.travel(NOW, tick=False):
        module, _, attribute = name.partition(":")
        app = getattr(import_module(module), attribute)
        with TestClient(app) as client:
            statuses = [client.request(method, path, json=body).status_code for method, path, body in requests]
            named = [vars(loaded).get("scheduler") for loaded in list(sys.modules.values())]
            scheduler = next((each for each in named if hasattr(each, "get_jobs")), None) or app.state.scheduler
            jobs = [
                {
                    "id": job.id,
                    "func": job.func_ref,
                    "times": times(job),
                    "misfire_grace_time": job.misfire_grace_time,
                    "coalesce": job.coalesce,
                    "max_instances": job.max_instances,
                    "args": list(job.args),
                    "kwargs": dict(job.kwargs),
                }
                for job in scheduler.get_jobs()
            ]
    print(json.dumps({"statuses": statuses, "jobs": jobs}))  # noqa: T201


def main():
    wanted = json.loads((HERE / "projects" / "requests.json").read_text())
    facts = {}
    for name, case in wanted.items():
        with tempfile.TemporaryDirectory() as directory:
            place = Path(directory) / name
            shutil.copytree(HERE / "projects" / name, place)
            command = [sys.executable, "-W", "ignore", __file__, case["app"], json.dumps(case["requests"])]
            environment = {**os.environ, "TZ": "UTC"}
            done = subprocess.run(command, cwd=place, check=True, capture_output=True, text=True, env=environment)
            facts[name] = json.loads(done.stdout.splitlines()[-1])
    text = json.dumps({"now": NOW.isoformat(), "projects": facts}, indent=1)
    (HERE / "projects.json").write_text(text + "\n")


if __name__ == "__main__":
    time.tzset()
    if len(sys.argv) > 1:
        look(sys.argv[1], json.loads(sys.argv[2]))
    else:
        main()
