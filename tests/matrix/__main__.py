"""Runs a command, by default all tests, against another server than the embedded one.

``python -m tests.matrix [--programs DIRECTORY] [--pooler] [command …]``

The server is a new one that asks for a password, and is gone at the end. The command finds these variables:

``DUETIME_TEST_SERVER``    address of the server, the superuser's
``DUETIME_TEST_PROGRAMS``  directory of its programs, for tests that start servers of their own
``DUETIME_TEST_POOLER``    with ``--pooler``: the address through PgBouncer in transaction mode
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import NoReturn

from .servers import a_pooler, a_server, programs_in, server_programs


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.matrix", description="Run tests against another server.")
    parser.add_argument(
        "--programs", type=Path, help="directory of PostgreSQL's programs, such as /usr/lib/postgresql/15/bin"
    )
    parser.add_argument("--pooler", action="store_true", help="put PgBouncer in transaction mode between")
    parser.add_argument("command", nargs=argparse.REMAINDER, help="default: pytest, with all tests")
    options = parser.parse_args()
    command = options.command or [sys.executable, "-m", "pytest"]
    signal.signal(signal.SIGTERM, _end)
    signal.signal(signal.SIGHUP, _end)
    with ExitStack() as stack:
        programs = server_programs() if options.programs is None else programs_in(options.programs)
        server = stack.enter_context(a_server(programs))
        variables = {"DUETIME_TEST_SERVER": server.text, "DUETIME_TEST_PROGRAMS": str(programs.directory)}
        if options.pooler:
            variables["DUETIME_TEST_POOLER"] = stack.enter_context(a_pooler(server)).text
        process = subprocess.Popen(command, env={**os.environ, **variables})
        try:
            return process.wait()
        except KeyboardInterrupt:
            return process.wait()  # it has reached the command too, which may use the server until its end
        except SystemExit:
            process.terminate()
            process.wait()
            raise


def _end(number: int, _frame: object) -> NoReturn:
    sys.exit(128 + number)


sys.exit(main())
