"""Which built-in tasks there are depends on what is installed, and the core needs none of it."""

from __future__ import annotations

import subprocess
import sys

import pytest

from duetime import builtin
from duetime.errors import DuplicateTask
from duetime.tasks import TaskRegistry, registry

WITHOUT = """
import sys
missing = sys.argv[1:]
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in missing:
            raise ModuleNotFoundError(name=name)
import importlib.util
real = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: None if name in missing else real(name, package)
sys.meta_path.insert(0, Missing())
from duetime import builtin
print(*builtin.register())
print(*(name for name in ("httpx", "apprise") if name in sys.modules))
"""


def registered_without(*missing: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT, *missing], capture_output=True, text=True, timeout=60, check=True
    )
    return done.stdout.split("\n")[:2]


def test_both_are_registered_once_under_their_short_names() -> None:
    assert builtin.register() == ["http_request", "notify"]
    assert builtin.register() == ["http_request", "notify"]
    assert [task.name for task in registry if task.name in ("http_request", "notify")] == [
        "http_request",
        "notify",
    ]


def test_another_registry_gets_them_with_their_options() -> None:
    own = TaskRegistry()
    assert builtin.register(own) == ["http_request", "notify"]
    assert [task.name for task in own] == ["http_request", "notify"]
    assert own.find("notify").options == registry.find("notify").options


def test_a_task_of_the_same_name_is_an_error_that_names_it() -> None:
    own = TaskRegistry()
    own.add(test_another_registry_gets_them_with_their_options, name="notify")
    with pytest.raises(DuplicateTask, match="notify"):
        builtin.register(own)


def test_a_task_is_left_out_when_its_library_is_not_installed() -> None:
    assert registered_without("httpx")[0] == "notify"
    assert registered_without("apprise")[0] == "http_request"
    assert registered_without("httpx", "apprise") == ["", ""]


def test_apprise_is_not_loaded_before_the_first_message() -> None:
    assert registered_without() == ["http_request notify", "httpx"]
