"""The plan on paper."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import Any

from rich.console import Console

from duetime.v3.report import HtmlReport, JsonReport, Report, Summary, TableReport

EVIL = "<script>alert(1)</script>&\"'\x1b[31m"
ROW: dict[str, Any] = {
    "id": "daily",
    "verdict": "convert",
    "reasons": [],
    "schedule": {
        "id": "daily",
        "task": "shop:remind",
        "trigger": {"type": "cron", "expression": "0 9 * * *", "timezone": "UTC"},
        "options": {"overlap": "skip", "coalesce": "latest", "misfire_grace_time": 1},
    },
    "fire_times": ["2026-11-26T09:00:00+00:00"],
    "v3_fire_times": ["2026-11-26T09:00:00+00:00"],
    "differences": [],
}
LEFT: dict[str, Any] = {
    "id": EVIL,
    "verdict": "review",
    "reasons": [f"unknown_task: {EVIL}"],
    "schedule": None,
    "fire_times": [],
    "v3_fire_times": ["2026-11-26T09:00:00+00:00"],
    "differences": [{"v3": "2026-11-26T09:00:00+00:00", "duetime": None, "cause": "unsupported", "text": EVIL}],
}


def written(report: Report, rows: list[dict[str, Any]], error: str | None = None) -> Summary:
    summary = Summary(10, error=error)
    with report:
        for row in rows:
            summary.add(row)
            report.row(row)
        report.end(summary)
    return summary


def test_json_is_one_object_with_the_rows_as_they_are() -> None:
    out = io.StringIO()
    written(JsonReport(out), [ROW, LEFT])
    found = json.loads(out.getvalue())
    assert found["rows"] == [ROW, LEFT]
    assert found["summary"]["rows"] == 2
    assert (found["summary"]["convert"], found["summary"]["review"], found["summary"]["reject"]) == (1, 1, 0)
    assert found["summary"]["differences"] == {"unsupported": 1}
    assert found["summary"]["error"] is None


def test_json_is_whole_without_rows_and_after_a_failure() -> None:
    for rows in ([], [ROW]):
        out = io.StringIO()
        summary = written(JsonReport(out), rows, "the database went away.")
        assert json.loads(out.getvalue())["summary"]["error"] == "the database went away."
        assert not summary.is_done


def test_what_was_not_compared_is_not_counted_as_equal() -> None:
    summary = Summary(10)
    summary.add(ROW)
    summary.add(LEFT)
    summary.add({**LEFT, "v3_fire_times": []})
    assert (summary.compared, summary.equal) == (1, 1)


def test_html_shows_what_is_in_a_row_and_runs_none_of_it(tmp_path: Path) -> None:
    path = tmp_path / "plan.html"
    written(HtmlReport(path), [ROW, LEFT])
    page = path.read_text()
    assert "<script" not in page
    assert "\x1b" not in page
    assert page.count("&lt;script&gt;alert(1)&lt;/script&gt;&amp;&quot;&#x27;") >= 3


def test_html_needs_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "plan.html"
    written(HtmlReport(path), [ROW])
    page = path.read_text()
    assert not re.search(r"(src|href)\s*=|url\(|@import|https?://", page)
    assert "shop:remind – cron 0 9 * * * UTC" in page


def test_the_table_says_what_each_job_becomes() -> None:
    out = io.StringIO()
    written(TableReport(Console(file=out, width=120)), [ROW, LEFT] * 150)
    text = out.getvalue()
    assert text.count("shop:remind – cron 0 9 * * * UTC") == 150
    assert text.count("next fire (UTC)") == 1
    assert "\x1b" not in text
    assert "300 rows: 150 convert, 150 review, 0 reject" in text
