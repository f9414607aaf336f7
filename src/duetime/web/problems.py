"""Problem documents (RFC 9457): what a refused or failed request gets, and the status of each error."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Annotated, Any

from pydantic import BaseModel, Field
from starlette.responses import Response

from ..errors import DuetimeError

MEDIA_TYPE = "application/problem+json"
INTERNAL_ERROR = "internal_error"

STATUS: Mapping[str, int] = {
    # What the caller can mend.
    "invalid_json": 400,
    "invalid_cursor": 400,
    "unauthorized": 401,
    "cross_origin_refused": 403,
    "schedule_not_found": 404,
    "run_not_found": 404,
    "job_not_found": 404,
    "schedule_exists": 409,
    "precondition_failed": 412,
    "request_too_large": 413,
    "arguments_too_large": 413,
    "unsupported_media_type": 415,
    "invalid_request": 422,
    "invalid_schedule_id": 422,
    "unknown_task": 422,
    "ambiguous_task": 422,
    "invalid_arguments": 422,
    "invalid_options": 422,
    "invalid_schedule": 422,
    "unsupported_value": 422,
    "invalid_trigger": 422,
    "unknown_time_zone": 422,
    "trigger_never_fires": 422,
    "fires_too_often": 422,
    "too_many_fires": 422,
    # What time or an operator mends; the same request may then pass.
    "store_unavailable": 503,
    "not_started": 503,
    "schema_too_new": 503,
    "local_database_failed": 503,
    # What only a change of the application or its configuration mends, or what ends a run and reaches no
    # request.
    "error": 500,
    "invalid_settings": 500,
    "invalid_mapping": 500,
    "migration_failed": 500,
    "invalid_task": 500,
    "duplicate_task": 500,
    "unreadable_value": 500,
    "no_equivalent": 500,
    "unknown_executor": 500,
    "not_in_job": 500,
    "task_timeout": 500,
    "task_aborted": 500,
    "address_refused": 500,
    "request_failed": 500,
    "unexpected_response": 500,
    "notification_failed": 500,
    # What ends a migration from APScheduler 3; no request asks for one.
    "unreadable_pickle": 500,
    "class_not_allowed": 500,
    "invalid_source": 500,
    "not_a_v3_table": 500,
    "source_refused": 500,
    "source_unavailable": 500,
    "v3_not_changeable": 500,
    "v3_migration_running": 500,
    "v3_migration_unfinished": 500,
    "v3_still_running": 500,
}
"""The status of each error's code. A code that is not here, of an application's own subclass, has 500."""

HEADERS: Mapping[str, Mapping[str, str]] = {
    "unauthorized": {"WWW-Authenticate": 'Bearer realm="duetime"'},
    "store_unavailable": {"Retry-After": "5"},
    "not_started": {"Retry-After": "5"},
}

MAX_DETAIL = 2000
"""Characters of a detail; what the caller sent may be quoted in it and be long."""


class Problem(BaseModel):
    """Why a request was refused or failed (RFC 9457). Decide by ``code``; show ``detail`` to people."""

    type: Annotated[
        str,
        Field(description="URI of the kind of problem.", examples=["urn:duetime:error:unknown_task"]),
    ]
    title: Annotated[str, Field(description="The kind of problem; the same each time.")]
    status: Annotated[int, Field(description="The HTTP status.")]
    detail: Annotated[str, Field(description="What was expected, what came, and what to do.")]
    code: Annotated[str, Field(description="Stable name of the kind of problem.", examples=["unknown_task"])]
    errors: Annotated[
        list[dict[str, Any]],
        Field(description="One `{where, problem}` per wrong value; empty when the detail says it all."),
    ] = []


SCHEMA = Problem.model_json_schema()
"""The JSON Schema of problem documents."""


class ProblemResponse(Response):
    """A problem document. Any text can be in it, lone surrogates too: they are escaped instead of failing."""

    media_type = MEDIA_TYPE

    def render(self, content: Any) -> bytes:
        """Return the document as UTF-8."""
        return json.dumps(content, ensure_ascii=False, default=str).encode("utf-8", "backslashreplace")


def status_of(error: DuetimeError) -> int:
    """Return the HTTP status of an error."""
    return STATUS.get(error.code, 500)


def problem_response(error: DuetimeError) -> ProblemResponse:
    """Return the answer to a request that ended with this error."""
    document = _document(status_of(error), error.code, _title(type(error)), error.message, errors=error.details)
    return ProblemResponse(document, document["status"], headers=dict(HEADERS.get(error.code, {})))


def internal_error() -> ProblemResponse:
    """Return the answer to a request that ended with an unforeseen error; it shows nothing of the inside."""
    return ProblemResponse(_internal_error(), 500)


def http_problem(status: int, detail: str, headers: Mapping[str, str] | None = None) -> ProblemResponse:
    """Return a problem that means no more than its HTTP status (RFC 9457, section 4.2.1)."""
    code = {404: "not_found", 405: "method_not_allowed"}.get(status, f"http_{status}")
    try:
        title = HTTPStatus(status).phrase
    except ValueError:
        title = code
    document = _document(status, code, title, detail, kind="about:blank")
    return ProblemResponse(document, status, headers=dict(headers or {}))


def method_not_allowed(method: str, allowed: Sequence[str]) -> ProblemResponse:
    """Return the answer to a request whose path has no such method."""
    listed = ", ".join(sorted(allowed))
    return http_problem(405, f"expected one of the methods {listed}, got {method}.", {"Allow": listed})


def documented(*errors: type[DuetimeError]) -> dict[int | str, dict[str, Any]]:
    """Return the OpenAPI responses of an operation that can end with these errors, or with an internal one.

    The schema is written out in each, because FastAPI would give a response model the media type
    ``application/json``; :func:`share_schema` makes references of the copies.
    """
    examples: dict[int, list[dict[str, Any]]] = {500: [_internal_error()]}
    for error in errors:
        title = _title(error)
        document = _document(STATUS[error.code], error.code, title, f"{title}.")
        examples.setdefault(document["status"], []).append(document)
    return {
        status: {
            "description": "\n\n".join(f"`{document['code']}`: {document['title']}." for document in documents),
            "content": {
                MEDIA_TYPE: {
                    "schema": SCHEMA,
                    "examples": {document["code"]: {"value": document} for document in documents},
                }
            },
        }
        for status, documents in sorted(examples.items())
    }


def share_schema(openapi: dict[str, Any]) -> None:
    """Put the schema of problem documents among the components and refer to it from every operation."""
    operations = (operation for path in openapi.get("paths", {}).values() for operation in path.values())
    for operation in operations:
        for response in operation.get("responses", {}).values():
            if (content := response.get("content", {}).get(MEDIA_TYPE)) is not None:
                content["schema"] = {"$ref": "#/components/schemas/Problem"}
    openapi.setdefault("components", {}).setdefault("schemas", {})["Problem"] = SCHEMA


def _title(error: type[DuetimeError]) -> str:
    """Return the kind of an error as one phrase: the beginning of its class's docstring."""
    phrase = re.split(r"\n\n|; | \(|\.(?:\s|$)", inspect.getdoc(error) or error.code)[0]
    return " ".join(phrase.replace("``", "").split())


def _internal_error() -> dict[str, Any]:
    return _document(
        500,
        INTERNAL_ERROR,
        "Something went wrong inside",
        "expected to answer this request, got an internal error, which the log of this node describes. "
        "Try again; if it stays, report it.",
    )


def _document(
    status: int,
    code: str,
    title: str,
    detail: str,
    *,
    errors: Sequence[Mapping[str, Any]] = (),
    kind: str | None = None,
) -> dict[str, Any]:
    return {
        "type": kind or f"urn:duetime:error:{code}",
        "title": title,
        "status": status,
        "detail": detail if len(detail) <= MAX_DETAIL else f"{detail[:MAX_DETAIL]}…",
        "code": code,
        "errors": list(errors),
    }
