"""What a random model that sees images has in its folder beside the weights."""

from pathlib import Path
from typing import Any

from rlhf.config.vision import ImageProcessorConfig
from rlhf.data.characters import VISION
from rlhf.errors import ModelError


def write_vision(config: Any, tokenizer: Any, processor: ImageProcessorConfig, folder: Path) -> None:
    """Write the image processor, and set the config's image tokens to those of the tokenizer.

    Raises ModelError where the tokenizer has none, or the tower's output does not fit the language model.
    """
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    known = tokenizer.get_vocab()
    missing = [name for name in VISION if name not in known]
    if missing:
        raise ModelError(
            f"model.tokenizer has no {', '.join(missing)}, which a model of type {config.model_type!r} needs. "
            "Take the tokenizer of such a model, or `characters`."
        )
    config.vision_start_token_id, config.vision_end_token_id = known[VISION[0]], known[VISION[1]]
    config.image_token_id, config.video_token_id = known[VISION[2]], known[VISION[3]]
    tower, text = config.vision_config, config.get_text_config()
    size = getattr(tower, "out_hidden_size", None) or tower.hidden_size
    if size != text.hidden_size:
        raise ModelError(
            f"model.config: the tower gives vectors of {size} numbers, and text_config.hidden_size is "
            f"{text.hidden_size}. Make them equal."
        )
    Qwen2VLImageProcessorPil(
        patch_size=tower.patch_size,
        merge_size=tower.spatial_merge_size,
        temporal_patch_size=tower.temporal_patch_size,
        min_pixels=processor.min_pixels,
        max_pixels=processor.max_pixels,
    ).save_pretrained(folder)
