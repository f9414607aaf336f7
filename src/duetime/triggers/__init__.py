"""Triggers: cron and the like, right when the clock changes; JSON ↔ trigger, in words, and ahead of time."""

from __future__ import annotations

from .calendar_trigger import CalendarInterval
from .cron_trigger import Cron
from .describing import describe
from .excluding import Excluding
from .limiting import Limited, unlimited
from .notes import UpcomingFire, upcoming_fires, why_left_out
from .parsing import parse, parse_json, parses_quickly, to_json
from .preview import check_fires, never_fires, upcoming
from .rrule_trigger import RRule
from .specs import TriggerSpec

__all__ = [
    "CalendarInterval",
    "Cron",
    "Excluding",
    "Limited",
    "RRule",
    "TriggerSpec",
    "UpcomingFire",
    "check_fires",
    "describe",
    "never_fires",
    "parse",
    "parse_json",
    "parses_quickly",
    "to_json",
    "unlimited",
    "upcoming",
    "upcoming_fires",
    "why_left_out",
]
