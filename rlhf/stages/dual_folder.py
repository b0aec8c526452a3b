"""A random dual encoder's folder: weights, image processor, and a config whose ids are those of its tokenizer."""

import math
from pathlib import Path
from typing import Any

from rlhf.errors import ModelError

_SCALE = 10.0
"""At which SigLIP begins, its bias being minus as much. Source: 2303.15343, section 3.2."""


def write_dual(config: Any, tokenizer: Any, folder: Path, *, seed: int) -> None:
    """Write all but the tokenizer. ModelError where the towers' embeddings have different sizes."""
    import torch
    from transformers import AutoModel, CLIPImageProcessorPil, SiglipImageProcessorPil

    text, is_clip = config.text_config, config.model_type == "clip"
    if not is_clip and text.projection_size != config.vision_config.hidden_size:
        raise ModelError(
            f"model.config: text_config.projection_size is {text.projection_size} and vision_config.hidden_size is "
            f"{config.vision_config.hidden_size}: texts and pictures are compared, so make them equal."
        )
    text.bos_token_id, text.eos_token_id = tokenizer.bos_token_id, tokenizer.eos_token_id
    text.pad_token_id = tokenizer.pad_token_id
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = AutoModel.from_config(config, dtype=torch.float32)
    if not is_clip:
        # transformers leaves 1 and 0 here: nothing is told apart at such a scale.
        network.logit_scale.data.fill_(math.log(_SCALE))
        network.logit_bias.data.fill_(-_SCALE)
    network.save_pretrained(folder)
    size = config.vision_config.image_size
    square = {"height": size, "width": size}
    prepared = SiglipImageProcessorPil(size=square)
    if is_clip:
        prepared = CLIPImageProcessorPil(size={"shortest_edge": size}, crop_size=square)
    prepared.save_pretrained(folder)
