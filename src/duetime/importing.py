"""Importing the application's task modules, and saying in plain words what is wrong with one."""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from collections.abc import Iterable


def problems_of_import(names: Iterable[str]) -> list[str]:
    """Import the modules and return one sentence for each that cannot be imported."""
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.insert(0, os.getcwd())
    problems = []
    for name in names:
        try:
            importlib.import_module(name)
        except (Exception, SystemExit) as exc:
            problems.append(f"expected to import the task module {name!r}, got {_own_words(exc)}.")
    return problems


def _own_words(exc: BaseException) -> str:
    """Return an import's error with the place in the user's code where it arose."""
    said = "".join(traceback.format_exception_only(exc)).strip().splitlines()[-1]
    places = [
        (frame.filename, frame.lineno)
        for frame in traceback.extract_tb(exc.__traceback__)
        if not frame.filename.startswith("<frozen") and frame.filename not in (__file__, importlib.__file__)
    ]
    if isinstance(exc, SyntaxError) and exc.filename:
        places.append((exc.filename, exc.lineno))
    return f"{said} ({places[-1][0]}, line {places[-1][1]})" if places else said
