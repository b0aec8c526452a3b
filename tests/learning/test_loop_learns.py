"""Real Ray, vLLM and FSDP2 learn a toy task, and keep the staleness bound while they do."""

from pathlib import Path
from typing import Any

import pytest

from tests.toy import column, metrics, toy_recipe, train

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("max_staleness", "engine"), [pytest.param(1, "hf", marks=pytest.mark.long), (4, "vllm")]
)
def test_loop_learns_and_keeps_the_staleness_bound(tmp_path: Path, max_staleness: int, engine: str) -> None:
    if engine == "vllm":
        pytest.importorskip("vllm")
    # Synchronous runs are those of test_environments and test_resume.
    schedule = {"num_steps": 24, "max_staleness": max_staleness}
    recipe = toy_recipe(tmp_path, schedule=schedule, engine={"kind": engine})
    code, output = train(recipe, "checkpoint.every=0")
    assert code == 0, output
    steps = metrics(tmp_path / "run")
    rewards = column(steps, "rollout/reward_mean")
    assert sum(rewards[-3:]) / 3 > sum(rewards[:3]) / 3 + 0.25, rewards
    staleness = column(steps, "buffer/staleness_max")
    assert 0 < max(staleness) <= max_staleness
    assert sum(column(steps, "time/overlap_share")[2:-2]) > 0
    assert all("sync/probe_gap" in step for step in steps)


def colocated(folder: Path, *, num_steps: int, **sections: Any) -> list[dict[str, Any]]:
    """Metrics of a run of two ranks that take turns with an hf engine, two mini-batches a step, a KL term."""
    recipe = toy_recipe(
        folder,
        schedule={"num_steps": num_steps, "minibatches": 2},
        learner={"num_ranks": 2, "lr": 3e-3, "microbatch_tokens": 512},
        algorithm={"kl_coef": 1e-3},
        engine={"kind": "hf"},
        placement={"kind": "colocated", "num_cpus": 4},
        **sections,
    )
    code, output = train(recipe, "checkpoint.every=0")
    assert code == 0, output
    return metrics(folder / "run")


def test_colocated_loop_with_two_ranks_and_a_reference_learns_on_the_hf_engine(tmp_path: Path) -> None:
    steps = colocated(tmp_path, num_steps=14)
    rewards = column(steps, "rollout/reward_mean")
    assert sum(rewards[-3:]) / 3 > sum(rewards[:3]) / 3 + 0.2, rewards
    assert column(steps, "update/kl")[0] < column(steps, "update/kl")[-1]
    assert max(column(steps, "mismatch/logprob_gap_max")) < 1e-4


def test_lora_run_publishes_merged_weights_and_compares_with_its_base(tmp_path: Path) -> None:
    steps = colocated(tmp_path, num_steps=3, model={"lora": {"rank": 8}})
    assert max(column(steps, "mismatch/logprob_gap_max")) < 1e-4
    assert max(column(steps, "sync/probe_gap")) < 1e-4
    assert column(steps, "update/kl")[-1] > 0


def test_rows_of_every_temperature_agree_with_the_engine_through_a_schedule(tmp_path: Path) -> None:
    pytest.importorskip("vllm")
    recipe = toy_recipe(
        tmp_path,
        schedule={"num_steps": 6},
        sampling={"temperature_points": [[0, 1.4], [2, 1.0], [4, 1.0], [5, 0.6]]},
    )
    code, output = train(recipe, "checkpoint.every=0")
    assert code == 0, output
    steps = metrics(tmp_path / "run")
    assert column(steps, "rollout/temperature") == pytest.approx([1.4, 1.2, 1.0, 1.0, 1.0, 0.6])
    assert max(column(steps, "mismatch/logprob_gap_max")) < 1e-4
