from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from fastapi import FastAPI
from openapi_spec_validator import validate

from duetime.commands import NewSchedule
from duetime.web import build_router
from duetime.web.api import NEW_SCHEDULES
from duetime.web.problems import SCHEMA

from .door import DoorRuntime, served

REFERENCE = {"$ref": "#/components/schemas/Problem"}


def operations(document: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield f"{method.upper()} {path}", operation


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    return served(DoorRuntime()).openapi()


def test_the_document_is_valid_openapi(document: dict[str, Any]) -> None:
    validate(document)


def test_the_document_is_valid_in_another_application_too() -> None:
    app = FastAPI()
    app.include_router(build_router(DoorRuntime(api_token="a-long-enough-token")), prefix="/scheduler")
    document = app.openapi()
    validate(document)
    for _, operation in operations(document):
        assert operation["security"] == [{"token": []}]
        schema = operation["responses"]["401"]["content"]["application/problem+json"]["schema"]
        assert schema == SCHEMA


def test_the_operations_are_those_of_the_design(document: dict[str, Any]) -> None:
    assert {name for name, _ in operations(document)} == {
        "POST /api/schedules",
        "POST /api/schedules/preview",
        "POST /api/schedules/bulk",
        "DELETE /api/schedules/bulk",
        "POST /api/schedules/bulk/pause",
        "POST /api/schedules/bulk/resume",
        "GET /api/schedules",
        "GET /api/schedules/{schedule_id}",
        "PATCH /api/schedules/{schedule_id}",
        "DELETE /api/schedules/{schedule_id}",
        "POST /api/schedules/{schedule_id}/pause",
        "POST /api/schedules/{schedule_id}/resume",
        "POST /api/schedules/{schedule_id}/run",
        "POST /api/schedules/{schedule_id}/backfill",
        "GET /api/schedules/{schedule_id}/fires",
        "GET /api/schedules/{schedule_id}/explain",
        "GET /api/fires",
        "GET /api/runs",
        "GET /api/runs/{run_id}",
        "POST /api/jobs",
        "GET /api/jobs",
        "POST /api/jobs/{job_id}/cancel",
        "GET /api/tasks",
        "GET /health/live",
        "GET /health/ready",
    }


def test_every_operation_says_what_it_does_and_how_it_can_fail(document: dict[str, Any]) -> None:
    for name, operation in operations(document):
        assert operation["summary"], name
        assert len(operation["description"]) > 30, name
        assert operation["tags"], name
        assert any(
            status.startswith("2") and response["description"] != "Successful Response"
            for status, response in operation["responses"].items()
        ), name
        if "/health/" not in name:
            assert {"500", "503"} <= set(operation["responses"]), name


def test_every_failure_is_documented_as_a_problem_with_examples(document: dict[str, Any]) -> None:
    codes = set()
    for name, operation in operations(document):
        for status, response in operation["responses"].items():
            if status[0] in "45" and "/health/" not in name:
                [(media_type, content)] = response["content"].items()
                assert (media_type, content["schema"]) == ("application/problem+json", REFERENCE), name
                codes |= set(content["examples"])
    assert {"schedule_exists", "schedule_not_found", "invalid_json", "unknown_task", "run_not_found"} <= codes
    assert document["components"]["schemas"]["Problem"] == SCHEMA
    assert "HTTPValidationError" not in document["components"]["schemas"]


def test_the_documented_examples_of_a_new_schedule_are_ones(document: dict[str, Any]) -> None:
    body = document["paths"]["/api/schedules"]["post"]["requestBody"]["content"]["application/json"]
    assert set(body["examples"]) == set(NEW_SCHEDULES)
    for example in body["examples"].values():
        NewSchedule.model_validate(example["value"])


def test_a_token_is_documented_where_it_is_needed(document: dict[str, Any]) -> None:
    assert "securitySchemes" not in document["components"]
    assert "403" in document["paths"]["/api/jobs"]["post"]["responses"]
    secured = served(DoorRuntime(api_token="a-long-enough-token")).openapi()
    assert secured["components"]["securitySchemes"]["token"]["scheme"] == "bearer"
    assert "401" in secured["paths"]["/api/tasks"]["get"]["responses"]
    assert "security" not in secured["paths"]["/health/live"]["get"]
