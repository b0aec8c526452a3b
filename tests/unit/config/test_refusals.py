"""Nothing that a recipe says of its algorithm is ignored: what would be is refused, with the keys and a way out."""

import pytest

from rlhf.config.presets import PRESETS
from rlhf.config.refusals import refuse_algorithm
from rlhf.config.schema import Recipe
from rlhf.errors import ConfigError

TASK = {"train": {"file": "a"}, "rewards": [{"use": "a:b"}, {"use": "a:c"}]}
GATED = {"train": {"file": "a"}, "rewards": [{"use": "a:b"}, {"use": "a:c", "gate": True}]}


def recipe(**sections) -> Recipe:
    return Recipe.model_validate({"name": "a", "model": {"path": "x"}, "task": TASK} | sections)


@pytest.mark.parametrize("name", PRESETS)
def test_no_preset_is_refused(name):
    refuse_algorithm(recipe(algorithm={"name": name}))


@pytest.mark.parametrize(
    ("algorithm", "says"),
    [
        ({"kl_target": 0.1}, "kl_target is 0.1 but algorithm.kl_coef is 0"),
        ({"reference_reset_every": 9}, "reference_reset_every is 9 but algorithm.kl_coef is 0"),
        ({"kl_in": "reward"}, "kl_in is reward but algorithm.kl_coef is 0"),
        ({"kl_estimator": "k2"}, "kl_estimator is k2 but algorithm.kl_coef is 0"),
        ({"kl_ratio_from": "rollout"}, "kl_ratio_from is rollout but algorithm.kl_coef is 0"),
        (
            {"kl_coef": 0.1, "kl_estimator": "k2", "kl_ratio_from": "rollout"},
            "algorithm.kl_estimator is k2, which has no ratio",
        ),
        ({"kl_coef": 0.1, "kl_in": "reward", "kl_ratio_from": "rollout"}, "kl_ratio_from is rollout but"),
        ({"kl_coef": 0.1, "kl_horizon": 5}, "kl_horizon is 5.0 but algorithm.kl_target is not set"),
        ({"reference": "b"}, "reference is b but algorithm.kl_coef is 0"),
        ({"advantage_inputs": ["values"]}, "advantage_inputs is ['values'] but algorithm.advantages is grpo"),
        (
            {"advantages": "mine:f", "advantage_inputs": ["teacher_logprobs"]},
            "advantages is mine:f but algorithm.reference is not set",
        ),
        (
            {"correction": "none", "correction_cap": 3},
            "correction_cap is 3.0 but algorithm.correction is none",
        ),
        ({"correction": "token_is", "correction_floor": 0.3}, "correction is token_is, which has no bounds"),
        ({"masked_share_warning": 0.1}, "masked_share_warning is 0.1 but algorithm.correction is token_tis"),
        ({"loss_normaliser": 3}, "loss_normaliser is 3.0 but algorithm.aggregation is seq_mean_token_mean"),
        ({"kl_coef": 0.1, "kl_estimator": "k1"}, "expected gradient of 0"),
        ({"kl_coef": 0.1, "kl_in": "reward", "kl_estimator": "k3_st"}, "a reward has no gradient"),
        ({"advantages": "process", "kl_in": "reward", "kl_coef": 0.1}, "it reads the rewards of steps"),
        ({"advantages": "maxrl", "kl_in": "reward", "kl_coef": 0.1}, "mean reward, which a penalty may"),
        ({"name": "dapo", "policy_kwargs": {"clip_high": 0.3}}, "set algorithm.clip_high instead"),
        ({"policy": "kl_cov", "policy_kwargs": {"window": [1, 5]}}, "which takes the largest"),
        ({"policy": "clip_cov", "policy_kwargs": {"window": [5, 1]}}, "expected two rising numbers"),
        ({"policy": "clip_cov", "policy_kwargs": {"fraction": 2}}, "expected a number above 0, at most 1"),
        (
            {"policy": "sapo", "policy_kwargs": {"tau_negative": 0}},
            "tau_negative is 0, expected a number above 0",
        ),
        ({"policy": "dppo", "policy_kwargs": {"k": -1}}, "k is -1, expected a number that is not negative"),
        (
            {"advantages": "gae", "advantage_kwargs": {"gamma": 5}},
            "gamma is 5, expected a number from 0 to 1",
        ),
        ({"advantages": "gae", "advantage_kwargs": {"length_alpha": 0}}, "length_alpha is 0, expected"),
        ({"name": "vapo", "advantage_kwargs": {"lam": 0.9}}, "Remove lam, or set length_alpha: null"),
        ({"advantages": "distill"}, "algorithm.reference is not set"),
        ({"advantages": "distill", "teachers": {"a": "b"}}, "need each other. Set both, or neither"),
        (
            {"advantages": "distill", "reference": "b", "teacher_by": "c"},
            "teachers is {} and algorithm.teacher_by is c",
        ),
        (
            {"advantages": "distill", "reference": "b", "teacher_by": "c", "teachers": {"a": "b"}},
            "nor where there are algorithm.teachers",
        ),
        ({"teachers": {"a": "b"}}, "advantages is grpo, which reads no teacher"),
        (
            {"advantages": "distill", "reference": "b", "kl_coef": 0.1, "reference_reset_every": 5},
            "the policy would become its own teacher",
        ),
        (
            {"name": "ppo", "mask_truncated": True, "advantage_kwargs": {"bootstrap_truncated": True}},
            "Set one of the two to false",
        ),
        (
            {"advantages": "gdpo", "advantage_kwargs": {"weights": [1.0]}},
            "has 1 numbers but task.rewards has 2",
        ),
        ({"advantages": "pass_at_k", "advantage_kwargs": {"k": 8}}, "samples_per_prompt is 8: expected"),
        ({"advantages": "pass_at_k", "advantage_kwargs": {"k": 0}}, "advantage_kwargs.k is 0"),
        ({"name": "dapo", "advantages": "gdpo"}, "algorithm.shaping is set but algorithm.advantages is gdpo"),
        ({"advantages": "process", "shaping": {"kimi_coef": 1}}, "which reads the rewards of steps"),
        ({"shaping": {"overlong_coef": 2}}, "overlong_share is not set"),
        ({"shaping": {"overlong_share": 0.5, "correct_above": 0.1}}, "neither cosine nor kimi_coef is set"),
    ],
)
def test_a_setting_of_the_algorithm_that_would_do_nothing_is_refused(algorithm, says):
    with pytest.raises(ConfigError) as caught:
        refuse_algorithm(recipe(algorithm=algorithm))
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("sections", "says"),
    [
        (
            {"critic": {"lr": 1e-3}},
            "critic.lr is 0.001 but algorithm.advantages is grpo, which has no critic",
        ),
        (
            {"algorithm": {"name": "vapo"}, "schedule": {"num_steps": 50}},
            "critic.pretrain_steps is 50 and schedule.num_steps is 50",
        ),
        ({"algorithm": {"name": "ppo"}, "critic": {"min_lr_ratio": 0.1}}, "critic.lr_schedule is constant"),
        ({"learner": {"min_lr_ratio": 0.1}}, "learner.lr_schedule is constant"),
        ({"schedule": {"samples_per_prompt": 1}}, "every advantage would be 0"),
        (
            {
                "task": {**TASK, "template": "chat", "environment": {"use": "a:b", "min_group": 9}},
                "schedule": {"samples_per_prompt": 8},
            },
            "task.environment.min_group is 9, but schedule.samples_per_prompt is 8: every group would be skipped",
        ),
        (
            {
                "algorithm": {"name": "ppo"},
                "schedule": {"samples_per_prompt": 1, "drop_zero_variance": True},
            },
            "every group would be discarded",
        ),
        (
            {
                "algorithm": {"advantages": "reinforce", "shaping": {"kimi_coef": 1.0}},
                "schedule": {"samples_per_prompt": 1},
            },
            "lengths are compared within a group",
        ),
        (
            {"algorithm": {"advantages": "gdpo"}, "task": GATED},
            "task.rewards has the gate a:c, but algorithm.advantages is gdpo",
        ),
        ({"algorithm": {"name": "r1_zero"}, "model": {"path": "x", "lora": {}}}, "and model.lora is set"),
        (
            {"algorithm": {"correction": "none"}, "engine": {"quantization": "fp8"}},
            "engine.quantization is fp8 but algorithm.correction is none",
        ),
        (
            {"algorithm": {"correction": "none"}, "engine": {"kv_cache_dtype": "fp8"}},
            "or engine.kv_cache_dtype: auto.",
        ),
    ],
)
def test_a_setting_beside_the_algorithm_that_would_do_nothing_is_refused(sections, says):
    with pytest.raises(ConfigError) as caught:
        refuse_algorithm(recipe(**sections))
    assert says in str(caught.value)


@pytest.mark.parametrize(
    "sections",
    [
        {"algorithm": {"name": "ppo"}, "schedule": {"samples_per_prompt": 1}},
        {"algorithm": {"name": "vapo", "advantages": "grpo"}},
        {"algorithm": {"name": "vapo", "advantage_kwargs": {"lam": 0.9, "length_alpha": None}}},
        {"algorithm": {"name": "r1_zero", "kl_coef": 0}},
        {"algorithm": {"name": "deepseek_v3_2", "kl_in": "reward"}},
        {"algorithm": {"name": "deepseek_v3_2", "kl_estimator": "k2"}},
        {
            "algorithm": {"correction": "none", "old_from": "rollout"},
            "engine": {"quantization": "fp8"},
        },
        {"algorithm": {"name": "dapo", "advantages": "gdpo", "shaping": None}},
        {
            "algorithm": {
                "advantages": "mine:own",
                "advantage_kwargs": {"k": 99, "lam": 7, "length_alpha": -1},
            }
        },
    ],
)
def test_a_preset_with_another_choice_is_taken(sections):
    refuse_algorithm(recipe(**sections))
