"""Tasks: their names, their options, and the check of their arguments."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from enum import Enum
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, NamedTuple

import apscheduler
import pytest
from apscheduler._decorators import get_task_params
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from duetime import tasks
from duetime.attempts import NO_RETRY, Retry
from duetime.errors import AmbiguousTask, DuplicateTask, InvalidArguments, InvalidTask, UnknownTask
from duetime.options import OnCrash, Overlap, TaskOptions, concurrency_key, option_problems
from duetime.tasks import TaskRegistry, reference, storable, task


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> TaskRegistry:
    """The registry that ``@task`` fills, empty and for this test only."""
    registry = TaskRegistry()
    monkeypatch.setattr(tasks, "registry", registry)
    return registry


def function(module: str, name: str) -> Callable[[], None]:
    """Return a function as it would be if it were defined there."""

    def made() -> None:
        """Do nothing."""

    made.__module__, made.__qualname__ = module, name
    return made


# -- the decorator ---------------------------------------------------------------------------------------------------


def test_a_decorated_function_is_the_function_and_is_registered_under_its_reference(registry: TaskRegistry) -> None:
    def work() -> str:
        return "done"

    decorated = task(work)
    assert decorated is work
    assert work() == "done"
    [registered] = registry
    assert registered.func is work
    assert registered.name == reference(work)


def test_a_name_and_options_travel_to_apscheduler(registry: TaskRegistry) -> None:
    @task(
        name="send",
        timeout=30,
        retry=Retry(max_attempts=5),
        overlap="allow",
        on_crash="abandon",
        misfire_grace_time=timedelta(minutes=1),
        max_running_jobs=3,
        executor="threadpool",
    )
    def send() -> None: ...

    parameters = get_task_params(send)
    assert (parameters.id, parameters.job_executor, parameters.max_running_jobs) == ("send", "threadpool", 3)
    assert parameters.misfire_grace_time == timedelta(minutes=1)
    assert isinstance(parameters.metadata, dict)
    options = TaskOptions.from_metadata(parameters.metadata)
    assert options == registry.find("send").options
    assert options == TaskOptions(timedelta(seconds=30), Retry(max_attempts=5), Overlap.allow, OnCrash.abandon)


def test_without_options_a_task_has_no_limit_skips_overlaps_and_runs_again_after_a_crash(
    registry: TaskRegistry,
) -> None:
    @task(name="plain")
    def plain() -> None: ...

    parameters = get_task_params(plain)
    assert (parameters.job_executor, parameters.max_running_jobs, parameters.misfire_grace_time) == ("auto", None, None)
    assert registry.find("plain").options == TaskOptions(None, NO_RETRY, Overlap.skip, OnCrash.retry)


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"timeout": 0}, "timeout"),
        ({"timeout": -1}, "timeout"),
        ({"timeout": True}, "timeout"),
        ({"timeout": "30"}, "timeout"),
        ({"timeout": float("nan")}, "NaN"),
        ({"timeout": 1e300}, "expected timeout in seconds that a timedelta can have"),
        ({"misfire_grace_time": 0}, "misfire_grace_time"),
        ({"misfire_grace_time": float("inf")}, "infinity"),
        ({"overlap": "sometimes"}, "sometimes"),
        ({"on_crash": "cry"}, "cry"),
        ({"overlap": "bufer_one"}, "did you mean 'buffer_one'"),
        ({"catch_up": "al"}, "did you mean 'all'"),
        ({"catch_up_window": 5}, "at least 10 s, got 5 s"),
        ({"catch_up": "none", "catch_up_window": 60}, "makes up for nothing, got both"),
        ({"catch_up_overlap": "allow"}, 'only with catch_up="all"'),
        ({"catch_up": "all", "catch_up_overlap": "skip"}, 'that is catch_up="latest"'),
        ({"catch_up": "none", "catch_up_window": 5, "priority": 10}, "(?s)priority.*at least.*makes up for nothing"),
        ({"priority": True}, "priority from 0 to 9"),
        ({"concurrency_key": "customer"}, "parameter of .*, got 'customer'"),
        ({"max_running_per_key": 2}, "together with concurrency_key"),
        ({"retry": 5}, r"Retry\(max_attempts=5\)"),
        ({"start_deadline": 0}, "start_deadline"),
        ({"on_failure": ""}, "on_failure"),
        ({"on_failure": 5}, "on_failure"),
        ({"on_failure": len}, "decorated with @task"),
        ({"pause_on_failure": 0}, "pause_on_failure"),
        ({"pause_on_failure": 101}, "pause_on_failure"),
        ({"pause_on_failure": True}, "pause_on_failure"),
        ({"max_running_jobs": 0}, "max_running_jobs"),
        ({"max_running_jobs": -1}, "max_running_jobs"),
        ({"max_running_jobs": True}, "max_running_jobs"),
        ({"max_running_jobs": 1.5}, "max_running_jobs"),
        ({"name": ""}, "task name"),
        ({"name": "x" * 501}, "task name"),
        ({"name": "a\nb"}, "task name"),
    ],
)
def test_an_option_without_a_meaning_is_refused_and_nothing_is_registered(
    registry: TaskRegistry, options: dict[str, Any], word: str
) -> None:
    with pytest.raises(InvalidTask, match=word):
        task(**options)(lambda: None)
    assert len(registry) == 0


def test_everything_that_is_wrong_with_a_task_is_said_at_once(registry: TaskRegistry) -> None:
    with pytest.raises(InvalidTask) as caught:
        task(timeout=-1, overlap="skipp", priority=12, pause_on_failure=0, on_failure="", max_running_jobs=0)(print)
    for word in ("timeout", "did you mean 'skip'", "priority", "pause_on_failure", "on_failure", "max_running_jobs"):
        assert word in caught.value.message
    assert len(registry) == 0


@pytest.mark.parametrize("target", [None, 5, "name", object()])
def test_only_what_can_be_called_is_a_task(registry: TaskRegistry, target: Any) -> None:
    with pytest.raises(InvalidTask, match="expected a function to decorate"):
        task(timeout=1)(target)


# -- options ---------------------------------------------------------------------------------------------------------

RETRIES = st.builds(
    Retry,
    max_attempts=st.integers(1, 1000),
    backoff=st.floats(0, 1e6),
    factor=st.floats(1, 1e3),
    max_backoff=st.floats(0, 1e6),
    jitter=st.floats(0, 1),
)


@given(
    st.builds(
        TaskOptions,
        timeout=st.none() | st.timedeltas(timedelta(microseconds=1), timedelta(days=1000)),
        retry=st.just(NO_RETRY) | RETRIES,
        overlap=st.sampled_from(Overlap),
        on_crash=st.sampled_from(OnCrash),
        start_deadline=st.none() | st.timedeltas(timedelta(microseconds=1), timedelta(days=1000)),
        on_failure=st.none() | st.text(min_size=1),
        pause_on_failure=st.none() | st.integers(1, 100),
    )
)
def test_options_survive_the_metadata_of_the_store(options: TaskOptions) -> None:
    metadata = json.loads(json.dumps(options.to_metadata()))
    apscheduler.Task(id="t", func=None, job_executor="auto", metadata=metadata)  # which is particular about it
    assert TaskOptions.from_metadata(metadata) == options


def test_a_task_that_knows_nothing_of_options_has_the_stock_ones() -> None:
    assert TaskOptions.from_metadata({}) == TaskOptions(None, NO_RETRY, Overlap.allow, OnCrash.retry)


def test_all_options_are_shown() -> None:
    shown = TaskOptions(timeout=timedelta(seconds=1.5)).shown()
    assert shown["timeout"] == 1.5
    assert shown.keys() == {
        *("timeout", "retry", "overlap", "on_crash", "catch_up", "catch_up_window", "catch_up_overlap"),
        *("priority", "concurrency_key", "max_running_per_key", "start_deadline", "on_failure", "pause_on_failure"),
    }


def test_options_in_metadata_are_read_with_all_that_is_wrong_with_them() -> None:
    assert option_problems({"free": 1, "duetime.tags": [], **TaskOptions().to_metadata()}) == []
    wrong = {"duetime.overlap": "skp", "duetime.catch_upp": "all", "duetime.on_crash": None}
    assert option_problems(wrong) == [
        "overlap to be one of skip, allow, buffer_one, buffer_all, cancel_other, got 'skp', did you mean 'skip'?",
        "a known option, got 'duetime.catch_upp', did you mean 'duetime.catch_up'?",
        "on_crash to be one of retry, abandon, got None",
    ]
    assert len(option_problems({"duetime.catch_up": "none", "duetime.catch_up_window": 5})) == 2
    assert option_problems({"duetime.catch_up_window": "long"})


def test_a_concurrency_key_is_the_argument_however_it_is_given(registry: TaskRegistry) -> None:
    @task(concurrency_key="customer")
    def serve(order: int, customer: str = "c", *, urgent: bool = False) -> None: ...

    metadata = registry.find("serve").options.to_metadata()
    assert registry.find("serve").options.max_running_per_key == 1
    assert concurrency_key(metadata, [1, "c"], {}) == concurrency_key(metadata, [1], {"customer": "c"}) == '"c"'
    assert concurrency_key(metadata, [1], {}) == "left out"
    assert concurrency_key(metadata, [1, {"b": 1, "a": 2}], {}) == concurrency_key(metadata, [1, {"a": 2, "b": 1}], {})
    assert len(concurrency_key(metadata, [1, "x" * 5000], {}) or "") == 64
    assert concurrency_key(TaskOptions().to_metadata(), [1, "c"], {}) is None
    with pytest.raises(InvalidTask, match="did you mean 'customer'"):
        task(concurrency_key="custommer")(serve)


@given(RETRIES, st.integers(1, 1001))
def test_a_wait_is_the_backed_off_one_give_or_take_its_jitter_and_ends_with_the_last_attempt(
    retry: Retry, attempt: int
) -> None:
    delay = retry.delay(attempt)
    if attempt >= retry.max_attempts:
        assert delay is None
        return
    assert delay is not None
    try:
        backed_off = retry.backoff * retry.factor ** (attempt - 1)
    except OverflowError:
        backed_off = float("inf") if retry.backoff else 0.0
    wait = min(retry.max_backoff, backed_off)
    assert wait * (1 - retry.jitter) - 1e-5 <= delay.total_seconds() <= wait * (1 + retry.jitter) + 1e-5


def test_waits_double_up_to_their_cap() -> None:
    retry = Retry(max_attempts=12, backoff=1, factor=2, max_backoff=300, jitter=0)
    waits = [retry.delay(attempt) for attempt in range(1, 13)]
    assert waits[:-1] == [timedelta(seconds=min(300, 2**power)) for power in range(11)]
    assert waits[-1] is None


@pytest.mark.parametrize(
    "wrong", [{"max_attempts": 0}, {"factor": 0.5}, {"jitter": 2}, {"backoff": -1}, {"max_backoff": 1e9}, {"tries": 3}]
)
def test_a_retry_without_a_meaning_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Retry(**wrong)


# -- names -----------------------------------------------------------------------------------------------------------


def test_a_task_is_found_by_its_name_its_function_and_the_dotted_form() -> None:
    registry = TaskRegistry()
    registered = registry.add(function("shop.orders", "Orders.ship"))
    assert registered.name == "shop.orders:Orders.ship"
    for name in ("shop.orders:Orders.ship", "ship", "shop.orders.Orders.ship"):
        assert registry.find(name) is registered
    assert registry.get("ship") is None, "get() takes the name only"


def test_a_task_with_a_name_of_its_own_is_found_by_that_only() -> None:
    registry = TaskRegistry()
    registered = registry.add(function("shop", "ship"), name="send-it")
    assert registered.aliases == ()
    assert registry.find("send-it") is registered
    with pytest.raises(UnknownTask):
        registry.find("ship")


def test_a_short_name_of_two_tasks_is_ambiguous_and_the_long_ones_are_not() -> None:
    registry = TaskRegistry()
    for module in ("shop", "bank"):
        registry.add(function(module, "send"))
    with pytest.raises(AmbiguousTask, match="'send', which fits bank:send, shop:send"):
        registry.find("send")
    assert registry.find("shop.send").name == "shop:send"


def test_a_name_wins_over_an_alias() -> None:
    registry = TaskRegistry()
    registry.add(function("shop", "send"))
    named = registry.add(function("bank", "transfer"), name="send")
    assert registry.find("send") is named


def test_an_unknown_name_is_told_with_the_closest_and_the_known_ones() -> None:
    registry = TaskRegistry()
    registry.add(function("shop", "ship_order"))
    with pytest.raises(UnknownTask, match=r"got 'ship_oder', did you mean 'ship_order'\?.*shop:ship_order"):
        registry.find("ship_oder")
    with pytest.raises(UnknownTask, match="Registered tasks: none"):
        TaskRegistry().find("x")


def test_one_name_is_not_given_to_two_functions() -> None:
    registry = TaskRegistry()
    first = registry.add(function("shop", "ship"), name="ship")
    with pytest.raises(DuplicateTask, match="'ship' for bank:pay and for shop:ship"):
        registry.add(function("bank", "pay"), name="ship")
    assert registry.find("ship") is first


def test_a_reloaded_module_takes_the_place_of_its_former_functions() -> None:
    registry = TaskRegistry()
    for name in (None, "named"):
        registry.add(function("shop", "ship"), name=name)
        again = registry.add(function("shop", "ship"), name=name)
        assert registry.find(again.name) is again
    assert len(registry) == 2


def test_tasks_are_listed_by_name() -> None:
    registry = TaskRegistry()
    for name in ("b", "c", "a"):
        registry.add(function("shop", name), name=name)
    assert [registered.name for registered in registry] == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("main", "expected"),
    [
        ({"__spec__": SimpleNamespace(name="shop.__main__")}, "shop:work"),
        ({"__spec__": SimpleNamespace(name="shop.orders")}, "shop.orders:work"),
        ({"__spec__": None, "__file__": str(Path("some where") / "main.py")}, "main:work"),
        ({"__spec__": None}, "__main__:work"),
    ],
    ids=["python -m shop", "python -m shop.orders", "python main.py", "a prompt"],
)
def test_a_function_of_a_script_is_named_as_it_is_when_the_script_is_imported(
    monkeypatch: pytest.MonkeyPatch, main: dict[str, Any], expected: str
) -> None:
    module = ModuleType("__main__")
    for name, value in main.items():
        setattr(module, name, value)
    if "__file__" not in main:
        module.__dict__.pop("__file__", None)
    monkeypatch.setitem(sys.modules, "__main__", module)
    assert reference(function("__main__", "work")) == expected


# -- arguments -------------------------------------------------------------------------------------------------------


class Order(BaseModel):
    number: int
    due: datetime


@dataclass(frozen=True)
class Address:
    street: str


class Point(NamedTuple):
    x: int
    y: int


class Colour(Enum):
    red = "r"


def everything(
    order: Order, /, day: date, *points: Point, colour: Colour = Colour.red, to: Address | None = None, **more: int
) -> None:
    """Take one of each kind."""


def bound(func: Callable[..., Any], *args: Any, **kwargs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return TaskRegistry().add(func).bind(args, kwargs)


def test_arguments_become_what_the_annotations_say() -> None:
    args, kwargs = bound(
        everything, {"number": "4", "due": "2026-01-01T00:00:00Z"}, "2026-02-03", [1, "2"], colour="r", z="5"
    )
    assert isinstance(args[0], Order)
    assert args[1:] == (date(2026, 2, 3), Point(1, 2))
    assert kwargs == {"colour": Colour.red, "z": 5}


def test_what_does_not_fit_is_named_all_at_once() -> None:
    def ship(number: int, street: str, *, express: bool = False) -> None: ...

    with pytest.raises(InvalidArguments) as caught:
        bound(ship, "four", express="perhaps", city="Bonn")
    assert {detail["where"] for detail in caught.value.details} == {"0", "street", "express", "city"}
    assert "ship(number, street, express)" in str(caught.value)


def test_a_value_of_a_request_is_not_repeated_in_the_message() -> None:
    def login(password: int) -> None: ...

    with pytest.raises(InvalidArguments) as caught:
        bound(login, password="swordfish")
    assert "swordfish" not in f"{caught.value} {caught.value.details}"


def test_defaults_are_the_functions_of_the_day_it_runs() -> None:
    def send(to: str, text: str = "hello") -> None: ...

    assert bound(send, to="me") == ((), {"to": "me"})


def test_annotations_that_cannot_be_evaluated_say_nothing_and_the_names_are_checked_all_the_same() -> None:
    def send(to: "Nowhere", text: "Nothing" = None) -> None: ...  # type: ignore[name-defined] # noqa: F821, UP037

    assert bound(send, 5, text=[]) == ((5,), {"text": []})
    with pytest.raises(InvalidArguments, match="body"):
        bound(send, 5, body="x")


def test_what_pydantic_knows_nothing_of_is_checked_by_its_class() -> None:
    class Strange:
        pass

    def send(thing: Strange) -> None: ...

    send.__annotations__["thing"] = Strange
    thing = Strange()
    assert bound(send, thing) == ((thing,), {})
    with pytest.raises(InvalidArguments):
        bound(send, 5)


def test_a_record_shows_the_description_and_the_schema_of_the_arguments() -> None:
    def send(to: str, copies: int = 1) -> None:
        """Send
        it.

        More than that is not shown.
        """

    record = TaskRegistry().add(send).record()
    assert record.description == "Send it."
    assert record.arguments["properties"].keys() == {"to", "copies"}
    assert record.arguments["required"] == ["to"]

    class Strange:
        pass

    def unknown(thing: Strange) -> None: ...

    unknown.__annotations__["thing"] = Strange
    assert TaskRegistry().add(unknown).record().arguments == {}


def test_arguments_have_a_plain_form_that_is_bound_again_to_the_same() -> None:
    given = ({"number": 4, "due": "2026-01-01T00:00:00Z"}, "2026-02-03", [1, 2])
    args, kwargs = bound(everything, *given, colour="r", to={"street": "x"})
    plain_args, plain_kwargs = storable(args), storable(kwargs)
    assert plain_args == ({"number": 4, "due": "2026-01-01T00:00:00Z"}, date(2026, 2, 3), (1, 2))
    assert type(plain_args[2]) is tuple
    assert plain_kwargs == {"colour": "r", "to": {"street": "x"}}
    assert bound(everything, *plain_args, **plain_kwargs) == (args, kwargs)


def test_plain_values_keep_their_kinds_at_any_depth() -> None:
    value = {"a": [1, (2.5, None), {"b"}, frozenset({3})], "c": {4: timedelta(1), "d": b"x"}}
    assert storable(value) == value
    assert storable({Address("x")}) == [{"street": "x"}], "a set cannot hold the plain form"
    assert storable({Colour.red}) == {"r"}
    assert storable(Address) is Address
