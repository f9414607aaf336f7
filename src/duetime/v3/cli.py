"""``duetime migrate``: off APScheduler 3."""

from __future__ import annotations

import asyncio
import sys
from contextlib import AsyncExitStack, ExitStack
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from duetime.errors import DuetimeError, InvalidSource
from duetime.terminal import FAILED, WRONG_USAGE, refuse

from . import cli_cutover
from .cli_code import code
from .options import AllowClass, Executor, From, Map, Release, Table, Tasks, progress_bar, told
from .planning import FIRES
from .preparing import Told
from .report import HtmlReport, JsonReport, Report, Summary, TableReport
from .running import BATCH, planned
from .sources import V3Source, open_source

migrate = typer.Typer(
    name="migrate", help="Come from another scheduler.", no_args_is_help=True, pretty_exceptions_enable=False
)
v3 = typer.Typer(
    name="v3",
    help="Off APScheduler 3: its table of jobs, read, planned, proven and carried over.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
migrate.add_typer(v3, name="v3")
for _command in cli_cutover.COMMANDS:
    v3.command()(_command)
migrate.command()(code)


@v3.command()
def plan(
    source: From,
    tasks: Tasks = None,
    fires: Annotated[
        int, typer.Option("--fires", min=1, max=1000, metavar="N", help="Next fires that are compared with v3's.")
    ] = FIRES,
    as_json: Annotated[
        bool, typer.Option("--json", help='Print one JSON object, {"rows": […], "summary": {…}}.')
    ] = False,
    html: Annotated[
        Path | None, typer.Option("--html", metavar="FILE", help="Write one HTML page, and print the summary only.")
    ] = None,
    mapping: Map = None,
    allow_class: AllowClass = None,
    executor: Executor = None,
    table: Table = "apscheduler_jobs",
    release: Release = None,
) -> None:
    """Print what each job of v3 becomes, and compare its next fire times with v3's. Nothing is changed.

    Exit status 0: every job is carried over by itself · 1: some are left for a person, or reading failed · 2: wrong
    usage.
    """
    said = told(tasks, mapping, allow_class, executor, release, fires)
    try:
        jobs = open_source(source, table)
    except InvalidSource as exc:
        refuse([exc.message], WRONG_USAGE)
    summary = Summary(fires)
    try:
        with ExitStack() as stack:
            reports: list[Report] = []
            if html is not None:
                reports.append(stack.enter_context(HtmlReport(html)))
            if as_json:
                reports.append(stack.enter_context(JsonReport(sys.stdout)))
            elif html is None:
                reports.append(stack.enter_context(TableReport(Console(highlight=False))))
            asyncio.run(_plan(jobs, said, reports, summary))
    except OSError as exc:
        if isinstance(exc, BrokenPipeError):
            raise
        refuse([f"expected to write the report, got {exc.strerror}: {exc.filename}."], FAILED)
    if html is not None and not as_json:
        typer.echo(f"{summary.sentence()} {html}")
    if summary.error is not None:
        refuse([summary.error], FAILED)
    raise typer.Exit(0 if summary.is_done else FAILED)


async def _plan(jobs: V3Source, said: Told, reports: list[Report], summary: Summary) -> None:
    try:
        async with AsyncExitStack() as stack:
            source = await stack.enter_async_context(jobs)
            await source.check()
            count = await source.count()
            progress = stack.enter_context(progress_bar())
            bar = progress.add_task("planning", total=count)
            async for records in planned(
                source.rows(batch=BATCH), count, said, lambda rows: progress.advance(bar, rows)
            ):
                for record in records:
                    summary.add(record)
                    for report in reports:
                        report.row(record)
    except DuetimeError as exc:
        summary.error = exc.message
    for report in reports:
        report.end(summary)
