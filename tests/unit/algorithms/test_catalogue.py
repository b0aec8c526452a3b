import pickle
from dataclasses import replace

import pytest
import torch

from rlhf.algorithms.catalogue import resolve
from rlhf.config.presets import PRESETS
from rlhf.config.schema import Recipe
from rlhf.data.packing import split_minibatches
from rlhf.errors import ConfigError, LoadError
from tests.unit.algorithms import reference
from tests.unit.algorithms.ragged import ragged


def recipe(name: str = "grpo", *, over: dict | None = None, **overrides) -> Recipe:
    values = {
        "name": "catalogue",
        "model": {"path": "x"},
        "task": {"train": {"file": "a"}, "rewards": [{"use": "a:b"}, {"use": "a:c", "weight": 0.5}]},
        "sampling": {"max_tokens": 128},
    }
    return Recipe.model_validate(values | {"algorithm": {"name": name, **overrides}} | (over or {}))


def algorithm(name: str = "grpo", **overrides):
    return resolve(recipe(name, **overrides))


def printed(name: str = "grpo", **overrides) -> dict[str, str]:
    return {what.strip(): which for what, which in algorithm(name, **overrides).lines()}


def filled(seed: int = 1):
    """A ragged batch with all that any preset's estimator reads."""
    batch = ragged(seed)
    noise = torch.linspace(-1, 1, batch.num_tokens, dtype=torch.float64)
    old = batch.rollout_logprobs + 0.01 * noise
    return replace(
        batch, values=noise, last_values=batch.rewards * 0, old_logprobs=old, ref_logprobs=old - 0.1 * noise
    )


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


def test_shaped_rewards_reach_the_advantages_and_the_task_rewards_stay():
    batch = filled()
    shaped = algorithm("dapo").add_advantages(replace(batch, rewards=torch.ones(batch.num_rows).double()))
    assert torch.equal(shaped.task_rewards, torch.ones(batch.num_rows).double())
    scaled = algorithm("grpo", shaping={"truncated_coef": -1.0}).add_advantages(batch)
    assert (scaled.rewards[batch.truncated & ~torch.isnan(batch.rewards)] == -1).all()


def test_gdpo_takes_the_weights_of_the_rewards():
    assert printed(advantages="gdpo")["advantages"] == "gdpo (weights (1.0, 0.5))"


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


def test_a_users_function_that_is_not_there_is_named():
    with pytest.raises(LoadError, match=r"algorithm.policy: there is no file 'nowhere.py'"):
        algorithm(policy="nowhere.py:loss")


def test_an_estimator_of_the_wrong_shape_is_named(tmp_path):
    (tmp_path / "mine.py").write_text("def per_row(batch):\n    return batch.rewards\n")
    with pytest.raises(ConfigError, match=r"algorithm.advantages gave a tensor of shape"):
        algorithm(advantages=f"{tmp_path}/mine.py:per_row").add_advantages(ragged(1))


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("[0.0]", r"gave a value \(list\), expected a tensor with one number"),
        ("batch.rollout_logprobs / 0", r"gave NaN or infinity for (\d+) of the \1 trained tokens"),
    ],
)
def test_an_estimator_that_gives_no_numbers_is_named(tmp_path, body, message):
    (tmp_path / "mine.py").write_text(f"def advantages(batch):\n    return {body}\n")
    with pytest.raises(ConfigError, match=message):
        algorithm(advantages=f"{tmp_path}/mine.py:advantages").add_advantages(ragged(1))


def test_an_estimator_that_fails_is_named_with_its_line(tmp_path):
    (tmp_path / "mine.py").write_text("def broken(batch):\n    return batch.rewrads\n")
    with pytest.raises(ConfigError, match=r"(?s)mine.py:broken failed on a step: AttributeError.*line 2"):
        algorithm(advantages=f"{tmp_path}/mine.py:broken").add_advantages(ragged(1))


def test_an_estimator_may_give_nan_where_the_reward_is_one(tmp_path):
    (tmp_path / "mine.py").write_text("def plain(batch):\n    return batch.rewards[batch.segment_ids]\n")
    batch = ragged(1)
    rewards = batch.rewards.index_fill(0, torch.tensor([0]), torch.nan)
    algorithm(advantages=f"{tmp_path}/mine.py:plain").add_advantages(replace(batch, rewards=rewards))


def test_settings_of_a_users_function_need_no_star(tmp_path):
    (tmp_path / "mine.py").write_text(
        "def scaled(batch, k, by=2.0):\n    return k * by * batch.rollout_logprobs\n\n"
        "def loss(inputs, by: float = 1.0):\n    return by * inputs.new, inputs.new > 0\n"
    )
    mine = {"advantages": f"{tmp_path}/mine.py:scaled", "policy": f"{tmp_path}/mine.py:loss"}
    found = algorithm(**mine, advantage_kwargs={"k": 99}, policy_kwargs={"by": 3})
    assert found.loss.settings() == {"by": 3.0}
    assert "scaled (by 2.0, k 99)" in dict(found.lines())["  advantages"]
    with pytest.raises(
        ConfigError, match=r"algorithm.advantage_kwargs: scaled needs k, which has no default"
    ):
        algorithm(**mine)


@pytest.mark.parametrize("name", PRESETS)
def test_losses_pickle(name):
    found = algorithm(name)
    for loss in (found.loss, found.value_loss):
        assert pickle.loads(pickle.dumps(loss)) == loss


def test_a_users_estimator_gets_what_it_asks_for(tmp_path):
    (tmp_path / "mine.py").write_text(
        "from rlhf.algorithms.gae import gae\n\n\ndef ours(batch, gamma=1.0):\n    return gae(batch, gamma=gamma)\n"
    )
    own = f"{tmp_path}/mine.py:ours"
    plain = algorithm(advantages=own)
    assert plain.value_loss is None
    assert not plain.needs_reference
    assert not plain.needs_old_logprobs(1)
    asked = algorithm(
        advantages=own,
        advantage_inputs=["values", "old_logprobs", "teacher_logprobs"],
        advantage_kwargs={"gamma": 0.9},
        reference="teacher",
    )
    assert asked.value_loss is not None
    assert asked.needs_reference
    assert asked.needs_old_logprobs(1)
    ours, theirs = (
        asked.add_advantages(filled()),
        algorithm("ppo", advantage_kwargs={"gamma": 0.9}, whiten=False),
    )
    expected = replace(theirs, kl_in_reward=None).add_advantages(filled())
    assert torch.equal(ours.advantages, expected.advantages)
    assert torch.equal(ours.returns, expected.returns)
