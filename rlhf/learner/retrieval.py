"""The dual encoder as it is trained: adapters, frozen towers."""

import re

import torch
from transformers import PreTrainedModel

from rlhf.config.schema import ModelConfig
from rlhf.data.dual_encoder import RetrievalPolicy, load_dual_encoder
from rlhf.errors import ConfigError
from rlhf.learner.model import add_lora

_TOWERS = {"vision": r"vision_model\.|visual_projection\.", "text": r"text_model\.|text_projection\."}


def build_retrieval_model(model: ModelConfig, *, on_meta: bool) -> RetrievalPolicy:
    """The dual encoder in float32, or without storage; what is frozen needs no gradient."""
    network = load_dual_encoder(model, on_meta=on_meta)
    if model.lora is not None:
        with torch.device("meta" if on_meta else "cpu"):
            add_lora(network, model.lora, sees=False)
    policy = RetrievalPolicy(network)
    _freeze(network, model.freeze.frozen)
    return policy


def _freeze(network: PreTrainedModel, parts: frozenset[str]) -> None:
    if "projector" in parts:
        raise ConfigError(
            "model.freeze.projector is true, but the projections of a dual encoder belong to their towers. "
            "Remove it, or freeze vision or text."
        )
    for name, parameter in network.named_parameters():
        if any(re.match(_TOWERS[part], name) for part in parts):
            parameter.requires_grad_(False)
    if not any(parameter.requires_grad for parameter in network.parameters()):
        raise ConfigError("model.freeze leaves nothing to train: unfreeze vision or text.")
