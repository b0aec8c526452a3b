"""AdamW that keeps its moments in 3 bytes a parameter instead of 8: FP8-LM, arXiv 2310.18313, section 2.

The first moment is kept in e4m3, the second in float16, each with a scale per block of a row. Weights stay
float32, where the paper goes down to float16 with a scale. Each step computes in float32 and rounds once, at its
end. A block never leaves its row, and FSDP2 cuts between rows: any number of ranks rounds alike.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from rlhf.learner.shards import local, zeros_beside
from rlhf.low_precision import E4M3, FLOAT16, Format, block_scales, saturating_cast, spread

BLOCK = 128
"""Neighbours in a row that share a scale."""


class Fp8AdamW(Optimizer):
    """AdamW (decoupled weight decay) over whole or sharded parameters.

    Vectors keep float32 moments: they are few, and FSDP2 cuts them anywhere.
    """

    def __init__(
        self, groups: Iterable[dict[str, Any]], *, lr: float, betas: tuple[float, float], eps: float
    ) -> None:
        super().__init__(groups, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": 0.0})
        # Made now, not at the first step: a checkpoint has one layout whenever it is written or read.
        for group in self.param_groups:
            for parameter in group["params"]:
                self.state[parameter] = _new_state(parameter)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Move every parameter that has a gradient. The gradients must be finite: there is no scale for others."""
        assert closure is None, "a loss is never evaluated again here"
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    _step(parameter, self.state[parameter], group)


def _new_state(parameter: Tensor) -> dict[str, Tensor]:
    step = torch.zeros((), device=local(parameter).device)
    if parameter.ndim < 2:
        moments = {name: zeros_beside(parameter, dtype=torch.float32) for name in ("exp_avg", "exp_avg_sq")}
        return {"step": step, **moments}
    blocks = -(-parameter.shape[-1] // BLOCK)
    return {
        "step": step,
        # As bytes: no collective and no file format has to know of FP8.
        "exp_avg": zeros_beside(parameter, dtype=torch.uint8),
        "exp_avg_scale": zeros_beside(parameter, last=blocks, dtype=torch.float32),
        "exp_avg_sq": zeros_beside(parameter, dtype=torch.float16),
        "exp_avg_sq_scale": zeros_beside(parameter, last=blocks, dtype=torch.float32),
    }


def _step(parameter: Tensor, state: dict[str, Tensor], group: dict[str, Any]) -> None:
    assert parameter.grad is not None
    weights, gradient = local(parameter), local(parameter.grad).float()
    held = {name: local(value) for name, value in state.items()}
    narrow = parameter.ndim >= 2
    first = _first_moment(held) if narrow else held["exp_avg"]
    second = _second_moment(held) if narrow else held["exp_avg_sq"]
    beta1, beta2 = group["betas"]
    first.lerp_(gradient, 1 - beta1)
    second.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
    held["step"] += 1
    unbiased = (second / (1 - beta2 ** held["step"])).sqrt_().add_(group["eps"])
    weights.mul_(1 - group["lr"] * group["weight_decay"])
    weights.sub_(first / unbiased * (group["lr"] / (1 - beta1 ** held["step"])))
    if narrow:
        _keep_first(first, held)
        _keep_second(second, held)


def _first_moment(held: dict[str, Tensor]) -> Tensor:
    codes = held["exp_avg"].view(E4M3.dtype).float()
    return codes * spread(held["exp_avg_scale"], codes, BLOCK)


def _second_moment(held: dict[str, Tensor]) -> Tensor:
    codes = held["exp_avg_sq"].float()
    return codes * spread(held["exp_avg_sq_scale"], codes, BLOCK)


def _keep_first(moment: Tensor, held: dict[str, Tensor]) -> None:
    held["exp_avg"].copy_(first_codes(_scaled(moment, E4M3, held["exp_avg_scale"])).view(torch.uint8))


def _keep_second(moment: Tensor, held: dict[str, Tensor]) -> None:
    held["exp_avg_sq"].copy_(second_codes(_scaled(moment, FLOAT16, held["exp_avg_sq_scale"])))


def _scaled(moment: Tensor, form: Format, kept: Tensor) -> Tensor:
    # Powers of two: a moment that did not change is not rounded again when its block's scale did.
    scales = block_scales(moment, form, block=BLOCK, power_of_two=True)
    kept.copy_(scales)
    return moment / spread(scales, moment, BLOCK)


def first_codes(scaled: Tensor) -> Tensor:
    """e4m3 codes of a scaled first moment: nearest, but towards zero below the smallest normal.

    There nearest would give a decaying moment its own code back for ever, and its parameter would drift.
    """
    small = (scaled / E4M3.spacing).trunc() * E4M3.spacing
    return saturating_cast(torch.where(scaled.abs() < E4M3.least_normal, small, scaled), E4M3)


def second_codes(scaled: Tensor) -> Tensor:
    """float16 codes of a scaled second moment: nearest, but never 0 for what is above it.

    A second moment of 0 under a first moment that is not would divide it by eps alone.
    """
    codes = saturating_cast(scaled, FLOAT16)
    return torch.where((scaled > 0) & (codes == 0), FLOAT16.spacing, codes)
