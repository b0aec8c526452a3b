"""Which tokens are of which image, and where they stand for the model's rotary positions.

An image is one run of image tokens; two of them never touch (`rlhf.data.vision_model.FAMILIES`).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Grid = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Runs:
    """The runs of image tokens among N tokens."""

    starts: Tensor
    """[K]: the first token of each."""
    sizes: Tensor
    """[K]"""
    of_token: Tensor
    """[N]: the run of each token, -1 where it is of none."""


def find_runs(is_image: Tensor, segment_ids: Tensor) -> Runs:
    """The runs of marked tokens [N]; none reaches from one row into the next."""
    before = torch.zeros_like(is_image)
    before[1:] = is_image[:-1] & (segment_ids[1:] == segment_ids[:-1])
    begins = is_image & ~before
    number = torch.cumsum(begins, 0) - 1
    of_token = torch.where(is_image, number, -1)
    num_runs = int(begins.sum())
    return Runs(
        starts=torch.nonzero(begins).flatten(),
        sizes=torch.bincount(of_token[is_image], minlength=num_runs),
        of_token=of_token,
    )


def rope_positions(
    positions: Tensor, segment_ids: Tensor, runs: Runs, *, grids: Sequence[Grid], merge: int
) -> Tensor:
    """[3, N]: time, height and width of each token; `grids` has one entry for each run.

    Text counts on by one in all three. An image lies in its grid from where it begins, and what follows goes on behind
    its longer side. Source: Qwen2-VL (arXiv 2409.12191), M-RoPE.
    """
    if not grids:
        return positions.expand(3, -1)
    device = positions.device
    height, width = (torch.tensor([g[i] // merge for g in grids], device=device) for i in (1, 2))
    ends = runs.starts + runs.sizes
    # What an image is shorter than its tokens; a row that ends with one has nothing behind it.
    jumps = positions.new_zeros(positions.numel() + 1)
    jumps[ends] = torch.maximum(height, width) - runs.sizes
    jumps = jumps[:-1]
    jumps[positions == 0] = 0
    moved = torch.cumsum(jumps, 0)
    starts_of_rows = torch.nonzero(positions == 0).flatten()
    place = positions + moved - moved[starts_of_rows][segment_ids]
    found = place.expand(3, -1).clone()
    tokens = torch.nonzero(runs.of_token >= 0).flatten()
    run = runs.of_token[tokens]
    inside, first, across = tokens - runs.starts[run], place[runs.starts[run]], width[run]
    found[:, tokens] = torch.stack([first, first + inside // across, first + inside % across])
    return found
