"""The plan on paper: as a table, as JSON, and as one HTML page; written row by row, so that memory stays flat."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from html import escape
from pathlib import Path
from typing import IO, Any, Protocol, Self

from rich.console import Console
from rich.table import Table
from rich.text import Text

from .planning import CONVERT, REJECT, REVIEW, VERDICTS

_STYLES = {CONVERT: "green", REVIEW: "yellow", REJECT: "red"}
_ROWS_A_TABLE = 200
_SHOWN_TIMES = 5
_WIDTH_OF_A_FILE = 160


@dataclass(slots=True)
class Summary:
    """What is said of all rows together.

    :ivar fires: fires that were to be compared of each row
    :ivar error: why not all rows were read; None: they were
    """

    fires: int
    verdicts: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    differences: Counter[str] = field(default_factory=Counter)
    compared: int = 0
    equal: int = 0
    error: str | None = None

    def add(self, record: Mapping[str, Any]) -> None:
        """Count a row."""
        self.verdicts[record["verdict"]] += 1
        for reason in record["reasons"]:
            self.reasons[reason.partition(":")[0]] += 1
        for difference in record["differences"]:
            self.differences[difference["cause"]] += 1
        self.compared += bool(record["fire_times"] and record["v3_fire_times"])
        self.equal += bool(record["fire_times"]) and record["fire_times"] == record["v3_fire_times"]

    @property
    def rows(self) -> int:
        """Rows that were planned."""
        return self.verdicts.total()

    @property
    def is_done(self) -> bool:
        """Whether every row was read and is carried over by itself."""
        return self.error is None and self.verdicts[CONVERT] == self.rows

    def record(self) -> dict[str, Any]:
        """Return it as it is printed."""
        return {
            "rows": self.rows,
            **{verdict: self.verdicts[verdict] for verdict in VERDICTS},
            "fires": self.fires,
            "compared": self.compared,
            "equal": self.equal,
            "differences": dict(self.differences.most_common()),
            "reasons": dict(self.reasons.most_common()),
            "error": self.error,
        }

    def sentence(self) -> str:
        """Return it in words."""
        counted = ", ".join(f"{self.verdicts[verdict]:,} {verdict}" for verdict in VERDICTS)
        said = (
            f"{self.rows:,} rows: {counted}. Of {self.compared:,} whose next fires (up to {self.fires}) were compared "
            f"with v3's, {self.equal:,} have the same"
        )
        differ = ", ".join(f"{count:,} {cause}" for cause, count in self.differences.most_common())
        return f"{said}; differences: {differ}." if differ else f"{said}."


class Report(Protocol):
    """Takes the rows one by one."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *exc: object) -> None: ...

    def row(self, record: Mapping[str, Any]) -> None:
        """Take a row."""

    def end(self, summary: Summary) -> None:
        """Take what is said of all rows together."""


class JsonReport:
    """One JSON object, ``{"rows": […], "summary": {…}}``, a row a line."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream
        self._separator = '{"rows": [\n'

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._stream.flush()

    def row(self, record: Mapping[str, Any]) -> None:
        """Write a row."""
        self._stream.write(self._separator + json.dumps(record, ensure_ascii=True))
        self._separator = ",\n"

    def end(self, summary: Summary) -> None:
        """Write the summary, and the end of the object."""
        opening = "" if self._separator == ",\n" else self._separator
        self._stream.write(f'{opening}\n], "summary": {json.dumps(summary.record(), ensure_ascii=True)}}}\n')


class TableReport:
    """A table for the eye: what each row becomes, and how its next fires compare."""

    def __init__(self, console: Console) -> None:
        self._console = console
        if not console.is_terminal:
            console.width = max(console.width, _WIDTH_OF_A_FILE)
        self._waiting: list[Mapping[str, Any]] = []
        self._has_header = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        pass

    def row(self, record: Mapping[str, Any]) -> None:
        """Keep a row until there are enough for a part of the table."""
        self._waiting.append(record)
        if len(self._waiting) == _ROWS_A_TABLE:
            self._print()

    def end(self, summary: Summary) -> None:
        """Print what is left, and the summary."""
        self._print()
        self._console.print(Text(summary.sentence()), soft_wrap=True)

    def _print(self) -> None:
        if not self._waiting:
            return
        # The same widths in each part, so that they look like one table.
        space = self._console.width - 8 - 19 - 12
        table = Table(show_header=not self._has_header, box=None, pad_edge=False, padding=(0, 2, 0, 0), expand=True)
        table.add_column("verdict", width=8)
        table.add_column("id", width=max(10, space // 5), overflow="fold")
        table.add_column("becomes", width=max(20, space - space // 5), overflow="fold")
        table.add_column("next fire (UTC)", width=19)
        for record in self._waiting:
            verdict = record["verdict"]
            said = [line for line in (becomes(record), proof(record)) if line]
            lines = [*map(difference_words, record["differences"]), *record["reasons"]]
            text = Text("\n".join([*said, *(f"· {_printable(each)}" for each in lines)]))
            first = _moment(record["fire_times"][0]) if record["fire_times"] else "–"
            paused = bool(record["schedule"] and record["schedule"].get("paused"))
            table.add_row(
                Text(verdict, style=_STYLES[verdict]),
                Text(_printable(record["id"])),
                text,
                Text("paused" if paused else first),
            )
        self._console.print(table)
        self._has_header = True
        self._waiting.clear()


class HtmlReport:
    """One HTML page that needs nothing else: no script, no picture, no font from elsewhere.

    The rows are kept in a temporary file until the summary, which stands above them, is known.
    """

    def __init__(self, path: Path, title: str = "Off APScheduler 3: the plan") -> None:
        self._path = path
        self._title = title
        self._rows: IO[str] = tempfile.TemporaryFile("w+", encoding="utf-8")  # noqa: SIM115 - closed on exit
        self._file: IO[str] | None = None

    def __enter__(self) -> Self:
        # Opened at once: that it cannot be written is found out before everything has been read.
        self._file = self._path.open("w", encoding="utf-8")
        return self

    def __exit__(self, *exc: object) -> None:
        self._rows.close()
        if self._file is not None:
            self._file.close()

    def row(self, record: Mapping[str, Any]) -> None:
        """Keep a row."""
        verdict = record["verdict"]
        reasons = "".join(f"<li>{_html(each)}</li>" for each in record["reasons"])
        differences = "".join(
            f"<tr><td>{_html(each['v3'] or '–')}</td><td>{_html(each['duetime'] or '–')}</td>"
            f"<td>{_html(each['cause'])}</td><td>{_html(each['text'])}</td></tr>"
            for each in record["differences"]
        )
        body = record["schedule"]
        schedule = _html(json.dumps(body, ensure_ascii=False, indent=2)) if body is not None else "none"
        self._rows.write(
            f'<details class="{verdict}"><summary><b>{verdict}</b> <code>{_html(record["id"])}</code> '
            f"{_html(becomes(record))} <i>{_html(proof(record))}</i></summary>"
            + (f"<ul>{reasons}</ul>" if reasons else "")
            + (
                f"<table><tr><th>v3</th><th>Duetime</th><th>cause</th><th></th></tr>{differences}</table>"
                if differences
                else ""
            )
            + f"<pre>{schedule}</pre>{_times(record)}</details>\n"
        )

    def end(self, summary: Summary) -> None:
        """Write the page."""
        assert self._file is not None  # noqa: S101 - it was entered
        counts = "".join(
            f"<tr><td>{_html(name)}</td><td>{count:,}</td></tr>"
            for counter in (summary.verdicts, summary.differences, summary.reasons)
            for name, count in counter.most_common()
        )
        error = f'<p class="reject">{_html(summary.error)}</p>' if summary.error else ""
        self._file.write(
            f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
            f"<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"
            f'<meta name="viewport" content="width=device-width"><title>{_html(self._title)}</title>'
            f"<style>{_CSS}</style></head><body><h1>{_html(self._title)}</h1>"
            f"<p>{_html(summary.sentence())} Made at {datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC.</p>{error}"
            f"<table>{counts}</table>\n"
        )
        self._rows.seek(0)
        shutil.copyfileobj(self._rows, self._file)
        self._file.write("</body></html>\n")


_CSS = (
    "body{font:15px/1.45 system-ui,sans-serif;margin:2rem auto;max-width:70rem;padding:0 1rem;color:#1b1b1b;"
    "background:#fff}details{border-left:4px solid;padding:.2rem .8rem;margin:.3rem 0;overflow-wrap:anywhere}"
    ".convert{border-color:#2c8a4b}.review{border-color:#c98a00}.reject{border-color:#c0392b}"
    "pre{background:#f4f4f4;padding:.6rem;white-space:pre-wrap}td,th{text-align:left;padding:.1rem .8rem .1rem 0;"
    "vertical-align:top}summary{cursor:pointer}"
)


def becomes(record: Mapping[str, Any]) -> str:
    """Return in one line what a row becomes."""
    schedule = record["schedule"]
    if schedule is None:
        return ""
    options = schedule["options"]
    words = [schedule["task"], "–", _trigger_words(schedule["trigger"])]
    words.append(f"(overlap {options['overlap']}, coalesce {options['coalesce']}")
    grace = options.get("misfire_grace_time")
    words[-1] += ")" if grace is None else f", grace {grace:g} s)"
    return _printable(" ".join(words))


def _trigger_words(trigger: Mapping[str, Any]) -> str:
    kind = trigger["type"]
    if kind in ("and", "or"):
        return f" {kind} ".join(f"[{_trigger_words(each)}]" for each in trigger["triggers"])
    if kind == "cron":
        said = trigger.get("expression") or " ".join(f"{name}={text}" for name, text in trigger["fields"].items())
        return f"cron {said} {trigger['timezone']}"
    if kind == "date":
        return f"once at {trigger['run_at']}"
    amounts = ("years", "months", "weeks", "days", "hours", "minutes", "seconds")
    said = " ".join(f"{trigger[name]:g} {name}" for name in amounts if name in trigger)
    if kind == "interval":
        return f"every {said} from {trigger['start']}"
    clock = ":".join(f"{trigger.get(name, 0):02}" for name in ("hour", "minute", "second"))
    return f"every {said} at {clock} {trigger['timezone']}"


def proof(record: Mapping[str, Any]) -> str:
    """Return in one line how a row's next fires compare with v3's."""
    ours, theirs = record["fire_times"], record["v3_fire_times"]
    if not ours or not theirs:
        return "no fire times compared" if record["schedule"] else ""
    # Where one side lacks a time, its list reaches further: beyond the shorter one nothing was compared.
    compared = min(len(ours), len(theirs))
    causes = Counter(each["cause"] for each in record["differences"])
    differ = ", ".join(f"{count} × {cause}" for cause, count in causes.most_common())
    fires = "1 fire" if compared == 1 else f"{compared} fires"
    return f"{fires} compared: {f'they differ ({differ})' if differ else 'equal'}"


def difference_words(difference: Mapping[str, Any]) -> str:
    """Return in one line what a difference is."""
    v3, ours = (f"{_moment(difference[side])} UTC" if difference[side] else "none" for side in ("v3", "duetime"))
    return f"v3 {v3}, Duetime {ours}: {difference['cause']}: {difference['text']}"


def _moment(text: str) -> str:
    return text.partition("+")[0].partition(".")[0].replace("T", " ")


def _times(record: Mapping[str, Any]) -> str:
    if record["fire_times"] == record["v3_fire_times"]:
        return f"<p>Both: {_few(record['fire_times'])}</p>"
    return f"<p>v3: {_few(record['v3_fire_times'])}</p><p>Duetime: {_few(record['fire_times'])}</p>"


def _few(times: list[str]) -> str:
    more = f" … ({len(times)} in all)" if len(times) > _SHOWN_TIMES else ""
    return _html(", ".join(times[:_SHOWN_TIMES]) + more) if times else "–"


def _printable(text: str) -> str:
    """Return text without what would move the cursor of a terminal."""
    return "".join(each if each.isprintable() or each == " " else repr(each)[1:-1] for each in text)


def _html(text: str) -> str:
    return escape(_printable_lines(text))


def _printable_lines(text: str) -> str:
    return "\n".join(map(_printable, text.split("\n")))
