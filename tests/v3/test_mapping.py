"""Which task a function of v3 is."""

from __future__ import annotations

from pathlib import Path

import pytest

from duetime.errors import InvalidMapping
from duetime.tasks import TaskRegistry
from duetime.v3.mapping import Tasks, read_executors, read_mapping


def remind(to: str = "") -> None:
    """A task."""


def other() -> None:
    """Another one."""


@pytest.fixture
def registry() -> TaskRegistry:
    found = TaskRegistry()
    found.add(remind, name="reminders")
    found.add(other)
    return found


def test_a_function_is_found_by_its_own_module_and_name_whatever_its_task_is_called(registry: TaskRegistry) -> None:
    task, said = Tasks(registry).find(f"{__name__}:remind")
    assert task is registry.get("reminders")
    assert said == []


@pytest.mark.parametrize(
    "function", ["app.jobs:remind", "remind", "reminders", f"{__name__}:Remind", "__main__:remind"]
)
def test_nothing_is_guessed(registry: TaskRegistry, function: str) -> None:
    task, [said] = Tasks(registry).find(function)
    assert task is None
    assert (said.code, said.severity) == ("unknown_task", "review")
    assert f'"{function}" = ' in said.text


def test_a_function_that_is_several_tasks_is_for_the_mapping_to_decide(registry: TaskRegistry) -> None:
    registry.add(remind, name="letters")
    task, [said] = Tasks(registry).find(f"{__name__}:remind")
    assert task is None
    assert said.code == "ambiguous_task"
    assert "letters, reminders" in said.text
    task, [said] = Tasks(registry, {f"{__name__}:remind": "letters"}).find(f"{__name__}:remind")
    assert task is registry.get("letters")
    assert said.severity == "note"


def test_a_mapping_to_no_task_is_refused_with_the_nearest_name(registry: TaskRegistry) -> None:
    with pytest.raises(InvalidMapping, match="did you mean 'reminders'"):
        Tasks(registry, {"app.jobs:send": "reminder"})


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("names.toml", '"app.jobs:send" = "mail"\n"app:Shop.open" = "open"'),
        ("names.json", '{"app.jobs:send": "mail", "app:Shop.open": "open"}'),
    ],
)
def test_a_mapping_is_toml_or_json(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    assert read_mapping(tmp_path / name) == {"app.jobs:send": "mail", "app:Shop.open": "open"}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.toml", b"app.jobs = 1"),
        ("b.toml", b'app.jobs:send = "mail"'),
        ("c.toml", b'"app.jobs.send" = "mail"'),
        ("d.toml", b"\xff\xfe"),
        ("e.json", b"[1]"),
        ("f.json", b'{"a:b": null}'),
        ("g.json", b"[" * 100_000),
        ("nowhere.toml", None),
    ],
)
def test_a_file_that_is_no_mapping_is_refused_by_name(tmp_path: Path, name: str, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InvalidMapping, match=name):
        read_mapping(tmp_path / name)


def test_executors_are_named() -> None:
    assert read_executors(["reports=threadpool", "x=auto"]) == {"reports": "threadpool", "x": "auto"}
    for wrong in ("reports", "=auto", "reports=threads", "reports="):
        with pytest.raises(InvalidMapping, match="NAME=EXECUTOR"):
            read_executors([wrong])
