"""From FastAPI's account of a request that has not the documented shape to an error that says what to do."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args, get_origin

from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel

from ..errors import DuetimeError, InvalidRequest, InvalidTrigger, did_you_mean

MAX_LISTED = 20
"""Wrong values that are listed; a body of many items could name thousands."""

_WORDS = {
    "model_type": "an object",
    "model_attributes_type": "an object",
    "dict_type": "an object",
    "list_type": "an array",
}


def explain(exc: RequestValidationError, shapes: Mapping[str, Any] | None = None) -> DuetimeError:
    """Return the error of our tree that a validation error amounts to, with one detail per wrong value.

    :param shapes: the models of the request's parts (``body``, ``query``), from which misspelt names are
        corrected
    """
    errors = exc.errors()
    details = [_detail(error, shapes or {}) for error in errors[:MAX_LISTED]]
    listed = "; ".join(f"{detail['where']}: {detail['problem'].removesuffix('.')}" for detail in details)
    if len(errors) > MAX_LISTED:
        listed += f"; and {len(errors) - MAX_LISTED} more"
    listed += "" if listed.endswith("?") else "."
    if all(tuple(error["loc"][:2]) == ("body", "trigger") for error in errors):
        return InvalidTrigger(
            f"expected a trigger of a documented form, but: {listed} `/openapi.json` describes the forms.",
            details=details,
        )
    return InvalidRequest(
        f"expected a request of the documented shape, but: {listed} `/openapi.json` describes it.",
        details=details,
    )


def _detail(error: Mapping[str, Any], shapes: Mapping[str, Any]) -> dict[str, str]:
    where, models = _place(error["loc"], shapes)
    return {"where": where, "problem": _problem(error, models)}


def _problem(error: Mapping[str, Any], models: Sequence[type[BaseModel]]) -> str:
    """Return what is wrong with one value; ``models`` have its field, or are what its tag chooses from."""
    kind, message = str(error["type"]), str(error["msg"])
    if kind == "extra_forbidden":
        name = str(error["loc"][-1])
        return f"expected a known field, got {_shown(name)}{did_you_mean(name, _names(models))}"
    if kind == "missing":
        return "expected a JSON body, got none" if error["loc"] == ("body",) else "expected a value, got none"
    if kind.startswith("union_tag"):
        tags = [tag for model in models for tag in _tags(model)]
        given = (error.get("ctx") or {}).get("tag")
        hint = "none." if given is None else f"{_shown(given)}{did_you_mean(str(given), tags)}"
        return f"expected `type` to be one of {', '.join(tags)}, got {hint}"
    if kind == "value_error":
        return message.removeprefix("Value error, ")
    if kind in ("enum", "literal_error"):
        known = re.findall(r"'([^']*)'", str((error.get("ctx") or {}).get("expected")))
        hint = did_you_mean(str(error.get("input")), known)
        return f"expected {', '.join(known)}, got {_shown(error.get('input'))}{hint}"
    expected = f"expected {_WORDS[kind]}" if kind in _WORDS else message.replace("Input should be", "expected", 1)
    return f"{expected}, got {_shown(error.get('input'))}"


def _shown(value: Any) -> str:
    """Return a value of a JSON document as a sentence can name it."""
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, list):
        return "an array"
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}…"


def _place(loc: Sequence[str | int], shapes: Mapping[str, Any]) -> tuple[str, list[type[BaseModel]]]:
    """Return the place of a value as its sender knows it, and the models that decide about it.

    Pydantic's own places also name the chosen member of a union, which is nowhere in the document.
    """
    parts = [str(loc[0])]
    owners: list[type[BaseModel]] = []
    models = _models(shapes.get(str(loc[0])))
    for step in loc[1:]:
        fields = [model.model_fields[step] for model in models if step in model.model_fields]
        chosen = [model for model in models if step in _tags(model)]
        if not fields and chosen:
            models = chosen
            continue
        parts.append(str(step))
        if not isinstance(step, int):
            owners, models = models, [found for field in fields for found in _models(field.annotation)]
    return ".".join(parts), models or owners


def _models(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for argument in get_args(annotation) for model in _models(argument)]


def _names(models: Sequence[type[BaseModel]]) -> list[str]:
    return [name for model in models for name in model.model_fields]


def _tags(model: type[BaseModel]) -> tuple[Any, ...]:
    """Return the values of ``type`` that choose this member of a union."""
    field = model.model_fields.get("type")
    return get_args(field.annotation) if field is not None and get_origin(field.annotation) is Literal else ()
