"""Runs the real check on a few rows with one of `graders`, and gives back what it found."""

import asyncio
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlhf.check.command import check
from rlhf.config.loading import load_recipe
from tests.cli.command import ROOT, write_recipe, write_rows

GRADERS = Path(__file__).with_name("graders.py")
SUMS = tuple({"prompt": f"What follows {i + 20} - 20?", "answer": str(i + 1)} for i in range(10))


@dataclass(frozen=True)
class Checked:
    """The exit code and the JSON of a check."""

    code: int
    found: Mapping[str, Any]

    @property
    def fatal(self) -> dict[str, list[str]]:
        """Kind -> rows (or reasons, where no row is named) of what fails the check."""
        return self._kinds(is_fatal=True)

    @property
    def warned(self) -> dict[str, list[str]]:
        """As `fatal`, of warnings."""
        return self._kinds(is_fatal=False)

    def reasons(self, kind: str) -> list[str]:
        """The reasons of the findings of a kind."""
        return [f["reason"] for f in self.found["findings"] if f["kind"] == kind]

    def says(self, what: str) -> str:
        """The lines about something."""
        return " | ".join(self.found["facts"][what]["lines"])

    def _kinds(self, *, is_fatal: bool) -> dict[str, list[str]]:
        kinds: dict[str, list[str]] = {}
        for finding in self.found["findings"]:
            if finding["is_fatal"] == is_fatal:
                kinds.setdefault(finding["kind"], []).append(finding["row"] or finding["reason"])
        return kinds


def use(name: str, **keys: Any) -> dict[str, Any]:
    """A reward of a recipe: one of `graders`."""
    return {"use": f"{GRADERS}:{name}", **keys}


def checked(
    folder: Path,
    *rewards: dict[str, Any],
    rows: Sequence[Mapping[str, Any]] = SUMS,
    num_rows: int | None = None,
    **task: Any,
) -> Checked:
    """Check a recipe on `rows`; `task` are further keys of its task section."""
    recipe = write_recipe(folder, model={"path": "some/name"})
    file = write_rows(folder / "rows.jsonl", [dict(row) for row in rows])
    section = {"train": {"file": str(file)}, "template": "{prompt}", "rewards": list(rewards), **task}
    loaded = load_recipe(str(recipe), [f"task={json.dumps(section)}"])
    report = folder / "report.json"
    code = asyncio.run(check(loaded, code_dir=ROOT, num_rows=num_rows, json_file=report))
    return Checked(code=code, found=json.loads(report.read_text()))
