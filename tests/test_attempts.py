"""Attempts: for which errors one is made again, and what a function knows of its own."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any

import httpx
import pytest
from pydantic import ValidationError

from duetime import Retry, current_attempt
from duetime.attempts import error_name
from duetime.errors import NotInJob, TaskTimeout


class OwnError(ConnectionError):
    pass


OWN = f"{__name__}.OwnError"


@pytest.mark.parametrize(
    ("policy", "error", "why"),
    [
        ({}, ValueError(), None),
        ({"retry_on": ["ConnectionError"]}, OwnError(), None),
        ({"retry_on": ["OSError"]}, OwnError(), None),
        ({"retry_on": ["builtins.OSError"]}, OwnError(), None),
        ({"retry_on": [OWN]}, OwnError(), None),
        ({"retry_on": [OWN]}, ConnectionError(), "retry_on does not have it"),
        ({"retry_on": ["ValueError", "KeyError"]}, OwnError(), "retry_on does not have it"),
        ({"retry_on": ["other.OwnError"]}, OwnError(), "retry_on does not have it"),
        ({"retry_on": ["TimeoutError"]}, TaskTimeout("late"), None),
        ({"retry_on": ["duetime.errors.TaskTimeout"]}, TaskTimeout("late"), None),
        ({"give_up_on": ["OSError"]}, OwnError(), "give_up_on has OSError"),
        ({"give_up_on": ["OSError"]}, ValueError(), None),
        ({"retry_on": ["OSError"], "give_up_on": [OWN]}, OwnError(), f"give_up_on has {OWN}"),
        ({"retry_on": ["OSError"], "give_up_on": [OWN]}, ConnectionError(), None),
        ({"retry_on": [httpx.HTTPError]}, httpx.ConnectTimeout("late"), None),
    ],
)
def test_an_error_is_known_by_the_names_of_its_class_and_of_those_above_it(
    policy: dict[str, Any], error: Exception, why: str | None
) -> None:
    assert Retry(**policy).refuses(error) == why


@pytest.mark.parametrize(
    ("policy", "sentence"),
    [
        ({"retry_on": ["ConnectonError"]}, "did you mean 'ConnectionError'?"),
        ({"retry_on": ["HTTPError"]}, "a name with its module"),
        ({"retry_on": [5]}, "qualified name"),
        ({"retry_on": [int]}, "qualified name"),
        ({"retry_on": ["os; system"]}, "qualified name"),
        ({"retry_on": ["ValueError"] * 51}, "at most 50"),
        ({"retry_on": ["ValueError"], "give_up_on": [ValueError]}, "ValueError in retry_on or in give_up_on"),
        ({"max_attempts": 1, "give_up_on": ["ValueError"]}, "max_attempts of 2 or more"),
    ],
)
def test_a_policy_that_makes_no_sense_is_refused(policy: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValidationError) as refused:
        Retry(**policy)
    assert sentence in str(refused.value)


def test_all_that_is_wrong_with_a_policy_is_said_at_once() -> None:
    with pytest.raises(ValidationError) as refused:
        Retry(max_attempts=1, retry_on=["KeyError"], give_up_on=["KeyError"])
    assert "KeyError in retry_on or in give_up_on" in str(refused.value)
    assert "max_attempts of 2 or more" in str(refused.value)


def test_a_policy_has_a_plain_form_that_leaves_out_what_it_does_not_say() -> None:
    assert Retry().model_dump().keys() == {"max_attempts", "backoff", "factor", "max_backoff", "jitter"}
    policy = Retry(retry_on=[OwnError, "KeyError"], give_up_on=("ValueError",))
    stored = json.loads(json.dumps(policy.model_dump()))
    assert (stored["retry_on"], stored["give_up_on"]) == ([OWN, "KeyError"], ["ValueError"])
    assert Retry.model_validate(stored) == policy
    assert Retry().shown()["retry_on"] == []


def test_the_longest_wait_is_that_of_all_waits_with_their_jitter() -> None:
    assert Retry(max_attempts=4, backoff=10, factor=2, max_backoff=25, jitter=0.1).longest() == timedelta(seconds=60.5)
    assert Retry(max_attempts=1).longest() == timedelta(0)


def test_a_class_is_named_as_an_import_would_name_it() -> None:
    assert error_name(ValueError) == "ValueError"
    assert error_name(OwnError) == OWN


def test_outside_a_job_there_is_no_attempt() -> None:
    with pytest.raises(NotInJob, match="a task function that a node runs"):
        current_attempt()
