"""A PostgreSQL server on loopback that asks for a password, and a pooler in front of it, for as long as a block lasts.

They are run with the programs of any PostgreSQL of this machine: that of a Debian package, or the one that comes with
``duetime[local]``. Both refuse to be root's, so root has them run as the user of the embedded server.
"""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import asyncpg

from duetime.database_url import DatabaseUrl
from duetime.local.cluster import Identity, Programs, server_environment

USER = "tester"
PASSWORD = "not a secret: 100 %/?@"  # what an address has to encode

_START_TIMEOUT = 60

# What differs from the embedded server on purpose, because nothing may depend on it: the zone of the sessions.
_SERVER_SETTINGS = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    "max_connections": "300",
    "fsync": "off",
    "timezone": "Asia/Kolkata",
    "max_parallel_workers_per_gather": "0",  # it needs more shared memory than a container's /dev/shm has
}

# Each transaction gets the session that has rested longest: so it is hardly ever that of the client's last one.
_POOLER_SETTINGS = {
    "listen_addr": "127.0.0.1",
    "unix_socket_dir": "",
    "pool_mode": "transaction",
    "server_round_robin": "1",
    "max_client_conn": "1000",
    "default_pool_size": "12",
    "ignore_startup_parameters": "extra_float_digits",
}


def programs_in(directory: Path) -> Programs:
    """Return PostgreSQL's programs in that directory.

    :raises FileNotFoundError: if there are none
    """
    if not (directory / "postgres").exists():
        raise FileNotFoundError(
            f"expected PostgreSQL's programs in {str(directory)!r}, got none. Debian 12: apt install postgresql."
        )
    text = subprocess.run(
        [directory / "postgres", "--version"], check=True, capture_output=True, text=True, stdin=subprocess.DEVNULL
    ).stdout
    major = re.search(r"\) (\d+)", text)
    assert major, text
    return Programs(directory, int(major[1]))


def server_programs() -> Programs:
    """Return what tests start servers of their own with: the programs of DUETIME_TEST_PROGRAMS, or the embedded ones.

    :raises FileNotFoundError: if there are none in that directory
    """
    if given := os.environ.get("DUETIME_TEST_PROGRAMS"):
        return programs_in(Path(given))
    return embedded_programs()


def past_the_pooler(url: DatabaseUrl) -> DatabaseUrl:
    """Return the direct address of a database, which is the same where the tests run without a pooler."""
    server = os.environ.get("DUETIME_TEST_SERVER")
    if not (server and os.environ.get("DUETIME_TEST_POOLER")):
        return url
    return replace(DatabaseUrl.parse(server), database=url.database)


def embedded_programs() -> Programs:
    """Return the programs of the embedded server."""
    installed = Programs.installed()
    return installed[max(installed)].runnable_by(Identity.for_cluster(Path("nowhere")))


@contextmanager
def a_server(programs: Programs) -> Iterator[DatabaseUrl]:
    """Run a server of its own cluster, and yield its superuser's address."""
    identity = Identity.for_cluster(Path("nowhere"))
    with _directory(identity) as directory:
        cluster = directory / "cluster"
        password_file = directory / "password"
        password_file.write_text(PASSWORD)
        identity.own(password_file)
        url = DatabaseUrl("postgres", host="127.0.0.1", port=_free_port(), user=USER, password=PASSWORD)
        # Text sorts as a language does, where the programs know one; the embedded server sorts by code point.
        sorting = ["--locale-provider=icu", "--icu-locale=en-US"] if _knows_languages(programs) else []
        _run(
            [
                programs["initdb"],
                f"--pgdata={cluster}",
                f"--username={USER}",
                f"--pwfile={password_file}",
                "--auth=scram-sha-256",
                "--encoding=UTF8",
                "--locale=C",
                *sorting,
                "--no-sync",
                "--no-instructions",
            ],
            identity,
        )
        options = [f"-c{name}={value}" for name, value in {**_SERVER_SETTINGS, "port": str(url.port)}.items()]
        command = [programs["postgres"], f"-D{cluster}", *options]
        with _process(command, url, identity, directory / "log", signal.SIGQUIT):
            yield url


@contextmanager
def a_pooler(server: DatabaseUrl) -> Iterator[DatabaseUrl]:
    """Run PgBouncer in transaction mode in front of a server, and yield the address through it.

    Prepared statements are off in the address: PgBouncer carries them from 1.21 on, and Debian 12 has 1.18.
    """
    program = shutil.which("pgbouncer", path=f"{os.defpath}:/usr/sbin:/usr/local/sbin:{os.environ.get('PATH', '')}")
    if program is None:
        raise FileNotFoundError("expected pgbouncer on this machine, got none. Debian: apt install pgbouncer.")
    identity = Identity.for_cluster(Path("nowhere"))
    with _directory(identity) as directory:
        users = directory / "users.txt"
        users.write_text(f'"{server.user}" "{server.password or ""}"\n')
        url = replace(server, host="127.0.0.1", port=_free_port(), statement_cache_size=0)
        settings = {
            **_POOLER_SETTINGS,
            "listen_port": str(url.port),
            "auth_file": str(users),
            "auth_type": "scram-sha-256" if server.password else "trust",
        }
        configuration = directory / "pgbouncer.ini"
        configuration.write_text(
            f"[databases]\n* = host={server.host} port={server.port}\n[pgbouncer]\n"
            + "".join(f"{name} = {value}\n" for name, value in settings.items())
        )
        for path in (users, configuration):
            identity.own(path)
        with _process([program, str(configuration)], url, identity, directory / "log", signal.SIGTERM):
            yield url


@contextmanager
def _directory(identity: Identity) -> Iterator[Path]:
    """Lend a private directory that the user can reach."""
    directory = Path(tempfile.mkdtemp(prefix="duetime-matrix-", dir="/tmp"))
    try:
        identity.own(directory)
        yield directory
    finally:
        shutil.rmtree(directory)


@contextmanager
def _process(
    command: list[str], url: DatabaseUrl, identity: Identity, log: Path, ending: signal.Signals
) -> Iterator[DatabaseUrl]:
    """Run a server, and yield its address when it takes connections; it is gone at the end of the block."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            cwd="/",
            env=server_environment(),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,  # a Ctrl-C is for the tests, which still need it while they end
            **identity.arguments,
        )
    try:
        asyncio.run(_await_answer(process, url, log))
        yield url
    finally:
        if process.poll() is None:
            process.send_signal(ending)
        process.wait(60)


async def _await_answer(process: subprocess.Popen[bytes], url: DatabaseUrl, log: Path) -> None:
    deadline = time.monotonic() + _START_TIMEOUT
    refusal: BaseException | None = None
    while process.poll() is None and time.monotonic() < deadline:
        try:
            connection = await asyncpg.connect(**url.asyncpg_arguments(), timeout=5)
        except (OSError, TimeoutError, asyncpg.PostgresError) as error:
            refusal = error
            await asyncio.sleep(0.05)
        else:
            await connection.close()
            return
    raise RuntimeError(
        f"expected a server that takes connections, got {refusal!r} and:\n{log.read_text(errors='replace')[-2000:]}"
    )


def _knows_languages(programs: Programs) -> bool:
    configured = subprocess.run(
        [programs["pg_config"], "--configure"], check=False, capture_output=True, text=True, stdin=subprocess.DEVNULL
    )
    return "--with-icu" in configured.stdout


def _run(command: list[str], identity: Identity) -> None:
    finished = subprocess.run(
        command,
        cwd="/",
        env=server_environment(),
        check=False,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        **identity.arguments,
    )
    if finished.returncode:
        raise RuntimeError(f"expected {command[0]} to succeed, got: {finished.stderr.strip()}")


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])
