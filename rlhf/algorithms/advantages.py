"""What a trajectory's reward says about its tokens: statistics of groups, and whitening."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from rlhf.algorithms.token_rewards import sequence_rewards
from rlhf.algorithms.trajectories import trajectory_rows
from rlhf.batch import Batch

STD_EPSILON = 1e-6
_VARIANCE_EPSILON = 1e-8
EQUAL = 4 * torch.finfo(torch.float32).eps
"""Rewards closer than this share of the largest are equal: the std of [0.1, 0.1, 0.1] is not exactly 0."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupRewards:
    """Rewards of T trajectories and what their groups say of them. Float64; a NaN reward is left out."""

    rewards: Float[Tensor, " T"]
    """0 where left out."""
    group: Int[Tensor, " T"]
    """Numbered from 0."""
    valid: Bool[Tensor, " T"]
    varied: Bool[Tensor, " T"]
    """Valid, and not all rewards of the group are equal: where it is False the advantage is an exact 0."""
    count: Float[Tensor, " T"]
    """Valid rewards in the group."""
    mean: Float[Tensor, " T"]

    @property
    def centred(self) -> Float[Tensor, " T"]:
        """Reward minus the group's mean; exact zeros where the group has nothing to compare."""
        return torch.where(self.varied, self.rewards - self.mean, 0)

    def std(self) -> Float[Tensor, " T"]:
        """Of the group, ddof 1."""
        return (group_sums(self.centred.square(), self.group) / (self.count - 1).clamp(min=1)).sqrt()


def group_rewards(rewards: Float[Tensor, " T"], group_ids: Int[Tensor, " T"]) -> GroupRewards:
    """`rewards` with the statistics of their groups, which go by id, never by position."""
    valid = ~torch.isnan(rewards)
    values = torch.where(valid, rewards.double(), 0)
    _, group = torch.unique(group_ids, return_inverse=True)
    count = group_sums(valid.double(), group)
    mean = group_sums(values, group) / count.clamp(min=1)
    empty = values.new_full((_num_groups(group),), torch.inf)
    low = empty.scatter_reduce(0, group, torch.where(valid, values, torch.inf), "amin")
    high = (-empty).scatter_reduce(0, group, torch.where(valid, values, -torch.inf), "amax")
    varied = valid & _differ(low, high)[group]
    return GroupRewards(rewards=values, group=group, valid=valid, varied=varied, count=count, mean=mean)


def group_advantages(
    rewards: Float[Tensor, " T"], group_ids: Int[Tensor, " T"], *, normalise: bool
) -> Float[Tensor, " T"]:
    """Centre rewards in their group; divide by (standard deviation + 1e-6) if asked. Float64.

    A NaN reward is left out and gets 0. A group with fewer than two rewards, or with equal ones, gets exact
    zeros. Standard deviation with ddof 1. Source: GRPO (arXiv 2402.03300, 4.1.2);
    `normalise=False` is Dr. GRPO (arXiv 2503.20783).
    """
    found = group_rewards(rewards, group_ids)
    return found.centred / (found.std() + STD_EPSILON) if normalise else found.centred


def group_relative(batch: Batch, *, normalise: bool) -> Float[Tensor, " N"]:
    """Each trajectory's group advantage on every token it sampled, 0 elsewhere.

    Statistics are over trajectories: one of several rows counts once. Needs complete groups, so call it on
    the whole step, before mini-batches.
    """
    found = trajectory_rewards(batch)
    return on_tokens(found.centred / (found.std() + STD_EPSILON) if normalise else found.centred, batch)


def trajectory_rewards(batch: Batch) -> GroupRewards:
    """What each trajectory of the batch earned in all, grouped; truncated ones belong to the baseline, too."""
    first, _ = trajectory_rows(batch)
    return group_rewards(sequence_rewards(batch)[first], batch.group_ids[first])


def on_tokens(per_trajectory: Float[Tensor, " T"], batch: Batch) -> Float[Tensor, " N"]:
    """One number per trajectory on every token it trains, 0 elsewhere, in the dtype of `rollout_logprobs`."""
    _, trajectory = trajectory_rows(batch)
    per_token = per_trajectory.to(batch.rollout_logprobs.dtype)[trajectory][batch.segment_ids]
    return torch.where(batch.loss_mask, per_token, 0)


def group_sums(values: Float[Tensor, " T"], group: Int[Tensor, " T"]) -> Float[Tensor, " T"]:
    """For each element, the sum over its group."""
    return values.new_zeros(_num_groups(group)).index_add(0, group, values)[group]


def whiten(values: Float[Tensor, " N"], batch: Batch) -> Float[Tensor, " N"]:
    """(x - mean) / sqrt(variance + 1e-8) over all trained tokens of the batch, ddof 1; 0 elsewhere.

    A step of its own: no estimator hides one. Tokens of ungradable trajectories stay out of the statistics and
    get 0. Fewer than two tokens, or equal values, say nothing about each other and give exact zeros, as in a
    group. Statistics in float64. Source: PPO implementations at large (verl, TRL); REINFORCE++ (2501.03262).
    """
    used = batch.loss_mask & ~torch.isnan(batch.rewards)[batch.segment_ids]
    chosen = values[used].double()
    result = torch.zeros_like(values)
    if chosen.numel() > 1 and bool(_differ(chosen.min(), chosen.max())):
        scale = (chosen.var(correction=1) + _VARIANCE_EPSILON).sqrt()
        result[used] = ((chosen - chosen.mean()) / scale).to(values.dtype)
    return result


def _num_groups(group: Int[Tensor, " T"]) -> int:
    return int(group.max()) + 1 if group.numel() else 0


def _differ(low: Float[Tensor, "*G"], high: Float[Tensor, "*G"]) -> Bool[Tensor, "*G"]:
    """False where low is not below high by more than rounding, or where there is nothing (inf, -inf)."""
    return high - low > EQUAL * torch.maximum(high.abs(), low.abs())
