"""Weights of the positive NLL term of VAPO."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlhf.algorithms.losses import add_nll_weights
from tests.unit.algorithms.ragged import (
    ragged,
    with_padding,
)

seeds = st.integers(0, 10_000)


@given(seed=seeds)
def test_nll_weights_agree_with_the_slow_reference_in_any_order_and_padding(seed):
    batch, padded = ragged(seed), with_padding(ragged(seed), seed)
    graded, trained = batch.task_rewards.tolist(), (batch.loss_mask & (batch.loss_weights != 0)).tolist()
    rewarded = [m and graded[r] > 0 for m, r in zip(trained, batch.segment_ids.tolist(), strict=True)]
    found = add_nll_weights(batch).nll_weights
    assert found.tolist() == pytest.approx([x / max(sum(rewarded), 1) for x in rewarded], abs=1e-12)
    assert torch.equal(add_nll_weights(padded).nll_weights[padded.loss_mask], found[batch.loss_mask])
    order = torch.randperm(batch.num_rows, generator=torch.Generator().manual_seed(seed))
    assert torch.equal(add_nll_weights(batch.select_rows(order)).nll_weights, found[batch.token_index(order)])


def test_nll_weights_are_one_over_the_tokens_of_rewarded_rows():
    batch = ragged(5)
    graded = torch.tensor([1.0, -1.0, float("nan")]).double().repeat(3)
    batch = replace(batch, rewards=graded, task_rewards=None)
    assert torch.equal(
        add_nll_weights(replace(batch, rewards=-graded, task_rewards=graded)).nll_weights,
        add_nll_weights(batch).nll_weights,
    )
    weights = add_nll_weights(batch).nll_weights
    rewarded = batch.loss_mask & (batch.segment_ids % 3 == 0)
    assert torch.equal(weights > 0, rewarded)
    assert weights.sum().item() == pytest.approx(1.0)
    assert add_nll_weights(replace(batch, rewards=-batch.rewards.abs())).nll_weights.count_nonzero() == 0
