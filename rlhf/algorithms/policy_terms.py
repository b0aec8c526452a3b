"""The policy losses, one short function each: what a trained token adds, and whether a bound caught it.

r = exp(log-ratio), the policy over the old policy, differentiated; A = advantage. Every term is minimised.
A term of a user's own has the same signature: `(inputs, *, settings...) -> (loss [M], caught [M] bool)`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from rlhf.batch import Batch

LOG_RATIO_LIMIT = 20.0
"""Log-ratios are clamped to +-20 before exp; beyond it there is no gradient."""

Term = tuple[Float[Tensor, " M"], Bool[Tensor, " M"]]
PolicyTerm = Callable[..., Term]
"""(inputs, *, settings...) -> (loss [M], detached: where a bound caught the ratio [M])."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyInputs:
    """What every policy term may read: the M trained tokens of a batch, whole rows."""

    new: Float[Tensor, " M"]
    """Log-probabilities under the policy being trained; the only field with a gradient, besides log_ratio."""
    old: Float[Tensor, " M"]
    rollout: Float[Tensor, " M"]
    log_ratio: Float[Tensor, " M"]
    """new - old, bounded."""
    advantages: Float[Tensor, " M"]
    rows: Int[Tensor, " M"]
    num_rows: int
    selected: Bool[Tensor, " M"] | None = None
    log_ratio_limit: float | None = LOG_RATIO_LIMIT

    def bounded(self, log_ratio: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """`log_ratio` within +- the limit; as it is without one."""
        limit = self.log_ratio_limit
        return log_ratio if limit is None else log_ratio.clamp(-limit, limit)

    def row_sums(self, values: Float[Tensor, " M"]) -> Float[Tensor, " M"]:
        """For each token the sum of `values` over the trained tokens of its row."""
        sums = values.new_zeros(self.num_rows).index_add(0, self.rows, values)
        return sums[self.rows]

    def row_means(self, values: Float[Tensor, " M"]) -> Float[Tensor, " M"]:
        """For each token the mean of `values` over the trained tokens of its row."""
        return self.row_sums(values) / self.row_sums(torch.ones_like(values))


def ppo(
    inputs: PolicyInputs, *, clip_low: float = 0.2, clip_high: float = 0.2, dual_clip: float | None = None
) -> Term:
    """-min(r A, clip(r, 1 - low, 1 + high) A); for A < 0 at most -dual_clip A.

    Source: PPO (arXiv 1707.06347), eq. 7; high > low is DAPO's clip-higher (2503.14476); dual clip (1912.09729).
    """
    ratio = inputs.log_ratio.exp()
    return _clipped(ratio, inputs.advantages, clip=(clip_low, clip_high), dual_clip=dual_clip)


def reinforce(inputs: PolicyInputs) -> Term:
    """-A log pi: no ratio, no bound. Source: Williams 1992; RLOO (2402.14740)."""
    return -inputs.advantages * inputs.new, _nowhere(inputs)


def gspo(
    inputs: PolicyInputs, *, clip_low: float = 3e-4, clip_high: float = 4e-4, dual_clip: float | None = None
) -> Term:
    """PPO's clip on one ratio per row, s = exp(mean log r of its trained tokens), gradient through all.

    Source: GSPO (2507.18071), eq. 5 and 7. The limit bounds the mean, not the tokens.
    """
    ratio = inputs.bounded(inputs.row_means(inputs.new - inputs.old)).exp()
    return _clipped(ratio, inputs.advantages, clip=(clip_low, clip_high), dual_clip=dual_clip)


def gspo_token(
    inputs: PolicyInputs, *, clip_low: float = 3e-4, clip_high: float = 4e-4, dual_clip: float | None = None
) -> Term:
    """As `gspo` in value; the gradient of a token runs through its own log-probability only (s pi / sg(pi)).

    Source: GSPO-token (2507.18071), eq. 13 and 14. Differs from `gspo` where A, W or a correction varies within a row.
    """
    log_mean = inputs.row_means((inputs.new - inputs.old).detach())
    ratio = inputs.bounded(log_mean + inputs.new - inputs.new.detach()).exp()
    return _clipped(ratio, inputs.advantages, clip=(clip_low, clip_high), dual_clip=dual_clip)


def cispo(inputs: PolicyInputs, *, clip_low: float | None = None, clip_high: float = 4.0) -> Term:
    """-sg(clip(r)) A log pi: a bound cuts the weight of a token, never its gradient.

    Cap 1 + high, so 4.0 is ScaleRL's cap 5 (TRL calls that 5); floor 1 - low, off unless given.
    Source: CISPO (MiniMax-M1, 2506.13585, eq. 4 and 5, which prints no number); ScaleRL (2510.13786).
    """
    ratio = inputs.log_ratio.detach().exp()
    weight = ratio.clamp(max=1 + clip_high)
    if clip_low is not None:
        weight = weight.clamp(min=1 - clip_low)
    return -weight * inputs.advantages * inputs.new, weight != ratio


def sapo(inputs: PolicyInputs, *, tau_positive: float = 1.0, tau_negative: float = 1.05) -> Term:
    """-(4 / tau) sigmoid(tau (r - 1)) A: a soft gate in place of the clip; tau_negative where A <= 0.

    Source: SAPO (2511.20347).
    """
    ones = torch.ones_like(inputs.advantages)
    tau = torch.where(inputs.advantages > 0, tau_positive * ones, tau_negative * ones)
    gate = torch.sigmoid(tau * (inputs.log_ratio.exp() - 1))
    return -(4 / tau) * gate * inputs.advantages, _nowhere(inputs)


def dppo(inputs: PolicyInputs, *, delta_low: float = 0.2, delta_high: float = 0.2, k: float = 1e-3) -> Term:
    """-r A unless the PROBABILITY moved too far the way A pushes it; + k (log r)^2 on every token.

    Dropped: A > 0 and pi - mu > delta_high, A <= 0 and pi - mu < -delta_low. mu is the old policy; the paper
    takes the engine's, which is `old_from="rollout"`. Source: DPPO-TV (2602.04879); the numbers are prime-rl's.
    """
    moved = inputs.new.detach().exp() - inputs.old.exp()
    positive = inputs.advantages > 0
    dropped = (positive & (moved > delta_high)) | (~positive & (moved < -delta_low))
    loss = -inputs.log_ratio.exp() * inputs.advantages
    return torch.where(dropped, torch.zeros_like(loss), loss) + k * inputs.log_ratio.square(), dropped


def clip_cov(
    inputs: PolicyInputs, *, clip_low: float = 0.2, clip_high: float = 0.2, dual_clip: float | None = None
) -> Term:
    """PPO, and the tokens of `batch.selected` lose their gradient. Source: Clip-Cov (2505.22617)."""
    loss, caught = ppo(inputs, clip_low=clip_low, clip_high=clip_high, dual_clip=dual_clip)
    selected = _selected(inputs)
    return torch.where(selected, loss.detach(), loss), caught | selected


def kl_cov(inputs: PolicyInputs, *, coef: float = 1.0) -> Term:
    """-r A, and + coef |log r| on the tokens of `batch.selected`. Source: KL-Cov (2505.22617)."""
    loss = -inputs.log_ratio.exp() * inputs.advantages
    selected = _selected(inputs)
    return torch.where(selected, loss + coef * inputs.log_ratio.abs(), loss), _nowhere(inputs)


POLICIES: Mapping[str, PolicyTerm] = {
    term.__name__: term for term in (ppo, reinforce, gspo, gspo_token, cispo, sapo, dppo, clip_cov, kl_cov)
}
SELECTING = frozenset({"clip_cov", "kl_cov"})
"""Policies that read `batch.selected`."""


def select_by_covariance(
    batch: Batch,
    policy: str,
    *,
    seed: int = 0,
    fraction: float = 2e-4,
    window: tuple[float, float] = (1.0, 5.0),
) -> Batch:
    """One optimizer batch with `selected` filled in for clip_cov or kl_cov, before micro-batches and ranks.

    cov = (A - mean A)(log pi - mean log pi) over the trained tokens. clip_cov picks `fraction` of them at
    random among those with `window[0]` < cov < `window[1]`, kl_cov the `fraction` of largest; at least one.
    Where we deviate from the authors' code: covariance and choice come once from the old log-probabilities
    (the engine's where there are none), not from the current ones inside each micro-batch, so that neither
    micro-batches nor ranks change them; the random choice hashes `seed` and the token's place in `batch`.
    Source: "The Entropy Mechanism" (2505.22617).
    """
    if batch.advantages is None:
        raise ValueError("the batch has no advantages: call add_advantages first")
    trained = trained_tokens(batch)
    old = batch.rollout_logprobs if batch.old_logprobs is None else batch.old_logprobs
    logprobs, advantages = old[trained].double(), batch.advantages[trained].double()
    covariance = (advantages - advantages.mean()) * (logprobs - logprobs.mean())
    if policy == "clip_cov":
        low, high = window
        inside = torch.nonzero((covariance > low) & (covariance < high)).squeeze(1)
        order = inside[torch.argsort(_hash(trained[inside], seed), stable=True)]
    else:
        order = torch.argsort(covariance, descending=True, stable=True)
    picked = order[: max(int(fraction * trained.numel()), 1)]
    selected = torch.zeros_like(batch.loss_mask)
    selected[trained[picked]] = True
    return replace(batch, selected=selected)


def trained_tokens(batch: Batch) -> Int[Tensor, " M"]:
    """Places of the tokens with their mask set and, where there are weights, one that is not 0."""
    mask = batch.loss_mask if batch.loss_weights is None else batch.loss_mask & (batch.loss_weights != 0)
    return torch.nonzero(mask).squeeze(1)


def _clipped(
    ratio: Float[Tensor, " M"],
    advantages: Float[Tensor, " M"],
    *,
    clip: tuple[float, float],
    dual_clip: float | None,
) -> Term:
    """A ratio exactly on a bound keeps its gradient."""
    low, high = clip
    loss = -torch.minimum(ratio * advantages, ratio.clamp(1 - low, 1 + high) * advantages)
    caught = ((advantages > 0) & (ratio > 1 + high)) | ((advantages < 0) & (ratio < 1 - low))
    if dual_clip is not None:
        beyond = (advantages < 0) & (ratio > dual_clip)
        loss = torch.where(beyond, -dual_clip * advantages, loss)
        caught = caught | beyond
    return loss, caught


def _selected(inputs: PolicyInputs) -> Bool[Tensor, " M"]:
    if inputs.selected is None:
        raise ValueError("the batch has no selected tokens: call select_by_covariance on the optimizer batch")
    return inputs.selected


def _nowhere(inputs: PolicyInputs) -> Bool[Tensor, " M"]:
    return torch.zeros_like(inputs.advantages, dtype=torch.bool)


def _hash(places: Int[Tensor, " K"], seed: int) -> Int[Tensor, " K"]:
    """Two rounds of a 32-bit integer mixer, in int64: the same on every device and in every process."""
    mixed = (places + ((seed + 1) * 0x9E3779B9 & 0xFFFFFFFF)) & 0xFFFFFFFF
    for _ in range(2):
        mixed = ((mixed ^ (mixed >> 16)) * 0x45D9F3B) & 0xFFFFFFFF
    return mixed ^ (mixed >> 16)
