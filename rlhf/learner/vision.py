"""What a model that sees images is given beside tokens, and the names of its parts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from rlhf.batch import Batch
from rlhf.data.image_tokens import Runs, find_runs, rope_positions
from rlhf.data.images import distinct, shown
from rlhf.data.vision_model import ImageProcessor, Part, VisionModel, part_of
from rlhf.errors import LearnerError


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """The images of one forward pass, on the device: K of them, each once for all rows that begin with it."""

    pixels: Tensor
    """[patches, numbers of a patch], image after image in the order of their tokens."""
    grids: Tensor
    """[K, 3]: patches in time, height and width."""


class ImageReader:
    """Pixels and rotary positions of a batch; keeps the pixels of the latest images."""

    def __init__(self, vision: VisionModel) -> None:
        self._processor = ImageProcessor(vision)
        self._vision = vision
        self._merge = vision.merge

    def shown(self, batch: Batch, images: Sequence[Sequence[str]]) -> Batch:
        """The batch of rows that show these images, one for each run of image tokens, in order."""
        runs = find_runs(batch.tokens == self._vision.image_id, batch.segment_ids)
        references = distinct(images)
        if not references:
            return batch
        place = torch.tensor([references.index(r) for some in images for r in some])
        image_ids = torch.where(runs.of_token >= 0, place[runs.of_token], -1)
        return replace(batch, images=references, image_ids=image_ids)

    def read(self, batch: Batch, own: Tensor) -> tuple[Seen | None, Tensor]:
        """(images whose tokens are among `own`, places of the U tokens in the batch; positions [3, U] of those).

        Raises LearnerError where an image has another number of tokens than its pixels ask for.
        """
        if batch.image_ids is None:
            return None, batch.positions[own].expand(3, -1)
        runs = find_runs(batch.image_ids >= 0, batch.segment_ids)
        images = batch.image_ids[runs.starts].tolist()
        found = {index: self._processor.pixels(batch.images[index]) for index in dict.fromkeys(images)}
        grids = [found[index].grid for index in images]
        self._check(batch, runs, images, grids)
        positions = rope_positions(batch.positions, batch.segment_ids, runs, grids=grids, merge=self._merge)
        of_own = runs.of_token[own]
        held = torch.unique_consecutive(of_own[of_own >= 0]).tolist()
        if not held:
            return None, positions[:, own]
        device = batch.tokens.device
        pixels = torch.cat([found[images[run]].values for run in held]).to(device)
        seen = Seen(pixels=pixels, grids=torch.tensor([grids[run] for run in held], device=device))
        return seen, positions[:, own]

    def _check(self, batch: Batch, runs: Runs, images: list[int], grids: list[tuple[int, int, int]]) -> None:
        for index, (time, height, width), size in zip(images, grids, runs.sizes.tolist(), strict=True):
            expected = time * height * width // self._merge**2
            if expected != size:
                raise LearnerError(
                    f"image {shown(batch.images[index])!r} has {size} tokens in its row, but its pixels ask for "
                    f"{expected}: it was changed, or rendered by another image processor."
                )


def freeze(network: nn.Module, parts: frozenset[str]) -> None:
    """Take the parameters of some parts out of training."""
    for name, parameter in network.named_parameters():
        if part_of(name) in parts:
            parameter.requires_grad_(False)


def part_sizes(parameters: Mapping[str, nn.Parameter]) -> dict[Part, tuple[int, int]]:
    """(trained, all) parameters of each part there is."""
    found: dict[Part, tuple[int, int]] = {}
    for name, parameter in parameters.items():
        part, size = part_of(name), parameter.numel()
        trained, whole = found.get(part, (0, 0))
        found[part] = (trained + size * parameter.requires_grad, whole + size)
    return found


def without_images(tower: Any, hidden: Tensor) -> Tensor:
    """The same hidden states, on which a trained tower hangs with a gradient of 0.

    Ranks whose rows show no image then add up gradients of the same parameters as the others.
    """
    if not torch.is_grad_enabled() or not any(p.requires_grad for p in tower.parameters()):
        return hidden
    merge, embedding = tower.spatial_merge_size, tower.patch_embed.proj.weight
    blank = hidden.new_zeros(merge * merge, embedding[0].numel())
    grid = torch.tensor([[1, merge, merge]], device=hidden.device)
    found = tower(blank, grid_thw=grid)
    nothing = found.pooler_output.sum() + sum(f.sum() for f in found.get("deepstack_features") or ())
    kept: Tensor = hidden + 0 * nothing
    return kept
