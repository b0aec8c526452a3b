"""Rejection sampling of the toy task in a process of its own, so that it can be killed."""

import asyncio
import json
import os
import sys
from pathlib import Path
from typing import Any

import yaml

from rlhf.config.reject import CollectConfig, SelectConfig
from rlhf.config.schema import Recipe
from rlhf.offline.reject import reject
from rlhf.telemetry.live import LiveView

ROOT = Path(__file__).parents[1]


def is_right(completion: str, graded: str = "") -> float:
    """A coin that the completion throws; every call is written down in the file `graded`."""
    if graded:
        with open(graded, "a", encoding="utf-8") as file:
            file.write(json.dumps(completion) + "\n")
    return float(sum(map(ord, completion)) % 2)


def capitals(completion: str) -> float:
    return sum(c.isupper() for c in completion) / max(len(completion), 1)


def main(recipe: str, collect: str, select: str, folder: str) -> None:
    """Run to the end, and write what `reject` returns to `metrics.json`."""
    metrics = asyncio.run(
        reject(
            Recipe(**yaml.safe_load(Path(recipe).read_text())),
            CollectConfig(**json.loads(collect)),
            SelectConfig(**json.loads(select)),
            Path(folder),
            code_dir=ROOT,
            view=LiveView({}, enabled=False),
        )
    )
    Path(folder, "metrics.json").write_text(json.dumps(metrics))


def command(recipe: Path, folder: Path, *, collect: Any, select: Any) -> list[str]:
    settings = [json.dumps(collect), json.dumps(select)]
    return [sys.executable, "-m", "tests.rejecting", str(recipe), *settings, str(folder)]


if __name__ == "__main__":
    os.environ["PYTHONPATH"] = str(ROOT)
    main(*sys.argv[1:])
