"""What a model folder says of the images that its model sees, and the pixels that the model is given."""

import json
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rlhf.data.images import image_size, open_image, shown
from rlhf.errors import DataError, ModelError

if TYPE_CHECKING:
    from torch import Tensor

FAMILIES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe")
"""Model types whose images are seen: one run of image tokens each, between a start and an end token."""
Part = Literal["vision", "projector", "text"]
TOWER = "visual"
"""The module that turns pixels into what the language model reads."""
_PROJECTORS = ("merger.", "deepstack_merger_list.")
CACHE_MB = 256
"""Most that the pixels kept by one process take."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VisionModel:
    """A model that sees images, in a folder with its image processor."""

    folder: str
    image_id: int
    """The token that stands for a patch group of an image."""
    start_id: int
    end_id: int
    merge: int
    """Patches on a side of a patch group."""
    banned: tuple[int, ...]
    """Tokens that stand for what was seen; a model never writes them."""


def find_vision(folder: str | Path) -> VisionModel | None:
    """What the folder's config.json says; None for a model of text, and for a family that is not known here."""
    file = Path(folder) / "config.json"
    config = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    if config.get("model_type") not in FAMILIES:
        return None
    return VisionModel(
        folder=str(folder),
        image_id=config["image_token_id"],
        start_id=config["vision_start_token_id"],
        end_id=config["vision_end_token_id"],
        merge=config["vision_config"].get("spatial_merge_size", 2),
        banned=(config["image_token_id"], config["video_token_id"]),
    )


def sees(config: Mapping[str, Any]) -> bool:
    """Whether a config is that of a model whose images are seen."""
    return config.get("model_type") in FAMILIES


def auto_model(config: Mapping[str, Any]) -> Any:
    """The class of transformers that makes the model of a config, its head included."""
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

    return AutoModelForImageTextToText if sees(config) else AutoModelForCausalLM


def part_of(name: str) -> Part:
    """The part of a model that a parameter or module belongs to, by its name."""
    _, tower, inside = name.partition(f"{TOWER}.")
    if not tower:
        return "text"
    return "projector" if inside.startswith(_PROJECTORS) else "vision"


@dataclass(frozen=True, slots=True)
class Pixels:
    """An image as the vision tower takes it."""

    values: "Tensor"
    """[patches, numbers of a patch], float32."""
    grid: tuple[int, int, int]
    """Patches in time, height and width."""


class ImageProcessor:
    """The image processor of a model folder; keeps the pixels of the latest images, `CACHE_MB` at most."""

    def __init__(self, vision: VisionModel, *, cache_mb: float = CACHE_MB) -> None:
        """Raises ModelError where the folder has no image processor."""
        from transformers import AutoImageProcessor

        self.vision = vision
        try:
            self._processor: Any = AutoImageProcessor.from_pretrained(vision.folder)
        except (OSError, ValueError) as error:
            raise ModelError(
                f"model: {vision.folder!r} has no image processor that can be loaded ({error}); expected its "
                "preprocessor_config.json."
            ) from error
        self._left = int(cache_mb * 2**20)
        self._kept: OrderedDict[str, Pixels] = OrderedDict()

    def num_tokens(self, reference: str) -> int:
        """Image tokens that stand for the image; only its header is read."""
        width, height = image_size(reference)
        try:
            num_patches = self._processor.get_number_of_image_patches(height, width, {})
        except ValueError as error:  # an extreme aspect ratio
            raise DataError(f"{shown(reference)!r} ({width} x {height}): {error}") from error
        return int(num_patches) // self.vision.merge**2

    def pixels(self, reference: str) -> Pixels:
        """The image's pixels, processed once while they are kept."""
        if reference in self._kept:
            self._kept.move_to_end(reference)
            return self._kept[reference]
        found = self._processor(images=[open_image(reference)], return_tensors="pt")
        time, height, width = found["image_grid_thw"][0].tolist()
        pixels = Pixels(found["pixel_values"].float(), (time, height, width))
        self._keep(reference, pixels)
        return pixels

    def of_all(self, references: Sequence[str]) -> list[Pixels]:
        """The pixels of several images, in order."""
        return [self.pixels(reference) for reference in references]

    def _keep(self, reference: str, pixels: Pixels) -> None:
        self._kept[reference] = pixels
        self._left -= pixels.values.nbytes
        while self._left < 0:
            _, dropped = self._kept.popitem(last=False)
            self._left += dropped.values.nbytes
