"""A small HTTP server in this process that remembers what reaches it: the effect of a job, seen from outside."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass(frozen=True)
class Effect:
    """One request, as it came."""

    path: str
    key: str | None
    """The job's id: every attempt of a job sends the same one."""
    body: bytes


@dataclass
class Sink:
    """Answers 200 to everything; requests that arrive while it is held are answered when it is let go."""

    port: int
    _effects: list[Effect] = field(default_factory=list)
    _open: threading.Event = field(default_factory=threading.Event)

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.port}{path}"

    def effects(self, path: str) -> list[Effect]:
        return [effect for effect in list(self._effects) if effect.path == path]

    def keys(self, path: str) -> list[str | None]:
        return [effect.key for effect in self.effects(path)]

    def hold(self) -> None:
        self._open.clear()

    def let_go(self) -> None:
        self._open.set()

    def take(self, effect: Effect) -> None:
        self._effects.append(effect)
        self._open.wait()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    sink: Sink

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing: a killed server's connections break, and that is what some tests are about."""


class _Handler(BaseHTTPRequestHandler):
    server: _Server

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        self.server.sink.take(Effect(self.path, self.headers.get("idempotency-key"), body))
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the standard library's name
        """Say nothing."""


@contextmanager
def running_sink() -> Iterator[Sink]:
    server = _Server(("127.0.0.1", 0), _Handler)
    sink = server.sink = Sink(server.server_address[1])
    sink.let_go()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield sink
    finally:
        sink.let_go()
        server.shutdown()
        thread.join()
        server.server_close()
