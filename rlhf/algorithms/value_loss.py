"""What the critic minimises."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from rlhf.algorithms.policy_terms import trained_tokens
from rlhf.batch import Batch
from rlhf.interfaces import LossOutput


@dataclass(frozen=True, slots=True, kw_only=True)
class ValueLoss:
    """The clipped value loss of PPO; a picklable LossFunction whose first argument is the values [N].

    Sum over trained tokens of W * max((V - R)^2, (clip(V, V_old - c, V_old + c) - R)^2) / 2, with V_old =
    `batch.values`, R = `batch.returns`, c = `clip`. The gradient is gone only where the clipped branch is the
    larger. Source: PPO's reference code (OpenAI baselines); c = 0.5 is that of verl and OpenRLHF.
    """

    clip: float | None = 0.5

    def __call__(
        self, values: Float[Tensor, " N"], _entropy: Float[Tensor, " N"] | None, batch: Batch
    ) -> LossOutput:
        """The share of `batch` in the optimizer batch's value loss, and the sums behind its metrics."""
        if batch.returns is None or batch.loss_weights is None:
            raise ValueError("the batch has no returns or loss_weights: call the algorithm's add_* first")
        trained = trained_tokens(batch)
        weights, returns = batch.loss_weights[trained], batch.returns[trained]
        new = values[trained]
        error = (new - returns).square()
        caught = torch.zeros_like(new, dtype=torch.bool)
        if self.clip is not None:
            if batch.values is None:
                raise ValueError(f"value clip is {self.clip} but the batch has no old values")
            old = batch.values[trained]
            clipped = (new.clamp(old - self.clip, old + self.clip) - returns).square()
            caught = clipped > error
            error = torch.where(caught, clipped, error)
        loss = (weights * error / 2).sum()
        missed = (returns - new).detach()
        count = loss.new_tensor(trained.numel())
        tops = {
            "critic/clip_share": caught.sum(),
            "critic/value_mean": new.detach().sum(),
            "critic/return_mean": returns.sum(),
            "critic/return_square_mean": returns.square().sum(),
            "critic/error_mean": missed.sum(),
            "critic/error_square_mean": missed.square().sum(),
        }
        sums = {name: (top.to(loss.dtype), count) for name, top in tops.items()}
        sums["critic/loss"] = (loss.detach(), weights.sum().to(loss.dtype))
        return LossOutput(loss=loss, sums=sums)


def with_explained_variance(values: Mapping[str, float]) -> dict[str, float]:
    """`values` with `critic/explained_variance` = 1 - Var(R - V) / Var(R) in place of its parts.

    Formed here, after the reduction over ranks. Left out where all returns are equal: nothing to explain.
    """
    finished = dict(values)
    square = finished.pop("critic/return_square_mean", None)
    error_square, error = (
        finished.pop("critic/error_square_mean", 0.0),
        finished.get("critic/error_mean", 0.0),
    )
    if square is not None:
        variance = square - finished["critic/return_mean"] ** 2
        if variance > 1e-12 * square:
            finished["critic/explained_variance"] = 1 - (error_square - error**2) / variance
    return finished
