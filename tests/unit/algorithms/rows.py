"""Packed batches written out by hand."""

from collections.abc import Sequence

import torch

from rlhf.batch import Batch


def rows_of(
    lengths: Sequence[int],
    *,
    rewards: Sequence[float],
    mask: Sequence[int] | None = None,
    group_ids: Sequence[int] | None = None,
    dtype: torch.dtype = torch.float64,
) -> Batch:
    """Rows of these lengths, all trained and one group unless told; every row is a trajectory."""
    n, num_rows = sum(lengths), len(lengths)
    return Batch(
        tokens=torch.zeros(n, dtype=torch.int64),
        positions=torch.cat([torch.arange(length) for length in (*lengths, 0)]),
        segment_ids=torch.repeat_interleave(torch.arange(num_rows), torch.tensor(lengths, dtype=torch.int64)),
        loss_mask=torch.ones(n, dtype=torch.bool) if mask is None else torch.tensor(mask, dtype=torch.bool),
        rollout_logprobs=torch.zeros(n, dtype=dtype),
        versions=torch.zeros(n, dtype=torch.int64),
        rewards=torch.tensor(rewards, dtype=dtype),
        group_ids=torch.tensor([0] * num_rows if group_ids is None else group_ids),
        truncated=torch.zeros(num_rows, dtype=torch.bool),
        trajectory_ids=torch.arange(num_rows),
    )
