"""The command line: ``python -m benchmarks [NAME …]``."""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from duetime.settings import DatabaseUrl

from . import document, environments, machine, readme, redis_server
from .lab import ON_REDIS, Lab
from .results import Row, as_text
from .run import BENCHMARKS, module_of, run
from .scale import FULL, SHORT
from .server import Server
from .suite.peers import NAMES


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    made = argparse.ArgumentParser(prog="python -m benchmarks", description="Benchmarks of Duetime beside its peers.")
    made.add_argument("names", nargs="*", metavar="NAME", help="benchmarks to run; default: all (see --list)")
    made.add_argument("--list", action="store_true", help="list the benchmarks and the peers, and run nothing")
    made.add_argument("--short", action="store_true", help="the short form: everything once, in less than 10 minutes")
    made.add_argument("--repeats", type=int, metavar="N", help="repeat each measurement N times")
    made.add_argument("--peers", metavar="A,B", help="only these peers")
    made.add_argument("--redis", action="store_true", help=f"also the peers on Redis: {', '.join(ON_REDIS)}")
    made.add_argument("--json", type=Path, metavar="FILE", help="write the results as JSON")
    made.add_argument("--markdown", type=Path, metavar="FILE", help="put the tables between the document's markers")
    made.add_argument(
        "--readme",
        type=Path,
        metavar="FILE",
        help="put the start-up table between the markers of a README, and its picture beside",
    )
    made.add_argument("--from-json", type=Path, metavar="FILE", help="run nothing: take the results of an earlier run")
    made.add_argument("--plot", type=Path, metavar="DIR", help="write pictures (needs matplotlib: the group 'bench')")
    made.add_argument(
        "--server", metavar="URL", help="a superuser's address of the PostgreSQL to use, not the embedded one"
    )
    return made


def unknown(kind: str, given: Sequence[str], known: Sequence[str]) -> str | None:
    """Return what to say about names that nobody knows, or None."""
    for name in given:
        if name not in known:
            close = get_close_matches(name, known, n=1)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            return f"expected a {kind}, got {name!r}.{hint} Known: {', '.join(known)}."
    return None


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    given = parser().parse_args(arguments)
    peers = given.peers.split(",") if given.peers else None
    if given.redis:
        peers = list(dict.fromkeys([*(peers or NAMES), *ON_REDIS]))
    problem = unknown("benchmark", given.names, BENCHMARKS) or unknown("peer", peers or (), NAMES)
    if given.repeats is not None and given.repeats < 1:
        problem = f"expected --repeats of at least 1, got {given.repeats}."
    problem = problem or _unwritable(given)
    if problem:
        print(problem, file=sys.stderr)
        return 2
    if given.list:
        for name in BENCHMARKS:
            print(f"{name:10}{module_of(name).QUESTION}")
        print(f"\npeers: {', '.join(NAMES)}")
        return 0
    if given.from_json:
        rows, environment = document.read(given.from_json)
    else:
        rows, environment = asyncio.run(_measured(given, peers))
    print(as_text(rows))
    print()
    print(json.dumps(environment, indent=2, ensure_ascii=False))
    if given.json:
        document.write(given.json, rows, environment)
    if given.markdown:
        document.put_into(given.markdown, rows, environment)
    if given.readme:
        print(readme.put_into(given.readme, rows, environment))
    if given.plot:
        from . import plots

        for picture in plots.draw(rows, given.plot):
            print(picture)
    return 0


def _unwritable(given: argparse.Namespace) -> str | None:
    """Return why the results could not be put where they shall go; said before hours of measuring, not after."""
    try:
        if given.markdown:
            document.around(given.markdown, document.BEGIN, document.END)
        if given.readme:
            document.around(given.readme, readme.BEGIN, readme.END)
            if given.names and "startup" not in given.names and not given.from_json:
                return "expected the benchmark 'startup' among those to run, because --readme shows it."
    except (OSError, ValueError) as exc:
        return str(exc)
    return None


async def _measured(given: argparse.Namespace, peers: list[str] | None) -> tuple[list[Row], dict[str, Any]]:
    task = asyncio.current_task()
    assert task is not None
    with suppress(NotImplementedError):
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    scale = SHORT if given.short else FULL
    if given.repeats is not None:
        scale = scale.__class__(**{**vars(scale), "repeats": given.repeats})
    began, load = datetime.now(UTC), machine.load()
    url = None if given.server is None else DatabaseUrl.parse(given.server)
    wanted = peers or [peer for peer in NAMES if peer not in ON_REDIS]
    await environments.make(peer for peer in wanted if peer not in ON_REDIS or redis_server.program())
    async with Server(url) as server, Lab(server, scale) as lab:
        rows = await run(lab, given.names or BENCHMARKS, peers)
        return rows, await machine.environment(lab, began, load)


if __name__ == "__main__":
    sys.exit(main())
