"""Keep-routing: the experts that the sampler chose are chosen again, their weights are computed anew.

Recorded are indices only. Everything else is the model's own router: its logits, its scores (softmax, sigmoid),
its normalisation and scaling, so gradients reach it; a selection bias acts on the choice alone, as ever.
Source: DeepSeek-V3.2 (arXiv 2512.02556), Keep Routing; R3 (arXiv 2510.11370).
"""

import copy
import re
from collections.abc import Callable, Iterable
from functools import partial
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

_ROUTER = re.compile(r"topkrouter", re.IGNORECASE)


def routers(module: nn.Module) -> list[nn.Module]:
    """The modules that choose experts, as transformers names them."""
    return [part for part in module.modules() if _ROUTER.search(type(part).__name__)]


def hook_routers(decoder: Any) -> str | None:
    """Make the layers of a decoder obey the keyword argument `routing`; or say why they cannot.

    `routing` [U, L, k], integers: the experts of each of the U tokens in each of the L layers (of which only
    those with experts are read), -1 where none were recorded: there the router chooses. None: it always does.
    A layer sees the same argument when activation checkpointing runs it again.
    """
    found = [(index, routers(layer)) for index, layer in enumerate(decoder.layers)]
    problem = _problem([router for _, of_layer in found for router in of_layer[:1]])
    if any(len(of_layer) > 1 for _, of_layer in found):
        problem = "a layer has several routers"
    if problem is not None:
        return problem
    for index, of_layer in found:
        for router in of_layer:
            _replay(router)
            decoder.layers[index].register_forward_pre_hook(
                partial(_hand_over, router, index), with_kwargs=True
            )
    return None


def _problem(found: list[nn.Module]) -> str | None:
    if not found:
        return "it has no router that is known here (a class named ...TopKRouter)"
    kinds = {type(router): router for router in found}
    wrong = [kind.__name__ for kind, router in kinds.items() if not _obeys(router)]
    return f"{', '.join(wrong)} does not choose by one topk over its experts" if wrong else None


def _obeys(router: nn.Module) -> bool:
    """Tried, not assumed: any experts can be forced, and each of them gets a weight that is not 0."""
    trial: Any = copy.deepcopy(router).to_empty(device="cpu").requires_grad_(False).float()
    for number, tensor in enumerate([*trial.parameters(), *trial.buffers()]):
        tensor.copy_((torch.arange(tensor.numel()).view(tensor.shape) + number).sin() / 4)
    _replay(trial)
    size, top_k = trial.weight.shape[0], trial.top_k
    # Experts spread over the whole range, also across the groups that a router may choose among first.
    rows = torch.arange(size).view(-1, 1)
    trial.recorded = (rows + torch.arange(top_k) * (size // top_k)) % size
    try:
        _, weights, chosen = trial.forward(torch.arange(size * trial.weight.shape[1]).view(size, -1).cos())
    except (RuntimeError, ValueError, TypeError, AttributeError):
        return False
    has_weights = weights.shape == chosen.shape and bool((weights.isfinite() & (weights != 0)).all())
    return torch.equal(chosen, trial.recorded) and has_weights


def _replay(router: Any) -> None:
    router.recorded = None
    router.forward = MethodType(_forward, router)


def _forward(router: Any, *args: Any, **kwargs: Any) -> Any:
    forward = type(router).forward
    if router.recorded is None:
        return forward(router, *args, **kwargs)
    with _Choice(router.recorded, router.weight.shape[0]):
        return forward(router, *args, **kwargs)


def _hand_over(router: Any, index: int, _layer: nn.Module, _args: object, kwargs: dict[str, Any]) -> None:
    routing: Tensor | None = kwargs.get("routing")
    router.recorded = None if routing is None else routing[:, index].long()


class _Choice(TorchFunctionMode):
    """Inside a router's forward: topk over all experts gives the recorded ones and their scores."""

    def __init__(self, recorded: Tensor, num_experts: int) -> None:
        super().__init__()
        self._recorded, self._num_experts = recorded, num_experts

    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[type], args: Any = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if func not in (torch.topk, Tensor.topk) or args[0].shape[1:] != (self._num_experts,):
            return result
        assert result.indices.shape == self._recorded.shape
        is_recorded = (self._recorded >= 0).all(-1, keepdim=True)
        chosen = torch.where(is_recorded, self._recorded, result.indices)
        return torch.return_types.topk((args[0].gather(1, chosen), chosen))
