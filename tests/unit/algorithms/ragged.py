"""Random packed batches in float64, with every awkward row in them."""

from dataclasses import replace

import torch
from torch import Tensor

from rlhf.batch import Batch

REWARDS = (0.0, 1.0, 0.1, -0.5, float("nan"))


def ragged(seed: int, *, num_rows: int = 9, num_groups: int = 3) -> Batch:
    """Rows of 0 to 7 tokens; some train no token, some share a trajectory, some rewards are unscorable."""
    g = torch.Generator().manual_seed(seed)
    lengths = torch.randint(0, 8, (num_rows,), generator=g)
    n = int(lengths.sum())
    segment_ids = torch.repeat_interleave(torch.arange(num_rows), lengths)
    trajectory_ids = torch.randint(0, num_rows, (num_rows,), generator=g)
    of_trajectory = torch.randint(0, 10**6, (num_rows, 3), generator=g)[trajectory_ids]
    mask = torch.rand(n, generator=g) < 0.7
    mask &= (torch.rand(num_rows, generator=g) < 0.85)[segment_ids]
    rollout = _logprobs(n, g)
    return Batch(
        tokens=torch.randint(0, 99, (n,), generator=g),
        positions=torch.cat([torch.arange(int(length)) for length in lengths]),
        segment_ids=segment_ids,
        loss_mask=mask,
        rollout_logprobs=torch.where(mask, rollout, 0),
        versions=torch.where(mask, 3, -1),
        rewards=torch.tensor(REWARDS, dtype=torch.float64)[of_trajectory[:, 0] % len(REWARDS)],
        group_ids=(of_trajectory[:, 1] % num_groups) * 7 - 3,
        truncated=of_trajectory[:, 2] % 3 == 0,
        trajectory_ids=trajectory_ids,
        task_rewards=torch.arange(num_rows, dtype=torch.float64),
        temperatures=0.5 + torch.rand(num_rows, generator=torch.Generator().manual_seed(seed)),
        advantages=torch.where(mask, torch.randn(n, generator=g, dtype=torch.float64), 0),
        loss_weights=torch.where(mask, torch.rand(n, generator=g, dtype=torch.float64), 0),
        old_logprobs=torch.where(mask, rollout + 0.3 * _noise(n, g), 0),
        ref_logprobs=torch.where(mask, rollout + 0.5 * _noise(n, g), 0),
    )


def current_logprobs(batch: Batch, seed: int) -> Tensor:
    """Log-probabilities near the old ones, on both sides of the clip bounds; 0 where not trained."""
    g = torch.Generator().manual_seed(seed + 1)
    moved = batch.rollout_logprobs + 0.6 * _noise(batch.num_tokens, g)
    return torch.where(batch.loss_mask, moved, 0).requires_grad_()


def entropies(batch: Batch, seed: int) -> Tensor:
    g = torch.Generator().manual_seed(seed + 2)
    return (3 * torch.rand(batch.num_tokens, generator=g, dtype=torch.float64)).requires_grad_()


def with_garbage(batch: Batch) -> Batch:
    """The same batch with NaN and infinities under the mask of every field that a loss reads."""
    changed = {}
    for name in ("rollout_logprobs", "advantages", "old_logprobs", "ref_logprobs"):
        value = getattr(batch, name)
        changed[name] = torch.where(batch.loss_mask, value, garbage(value))
    return replace(batch, **changed)


def garbage(like: Tensor) -> Tensor:
    bad = torch.tensor([float("nan"), float("inf"), float("-inf"), 1e300], dtype=like.dtype)
    return bad[torch.arange(like.numel()) % 4]


def _noise(n: int, g: torch.Generator) -> Tensor:
    return torch.randn(n, generator=g, dtype=torch.float64)


def _logprobs(n: int, g: torch.Generator) -> Tensor:
    return -4 * torch.rand(n, generator=g, dtype=torch.float64)
