"""The command line: what it starts, what it refuses, with which words and exit status."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Mapping, MutableMapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from duetime.cli import _PlainStartupErrors
from duetime.errors import InvalidSettings
from duetime.settings import DatabaseUrl

DEADLINE = 60.0


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """The environment without settings, as an operator has it."""
    return {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("DUETIME_") and name not in {"DATABASE_URL", "PORT"}
    }


def command(*arguments: str) -> list[str]:
    # -P: like the installed `duetime`, and unlike `python -m`, it does not find modules in the current directory.
    return [sys.executable, "-P", "-m", "duetime", *arguments]


def run(
    *arguments: str, cwd: Path, environment: Mapping[str, str], **settings: str
) -> subprocess.CompletedProcess[str]:
    """Run the command to its end."""
    return subprocess.run(
        command(*arguments),
        cwd=cwd,
        env={**environment, **settings},
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
        stdin=subprocess.DEVNULL,
    )


@asynccontextmanager
async def serving(
    *arguments: str, cwd: Path, environment: Mapping[str, str], **settings: str
) -> AsyncIterator[tuple[subprocess.Popen[str], str]]:
    """Run ``duetime serve`` on a free port in a process group of its own; yields it and its address."""
    with subprocess.Popen(
        command("serve", "--port", "0", *arguments),
        cwd=cwd,
        env={**environment, **settings},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            async with asyncio.timeout(DEADLINE):
                yield process, await asyncio.to_thread(_address, process)
        finally:
            process.kill()


def _address(process: subprocess.Popen[str]) -> str:
    assert process.stderr is not None
    seen = []
    for line in process.stderr:
        seen.append(line)
        if " at http://" in line:
            return "http://" + line.partition(" at http://")[2].split()[0]
    raise AssertionError("".join(seen))


def get(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=DEADLINE) as response:  # noqa: S310 - our own server
        return json.loads(response.read())


async def until_ready(address: str) -> None:
    async with asyncio.timeout(DEADLINE):
        while True:
            try:
                await asyncio.to_thread(get, f"{address}/health/ready")
            except urllib.error.HTTPError as not_yet:
                not_yet.close()
                await asyncio.sleep(0.01)
            else:
                return


def database_processes(project: Path) -> list[psutil.Process]:
    """Return the living keeper and servers of the embedded database in that directory."""
    found: list[psutil.Process] = []
    for process in psutil.process_iter():
        try:
            command_line = process.cmdline()
            if str(project / ".duetime") in command_line and process.status() != psutil.STATUS_ZOMBIE:
                found += [process, *process.children(recursive=True)]
        except psutil.NoSuchProcess:
            continue
    return found


def is_alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM])
async def test_serve_ends_with_status_0_on_a_signal_to_its_process_group_and_leaves_no_process(
    end: signal.Signals, tmp_path: Path, environment: dict[str, str]
) -> None:
    project = tmp_path / "a project"
    project.mkdir()
    async with serving(cwd=project, environment=environment) as (process, address):
        await until_ready(address)
        running = database_processes(project)
        assert len(running) > 2
        os.killpg(process.pid, end)
        await asyncio.to_thread(process.communicate, timeout=DEADLINE)
        assert process.returncode == 0
    assert not [process for process in running if is_alive(process)]
    assert not database_processes(project)


async def test_serve_uses_the_given_database_and_imports_task_modules_from_here(
    tmp_path: Path, environment: dict[str, str], database: DatabaseUrl
) -> None:
    (tmp_path / "my_tasks.py").write_text(
        "from duetime.tasks import task\n\n@task\ndef water_the_plants(litres: int) -> None: ...\n"
    )
    options = ("--tasks", "my_tasks", "--database-url", database.text)
    async with serving(*options, cwd=tmp_path, environment=environment) as (process, address):
        names = [task["name"] for task in (await asyncio.to_thread(get, f"{address}/api/tasks"))["items"]]
        assert "my_tasks:water_the_plants" in names
        process.send_signal(signal.SIGTERM)
        await asyncio.to_thread(process.communicate, timeout=DEADLINE)
    assert not (tmp_path / ".duetime").exists()


def test_serve_lists_every_wrong_setting_at_once_without_a_traceback(
    tmp_path: Path, environment: dict[str, str]
) -> None:
    result = run(
        "serve",
        "--host",
        "0.0.0.0",  # noqa: S104 - it is what must be refused
        cwd=tmp_path,
        environment=environment,
        DUETIME_POOL_SIZE="many",
        DATABASE_URL="mysql://user:hunter2@host/db",
    )
    assert result.returncode == 2
    for part in ("pool_size (DUETIME_POOL_SIZE)", "'many'", "scheme 'mysql'", "DUETIME_API_TOKEN"):
        assert part in result.stderr
    assert "Traceback" not in result.stderr
    assert "hunter2" not in result.stderr


def test_serve_refuses_other_machines_without_a_token(tmp_path: Path, environment: dict[str, str]) -> None:
    result = run("serve", cwd=tmp_path, environment=environment, DUETIME_HOST="::")
    assert result.returncode == 2
    assert "DUETIME_API_TOKEN" in result.stderr


def test_serve_says_that_a_port_is_taken(tmp_path: Path, environment: dict[str, str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        result = run("serve", cwd=tmp_path, environment=environment, PORT=port)
    assert result.returncode == 1
    assert f"127.0.0.1:{port}" in result.stderr
    assert "Address already in use" in result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / ".duetime").exists()


def test_serve_tells_a_task_modules_own_errors_and_their_places(tmp_path: Path, environment: dict[str, str]) -> None:
    (tmp_path / "broken.py").write_text("import os\n\nnumber = 1 / 0\n")
    (tmp_path / "unreadable.py").write_text("def f(:\n")
    (tmp_path / "leaving.py").write_text("raise SystemExit(7)\n")
    result = run(
        "serve",
        cwd=tmp_path,
        environment=environment,
        DUETIME_TASK_MODULES="broken,unreadable, leaving,absent",
    )
    assert result.returncode == 2
    assert "'broken', got ZeroDivisionError: division by zero" in result.stderr
    assert "broken.py, line 3)" in result.stderr
    assert "unreadable.py, line 1)" in result.stderr
    assert "'leaving', got SystemExit: 7" in result.stderr
    assert "'absent', got ModuleNotFoundError" in result.stderr
    assert "Traceback" not in result.stderr


def test_check_says_that_all_is_well(tmp_path: Path, environment: dict[str, str], database: DatabaseUrl) -> None:
    result = run("check", cwd=tmp_path, environment=environment, DATABASE_URL=database.text)
    assert result.returncode == 0
    assert "Everything is in order." in result.stdout


def test_check_starts_the_embedded_database_to_ask_it(tmp_path: Path, environment: dict[str, str]) -> None:
    result = run("check", "--json", cwd=tmp_path, environment=environment)
    answer = json.loads(result.stdout)
    assert answer["ok"] is True
    assert answer["database"]["answers"] is True
    assert answer["database"]["version"]
    assert result.returncode == 0


def test_check_names_an_unreachable_database_without_its_password(tmp_path: Path, environment: dict[str, str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    result = run(
        "check",
        "--json",
        cwd=tmp_path,
        environment=environment,
        DATABASE_URL=f"postgres://me:hunter2@127.0.0.1:{port}/db",
        DUETIME_POOLSIZE="3",
    )
    answer = json.loads(result.stdout)
    assert result.returncode == 1
    assert answer["ok"] is False
    assert answer["database"]["address"] == f"postgresql://me:***@127.0.0.1:{port}/db"
    assert "refused" in answer["database"]["error"].lower()
    assert "'DUETIME_POOL_SIZE'" in answer["warnings"][0]
    assert "hunter2" not in result.stdout + result.stderr


def test_check_gives_up_on_a_silent_database_at_the_call_timeout(tmp_path: Path, environment: dict[str, str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        result = run(
            "check",
            cwd=tmp_path,
            environment=environment,
            DATABASE_URL=f"postgresql://me@127.0.0.1:{silent.getsockname()[1]}/db",
            DUETIME_CALL_TIMEOUT="0.2",
        )
    assert result.returncode == 1
    assert "no answer within 0.2 s" in result.stdout


def test_check_lists_wrong_settings(tmp_path: Path, environment: dict[str, str]) -> None:
    result = run("check", cwd=tmp_path, environment=environment, DUETIME_ROLE="boss", PORT="99999")
    assert result.returncode == 1
    assert "role (DUETIME_ROLE)" in result.stdout
    assert "port (DUETIME_PORT or PORT)" in result.stdout


def test_the_version_is_printed(tmp_path: Path, environment: dict[str, str]) -> None:
    result = run("--version", cwd=tmp_path, environment=environment)
    assert result.returncode == 0
    assert result.stdout.startswith("duetime ")


@pytest.mark.parametrize("missing", ["typer", "uvicorn", "structlog", "rich"])
def test_without_the_server_extra_it_says_what_to_install(
    missing: str, tmp_path: Path, environment: dict[str, str]
) -> None:
    code = f"import sys; sys.modules[{missing!r}] = None; from duetime.__main__ import main; main()"
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 2
    assert "pip install 'duetime[server]'" in result.stderr
    assert "Traceback" not in result.stderr


async def test_duetimes_own_error_at_the_start_is_told_in_its_sentence() -> None:
    async def application(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        try:
            try:
                raise InvalidSettings("expected this, got that.")
            except InvalidSettings as exc:
                raise ExceptionGroup("in a task group", [exc]) from None
        except Exception:
            await send({"type": "lifespan.startup.failed", "message": "Traceback: a long text"})

    async def receive() -> MutableMapping[str, Any]:
        return {"type": "lifespan.startup"}

    sent: list[MutableMapping[str, Any]] = []

    async def send(message: MutableMapping[str, Any]) -> None:
        sent.append(message)

    await _PlainStartupErrors(application)({"type": "lifespan"}, receive, send)
    assert sent == [{"type": "lifespan.startup.failed", "message": "expected this, got that."}]
