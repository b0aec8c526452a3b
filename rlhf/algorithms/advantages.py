"""What a trajectory's reward says about its tokens."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from rlhf.batch import Batch

STD_EPSILON = 1e-6
_EQUAL = 4 * torch.finfo(torch.float32).eps
"""Rewards closer than this share of the largest are equal: the std of [0.1, 0.1, 0.1] is not exactly 0."""


def group_relative(batch: Batch, *, normalise: bool) -> Float[Tensor, " N"]:
    """Each trajectory's group advantage on every token it sampled, 0 elsewhere.

    Statistics are over trajectories: one of several rows counts once. Needs complete groups, so call it on
    the whole step, before mini-batches.
    """
    first, trajectory = _first_rows(batch)
    per_trajectory = group_advantages(batch.rewards[first], batch.group_ids[first], normalise=normalise)
    per_row = per_trajectory[trajectory].to(batch.rollout_logprobs.dtype)
    per_token = per_row[batch.segment_ids]
    return torch.where(batch.loss_mask, per_token, torch.zeros_like(per_token))


def group_advantages(
    rewards: Float[Tensor, " T"], group_ids: Int[Tensor, " T"], *, normalise: bool
) -> Float[Tensor, " T"]:
    """Centre rewards in their group; divide by (standard deviation + 1e-6) if asked. Float64.

    A NaN reward is left out and gets 0. A group with fewer than two rewards, or with equal ones, gets exact
    zeros. Standard deviation with ddof 1. Source: GRPO (arXiv 2402.03300, outcome supervision);
    `normalise=False` is Dr. GRPO (arXiv 2503.20783).
    """
    valid = ~torch.isnan(rewards)
    values = torch.where(valid, rewards, 0).double()
    _, group = torch.unique(group_ids, return_inverse=True)
    zeros = values.new_zeros(int(group.max()) + 1 if group.numel() else 0)
    count = zeros.index_add(0, group, valid.double())
    mean = zeros.index_add(0, group, values) / count.clamp(min=1)
    centred = torch.where(valid, values - mean[group], 0)
    if normalise:
        std = (zeros.index_add(0, group, centred.square()) / (count - 1).clamp(min=1)).sqrt()
        scaled = centred / (std + STD_EPSILON)[group]
    else:
        scaled = centred
    return torch.where(valid & _varied(values, valid, group)[group], scaled, 0)


def _varied(
    values: Float[Tensor, " T"], valid: Bool[Tensor, " T"], group: Int[Tensor, " T"]
) -> Bool[Tensor, " G"]:
    """Whether a group's rewards differ; not where there are none, or only one."""
    empty = values.new_full((int(group.max()) + 1 if group.numel() else 0,), torch.inf)
    low = empty.scatter_reduce(0, group, torch.where(valid, values, torch.inf), "amin")
    high = (-empty).scatter_reduce(0, group, torch.where(valid, values, -torch.inf), "amax")
    return high - low > _EQUAL * torch.maximum(high.abs(), low.abs())


def _first_rows(batch: Batch) -> tuple[Int[Tensor, " T"], Int[Tensor, " B"]]:
    """One row of each trajectory, and the trajectory of each row."""
    rows = torch.arange(batch.num_rows, device=batch.rewards.device)
    if batch.trajectory_ids is None:
        return rows, rows
    ids, trajectory = torch.unique(batch.trajectory_ids, return_inverse=True)
    first = torch.full_like(ids, batch.num_rows).scatter_reduce(0, trajectory, rows, "amin")
    return first, trajectory
