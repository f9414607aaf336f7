"""What a run has found and made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import unified_diff
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True, order=True)
class Found:
    """Something that is to be said of a line.

    :ivar file: relative to the path that was given
    :ivar line: of the file as it was
    :ivar code: stable name of the kind
    :ivar text: what it is, and what can be done
    :ivar decide: a person must; else it is said so that nobody is surprised
    """

    file: str
    line: int
    code: str
    text: str
    decide: bool = True

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.text}"


@dataclass(frozen=True, slots=True)
class Rewritten:
    """A file with its text before and after."""

    path: Path
    file: str
    before: bytes
    after: bytes
    encoding: str

    @property
    def diff(self) -> str:
        """The change as a unified diff, in text."""
        before, after = (each.decode(self.encoding, "replace").splitlines() for each in (self.before, self.after))
        lines = unified_diff(before, after, f"a/{self.file}", f"b/{self.file}", lineterm="")
        return "".join(f"{line}\n" for line in lines)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run has found and made.

    :ivar changed: files whose text changes
    :ivar found: by file and line
    :ivar skipped: file → why it was left alone
    :ivar looked_at: files that were read
    """

    changed: Sequence[Rewritten]
    found: Sequence[Found]
    skipped: dict[str, str]
    looked_at: int
    written: bool = False

    @property
    def decisions(self) -> list[Found]:
        """What a person must decide."""
        return [each for each in self.found if each.decide]

    @property
    def notes(self) -> list[Found]:
        """What is said so that nobody is surprised."""
        return [each for each in self.found if not each.decide]

    @property
    def is_complete(self) -> bool:
        """Whether nothing is left to a person."""
        return not self.decisions and not self.skipped

    def to_json(self) -> dict[str, Any]:
        """Return all of it as JSON values."""
        shown = ("file", "line", "code", "text")
        return {
            "files": [{"file": each.file, "diff": each.diff} for each in self.changed],
            "decisions": [{name: getattr(each, name) for name in shown} for each in self.decisions],
            "notes": [{name: getattr(each, name) for name in shown} for each in self.notes],
            "skipped": [{"file": file, "reason": reason} for file, reason in self.skipped.items()],
            "looked_at": self.looked_at,
            "written": self.written,
        }
