"""Rewards of tokens, and what a trajectory earned in all."""

import torch
from jaxtyping import Float
from torch import Tensor

from rlhf.algorithms.kl import KlEstimator, kl_terms
from rlhf.algorithms.trajectories import trained_sequence, trajectory_rows
from rlhf.batch import Batch
from rlhf.errors import RewardError


def kl_token_rewards(batch: Batch, *, kl_coef: float, estimator: KlEstimator = "k1") -> Float[Tensor, " N"]:
    """-kl_coef times the KL of the policy before the update to the reference, per trained token; 0 elsewhere.

    The policy is `old_logprobs`, or `rollout_logprobs` where the batch has none. `k3_unbiased` weighs by the
    first over the second. Never differentiated. In the reward k1 is right: its expectation is the KL, and the
    score function supplies the gradient. Source: D. Ziegler et al. (arXiv 1909.08593); RLOO (arXiv 2402.14740).
    Raises ValueError where the batch has no `ref_logprobs`.
    """
    if batch.ref_logprobs is None:
        raise ValueError("a KL penalty in the reward needs ref_logprobs, which the batch does not have")
    mask = batch.loss_mask
    rollout = batch.rollout_logprobs.detach()[mask].double()
    policy = rollout if batch.old_logprobs is None else batch.old_logprobs.detach()[mask].double()
    reference = batch.ref_logprobs.detach()[mask].double()
    terms = kl_terms(policy, reference, log_ratio=policy - rollout, estimator=estimator)
    result = batch.rollout_logprobs.new_zeros(batch.num_tokens)
    result[mask] = (-kl_coef * terms).to(result.dtype)
    return result


def sequence_rewards(batch: Batch) -> Float[Tensor, " B"]:
    """What each row's trajectory earned: its terminal reward once, plus the token rewards of all its rows.

    Float64, the same on every row of a trajectory; NaN where the reward was not gradable.
    """
    first, trajectory = trajectory_rows(batch)
    of_token = trajectory[batch.segment_ids]
    dense = batch.rewards.new_zeros(first.numel(), dtype=torch.float64)
    dense = dense.index_add(0, of_token, _trained_token_rewards(batch))
    return batch.rewards[first][trajectory].double() + dense[trajectory]


def dense_rewards(batch: Batch) -> Float[Tensor, " N"]:
    """The reward of every token: `token_rewards`, and the terminal one on its trajectory's last trained token.

    That is the last one of the last row that trains any. A trajectory that trains none gets nothing placed; a
    reward on a token that is not trained is dropped. Float64, 0 where not trained; NaN on the last trained
    token of a trajectory whose reward was not gradable.
    """
    sequence = trained_sequence(batch)
    last = sequence.places[sequence.is_last]
    return _trained_token_rewards(batch).index_add(0, last, batch.rewards[batch.segment_ids[last]].double())


def _trained_token_rewards(batch: Batch) -> Float[Tensor, " N"]:
    zeros = batch.rewards.new_zeros(batch.num_tokens, dtype=torch.float64)
    if batch.token_rewards is None:
        return zeros
    rewards = torch.where(batch.loss_mask, batch.token_rewards.double(), zeros)
    if not bool(torch.isfinite(rewards).all()):
        raise RewardError(
            "token_rewards of trained tokens must be finite, found NaN or infinity. With a KL penalty in the "
            "reward, check the reference's log-probabilities; otherwise check what wrote the token rewards."
        )
    return rewards
