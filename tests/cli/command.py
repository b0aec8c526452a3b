"""The real `rlhf` command in a process of its own, and a small recipe to spoil."""

import functools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
REWARDS = "def grade(completion, reference):\n    return float(reference in completion)\n"


def rlhf(*arguments: str | Path, typed: str = "") -> subprocess.CompletedProcess[str]:
    """Run `rlhf` from the repository's root, in a fork of a process that has torch loaded; at most five minutes.

    `typed` is its standard input.
    """
    words = list(map(str, arguments))
    warm = _warm()
    assert warm.stdin is not None
    assert warm.stdout is not None
    warm.stdin.write(json.dumps([words, typed]) + "\n")
    warm.stdin.flush()
    code, out, err = json.loads(warm.stdout.readline())
    return subprocess.CompletedProcess(["rlhf", *words], code, out, err)


def rlhf_from_cold(*arguments: str | Path, limit_s: float = 600) -> subprocess.CompletedProcess[str]:
    """Run `rlhf` as a user's shell does."""
    command = [sys.executable, "-m", "rlhf.cli", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=limit_s, check=False)


@functools.cache
def _warm() -> subprocess.Popen[str]:
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return subprocess.Popen(
        [sys.executable, str(ROOT / "tests/cli/warm.py")],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": path},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def end_warm() -> None:
    """End the process that commands are forked from, if it was started."""
    if _warm.cache_info().currsize:
        _warm().communicate(timeout=60)
        _warm.cache_clear()


def write_rows(file: Path, rows: list[dict[str, Any]]) -> Path:
    """A .jsonl file of `rows`."""
    file.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return file


def write_recipe(folder: Path, **sections: Any) -> Path:
    """A recipe that trains on sums with a reward of its own; `sections` replace or add top-level keys."""
    rows = write_rows(folder / "rows.jsonl", [{"prompt": f"{i}+1=", "answer": str(i + 1)} for i in range(16)])
    (folder / "sums.py").write_text(REWARDS)
    recipe = {
        "name": "sums",
        "run_dir": str(folder / "run"),
        "model": {"path": str(folder / "model"), "dtype": "float32"},
        "task": {
            "train": {"file": str(rows)},
            "template": "{prompt}",
            "rewards": [{"use": f"{folder / 'sums.py'}:grade"}],
        },
        "sampling": {"max_prompt_tokens": 32, "max_tokens": 8},
        "schedule": {"num_steps": 1, "prompts_per_step": 2, "samples_per_prompt": 2},
        "learner": {"microbatch_tokens": 512},
        "engine": {"kind": "hf"},
        "placement": {"device": "cpu"},
        "eval": {"every": 0},
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe | sections))
    return path
