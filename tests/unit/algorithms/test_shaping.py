import math
import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlhf.algorithms.shaping import (
    CosineReward,
    Shaping,
    cosine_reward,
    kimi_length_reward,
    overlong_penalty,
    scale_truncated,
    shaping_metrics,
    trajectory_lengths,
)
from rlhf.data.packing import pack, split_minibatches
from rlhf.errors import ConfigError
from rlhf.rollout.group import rejection
from tests.fakes import make_group, make_trajectory
from tests.unit.algorithms import shaping_reference as reference
from tests.unit.algorithms.ragged import ragged, with_garbage, with_padding

seeds = st.integers(0, 10_000)
coefs = st.none() | st.floats(-1.5, 1.5)
shapings = st.builds(
    Shaping,
    max_tokens=st.integers(5, 14),
    correct_above=st.sampled_from([-1.0, 0.0, 0.5]),
    kimi_coef=coefs,
    truncated_coef=coefs,
    overlong_cache=st.none() | st.integers(1, 5),
    overlong_coef=st.floats(0, 2),
) | st.builds(
    Shaping,
    max_tokens=st.integers(5, 14),
    cosine=st.builds(CosineReward, truncated=st.floats(-3, 0)),
    overlong_cache=st.none() | st.integers(1, 5),
)


def unshaped(seed: int):
    """Some tokens were sampled and are not trained, as those from too large a kept set."""
    batch = ragged(seed, num_rows=12)
    return replace(batch, task_rewards=None, loss_mask=batch.loss_mask & (batch.tokens % 5 > 0))


def same(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9, equal_nan=True)


def whole(*values: int) -> torch.Tensor:
    return torch.tensor(values)


@given(seed=seeds, shaping=shapings)
def test_shaping_agrees_with_the_slow_reference(seed, shaping):
    batch = unshaped(seed)
    found = shaping(batch)
    same(found.rewards, torch.tensor(reference.shaped(batch, shaping), dtype=torch.float64))
    assert found.task_rewards is batch.rewards


@given(seed=seeds)
def test_lengths_are_those_of_whole_trajectories(seed):
    batch = unshaped(seed)
    assert trajectory_lengths(batch).tolist() == reference.lengths(batch)
    alone = replace(batch, trajectory_ids=None)
    assert trajectory_lengths(alone).tolist() == reference.lengths(alone)


def test_a_token_from_too_large_a_kept_set_counts_in_the_length():
    segment = make_trajectory(sampled_ids=(3, 4, 5, 6)).segments[0]
    kept = tuple(np.array([] if token == 5 else [token], np.int32) for token in segment.token_ids)
    overflown = replace(make_trajectory(), segments=(replace(segment, kept=kept),))
    batch = pack([replace(make_group(), trajectories=(overflown, make_trajectory(sample_index=1)))])
    assert batch.row_sampled()[0] == 3
    assert trajectory_lengths(batch)[0] == 4


@given(seed=seeds, shaping=shapings)
def test_order_of_rows_and_untrained_tokens_change_nothing(seed, shaping):
    batch = unshaped(seed)
    order = torch.randperm(batch.num_rows, generator=torch.Generator().manual_seed(seed))
    expected = shaping(batch).rewards
    same(shaping(batch.select_rows(order)).rewards, expected[order])
    same(shaping(with_garbage(batch)).rewards, expected)
    same(shaping(with_padding(batch, seed)).rewards, expected)


@given(seed=seeds, shaping=shapings)
def test_mini_batches_of_whole_groups_are_shaped_as_the_step_is(seed, shaping):
    batch = replace(unshaped(seed), group_ids=torch.arange(12) // 4, trajectory_ids=torch.arange(12))
    parts = [shaping(part).rewards for part in split_minibatches(batch, 3)]
    same(torch.cat(parts), shaping(batch).rewards)


@given(seed=seeds, shaping=shapings)
def test_unscorable_rows_stay_so_and_do_not_touch_the_others(seed, shaping):
    batch = unshaped(seed)
    graded = torch.nonzero(~torch.isnan(batch.rewards)).flatten()
    found = shaping(batch).rewards
    assert torch.equal(torch.isnan(found), torch.isnan(batch.rewards))
    same(shaping(batch.select_rows(graded)).rewards, found[graded])


@given(lengths=st.lists(st.integers(0, 60), min_size=1), cache=st.integers(1, 40))
def test_overlong_penalty_is_capped_and_never_rises_with_length(lengths, cache):
    lengths.sort()
    found = overlong_penalty(whole(*lengths), max_tokens=40, cache=cache).tolist()
    assert found == sorted(found, reverse=True)
    assert found == pytest.approx([reference.overlong(n, 40, cache) for n in lengths], abs=1e-12)
    assert all(-1 <= penalty <= 0 for penalty in found)


def test_overlong_penalty_of_the_papers_numbers():
    lengths = whole(1, 16_384, 18_432, 20_480, 30_000)
    found = overlong_penalty(lengths, max_tokens=20_480, cache=4096)
    assert found.tolist() == [0, 0, -0.5, -1, -1]


def test_kimi_length_reward_of_a_hand_worked_group():
    found = kimi_length_reward(
        whole(10, 20, 30, 10, 99, 7, 7),
        torch.tensor([True, True, True, False, True, True, False]),
        valid=torch.tensor([True, True, True, True, False, True, True]),
        group_ids=whole(3, 3, 3, 3, 3, 1, 1),
    )
    assert found.tolist() == [0.5, 0, -0.5, 0, 0, 0, 0]


def test_cosine_reward_of_a_hand_worked_group():
    correct = torch.tensor([True, True, True, False, False, False, False])
    found = cosine_reward(whole(0, 50, 100, 0, 50, 100, 400), correct, values=CosineReward(), max_tokens=100)
    assert found.tolist() == pytest.approx([2, 1.5, 1, -10, -5, 0, 0])


@pytest.mark.parametrize(("coef", "expected"), [(0.5, 0.4), (0.0, 0.0), (-0.3, -0.3)])
def test_truncated_reward_is_scaled_or_overridden_by_a_negative_coefficient(coef, expected):
    rewards = torch.tensor([0.8, 0.8], dtype=torch.float64)
    found = scale_truncated(rewards, torch.tensor([True, False]), coef=coef)
    assert found.tolist() == [expected, 0.8]


def test_a_task_reward_on_the_threshold_is_wrong():
    batch = pack([make_group(rewards=(0.5, 0.75))])
    shaped = Shaping(max_tokens=3, cosine=CosineReward())(batch)
    assert shaped.rewards.tolist() == pytest.approx([0.0, 1.0])


def test_empty_batch_and_no_steps_change_nothing():
    empty = Shaping(max_tokens=8, kimi_coef=1.0, overlong_cache=2)(pack([]))
    assert empty.rewards.numel() == 0
    batch = unshaped(1)
    same(Shaping(max_tokens=8)(batch).rewards, batch.rewards)


def test_shaping_pickles_and_keeps_the_type_of_rewards():
    shaping = pickle.loads(pickle.dumps(Shaping(max_tokens=8, cosine=CosineReward())))
    assert shaping == Shaping(max_tokens=8, cosine=CosineReward())
    assert shaping(pack([make_group()])).rewards.dtype == torch.float32


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"cosine": CosineReward(), "kimi_coef": 1.0}, "cosine is set and kimi_coef is 1.0"),
        ({"cosine": CosineReward(), "truncated_coef": 0.5}, "cosine is set and truncated_coef is 0.5"),
        ({"overlong_cache": 9}, "overlong_cache is 9; expected 1 to 8"),
        ({"overlong_cache": 0}, "overlong_cache is 0; expected 1 to 8"),
    ],
)
def test_steps_that_exclude_each_other_are_refused(fields, message):
    with pytest.raises(ConfigError, match=message):
        Shaping(max_tokens=8, **fields)


def test_dynamic_sampling_looks_at_the_task_reward_which_shaping_varies_afterwards():
    short, long = make_trajectory(sampled_ids=(3,)), make_trajectory(sampled_ids=(3, 4, 5, 6), sample_index=1)
    solved = replace(make_group(), trajectories=(short, long))
    shaped = Shaping(max_tokens=4, overlong_cache=4, kimi_coef=1.0)(pack([solved]))
    assert shaped.rewards.tolist() == [1.0 + 0.5 - 0.25, 1.0 - 0.5 - 1.0]
    assert rejection(solved, drop_zero_variance=True) == "zero_variance"
    # Equal after shaping, not before: dynamic sampling keeps it.
    one = make_trajectory(sampled_ids=(3, 4, 5, 6), reward=1.0)
    other = make_trajectory(sampled_ids=(3, 4), reward=0.0, sample_index=1)
    mixed = replace(make_group(), trajectories=(one, other))
    assert Shaping(max_tokens=4, overlong_cache=2)(pack([mixed])).rewards.tolist() == [0.0, 0.0]
    assert rejection(mixed, drop_zero_variance=True) is None


@given(seed=st.integers(0, 50))
def test_shaped_mean_counts_each_gradable_trajectory_once(seed):
    batch = unshaped(seed)
    assert shaping_metrics(batch) == {}
    shaped = Shaping(max_tokens=8, overlong_cache=6)(batch)
    ids = batch.trajectory_ids.tolist()
    of = {i: r for i, r in zip(ids, shaped.rewards.tolist(), strict=True) if not math.isnan(r)}
    if of:
        found = shaping_metrics(shaped)["reward/shaped_mean"]
        assert found == pytest.approx(sum(of.values()) / len(of), abs=1e-12)
    nothing = replace(shaped, rewards=torch.full_like(shaped.rewards, math.nan))
    assert shaping_metrics(nothing) == {}
