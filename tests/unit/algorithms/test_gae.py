from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlhf.algorithms.gae import gae, reinforce, returns
from rlhf.algorithms.trajectories import discounted_sums
from rlhf.batch import Batch
from tests.unit.algorithms import advantage_reference as slow
from tests.unit.algorithms.ragged import ragged, with_padding, with_token_fields
from tests.unit.algorithms.rows import rows_of

NAN, INF = float("nan"), float("inf")
seeds = st.integers(0, 10_000)
factors = st.sampled_from([0.0, 0.3, 0.95, 1.0])


def f64(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def case(seed: int) -> Batch:
    return with_token_fields(ragged(seed, num_rows=12), seed)


def close(found: torch.Tensor, expected: list[float] | torch.Tensor) -> None:
    expected = torch.as_tensor(expected, dtype=torch.float64)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


@given(seed=seeds, gamma=factors, lam=factors, bootstrap=st.booleans())
def test_gae_and_returns_agree_with_the_slow_reference(seed, gamma, lam, bootstrap):
    batch, settings = case(seed), {"gamma": gamma, "lam": lam, "bootstrap_truncated": bootstrap}
    close(gae(batch, **settings), slow.gae(batch, **settings))
    close(returns(batch, **settings), slow.returns(batch, **settings))


@given(seed=seeds, alpha=st.sampled_from([0.05, 0.2, 0.5, 3.0]))
def test_length_adaptive_lambda_is_floored_at_zero(seed, alpha):
    batch = case(seed)
    found = gae(batch, gamma=0.9, length_alpha=alpha)
    close(found, slow.gae(batch, gamma=0.9, length_alpha=alpha))
    if alpha == 0.05:  # no trajectory has more than 20 trained tokens: alpha L < 1
        lengths = [len(tokens) for tokens in slow.episodes(batch).values()]
        if max(lengths) <= 20:
            close(found, gae(batch, gamma=0.9, lam=0.0))


@given(seed=seeds)
def test_without_discounts_the_advantage_is_the_reward_to_go_minus_the_value(seed):
    batch = case(seed)
    gradable = ~torch.isnan(batch.rewards)[batch.segment_ids] & batch.loss_mask
    to_go = reinforce(batch)
    close(gae(batch)[gradable], to_go[gradable] - batch.values[gradable])
    close(returns(batch)[gradable], to_go[gradable])


@given(seed=seeds)
def test_ungradable_trajectories_teach_the_critic_nothing(seed):
    batch = case(seed)
    lost = torch.isnan(batch.rewards)[batch.segment_ids] & batch.loss_mask
    assert torch.equal(returns(batch, gamma=0.9, lam=0.8)[lost], batch.values[lost])


SETTINGS = {"gamma": 0.9, "lam": 0.8, "bootstrap_truncated": True}


@given(seed=seeds)
def test_untrained_tokens_change_no_return_whatever_they_hold(seed):
    batch = case(seed)
    padded = with_padding(batch, seed)
    found = returns(padded, **SETTINGS)
    assert torch.equal(found[padded.loss_mask], returns(batch, **SETTINGS)[batch.loss_mask])
    assert found[~padded.loss_mask].count_nonzero() == 0


@given(seed=seeds)
def test_trajectories_in_any_order_and_any_split_have_the_same_returns(seed):
    batch = case(seed)
    whole = returns(batch, **SETTINGS)
    g = torch.Generator().manual_seed(seed)
    moved = torch.argsort(torch.randperm(12, generator=g)[batch.trajectory_ids], stable=True)
    close(returns(batch.select_rows(moved), **SETTINGS), whole[batch.token_index(moved)])
    for i in batch.trajectory_ids.unique():
        rows = torch.nonzero(batch.trajectory_ids == i).squeeze(1)
        close(returns(batch.select_rows(rows), **SETTINGS), whole[batch.token_index(rows)])


def test_gae_of_a_hand_worked_row_skips_the_tool_span():
    batch = rows_of([6], rewards=[1], mask=[0, 1, 0, 0, 1, 0])
    batch = replace(batch, values=f64(NAN, 0.5, 9, INF, 0.25, 9))
    # delta = [0.5 * 0.25 - 0.5, 1 - 0.25]: the tool's three tokens are no steps, their values unread.
    found = gae(batch, gamma=0.5, lam=0.4)
    assert found.tolist() == pytest.approx([0, -0.375 + 0.2 * 0.75, 0, 0, 0.75, 0])


def test_reward_reaches_the_turns_before_a_tool_call():
    batch = rows_of([5], rewards=[1], mask=[1, 0, 0, 0, 1])
    assert reinforce(batch, gamma=0.97).tolist() == pytest.approx([0.97, 0, 0, 0, 1])


def test_reward_lands_on_the_last_trained_token_and_one_on_a_masked_token_is_dropped():
    batch = rows_of([3, 2, 0], rewards=[1, 5, 7], mask=[1, 1, 0, 0, 0])
    batch = replace(batch, token_rewards=f64(0.5, 0, 100, NAN, INF))
    assert reinforce(batch, gamma=0.5).tolist() == [1.0, 1.0, 0, 0, 0]


def test_rows_of_a_trajectory_are_one_sequence_in_the_order_of_rows():
    batch = rows_of([2, 1, 2, 1], rewards=[1, 3, 1, 1], mask=[1, 0, 1, 0, 1, 0])
    batch = replace(batch, trajectory_ids=torch.tensor([8, 5, 8, 8]))
    assert reinforce(batch, gamma=0.5).tolist() == [0.5, 0, 3, 0, 1, 0]


def test_a_truncated_trajectory_is_bootstrapped_from_the_row_of_its_last_trained_token():
    batch = rows_of([1, 2, 1], rewards=[0, 0, 0], mask=[1, 1, 0, 0])
    batch = replace(
        batch,
        trajectory_ids=torch.tensor([1, 1, 1]),
        truncated=torch.ones(3, dtype=torch.bool),
        values=f64(0.1, 0.2, NAN, NAN),
        last_values=f64(NAN, 0.8, INF),
    )
    cut = gae(batch, gamma=0.5, lam=1.0, bootstrap_truncated=True)
    close(cut, [0.25 * 0.8 - 0.1, 0.5 * 0.8 - 0.2, 0, 0])
    ended = gae(batch, gamma=0.5, lam=1.0)
    close(ended, [-0.1, -0.2, 0, 0])
    whole = replace(batch, truncated=torch.zeros(3, dtype=torch.bool), last_values=f64(NAN, NAN, NAN))
    assert torch.equal(gae(whole, gamma=0.5, bootstrap_truncated=True), ended)


def test_bootstrapping_without_last_values_is_refused():
    with pytest.raises(ValueError, match="last_values"):
        gae(replace(case(1), last_values=None), bootstrap_truncated=True)


@pytest.mark.parametrize("name", ["values", "last_values"])
def test_no_gradient_flows_into_the_critic(name):
    batch = case(1)
    batch = replace(batch, **{name: getattr(batch, name).clone().requires_grad_()})
    assert not gae(batch, bootstrap_truncated=True).requires_grad
    assert not returns(batch, bootstrap_truncated=True).requires_grad


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.999, 1.0])
def test_discounted_sums_stay_exact_over_long_sequences(decay):
    n = 200_000
    found = discounted_sums(
        torch.ones(n).double(),
        decay=torch.full((n,), decay, dtype=torch.float64),
        trajectory=(torch.arange(n) >= 3).long(),
    )
    left = torch.arange(n - 3, 0, -1).double()
    expected = left if decay == 1 else (1 - decay**left) / (1 - decay)
    torch.testing.assert_close(found[3:], expected, rtol=1e-12, atol=0)
    close(found[:3], [1 + decay + decay**2, 1 + decay, 1])
