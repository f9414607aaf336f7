"""``duetime migrate code PATH``."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from duetime.terminal import FAILED, WRONG_USAGE, refuse


def code(
    path: Annotated[Path, typer.Argument(help="A project's directory, or one file.")],
    write: Annotated[bool, typer.Option("--write", help="Change the files. Without it nothing is changed.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Rewrite the calls of APScheduler 3 in a FastAPI project to Duetime, and list what a person must decide.

    Prints the changes as a diff; the list goes to standard error. Exit status 0: nothing is left to decide, 1:
    something is, 2: wrong usage.
    """
    try:
        from .code import migrate_code
    except ModuleNotFoundError as exc:
        if (exc.name or "").partition(".")[0] not in ("libcst", "yaml"):
            raise
        refuse(["expected libcst to be installed, got none: pip install 'duetime[migrate]'."], WRONG_USAGE)
    if not path.exists():
        refuse([f"expected a directory or a file, got {str(path)!r}, which does not exist."], WRONG_USAGE)
    try:
        outcome = migrate_code(path, write=write)
    except OSError as exc:
        refuse([f"expected to read and write the files, got: {exc}."], FAILED)
    if as_json:
        typer.echo(json.dumps(outcome.to_json(), indent=2))
    else:
        for each in outcome.changed:
            sys.stdout.write(each.diff)
        for found in outcome.found:
            typer.echo(f"{'decide' if found.decide else 'note  '}  {found}", err=True)
        for file, reason in outcome.skipped.items():
            typer.echo(f"skipped {file}: {reason}", err=True)
        verb = "changed" if write else "to change (--write changes them)"
        typer.echo(
            f"{outcome.looked_at} files read, {len(outcome.changed)} {verb}, {len(outcome.decisions)} to decide",
            err=True,
        )
    raise typer.Exit(0 if outcome.is_complete else FAILED)
