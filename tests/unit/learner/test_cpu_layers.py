"""The swapped CPU layers against the ones they stand in for."""

import copy

import pytest
import torch
from torch import Tensor, nn
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm

from rlhf.learner.cpu_layers import use_cpu_layers


def _layers() -> list[nn.Module]:
    norm = Qwen3RMSNorm(24)
    nn.init.normal_(norm.weight)
    return [norm, nn.Linear(24, 40, bias=False), nn.Linear(24, 40)]


def _run(layer: nn.Module, x: Tensor) -> list[Tensor]:
    x = x.clone().requires_grad_()
    y = layer(x)
    probe = torch.arange(y.numel(), dtype=y.dtype).view(y.shape).cos()
    return [y, *torch.autograd.grad((y * probe).sum(), [x, *layer.parameters()])]


@pytest.mark.parametrize("index", range(3))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_swapped_layer_matches_the_original_in_value_and_gradient(index: int, dtype: torch.dtype) -> None:
    original = _layers()[index].to(dtype)
    swapped = copy.deepcopy(original)
    use_cpu_layers(swapped)
    x = torch.randn(2, 7, 24, dtype=dtype)
    # bfloat16 takes the original's own path.
    tolerance = {"rtol": 1e-5, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 0.0, "atol": 0.0}
    for got, expected in zip(_run(swapped, x), _run(original, x), strict=True):
        torch.testing.assert_close(got, expected, **tolerance)
    assert all(torch.equal(a, b) for a, b in zip(_run(swapped, x), _run(swapped, x), strict=True))


def test_frozen_weights_get_no_gradient() -> None:
    for layer in _layers()[:2]:
        use_cpu_layers(layer.requires_grad_(False))
        x = torch.randn(7, 24, requires_grad=True)
        layer(x).sum().backward()
        assert x.grad is not None
        assert next(layer.parameters()).grad is None


def test_norm_with_another_formula_keeps_its_forward() -> None:
    norm = GemmaRMSNorm(24)
    norm.variance_epsilon = norm.eps
    use_cpu_layers(norm)
    assert "forward" not in vars(norm)
