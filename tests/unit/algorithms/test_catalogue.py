import pickle
from dataclasses import replace

import pytest
import torch

from rlhf.algorithms.advantages import whiten
from rlhf.algorithms.catalogue import resolve
from rlhf.algorithms.gae import gae, returns
from rlhf.algorithms.shaping import CosineReward, Shaping
from rlhf.algorithms.token_rewards import kl_token_rewards
from rlhf.algorithms.value_loss import ValueLoss
from rlhf.config.presets import PRESETS
from rlhf.config.schema import Recipe
from rlhf.data.packing import split_minibatches
from tests.unit.algorithms import reference
from tests.unit.algorithms.bundles import algorithm, filled, recipe
from tests.unit.algorithms.ragged import ragged


def printed(name: str = "grpo", **overrides) -> dict[str, str]:
    return {what.strip(): which for what, which in algorithm(name, **overrides).lines()}


def test_grpo_is_the_papers_bundle():
    assert printed() == {
        "algorithm": "grpo",
        "advantages": "grpo",
        "loss": "ppo (clip_low 0.2, clip_high 0.2, correction token_tis [None, 2.0])",
        "aggregation": "seq_mean_token_mean",
        "KL to the reference": "none",
    }
    assert not algorithm().needs_reference
    assert not algorithm().needs_entropy
    batch = ragged(1)
    expected = torch.tensor(reference.token_advantages(batch, normalise=True), dtype=torch.float64)
    torch.testing.assert_close(algorithm().add_advantages(batch).advantages, expected, rtol=1e-9, atol=1e-9)


def test_dr_grpo_subtracts_the_mean_only_and_divides_by_a_constant():
    dr_grpo = algorithm("dr_grpo")
    assert (dr_grpo.aggregation, dr_grpo.loss_normaliser) == ("seq_mean_token_sum_norm", 128.0)
    assert algorithm("dr_grpo", loss_normaliser=50.0).loss_normaliser == 50.0
    batch = ragged(1)
    expected = torch.tensor(reference.token_advantages(batch, normalise=False), dtype=torch.float64)
    torch.testing.assert_close(dr_grpo.add_advantages(batch).advantages, expected, rtol=1e-9, atol=1e-9)


PAPERS = {
    "deepseekmath_grpo": {
        "KL to the reference": "0.04 x k3 in the loss",
        "aggregation": "seq_mean_token_mean",
    },
    "r1_zero": {"KL to the reference": "0.001 x k3 in the loss", "advantages": "grpo"},
    "deepseek_v3_2": {
        "advantages": "dr_grpo",
        "KL to the reference": "0.001 x k3_unbiased in the loss, ratio to the engine",
    },
    "dapo": {"aggregation": "token_mean", "KL to the reference": "none"},
    "dr_grpo": {"aggregation": "seq_mean_token_sum_norm (C 128)", "KL to the reference": "none"},
    "gspo": {"aggregation": "seq_mean_token_mean"},
    "cispo": {"aggregation": "token_mean"},
    "rloo": {"advantages": "rloo", "KL to the reference": "0.03 x k1 in the reward"},
    "reinforce_pp": {"aggregation": "token_mean", "KL to the reference": "0.001 x k1 in the reward"},
    "ppo": {"critic": "value loss (clip 0.5, lam 1.0)", "aggregation": "token_mean"},
    "vapo": {"critic": "value loss (clip 0.5, lam 1.0)", "KL to the reference": "none"},
}
LOSSES = {
    "dapo": "ppo (clip_low 0.2, clip_high 0.28,",
    "gspo": "gspo (clip_low 0.0003, clip_high 0.0004,",
    "cispo": "cispo (clip_high 4.0,",
    "rloo": "reinforce (",
    "deepseek_v3_2": "opsm_delta 0.1",
    "vapo": "positive_nll_coef 0.1",
}


SETTINGS = {
    "r1_zero": {"reference_reset_every": 400},
    "deepseek_v3_2": {"kl_ratio_from": "rollout", "opsm_delta": 0.1},
    "reinforce_pp": {"advantages": "reinforce_pp", "whiten": True},
    "ppo": {"advantages": "gae", "whiten": True, "kl_coef": 0.001, "kl_in": "reward"},
    "vapo": {"advantage_kwargs": {"length_alpha": 0.05}, "whiten": True, "clip_high": 0.28},
    "rloo": {"aggregation": "seq_mean_token_sum"},
}


@pytest.mark.parametrize("name", SETTINGS)
def test_preset_has_the_settings_of_its_paper(name):
    found = recipe(name).algorithm
    assert {key: getattr(found, key) for key in SETTINGS[name]} == SETTINGS[name]


def test_v3_2_keeps_sampling_mask_and_routing():
    found = recipe("deepseek_v3_2").sampling
    assert (found.keep_sampling_mask, found.keep_routing) == (True, "auto")


@pytest.mark.parametrize("name", PAPERS)
def test_preset_is_the_bundle_of_its_paper(name):
    found = printed(name)
    assert found | PAPERS[name] == found
    assert LOSSES.get(name, "") in found["loss"]


def test_every_preset_of_the_docs_is_checked_here():
    assert set(PRESETS) == {"grpo", *PAPERS}


def test_presets_reach_other_sections_and_the_recipe_wins():
    assert recipe("dapo").schedule.drop_zero_variance
    assert recipe("dapo", shaping={"overlong_coef": 2.0}).algorithm.shaping.overlong_share == 0.2
    assert algorithm("dapo").shaping.overlong_cache == 26
    assert not recipe("dapo", over={"schedule": {"drop_zero_variance": False}}).schedule.drop_zero_variance
    assert recipe("vapo").critic.pretrain_steps == 50
    assert recipe("vapo", over={"critic": {"lr": 1.0}}).critic.pretrain_steps == 50
    assert recipe("vapo", over={"critic": {"pretrain_steps": 3}}).critic.pretrain_steps == 3


@pytest.mark.parametrize("name", PRESETS)
def test_a_resolved_recipe_loads_back_to_itself(name):
    assert Recipe.model_validate(recipe(name).model_dump()) == recipe(name)


def test_settings_of_a_choice_go_with_the_choice():
    found = algorithm("dapo", policy="gspo")
    assert (found.loss.clip_low, found.loss.clip_high) == (None, None)
    assert algorithm("dapo", policy="gspo", clip_high=0.1).loss.clip_high == 0.1
    assert algorithm("vapo", advantages="grpo").value_loss is None
    assert recipe("vapo", advantages="grpo").critic.pretrain_steps == 0
    assert recipe("vapo", advantages="gae").critic.pretrain_steps == 50
    assert algorithm("dapo", policy="ppo").loss.clip_high == 0.28


def test_overrides_reach_the_bundle_and_its_loss():
    found = algorithm(
        clip_high=0.28,
        kl_coef=0.01,
        kl_estimator="k2",
        entropy_coef=0.1,
        correction="none",
        aggregation="token_mean",
    )
    assert (found.loss.clip_low, found.loss.clip_high, found.loss.kl_coef) == (None, 0.28, 0.01)
    assert (found.loss.kl_estimator, found.loss.entropy_coef, found.loss.correction) == ("k2", 0.1, "none")
    assert found.aggregation == "token_mean"
    assert found.needs_reference
    assert found.needs_entropy


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_can_do_without_its_kl_or_move_it(name):
    assert not algorithm(name, kl_coef=0).needs_reference
    inside, beside = (recipe(name, kl_coef=0.1, kl_in=place) for place in ("reward", "loss"))
    assert resolve(inside).loss.kl_estimator in ("k1", "k3")
    assert resolve(beside).loss.kl_coef == 0.1
    assert resolve(recipe(name, kl_coef=0.1, kl_in="loss", kl_estimator="k2")).loss.kl_estimator == "k2"


def test_what_bounds_ratios_is_printed():
    loss = printed(correction="none", old_from="rollout", log_ratio_limit=None)["loss"]
    assert loss.endswith("correction none, log_ratio_limit None, old_from rollout)")
    assert "log_ratio_limit 5.0" in printed(log_ratio_limit=5)["loss"]


def test_settings_of_a_selection_are_printed():
    assert printed(policy="clip_cov")["loss"].startswith(
        "clip_cov (clip_low 0.2, clip_high 0.2, fraction 0.0002, window (1.0, 5.0), correction"
    )
    few = printed(policy="kl_cov", policy_kwargs={"fraction": 0.5})["loss"]
    assert few.startswith("kl_cov (coef 1.0, fraction 0.5, correction")


def test_shaping_without_a_step_is_none():
    assert algorithm(shaping={}).shaping is None
    assert algorithm("dapo", shaping={"overlong_share": None}).shaping is None


OF_THE_LOSS = {
    "clip_low": 0.1,
    "clip_high": 0.3,
    "dual_clip": 3.0,
    "log_ratio_limit": 7.0,
    "correction": "icepop",
    "correction_floor": 0.6,
    "correction_cap": 4.0,
    "opsm_delta": 0.2,
    "kl_coef": 0.3,
    "kl_estimator": "k2",
    "entropy_coef": 0.4,
    "positive_nll_coef": 0.5,
}


def test_every_setting_of_the_loss_reaches_it():
    found = algorithm(**OF_THE_LOSS).loss
    assert {key: getattr(found, key) for key in OF_THE_LOSS} == OF_THE_LOSS
    assert algorithm(kl_coef=0.3, kl_ratio_from="rollout").loss.kl_ratio_from == "rollout"
    bypass = algorithm(
        old_from="rollout", correction="none", policy="sapo", policy_kwargs={"tau_negative": 2.0}
    )
    assert (bypass.loss.policy, bypass.loss.old_from) == ("sapo", "rollout")
    assert bypass.loss.policy_kwargs == (("tau_negative", 2.0),)


def test_critic_settings_reach_its_loss_and_its_returns():
    section = {"critic": {"lam": 0.9, "value_clip": 0.2}}
    shared = {"gamma": 0.8, "bootstrap_truncated": True}
    found = resolve(recipe("ppo", over=section, advantage_kwargs={**shared, "lam": 0.5}))
    batch = filled()
    assert found.value_loss == ValueLoss(clip=0.2)
    assert torch.equal(found.returns(batch), returns(batch, lam=0.9, **shared))
    assert torch.equal(found.advantages(batch), gae(batch, lam=0.5, **shared))
    free = resolve(recipe("ppo", over={"critic": {"value_clip": None}}))
    assert free.value_loss == ValueLoss(clip=None)


def test_critic_learns_from_the_penalised_and_shaped_rewards():
    found = algorithm("ppo", kl_coef=0.5, kl_estimator="k2", shaping={"truncated_coef": 0.5})
    batch = filled()
    penalty = kl_token_rewards(batch, kl_coef=0.5, estimator="k2")
    expected = replace(found.shaping(batch), token_rewards=penalty)
    made = found.add_advantages(batch)
    assert torch.equal(made.returns, returns(expected))
    assert torch.equal(made.advantages, whiten(gae(expected), expected))


def test_whitening_is_a_switch():
    batch = filled()
    plain = algorithm().add_advantages(batch).advantages
    assert torch.equal(algorithm(whiten=True).add_advantages(batch).advantages, whiten(plain, batch))


def test_selection_draws_by_the_seed_it_is_given():
    chosen = {"policy": "clip_cov", "policy_kwargs": {"fraction": 0.3, "window": (-99.0, 99.0)}}
    found, batch = algorithm(**chosen), ragged(5, num_rows=60)
    drawn = [found.add_loss_weights(batch, seed=seed).selected for seed in (0, 1)]
    assert not torch.equal(*drawn)
    for seed in (0, 1):
        weighed = replace(batch, loss_weights=found.add_loss_weights(batch).loss_weights)
        assert torch.equal(drawn[seed], found.loss.prepare(weighed, seed=seed).selected)


def test_shaping_settings_reach_the_shaping():
    cosine = {"correct": (3.0, 2.0), "wrong": (-4.0, -1.0), "truncated": -5.0}
    given = {"overlong_share": 0.26, "overlong_coef": 0.5, "correct_above": 0.7}
    found = algorithm(shaping={"cosine": cosine, **given}).shaping
    assert found == Shaping(
        max_tokens=128, cosine=CosineReward(**cosine), overlong_cache=33, overlong_coef=0.5, correct_above=0.7
    )
    other = algorithm(shaping={"kimi_coef": 0.3, "truncated_coef": -0.2}).shaping
    assert other == Shaping(max_tokens=128, kimi_coef=0.3, truncated_coef=-0.2)


def test_kl_estimator_depends_on_where_the_kl_acts():
    assert algorithm(kl_coef=0.1).loss.kl_estimator == "k3_unbiased"
    inside = algorithm(kl_coef=0.1, kl_in="reward")
    assert (inside.loss.kl_estimator, inside.loss.kl_coef, inside.kl_coef) == ("k1", 0.0, 0.1)
    assert inside.needs_reference


@pytest.mark.parametrize("kl_in", ["loss", "reward"])
def test_kl_coef_is_replaced_where_it_acts(kl_in):
    found = algorithm(kl_coef=0.1, kl_in=kl_in).with_kl_coef(0.2)
    assert found.kl_coef == 0.2
    assert (found.loss.kl_coef, found.kl_in_reward) == ((0.2, None) if kl_in == "loss" else (0.0, 0.2))


def test_kl_in_the_reward_lowers_the_advantages_of_those_who_left():
    batch = replace(filled(), rewards=torch.ones(ragged(1).num_rows).double())
    advantages = algorithm("rloo", kl_coef=0.5).add_advantages(batch).advantages
    assert advantages.abs().max() > 0
    assert torch.equal(algorithm("rloo", kl_coef=0.0).add_advantages(batch).advantages, 0 * advantages)


def test_old_logprobs_are_needed_for_several_updates_and_before_the_advantages():
    assert not algorithm().needs_old_logprobs(1)
    assert algorithm().needs_old_logprobs(2)
    assert algorithm("ppo").needs_old_logprobs(1)
    assert algorithm(advantages="distill", reference="teacher").needs_old_logprobs(1)
    assert algorithm(advantages="distill", reference="teacher").needs_reference


def test_several_teachers_take_the_place_of_the_reference_unless_a_kl_reads_it():
    taught = {"advantages": "distill", "teachers": {"b": "x", "a": "y"}, "teacher_by": "subject"}
    assert algorithm(**taught, kl_coef=0).teachers == ("b", "a")
    assert not algorithm(**taught, kl_coef=0).needs_reference
    assert algorithm(**taught, kl_coef=0.1).needs_reference


def test_shaped_rewards_reach_the_advantages_and_the_task_rewards_stay():
    batch = filled()
    shaped = algorithm("dapo").add_advantages(replace(batch, rewards=torch.ones(batch.num_rows).double()))
    assert torch.equal(shaped.task_rewards, torch.ones(batch.num_rows).double())
    scaled = algorithm("grpo", shaping={"truncated_coef": -1.0}).add_advantages(batch)
    assert (scaled.rewards[batch.truncated & ~torch.isnan(batch.rewards)] == -1).all()


def test_gdpo_takes_the_weights_of_the_rewards_unless_given_others():
    assert printed(advantages="gdpo")["advantages"] == "gdpo (weights (1.0, 0.5))"
    own = printed(advantages="gdpo", advantage_kwargs={"weights": (2.0, 3.0)})
    assert own["advantages"] == "gdpo (weights (2.0, 3.0))"


@pytest.mark.parametrize("mask_truncated", [False, True])
@pytest.mark.parametrize("name", PRESETS)
def test_loss_weights_leave_unscorable_and_masked_truncated_rows_out(name, mask_truncated):
    for seed in range(20):
        batch = ragged(seed)
        found = algorithm(name, mask_truncated=mask_truncated)
        kept = ~torch.isnan(batch.rewards) & ~(batch.truncated & mask_truncated)
        slow = reference.loss_weights(batch, found.aggregation, normaliser=128.0, kept=kept.tolist())
        torch.testing.assert_close(
            found.add_loss_weights(batch).loss_weights,
            torch.tensor(slow, dtype=torch.float64),
            rtol=1e-12,
            atol=0,
        )


def test_truncated_rows_stay_in_the_baseline():
    batch = ragged(1)
    with_mask = algorithm(mask_truncated=True).add_advantages(batch).advantages
    assert torch.equal(with_mask, algorithm().add_advantages(batch).advantages)


def test_loss_weights_of_each_minibatch_are_its_own():
    batch = replace(ragged(1, num_rows=12), group_ids=torch.arange(12) // 3, rewards=torch.rand(12).double())
    for part in split_minibatches(batch, 2):
        weights = algorithm().add_loss_weights(part).loss_weights
        assert weights.sum().item() == pytest.approx(1.0)


@pytest.mark.parametrize("name", PRESETS)
def test_losses_pickle(name):
    found = algorithm(name)
    for loss in (found.loss, found.value_loss):
        assert pickle.loads(pickle.dumps(loss)) == loss
