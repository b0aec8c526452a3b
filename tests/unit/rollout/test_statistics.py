from dataclasses import replace

import numpy as np
import pytest

from rlhf.rollout.statistics import is_correct, rollout_metrics
from rlhf.telemetry.metrics import declared
from rlhf.types import RewardResult
from tests.fakes import make_group, make_trajectory


def test_rewards_and_lengths_are_those_of_a_hand_worked_step():
    groups = [make_group(0, rewards=(0.0, 1.0)), make_group(1, rewards=(1.0, 1.0))]
    found = rollout_metrics(groups, version=0)
    assert found["rollout/reward_mean"] == 0.75
    assert found["rollout/reward_std"] == pytest.approx(0.1875**0.5)
    assert found["rollout/accuracy"] == 0.75
    assert found["rollout/zero_variance_share"] == 0.5
    assert (found["rollout/groups"], found["rollout/num_trajectories"]) == (2, 4)
    assert (found["rollout/num_tokens"], found["rollout/completion_tokens_max"]) == (12, 3)
    assert found["reward/task/mean"] == 0.75


def test_what_was_not_gradable_counts_in_no_mean():
    found = rollout_metrics([make_group(rewards=(None, 1.0, 0.0, None))], version=0)
    assert found["rollout/reward_mean"] == 0.5
    assert found["rollout/ungradable_share"] == 0.5
    assert found["reward/task/mean"] == 0.5


def test_staleness_is_counted_per_token_in_versions():
    fresh = make_trajectory(version=7, sampled_ids=(1, 2, 3))
    old = make_trajectory(version=5, sampled_ids=(1,))
    found = rollout_metrics([replace(make_group(), trajectories=(fresh, old))], version=7)
    assert found["buffer/staleness_max"] == 2
    assert found["buffer/staleness_mean"] == 0.5


def test_outcomes_and_truncation_are_shares():
    cut = replace(make_trajectory(reward=0.0), stop="length", reward=RewardResult(value=0.0, outcome="limit"))
    found = rollout_metrics([replace(make_group(), trajectories=(make_trajectory(), cut))], version=0)
    assert found["rollout/truncated_share"] == 0.5
    assert (found["rollout/outcome/ok"], found["rollout/outcome/limit"]) == (0.5, 0.5)


def test_overflow_is_the_share_of_sampled_tokens_whose_kept_set_was_too_large():
    one = make_trajectory()
    kept = tuple(np.array(ids, np.int32) for ids in ([], [], [3], [], [5]))
    recorded = replace(one, segments=(replace(one.segments[0], kept=kept),))
    found = rollout_metrics([replace(make_group(), trajectories=(recorded, recorded))], version=0)
    assert found["rollout/kept_overflow_share"] == pytest.approx(1 / 3)
    declared("rollout/kept_overflow_share")
    assert "rollout/kept_overflow_share" not in rollout_metrics([make_group()], version=0)


def test_every_metric_is_declared():
    for name in rollout_metrics([make_group(rewards=(None, 1.0))], version=0):
        declared(name)


@pytest.mark.parametrize(
    ("result", "correct"),
    [
        (None, False),
        (RewardResult(value=None, outcome="error"), False),
        (RewardResult(value=1.0), True),
        (RewardResult(value=0.5), False),
        (RewardResult(value=1.1, parts={"verify": 0.0, "format": 1.1}), False),
        (RewardResult(value=0.6, parts={"verify": 1.0, "length": -0.4}), True),
    ],
)
def test_solved_means_that_the_first_reward_says_so(result, correct):
    assert is_correct(result) is correct


def test_every_scenario_of_a_step_is_told_by_itself():
    groups = [make_group(i, rewards=r) for i, r in enumerate([(0.0, 1.0), (1.0, 1.0), (None, 0.0)])]
    groups = [
        replace(group, prompt=replace(group.prompt, scenario=name))
        for group, name in zip(groups, "aab", strict=True)
    ]
    found = rollout_metrics(groups, version=0)
    assert (found["scenario/a/share"], found["scenario/b/share"]) == pytest.approx((2 / 3, 1 / 3))
    assert (found["scenario/a/reward_mean"], found["scenario/b/reward_mean"]) == (0.75, 0.0)
    assert (found["scenario/a/accuracy"], found["scenario/a/zero_variance_share"]) == (0.75, 0.5)
    assert (found["scenario/b/num_tokens"], found["rollout/num_tokens"]) == (6, 18)
    assert all(declared(name) for name in found)
    assert not [n for n in rollout_metrics([make_group()], version=0) if n.startswith("scenario/")]
