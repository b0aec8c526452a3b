"""Real Ray, vLLM and FSDP2 learn a toy task, and keep the staleness bound while they do."""

from pathlib import Path

import pytest

from tests.toy import column, metrics, toy_recipe, train

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("max_staleness", [0, 1, 4])
def test_loop_learns_and_keeps_the_staleness_bound(tmp_path: Path, max_staleness: int) -> None:
    pytest.importorskip("vllm")
    recipe = toy_recipe(tmp_path, schedule={"num_steps": 24, "max_staleness": max_staleness})
    code, output = train(recipe, "checkpoint.every=0")
    assert code == 0, output
    steps = metrics(tmp_path / "run")
    rewards = column(steps, "rollout/reward_mean")
    assert sum(rewards[-3:]) / 3 > sum(rewards[:3]) / 3 + 0.25, rewards
    staleness = column(steps, "buffer/staleness_max")
    assert max(staleness) == min(max_staleness, max(staleness))
    assert (max(staleness) > 0) == (max_staleness > 0)
    overlap = sum(column(steps, "time/overlap_share")[2:-2])
    assert (overlap > 0) == (max_staleness > 0)
    if max_staleness == 0:
        assert max(column(steps, "mismatch/logprob_gap_max")) < 1e-4
    assert all("sync/probe_gap" in step for step in steps)


def test_colocated_loop_learns_on_the_hf_engine_with_two_ranks_and_lora(tmp_path: Path) -> None:
    recipe = toy_recipe(
        tmp_path,
        schedule={"num_steps": 10, "minibatches": 2},
        learner={"num_ranks": 2, "lr": 2e-2, "microbatch_tokens": 512},
        model={"lora": {"rank": 8}},
        algorithm={"kl_coef": 1e-3},
        engine={"kind": "hf"},
        placement={"kind": "colocated", "num_cpus": 4},
    )
    code, output = train(recipe, "checkpoint.every=0")
    assert code == 0, output
    steps = metrics(tmp_path / "run")
    rewards = column(steps, "rollout/reward_mean")
    assert sum(rewards[-3:]) / 3 > sum(rewards[:3]) / 3 + 0.15, rewards
    assert column(steps, "update/kl")[-1] > 0
    assert max(column(steps, "mismatch/logprob_gap_max")) < 1e-4
