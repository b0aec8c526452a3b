"""Random packed batches in float64, with every awkward row in them."""

from dataclasses import fields, replace

import torch
from torch import Tensor

from rlhf.batch import Batch
from rlhf.types import NOT_SAMPLED

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


def with_token_fields(batch: Batch, seed: int) -> Batch:
    """The same batch with values, token, step and part rewards and a teacher; NaN under the mask of each."""
    g = torch.Generator().manual_seed(seed + 3)
    n, bad = batch.num_tokens, garbage(batch.rollout_logprobs)

    def trained(values: Tensor) -> Tensor:
        return torch.where(batch.loss_mask, values, bad)

    parts = torch.tensor(REWARDS, dtype=torch.float64)
    drawn = torch.randint(0, len(REWARDS), (batch.num_rows, 3), generator=g)
    steps = torch.where(torch.rand(n, generator=g) < 0.4, _noise(n, g), torch.nan)
    return replace(
        with_garbage(batch),
        values=trained(_noise(n, g)),
        last_values=_noise(batch.num_rows, g),
        token_rewards=trained(0.1 * _noise(n, g)),
        step_rewards=trained(steps),
        reward_parts=parts[drawn[batch.trajectory_ids]],
        teacher_logprobs=trained(_logprobs(n, g)),
    )


def with_padding(batch: Batch, seed: int) -> Batch:
    """The same batch with untrained tokens strewn into its rows, and garbage in all their fields."""
    g = torch.Generator().manual_seed(seed + 4)
    copies = torch.randint(1, 4, (batch.num_tokens,), generator=g)
    index = torch.repeat_interleave(torch.arange(batch.num_tokens), copies)
    starts = torch.cumsum(copies, 0) - copies
    added = torch.ones_like(index, dtype=torch.bool)
    added[starts + torch.randint(0, 9, copies.shape, generator=g) % copies] = False
    stretched: dict[str, Tensor] = {}
    for name in (f.name for f in fields(batch)):
        value = getattr(batch, name)
        if isinstance(value, Tensor) and value.shape == batch.tokens.shape:
            long = value[index]
            stretched[name] = torch.where(added, garbage(long), long) if long.is_floating_point() else long
    segment_ids = stretched["segment_ids"]
    lengths = torch.bincount(segment_ids, minlength=batch.num_rows)
    offsets = (torch.cumsum(lengths, 0) - lengths)[segment_ids]
    stretched["positions"] = torch.arange(index.numel()) - offsets
    stretched["loss_mask"] = stretched["loss_mask"] & ~added
    stretched["versions"] = torch.where(added, NOT_SAMPLED, stretched["versions"])
    return replace(batch, **stretched)
