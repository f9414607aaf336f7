"""Long loops let others run: none of ours holds the event loop for more than a few milliseconds (promise 7)."""

from __future__ import annotations

import asyncio
import time

_LONGEST = 0.004


class Breath:
    """Gives the event loop back whenever a loop has held it for four milliseconds."""

    __slots__ = ("_since",)

    def __init__(self) -> None:
        self._since = time.monotonic()

    async def taken(self) -> None:
        """Call once per item of the loop."""
        if time.monotonic() - self._since > _LONGEST:
            await asyncio.sleep(0)
            self._since = time.monotonic()
