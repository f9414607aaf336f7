"""Typed JSON for the store: arguments, results, exceptions and triggers, and nothing that can name code."""

from __future__ import annotations

from .typed_json import TypedJSONSerializer
from .values import StoredException

__all__ = ["StoredException", "TypedJSONSerializer"]
