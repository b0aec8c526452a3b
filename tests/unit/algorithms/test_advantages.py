import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlhf.algorithms.advantages import (
    group_advantages,
    group_relative,
    group_sums,
    on_tokens,
    trajectory_rewards,
    whiten,
)
from rlhf.batch import Batch
from tests.unit.algorithms import advantage_reference as slow
from tests.unit.algorithms import reference
from tests.unit.algorithms.ragged import garbage, ragged, with_padding, with_token_fields
from tests.unit.algorithms.rows import rows_of

NAN = float("nan")
seeds = st.integers(0, 10_000)


def f64(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def case(seed: int) -> Batch:
    return with_token_fields(ragged(seed, num_rows=12), seed)


def close(found: torch.Tensor, expected: torch.Tensor | list[float]) -> None:
    expected = torch.as_tensor(expected, dtype=torch.float64)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


@given(seed=seeds, normalise=st.booleans())
def test_group_relative_agrees_with_the_slow_reference(seed, normalise):
    batch = ragged(seed)
    expected = torch.tensor(reference.token_advantages(batch, normalise=normalise), dtype=torch.float64)
    torch.testing.assert_close(group_relative(batch, normalise=normalise), expected, rtol=1e-9, atol=1e-9)


@given(seed=seeds)
def test_rewards_of_trajectories_and_their_groups_agree_with_the_slow_reference(seed):
    batch = case(seed)
    found = trajectory_rewards(batch)
    ids = sorted(set(batch.trajectory_ids.tolist()))
    for place, i in enumerate(ids):
        mine = slow.total(batch, i)
        of_group = [slow.total(batch, j) for j in ids if slow.group_of(batch, j) == slow.group_of(batch, i)]
        peers = [reward for reward in of_group if not math.isnan(reward)]
        differ = len(peers) > 1 and not slow.equal(peers)
        assert found.valid[place] == (not math.isnan(mine))
        assert found.varied[place] == (differ and not math.isnan(mine))
        expected = [
            0 if math.isnan(mine) else mine,
            len(peers),
            slow.mean(peers) if peers else 0,
            mine - slow.mean(peers) if differ and not math.isnan(mine) else 0,
            slow.std(peers) if differ else 0,
        ]
        parts = (found.rewards, found.count, found.mean, found.centred, found.std())
        assert [part[place].item() for part in parts] == pytest.approx(expected, abs=1e-9, rel=1e-9)


@given(seed=seeds)
def test_group_sums_and_their_gradient_agree_with_the_slow_reference(seed):
    g = torch.Generator().manual_seed(seed)
    group = torch.randint(0, 4, (9,), generator=g)
    values, weights = torch.randn(2, 9, generator=g, dtype=torch.float64).unbind()
    values.requires_grad_()
    found = group_sums(values, group)
    (slope,) = torch.autograd.grad((weights * found).sum(), values)
    peers = [[j for j in range(9) if group[j] == group[i]] for i in range(9)]
    assert found.tolist() == pytest.approx([sum(values[j].item() for j in p) for p in peers], abs=1e-9)
    assert slope.tolist() == pytest.approx([sum(weights[j].item() for j in p) for p in peers], abs=1e-9)


@given(seed=seeds)
def test_a_trajectorys_number_is_on_each_of_its_trained_tokens(seed):
    batch = case(seed)
    ids = sorted(set(batch.trajectory_ids.tolist()))
    expected = [0.0] * batch.num_tokens
    for i, tokens in slow.episodes(batch).items():
        for t in tokens:
            expected[t] = 1.5 + ids.index(i)
    assert on_tokens(1.5 + torch.arange(len(ids)).double(), batch).tolist() == expected


def test_group_advantages_of_a_hand_worked_group():
    rewards, groups = f64(1, 0, 0, 0), torch.tensor([4, 4, 4, 4])
    by_std = group_advantages(rewards, groups, normalise=True)
    assert by_std.tolist() == pytest.approx([0.75 / 0.500001] + [-0.25 / 0.500001] * 3, abs=1e-12)
    assert group_advantages(rewards, groups, normalise=False).tolist() == [0.75, -0.25, -0.25, -0.25]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "rewards",
    [[0.1] * 3, [0.1 + 0.2, 0.3, 0.3], [1e6] * 2, [0.0] * 2, [0.1] * 3 + [NAN], [-0.1] * 3 + [NAN]],
)
def test_group_advantages_of_equal_rewards_are_exact_zeros(dtype, rewards):
    ids = torch.zeros(len(rewards), dtype=torch.int64)
    for normalise in (True, False):
        result = group_advantages(torch.tensor(rewards, dtype=dtype), ids, normalise=normalise)
        assert result.tolist() == [0.0] * len(rewards)


def test_group_advantages_of_small_rewards_that_differ_are_not_zero():
    result = group_advantages(f64(3e-12, 1e-12), torch.tensor([0, 0]), normalise=False)
    assert result.tolist() == pytest.approx([1e-12, -1e-12], rel=1e-9, abs=0)


def test_group_advantages_of_a_group_of_one_are_zero():
    result = group_advantages(f64(5, 1, 0), torch.tensor([0, 1, 1]), normalise=False)
    assert result.tolist() == [0.0, 0.5, -0.5]


def test_group_advantages_leave_unscorable_rewards_out_of_the_baseline():
    result = group_advantages(f64(1, NAN, 0, NAN, 3), torch.tensor([0, 0, 0, 1, 1]), normalise=False)
    assert result.tolist() == [0.5, 0.0, -0.5, 0.0, 0.0]


def test_group_advantages_of_nothing_are_nothing():
    assert group_advantages(f64(), torch.zeros(0, dtype=torch.int64), normalise=True).tolist() == []


@given(seed=seeds)
def test_group_advantages_go_by_id_not_by_position(seed):
    g = torch.Generator().manual_seed(seed)
    rewards, groups = torch.rand(12, generator=g).double(), torch.randint(0, 4, (12,), generator=g)
    order = torch.randperm(12, generator=g)
    straight = group_advantages(rewards, groups, normalise=True)[order]
    torch.testing.assert_close(group_advantages(rewards[order], groups[order] * -5, normalise=True), straight)


@given(seed=seeds)
def test_group_advantages_sum_to_zero_with_unit_std(seed):
    g = torch.Generator().manual_seed(seed)
    result = group_advantages(torch.rand(8, generator=g), torch.zeros(8, dtype=torch.int64), normalise=True)
    assert result.sum().item() == pytest.approx(0, abs=1e-9)
    assert math.sqrt(sum(a * a for a in result.tolist()) / 7) == pytest.approx(1, abs=1e-4)


@given(seed=seeds, normalise=st.booleans())
def test_group_relative_is_unchanged_by_the_order_of_rows(seed, normalise):
    batch = ragged(seed)
    order = torch.randperm(batch.num_rows, generator=torch.Generator().manual_seed(seed))
    permuted = group_relative(batch.select_rows(order), normalise=normalise)
    torch.testing.assert_close(permuted, group_relative(batch, normalise=normalise)[batch.token_index(order)])


@given(seed=seeds)
def test_whiten_agrees_with_the_slow_reference_and_leaves_out_what_was_not_gradable(seed):
    batch = case(seed)
    plain = torch.where(batch.loss_mask, batch.values, 5.0)
    for values in (plain, torch.where(batch.loss_mask, batch.values, garbage(batch.values))):
        close(whiten(values, batch), slow.whiten(values.tolist(), batch))


@given(seed=seeds)
def test_whitening_sees_neither_the_order_of_rows_nor_untrained_tokens(seed):
    batch = case(seed)
    whole = whiten(batch.values, batch)
    order = torch.randperm(batch.num_rows, generator=torch.Generator().manual_seed(seed))
    moved, padded = batch.select_rows(order), with_padding(batch, seed)
    close(whiten(moved.values, moved), whole[batch.token_index(order)])
    found = whiten(padded.values, padded)
    close(found[padded.loss_mask], whole[batch.loss_mask])
    assert found[~padded.loss_mask].count_nonzero() == 0


@given(seed=seeds)
def test_whitened_values_have_mean_zero_and_variance_one(seed):
    batch = replace(case(seed), rewards=torch.ones(12).double())
    found = whiten(batch.values, batch)[batch.loss_mask]
    assert found.mean().item() == pytest.approx(0, abs=1e-9)
    assert found.var(correction=1).item() == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("values", [[], [3.0], [0.1] * 3, [1e6] * 2])
def test_whitening_what_cannot_be_compared_gives_exact_zeros(values):
    batch = rows_of([len(values)], rewards=[1])
    assert whiten(f64(*values), batch).tolist() == [0.0] * len(values)
