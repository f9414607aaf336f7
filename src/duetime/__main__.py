"""The ``duetime`` command, also ``python -m duetime``: says in one sentence what it lacks, if it does."""

from __future__ import annotations

import sys

_SERVER_PACKAGES = frozenset({"typer", "click", "rich", "structlog", "uvicorn", "shellingham"})


def main() -> None:
    """Run the command line interface; exit status 2 when the ``server`` extra is not installed."""
    try:
        from .cli import main as run
    except ModuleNotFoundError as exc:
        if (exc.name or "").partition(".")[0] not in _SERVER_PACKAGES:
            raise
        sys.stderr.write(
            f"expected the packages of `duetime serve`, got none named {exc.name}. "
            f"Run `pip install 'duetime[server]'`.\n"
        )
        sys.exit(2)
    run()


if __name__ == "__main__":
    main()
