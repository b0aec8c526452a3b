"""A dual encoder (CLIP, SigLIP) as a policy over images: texts and pixels in, scores out."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize
from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoTokenizer, PreTrainedModel

from rlhf.config.schema import ModelConfig
from rlhf.data.scoring_models import DUAL
from rlhf.errors import DataError, ModelError

CONSTANTS = ("logit_scale", "logit_bias")
"""Scalars of the checkpoint that stay as they are; an engine of embeddings has none of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """Texts [Q, T] and pixels [I, channels, height, width]."""

    token_ids: Tensor
    attention_mask: Tensor
    pixels: Tensor


class RetrievalPolicy(nn.Module):
    """pi(y|q) = softmax over images of exp(logit_scale) cos(text q, image y). The root FSDP module.

    The scale is a constant: trained, it would take the place of beta.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        for name in CONSTANTS:
            if name in dict(model.named_parameters(recurse=False)):
                value = getattr(model, name).detach().float()
                delattr(model, name)
                model.register_buffer(name, value)
        self.model = model

    def keep_constants(self) -> None:
        """Take the scalars out of what a weight update must bring."""
        for name in CONSTANTS:
            if name in dict(self.model.named_buffers(recurse=False)):
                value = getattr(self.model, name)
                delattr(self.model, name)
                self.model.register_buffer(name, value, persistent=False)

    @property
    def blocks(self) -> list[nn.Module]:
        """The layers of both towers."""
        lists = [
            m for n, m in self.model.named_modules() if n.endswith(".layers") and isinstance(m, nn.ModuleList)
        ]
        return [layer for layers in lists for layer in layers]

    @property
    def scale(self) -> Tensor:
        """exp(logit_scale), a number."""
        scale: Tensor = self.model.logit_scale
        return scale.reshape(()).exp()

    def forward(self, inputs: Inputs) -> tuple[Tensor, Tensor]:
        """Embeddings of length 1 in float32: texts [Q, d], images [I, d]."""
        texts = self.model.get_text_features(
            input_ids=inputs.token_ids, attention_mask=inputs.attention_mask
        ).pooler_output
        images = self.model.get_image_features(pixel_values=inputs.pixels).pooler_output
        return normalize(texts.float(), dim=-1), normalize(images.float(), dim=-1)


class Texts:
    """The tokenizer of the folder; a text that does not fit is refused, never cut."""

    def __init__(self, folder: str, *, max_tokens: int, pad_to_full: bool) -> None:
        self._tokenizer = AutoTokenizer.from_pretrained(folder)
        self.max_tokens = max_tokens
        self._pads = pad_to_full

    def ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text, special tokens included. Raises DataError for one that is too long."""
        found: list[list[int]] = self._tokenizer(list(texts))["input_ids"] if texts else []
        for text, ids in zip(texts, found, strict=True):
            if len(ids) > self.max_tokens:
                raise DataError(
                    f"the text {text!r:.120} has {len(ids)} tokens but the model reads {self.max_tokens} at most. "
                    "Shorten it (a rephraser's words count, too): nothing is cut in silence."
                )
            if self._pads:
                ids.extend([self._tokenizer.pad_token_id] * (self.max_tokens - len(ids)))
        return found

    def batch(self, ids: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """Token ids as (rows, attention mask), both [Q, T]."""
        longest = max(map(len, ids))
        pad = self._tokenizer.pad_token_id
        rows = torch.tensor([[*row, *[pad] * (longest - len(row))] for row in ids])
        mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in ids])
        return rows, mask


def read_retrieval_config(model: ModelConfig) -> Any:
    """The config of a dual encoder. Raises ModelError for what is none."""
    try:
        if model.path is not None:
            config = AutoConfig.from_pretrained(model.path)
        else:
            config = AutoConfig.for_model(**(model.config or {}))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"model cannot be read: {error}. Expected a folder with config.json.") from error
    if config.model_type not in DUAL:
        raise ModelError(
            f"model type {config.model_type!r} is no dual encoder of texts and images that is known here, expected "
            f"one of {', '.join(DUAL)}."
        )
    return config


def texts_of(folder: str, config: Any) -> Texts:
    """How texts of this model are made into tokens. SigLIP was trained on texts filled up to its full length."""
    return Texts(
        folder,
        max_tokens=config.text_config.max_position_embeddings,
        pad_to_full=config.model_type.startswith("siglip"),
    )


def preparation_of(folder: str) -> Any:
    """The image processor of the folder, computed by PIL: the same numbers with and without torchvision."""
    return AutoImageProcessor.from_pretrained(folder, backend="pil")


def load_dual_encoder(model: ModelConfig, *, on_meta: bool) -> PreTrainedModel:
    """The network in float32 on the CPU, without dropout; or without storage."""
    config = read_retrieval_config(model)
    config.text_config.attention_dropout = config.vision_config.attention_dropout = 0.0
    if on_meta:
        with torch.device("meta"):
            network = AutoModel.from_config(config, dtype=torch.float32)
    else:
        network = AutoModel.from_pretrained(model.path, config=config, dtype=torch.float32)
    network._weight_conversions = []
    return network
