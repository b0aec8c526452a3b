"""Rows and trained tokens by trajectory, and sums along the trained tokens of each.

A trajectory's rows are contexts of their own, but one episode: the first trained token of a row follows the
last trained token of the trajectory's row before it, in the order of the rows.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from rlhf.batch import Batch


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainedSequence:
    """The M trained tokens of a batch, trajectory after trajectory. Tool tokens are not there to be met."""

    places: Int[Tensor, " M"]
    """Where each one is in the batch, 0..N-1."""
    trajectory: Int[Tensor, " M"]
    """Non-decreasing."""
    is_last: Bool[Tensor, " M"]
    """The trajectory's last trained token."""


def trajectory_rows(batch: Batch) -> tuple[Int[Tensor, " T"], Int[Tensor, " B"]]:
    """The first row of each trajectory, and the trajectory of each row."""
    rows = torch.arange(batch.num_rows, device=batch.rewards.device)
    if batch.trajectory_ids is None:
        return rows, rows
    ids, trajectory = torch.unique(batch.trajectory_ids, return_inverse=True)
    first = torch.full_like(ids, batch.num_rows).scatter_reduce(0, trajectory, rows, "amin")
    return first, trajectory


def trained_sequence(batch: Batch) -> TrainedSequence:
    """The trained tokens in the order in which each trajectory's policy sampled them."""
    _, trajectory_of_row = trajectory_rows(batch)
    trained = torch.nonzero(batch.loss_mask).squeeze(1)
    trajectory = trajectory_of_row[batch.segment_ids[trained]]
    order = torch.argsort(trajectory, stable=True)
    trajectory = trajectory[order]
    is_last = torch.ones_like(trajectory, dtype=torch.bool)
    is_last[:-1] = trajectory[1:] != trajectory[:-1]
    return TrainedSequence(places=trained[order], trajectory=trajectory, is_last=is_last)


def discounted_sums(
    values: Float[Tensor, " M"], *, decay: Float[Tensor, " M"], trajectory: Int[Tensor, " M"]
) -> Float[Tensor, " M"]:
    """S_t = x_t + d S_t+1 along each trajectory, S = 0 after its last; d is one number per trajectory.

    By doubling: after round n every sum spans 2^n tokens. M log(longest) work, no division by a power of d,
    so nothing is lost where d^M is too small for a float.
    """
    sums, power, span = values, decay, 1
    longest = int(torch.bincount(trajectory).max()) if trajectory.numel() else 0
    while span < longest:
        same = trajectory[span:] == trajectory[:-span]
        sums = sums.clone()
        sums[:-span] += torch.where(same, power[:-span] * sums[span:], 0)
        power, span = power.square(), 2 * span
    return sums


def on_gradable_tokens(
    values: Float[Tensor, " M"], batch: Batch, sequence: TrainedSequence
) -> Float[Tensor, " N"]:
    """`values` back in the batch's places and dtype; 0 where not trained or where the reward was not gradable."""
    gradable = ~torch.isnan(batch.rewards)[batch.segment_ids[sequence.places]]
    result = batch.rollout_logprobs.new_zeros(batch.num_tokens)
    result[sequence.places] = torch.where(gradable, values, 0).to(result.dtype)
    return result
