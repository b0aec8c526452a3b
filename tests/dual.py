"""Dual encoders small enough for a test, and pairs of pictures of which one suits a text."""

from pathlib import Path
from typing import Any

from PIL import Image

from rlhf.config.schema import ModelConfig
from rlhf.stages.model_folder import prepare_model_folder

_TOWER: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
}
CLIP: dict[str, Any] = {
    "model_type": "clip", "projection_dim": 32,
    "text_config": {**_TOWER, "vocab_size": 128, "max_position_embeddings": 16, "projection_dim": 32},
    "vision_config": {**_TOWER, "image_size": 16, "patch_size": 8, "projection_dim": 32},
}  # fmt: skip
SIGLIP: dict[str, Any] = {
    "model_type": "siglip",
    "text_config": {**_TOWER, "vocab_size": 128, "max_position_embeddings": 16, "projection_size": 32},
    "vision_config": {**_TOWER, "image_size": 16, "patch_size": 8},
}
COLOURS = {"red": (230, 40, 40), "blue": (40, 40, 230)}


def save_dual(folder: Path, config: dict[str, Any]) -> Path:
    """Write a random dual encoder with a tokenizer of characters."""
    return Path(prepare_model_folder(ModelConfig(config=config, tokenizer="characters"), folder, seed=0))


def picture_pairs(folder: Path, size: int) -> list[dict[str, Any]]:
    """Rows of a colour's name, a picture of that colour and one of the other, in shades of their own."""
    rows = []
    for index in range(size):
        names = list(COLOURS) if index % 2 else list(COLOURS)[::-1]
        paths = []
        for name in names:
            path = folder / f"{index}-{name}.png"
            shade = tuple(max(0, min(255, c + (index * 37) % 25)) for c in COLOURS[name])
            Image.new("RGB", (16, 16), shade).save(path)
            paths.append(str(path))
        rows.append({"id": str(index), "prompt": names[0], "chosen": paths[0], "rejected": paths[1]})
    return rows
