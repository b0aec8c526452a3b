"""Reward shaping: what a trajectory's length does to its reward, after dynamic sampling has seen the task's.

All of it is per row; the rows of one trajectory share its reward, its length and so what is made of them.
A length is the sampled tokens of the whole trajectory. A NaN reward stays NaN and is in no statistic.
"""

import math
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from rlhf.batch import Batch
from rlhf.errors import ConfigError
from rlhf.types import NOT_SAMPLED


@dataclass(frozen=True, slots=True, kw_only=True)
class CosineReward:
    """Rewards that stand in place of the task's, from (length 0, length max_tokens); the paper's defaults."""

    correct: tuple[float, float] = (2.0, 1.0)
    wrong: tuple[float, float] = (-10.0, 0.0)
    truncated: float = -10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Shaping:
    """What is done to rewards before advantages, in the order of the fields; None leaves a step out. It pickles.

    Raises ConfigError for steps that exclude each other.
    """

    max_tokens: int
    """The longest completion: sampling.max_tokens."""
    correct_above: float = 0.5
    """A trajectory is correct if its task reward is above this (cosine, Kimi)."""
    cosine: CosineReward | None = None
    kimi_coef: float | None = None
    """Weight of `kimi_length_reward`."""
    truncated_coef: float | None = None
    """As in `scale_truncated`."""
    overlong_cache: int | None = None
    """Tokens before max_tokens over which `overlong_penalty` falls to -1."""
    overlong_coef: float = 1.0
    """Weight of that penalty."""

    def __post_init__(self) -> None:
        for other, value in (("kimi_coef", self.kimi_coef), ("truncated_coef", self.truncated_coef)):
            if self.cosine is not None and value is not None:
                raise ConfigError(
                    f"cosine is set and {other} is {value}: the cosine reward already says what length and "
                    "truncation are worth. Remove one of the two."
                )
        if self.overlong_cache is not None and not 0 < self.overlong_cache <= self.max_tokens:
            raise ConfigError(
                f"overlong_cache is {self.overlong_cache}; expected 1 to {self.max_tokens} (sampling.max_tokens)."
            )

    def __call__(self, batch: Batch) -> Batch:
        """The batch with shaped `rewards`, and the task's in `task_rewards`. Groups must be complete."""
        task, lengths = batch.rewards.double(), trajectory_lengths(batch)
        rewards, correct = task, task > self.correct_above
        if self.cosine is not None:
            rewards = cosine_reward(lengths, correct, values=self.cosine, max_tokens=self.max_tokens)
            rewards = torch.where(batch.truncated, self.cosine.truncated, rewards)
        if self.kimi_coef is not None:
            valid = ~torch.isnan(task)
            rewards = rewards + self.kimi_coef * kimi_length_reward(
                lengths, correct, valid=valid, group_ids=batch.group_ids
            )
        if self.truncated_coef is not None:
            rewards = scale_truncated(rewards, batch.truncated, coef=self.truncated_coef)
        if self.overlong_cache is not None:
            penalty = overlong_penalty(lengths, max_tokens=self.max_tokens, cache=self.overlong_cache)
            rewards = rewards + self.overlong_coef * penalty
        shaped = torch.where(torch.isnan(task), task, rewards).to(batch.rewards.dtype)
        return replace(batch, rewards=shaped, task_rewards=batch.rewards)


def trajectory_lengths(batch: Batch) -> Int[Tensor, " B"]:
    """Sampled tokens of each row's whole trajectory, with those that keep_sampling_mask leaves out of the loss."""
    sampled = torch.bincount(batch.segment_ids[batch.versions != NOT_SAMPLED], minlength=batch.num_rows)
    if batch.trajectory_ids is None:
        return sampled
    ids, trajectory = torch.unique(batch.trajectory_ids, return_inverse=True)
    return sampled.new_zeros(ids.numel()).index_add(0, trajectory, sampled)[trajectory]


def overlong_penalty(lengths: Int[Tensor, " B"], *, max_tokens: int, cache: int) -> Float[Tensor, " B"]:
    """0 up to max_tokens - cache, then falling linearly to -1 at max_tokens; -1 beyond. Float64.

    Source: DAPO's soft overlong punishment (arXiv 2503.14476, eq. 13).
    """
    return ((max_tokens - cache - lengths.double()) / cache).clamp(min=-1, max=0)


def kimi_length_reward(
    lengths: Int[Tensor, " B"],
    correct: Bool[Tensor, " B"],
    *,
    valid: Bool[Tensor, " B"],
    group_ids: Int[Tensor, " B"],
) -> Float[Tensor, " B"]:
    """0.5 for the shortest of a group to -0.5 for its longest; a wrong one gets no more than 0. Float64.

    All 0 in a group whose lengths are equal. Rows that are not `valid` get 0 and are not compared with.
    Source: Kimi k1.5 (arXiv 2501.12599), length penalty.
    """
    size = lengths.double()
    _, group = torch.unique(group_ids, return_inverse=True)
    empty = size.new_full((int(group.max()) + 1 if group.numel() else 0,), torch.inf)
    low = empty.scatter_reduce(0, group, torch.where(valid, size, torch.inf), "amin")[group]
    high = (-empty).scatter_reduce(0, group, torch.where(valid, size, -torch.inf), "amax")[group]
    varied = valid & (high > low)
    spread = torch.where(varied, high - low, 1)
    reward = 0.5 - torch.where(varied, size - low, 0.5) / spread
    return torch.where(correct, reward, reward.clamp(max=0))


def cosine_reward(
    lengths: Int[Tensor, " B"], correct: Bool[Tensor, " B"], *, values: CosineReward, max_tokens: int
) -> Float[Tensor, " B"]:
    """From the value at length 0 to that at max_tokens along half a cosine, apart for correct and wrong. Float64.

    Source: arXiv 2502.03373, cosine reward; what a truncated trajectory gets is the caller's.
    """
    progress = (lengths.double() / max_tokens).clamp(max=1)
    share = (1 + torch.cos(math.pi * progress)) / 2
    short = torch.where(correct, values.correct[0], values.wrong[0])
    long = torch.where(correct, values.correct[1], values.wrong[1])
    return long + (short - long) * share


def scale_truncated(
    rewards: Float[Tensor, " B"], truncated: Bool[Tensor, " B"], *, coef: float
) -> Float[Tensor, " B"]:
    """Rewards of truncated trajectories times `coef`; a negative `coef` is itself their reward.

    Scaling makes a negative reward better: with rewards below 0, give a negative `coef`. Source: the "stop properly"
    penalty of ProRL v2 (2025), in DLER (arXiv 2510.15110); the sign rule as in OpenRLHF.
    """
    return torch.where(truncated, rewards * coef if coef >= 0 else torch.full_like(rewards, coef), rewards)


def shaping_metrics(batch: Batch) -> dict[str, float]:
    """`reward/shaped_mean` over the gradable trajectories of a shaped batch, each counted once; {} of others."""
    gradable = ~torch.isnan(batch.rewards)
    if batch.task_rewards is None or not gradable.any():
        return {}
    ids = torch.arange(batch.num_rows) if batch.trajectory_ids is None else batch.trajectory_ids
    _, trajectory, rows = torch.unique(ids, return_inverse=True, return_counts=True)
    weights = torch.where(gradable, 1 / rows[trajectory].double(), 0)
    total = (weights * torch.where(gradable, batch.rewards.double(), 0)).sum()
    return {"reward/shaped_mean": float(total / weights.sum())}
