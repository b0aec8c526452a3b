import math

import pytest
import torch

from rlhf.algorithms.correction import (
    CORRECTIONS,
    PUBLISHED_BOUNDS,
    correction_weights,
    importance_weights,
    largest,
    mask_sums,
    mismatch_sums,
    off_policy_mask,
    with_ess,
)
from rlhf.algorithms.policy_terms import PolicyInputs

OLD = torch.tensor([-1.0, -2.0, -3.0], dtype=torch.float64)
ROLLOUT = torch.tensor([-1.0, -1.0, -4.5], dtype=torch.float64)


def test_importance_weights_are_learner_over_engine_and_detached():
    weights = importance_weights(OLD.clone().requires_grad_(), ROLLOUT)
    assert not weights.requires_grad
    assert weights.tolist() == pytest.approx([1.0, math.exp(-1), math.exp(1.5)])


def inputs(weights: list[float], rows: list[int], **changed) -> PolicyInputs:
    """Inputs of the given importance weights; current = old."""
    old = torch.tensor(weights, dtype=torch.float64).log() - 3
    fields = {
        "new": old,
        "old": old,
        "rollout": torch.full_like(old, -3.0),
        "log_ratio": torch.zeros_like(old),
        "advantages": torch.ones_like(old),
        "rows": torch.tensor(rows, dtype=torch.int64),
        "num_rows": max(rows, default=0) + 1,
    }
    return PolicyInputs(**(fields | changed))


# Rows of products 3 and 0.5 and of geometric means 3^(1/2) and 0.5; row 2 is on-policy.
W, ROWS = [6.0, 0.5, 0.5, 1.0], [0, 0, 1, 2]


@pytest.mark.parametrize(
    ("correction", "bounds", "weight", "outside"),
    [
        ("none", (None, None), [1, 1, 1, 1], [0, 0, 0, 0]),
        ("token_is", (None, None), W, [0, 0, 0, 0]),
        ("token_tis", (None, 2.0), [2, 0.5, 0.5, 1], [1, 0, 0, 0]),
        ("token_tis", (0.7, 2.0), [2, 0.7, 0.7, 1], [1, 1, 1, 0]),
        ("token_mis", (None, 2.0), [0, 0.5, 0.5, 1], [1, 0, 0, 0]),
        ("icepop", (0.6, 5.0), [0, 0, 0, 1], [1, 1, 1, 0]),
        ("sequence_tis", (None, 2.0), [2, 2, 0.5, 1], [1, 1, 0, 0]),
        ("sequence_mis", (None, 2.0), [0, 0, 0.5, 1], [1, 1, 0, 0]),
        ("geometric_mask", (0.4, 1.7), [0, 0, 1, 1], [1, 1, 0, 0]),
        ("geometric_mask_tis", (0.4, 1.8), W, [0, 0, 0, 0]),
        ("geometric_mask_tis", (0.6, 1.8), [6, 0.5, 0, 1], [0, 0, 1, 0]),
    ],
)
def test_corrections_worked_by_hand(correction, bounds, weight, outside):
    found = correction_weights(inputs(W, ROWS), correction, bounds=bounds)
    assert found.weight.tolist() == pytest.approx(weight)
    assert (found.capped | found.masked).int().tolist() == outside
    assert not (found.capped & found.masked).any()


@pytest.mark.parametrize(("low", "high"), [(0.5, 2.0)])
@pytest.mark.parametrize("correction", ["token_mis", "icepop", "sequence_mis", "geometric_mask"])
def test_a_weight_on_the_bound_is_kept(correction, low, high):
    made = inputs([1.0, 1.0], [0, 1])
    made = inputs([1.0, 1.0], [0, 1], old=made.rollout + torch.tensor([high, low]).double().log())
    exact = (made.old - made.rollout).exp().tolist()
    assert not correction_weights(made, correction, bounds=(exact[1], exact[0])).masked.any()
    inner = (exact[1] * (1 + 1e-12), exact[0] * (1 - 1e-12))
    assert correction_weights(made, correction, bounds=inner).masked.all()


@pytest.mark.parametrize("correction", CORRECTIONS)
def test_weights_are_detached_finite_and_one_on_policy(correction):
    live = torch.full((2,), -3.0, dtype=torch.float64, requires_grad=True)
    found = correction_weights(
        inputs([1.0, 1.0], [0, 0], old=live), correction, bounds=PUBLISHED_BOUNDS[correction]
    )
    assert not found.weight.requires_grad
    assert found.weight.tolist() == [1, 1]
    far = inputs([1.0, 1.0], [0, 1], old=torch.tensor([-900.0, 900.0], dtype=torch.float64))
    assert correction_weights(far, correction, bounds=(None, None)).weight.isfinite().all()
    empty = correction_weights(inputs([], []), correction, bounds=PUBLISHED_BOUNDS[correction])
    assert empty.weight.numel() == 0


def test_the_off_policy_mask_needs_a_negative_advantage_and_a_row_that_drifted():
    new = torch.tensor([-4.0, -3.0, -3.0, -3.5], dtype=torch.float64, requires_grad=True)
    advantages = torch.tensor([-1.0, 1.0, -1.0, 0.0], dtype=torch.float64)
    made = inputs([1.0] * 4, [0, 0, 1, 2], new=new, advantages=advantages)
    assert off_policy_mask(made, 0.4).tolist() == [True, False, False, False]
    assert not off_policy_mask(made, 0.5).any()  # exactly on the bound: kept
    assert off_policy_mask(made, -1.0).tolist() == [True, False, True, False]


def test_mask_sums_name_each_mask_and_their_union():
    weights = correction_weights(inputs(W, ROWS), "icepop", bounds=(0.6, 5.0))
    dropped = torch.tensor([True, False, False, True])
    sums = {k: (n.item(), d.item()) for k, (n, d) in mask_sums(weights, "icepop", dropped).items()}
    assert sums == {
        "mismatch/masked_share/icepop": (3, 4),
        "mismatch/masked_share/opsm": (2, 4),
        "mismatch/masked_share": (4, 4),
    }
    capped = correction_weights(inputs(W, ROWS), "token_tis", bounds=(None, 2.0))
    assert mask_sums(capped, "token_tis", None)["mismatch/capped_share"][0] == 1
    assert mask_sums(capped, "none", None) == {}


def test_importance_weights_of_a_huge_gap_stay_finite():
    gap = importance_weights(torch.tensor([0.0, -500.0]), torch.tensor([-500.0, 0.0]))
    assert gap.tolist() == pytest.approx([math.exp(20), math.exp(-20)])


def test_mismatch_sums_are_those_of_the_formulas():
    sums = {k: (n.item(), d.item()) for k, (n, d) in mismatch_sums(OLD, ROLLOUT).items()}
    gaps = [0.0, -1.0, 1.5]
    w = [math.exp(y) for y in gaps]
    assert sums["mismatch/logprob_gap_mean"] == (2.5, 3)
    assert sums["mismatch/logprob_gap_max"][0] == 1.5
    assert mismatch_sums(ROLLOUT, OLD)["mismatch/logprob_gap_max"][0] == 1.5
    assert sums["mismatch/kl"] == pytest.approx((sum(math.exp(y) - 1 - y for y in gaps), 3))
    assert sums["mismatch/weight_mean"] == pytest.approx((sum(w), 3))
    assert sums["mismatch/weight_square_mean"] == pytest.approx((sum(x * x for x in w), 3))
    assert sums["mismatch/kl_k1"] == pytest.approx((-0.5, 3))
    assert sums["mismatch/chi_square"] == pytest.approx((sum(x * x - 1 for x in w), 3))


def test_with_ess_replaces_the_square_by_the_effective_sample_share():
    values = {"mismatch/weight_mean": 1.5, "mismatch/weight_square_mean": 2.5, "update/loss": 1.0}
    assert with_ess(values) == {"mismatch/weight_mean": 1.5, "mismatch/ess": 0.9, "update/loss": 1.0}
    assert with_ess({"update/loss": 1.0}) == {"update/loss": 1.0}


def test_largest_of_nothing_is_zero():
    assert largest(torch.zeros(0)).item() == 0
