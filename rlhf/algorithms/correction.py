"""Learner against engine: weights w = pi_old (learner) / pi_rollout (engine), masks, and their gap.

Every weight and mask is detached and touches the policy term only, never the KL or the entropy term.
Denominators are those before rejection.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from rlhf.algorithms.kl import k3
from rlhf.algorithms.policy_terms import LOG_RATIO_LIMIT, PolicyInputs

Correction = Literal[
    "none",
    "token_is",
    "token_tis",
    "token_mis",
    "icepop",
    "sequence_tis",
    "sequence_mis",
    "geometric_mask",
    "geometric_mask_tis",
]
CORRECTIONS: tuple[str, ...] = get_args(Correction)
Bounds = tuple[float | None, float | None]

PUBLISHED_BOUNDS: Mapping[str, Bounds] = {
    "none": (None, None),
    "token_is": (None, None),
    "token_tis": (None, 2.0),
    "token_mis": (None, 2.0),
    "icepop": (0.5, 5.0),
    "sequence_tis": (None, 5.0),
    "sequence_mis": (None, 3.0),
    "geometric_mask": (0.99, 1.01),
    "geometric_mask_tis": (0.999, 1.002),
}
"""(lowest, highest) of what each correction compares; a bound itself is kept."""
_MASKS = frozenset({"token_mis", "icepop", "sequence_mis", "geometric_mask", "geometric_mask_tis"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """What a correction does to the policy term: loss -> weight * loss, and 0 where masked."""

    weight: Float[Tensor, " M"]
    capped: Bool[Tensor, " M"]
    masked: Bool[Tensor, " M"]


def correction_weights(inputs: PolicyInputs, correction: Correction, *, bounds: Bounds) -> Weights:
    """The weight of each token, detached, 0 where masked. Products and means run over a row's trained tokens.

    none 1; token_is w (decoupled PPO: behaviour, proximal and current policy, AReaL 2505.24298);
    token_tis w cut to the bounds (F. Yao et al. 2025); token_mis and icepop w, masked outside the bounds
    (IcePop: Ling team 2025); sequence_tis and sequence_mis the same two with the row's product of w;
    geometric_mask 1, geometric_mask_tis the raw w, both masked where (product of w)^(1/L) is outside.
    """
    gap = (inputs.old - inputs.rollout).detach()
    token = inputs.bounded(gap).exp()
    no = torch.zeros_like(token, dtype=torch.bool)
    if correction in ("none", "token_is"):
        weight = token if correction == "token_is" else torch.ones_like(token)
        return Weights(weight=weight, capped=no, masked=no)
    if correction.startswith("geometric"):
        measured = inputs.bounded(inputs.row_means(gap)).exp()
        weight = token if correction == "geometric_mask_tis" else torch.ones_like(token)
    elif correction.startswith("sequence"):
        weight = measured = inputs.bounded(inputs.row_sums(gap)).exp()
    else:
        weight = measured = token
    low = -math.inf if bounds[0] is None else bounds[0]
    high = math.inf if bounds[1] is None else bounds[1]
    outside = (measured < low) | (measured > high)
    if correction in _MASKS:
        weight = torch.where(outside, torch.zeros_like(weight), weight)
        return Weights(weight=weight, capped=no, masked=outside)
    return Weights(weight=weight.clamp(min=low, max=high), capped=outside, masked=no)


def off_policy_mask(inputs: PolicyInputs, delta: float) -> Bool[Tensor, " M"]:
    """Where the off-policy sequence mask drops a token: A < 0 and the row's mean(rollout - new) > delta.

    The current policy, detached, against the engine: staleness and mismatch together.
    Source: DeepSeek-V3.2 (arXiv 2512.02556), eq. 9 (delta is not published).
    """
    drift = inputs.row_means((inputs.rollout - inputs.new).detach())
    return (inputs.advantages < 0) & (drift > delta)


def importance_weights(
    old_logprobs: Float[Tensor, " M"], rollout_logprobs: Float[Tensor, " M"]
) -> Float[Tensor, " M"]:
    """The weight w of each token, detached, not truncated."""
    gap = (old_logprobs - rollout_logprobs).detach()
    return gap.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT).exp()


def mismatch_sums(
    old_logprobs: Float[Tensor, " M"], rollout_logprobs: Float[Tensor, " M"]
) -> dict[str, tuple[Tensor, Tensor]]:
    """How far the engine's log-probabilities are from the learner's, as sums (see LossOutput)."""
    gap = (old_logprobs - rollout_logprobs).detach()
    weights = importance_weights(old_logprobs, rollout_logprobs)
    count = gap.new_tensor(gap.numel())
    return {
        "mismatch/logprob_gap_mean": (gap.abs().sum(), count),
        "mismatch/logprob_gap_max": (largest(gap.abs()), count),
        "mismatch/kl": (k3(gap).sum(), count),
        "mismatch/kl_k1": (-gap.sum(), count),
        "mismatch/chi_square": ((weights.square() - 1).sum(), count),
        "mismatch/weight_mean": (weights.sum(), count),
        "mismatch/weight_square_mean": (weights.square().sum(), count),
    }


def mask_sums(
    weights: Weights, correction: Correction, dropped: Bool[Tensor, " M"] | None
) -> dict[str, tuple[Tensor, Tensor]]:
    """Shares of tokens that a cap cut, that each mask dropped, and that any mask dropped; only what is on."""
    count = weights.weight.new_tensor(weights.weight.numel())
    shares: dict[str, Bool[Tensor, " M"]] = {}
    if correction.endswith("_tis") and correction not in _MASKS:
        shares["mismatch/capped_share"] = weights.capped
    if correction in _MASKS:
        shares[f"mismatch/masked_share/{correction}"] = weights.masked
    if dropped is not None:
        shares["mismatch/masked_share/opsm"] = dropped
    if correction in _MASKS or dropped is not None:
        either = weights.masked if dropped is None else weights.masked | dropped
        shares["mismatch/masked_share"] = either
    return {name: (share.sum(), count) for name, share in shares.items()}


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
