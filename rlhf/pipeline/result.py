"""`result.json`: the last file that a stage writes."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from rlhf.run_folder import replace_file

FILE = "result.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What a finished stage says of itself."""

    kind: str
    key: str
    metrics: Mapping[str, float]
    artefacts: Mapping[str, str]
    """Name -> path below the stage's folder."""
    seconds: float
    """Of the process that finished it."""


def read_result(folder: Path) -> Result | None:
    """The result in a stage's folder; None where there is none yet."""
    file = folder / FILE
    return Result(**json.loads(file.read_text(encoding="utf-8"))) if file.is_file() else None


def write_result(folder: Path, result: Result) -> None:
    """Say that the stage is finished, in one rename."""
    replace_file(folder / FILE, json.dumps(asdict(result), indent=1))
