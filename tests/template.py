"""The database that the tests' databases are copies of."""

from __future__ import annotations

import os

# Several processes of a run may share a server.
TEMPLATE = f"duetime_template_{os.environ.get('PYTEST_XDIST_WORKER', 'alone')}"
