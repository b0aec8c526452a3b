"""Rewards that count in a part of the run, and those of scenarios, in real workers."""

import asyncio
from dataclasses import replace

import pytest

from rlhf.config.rewards import RewardConfig
from rlhf.errors import ConfigError
from rlhf.rollout.scoring import RewardPool, WorkerSettings
from rlhf.types import RewardResult
from tests.unit.rollout.pools import group_of, pool_of, use

SETTINGS = WorkerSettings(max_steps=10)


def graded(*rewards, groups, settings=SETTINGS):
    """The names of the parts of each group's first total, its value, and what was graded in all."""

    async def run():
        async with pool_of(*rewards, num_workers=1, settings=settings) as pool:
            totals = [(await pool.score(group))[0] for group in groups]
            return [(list(t.parts), t.value) for t in totals], pool.metrics()

    return asyncio.run(run())


def at(version, **columns):
    return replace(group_of("a", columns=columns), version=version)


def test_a_reward_is_graded_in_its_steps_alone_and_left_out_of_total_and_metrics_before():
    rewards = use("sample"), use("length", first_step=-3, weight=2.0)
    found, metrics = graded(*rewards, groups=[at(version) for version in (0, 6)])
    assert {tuple(parts) for parts, _ in found} == {("reward_cases.sample",)}
    assert not [name for name in metrics if name.startswith("reward/reward_cases.length") and metrics[name]]
    found, _ = graded(*rewards, groups=[at(7), at(9)])
    assert [parts for parts, _ in found] == [["reward_cases.sample", "reward_cases.length"]] * 2


def test_outside_of_training_the_rewards_of_the_last_step_count():
    early, late = use("sample", last_step=4), use("length", first_step=5)
    found, _ = graded(early, late, groups=[at(4), at(5), at(None)])
    assert [parts for parts, _ in found] == [
        ["reward_cases.sample"],
        ["reward_cases.length"],
        ["reward_cases.length"],
    ]


def test_a_step_from_the_end_of_a_run_of_unknown_length_is_refused():
    for keys in ({"first_step": -3}, {"last_step": -1}):
        with pytest.raises(ConfigError, match="negative, which counts from the end"):
            RewardPool([use("sample", **keys)])


def test_rewards_of_a_scenario_and_the_score_of_its_environment_are_for_its_prompts_alone():
    rewards = use("sample", when={"scenario": "asked"}), use("length")
    played = RewardConfig(use="e:E", weight=1.0, when={"scenario": "played"})
    settings = WorkerSettings(environments=(played,))
    groups = [at(0, scenario="asked"), at(0, scenario="played")]
    scored = replace(groups[1].trajectories[0], reward=RewardResult(value=0.25))
    groups[1] = replace(groups[1], trajectories=(scored,))
    found, _ = graded(*rewards, groups=groups, settings=settings)
    assert found[0][0] == ["reward_cases.sample", "reward_cases.length"]
    assert found[1][0] == ["environment", "reward_cases.length"]
