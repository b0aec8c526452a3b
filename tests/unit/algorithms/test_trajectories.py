from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlhf.algorithms.trajectories import (
    discounted_sums,
    on_gradable_tokens,
    trained_sequence,
    trajectory_rows,
)
from rlhf.batch import Batch
from tests.unit.algorithms import advantage_reference as slow
from tests.unit.algorithms.ragged import garbage, ragged, with_padding
from tests.unit.algorithms.rows import rows_of

seeds = st.integers(0, 10_000)


def sequences(batch: Batch) -> list[list[int]]:
    """The trained tokens of the trajectories that have any, by their ids."""
    return [tokens for _, tokens in sorted(slow.episodes(batch).items()) if tokens]


@given(seed=seeds)
def test_trajectory_rows_agree_with_the_slow_reference(seed):
    batch = ragged(seed, num_rows=12)
    ids = batch.trajectory_ids.tolist()
    first, trajectory = trajectory_rows(batch)
    assert first.tolist() == [ids.index(i) for i in sorted(set(ids))]
    assert trajectory.tolist() == [sorted(set(ids)).index(i) for i in ids]


def test_without_trajectory_ids_every_row_is_a_trajectory():
    first, trajectory = trajectory_rows(replace(ragged(1), trajectory_ids=None))
    assert first.tolist() == trajectory.tolist() == list(range(9))


@given(seed=seeds)
def test_trained_sequence_agrees_with_the_slow_reference(seed):
    batch = ragged(seed, num_rows=12)
    found = trained_sequence(batch)
    expected = sequences(batch)
    assert found.places.tolist() == [t for tokens in expected for t in tokens]
    assert found.is_last.tolist() == [t == tokens[-1] for tokens in expected for t in tokens]
    numbers = found.trajectory.tolist()
    assert numbers == sorted(numbers)
    assert [numbers.count(i) for i in sorted(set(numbers))] == [len(tokens) for tokens in expected]


@given(seed=seeds)
def test_untrained_tokens_and_the_order_of_trajectories_change_no_sequence(seed):
    batch = replace(
        ragged(seed, num_rows=12),
        rollout_logprobs=torch.arange(ragged(seed, num_rows=12).num_tokens).double(),
    )
    padded = with_padding(batch, seed)
    found, stretched = trained_sequence(batch), trained_sequence(padded)
    assert torch.equal(padded.rollout_logprobs[stretched.places], batch.rollout_logprobs[found.places])
    assert torch.equal(stretched.is_last, found.is_last)
    rows = torch.argsort(-batch.trajectory_ids, stable=True)
    moved = batch.select_rows(rows)
    assert torch.equal(
        moved.rollout_logprobs[trained_sequence(moved).places], batch.rollout_logprobs[found.places]
    )


@given(seed=seeds, decays=st.lists(st.sampled_from([0.0, 0.3, 0.97, 1.0]), min_size=1, max_size=6))
def test_discounted_sums_and_their_gradient_agree_with_the_slow_reference(seed, decays):
    g = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 9, (len(decays),), generator=g)
    trajectory = torch.repeat_interleave(torch.arange(len(decays)) * 2 + 1, lengths)
    decay = torch.repeat_interleave(torch.tensor(decays, dtype=torch.float64), lengths)
    values, weights = torch.randn(2, len(decay), generator=g, dtype=torch.float64).unbind()
    values.requires_grad_()
    found = discounted_sums(values, decay=decay, trajectory=trajectory)
    (slope,) = torch.autograd.grad((weights * found).sum(), values)
    n, owner, x, w = len(decay), trajectory.tolist(), values.tolist(), weights.tolist()

    def factor(t: int, u: int) -> float:
        return decays[owner[t] // 2] ** (u - t) if u >= t and owner[u] == owner[t] else 0.0

    sums = [sum(factor(t, u) * x[u] for u in range(n)) for t in range(n)]
    slopes = [sum(factor(t, u) * w[t] for t in range(n)) for u in range(n)]
    assert found.tolist() == pytest.approx(sums, abs=1e-9, rel=1e-9)
    assert slope.tolist() == pytest.approx(slopes, abs=1e-9, rel=1e-9)


def test_discounted_sums_of_nothing_are_nothing():
    nothing = torch.zeros(0, dtype=torch.float64)
    assert discounted_sums(nothing, decay=nothing, trajectory=torch.zeros(0, dtype=torch.int64)).numel() == 0


@given(seed=seeds)
def test_values_return_to_the_gradable_tokens_they_belong_to(seed):
    batch = ragged(seed, num_rows=12)
    sequence = trained_sequence(batch)
    lost = torch.isnan(batch.rewards)[batch.segment_ids[sequence.places]]
    values = torch.where(lost, garbage(sequence.places.double()), sequence.places.double() + 1)
    found = on_gradable_tokens(values, batch, sequence)
    expected = [
        t + 1.0 if batch.loss_mask[t] and not batch.rewards[row].isnan() else 0.0
        for t, row in enumerate(batch.segment_ids.tolist())
    ]
    assert found.tolist() == expected


def test_rows_of_a_trajectory_are_one_sequence():
    batch = rows_of([2, 1, 2, 1], rewards=[1, 3, 1, 1], mask=[1, 0, 1, 0, 1, 0])
    found = trained_sequence(replace(batch, trajectory_ids=torch.tensor([8, 5, 8, 8])))
    assert found.places.tolist() == [2, 0, 4]
    assert found.is_last.tolist() == [True, False, True]
