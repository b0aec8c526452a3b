"""Estimators of KL(policy || reference) from the sampled tokens alone. x = logprobs - reference."""

from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

KlEstimator = Literal["k1", "k2", "k3", "k3_st", "k3_unbiased"]
KL_ESTIMATORS: tuple[str, ...] = get_args(KlEstimator)


def kl_terms(
    logprobs: Float[Tensor, " M"],
    ref_logprobs: Float[Tensor, " M"],
    *,
    log_ratio: Float[Tensor, " M"],
    estimator: KlEstimator,
) -> Float[Tensor, " M"]:
    """One estimate per token; every token given is a trained one.

    k1 x (as a loss its expected gradient is 0); k2 x^2/2; k3 exp(-x) - 1 + x, whose gradient is that of the
    forward KL; k3_st the value of k3 with the gradient of k2; k3_unbiased r * k3 with r = exp(log_ratio), the
    policy over the policy that sampled, differentiated (DeepSeek-V3.2, 2512.02556, eq. 7): gradient r * x. No clamp.
    Source: J. Schulman, "Approximating KL divergence", 2020 (k1, k2, k3).
    """
    x = logprobs - ref_logprobs
    match estimator:
        case "k1":
            return x
        case "k2":
            return x.square() / 2
        case "k3":
            return k3(-x)
        case "k3_st":
            half_square = x.square() / 2
            return half_square - half_square.detach() + k3(-x).detach()
        case "k3_unbiased":
            return log_ratio.exp() * k3(-x)


def k3(log_ratio: Float[Tensor, " M"]) -> Float[Tensor, " M"]:
    """exp(y) - 1 - y, never negative: estimates KL(sampling || other) for y = log(other / sampling)."""
    return torch.expm1(log_ratio) - log_ratio


def next_kl_coef(coef: float, kl: float, *, target: float, horizon: float, num_samples: int) -> float:
    """The KL coefficient after a step of `num_samples` samples on which the KL was `kl`.

    coef (1 + clip(kl / target - 1, -0.2, 0.2) num_samples / horizon): a proportional controller on the
    relative error. Source: D. Ziegler et al. (arXiv 1909.08593), 2.2.
    """
    error = min(max(kl / target - 1, -0.2), 0.2)
    return coef * (1 + error * num_samples / horizon)
