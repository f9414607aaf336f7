"""Triggers: the only place that turns JSON into an APScheduler trigger and back, describes and previews."""

from __future__ import annotations

from .describing import describe
from .parsing import parse, parse_json, to_json
from .preview import check_fires, never_fires, upcoming
from .specs import TriggerSpec

__all__ = [
    "TriggerSpec",
    "check_fires",
    "describe",
    "never_fires",
    "parse",
    "parse_json",
    "to_json",
    "upcoming",
]
