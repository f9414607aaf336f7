"""The options that the commands of ``duetime migrate v3`` share."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from duetime.errors import InvalidSettings
from duetime.settings import Settings
from duetime.terminal import WRONG_USAGE, refuse

from .planning import FIRES
from .preparing import Told

From = Annotated[
    str,
    typer.Option(
        "--from",
        metavar="URL",
        help="SQLAlchemy URL of the database with v3's jobs: postgresql://…, sqlite:///jobs.sqlite, mysql://… .",
    ),
]
Table = Annotated[str, typer.Option("--table", help="v3's table.", metavar="NAME")]
Tasks = Annotated[
    list[str] | None,
    typer.Option(
        "--tasks",
        metavar="MODULE",
        help="Module with @task functions; looked for here, too. Repeatable. (default: DUETIME_TASK_MODULES)",
    ),
]
Map = Annotated[
    Path | None,
    typer.Option(
        "--map",
        metavar="FILE",
        help="For functions that have another name now: a TOML file (or JSON, if it is named .json) with lines such "
        'as "app.jobs:send" = "send_mail": v3\'s module:function, and the name of the registered task.',
    ),
]
AllowClass = Annotated[
    list[str] | None,
    typer.Option(
        "--allow-class",
        metavar="MODULE:CLASS",
        help="Enum or dataclass that a job's arguments may hold; its values are carried over as data. Repeatable.",
    ),
]
Executor = Annotated[
    list[str] | None,
    typer.Option(
        "--executor",
        metavar="NAME=EXECUTOR",
        help="What an executor of v3 is: auto, async, threadpool or processpool. Repeatable.",
    ),
]
Release = Annotated[
    str | None,
    typer.Option(
        "--v3-release",
        metavar="3.x.y",
        help="Release of APScheduler that runs the jobs now, for the faults that only some releases have.",
    ),
]


def told(
    tasks: list[str] | None,
    mapping: Path | None,
    allow_class: list[str] | None,
    executor: list[str] | None,
    release: str | None,
    fires: int = FIRES,
) -> Told:
    """Return what the options say, with the task modules imported; ends the command if they cannot be meant."""
    try:
        settings = Settings.load()
    except InvalidSettings as exc:
        refuse([f"{detail['where']}: {detail['problem']}" for detail in exc.details], WRONG_USAGE)
    said = Told(
        tuple(tasks or settings.task_modules),
        mapping,
        tuple(allow_class or ()),
        tuple(executor or ()),
        release,
        fires,
        datetime.now(UTC),
        settings.max_arguments_bytes,
    )
    if problems := said.problems():
        refuse(problems, WRONG_USAGE)
    return said


def progress_bar() -> Progress:
    """Return a progress bar on standard error, which says nothing where that is no terminal."""
    console = Console(stderr=True)
    console.quiet = not console.is_terminal  # rich, 13.0 for one, ends a bar with an empty line, a disabled one too
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console, disable=not console.is_terminal, transient=True)
