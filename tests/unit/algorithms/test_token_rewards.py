import math
from dataclasses import replace
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlhf.algorithms.kl import KL_ESTIMATORS
from rlhf.algorithms.token_rewards import dense_rewards, kl_token_rewards, sequence_rewards
from rlhf.batch import Batch
from rlhf.errors import RewardError
from tests.unit.algorithms import advantage_reference as slow
from tests.unit.algorithms import reference
from tests.unit.algorithms.ragged import ragged, with_padding, with_token_fields
from tests.unit.algorithms.rows import rows_of

seeds = st.integers(0, 10_000)


def case(seed: int) -> Batch:
    return with_token_fields(ragged(seed, num_rows=12), seed)


def close(found: torch.Tensor, expected: list[float]) -> None:
    torch.testing.assert_close(
        found, torch.tensor(expected, dtype=torch.float64), rtol=1e-9, atol=1e-9, equal_nan=True
    )


@pytest.mark.parametrize("estimator", KL_ESTIMATORS)
@pytest.mark.parametrize("has_old", [True, False])
@given(seed=seeds)
def test_kl_token_rewards_agree_with_the_slow_reference(estimator, has_old, seed):
    batch = case(seed) if has_old else replace(case(seed), old_logprobs=None)
    expected = []
    for t, mask in enumerate(batch.loss_mask.tolist()):
        sampled = batch.rollout_logprobs[t].item()
        policy = batch.old_logprobs[t].item() if has_old else sampled
        x, ratio = policy - batch.ref_logprobs[t].item(), math.exp(policy - sampled) if mask else 1
        expected.append(-0.3 * reference.kl_value_and_gradient(x, ratio, estimator)[0] if mask else 0.0)
    close(kl_token_rewards(batch, kl_coef=0.3, estimator=estimator), expected)


def test_kl_token_rewards_need_a_reference_and_are_never_differentiated():
    batch = case(2)
    with pytest.raises(ValueError, match="ref_logprobs"):
        kl_token_rewards(replace(batch, ref_logprobs=None), kl_coef=0.1)
    live = batch.old_logprobs.clone().requires_grad_()
    assert not kl_token_rewards(replace(batch, old_logprobs=live), kl_coef=0.1).requires_grad


@given(seed=seeds)
def test_sequence_rewards_agree_with_the_slow_reference(seed):
    batch = case(seed)
    expected = [slow.total(batch, i) for i in batch.trajectory_ids.tolist()]
    close(sequence_rewards(batch), expected)
    close(sequence_rewards(with_padding(batch, seed)), expected)


def test_sequence_rewards_count_a_reward_once_and_the_token_rewards_of_all_rows():
    batch = rows_of([2, 1, 1], rewards=[1, 5, 1], mask=[1, 0, 1, 1])
    batch = replace(
        batch,
        trajectory_ids=torch.tensor([4, 2, 4]),
        token_rewards=torch.tensor([0.1, 9.0, 0.2, 0.3], dtype=torch.float64),
    )
    assert sequence_rewards(batch).tolist() == pytest.approx([1.4, 5.2, 1.4])
    close(dense_rewards(batch), [0.1, 0.0, 5.2, 1.3])


@given(seed=seeds)
def test_dense_rewards_agree_with_the_slow_reference(seed):
    batch = case(seed)
    expected = [0.0] * batch.num_tokens
    for i, tokens in slow.episodes(batch).items():
        for t, r in zip(tokens, slow.dense(batch, tokens, slow.terminal(batch, i)), strict=True):
            expected[t] = r
    close(dense_rewards(batch), expected)


@given(seed=seeds)
def test_dense_rewards_of_a_trajectory_that_trains_add_up_to_its_sequence_reward(seed):
    batch = case(seed)
    dense, whole = dense_rewards(batch), sequence_rewards(batch)
    for i, tokens in slow.episodes(batch).items():
        if tokens:
            of_row = whole[slow.row_of(batch, i)].item()
            assert dense[tokens].sum().item() == pytest.approx(of_row, abs=1e-9, nan_ok=True)


@given(seed=seeds)
def test_untrained_tokens_the_order_of_trajectories_and_splits_change_no_reward(seed):
    batch, padded = case(seed), with_padding(case(seed), seed)
    order = torch.argsort(-batch.trajectory_ids, stable=True)
    for function in (dense_rewards, partial(kl_token_rewards, kl_coef=0.3, estimator="k3_unbiased")):
        whole, found = function(batch), function(padded)
        close(found[padded.loss_mask], whole[batch.loss_mask].tolist())
        assert found[~padded.loss_mask].count_nonzero() == 0
        close(function(batch.select_rows(order)), whole[batch.token_index(order)].tolist())
    whole = sequence_rewards(batch)
    close(sequence_rewards(batch.select_rows(order)), whole[order].tolist())
    for i in batch.trajectory_ids.unique():
        rows = torch.nonzero(batch.trajectory_ids == i).squeeze(1)
        part = batch.select_rows(rows)
        close(sequence_rewards(part), whole[rows].tolist())
        close(dense_rewards(part), dense_rewards(batch)[batch.token_index(rows)].tolist())


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("function", [sequence_rewards, dense_rewards])
def test_a_trained_token_without_a_finite_reward_is_refused(function, bad):
    batch = rows_of([2], rewards=[1], mask=[1, 0])
    fine = replace(batch, token_rewards=torch.tensor([1.0, bad]).double())
    assert torch.isfinite(function(fine)).all()
    with pytest.raises(RewardError, match="token_rewards of trained tokens must be finite"):
        function(replace(batch, token_rewards=torch.tensor([bad, 1.0]).double()))


def test_a_penalty_in_the_reward_reaches_the_group_and_the_token_estimators():
    from rlhf.algorithms.estimators import ADVANTAGES

    batch = rows_of([1, 1], rewards=[1, 1])
    batch = replace(batch, ref_logprobs=torch.tensor([-0.2, -0.6]).double())
    punished = replace(batch, token_rewards=kl_token_rewards(batch, kl_coef=0.5))
    assert punished.token_rewards.tolist() == pytest.approx([-0.1, -0.3])
    assert ADVANTAGES["rloo"](punished).tolist() == pytest.approx([0.2, -0.2])
    assert ADVANTAGES["reinforce_pp"](punished).tolist() == pytest.approx([0.9, 0.7])
