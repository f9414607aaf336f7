"""``duetime migrate code``: rewrites the calls of APScheduler 3 in FastAPI projects. Needs the extra ``migrate``."""

from .findings import Found, Outcome, Rewritten
from .running import migrate_code

__all__ = ["Found", "Outcome", "Rewritten", "migrate_code"]
