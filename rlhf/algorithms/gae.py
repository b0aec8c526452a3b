"""Advantages that differ from token to token: reward-to-go and GAE, and what the critic is trained towards.

All recurrences run over the trained tokens of a trajectory: a tool span is no step (no discount, no value read,
no reset), and a trajectory of several rows is one sequence in the order of its rows.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from rlhf.algorithms.token_rewards import dense_rewards
from rlhf.algorithms.trajectories import (
    TrainedSequence,
    discounted_sums,
    on_gradable_tokens,
    trained_sequence,
)
from rlhf.batch import Batch


def reinforce(batch: Batch, *, gamma: float = 1.0) -> Float[Tensor, " N"]:
    """Reward-to-go without a baseline: A_t = sum over trained u >= t of gamma^(u-t) r_u.

    With a KL penalty among the token rewards and `whiten` after it, this is REINFORCE++ (arXiv 2501.03262).
    """
    sequence = trained_sequence(batch)
    rewards = dense_rewards(batch)[sequence.places]
    decay = torch.full_like(rewards, gamma)
    return on_gradable_tokens(
        discounted_sums(rewards, decay=decay, trajectory=sequence.trajectory), batch, sequence
    )


def gae(
    batch: Batch,
    *,
    gamma: float = 1.0,
    lam: float = 1.0,
    length_alpha: float | None = None,
    bootstrap_truncated: bool = False,
) -> Float[Tensor, " N"]:
    """A_t = delta_t + gamma lam A_t', delta_t = r_t + gamma V_t' - V_t, with t' the next trained token.

    After the last one V = 0; with `bootstrap_truncated`, a truncated trajectory has `last_values` there, of the
    row that holds its last trained token. `length_alpha` replaces lam by max(0, 1 - 1 / (length_alpha L)), L
    the trained tokens of the trajectory (VAPO, arXiv 2504.05118: 0.05). Raises ValueError where the batch has
    no `values`, or no `last_values` to bootstrap from. Source: GAE (arXiv 1506.02438).
    """
    sequence = trained_sequence(batch)
    errors = _td_errors(batch, sequence, gamma=gamma, bootstrap_truncated=bootstrap_truncated)
    factor = torch.full_like(errors, lam)
    if length_alpha is not None:
        lengths = torch.bincount(sequence.trajectory)[sequence.trajectory]
        factor = (1 - 1 / (length_alpha * lengths.double())).clamp(min=0)
    sums = discounted_sums(errors, decay=gamma * factor, trajectory=sequence.trajectory)
    return on_gradable_tokens(sums, batch, sequence)


def returns(
    batch: Batch, *, gamma: float = 1.0, lam: float = 1.0, bootstrap_truncated: bool = False
) -> Float[Tensor, " N"]:
    """What the critic is trained towards: GAE with the critic's own lam, plus the values; 0 where not trained.

    lam = 1 (VAPO's lam_critic) gives the discounted reward-to-go. Where the reward was not gradable it is the
    value itself: nothing to learn. Dtype of `values`.
    """
    advantages = gae(batch, gamma=gamma, lam=lam, bootstrap_truncated=bootstrap_truncated)
    values = _values(batch)
    return torch.where(batch.loss_mask, advantages.to(values.dtype) + values, 0)


def _td_errors(
    batch: Batch, sequence: TrainedSequence, *, gamma: float, bootstrap_truncated: bool
) -> Float[Tensor, " M"]:
    values = _values(batch)[sequence.places].double()
    after = torch.zeros_like(values)
    if bootstrap_truncated:
        if batch.last_values is None:
            raise ValueError("bootstrap_truncated needs last_values, which the batch does not have")
        rows = batch.segment_ids[sequence.places]
        after = torch.where(batch.truncated[rows], batch.last_values.detach()[rows].double(), 0)
    ahead = torch.where(sequence.is_last, after, values.roll(-1))
    return dense_rewards(batch)[sequence.places] + gamma * ahead - values


def _values(batch: Batch) -> Float[Tensor, " N"]:
    if batch.values is None:
        raise ValueError("GAE needs values, which the batch does not have: run the critic first")
    return batch.values.detach()
