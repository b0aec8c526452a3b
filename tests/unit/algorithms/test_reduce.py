from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlhf.algorithms.reduce import AGGREGATIONS, loss_weights
from rlhf.batch import Batch
from tests.unit.algorithms import reference
from tests.unit.algorithms.ragged import ragged, with_padding

seeds = st.integers(0, 10_000)


def weights(batch: Batch, aggregation: str) -> torch.Tensor:
    normaliser = 64.0 if aggregation == "seq_mean_token_sum_norm" else None
    return loss_weights(batch, aggregation, normaliser=normaliser)


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@given(seed=seeds)
def test_loss_weights_agree_with_the_slow_reference(aggregation, seed):
    batch = ragged(seed)
    for kept in (torch.ones_like(batch.truncated), ~batch.truncated, torch.zeros_like(batch.truncated)):
        slow = reference.loss_weights(batch, aggregation, normaliser=37.0, kept=kept.tolist())
        fast = loss_weights(batch, aggregation, normaliser=37.0, kept=kept)
        torch.testing.assert_close(fast, torch.tensor(slow, dtype=torch.float64), rtol=1e-12, atol=0)


def test_loss_weights_of_a_hand_worked_batch():
    batch = replace(
        ragged(0, num_rows=3),
        segment_ids=torch.tensor([0, 0, 0, 1, 1]),
        loss_mask=torch.tensor([False, True, True, False, True]),
        rollout_logprobs=torch.zeros(5, dtype=torch.float64),
        group_ids=torch.tensor([0, 0, 1]),
        **dict.fromkeys(("advantages", "loss_weights", "old_logprobs", "ref_logprobs")),
        tokens=torch.zeros(5, dtype=torch.int64),
        positions=torch.tensor([0, 1, 2, 0, 1]),
        versions=torch.zeros(5, dtype=torch.int64),
    )
    third = 1 / 3
    expected = {
        "token_sum": [0, 1, 1, 0, 1],
        "token_mean": [0, third, third, 0, third],
        "seq_mean_token_mean": [0, 0.25, 0.25, 0, 0.5],
        "seq_mean_token_sum": [0, 0.5, 0.5, 0, 0.5],
        "seq_mean_token_sum_norm": [0, 0.5 / 64, 0.5 / 64, 0, 0.5 / 64],
        "prompt_mean_token_mean": [0, third, third, 0, third],
    }
    for aggregation in AGGREGATIONS:
        assert weights(batch, aggregation).tolist() == pytest.approx(expected[aggregation], abs=1e-12)


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_loss_weights_of_an_all_masked_batch_are_zeros(aggregation):
    batch = ragged(3)
    batch = replace(batch, loss_mask=torch.zeros_like(batch.loss_mask))
    assert weights(batch, aggregation).count_nonzero() == 0


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_loss_weights_of_a_batch_without_rows_are_empty(aggregation):
    assert weights(ragged(3).select_rows(torch.zeros(0, dtype=torch.int64)), aggregation).numel() == 0


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@given(seed=seeds)
def test_loss_weights_are_unchanged_by_empty_rows_and_row_order(aggregation, seed):
    batch = ragged(seed)
    order = torch.randperm(batch.num_rows, generator=torch.Generator().manual_seed(seed))
    order = torch.cat([row.expand(1) for row in order if batch.row_sampled()[row] > 0] or [order[:0]])
    torch.testing.assert_close(
        weights(batch.select_rows(order), aggregation), weights(batch, aggregation)[batch.token_index(order)]
    )


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@given(seed=seeds)
def test_loss_weights_are_unchanged_by_untrained_tokens(aggregation, seed):
    batch, padded = ragged(seed), with_padding(ragged(seed), seed)
    found = weights(padded, aggregation)
    assert torch.equal(found[padded.loss_mask], weights(batch, aggregation)[batch.loss_mask])
    assert found[~padded.loss_mask].count_nonzero() == 0


@given(seed=seeds)
def test_loss_weights_of_means_sum_to_one(seed):
    batch = ragged(seed)
    expected = float(batch.loss_mask.any())
    for aggregation in ("token_mean", "seq_mean_token_mean", "prompt_mean_token_mean"):
        assert weights(batch, aggregation).sum().item() == pytest.approx(expected, abs=1e-12)


def test_loss_weights_without_the_constant_say_what_is_missing():
    with pytest.raises(ValueError, match="normaliser"):
        loss_weights(ragged(0), "seq_mean_token_sum_norm")
