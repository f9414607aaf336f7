"""Real releases of APScheduler 3, each in a folder of its own that is made once: v3 and v4 are the same package."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .generate import ENVIRONMENTS

APPLICATION = Path(__file__).parent / "application"

RELEASES = {
    "3.6.3": ("sqlalchemy<2", "pytz", "tzlocal<3", "setuptools<60", "six"),
    "3.10.4": ("sqlalchemy>=2", "pytz", "tzlocal>=5", "tzdata", "setuptools<81"),
    "3.11.3": ("sqlalchemy>=2", "tzlocal>=5", "tzdata", "setuptools<81"),
}
"""The releases that are run, with what each needs on the Python of the tests."""

_INSTALL_WITHIN = 300


def environment_of(release: str) -> dict[str, str]:
    """Return the environment variables of a process that is to have that release, installed if need be."""
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    folder = ENVIRONMENTS / f"run-{release}-py{version}"
    ENVIRONMENTS.mkdir(parents=True, exist_ok=True)
    with (ENVIRONMENTS / f"run-{release}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another run may be making it
        done = folder / ".complete"
        wanted = [f"apscheduler=={release}", "psycopg2-binary", *RELEASES[release]]
        if not done.exists() or done.read_text() != " ".join(wanted):
            shutil.rmtree(folder, ignore_errors=True)
            command = [sys.executable, "-m", "pip", "install", "--quiet", "--target", str(folder), *wanted]
            subprocess.run(
                command,
                check=True,
                timeout=_INSTALL_WITHIN,
                stdin=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env={**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_NO_INPUT": "1"},
            )
            done.write_text(" ".join(wanted))
    path = os.pathsep.join([str(folder), str(APPLICATION)])
    return {"PYTHONPATH": path, "PATH": os.environ["PATH"], "TZ": "Europe/Berlin", "PYTHONWARNINGS": "ignore"}


def command_of(order: dict[str, Any]) -> list[str]:
    """Return the command that does what ``application/v3_process.py`` is ordered to."""
    return [sys.executable, "-B", str(APPLICATION / "v3_process.py"), json.dumps(order)]


def ask(release: str, what: str, **order: Any) -> Any:
    """Let a process of that release do one thing, and return what it prints."""
    done = subprocess.run(
        command_of({"what": what}),
        env=environment_of(release),
        input=json.dumps(order).encode(),
        stdout=subprocess.PIPE,
        check=True,
        timeout=120,
    )
    return json.loads(done.stdout)


def read_diary(path: Path) -> Sequence[dict[str, Any]]:
    """Return the lines of a diary that are whole."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1]]
