"""What the reference engine gives a model that sees images beside token ids."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from rlhf.data.image_tokens import find_runs, rope_positions
from rlhf.data.images import shown
from rlhf.data.vision_model import ImageProcessor, VisionModel
from rlhf.errors import EngineError

Shown = tuple[tuple[int, ...], tuple[str, ...]]
"""(ids of a prompt, references of its images)"""


class ShownImages:
    """Pixels and rotary positions of prompts; keeps the pixels of the latest images."""

    def __init__(self, vision: VisionModel, device: torch.device) -> None:
        self._vision = vision
        self._processor = ImageProcessor(vision)
        self._device = device

    def inputs(self, prompts: Sequence[Shown]) -> dict[str, Any]:
        """Keyword arguments of the model for prompts of one length. EngineError where ids and images disagree."""
        ids = torch.tensor([prompt for prompt, _ in prompts])
        rows, length = ids.shape
        segment_ids = torch.arange(rows).repeat_interleave(length)
        runs = find_runs(ids.flatten() == self._vision.image_id, segment_ids)
        references = [reference for _, images in prompts for reference in images]
        pixels = self._processor.of_all(references)
        expected = [p.values.shape[0] // self._vision.merge**2 for p in pixels]
        if runs.sizes.tolist() != expected:
            raise EngineError(
                f"a prompt has runs of {runs.sizes.tolist()[:5]} image tokens for {len(references)} images "
                f"({', '.join(map(shown, references[:2]))}...) of {expected[:5]}: it was rendered by another image "
                "processor, or the images were changed"
            )
        positions = rope_positions(
            torch.arange(length).repeat(rows),
            segment_ids,
            runs,
            grids=[p.grid for p in pixels],
            merge=self._vision.merge,
        )
        found: dict[str, Any] = {"position_ids": positions.view(3, rows, length).to(self._device)}
        if pixels:
            found["pixel_values"] = torch.cat([p.values for p in pixels]).to(self._device)
            found["image_grid_thw"] = torch.tensor([p.grid for p in pixels], device=self._device)
        return found


def next_positions(inputs: dict[str, Any]) -> list[int]:
    """Where the first sampled token of each prompt stands."""
    positions: Tensor = inputs["position_ids"]
    found: list[int] = (positions.amax((0, 2)) + 1).tolist()
    return found
