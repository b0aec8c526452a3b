"""What is minimised: the policy term, the KL to the reference, the entropy bonus."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from rlhf.algorithms.correction import (
    LOG_RATIO_LIMIT,
    Correction,
    importance_weights,
    largest,
    mismatch_sums,
    token_tis,
)
from rlhf.algorithms.kl import KlEstimator, k3, kl_terms
from rlhf.batch import Batch
from rlhf.interfaces import LossOutput


@dataclass(frozen=True, slots=True, kw_only=True)
class ClippedPolicyLoss:
    """The loss of GRPO and its relatives; a picklable LossFunction.

    Sum over trained tokens of W * (w * clipped policy term + kl_coef * KL - entropy_coef * H). A token is
    trained where its mask is set and its weight is not 0. Without old log-probabilities one update follows
    each batch: old = current, detached.
    """

    clip_low: float = 0.2
    clip_high: float = 0.2
    dual_clip: float | None = None
    correction: Correction = "token_tis"
    correction_cap: float = 2.0
    kl_coef: float = 0.0
    kl_estimator: KlEstimator = "k3"
    entropy_coef: float = 0.0

    def __call__(
        self, logprobs: Float[Tensor, " N"], entropy: Float[Tensor, " N"] | None, batch: Batch
    ) -> LossOutput:
        """The share of `batch` in the optimizer batch's loss, and the sums behind its metrics."""
        if batch.advantages is None or batch.loss_weights is None:
            raise ValueError("the batch has no advantages or loss_weights: call the algorithm's add_* first")
        trained = torch.nonzero(batch.loss_mask & (batch.loss_weights != 0)).squeeze(1)
        weights = batch.loss_weights[trained]
        new = logprobs[trained]
        old = new.detach() if batch.old_logprobs is None else batch.old_logprobs[trained]
        rollout = batch.rollout_logprobs[trained]
        log_ratio = (new - old).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)

        token_loss, clipped = clipped_policy_terms(
            log_ratio,
            batch.advantages[trained],
            clip=(self.clip_low, self.clip_high),
            dual_clip=self.dual_clip,
        )
        corrected = self.correction == "token_tis"
        if corrected:
            token_loss = token_loss * token_tis(importance_weights(old, rollout), self.correction_cap)
        count = weights.new_tensor(trained.numel())
        sums = _update_sums(log_ratio.detach(), clipped)
        sums["update/masked_share"] = (batch.loss_mask.sum() - count, batch.loss_mask.sum())
        sums |= mismatch_sums(old, rollout, cap=self.correction_cap if corrected else None)
        if batch.ref_logprobs is not None:
            ref = batch.ref_logprobs[trained]
            kl = kl_terms(new, ref, log_ratio=log_ratio, estimator=self.kl_estimator)
            token_loss = token_loss + self.kl_coef * kl if self.kl_coef else token_loss
            sums["update/kl"] = (kl.detach().sum(), count)
        elif self.kl_coef:
            raise ValueError(f"kl_coef is {self.kl_coef} but the batch has no ref_logprobs")
        if entropy is not None:
            selected = entropy[trained]
            token_loss = token_loss - self.entropy_coef * selected if self.entropy_coef else token_loss
            sums["update/entropy"] = (selected.detach().sum(), count)
        elif self.entropy_coef:
            raise ValueError(f"entropy_coef is {self.entropy_coef} but the learner gave no entropy")
        loss = (weights * token_loss).sum()
        sums["update/loss"] = (loss.detach(), weights.sum())
        uniform = {name: (top.to(loss.dtype), bottom.to(loss.dtype)) for name, (top, bottom) in sums.items()}
        return LossOutput(loss=loss, sums=uniform)


def clipped_policy_terms(
    log_ratio: Float[Tensor, " M"],
    advantages: Float[Tensor, " M"],
    *,
    clip: tuple[float, float],
    dual_clip: float | None = None,
) -> tuple[Float[Tensor, " M"], Bool[Tensor, " M"]]:
    """-min(r A, clip(r, 1 - low, 1 + high) A) per token, and where the bound took the gradient away.

    `high` > `low` is DAPO's clip-higher. `dual_clip` = c bounds the loss by -c A where A < 0. A ratio exactly
    on a bound keeps its gradient. Sources: PPO (arXiv 1707.06347), DAPO (2503.14476), dual clip (1912.09729).
    """
    low, high = clip
    ratio = log_ratio.exp()
    loss = -torch.minimum(ratio * advantages, ratio.clamp(1 - low, 1 + high) * advantages)
    clipped = ((advantages > 0) & (ratio > 1 + high)) | ((advantages < 0) & (ratio < 1 - low))
    if dual_clip is not None:
        beyond = (advantages < 0) & (ratio > dual_clip)
        loss = torch.where(beyond, -dual_clip * advantages, loss)
        clipped = clipped | beyond
    return loss, clipped.detach()


def _update_sums(
    log_ratio: Float[Tensor, " M"], clipped: Bool[Tensor, " M"]
) -> dict[str, tuple[Tensor, Tensor]]:
    ratio = log_ratio.exp()
    count = ratio.new_tensor(ratio.numel())
    return {
        "update/clip_share": (clipped.sum(), count),
        "update/ratio_mean": (ratio.sum(), count),
        "update/ratio_max": (largest(ratio), count),
        "update/kl_old": (k3(log_ratio).sum(), count),
    }
