from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlhf.algorithms.pairs import Pairs, Rows, interleaved, kto_baseline, pair_weights, sequence_logprobs
from rlhf.batch import Batch
from tests.unit.algorithms import preference_reference as reference
from tests.unit.algorithms.ragged import current_logprobs, garbage, ragged, with_padding
from tests.unit.algorithms.random_pairs import f64, random_pairs, soiled

seeds = st.integers(0, 10_000)
NAN = float("nan")


@given(seed=seeds)
def test_sequence_logprobs_agree_with_the_slow_reference_and_never_read_masked_tokens(seed):
    batch = ragged(seed)
    g = torch.Generator().manual_seed(seed)
    upstream = torch.randn(batch.num_rows, generator=g, dtype=torch.float64)
    clean = current_logprobs(batch, seed)
    dirty = torch.where(batch.loss_mask, clean, garbage(clean)).detach().requires_grad_()
    rows, mask = batch.segment_ids.tolist(), batch.loss_mask.tolist()
    slow, slow_counts = reference.row_sums(clean.tolist(), rows, mask, batch.num_rows)
    expected = [upstream[row].item() if m else 0.0 for row, m in zip(rows, mask, strict=True)]
    for logprobs in (clean, dirty):
        sums, counts = sequence_logprobs(logprobs, batch)
        (gradient,) = torch.autograd.grad((upstream * sums).sum(), logprobs, materialize_grads=True)
        assert sums.tolist() == pytest.approx(slow, abs=1e-12)
        assert counts.tolist() == slow_counts
        assert gradient.tolist() == expected


@given(seed=seeds)
def test_sums_and_weights_of_pairs_are_unchanged_by_order_padding_and_split(seed):
    batch = ragged(seed, num_rows=8)
    carrier = replace(batch, values=current_logprobs(batch, seed).detach())
    padded, order = (
        with_padding(carrier, seed),
        torch.randperm(8, generator=torch.Generator().manual_seed(seed)),
    )
    moved, half = carrier.select_rows(order), carrier.select_rows(torch.arange(4))
    sums, counts = sequence_logprobs(carrier.values, carrier)
    for part, rows in ((padded, torch.arange(8)), (moved, order), (half, torch.arange(4))):
        found, found_counts = sequence_logprobs(part.values, part)
        torch.testing.assert_close(found, sums[rows], rtol=1e-12, atol=1e-12)
        assert torch.equal(found_counts, counts[rows])
    for one_sided in (False, True):
        whole = pair_weights(counts, counts[order], one_sided=one_sided)
        swapped = pair_weights(counts.flip(0), counts[order].flip(0), one_sided=one_sided)
        assert torch.equal(swapped, whole.flip(0))


def test_sequence_logprobs_sum_bfloat16_in_float32():
    n = 4096
    batch = Batch(
        tokens=torch.zeros(n, dtype=torch.int64),
        positions=torch.arange(n),
        segment_ids=torch.zeros(n, dtype=torch.int64),
        loss_mask=torch.ones(n, dtype=torch.bool),
        rollout_logprobs=torch.zeros(n),
        versions=torch.zeros(n, dtype=torch.int64),
        rewards=torch.zeros(1),
        group_ids=torch.zeros(1, dtype=torch.int64),
        truncated=torch.zeros(1, dtype=torch.bool),
    )
    sums, _ = sequence_logprobs(torch.full((n,), -1.0078125, dtype=torch.bfloat16), batch)
    assert sums.dtype == torch.float32
    assert sums.item() == -4128


@given(seed=seeds)
def test_kto_baseline_agrees_with_the_slow_reference(seed):
    rows = random_pairs(seed).chosen
    slow = reference.kto_z(rows.sums.tolist(), rows.ref_sums.tolist(), rows.counts.tolist())
    for given_rows in (rows, soiled(rows)):
        z = kto_baseline(given_rows)
        assert z.item() == pytest.approx(slow, abs=1e-12)
        assert not z.requires_grad


def test_kto_baseline_is_zero_without_rows_and_when_the_mean_is_negative():
    def z(sums, refs, counts):
        rows = Rows(sums=f64(*sums), counts=torch.tensor(counts, dtype=torch.int64), ref_sums=f64(*refs))
        return kto_baseline(rows).item()

    assert z([], [], []) == 0
    assert z([NAN], [NAN], [0]) == 0
    assert z([-3.0, -2.0], [-1.0, -2.0], [1, 1]) == 0
    assert z([-1.0, -2.0, NAN], [-3.0, -2.0, 0.0], [1, 1, 0]) == 1.0


def test_pair_weights_count_whole_pairs_and_for_kto_sides():
    counts = torch.tensor([1, 0, 3, 0]), torch.tensor([2, 5, 1, 0])
    assert pair_weights(*counts).tolist() == [0.5, 0, 0.5, 0]
    assert pair_weights(*counts, one_sided=True).tolist() == [0.2, 0.2, 0.2, 0]


@given(seed=seeds, one_sided=st.booleans())
def test_pair_weights_agree_with_the_slow_reference(seed, one_sided):
    pairs = random_pairs(seed)
    counts = pairs.chosen.counts % 4, pairs.rejected.counts % 4
    slow = reference.pair_weights(*(c.tolist() for c in counts), one_sided=one_sided)
    assert pair_weights(*counts, one_sided=one_sided).tolist() == pytest.approx(slow, abs=1e-12)


def test_odd_structures_are_refused():
    three = Rows(sums=f64(-1, -2, -3), counts=torch.tensor([1, 1, 1]))
    with pytest.raises(ValueError, match="found 3 rows, expected an even number"):
        interleaved(three)
    with pytest.raises(ValueError, match="rejected has 2 rows, expected 3"):
        Pairs(chosen=three, rejected=three.select(slice(0, 2)))
    with pytest.raises(ValueError, match=r"sums is torch.bfloat16, expected float32 or float64"):
        Rows(sums=torch.zeros(3, dtype=torch.bfloat16), counts=torch.tensor([1, 1, 1]))


def test_interleaved_rows_become_pairs_in_order():
    rows = Rows(sums=f64(-1, -2, -3, -4), counts=torch.tensor([1, 2, 3, 4]), ref_sums=f64(-5, -6, -7, -8))
    pairs = interleaved(rows)
    assert pairs.chosen.sums.tolist() == [-1, -3]
    assert pairs.rejected.counts.tolist() == [2, 4]
    assert pairs.rejected.ref_sums.tolist() == [-6, -8]
