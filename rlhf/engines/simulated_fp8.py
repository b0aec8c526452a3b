"""What FP8 rollout does to the numbers of a transformers model, on any processor. Nothing gets smaller or faster."""

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from rlhf.low_precision import E4M3, dequantise, quantise


class SimulatedFp8:
    """Rounds as vLLM's `fp8_per_channel`: weights with a scale per output, what enters them with one per token.

    Embeddings, the output head and norms keep their precision; of experts only the weights are rounded.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        head = model.get_output_embeddings()
        linear = [part for part in model.modules() if isinstance(part, nn.Linear) and part is not head]
        experts = [parameter for parameter in model.parameters() if parameter.ndim == 3]
        self._weights = [*(part.weight for part in linear), *experts]
        for part in linear:
            part.register_forward_pre_hook(_round_inputs)
        self.round_weights()

    @torch.no_grad()
    def round_weights(self) -> None:
        """Round the weights that are there: after loading, and after every update."""
        for weight in self._weights:
            weight.copy_(_rounded(weight))


def _round_inputs(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (_rounded(inputs[0]), *inputs[1:])


def _rounded(values: Tensor) -> Tensor:
    return dequantise(quantise(values, E4M3, block=values.shape[-1])).to(values.dtype)
