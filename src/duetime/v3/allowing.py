"""The application's classes that an operator allows to be carried over as data."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Iterable, Mapping
from importlib import import_module
from typing import Any

from duetime.errors import ClassNotAllowed


class Allowed:
    """The application's enums and dataclasses whose members and instances may be carried over as data.

    :param references: ``module:Class``, as the operator names them; their modules are imported, and no others
    :raises ClassNotAllowed: if one cannot be found, or is neither an enum nor a dataclass
    """

    def __init__(self, references: Iterable[str] = ()) -> None:
        self.classes: Mapping[str, type[Any]] = {reference: _resolved(reference) for reference in references}


def _resolved(reference: str) -> type[Any]:
    module, colon, name = reference.partition(":")
    if not (module and colon and name):
        raise ClassNotAllowed(f"expected a class as module:Class, got {reference!r}.")
    try:
        found: Any = import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
    except Exception as exc:  # importing the application's module may raise anything
        raise ClassNotAllowed(
            f"expected a class that can be imported, got {reference!r}: {type(exc).__name__}: {exc}. Run the command "
            f"where the application's modules can be imported."
        ) from exc
    if isinstance(found, type) and (issubclass(found, enum.Enum) or dataclasses.is_dataclass(found)):
        return found
    raise ClassNotAllowed(
        f"expected an enum or a dataclass, got {reference!r}, which is {found!r:.100}. Other classes cannot be carried "
        f"over as data; give the task plain arguments, and build the object in it."
    )
