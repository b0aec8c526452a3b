"""Every advantage estimator by name.

`name(batch, **settings)` gives the advantages [N] of a whole step: 0 where not trained and where the reward was
not gradable, statistics in float64. Groups must be complete, so call it before any split. Group estimators put
one number on all tokens of a trajectory and read what it earned in all, token rewards (a KL penalty) included,
except where they say otherwise. None of them whitens: that is a step of its own, `advantages.whiten`.
"""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

import torch
from jaxtyping import Float
from torch import Tensor

from rlhf.algorithms.advantages import (
    EQUAL,
    STD_EPSILON,
    group_advantages,
    group_relative,
    group_rewards,
    group_sums,
    on_tokens,
    trajectory_rewards,
)
from rlhf.algorithms.gae import gae, reinforce
from rlhf.algorithms.trajectories import (
    discounted_sums,
    on_gradable_tokens,
    trained_sequence,
    trajectory_rows,
)
from rlhf.batch import Batch
from rlhf.errors import ConfigError

AdvantageFunction = Callable[..., Tensor]
"""Whole step, settings by keyword -> advantages [N]."""


def grpo(batch: Batch) -> Float[Tensor, " N"]:
    """(R - mean) / (std + 1e-6) in the group. Source: GRPO (DeepSeekMath, arXiv 2402.03300, 4.1.2)."""
    return group_relative(batch, normalise=True)


def dr_grpo(batch: Batch) -> Float[Tensor, " N"]:
    """R - mean in the group. Source: Dr. GRPO (arXiv 2503.20783); DeepSeek-V3.2 (arXiv 2512.02556, 3.1).

    With `whiten` after it, this is the baseline form of REINFORCE++ (arXiv 2501.03262).
    """
    return group_relative(batch, normalise=False)


def batch_std(batch: Batch) -> Float[Tensor, " N"]:
    """(R - mean of the group) / (std of all trajectories' rewards in the batch + 1e-6).

    The std is over trajectories, about the batch's mean, ddof 1. Source: Lite PPO (arXiv 2508.08221).
    """
    found = trajectory_rewards(batch)
    rewards = found.rewards[found.valid]
    scale = rewards.std(correction=1) if rewards.numel() > 1 else rewards.new_zeros(())
    return on_tokens(found.centred / (scale + STD_EPSILON), batch)


def rloo(batch: Batch) -> Float[Tensor, " N"]:
    """R minus the mean of the others in the group: the leave-one-out baseline, G / (G - 1) (R - mean).

    Source: RLOO (arXiv 2402.14740).
    """
    found = trajectory_rewards(batch)
    return on_tokens(found.centred * found.count / (found.count - 1).clamp(min=1), batch)


def opo(batch: Batch) -> Float[Tensor, " N"]:
    """R - sum(L R) / sum(L) in the group, L a trajectory's trained tokens in all its rows.

    The baseline of least variance if gradients of tokens are orthogonal. Source: OPO (arXiv 2505.23585).
    """
    found = trajectory_rewards(batch)
    _, trajectory = trajectory_rows(batch)
    lengths = torch.zeros_like(found.rewards).index_add(0, trajectory, batch.row_sampled().double())
    lengths = torch.where(found.valid, lengths, 0)
    total = group_sums(lengths, found.group).clamp(min=1)
    baseline = group_sums(lengths * found.rewards, found.group) / total
    return on_tokens(torch.where(found.varied, found.rewards - baseline, 0), batch)


def maxrl(batch: Batch) -> Float[Tensor, " N"]:
    """(R - mean) / mean in the group, for rewards that are not negative; 0 where the mean is not above 0.

    Above 0 by more than rounding: the mean of [0.1, 0.2, -0.3] is not exactly 0. A KL penalty in the reward can
    bring a mean near 0, where this has no bound: keep the KL in the loss. Source: MaxRL (arXiv 2602.02710).
    """
    found = trajectory_rewards(batch)
    size = group_sums(found.rewards.abs(), found.group) / found.count.clamp(min=1)
    positive = found.mean > EQUAL * size
    scale = torch.where(positive, found.mean, 1)
    return on_tokens(torch.where(positive, found.centred / scale, 0), batch)


def gdpo(batch: Batch, *, weights: Sequence[float] | None = None) -> Float[Tensor, " N"]:
    """A weighted sum over the columns of `reward_parts`: (R_k - mean) / (std + 1e-6) of column k in its group.

    Weights are 1 where none are given. A NaN part is left out of its column's statistics and of its
    trajectory's sum; so are the parts of an ungradable trajectory. Token rewards are not read. The paper
    normalises the sum over the batch: switch whitening on for that (ours is over tokens). Raises ValueError
    without `reward_parts`, ConfigError where the weights are not one per column. Source: GDPO
    (arXiv 2601.05242).
    """
    if batch.reward_parts is None:
        raise ValueError("gdpo needs reward_parts, which the batch does not have")
    num_parts = batch.reward_parts.shape[1]
    if weights is None:
        weights = [1.0] * num_parts
    if len(weights) != num_parts:
        raise ConfigError(
            f"gdpo has {len(weights)} weights but the reward has {num_parts} parts: give one weight per part."
        )
    first, _ = trajectory_rows(batch)
    gradable = ~torch.isnan(batch.rewards[first])
    total = torch.zeros_like(gradable, dtype=torch.float64)
    for weight, part in zip(weights, batch.reward_parts[first].unbind(1), strict=True):
        scored = torch.where(gradable, part, torch.nan)
        total = total + weight * group_advantages(scored, batch.group_ids[first], normalise=True)
    return on_tokens(total, batch)


def pass_at_k(batch: Batch, *, k: int, correct_above: float = 0.0) -> Float[Tensor, " N"]:
    """Advantage of a sample when a random k of its group's n are rewarded as one: 1 if any is correct.

    A sample is correct if its reward is above `correct_above`; token rewards are not read. Of all C(n, k)
    subsets, with w wrong samples in the group, a share f = C(w, k) / C(n, k) has no correct one, so the mean
    subset reward is 1 - f and its standard deviation over the subsets s = sqrt(f (1 - f)). A sample's
    advantage is the mean of (subset reward - (1 - f)) / s over the subsets that contain it. For a correct one
    all of those have reward 1: A = f / s. For a wrong one, a share C(w-1, k-1) / C(n-1, k-1) has reward 0:
    A = (f - C(w-1, k-1) / C(n-1, k-1)) / s. We add 1e-6 to s. Advantages of a group sum to 0.

    0 where s = 0: all wrong, or fewer than k wrong, as in a group with fewer than k gradable samples. Raises
    ConfigError for k < 1 and where no group has k samples at all. Source: Pass@k training (arXiv 2508.10751,
    analytical derivation).
    """
    first, _ = trajectory_rows(batch)
    found = group_rewards(batch.rewards[first], batch.group_ids[first])
    size = group_sums(torch.ones_like(found.rewards), found.group)
    if k < 1 or (size.numel() and k > size.max()):
        largest = int(size.max()) if size.numel() else 0
        raise ConfigError(
            f"pass_at_k has k = {k}, and the largest group of the step has {largest} samples: "
            "k must be from 1 to the group size."
        )
    is_wrong = found.valid & (found.rewards <= correct_above)
    wrong = group_sums(is_wrong.double(), found.group)
    failed = _share_of_subsets(wrong, found.count, k)
    failed_with = _share_of_subsets(wrong - 1, found.count - 1, k - 1)
    std = (failed * (1 - failed)).sqrt()
    gain = torch.where(is_wrong, failed - failed_with, failed)
    known = found.valid & (std > 0)
    return on_tokens(torch.where(known, gain / (std + STD_EPSILON), 0), batch)


def process(batch: Batch) -> Float[Tensor, " N"]:
    """Sum of the normalised rewards of the steps that end at this token or after it, in its trajectory.

    All `step_rewards` of a group are normalised together: mean, std with ddof 1, + 1e-6. One on a token that is
    not trained is dropped. The terminal reward and token rewards are not read, except that a trajectory
    without a gradable reward is left out. Raises ValueError without `step_rewards`. Source: process
    supervision of DeepSeekMath (arXiv 2402.03300, 4.1.3).
    """
    if batch.step_rewards is None:
        raise ValueError("process supervision needs step_rewards, which the batch does not have")
    sequence = trained_sequence(batch)
    rows = batch.segment_ids[sequence.places]
    steps = torch.where(
        torch.isnan(batch.rewards)[rows], torch.nan, batch.step_rewards[sequence.places].double()
    )
    rewards = group_advantages(steps, batch.group_ids[rows], normalise=True)
    decay = torch.ones_like(rewards)
    return on_gradable_tokens(
        discounted_sums(rewards, decay=decay, trajectory=sequence.trajectory), batch, sequence
    )


def distill(batch: Batch) -> Float[Tensor, " N"]:
    """The teacher's log-probability minus the student's, per trained token, detached; no reward-to-go (gamma 0).

    The student is `old_logprobs`, or `rollout_logprobs` where the batch has none. In expectation minus the
    reverse KL to the teacher. Raises ValueError without `teacher_logprobs`. Source: on-policy distillation, GKD
    (arXiv 2306.13649); on the sampled tokens alone, Thinking Machines 2025.
    """
    if batch.teacher_logprobs is None:
        raise ValueError("distillation needs teacher_logprobs, which the batch does not have")
    sequence = trained_sequence(batch)
    student = batch.rollout_logprobs if batch.old_logprobs is None else batch.old_logprobs
    teacher = batch.teacher_logprobs.detach()[sequence.places].double()
    return on_gradable_tokens(teacher - student.detach()[sequence.places].double(), batch, sequence)


def _share_of_subsets(part: Float[Tensor, " T"], whole: Float[Tensor, " T"], k: int) -> Float[Tensor, " T"]:
    """C(part, k) / C(whole, k) as a product of k quotients; exactly 0 if part < k, exactly 1 if they are equal."""
    share = torch.ones_like(part)
    for j in range(k):
        share = share * (part - j).clamp(min=0) / (whole - j).clamp(min=1)
    return share


ADVANTAGES: Mapping[str, AdvantageFunction] = MappingProxyType(
    {
        "grpo": grpo,
        "dr_grpo": dr_grpo,
        "batch_std": batch_std,
        "rloo": rloo,
        "reinforce": reinforce,
        "reinforce_pp": reinforce,
        "reinforce_pp_baseline": dr_grpo,
        "opo": opo,
        "gdpo": gdpo,
        "maxrl": maxrl,
        "pass_at_k": pass_at_k,
        "process": process,
        "gae": gae,
        "distill": distill,
    }
)
