import math

import pytest
import torch

from rlhf.algorithms.correction import importance_weights, largest, mismatch_sums, token_tis, with_ess

OLD = torch.tensor([-1.0, -2.0, -3.0], dtype=torch.float64)
ROLLOUT = torch.tensor([-1.0, -1.0, -4.5], dtype=torch.float64)


def test_importance_weights_are_learner_over_engine_and_detached():
    weights = importance_weights(OLD.clone().requires_grad_(), ROLLOUT)
    assert not weights.requires_grad
    assert weights.tolist() == pytest.approx([1.0, math.exp(-1), math.exp(1.5)])


def test_token_tis_cuts_only_what_is_above_the_cap():
    assert token_tis(importance_weights(OLD, ROLLOUT), 2.0).tolist() == pytest.approx(
        [1.0, math.exp(-1), 2.0]
    )


def test_importance_weights_of_a_huge_gap_stay_finite():
    gap = importance_weights(torch.tensor([0.0, -500.0]), torch.tensor([-500.0, 0.0]))
    assert gap.tolist() == pytest.approx([math.exp(20), math.exp(-20)])


def test_mismatch_sums_are_those_of_the_formulas():
    sums = {k: (n.item(), d.item()) for k, (n, d) in mismatch_sums(OLD, ROLLOUT, cap=2.0).items()}
    gaps = [0.0, -1.0, 1.5]
    w = [math.exp(y) for y in gaps]
    assert sums["mismatch/logprob_gap_mean"] == (2.5, 3)
    assert sums["mismatch/logprob_gap_max"][0] == 1.5
    assert sums["mismatch/kl"] == pytest.approx((sum(math.exp(y) - 1 - y for y in gaps), 3))
    assert sums["mismatch/weight_mean"] == pytest.approx((sum(w), 3))
    assert sums["mismatch/weight_square_mean"] == pytest.approx((sum(x * x for x in w), 3))
    assert sums["mismatch/capped_share"] == (1, 3)
    assert "mismatch/capped_share" not in mismatch_sums(OLD, ROLLOUT, cap=None)


def test_with_ess_replaces_the_square_by_the_effective_sample_share():
    values = {"mismatch/weight_mean": 1.5, "mismatch/weight_square_mean": 2.5, "update/loss": 1.0}
    assert with_ess(values) == {"mismatch/weight_mean": 1.5, "mismatch/ess": 0.9, "update/loss": 1.0}
    assert with_ess({"update/loss": 1.0}) == {"update/loss": 1.0}


def test_largest_of_nothing_is_zero():
    assert largest(torch.zeros(0)).item() == 0
