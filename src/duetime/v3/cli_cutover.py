"""``duetime migrate v3 cutover``, ``rollback`` and ``status``."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterable
from typing import Annotated, Any, TypeVar

import typer
from rich.console import Console
from rich.table import Table as RichTable

from ..errors import DuetimeError, InvalidSettings
from ..scheduler import DuetimeScheduler
from ..settings import Settings
from ..terminal import FAILED, WRONG_USAGE, refuse
from .carrying import FIRES, in_processes, preparer
from .cutover import BATCH, MARGIN, WAIT
from .cutover import cutover as carry_over
from .options import AllowClass, Executor, From, Map, Release, Table, Tasks, progress_bar, told
from .outcomes import ENDED, Result
from .places import open_scheduler
from .rollback import WAIT as WAIT_FOR_JOBS
from .rollback import rollback as go_back
from .standing import Standing
from .standing import status as look

T = TypeVar("T")

_SHOWN = 50

DryRun = Annotated[bool, typer.Option("--dry-run", help="Change nothing, and say what would come of it.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
Ids = Annotated[
    list[str] | None, typer.Option("--id", metavar="ID", help="Only this job of v3. Repeatable. (default: all)")
]
Batch = Annotated[int, typer.Option("--batch", min=1, max=5000, help="Jobs that are carried in one transaction.")]


def cutover(
    source: From,
    tasks: Tasks = None,
    dry_run: DryRun = False,
    v3_stopped: Annotated[
        bool,
        typer.Option(
            "--v3-stopped",
            help="No process of v3 uses the table any more. Without it, a job that is due is left to v3 until v3 has "
            "moved it on.",
        ),
    ] = False,
    ids: Ids = None,
    batch: Batch = BATCH,
    margin: Annotated[
        float,
        typer.Option(
            "--margin",
            min=0.0,
            help="Seconds that must be left until a job is due: more than the clocks of v3's host and of the database "
            "may differ.",
        ),
    ] = MARGIN,
    wait: Annotated[
        float, typer.Option("--wait", min=0.0, help="Seconds for which jobs that are due are watched.")
    ] = WAIT,
    as_json: AsJson = False,
    mapping: Map = None,
    allow_class: AllowClass = None,
    executor: Executor = None,
    table: Table = "apscheduler_jobs",
    release: Release = None,
) -> None:
    """Carry v3's jobs over: each row is set aside, and its schedule written, in one step. v3 may go on running.

    Jobs that a person must look at stay in v3. Give the command again after an interruption, or a kill.

    Exit status 0: nothing is left to do · 1: some jobs are left, or it was interrupted · 2: wrong usage.
    """
    said = told(tasks, mapping, allow_class, executor, release, FIRES)

    async def work(scheduler: DuetimeScheduler, progress: Callable[[int], None]) -> Result:
        context, allowed = said.context(), said.allow()
        async with in_processes(said, context, allowed) as plans:
            return await carry_over(
                source,
                scheduler,
                preparer(scheduler, context, allowed, plans),
                table=table,
                dry_run=dry_run,
                v3_stopped=v3_stopped,
                ids=ids,
                batch=batch,
                margin=margin,
                wait=wait,
                progress=progress,
            )

    _end(_run(work, "carrying over"), as_json=as_json)


def rollback(
    source: From,
    dry_run: DryRun = False,
    ids: Ids = None,
    batch: Batch = BATCH,
    wait: Annotated[
        float, typer.Option("--wait", min=0.0, help="Seconds for which jobs that are queued or running are waited for.")
    ] = WAIT_FOR_JOBS,
    as_json: AsJson = False,
    table: Table = "apscheduler_jobs",
) -> None:
    """Put v3's rows back as they were, with the next run moved to the first one that Duetime has not made.

    Schedules that were changed since stay in Duetime. Start v3 afterwards: one that runs sees rows that come back only
    at its next wake-up.

    Exit status 0: nothing is left to do · 1: some jobs are left, or it was interrupted · 2: wrong usage.
    """

    async def work(scheduler: DuetimeScheduler, progress: Callable[[int], None]) -> Result:
        return await go_back(
            source, scheduler, table=table, dry_run=dry_run, ids=ids, batch=batch, wait=wait, progress=progress
        )

    _end(_run(work, "going back"), as_json=as_json)


def status(source: From, as_json: AsJson = False, table: Table = "apscheduler_jobs") -> None:
    """Say how far the migration has come, and which jobs v3's application has added again. Changes nothing.

    Exit status 0: v3's table is empty, and nothing is under way · 1: something is left · 2: wrong usage.
    """

    async def work(scheduler: DuetimeScheduler, _progress: Callable[[int], None]) -> Standing:
        return await look(source, scheduler, table=table)

    found = _run(work, "looking")
    if as_json:
        typer.echo(json.dumps(found.record(), indent=2))
    else:
        _print(_standing_lines(found))
    raise typer.Exit(0 if found.is_complete else FAILED)


def _run(work: Callable[[DuetimeScheduler, Callable[[int], None]], Awaitable[T]], what: str) -> T:
    """Do the work with a scheduler of the settings and a progress bar; one sentence ends the command if it fails."""
    try:
        settings = Settings.load()
    except InvalidSettings as exc:
        refuse([f"{detail['where']}: {detail['problem']}" for detail in exc.details], WRONG_USAGE)

    async def run() -> T:
        async with open_scheduler(settings) as scheduler:
            with progress_bar() as progress:
                bar = progress.add_task(what, total=None)
                return await work(scheduler, lambda rows: progress.advance(bar, rows))

    try:
        return asyncio.run(run())
    except DuetimeError as exc:
        refuse([exc.message], FAILED)
    except KeyboardInterrupt:
        refuse(["It was interrupted. Give the command again: it goes on where it was."], FAILED)


def _end(result: Result, *, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(result.record(), indent=2))
    else:
        _print(_result_lines(result))
        _print_left(result)
    if result.interrupted is not None:
        refuse([f"{result.interrupted} Give the command again: it goes on where it was."], FAILED)
    raise typer.Exit(0 if result.is_complete else FAILED)


def _result_lines(result: Result) -> Iterable[str]:
    said = ", ".join(f"{count} {outcome.replace('_', ' ')}" for outcome, count in sorted(result.counts.items()))
    yield f"{result.source}: {said or 'nothing to do'}{' (dry run)' if result.dry_run else ''}"
    if result.resumed:
        yield f"{result.resumed} rows were half done by an earlier run."
    written = result.counts.total()
    if result.seconds > 0.1 and written > 100:
        yield f"Written in {result.seconds:.1f} s, {written / result.seconds:,.0f} rows/s."
    for row_id, fires in result.in_flight.items():
        yield f"v3 has fired {row_id} itself, due at {', '.join(fires)}."
    yield from result.notes


def _standing_lines(found: Standing) -> Iterable[str]:
    yield found.source
    for state, count in sorted(found.counts.items()):
        yield f"  {state}: {count}"
    yield f"  left in v3's table: {found.left_in_v3}"
    if found.under_way:
        yield f"  half done: {found.under_way}; give cutover or rollback again"
    for row_id in found.added_again:
        yield f"  added again by v3's application, so fired twice: {row_id}"
    for other in found.other_sources:
        yield f"  carried over from another table, too: {other}"


def _print(lines: Iterable[str]) -> None:
    for line in lines:
        typer.echo(line)


def _print_left(result: Result) -> None:
    left = [row for row in result.rows if row.outcome not in ENDED]
    if not left:
        return
    table = RichTable("job", "outcome", "why")
    for row in left[:_SHOWN]:
        table.add_row(row.id, row.outcome, row.text)
    Console(highlight=False).print(table)
    if len(left) > _SHOWN:
        typer.echo(f"and {len(left) - _SHOWN} more: --json has them all.")


COMMANDS: tuple[Callable[..., Any], ...] = (cutover, rollback, status)
"""What ``duetime migrate v3`` takes in."""
