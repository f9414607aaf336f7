from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from duetime import errors
from duetime.errors import DuetimeError
from duetime.web.problems import MAX_DETAIL, STATUS, Problem, documented, problem_response


def tree(base: type[DuetimeError]) -> Iterator[type[DuetimeError]]:
    yield base
    for child in base.__subclasses__():
        yield from tree(child)


OURS = [error for error in tree(DuetimeError) if error.__module__ == errors.__name__]


def made(error: type[DuetimeError], message: str) -> DuetimeError:
    """Return an error of any class of the tree, whatever its own constructor takes."""
    instance = error.__new__(error)
    DuetimeError.__init__(instance, message)
    return instance


def document_of(error: DuetimeError) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(bytes(problem_response(error).body))
    return document


def test_every_error_of_the_tree_has_a_decided_status() -> None:
    assert {error.code for error in OURS} == set(STATUS)


def test_every_code_belongs_to_one_class() -> None:
    assert len({error.code for error in OURS}) == len(OURS)


@pytest.mark.parametrize("error", OURS, ids=lambda error: error.code)
def test_every_error_becomes_a_problem_document_with_a_title_of_its_own(error: type[DuetimeError]) -> None:
    document = document_of(made(error, "expected this, got that."))
    Problem.model_validate(document)
    assert document["type"] == f"urn:duetime:error:{error.code}"
    assert document["code"] == error.code
    assert document["status"] == STATUS[error.code]
    assert document["detail"] == "expected this, got that."
    assert document["title"]
    assert not set(document["title"]) & set("`\n;")
    assert [document_of(made(other, ""))["title"] for other in OURS].count(document["title"]) == 1


def test_an_error_of_an_application_with_a_code_of_its_own_is_an_internal_one() -> None:
    class OutOfStampsError(DuetimeError):
        """There are no stamps left."""

        code = "out_of_stamps"

    document = document_of(OutOfStampsError("expected stamps, got none."))
    assert (document["status"], document["title"]) == (500, "There are no stamps left")


def test_a_detail_that_quotes_a_long_text_is_cut() -> None:
    assert len(document_of(made(DuetimeError, "x" * 1_000_000))["detail"]) == MAX_DETAIL + 1


@pytest.mark.parametrize("text", ["ä €", "\ud800", '"\\', "\x00"])
def test_any_text_can_be_in_a_problem(text: str) -> None:
    assert document_of(made(DuetimeError, text))["detail"] == text


def test_documented_responses_are_examples_of_what_is_answered() -> None:
    responses = documented(errors.ScheduleNotFound, errors.InvalidTrigger, errors.UnknownTimeZone)
    assert list(responses) == [404, 422, 500]
    content = responses[422]["content"]["application/problem+json"]
    assert set(content["examples"]) == {"invalid_trigger", "unknown_time_zone"}
    for example in content["examples"].values():
        Problem.model_validate(example["value"])
