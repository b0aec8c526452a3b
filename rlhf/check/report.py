"""What a check found, as lines for a person and as JSON for a program."""

import contextlib
import json
import sys
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from rlhf.errors import ConfigError

SHOWN = 20
"""Rows named per kind of finding; the JSON file has them all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """Something wrong with one row, or with the whole ('' for `row`). Fatal ones fail the check."""

    kind: str
    row: str
    reason: str
    is_fatal: bool = True
    where: str = ""
    """The part of the whole, a stage of a pipeline for example."""


@dataclass(slots=True, kw_only=True)
class Report:
    """Facts, said as soon as they are known, and findings, listed at the end."""

    recipe: str = ""
    """The name in the file that is checked."""
    facts: dict[str, Any] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)
    _part: str = ""

    @contextlib.contextmanager
    def part(self, name: str, text: str) -> Iterator[None]:
        """What is said and found inside belongs to a part; what an earlier part found, too, is not listed again."""
        start = len(self.findings)
        self.say(name, text)
        self._part = name
        try:
            yield
        finally:
            self._part = ""
            known = {(f.kind, f.row, f.reason) for f in self.findings[:start]}
            new = [f for f in self.findings[start:] if (f.kind, f.row, f.reason) not in known]
            self.findings[start:] = [replace(finding, where=name) for finding in new]

    @property
    def place(self) -> str:
        """The part that is looked at, in words."""
        return self._part

    @property
    def is_sound(self) -> bool:
        """Whether nothing fatal was found."""
        return not any(finding.is_fatal for finding in self.findings)

    def say(self, what: str, text: str, **facts: Any) -> None:
        """Write one line now; `facts` go to the JSON file under the part and `what`, with the line."""
        known = self.facts.setdefault(f"{self._part}: {what}" if self._part else what, {"lines": []})
        known["lines"].append(text)
        known.update(facts)
        _write(f"  {what}: {text}" if self._part else f"{what}: {text}")

    def conclude(self) -> int:
        """List the findings by kind, errors last, where they are seen; the exit code."""
        kinds: dict[str, list[Finding]] = {}
        for finding in sorted(self.findings, key=lambda finding: finding.is_fatal):
            kinds.setdefault(finding.kind, []).append(finding)
        for kind, findings in kinds.items():
            _list(kind, findings)
        _write(f"check: {'passed' if self.is_sound else 'FAILED'}")
        return 0 if self.is_sound else 1

    def save(self, file: Path) -> None:
        """Write everything as JSON. ConfigError when the file cannot be written."""
        try:
            file.write_text(json.dumps(self.as_dict(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        except OSError as error:
            raise ConfigError(f"--json: {str(file)!r} cannot be written: {error}.") from error

    def as_dict(self) -> Mapping[str, Any]:
        """The whole report as plain data."""
        findings = [asdict(finding) for finding in self.findings]
        return {"recipe": self.recipe, "passed": self.is_sound, "facts": self.facts, "findings": findings}


@dataclass(frozen=True, slots=True, kw_only=True)
class Checking:
    """How a check looks, where it says what it sees, and what it has seen."""

    report: Report
    code_dir: Path
    num_rows: int | None = None
    """Rows of a task that are graded; default: all."""
    seen: dict[str, str] = field(default_factory=dict)
    """What was looked at, by what decides the outcome -> where."""

    def seen_at(self, what: Mapping[str, Any], key: str) -> str:
        """Where the same was looked at before; '' the first time, and then it is remembered as `key`."""
        digest = json.dumps(what, sort_keys=True, default=str)
        place = ", ".join(filter(None, (self.report.place, key)))
        found = self.seen.setdefault(digest, place)
        return "" if found == place else found


_INDENTED: Any = {
    "width": 110,
    "initial_indent": "    ",
    "subsequent_indent": "    ",
    "break_on_hyphens": False,
    "break_long_words": False,
}


def num_of(count: int, what: str) -> str:
    """`1 row`, `2 rows`."""
    return f"{count} {what}{'s' * (count != 1)}"


def _list(kind: str, findings: list[Finding]) -> None:
    level = "error" if any(finding.is_fatal for finding in findings) else "warning"
    rows = {(finding.where, finding.row) for finding in findings if finding.row}
    amount = f" ({num_of(len(rows), 'row')})" if rows else ""
    _write(f"{level}: {kind}{amount}")
    alike: dict[str, list[str]] = {}
    for finding in findings[:SHOWN]:
        said = f"{finding.where}: {finding.reason}" if finding.where else finding.reason
        alike.setdefault(said, []).append(finding.row)
    for reason, named in alike.items():
        _write(f"  row {named[0]}: {reason}" if named[0] and len(named) == 1 else f"  {reason}")
        if len(named) > 1:
            _write(textwrap.fill(f"rows {', '.join(named)}", **_INDENTED))
    if len(findings) > SHOWN:
        _write(f"  and {len(findings) - SHOWN} more")


def _write(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()
