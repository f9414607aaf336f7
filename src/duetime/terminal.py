"""What all commands do alike: refuse in plain words, and end where a task module cannot be imported."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NoReturn

import typer
from rich.console import Console
from rich.text import Text

from .importing import problems_of_import

FAILED = 1
"""Exit status: the operation failed, or something is left."""

WRONG_USAGE = 2
"""Exit status: wrong usage or settings."""


def refuse(problems: Iterable[str], status: int) -> NoReturn:
    """Print the problems to standard error and end."""
    console = Console(stderr=True, soft_wrap=True, highlight=False)
    for problem in problems:
        console.print(Text.assemble(("Error: ", "bold red"), problem))
    raise typer.Exit(status)


def import_task_modules(names: Iterable[str]) -> None:
    """Import the modules, from the current directory as well, as ``python -m`` does.

    One that cannot be imported ends the command with the place in the user's code.
    """
    if problems := problems_of_import(names):
        refuse(problems, WRONG_USAGE)
