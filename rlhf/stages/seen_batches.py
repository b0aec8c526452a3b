"""What a training process gives a model that sees images beside ids: pixels, grids, and which tokens are images."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rlhf.data.image_tokens import find_runs, rope_positions
from rlhf.data.vision_model import ImageProcessor, find_vision
from rlhf.stages.trained_rows import IMAGES

Batch = dict[str, Tensor]
Collate = Callable[[list[dict[str, Any]]], Batch]


@dataclass(frozen=True, slots=True)
class SeenBatches:
    """A collator of rows of text, and the images that the rows show."""

    text: Collate
    """Rows -> `input_ids` and what else the model takes, each row `repeats` times over: first all, then all again."""
    processor: ImageProcessor
    repeats: int = 1

    def __call__(self, rows: list[dict[str, Any]]) -> Batch:
        """The batch of text with `pixel_values`, `image_grid_thw` and `mm_token_type_ids`, if a row shows an image."""
        batch = self.text([{name: row[name] for name in row if name != IMAGES} for row in rows])
        shown = [row.get(IMAGES) or () for row in rows] * self.repeats
        if any(shown):
            batch |= image_inputs(self.processor, shown, batch["input_ids"])
        if "position_ids" in batch:
            batch["position_ids"] = planes(batch, merge=self.processor.vision.merge)
        return batch


def image_inputs(
    processor: ImageProcessor, shown: Sequence[Sequence[str]], input_ids: Tensor
) -> Mapping[str, Tensor]:
    """What a model takes for the images of rows [B, T]; `shown` names those of each, in the order of their tokens."""
    seen = [image for references in shown for image in processor.of_all(references)]
    return {
        "pixel_values": torch.cat([image.values for image in seen]),
        "image_grid_thw": torch.tensor([image.grid for image in seen]),
        "mm_token_type_ids": (input_ids == processor.vision.image_id).int(),
    }


def planes(batch: Mapping[str, Tensor], *, merge: int) -> Tensor:
    """[4, B, T]: the positions of the batch, by which models keep packed rows apart, and their three of M-RoPE."""
    ids = batch["input_ids"]
    positions = batch["position_ids"].expand(ids.shape).flatten()
    rows = torch.cumsum(positions == 0, 0) - 1
    grids: list[list[int]] = []
    runs = find_runs(torch.zeros_like(positions, dtype=torch.bool), rows)
    if "image_grid_thw" in batch:
        grids = batch["image_grid_thw"].tolist()
        runs = find_runs(batch["mm_token_type_ids"].flatten().bool(), rows)
    found = rope_positions(positions, rows, runs, grids=[(t, h, w) for t, h, w in grids], merge=merge)
    return torch.cat([positions[None], found]).view(4, *ids.shape)


def seeing(collate: Collate, folder: str, *, repeats: int = 1) -> Collate:
    """The collator for the model of a folder: with its images where it sees any."""
    vision = find_vision(folder)
    return collate if vision is None else SeenBatches(collate, ImageProcessor(vision), repeats)
