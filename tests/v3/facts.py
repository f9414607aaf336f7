"""What real APScheduler 3 makes of its calls: ``calls.json``, which ``calls_of_v3.py`` writes."""

from __future__ import annotations

import json
from datetime import date, datetime
from pathlib import Path
from typing import Any

FACTS: dict[str, Any] = json.loads(Path(__file__).with_name("calls.json").read_text())
CALLS: dict[str, Any] = FACTS["calls"]
NOW = datetime.fromisoformat(FACTS["now"])


def value_of(given: Any) -> Any:
    """Return an argument from its form in JSON."""
    if isinstance(given, dict):
        return date.fromisoformat(given["day"]) if "day" in given else datetime.fromisoformat(given["moment"])
    return given


def arguments_of(case: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of a trigger."""
    return {name: value_of(given) for name, given in case["arguments"].items()}
