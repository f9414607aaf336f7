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
from duetime.errors import AmbiguousTask, DuplicateTask, InvalidArguments, InvalidTask, UnknownTask
from duetime.tasks import NO_RETRY, OnCrash, Overlap, Retry, TaskOptions, TaskRegistry, reference, storable, task


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
        ({"timeout": 1e300}, "expected a known option"),
        ({"misfire_grace_time": 0}, "misfire_grace_time"),
        ({"misfire_grace_time": float("inf")}, "infinity"),
        ({"overlap": "sometimes"}, "sometimes"),
        ({"on_crash": "cry"}, "cry"),
        ({"retry": 5}, r"Retry\(max_attempts=5\)"),
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
    assert shown.keys() == {"timeout", "retry", "overlap", "on_crash"}


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
