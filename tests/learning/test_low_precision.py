"""FP8 rollouts and narrow optimizer state in the whole loop: it learns, and the metrics see the gap."""

from pathlib import Path

import pytest

from tests.toy import column, metrics, toy_recipe, train

pytestmark = pytest.mark.slow


def test_loop_with_fp8_rollouts_and_narrow_state_learns_as_far_as_in_float32(tmp_path: Path) -> None:
    recipe = toy_recipe(
        tmp_path,
        schedule={"num_steps": 14, "minibatches": 2},
        learner={"lr": 3e-3, "microbatch_tokens": 2048, "optimizer_state": "fp8"},
        engine={"kind": "hf", "quantization": "fp8"},
    )
    code, output = train(recipe, "checkpoint.every=0", "eval.every=0")
    assert code == 0, output
    assert "FP8 is simulated" in output
    steps = metrics(tmp_path / "run")
    rewards = column(steps, "rollout/reward_mean")
    # The bar of the same loop in float32 (test_loop_learns.py), where the gap is below 1e-4.
    assert sum(rewards[-3:]) / 3 > sum(rewards[:3]) / 3 + 0.2, rewards
    assert min(column(steps, "mismatch/logprob_gap_max")) > 1e-3
    assert all(0 < kl < 1e-2 for kl in column(steps, "mismatch/kl"))
    assert all(ess < 1 for ess in column(steps, "mismatch/ess"))
    assert all(1e-3 < gap < 1 for gap in column(steps, "sync/probe_gap"))
