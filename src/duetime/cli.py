"""The command line: ``duetime serve`` and ``duetime check``, and ``duetime migrate`` from ``v3/cli.py``.

Exit status 0: done · 1: it failed · 2: wrong usage or settings. Messages go to standard error, results to
standard output.
"""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import logging.config
import os
import signal
import socket
import sys
import threading
from collections.abc import Awaitable, Callable, MutableMapping
from importlib.metadata import version
from types import FrameType
from typing import Annotated, Any

import structlog
import typer
import uvicorn
from rich.console import Console
from rich.text import Text

from .app import Duetime, application_of
from .errors import DuetimeError, InvalidSettings
from .local import LocalDatabase
from .settings import Settings
from .store.connections import DirectConnections
from .terminal import FAILED, WRONG_USAGE, import_task_modules, refuse
from .v3.cli import migrate

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Message, Receive, Send], Awaitable[None]]

logger = logging.getLogger("duetime.cli")

_LAST_MOMENT = 0.3
"""Seconds that the process has to end by itself once everything has stopped."""

app = typer.Typer(
    name="duetime",
    help="Scheduled jobs in PostgreSQL.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(migrate, name="migrate")


def main() -> None:
    """Run the command that the arguments name."""
    app()


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"duetime {version('duetime')}")
        raise typer.Exit


@app.callback()
def _options(
    show_version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit."),
    ] = False,
) -> None:
    pass


@app.command()
def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on. (default 127.0.0.1)")] = None,
    port: Annotated[int | None, typer.Option(help="TCP port; 0 takes a free one. (default 8000)")] = None,
    tasks: Annotated[
        list[str] | None,
        typer.Option(metavar="MODULE", help="Module with @task functions; looked for here, too. Repeatable."),
    ] = None,
    database_url: Annotated[
        str | None, typer.Option(help="PostgreSQL to use. (default: the embedded one, in .duetime/)")
    ] = None,
) -> None:
    """Serve the API and run what is due, until Ctrl-C or SIGTERM.

    Options win over the environment (DUETIME_HOST, DUETIME_PORT or PORT, DUETIME_TASK_MODULES,
    DUETIME_DATABASE_URL or DATABASE_URL), where all other settings are.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        _serve({"host": host, "port": port, "task_modules": tuple(tasks or ()), "database_url": database_url})
    except KeyboardInterrupt:
        raise typer.Exit from None


def _serve(options: dict[str, Any]) -> None:
    try:
        settings = Settings(**{name: value for name, value in options.items() if value not in (None, ())})
    except InvalidSettings as exc:
        refuse([f"{detail['where']}: {detail['problem']}" for detail in exc.details], WRONG_USAGE)
    if problems := settings.problems():
        refuse(problems, WRONG_USAGE)
    configure_logging(settings.log_level)
    for warning in settings.warnings():
        logger.warning("%s", warning)
    import_task_modules(settings.task_modules)
    listener = _listen(settings.host, settings.port)

    duetime = Duetime(settings)
    config = uvicorn.Config(
        _PlainStartupErrors(application_of(duetime)),
        lifespan="on",
        log_config=None,
        # uvicorn says int, and hands it to asyncio, which takes any number of seconds.
        timeout_graceful_shutdown=max(0.5, settings.drain_timeout.total_seconds()),  # type: ignore[arg-type]
    )
    server = _Server(config, duetime)
    name = f"[{settings.host}]" if ":" in settings.host else settings.host
    logger.info("Duetime %s at http://%s:%d", version("duetime"), name, listener.getsockname()[1])
    # What has been imported stays: a full collection would go through all of it each time, and hold the event loop for
    # far longer than the 20 ms of promise 7.
    gc.freeze()
    server.run(sockets=[listener])
    if not server.started:
        raise typer.Exit(FAILED)


@app.command()
def check(
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Print every problem of the settings and whether the database answers; exit status 1 if one is found."""
    result: dict[str, Any] = {"ok": False, "problems": [], "warnings": [], "database": None}
    try:
        settings = Settings.load()
    except InvalidSettings as exc:
        result["problems"] = [f"{detail['where']}: {detail['problem']}" for detail in exc.details]
    else:
        result["problems"] = settings.problems()
        result["warnings"] = settings.warnings()
        result["database"] = asyncio.run(_ask_database(settings))
        result["ok"] = not result["problems"] and result["database"]["answers"]
    if as_json:
        typer.echo(json.dumps(result, indent=2))
    else:
        _print_check(result)
    raise typer.Exit(0 if result["ok"] else FAILED)


async def _ask_database(settings: Settings) -> dict[str, Any]:
    """Return which database the settings mean and what it says; the embedded one is started to answer."""
    address = settings.database
    answer: dict[str, Any] = {
        "address": address.redacted if address else f"embedded PostgreSQL in {settings.data_dir}",
        "answers": False,
        "version": None,
        "error": None,
    }
    local = None if address else LocalDatabase(settings.data_dir)
    connections: DirectConnections | None = None
    try:
        connections = DirectConnections(address or await local.start(), size=1)  # type: ignore[union-attr]
        timeout = settings.call_timeout.total_seconds()
        async with asyncio.timeout(timeout), connections.acquire() as connection:
            answer["version"] = await connection.fetchval("SHOW server_version")
        answer["answers"] = True
    except TimeoutError:
        answer["error"] = f"no answer within {settings.call_timeout.total_seconds():g} s (DUETIME_CALL_TIMEOUT)"
    except DuetimeError as exc:
        answer["error"] = exc.message
    except Exception as exc:  # whatever the driver raises is the answer to the question
        answer["error"] = f"{type(exc).__name__}: {exc}"
    finally:
        if connections:
            await connections.close()
        if local:
            await local.stop()
    return answer


def _print_check(result: dict[str, Any]) -> None:
    console = Console(soft_wrap=True, highlight=False)
    for style, word, sentences in (
        ("bold red", "Problem", result["problems"]),
        ("yellow", "Warning", result["warnings"]),
    ):
        for sentence in sentences:
            console.print(Text.assemble((f"{word}: ", style), sentence))
    if database := result["database"]:
        said = f"answers (PostgreSQL {database['version']})" if database["answers"] else database["error"]
        style = "green" if database["answers"] else "bold red"
        console.print(Text.assemble((f"Database {database['address']}: ", style), said))
    if result["ok"]:
        console.print("Everything is in order.")


class _Server(uvicorn.Server):
    """Stops within the drain time and a second: jobs are drained while requests are, and a second signal ends both.

    uvicorn itself would begin to stop the application when the last request is answered, wait on SIGTERM however
    often it comes, and leave the application unstopped on a second Ctrl-C.
    """

    def __init__(self, config: uvicorn.Config, duetime: Duetime) -> None:
        super().__init__(config)
        self._duetime = duetime
        self._loop: asyncio.AbstractEventLoop | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to stop at the first signal, and cut the stop short at the second."""
        is_second = self.should_exit
        super().handle_exit(sig, frame)
        self.force_exit = False
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._cut_short if is_second else self._duetime.begin_stop)

    def _cut_short(self) -> None:
        logger.warning("Told to stop a second time: what is running is cut short")
        self.force_exit = True
        for connection in list(self.server_state.connections):
            if connection.transport is not None:
                connection.transport.abort()
        self._duetime.cut_short()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await super().shutdown(sockets)
        if self.force_exit:
            await self.lifespan.shutdown()
        end_soon()


def end_soon() -> None:
    """Let the process end within half a second, whatever its tasks have left running.

    The interpreter would wait for threads that a task has started itself, and for tasks that cannot be cancelled.
    """

    def end() -> None:
        logger.info("The process does not end by itself, because of what a task has left running: it is ended")
        logging.shutdown()
        os._exit(0)

    timer = threading.Timer(_LAST_MOMENT, end)
    timer.daemon = True
    timer.start()


def _listen(host: str, port: int) -> socket.socket:
    """Return a listening socket. It is opened before anything else starts, so a taken port costs nothing."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host.strip("[]"), port), family=family, backlog=2048)
    except OSError as exc:
        # create_server() puts the address into the system's own words, where it would be said twice.
        reason = os.strerror(exc.errno) if exc.errno and not isinstance(exc, socket.gaierror) else exc.strerror
        problem = (
            f"expected a free TCP port, got {host}:{port}, where one cannot listen ({reason}). "
            f"Stop the other program or choose another port (--port, DUETIME_PORT or PORT; 0: a free one)."
        )
        refuse([problem], FAILED)


class _PlainStartupErrors:
    """Pass everything on to the application, but tell Duetime's own errors at its start in their sentence."""

    def __init__(self, application: Application) -> None:
        self._application = application

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "lifespan":
            await self._application(scope, receive, send)
            return

        async def send_plain(message: Message) -> None:
            error = sys.exception()
            while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
                error = error.exceptions[0]
            if message["type"] == "lifespan.startup.failed" and isinstance(error, DuetimeError):
                message["message"] = error.message
            await send(message)

        await self._application(scope, receive, send_plain)


def _without_uvicorns_colors(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> Any:
    """Drop the second, coloured form of the message that uvicorn adds to some of its records."""
    event.pop("color_message", None)
    return event


def configure_logging(level: str) -> None:
    """Show the standard library's log records, uvicorn's included, on standard error by structlog's console.

    Tracebacks are printed without local variables, which may hold secrets.
    """
    shared: list[Any] = [
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.ExtraAdder(),
        _without_uvicorns_colors,
        structlog.processors.TimeStamper(fmt="%Y-%m-%d %H:%M:%S.%fZ", utc=True),
    ]
    renderer = structlog.dev.ConsoleRenderer(
        colors=sys.stderr.isatty() and not os.environ.get("NO_COLOR"),
        exception_formatter=structlog.dev.plain_traceback,
    )
    logging.config.dictConfig(
        {
            "version": 1,
            "disable_existing_loggers": False,
            "formatters": {
                "console": {
                    "()": structlog.stdlib.ProcessorFormatter,
                    "foreign_pre_chain": shared,
                    "processors": [structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
                }
            },
            "handlers": {
                "stderr": {
                    "class": "logging.StreamHandler",
                    "formatter": "console",
                    "stream": "ext://sys.stderr",
                }
            },
            "root": {"level": level, "handlers": ["stderr"]},
            # Its lines name whole URLs, with what tokens they carry.
            "loggers": {"httpx": {"level": "DEBUG" if level == "DEBUG" else "WARNING"}},
        }
    )
