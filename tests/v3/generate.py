"""Write the rows that real releases of APScheduler 3 store, with the fire times that they calculate.

``python -m tests.v3.generate`` makes an environment for each pair of release and Python below, in ``build/v3/`` at
the root of the project, runs ``application/write_rows.py`` in it, and writes ``rows/<release>.json.xz``. It needs the
Pythons, on the path as ``python2.7`` and so on or installed by pyenv, and a package index; what it wrote is kept in
the repository, so the tests need neither. ``--only 3.11.3`` does a part, ``--list`` says which pairs there are.
"""

from __future__ import annotations

import argparse
import json
import lzma
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
ROWS = HERE / "rows"
ENVIRONMENTS = HERE.parents[1] / "build" / "v3"


@dataclass(frozen=True, slots=True)
class Environment:
    """A release on a Python, with what else is installed beside it."""

    release: str
    python: str
    more: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return f"{self.release}-py{self.python}"

    @property
    def folder(self) -> Path:
        return ENVIRONMENTS / self.name


# tzlocal 2 gives zones of pytz, 3 and 4 those of pytz_deprecation_shim, 5 those of zoneinfo.
_OLD = ("sqlalchemy<2", "python-dateutil", "pytz", "setuptools<60")
_SHIM = (*_OLD, "tzlocal>=4,<5", "pytz_deprecation_shim", "tzdata")
# The pip of Python 3.6 takes wheels that are not for it.
_PY36 = ("importlib-metadata<4.9", "zipp<3.7", "importlib-resources<5.5", "typing-extensions<4.2", "greenlet<2.1")
_NEW = ("sqlalchemy>=2", "python-dateutil", "pytz", "setuptools<81", "tzdata")

PAIRS = (
    Environment("3.6.3", "2.7", (*_OLD, "tzlocal<3")),
    Environment("3.6.3", "3.6", (*_OLD, *_PY36, "tzlocal<3")),
    Environment("3.6.3", "3.8", _SHIM),
    Environment("3.7.0", "2.7", (*_OLD, "tzlocal<3")),
    Environment("3.7.0", "3.7", (*_OLD, "tzlocal<3")),
    Environment("3.8.1", "2.7", (*_OLD, "tzlocal<3")),
    Environment("3.8.1", "3.8", (*_OLD, "tzlocal<3")),
    Environment("3.9.1.post1", "3.6", (*_SHIM, *_PY36)),
    Environment("3.9.1.post1", "3.9", _SHIM),
    Environment("3.10.4", "3.6", (*_SHIM, *_PY36)),
    Environment("3.10.4", "3.9", _SHIM),
    Environment("3.10.4", "3.10", (*_NEW, "tzlocal>=5")),
    Environment("3.10.4", "3.12", (*_NEW, "tzlocal>=5")),
    Environment("3.11.3", "3.8", (*_NEW, "backports.zoneinfo", "pytz_deprecation_shim")),
    Environment("3.11.3", "3.11", _NEW),
    Environment("3.11.3", "3.13", (*_NEW, "pytz_deprecation_shim")),
)


def interpreter(version: str) -> str | None:
    """Return the program of that Python, from the path or from pyenv."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    for folder in sorted(pyenv.glob(f"{version}.*")):
        if (folder / "bin" / "python").exists():
            return str(folder / "bin" / "python")
    return shutil.which(f"python{version}")


def prepare(environment: Environment, python: str) -> None:
    """Install the release and what it needs, unless that was done before."""
    done = environment.folder / ".complete"
    if done.exists():
        return
    shutil.rmtree(environment.folder, ignore_errors=True)
    wanted = [f"apscheduler=={environment.release}", *environment.more]
    command = [python, "-m", "pip", "install", "--quiet", "--target", str(environment.folder), *wanted]
    subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
    done.touch()


def rows_of(environment: Environment, python: str) -> bytes:
    """Return what ``write_rows.py`` prints in that environment."""
    path = os.pathsep.join([str(environment.folder), str(HERE / "application")])
    inside = {"PYTHONPATH": path, "PATH": os.environ["PATH"], "TZ": "Europe/Berlin", "PYTHONHASHSEED": "0"}
    script = HERE / "application" / "write_rows.py"
    return subprocess.run([python, "-B", str(script)], check=True, stdout=subprocess.PIPE, env=inside).stdout


def main() -> int:
    """Generate what was asked for; status 1 if a Python is missing or an environment failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="the releases that begin with this")
    parser.add_argument("--list", action="store_true", help="say which pairs there are")
    options = parser.parse_args()
    failed = 0
    written: dict[str, list[object]] = {}
    for environment in PAIRS:
        if not environment.release.startswith(options.only):
            continue
        python = interpreter(environment.python)
        if options.list or python is None:
            sys.stdout.write(f"{environment.name}: {'found' if python else 'no such Python here'}\n")
            failed += python is None
            continue
        try:
            prepare(environment, python)
            rows = rows_of(environment, python)
        except subprocess.CalledProcessError as exc:
            sys.stdout.write(f"{environment.name}: status {exc.returncode} of {exc.cmd[2:4]}\n")
            failed += 1
            continue
        written.setdefault(environment.release, []).append(json.loads(rows))
        sys.stdout.write(f"{environment.name}: {len(rows)} bytes\n")
    ROWS.mkdir(exist_ok=True)
    for release, environments in written.items():
        # In one file, so that what the Pythons have in common is there once.
        text = json.dumps(environments, sort_keys=True).encode()
        (ROWS / f"{release}.json.xz").write_bytes(lzma.compress(text, preset=9 | lzma.PRESET_EXTREME))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
