"""What `resolve` refuses, by name and with a way out."""

import pytest

from rlhf.algorithms.catalogue import resolve
from rlhf.errors import ConfigError
from tests.unit.algorithms.bundles import algorithm, recipe


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"aggregation": "token_maen"}, "algorithm.aggregation: .*'token_mean'"),
        ({"kl_estimator": "k4"}, "algorithm.kl_estimator: .*Known: k1, k2, k3, k3_st, k3_unbiased"),
        ({"advantages": "gea"}, "algorithm.advantages: found 'gea'. Did you mean 'gae'"),
        ({"policy": "gsop"}, "algorithm.policy: found 'gsop'. Did you mean 'gspo'"),
        ({"correction": "tis"}, "algorithm.correction: found 'tis'"),
        ({"correction_floor": 3.0}, r"token_tis with the bounds 3.0 \(correction_floor\) and 2"),
        ({"correction_cap": 0.5}, "0.5 .correction_cap.: expected 1 between them"),
        ({"advantage_kwargs": {"lam": 1.0}}, "algorithm.advantage_kwargs: found lam; grpo takes no settings"),
        ({"advantages": "pass_at_k"}, "algorithm.advantage_kwargs: pass_at_k needs k"),
        ({"policy": "sapo", "clip_low": 0.1}, "algorithm.policy 'sapo' has no clip_low"),
        (
            {"shaping": {"kimi_coef": 1.0, "cosine": {}}},
            "algorithm.shaping: cosine is set and kimi_coef is 1.0",
        ),
        (
            {"advantages": "pass_at_k", "advantage_kwargs": {"k": 2.5}},
            "advantage_kwargs.k: found 2.5, expected a valid integer",
        ),
        (
            {"advantages": "gae", "advantage_kwargs": {"gamma": "high"}},
            "advantage_kwargs.gamma: found 'high', expected a valid number",
        ),
        (
            {"policy": "sapo", "policy_kwargs": {"tau_negative": "x"}},
            "policy_kwargs.tau_negative: found 'x', expected a valid number",
        ),
        (
            {"policy": "clip_cov", "policy_kwargs": {"window": 3}},
            "policy_kwargs.window: found 3, expected a valid tuple",
        ),
        ({"old_from": "rollout"}, "algorithm.old_from is rollout and correction is token_tis"),
        ({"name": "dapo", "advantages": "gdpo"}, "algorithm.shaping is .* but algorithm.advantages is gdpo"),
        ({"advantages": "distill"}, "algorithm.reference is not set"),
    ],
)
def test_a_configuration_that_cannot_mean_anything_is_refused(overrides, message):
    with pytest.raises(ConfigError, match=message):
        algorithm(**overrides)


@pytest.mark.parametrize(
    ("name", "over", "message"),
    [
        ("grpo", {"schedule": {"samples_per_prompt": 1}}, "grpo, which compares the samples of a prompt"),
        ("rloo", {"schedule": {"samples_per_prompt": 1}}, "rloo, which compares the samples of a prompt"),
        (
            "ppo",
            {"schedule": {"samples_per_prompt": 1, "drop_zero_variance": True}},
            "every group would be discarded",
        ),
        ("vapo", {"schedule": {"num_steps": 50}}, "critic.pretrain_steps is 50 and schedule.num_steps is 50"),
    ],
)
def test_a_run_that_would_train_nothing_is_refused(name, over, message):
    with pytest.raises(ConfigError, match=message):
        resolve(recipe(name, over=over))


def test_gates_are_refused_where_the_rewards_are_read_one_by_one():
    task = {"train": {"file": "a"}, "rewards": [{"use": "a:b"}, {"use": "a:c", "gate": True}]}
    assert resolve(recipe("grpo", over={"task": task}))
    with pytest.raises(ConfigError, match=r"task.rewards has the gate a:c, but algorithm.advantages is gdpo"):
        resolve(recipe("grpo", advantages="gdpo", over={"task": task}))


def test_one_sample_is_enough_where_each_is_judged_by_itself():
    assert algorithm("grpo").least_rewards == 2
    assert algorithm("ppo").least_rewards == 1
    assert resolve(recipe("ppo", over={"schedule": {"samples_per_prompt": 1}})).least_rewards == 1


def test_a_reference_cannot_be_reset_under_lora():
    with pytest.raises(ConfigError, match=r"algorithm.reference_reset_every is 400 and model.lora is set"):
        resolve(recipe("r1_zero", over={"model": {"path": "x", "lora": {}}}))


def test_an_unknown_preset_is_refused_with_the_nearest():
    with pytest.raises(ValueError, match=r"algorithm.name: found 'grop'. Did you mean 'grpo'"):
        recipe("grop")
