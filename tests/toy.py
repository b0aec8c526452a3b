"""A toy task that a random model of 0.1 M parameters learns in two dozen steps (write digits), and its command."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[1]
LONGEST_S = 560
"""A run of the toy takes half a minute; several times that where the machine is busy."""


PREAMBLE = "write as many digits as you can after "
"""Longer than a block of the prefix cache, so that prompts share one."""


MODEL = {
    "model_type": "qwen3", "vocab_size": 128, "hidden_size": 64, "intermediate_size": 128,
    "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32,
    "max_position_embeddings": 128, "tie_word_embeddings": True,
}  # fmt: skip


def rows(seed: int = 0, size: int = 64) -> list[dict[str, str]]:
    return [
        {"prompt": f"{PREAMBLE}{chr(97 + (seed + i) % 26)}{i}:", "reference": str(i)} for i in range(size)
    ]


def digits(completion: str) -> float:
    """Share of the completion's characters that are digits."""
    return sum(c.isdigit() for c in completion) / max(len(completion), 1)


def toy_recipe(folder: Path, **sections: Mapping[str, Any]) -> Path:
    """A recipe file for the toy task; `sections` are merged into its sections."""
    recipe: dict[str, Any] = {
        "name": "toy",
        "run_dir": str(folder / "run"),
        "model": {
            "config": MODEL,
            "tokenizer": "characters",
            "dtype": "float32",
        },
        "task": {
            "train": {"generator": f"{Path(__file__)}:rows"},
            "heldout": {"generator": f"{Path(__file__)}:rows", "seed": 7, "limit": 16},
            "template": "{prompt}",
            "rewards": [{"use": f"{Path(__file__)}:digits"}],
        },
        "sampling": {"max_prompt_tokens": 64, "max_tokens": 16},
        "schedule": {"num_steps": 6, "prompts_per_step": 8, "samples_per_prompt": 8},
        "learner": {"lr": 3e-3, "microbatch_tokens": 2048},
        "engine": {"max_sequences": 128, "kv_cache_mb": 64},
        "placement": {"num_cpus": 4},
        "eval": {"every": 2},
        "checkpoint": {"every": 2, "export": False},
        "telemetry": {"samples_per_step": 4, "live": False},
    }  # fmt: skip
    for name, section in sections.items():
        recipe[name] = {**recipe.get(name, {}), **section}
    path = folder / "toy.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path


def start(
    recipe: Path, *overrides: str, environment: Mapping[str, str] | None = None
) -> subprocess.Popen[str]:
    """`rlhf train` in a process of its own; standard output and error in one stream."""
    return subprocess.Popen(
        [sys.executable, "-m", "rlhf.cli", "train", str(recipe), *overrides],
        cwd=ROOT, env={**os.environ, **(environment or {})}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def train(recipe: Path, *overrides: str, environment: Mapping[str, str] | None = None) -> tuple[int, str]:
    """(exit code, everything printed)."""
    process = start(recipe, *overrides, environment=environment)
    try:
        output, _ = process.communicate(timeout=LONGEST_S)
    except subprocess.TimeoutExpired:
        process.kill()  # what it started ends with it
        raise
    return process.returncode, output


def metrics(run_dir: Path) -> list[dict[str, Any]]:
    """The steps of a run, in order."""
    lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    return [line for line in map(json.loads, lines) if line["step"] > 0]


def column(steps: Sequence[Mapping[str, Any]], name: str) -> list[float]:
    return [step[name] for step in steps]
