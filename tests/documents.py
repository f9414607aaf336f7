"""Documents that do what they say: the code blocks of a Markdown file, carried out in order and checked.

What each kind of block means:

``python``
    a program, run to its end; one that makes a FastAPI application is served instead, from then on
``bash``
    commands; each ``curl`` is sent to what is served: at first ``duetime serve``, or what a ``uvicorn`` command names.
    Others are for the reader's machine
``json``
    the answer to the last ``curl`` of the block before. ``"…"`` stands for any value, what is left out may be there,
    and an answer that needs a moment is asked for again
``text``
    a drawing; nothing to carry out
"""

from __future__ import annotations

import argparse
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import httpx
import pytest

from .end_to_end.server import SERVE, Server
from .end_to_end.waiting import until

ROOT = Path(__file__).resolve().parent.parent
ADDRESS = "http://127.0.0.1:8000"
ANYTHING = "…"
KINDS = ("python", "bash", "json", "text")
READERS_COMMANDS = ("make", "pip")
"""Commands that a document may show and that are not carried out here."""


@dataclass(frozen=True)
class Block:
    """One fenced block of a document."""

    kind: str
    text: str
    line: int


def blocks(document: Path) -> list[Block]:
    """Return the fenced blocks of a Markdown file."""
    found: list[Block] = []
    opened: tuple[str, int] | None = None
    lines: list[str] = []
    for number, line in enumerate(document.read_text(encoding="utf-8").splitlines(), 1):
        if opened is None:
            if match := re.fullmatch(r"```(\w*)", line):
                opened, lines = (match[1], number), []
        elif line == "```":
            found.append(Block(opened[0], "\n".join(lines), opened[1]))
            opened = None
        else:
            lines.append(line)
    assert opened is None, f"{document.name}: the block of line {opened and opened[1]} has no end"
    return found


def commands(script: str) -> Iterator[list[str]]:
    """Yield the words of each command of a shell script; comments are left out."""
    command = ""
    for line in script.splitlines():
        if line.endswith("\\"):
            command += line[:-1]
            continue
        command += f"{line}\n"
        try:
            words = shlex.split(command, comments=True)
        except ValueError:  # an open quote: the command goes on in the next line
            continue
        if words:
            yield words
        command = ""
    assert not command, f"expected whole commands, got {command!r} at the end"


Curl = Callable[[list[str]], str]


def real_curl(words: list[str]) -> str:
    """Run the command as it stands, and return what it prints."""
    finished = subprocess.run(words, capture_output=True, text=True, timeout=60, check=True)
    return finished.stdout


def read_curl(words: list[str]) -> str:
    """Do what curl would do with these words, and return what it would print; for machines without curl."""
    parser = argparse.ArgumentParser(prog="curl", exit_on_error=False, allow_abbrev=False)
    parser.add_argument("url")
    parser.add_argument("-s", action="store_true", required=True)
    parser.add_argument("-X", dest="method")
    parser.add_argument("-H", dest="headers", action="append", default=[])
    parser.add_argument("-d", dest="data")
    options = parser.parse_args(words[1:])
    headers = dict(header.split(": ", 1) for header in options.headers)
    if options.data is not None:
        headers = {"Content-Type": "application/x-www-form-urlencoded", **headers}
    method = options.method or ("GET" if options.data is None else "POST")
    # curl leaves the line ends of -d out only when it reads a file.
    content = None if options.data is None else options.data.encode()
    answer = httpx.request(method, options.url, headers=headers, content=content, timeout=60, trust_env=False)
    return answer.text


CURLS = [pytest.param(read_curl, id="read"), pytest.param(real_curl, id="curl", marks=pytest.mark.debian("curl"))]
"""For ``pytest.mark.parametrize``: on every machine, and with the real curl where CI has installed it."""


def difference(shown: Any, real: Any, where: str = "the answer") -> str | None:
    """Return where an answer is not as a document shows it, or None."""
    if shown == ANYTHING and real is not None:
        return None
    if isinstance(shown, dict) and isinstance(real, dict):
        if missing := [key for key in shown if key not in real]:
            return f"{where} has no {missing}, but {sorted(real)}"
        pairs = [(f"{where}.{key}", value, real[key]) for key, value in shown.items()]
    elif isinstance(shown, list) and isinstance(real, list) and len(shown) <= len(real):
        pairs = [(f"{where}[{place}]", value, real[place]) for place, value in enumerate(shown)]
    else:
        return None if shown == real else f"{where} is {real!r}, not {shown!r}"
    return next((found for place, want, got in pairs if (found := difference(want, got, place))), None)


class NewServer(Protocol):
    """Makes a server that is not started; the fixture ``new_server``."""

    def __call__(self, *command: str, **environment: str) -> Server: ...


class Walkthrough:
    """Carries a document out, block by block.

    :param environment: settings of what is served
    :param program_environment: the whole environment of the programs that are run to their end
    :param serve: what is served until the document has an application of its own: arguments for ``python -m``
    """

    def __init__(
        self,
        document: Path,
        new_server: NewServer,
        directory: Path,
        curl: Curl,
        *,
        environment: Mapping[str, str] | None = None,
        program_environment: Mapping[str, str] | None = None,
        serve: tuple[str, ...] = SERVE,
    ) -> None:
        self._document = document
        self._new_server = new_server
        self._directory = directory
        self._curl = curl
        self._environment = dict(environment or {})
        self._program_environment = dict(program_environment or {})
        self._serve = serve
        self._server: Server | None = None
        self._last: list[str] | None = None
        self._answer = ""
        self.answered = 0
        """Answers that were as the document shows them."""

    def run(self) -> None:
        """Carry out all blocks.

        :raises AssertionError: naming the line of the block that does not do what it says
        """
        found = blocks(self._document)
        for block, following in zip(found, [*found[1:], None], strict=True):
            place = f"{self._document.name}, line {block.line}"
            assert block.kind in KINDS, f"{place}: expected a block of a kind among {KINDS}, got {block.kind!r}"
            try:
                getattr(self, f"_{block.kind}")(block)
                if block.kind == "bash" and (following is None or following.kind != "json"):
                    assert "urn:duetime:error" not in self._answer, self._answer
            except Exception as exc:
                raise AssertionError(f"{place}: {exc}") from exc

    def _text(self, block: Block) -> None:
        pass

    def _python(self, block: Block) -> None:
        if "FastAPI(" in block.text:
            if self._server is not None:
                self._server.close()
            self._serve = ("uvicorn", "main:app", "--port", "0")
            self._server = None
            self._start({"main.py": block.text})
            return
        program = self._directory / f"line_{block.line}.py"
        program.write_text(block.text)
        finished = subprocess.run(
            [sys.executable, "-W", "error", str(program)],
            cwd=self._directory,
            env=self._program_environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert finished.returncode == 0, finished.stderr
        assert finished.stdout, "expected the program to print something"

    def _start(self, files: Mapping[str, str]) -> Server:
        server = self._new_server(*self._serve, **self._environment)
        for name, text in files.items():
            (server.directory / name).write_text(text)
        server.start()
        self._server = server
        return server

    def _bash(self, block: Block) -> None:
        for words in commands(block.text):
            if words[0] == "curl":
                self._last = self._addressed(words)
                self._answer = self._curl(self._last)
            elif Path(words[0]).name == "uvicorn":
                places = [str(ROOT / word) if (ROOT / word).is_dir() else word for word in words[1:]]
                self._serve = ("uvicorn", *places, "--port", "0")
            else:
                assert words[0] in READERS_COMMANDS, f"expected curl, uvicorn or one of {READERS_COMMANDS}, got {words}"

    def _addressed(self, words: list[str]) -> list[str]:
        """Return the command with the addresses of this test: that of the server, and it for the world outside."""
        server = self._server or self._start({})
        own = str(server.client.base_url).rstrip("/")
        addressed = [word.replace("https://example.com/", f"{own}/health/live").replace(ADDRESS, own) for word in words]
        assert any(word.startswith(own) for word in addressed), f"expected a curl to {ADDRESS}, got {words}"
        return addressed

    def _json(self, block: Block) -> None:
        shown = json.loads(block.text)
        assert self._last is not None, "expected a curl before this answer"
        asks = "-d" not in self._last and "-X" not in self._last
        self._problem: str | None = None

        def is_as_shown() -> bool:
            self._problem = difference(shown, json.loads(self._answer))
            if self._problem and asks:
                self._answer = self._curl(self._last or [])
            return self._problem is None

        if asks:
            try:
                until(is_as_shown, "the answer that is shown")
            except AssertionError as exc:
                raise AssertionError(f"{exc}: {self._problem}") from None
        else:
            assert is_as_shown(), self._problem
        self.answered += 1
