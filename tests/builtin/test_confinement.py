"""What confined code may do: each door of Python to the outside, tried for real."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import threading
import urllib.request
from pathlib import Path

import pytest

from duetime.builtin.confinement import ConfinementError, confined


@pytest.fixture
def listener() -> socket.socket:
    return socket.create_server(("127.0.0.1", 0))


def test_a_connection_to_loopback_is_refused_whoever_makes_it(listener: socket.socket) -> None:
    port = listener.getsockname()[1]
    with listener, confined(allow_private=False) as confinement:
        with pytest.raises(ConfinementError):
            socket.create_connection(("127.0.0.1", port))
        with pytest.raises(ConfinementError):
            socket.create_connection(("localhost", port))
        with pytest.raises(OSError, match="loopback"):
            urllib.request.urlopen(f"http://127.0.0.1:{port}/")
        with socket.socket() as plain, pytest.raises(ConfinementError):
            plain.connect_ex(("127.0.0.1", port))
    assert set(confinement.refused_addresses) == {"a loopback address"}
    listener.close()


def test_a_host_name_that_only_the_system_call_would_resolve_is_refused() -> None:
    with confined(allow_private=False) as confinement:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp, pytest.raises(ConfinementError):
            udp.sendto(b"x", ("localhost", 9))
        with socket.socket() as tcp, pytest.raises(ConfinementError):
            tcp.connect(("localhost", 9))
    assert confinement.refused_addresses == ["a host name whose address cannot be checked"] * 2


def test_datagrams_are_checked_too() -> None:
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp,
        confined(allow_private=False),
    ):
        with pytest.raises(ConfinementError):
            udp.sendto(b"x", ("127.0.0.1", 9))
        with pytest.raises(ConfinementError):
            udp.sendmsg([b"x"], [], 0, ("127.0.0.1", 9))


def test_private_addresses_pass_when_they_are_allowed_and_nothing_else_does(
    listener: socket.socket, tmp_path: Path
) -> None:
    with listener, confined(allow_private=True):
        socket.create_connection(("127.0.0.1", listener.getsockname()[1])).close()
        with pytest.raises(ConfinementError):
            (tmp_path / "file").write_text("x")
    assert not (tmp_path / "file").exists()


def test_files_are_out_of_reach_except_installed_libraries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    secret = tmp_path / "secret"
    secret.write_text("s3cret")
    library = Path(os.__file__).parent
    monkeypatch.chdir(library)
    with confined(allow_private=False) as confinement:
        assert Path(os.__file__).read_text()
        for path in (secret, "/etc/passwd", os.fsencode(secret), f"{library}/../../../../../../{secret}"):
            with pytest.raises(PermissionError):
                open(path)  # noqa: SIM115
            with pytest.raises(PermissionError):
                os.open(path, os.O_RDONLY)
        with pytest.raises(PermissionError):
            open("new-module.py", "w")  # noqa: SIM115
        assert confinement.refused_actions == ["open a file"] * 9
        with pytest.raises(PermissionError):
            (tmp_path / ".netrc").read_text()
    assert confinement.refused_actions == ["open a file"] * 9  # nothing to report: requests always looks for one
    assert not (library / "new-module.py").exists()


def test_processes_unix_sockets_and_the_system_log_are_out_of_reach(tmp_path: Path) -> None:
    with confined(allow_private=False) as confinement:
        with pytest.raises(ConfinementError):
            subprocess.run([sys.executable, "-c", ""], check=False)
        with pytest.raises(ConfinementError):
            os.system("true")  # noqa: S605
        with socket.socket(socket.AF_UNIX) as local, pytest.raises(ConfinementError):
            local.connect(str(tmp_path / "docker.sock"))
        import syslog

        with pytest.raises(ConfinementError):
            syslog.syslog("x")
    assert [action.split(" ")[:2] for action in confinement.refused_actions] == [
        ["start", "a"],
        ["start", "a"],
        ["use", "a"],
        ["write", "to"],
    ]


def test_it_ends_with_the_block_and_holds_for_the_one_thread_only(tmp_path: Path) -> None:
    path = tmp_path / "file"
    inside, outside_done = threading.Event(), threading.Event()
    seen: list[str] = []

    def elsewhere() -> None:
        inside.wait(20)
        path.write_text("from another thread")
        seen.append(path.read_text())
        outside_done.set()

    other = threading.Thread(target=elsewhere)
    other.start()
    with confined(allow_private=False):
        inside.set()
        assert outside_done.wait(20)
    other.join(20)
    assert seen == ["from another thread"]
    path.write_text("after")
    assert path.read_text() == "after"


async def test_other_tasks_of_the_event_loop_are_not_confined(tmp_path: Path) -> None:
    path = tmp_path / "file"
    confined_now, written = asyncio.Event(), asyncio.Event()

    async def confined_task() -> None:
        with confined(allow_private=False):
            confined_now.set()
            await written.wait()
            with pytest.raises(ConfinementError):
                path.read_text()

    task = asyncio.create_task(confined_task())
    await asyncio.wait_for(confined_now.wait(), 20)
    path.write_text("x")
    written.set()
    await asyncio.wait_for(task, 20)


def test_a_hook_that_keeps_ours_out_is_noticed() -> None:
    # In a process of its own: a hook stays for the life of the process.
    program = """
import sys
def guard(event, args):
    if event == "sys.addaudithook":
        raise RuntimeError("no more hooks")
sys.addaudithook(guard)
from duetime.builtin.confinement import confined
try:
    with confined(allow_private=False):
        print("unconfined")
except RuntimeError as exc:
    print(exc)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert "kept out" in done.stdout
