"""What the algorithms need from the whole system: critic, teacher, steps, parts, experts, kept sets."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.tiny import MOE
from tests.toy import MODEL, column, metrics, toy_recipe, train

pytestmark = pytest.mark.slow


def run(folder: Path, *overrides: str, num_steps: int, **sections: Any) -> list[dict[str, Any]]:
    """Metrics of a toy run."""
    recipe = toy_recipe(folder, schedule={"num_steps": num_steps}, **sections)
    code, output = train(recipe, "checkpoint.every=0", "eval.every=0", *overrides)
    assert code == 0, output
    return metrics(folder / "run")


def rise(steps: list[dict[str, Any]], name: str = "rollout/reward_mean") -> float:
    """Mean of the last three steps minus that of the first three."""
    values = column(steps, name)
    return sum(values[-3:]) / 3 - sum(values[:3]) / 3


def test_ppo_learns_with_its_critic(tmp_path: Path) -> None:
    steps = run(
        tmp_path,
        num_steps=16,
        engine={"kind": "hf"},
        algorithm={"name": "ppo"},
        critic={"lr": 3e-3, "pretrain_steps": 2},
        learner={"lr": 3e-3, "microbatch_tokens": 2048, "num_ranks": 2},
    )
    assert rise(steps) > 0.2
    missed = [abs(value) for value in column(steps, "critic/error_mean")]
    assert max(missed[-3:]) < 0.5 * max(missed[:3])
    assert "update/grad_norm" not in steps[1]
    assert "update/kl" in steps[-1]


def test_distillation_pulls_the_policy_towards_its_teacher(tmp_path: Path) -> None:
    teacher = tmp_path / "teacher"
    run(teacher.parent, num_steps=8, engine={"kind": "hf"}, checkpoint={"export": True, "every": 0})
    exported = tmp_path / "run" / "model"
    steps = run(
        tmp_path,
        f"algorithm.reference={exported}",
        f"run_dir={teacher}",
        num_steps=8,
        engine={"kind": "hf"},
        algorithm={"advantages": "distill", "aggregation": "token_mean"},
    )
    kl = column(metrics(teacher), "update/kl")
    assert len(steps) > 0
    assert kl[-1] < 0.5 * kl[0]


REWARDS = '''
def by_step(completion):
    """Every character is a step; digits are right."""
    steps = [[i + 1, float(c.isdigit())] for i, c in enumerate(completion)]
    return {"score": sum(v for _, v in steps) / max(len(steps), 1), "steps": steps}


def short(completion):
    return -len(completion) / 16
'''


@pytest.mark.parametrize("advantages", ["process", pytest.param("gdpo", marks=pytest.mark.long)])
def test_steps_and_parts_of_rewards_reach_the_estimator(tmp_path: Path, advantages: str) -> None:
    file = tmp_path / "judge.py"
    file.write_text(REWARDS)
    rewards = [{"use": f"{file}:by_step"}, {"use": f"{file}:short", "weight": 0.1}]
    steps = run(
        tmp_path,
        num_steps=10,
        engine={"kind": "hf"},
        algorithm={"advantages": advantages},
        task={"rewards": rewards},
    )
    assert rise(steps) > 0.1


def test_a_mixture_of_experts_learns_with_its_experts_and_sampling_masks_kept(tmp_path: Path) -> None:
    pytest.importorskip("vllm")
    steps = run(
        tmp_path,
        num_steps=16,
        model={"config": {**MODEL, **MOE}},
        algorithm={"name": "deepseek_v3_2"},
        sampling={"max_prompt_tokens": 64, "max_tokens": 16, "top_p": 0.95, "keep_routing": True},
    )
    assert rise(steps) > 0.15
    assert max(column(steps, "mismatch/logprob_gap_max")) < 1e-3
    assert max(column(steps, "rollout/kept_overflow_share")) == 0
    resolved = json.dumps(steps[-1])
    assert "nan" not in resolved.lower()
