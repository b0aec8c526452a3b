"""A policy of text and image codes learns in the real loop, scored by the distribution that it was sampled from."""

import re
from pathlib import Path

import pytest

from tests.toy import column, metrics, toy_recipe, train

pytestmark = pytest.mark.slow
CODES = {"first_id": 100, "num_codes": 16, "begin_id": 99, "num_tokens": 9, "null_id": 0}


def low_codes(completion: str) -> float:
    """Share of the first image's nine codes that are below 8."""
    codes = [int(code) for code in re.findall(r"<c(\d+)>", completion)[:9]]
    return sum(code < 8 for code in codes) / 9


@pytest.mark.parametrize("guidance", [2.0, pytest.param(1.0, marks=pytest.mark.long)])
def test_grpo_on_image_codes_learns_and_agrees_with_the_guided_engine(
    tmp_path: Path, guidance: float
) -> None:
    recipe = toy_recipe(
        tmp_path,
        model={"tokenizer": "characters+codes"},
        task={"template": "{prompt}<boi>", "rewards": [{"use": f"{Path(__file__)}:low_codes"}]},
        sampling={"image_codes": CODES | {"guidance": guidance}},
        schedule={"num_steps": 12},
        learner={"num_ranks": 2, "lr": 3e-3, "microbatch_tokens": 512},
        engine={"kind": "hf"},
        placement={"kind": "colocated"},
    )
    code, output = train(recipe, "checkpoint.every=0", "eval.every=6")
    assert code == 0, output
    steps = metrics(tmp_path / "run")
    rewards = column(steps, "rollout/reward_mean")
    assert sum(rewards[-3:]) / 3 > sum(rewards[:3]) / 3 + 0.2, rewards
    assert max(column(steps, "mismatch/logprob_gap_max")) < 1e-4
    assert max(column(steps, "sync/probe_gap")) < 1e-4
