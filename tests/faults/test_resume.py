"""Kill the driver and go on: nothing lost, nothing trained twice, bit for bit when synchronous."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

from tests.toy import metrics, start, toy_recipe, train

pytestmark = pytest.mark.slow
ENDLESS = "schedule.num_steps=10000"
"""Steps take a fraction of a second: on a busy machine a short run is over before its signal is sent."""
INTERRUPTED = "interrupted; the same command resumes from the last checkpoint"


def weights(run_dir: Path, scratch: Path) -> dict[str, torch.Tensor]:
    """Every tensor of a run's last checkpoint, whole."""
    last = sorted((run_dir / "checkpoints").glob("step-*"))[-1]
    dcp_to_torch_save(str(last / "learner"), str(scratch))
    found: dict[str, torch.Tensor] = torch.load(scratch, weights_only=False)
    return found


def in_background(recipe: Path, *overrides: str) -> subprocess.Popen[str]:
    """Start a run as a shell script does with `&`: SIGINT ignored."""
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        return start(recipe, *overrides)
    finally:
        signal.signal(signal.SIGINT, handler)


def ended(process: subprocess.Popen[str]) -> str:
    """What a run printed whose signal was sent; killed, for the sake of later tests, if it goes on."""
    try:
        return process.communicate(timeout=300)[0]
    finally:
        process.kill()


def kill_after(
    recipe: Path, *overrides: str, run_dir: Path, step: int, how: signal.Signals = signal.SIGKILL
) -> tuple[int, str]:
    """Start a run and send its driver a signal once metrics show `step`; (exit code, everything printed)."""
    process = in_background(recipe, f"run_dir={run_dir}", *overrides)
    file = run_dir / "metrics.jsonl"
    deadline = time.monotonic() + 500
    while time.monotonic() < deadline and process.poll() is None:
        if file.is_file() and any(f'"step": {step},' in line for line in file.read_text().splitlines()):
            break
        time.sleep(0.02)
    os.kill(process.pid, how)
    output = ended(process)
    if how == signal.SIGKILL:
        assert process.returncode == -signal.SIGKILL, output
    return process.returncode, output


def test_killed_driver_resumes_to_bitwise_equal_weights(tmp_path: Path) -> None:
    pytest.importorskip("vllm")
    recipe = toy_recipe(tmp_path)
    code, output = train(recipe, f"run_dir={tmp_path / 'whole'}")
    assert code == 0, output
    killed = tmp_path / "killed"
    kill_after(recipe, run_dir=killed, step=3)
    code, output = train(recipe, f"run_dir={killed}")
    assert code == 0, output
    assert "resuming at step" in output
    whole = weights(tmp_path / "whole", tmp_path / "a.pt")
    resumed = weights(killed, tmp_path / "b.pt")
    assert whole.keys() == resumed.keys()
    for name, tensor in whole.items():
        assert torch.equal(torch.as_tensor(tensor), torch.as_tensor(resumed[name])), name
    assert [line["step"] for line in metrics(killed)] == list(range(1, 7))
    same = ("rollout/reward_mean", "update/grad_norm", "rollout/num_tokens")
    for one, other in zip(metrics(tmp_path / "whole"), metrics(killed), strict=True):
        assert [one[name] for name in same] == [other[name] for name in same]


def test_asynchronous_run_resumes_without_losing_or_repeating_a_prompt(tmp_path: Path) -> None:
    recipe = toy_recipe(tmp_path, schedule={"max_staleness": 2}, engine={"kind": "hf"})
    run_dir = tmp_path / "run"
    kill_after(recipe, ENDLESS, run_dir=run_dir, step=3)
    num_steps = metrics(run_dir)[-1]["step"] + 2
    code, output = train(recipe, f"schedule.num_steps={num_steps}")
    assert code == 0, output
    last = sorted((run_dir / "checkpoints").glob("step-*"))[-1]
    ledger = json.loads((last / "state.json").read_text())["prompts"]
    assert (
        ledger["mark"] + len(ledger["settled"]) == num_steps * 8
    )  # as many settled as were trained: none twice
    assert [line["step"] for line in metrics(run_dir)] == list(range(1, num_steps + 1))


def test_checkpoint_of_two_ranks_resumes_on_one(tmp_path: Path) -> None:
    recipe = toy_recipe(tmp_path, engine={"kind": "hf"}, schedule={"num_steps": 2})
    code, output = train(recipe, "learner.num_ranks=2")
    assert code == 0, output
    code, output = train(recipe, "learner.num_ranks=1", "schedule.num_steps=4")
    assert code == 0, output
    assert "resuming at step 2" in output
    assert [line["step"] for line in metrics(tmp_path / "run")] == [1, 2, 3, 4]


def test_interrupted_run_cleans_up_says_so_and_resumes(tmp_path: Path) -> None:
    recipe, run_dir = toy_recipe(tmp_path, engine={"kind": "hf"}), tmp_path / "run"
    step = 3
    for how in (signal.SIGINT, signal.SIGTERM):
        code, output = kill_after(recipe, ENDLESS, run_dir=run_dir, step=step, how=how)
        assert (code, output.splitlines()[-1]) == (130, INTERRUPTED), output
        assert "Traceback" not in output
        step = metrics(run_dir)[-1]["step"] + 3
    code, output = train(recipe, f"schedule.num_steps={step}")
    assert code == 0, output
    assert "resuming at step" in output


def test_interrupt_ends_the_cold_start_at_once(tmp_path: Path) -> None:
    source = {"generator": "rewards.reasoning_tasks:demonstrations", "kwargs": {"size": 200}}
    recipe = toy_recipe(tmp_path, sft={"source": source, "num_steps": 100_000, "max_length": 128})
    process = in_background(recipe)
    curve = tmp_path / "run" / "sft" / "sft_metrics.jsonl"
    deadline = time.monotonic() + 400
    while time.monotonic() < deadline and process.poll() is None and not curve.is_file():
        time.sleep(0.1)
    os.kill(process.pid, signal.SIGINT)
    output = ended(process)
    assert (process.returncode, output.splitlines()[-1]) == (130, INTERRUPTED), output
    assert "Traceback" not in output
