"""A model that sees images learns in the real loop, and its tower has a part in it."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.toy import LONGEST_S, ROOT, column, metrics

pytestmark = [pytest.mark.slow, pytest.mark.long]


def accuracy(folder: Path, *overrides: str) -> float:
    """Held-out accuracy after `recipes/cpu/vlm_count.yaml`, and that engine and learner agreed all the way."""
    command = [
        sys.executable, "-m", "rlhf.cli", "train", "recipes/cpu/vlm_count.yaml", f"run_dir={folder}",
        "placement.num_cpus=4", "telemetry.live=false", "checkpoint.export=false", *overrides,
    ]  # fmt: skip
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=LONGEST_S)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    steps = metrics(folder)
    assert max(column(steps, "mismatch/logprob_gap_max")) < 1e-4
    assert max(column(steps, "sync/probe_gap")) < 1e-4
    return float(steps[-1]["eval/accuracy"])


def test_counting_is_learned_by_the_tower(tmp_path: Path) -> None:
    trained = accuracy(tmp_path / "trained", "engine.kind=hf")
    frozen = accuracy(tmp_path / "frozen", "engine.kind=hf", "model.freeze.vision=true")
    assert trained > 0.9
    assert frozen < trained - 0.15


def test_counting_is_learned_with_vllm(tmp_path: Path) -> None:
    pytest.importorskip("vllm")
    assert accuracy(tmp_path / "run") > 0.9
