import pickle
from dataclasses import replace

import pytest
import torch

from rlhf.algorithms.catalogue import CATALOGUE, resolve
from rlhf.config.schema import AlgorithmConfig
from rlhf.data.packing import split_minibatches
from rlhf.errors import ConfigError
from tests.unit.algorithms import reference
from tests.unit.algorithms.ragged import ragged


def algorithm(name: str = "grpo", **overrides):
    return resolve(AlgorithmConfig(name=name, **overrides), max_tokens=128)


def test_grpo_is_the_papers_bundle():
    grpo = algorithm("grpo")
    assert grpo.aggregation == "seq_mean_token_mean"
    assert (grpo.loss.clip_low, grpo.loss.clip_high, grpo.loss.dual_clip) == (0.2, 0.2, None)
    assert (grpo.loss.correction, grpo.loss.bounds) == ("token_tis", (None, 2.0))
    assert not grpo.needs_reference
    assert not grpo.needs_entropy
    batch = ragged(1)
    expected = torch.tensor(reference.token_advantages(batch, normalise=True), dtype=torch.float64)
    torch.testing.assert_close(grpo.add_advantages(batch).advantages, expected, rtol=1e-9, atol=1e-9)


def test_dr_grpo_subtracts_the_mean_only_and_divides_by_a_constant():
    dr_grpo = algorithm("dr_grpo")
    assert (dr_grpo.aggregation, dr_grpo.loss_normaliser) == ("seq_mean_token_sum_norm", 128.0)
    assert algorithm("dr_grpo", loss_normaliser=50.0).loss_normaliser == 50.0
    batch = ragged(1)
    expected = torch.tensor(reference.token_advantages(batch, normalise=False), dtype=torch.float64)
    torch.testing.assert_close(dr_grpo.add_advantages(batch).advantages, expected, rtol=1e-9, atol=1e-9)


def test_overrides_reach_the_bundle_and_its_loss():
    found = algorithm(
        clip_high=0.28,
        kl_coef=0.01,
        kl_estimator="k2",
        entropy_coef=0.1,
        correction="none",
        aggregation="token_mean",
    )
    assert (found.loss.clip_low, found.loss.clip_high, found.loss.kl_coef) == (0.2, 0.28, 0.01)
    assert (found.loss.kl_estimator, found.loss.entropy_coef, found.loss.correction) == ("k2", 0.1, "none")
    assert found.aggregation == "token_mean"
    assert found.needs_reference
    assert found.needs_entropy


def test_old_logprobs_are_needed_only_for_several_updates():
    assert not algorithm().needs_old_logprobs(1)
    assert algorithm().needs_old_logprobs(2)


@pytest.mark.parametrize("mask_truncated", [False, True])
@pytest.mark.parametrize("name", CATALOGUE)
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
        ({"name": "grop"}, "algorithm.name: found 'grop'. Did you mean 'grpo'"),
        ({"aggregation": "token_maen"}, "algorithm.aggregation: .*'token_mean'"),
        ({"kl_estimator": "k4"}, "algorithm.kl_estimator: .*Known: k1, k2, k3, k3_st, k3_unbiased"),
        (
            {"loss_normaliser": 3.0},
            "algorithm.loss_normaliser is 3.0 but algorithm.aggregation is seq_mean_token_mean",
        ),
        (
            {"correction": "none", "correction_cap": 3.0},
            "algorithm.correction_cap is 3.0 but algorithm.correction",
        ),
        ({"kl_coef": 0.1, "kl_estimator": "k1"}, "expected gradient of 0"),
    ],
)
def test_a_configuration_that_cannot_mean_anything_is_refused(overrides, message):
    with pytest.raises(ConfigError, match=message):
        algorithm(**overrides)


def test_an_algorithm_prints_as_one_line():
    line = str(algorithm("dr_grpo", clip_high=0.28))
    assert line.startswith(
        "dr_grpo (aggregation seq_mean_token_sum_norm, loss_normaliser 128.0, policy ppo, clip_low 0.2,"
    )
    assert "clip_high 0.28" in line
    assert "dual_clip" not in line


@pytest.mark.parametrize("name", CATALOGUE)
def test_algorithms_pickle(name):
    found = pickle.loads(pickle.dumps(algorithm(name)))
    assert found.loss == algorithm(name).loss
    batch = ragged(1)
    assert torch.equal(
        found.add_advantages(batch).advantages, algorithm(name).add_advantages(batch).advantages
    )
