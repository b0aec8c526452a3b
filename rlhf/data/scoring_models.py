"""Networks with one number for what they are shown: sequence classifiers, and dual encoders of a text and a picture."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rlhf.data.vision_model import sees

if TYPE_CHECKING:
    from torch import Tensor

DUAL = ("clip", "siglip")
"""Model types that embed a text and a picture in one space."""


def is_dual(config: Mapping[str, Any]) -> bool:
    """Whether a config is that of a dual encoder."""
    return config.get("model_type") in DUAL


def scoring_class(config: Mapping[str, Any]) -> Any:
    """The class that loads a model of a config with a scalar at its end.

    transformers has none for models that see images: theirs is the backbone with a head `score`, as it is for those of
    text. A dual encoder's number is the one that it was trained with: its logit of a text and a picture.
    """
    from transformers import AutoModelForSequenceClassification

    if is_dual(config):
        return _dual_class(config["model_type"])
    return _seeing_class(config["model_type"]) if sees(config) else AutoModelForSequenceClassification


def _seeing_class(kind: str) -> Any:
    from transformers import AutoConfig, AutoModelForImageTextToText, PreTrainedModel, conversion_mapping
    from transformers.modeling_layers import GenericForSequenceClassification

    whole = AutoModelForImageTextToText._model_mapping[type(AutoConfig.for_model(kind))]
    base = next(
        c for c in whole.__mro__ if c.__name__.endswith("PreTrainedModel") and c is not PreTrainedModel
    )
    name = whole.__name__.replace("ForConditionalGeneration", "ForSequenceClassification")
    made = type(name, (GenericForSequenceClassification, base), {"__module__": whole.__module__})
    # Checkpoints name some tensors otherwise than networks do: as for the model with a language head.
    renamed = conversion_mapping.get_checkpoint_conversion_mapping(whole.__name__)
    if renamed is not None:
        conversion_mapping.register_checkpoint_conversion_mapping(name, renamed, overwrite=True)
    return made


def _dual_class(kind: str) -> Any:
    from transformers import AutoConfig, AutoModel

    whole = AutoModel._model_mapping[type(AutoConfig.for_model(kind))]
    return type(whole.__name__, (whole,), {"forward": _pair_logits, "__module__": whole.__module__})


def _pair_logits(
    self: Any, input_ids: "Tensor", pixel_values: "Tensor", attention_mask: "Tensor | None" = None, **_: Any
) -> Any:
    """Logits [I, 1] of I pictures; T texts stand for each T of them in turn."""
    from torch.nn.functional import normalize
    from transformers.modeling_outputs import SequenceClassifierOutput

    texts = self.get_text_features(input_ids=input_ids, attention_mask=attention_mask).pooler_output
    pictures = self.get_image_features(pixel_values=pixel_values).pooler_output
    texts, pictures = normalize(texts.float(), dim=-1), normalize(pictures.float(), dim=-1)
    texts = texts.repeat(len(pictures) // len(texts), 1)
    logits = self.logit_scale.float().exp() * (texts * pictures).sum(dim=-1)
    if "logit_bias" in dict(self.named_parameters(recurse=False)):
        logits = logits + self.logit_bias.float()
    return SequenceClassifierOutput(logits=logits[:, None])
