"""Which experts a transformers model sends its tokens to."""

import inspect
import re
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from rlhf.errors import EngineError

_LAYER = re.compile(r"\.layers\.(\d+)\.")


class ChosenExperts:
    """Listens at every layer with experts: what its router handed them in the last forward pass.

    Raises EngineError for a model in which no layer has any.
    """

    def __init__(self, model: nn.Module) -> None:
        config: Any = model.config
        self._num_layers = config.get_text_config().num_hidden_layers
        self._last: dict[int, NDArray[np.int16]] = {}
        listeners = {int(m[1]): part for name, part in _experts(model) if (m := _LAYER.search(name))}
        if not listeners:
            raise EngineError(
                f"sampling.keep_routing is true, but {type(model).__name__} has no layer whose experts are handed "
                "a choice (`top_k_index`). Set sampling.keep_routing: false, or use a mixture of experts."
            )
        for layer, experts in listeners.items():
            experts.register_forward_pre_hook(self._listen(layer))

    def _listen(self, layer: int) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def listen(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            self._last[layer] = inputs[1].cpu().numpy().astype(np.int16)

        return listen

    def of_last_pass(self, num_rows: int) -> NDArray[np.int16]:
        """[rows, tokens, layers, k] of the last forward pass; -1 in layers without experts."""
        tokens, k = next(iter(self._last.values())).shape
        chosen = np.full((tokens, self._num_layers, k), -1, np.int16)
        for layer, ids in self._last.items():
            chosen[:, layer] = ids
        return chosen.reshape(num_rows, -1, self._num_layers, k)


def _experts(model: nn.Module) -> list[tuple[str, nn.Module]]:
    return [
        (name, part)
        for name, part in model.named_modules()
        if list(inspect.signature(type(part).forward).parameters)[2:3] == ["top_k_index"]
    ]
