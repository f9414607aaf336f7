"""Which registered task a function of v3 is: by the function itself, or by what the operator's mapping file says."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from duetime.errors import InvalidMapping, did_you_mean
from duetime.tasks import RegisteredTask, TaskRegistry, reference

from .model import Finding

EXECUTORS = ("auto", "async", "threadpool", "processpool")
"""Executors of Duetime that one of v3 can be named as."""


class Tasks:
    """Finds the registered task of a v3 function reference.

    A reference fits a task whose function has that very module and qualified name. Short names, other modules and
    names that look alike never fit: those are for the mapping to say.

    :param mapping: v3's ``module:name`` → name of a registered task
    :raises InvalidMapping: if it names tasks that are not registered
    """

    def __init__(self, registry: TaskRegistry, mapping: Mapping[str, str] | None = None) -> None:
        self._by_reference: dict[str, list[RegisteredTask]] = {}
        for task in registry:
            self._by_reference.setdefault(reference(task.func), []).append(task)
        self._mapped: dict[str, RegisteredTask] = {}
        names = [task.name for task in registry]
        unknown: list[dict[str, str]] = []
        for old, name in (mapping or {}).items():
            mapped = registry.get(name)
            if mapped is None:
                unknown.append({"where": old, "problem": f"no task is named {name!r}{did_you_mean(name, names)}"})
            else:
                self._mapped[old] = mapped
        if unknown:
            listed = "; ".join(f"{each['where']!r}: {each['problem'].removesuffix('.')}" for each in unknown)
            raise InvalidMapping(
                f"expected the names of registered tasks in the mapping, got {listed}. Registered tasks: "
                f"{', '.join(names[:10]) or 'none'}.",
                details=unknown,
            )

    def find(self, function: str) -> tuple[RegisteredTask | None, list[Finding]]:
        """Return the task, or None with what the operator can do."""
        if mapped := self._mapped.get(function):
            return mapped, [Finding("mapped_task", f"{function} is the task {mapped.name} by the mapping.", "note")]
        fitting = self._by_reference.get(function, [])
        if len(fitting) == 1:
            return fitting[0], []
        if fitting:
            names = ", ".join(task.name for task in fitting)
            said = (
                f"expected one task of the function {function}, got several: {names}. Say which one in the mapping "
                f'file: "{function}" = "{fitting[0].name}"'
            )
            return None, [Finding("ambiguous_task", said, "review")]
        return None, [Finding("unknown_task", self._unknown(function), "review")]

    def _unknown(self, function: str) -> str:
        said = (
            f"expected a registered task whose function is {function}, got none. Decorate the function with "
            f"@duetime.task in a module that --tasks names; or, if it has another name now, write it into the mapping "
            f'file: "{function}" = "name of the task"'
        )
        if function.startswith("__main__:"):
            said += ". The job was added by a script that was run itself, so v3 has not stored the name of its module"
        return said


def read_mapping(path: Path) -> dict[str, str]:
    """Return what a mapping file says: TOML, or JSON if its name ends in ``.json``.

    :raises InvalidMapping: if it cannot be read, or is not text to text
    """
    try:
        raw = path.read_bytes().decode("utf-8-sig")
        data: Any = json.loads(raw) if path.suffix.lower() == ".json" else tomllib.loads(raw)
    except OSError as exc:
        raise InvalidMapping(f"expected a mapping file that can be read, got {path}: {exc.strerror}.") from None
    except (ValueError, RecursionError) as exc:  # neither TOML nor JSON nor UTF-8
        raise InvalidMapping(
            f"expected a mapping file in TOML (or JSON, if it is named .json), got {path}: {exc}. "
            f'Each line says: "module:function" = "name of the task"'
        ) from None
    wrong = (
        [key for key, value in data.items() if not isinstance(value, str)] if isinstance(data, dict) else [str(path)]
    )
    wrong += [key for key in data if ":" not in key] if isinstance(data, dict) and not wrong else []
    if wrong:
        raise InvalidMapping(
            f'expected lines such as "module:function" = "name of the task" in {path}, got something else at '
            f"{wrong[0]!r}. In TOML the function has to stand in quotes."
        )
    return dict(data)


def read_executors(given: Iterable[str]) -> dict[str, str]:
    """Return what ``name=executor`` texts say: which of Duetime's executors one of v3's is.

    :raises InvalidMapping: if one of them is not of that form, or no such executor exists
    """
    found: dict[str, str] = {}
    for text in given:
        name, _, executor = text.partition("=")
        if not name or executor not in EXECUTORS:
            raise InvalidMapping(
                f"expected NAME=EXECUTOR with one of {', '.join(EXECUTORS)}, got {text!r}"
                f"{did_you_mean(executor, EXECUTORS)}"
            )
        found[name] = executor
    return found
