"""Learner against engine: importance weights w = pi_old (learner) / pi_rollout (engine), and their gap.

Every weight is detached and multiplies the policy term only, never the KL or the entropy term.
"""

from collections.abc import Mapping
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from rlhf.algorithms.kl import k3

Correction = Literal["none", "token_tis"]
LOG_RATIO_LIMIT = 20.0
"""Log-ratios are clamped to +-20 before exp; beyond it there is no gradient."""


def importance_weights(
    old_logprobs: Float[Tensor, " M"], rollout_logprobs: Float[Tensor, " M"]
) -> Float[Tensor, " M"]:
    """The weight w of each token, detached, not truncated."""
    gap = (old_logprobs - rollout_logprobs).detach()
    return gap.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT).exp()


def token_tis(weights: Float[Tensor, " M"], cap: float) -> Float[Tensor, " M"]:
    """min(w, cap). Source: truncated importance sampling per token, F. Yao et al. 2025 (cap 2)."""
    return weights.clamp(max=cap)


def mismatch_sums(
    old_logprobs: Float[Tensor, " M"], rollout_logprobs: Float[Tensor, " M"], *, cap: float | None
) -> dict[str, tuple[Tensor, Tensor]]:
    """How far the engine's log-probabilities are from the learner's, as sums (see LossOutput)."""
    gap = (old_logprobs - rollout_logprobs).detach()
    weights = importance_weights(old_logprobs, rollout_logprobs)
    count = gap.new_tensor(gap.numel())
    sums = {
        "mismatch/logprob_gap_mean": (gap.abs().sum(), count),
        "mismatch/logprob_gap_max": (largest(gap.abs()), count),
        "mismatch/kl": (k3(gap).sum(), count),
        "mismatch/weight_mean": (weights.sum(), count),
        "mismatch/weight_square_mean": (weights.square().sum(), count),
    }
    if cap is not None:
        sums["mismatch/capped_share"] = ((weights > cap).sum(), count)
    return sums


def with_ess(values: Mapping[str, float]) -> dict[str, float]:
    """`values` with `mismatch/ess` = E[w]^2 / E[w^2], the effective sample size as a share of the tokens.

    A quotient of means cannot be summed over ranks, so it is formed here, after the reduction.
    """
    finished = dict(values)
    square = finished.pop("mismatch/weight_square_mean", None)
    if square is not None:
        finished["mismatch/ess"] = finished["mismatch/weight_mean"] ** 2 / square
    return finished


def largest(values: Float[Tensor, " M"]) -> Tensor:
    """The maximum of values that are >= 0; 0 where there are none."""
    return torch.cat([values.detach(), values.new_zeros(1)]).max()
