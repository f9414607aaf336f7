"""``python -m benchmarks.adapters NAME``: run one peer, told by JSON lines on standard input."""

from __future__ import annotations

import sys
from importlib import import_module

from .session import Session

if __name__ == "__main__":
    module = import_module(f"{__package__}.{sys.argv[1]}")
    Session(module.Adapter).run()
