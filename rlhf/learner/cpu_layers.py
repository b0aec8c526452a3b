"""Linear and RMSNorm for float32 on a CPU: the values of the layers they stand in for, in less time.

Elsewhere (a GPU, bfloat16) a swapped layer runs its own forward.
"""

import copy
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn


def use_cpu_layers(network: nn.Module) -> None:
    """Give the linear and norm layers of a network forwards that are fast on a CPU; parameters stay as they are."""
    is_norm: dict[type[nn.Module], bool] = {}
    for module in network.modules():
        kind = type(module)
        if kind is nn.Linear and module.bias is None and torch.backends.mkldnn.is_available():
            module.forward = MethodType(_linear_forward, module)
        elif kind.__name__.endswith("RMSNorm") and hasattr(module, "variance_epsilon"):
            if kind not in is_norm:
                is_norm[kind] = _is_rms_norm(module)
            if is_norm[kind]:
                module.forward = MethodType(_norm_forward, module)


def _is_rms_norm(module: nn.Module) -> bool:
    """Tried, not assumed: some architectures scale by 1 + weight, or take a gate."""
    trial: Any = copy.deepcopy(module).to_empty(device="cpu").requires_grad_(False)
    size = trial.weight.numel()
    trial.weight.copy_(torch.linspace(-1, 2, size))
    x = torch.arange(3 * size).view(3, size).sin()
    return torch.allclose(trial(x), _RmsNorm.apply(x, trial.weight, trial.variance_epsilon), atol=1e-6)  # type: ignore[no-untyped-call]


def _linear_forward(module: nn.Linear, x: Tensor) -> Tensor:
    if _is_cpu_float32(x, module.weight):
        return _Linear.apply(x, module.weight)  # type: ignore[no-untyped-call, no-any-return]
    return nn.Linear.forward(module, x)


def _norm_forward(module: Any, x: Tensor) -> Tensor:
    if _is_cpu_float32(x, module.weight):
        return _RmsNorm.apply(x, module.weight, module.variance_epsilon)  # type: ignore[no-untyped-call, no-any-return]
    output: Tensor = type(module).forward(module, x)
    return output


def _is_cpu_float32(*tensors: Tensor) -> bool:
    return all(t.device.type == "cpu" and t.dtype == torch.float32 for t in tensors)


def _onednn(x: Tensor, weight: Tensor) -> Tensor:
    output: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")
    return output


class _Linear(torch.autograd.Function):
    """x W^T by oneDNN, about a tenth faster than the BLAS that torch takes for float32."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _onednn(x, weight)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        of_x, of_weight = ctx.needs_input_grad
        # oneDNN is slower than BLAS where the long dimension is the one summed over.
        return (
            _onednn(gradient, weight.t()) if of_x else None,
            gradient.flatten(0, -2).t() @ x.flatten(0, -2) if of_weight else None,
        )


class _RmsNorm(torch.autograd.Function):
    """y = w n with n = x / rms(x). Backward: dx = (w dy - n mean(w dy n)) / rms(x)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        norm: Tensor = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        scale = norm.square_().div_(x.shape[-1]).add_(epsilon).rsqrt_()
        ctx.save_for_backward(x, weight, scale)
        return (x * scale).mul_(weight)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, scale = ctx.saved_tensors
        normed = x * scale
        product = gradient * normed
        d_weight = product.flatten(0, -2).sum(0) if ctx.needs_input_grad[1] else None
        shared = (product @ weight).div_(x.shape[-1]).unsqueeze(-1)
        torch.mul(gradient, weight, out=product).sub_(normed.mul_(shared)).mul_(scale)
        return product, d_weight, None
