"""Schedules by hand-worked numbers; clipping and decay by definition."""

import pytest
import torch

from rlhf.config.schema import LearnerConfig
from rlhf.learner.fsdp import FsdpLearner, RankPlace
from rlhf.learner.optimizer import build_optimizer, learning_rate
from tests.unit.learner.ranks import example_batch, gradients, plan, policy_gradient


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", [0.5, 1.0, 1.0, 1.0, 1.0, 1.0]),
        ("linear", [0.5, 1.0, 1.0, 0.775, 0.55, 0.1]),
        ("cosine", [0.5, 1.0, 1.0, 0.8682, 0.55, 0.1]),
    ],
)
def test_learning_rate_follows_its_schedule(schedule, expected: list[float]) -> None:
    config = LearnerConfig(lr=1.0, warmup_steps=2, lr_schedule=schedule, min_lr_ratio=0.1)
    found = [learning_rate(step, 10, config) for step in (0, 1, 2, 4, 6, 10)]
    assert found == pytest.approx(expected, abs=1e-4)


def test_weight_decay_spares_norms_and_biases() -> None:
    module = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.LayerNorm(2))
    decayed, spared = build_optimizer(module, LearnerConfig(weight_decay=0.1)).param_groups
    assert (decayed["weight_decay"], len(decayed["params"])) == (0.1, 1)
    assert (spared["weight_decay"], len(spared["params"])) == (0.0, 3)


def test_gradient_norm_is_that_of_the_whole_gradient_and_clipping_scales_it(place: RankPlace) -> None:
    whole = gradients(place, plan(), example_batch(), 10_000)
    norm = float(torch.sqrt(sum(g.square().sum() for g in whole.values())))
    learner = FsdpLearner(plan(max_grad_norm=norm / 4), place)
    metrics = learner.update([[example_batch()]], policy_gradient)
    assert metrics.values["update/grad_norm"] == pytest.approx(norm, rel=1e-5)
    for name, parameter in learner.policy.parameters.items():
        moment = learner.policy.optimizer.state[parameter]["exp_avg"].to_local()
        torch.testing.assert_close(moment, whole[name] / 4 * 0.1, rtol=1e-4, atol=1e-8)
