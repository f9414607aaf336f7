"""Results as JSON and inside a document."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .results import Row, as_markdown

BEGIN = "<!-- results: written by `python -m benchmarks --markdown`, not by hand -->"
END = "<!-- end of results -->"


def write(path: Path, rows: Sequence[Row], environment: dict[str, Any]) -> None:
    """Write the rows and, last, one object with the key ``environment``."""
    content = [*(row.as_json() for row in rows), {"environment": environment}]
    path.write_text("[\n" + ",\n".join(json.dumps(each, ensure_ascii=False) for each in content) + "\n]\n")


def read(path: Path) -> tuple[list[Row], dict[str, Any]]:
    """Read what :func:`write` has written."""
    content = json.loads(path.read_text())
    environment = next(each["environment"] for each in content if "environment" in each)
    return [Row(**each) for each in content if "environment" not in each], environment


def put_into(path: Path, rows: Sequence[Row], environment: dict[str, Any]) -> None:
    """Replace what is between the markers of a document.

    :raises ValueError: if it does not have both
    """
    put_between(path, BEGIN, END, f"{about(environment)}\n\n{as_markdown(rows)}")


def put_between(path: Path, first: str, last: str, content: str) -> None:
    """Replace what is between two lines of a file.

    :raises ValueError: if it does not have both
    """
    before, after = around(path, first, last)
    path.write_text(f"{before}{first}\n\n{content}\n\n{last}{after}")


def around(path: Path, first: str, last: str) -> tuple[str, str]:
    """Return what is before and after the part between two lines of a file.

    :raises ValueError: if it does not have both
    """
    before, begin, rest = path.read_text().partition(first)
    _, end, after = rest.partition(last)
    if not begin or not end:
        raise ValueError(f"expected the lines {first!r} and {last!r} in {path}, got at most one of them")
    return before, after


def about(environment: dict[str, Any]) -> str:
    """Return what the figures were measured on, in words."""
    machine = environment["machine"]
    servers = "\n".join(
        f"{server}: " + ", ".join(f"`{name}` {value or 'none'}" for name, value in environment[key].items()) + "."
        for server, key in (("PostgreSQL", "postgresql"), ("Redis", "redis"))
        if key in environment
    )
    peers = "; ".join(
        f"{peer}: " + ", ".join(f"{package} {number}" for package, number in versions.items())
        for peer, versions in environment["peers"].items()
    )
    return (
        f"Run from {environment['began']} to {environment['ended']}, the {environment['form']} form, "
        f"{environment['repeats']} repeat(s): median (least–greatest).\n"
        f"Machine: {machine['cores']} cores of {machine['processor']}, {machine['memory_gib']} GiB, "
        f"{machine['system']}, Python {environment['python']}; "
        f"load average just before the run {machine['load_before']}.\n"
        f"{servers}\n\nVersions: {peers}."
    )
