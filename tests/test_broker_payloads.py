"""What of an event travels between nodes, and what is built of whatever stands on the channel."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

import apscheduler
import attrs
import pytest
from apscheduler import Event, JobOutcome, JobReleased
from hypothesis import example, given
from hypothesis import strategies as st

from duetime.broker import _EVENTS, MAX_PAYLOAD, PostgresEventBroker, decode, encode

NOW = datetime(2026, 6, 1, 12, 0, 0, 123456, tzinfo=UTC)
ID = UUID("0193a7c0-0000-7000-8000-000000000001")
VALUES: dict[str, Any] = {
    "timestamp": NOW,
    "task_id": "task ü\n",
    "schedule_id": "schedule",
    "next_fire_time": NOW,
    "finished": True,
    "job_id": ID,
    "scheduler_id": "node",
    "scheduled_start": NOW,
    "started_at": NOW,
    "outcome": JobOutcome.error,
    "exception_type": "ValueError",
    "exception_message": "no",
}


def an_event(kind: type[Event], **values: Any) -> Event:
    wanted = {attribute.name for attribute in attrs.fields(kind)}
    return kind(**{name: value for name, value in {**VALUES, **values}.items() if name in wanted})


# -- what travels ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", _EVENTS.values(), ids=_EVENTS)
def test_an_event_comes_back_as_it_went(kind: type[Event]) -> None:
    event = an_event(kind)
    text = encode(event)
    assert text is not None
    assert "\n" not in text, "lines part the events of a payload"
    assert decode(text) == event


@pytest.mark.parametrize("kind", _EVENTS.values(), ids=_EVENTS)
def test_what_is_not_known_comes_back_as_not_known(kind: type[Event]) -> None:
    optional = {name: None for name in VALUES if name not in ("timestamp", "job_id", "outcome", "finished")}
    event = an_event(kind, **optional)
    text = encode(event)
    assert text is not None
    assert decode(text) == event


@pytest.mark.parametrize("outcome", JobOutcome)
def test_every_outcome_travels(outcome: JobOutcome) -> None:
    event = an_event(JobReleased, outcome=outcome)
    assert decode(encode(event) or "") == event


def test_an_event_with_an_exception_object_stays_on_its_node() -> None:
    for event in (
        apscheduler.JobDeserializationFailed(job_id=ID, exception=ValueError("x")),
        apscheduler.ScheduleDeserializationFailed(schedule_id="s", exception=ValueError("x")),
    ):
        assert encode(event) is None
        assert PostgresEventBroker("").message([event]) == ""


def test_a_long_text_is_cut_and_the_event_still_travels() -> None:
    event = an_event(JobReleased, exception_message="x" * 100_000, exception_type="\x00ü" * 50_000)
    text = encode(event)
    assert text is not None
    assert len(text.encode()) < MAX_PAYLOAD
    travelled = decode(text)
    assert isinstance(travelled, JobReleased)
    assert travelled.job_id == ID
    assert travelled.exception_message == "x" * 1000


def test_a_message_is_never_longer_than_postgresql_takes_and_leaves_out_what_does_not_fit() -> None:
    broker = PostgresEventBroker("")
    message = broker.message([an_event(JobReleased) for _ in range(200)])
    assert len(message.encode()) <= MAX_PAYLOAD
    assert 5 < message.count("\n") < 200


def test_as_many_messages_are_made_as_the_events_need() -> None:
    events = [an_event(JobReleased, job_id=uuid4()) for _ in range(200)]
    messages = PostgresEventBroker("").messages(events)
    assert all(len(message.encode()) <= MAX_PAYLOAD for message in messages)
    travelled = [decode(line) for message in messages for line in message.split("\n")[1:]]
    assert travelled == events


def test_no_message_is_made_of_nothing() -> None:
    assert PostgresEventBroker("").message([]) == ""
    assert PostgresEventBroker("").messages([]) == []


# -- what does not ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "JobAdded",
        "JobAdded ",
        "JobAdded null",
        "JobAdded []",
        "JobAdded 5",
        'JobAdded "text"',
        "JobAdded {",
        'JobAdded {"job_id": "no id"}',
        'JobAdded {"job_id": "0193a7c0-0000-7000-8000-000000000001", "timestamp": "yesterday"}',
        'JobAdded {"job_id": "0193a7c0-0000-7000-8000-000000000001", "surprise": 1}',
        'JobReleased {"job_id": "0193a7c0-0000-7000-8000-000000000001", "outcome": "banana"}',
        'ScheduleAdded {"next_fire_time": 1e999}',
        f"JobAdded {'[' * 7000}",
        f"JobAdded {'[' * 3500}{']' * 3500}",
        'Event {"timestamp": "2026-06-01T12:00:00Z"}',
        'SchedulerStopped {"exception": {"_apscheduler_json": ["builtins:ValueError", []]}}',
        'JobDeserializationFailed {"job_id": "0193a7c0-0000-7000-8000-000000000001", "exception": "x"}',
        'os.system {"command": "true"}',
        '__import__ {"name": "os"}',
    ],
)
def test_what_is_no_event_builds_nothing(text: str) -> None:
    assert decode(text) is None


def _is_plain(event: Event) -> bool:
    """Return whether the values of an event are of the kinds that they say they are."""
    return all(
        value is None or isinstance(value, type(VALUES[name]))
        for name, value in attrs.asdict(event, recurse=False).items()
    )


built_of_payloads: list[object] = []


class Gadget:
    """What somebody who can write to the channel would like to have built here."""

    def __setstate__(self, state: object) -> None:
        built_of_payloads.append(state)


@pytest.mark.parametrize("key", ["_apscheduler_json", "$trigger", "__class__", "py/object"])
def test_no_payload_has_a_class_built_that_it_names(key: str) -> None:
    gadget = {key: [f"{__name__}:Gadget", {"x": 1}]}
    for name in _EVENTS:
        for body in (gadget, {"timestamp": gadget}, {"task_id": gadget}, {"exception": gadget}):
            built = decode(f"{name} {json.dumps(body)}")
            assert built is None or _is_plain(built)
    assert built_of_payloads == []


@given(st.sampled_from(list(_EVENTS)), st.text() | st.from_regex(r"\{.*\}", fullmatch=True))
@example("JobAdded", "\x00")
def test_whatever_stands_on_the_channel_is_an_event_or_nothing(name: str, body: str) -> None:
    built = decode(f"{name} {body}")
    assert built is None or type(built).__name__ == name


@given(
    st.sampled_from(list(_EVENTS)),
    st.dictionaries(
        st.sampled_from([*VALUES, "other"]),
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=30) | st.lists(st.integers()),
    ),
)
def test_whatever_values_an_event_is_given_it_is_built_of_plain_ones_or_not_at_all(
    name: str, values: dict[str, Any]
) -> None:
    built = decode(f"{name} {json.dumps(values)}")
    assert built is None or _is_plain(built)
