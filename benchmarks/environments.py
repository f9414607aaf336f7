"""A virtual environment for each peer, made when it is first needed, from pinned versions.

They can't share one: APScheduler 3 and 4 are the same package.
"""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import os
import shutil
import sys
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from .errors import PeerFailed
from .places import PEERS, ROOT, cache

INSTALL_TIMEOUT = 300.0
"""Seconds that making one environment may take."""


async def make(peers: Iterable[str]) -> None:
    """Make the environments that are missing, as many at a time as there are cores, so that no measurement waits.

    One that cannot be made is left out: each measurement that needs it says why.
    """
    turn = asyncio.Semaphore(os.cpu_count() or 1)

    async def one(peer: str) -> None:
        async with turn:
            with suppress(PeerFailed):
                await python_of(peer)

    await asyncio.gather(*map(one, peers))


async def python_of(peer: str) -> str:
    """Return the Python of the peer's environment; makes that first if need be.

    :raises PeerFailed: if it cannot be made; the reason is pip's last line
    """
    pins = PEERS / f"{peer}.txt"
    if peer == "duetime":
        arguments = ["--constraint", str(ROOT / "constraints.txt"), "--editable", str(ROOT), "uvicorn"]
        wanted = (ROOT / "constraints.txt").read_text() + (ROOT / "pyproject.toml").read_text()
    else:
        arguments = ["--requirement", str(pins)]
        wanted = pins.read_text()
    wanted = hashlib.sha256(f"{ROOT}\n{sys.version}\n{wanted}".encode()).hexdigest()
    place = cache("environments", peer)
    with cache("environments", f"{peer}.lock").open("w") as lock:
        await asyncio.to_thread(fcntl.flock, lock, fcntl.LOCK_EX)  # another run may be making it
        note = place / "made-from"
        if not (note.exists() and note.read_text() == wanted):
            print(f"Making the environment of {peer}.", file=sys.stderr, flush=True)
            shutil.rmtree(place, ignore_errors=True)
            python = str(place / "bin" / "python")
            # A pip in each would take longer than most of what it installs.
            await _run([sys.executable, "-m", "venv", "--without-pip", str(place)], peer)
            await _run([sys.executable, "-m", "pip", "--python", python, "install", "--quiet", *arguments], peer)
            note.write_text(wanted)
    return str(place / "bin" / "python")


async def _run(command: list[str], peer: str) -> None:
    log = cache("logs", f"install-{peer}.log")
    environment = os.environ | {"PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_NO_INPUT": "1"}
    with log.open("ab") as out:
        process = await asyncio.create_subprocess_exec(
            *command, stdin=asyncio.subprocess.DEVNULL, stdout=out, stderr=out, env=environment
        )
        try:
            status = await asyncio.wait_for(process.wait(), INSTALL_TIMEOUT)
        except TimeoutError:
            raise PeerFailed(f"cannot be installed: not done after {INSTALL_TIMEOUT:g} s") from None
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
    if status != 0:
        raise PeerFailed(f"cannot be installed: {last_line(log)}")


def last_line(log: Path) -> str:
    """Return the last line of a log that says something."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    errors = [line for line in lines[-40:] if line.startswith("ERROR") or "Error:" in line]
    return (errors or lines or ["nothing in the log"])[-1][:300]
