"""Groups of rows that show images, with random completions, and the batch that they pack into."""

import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from rlhf.batch import Batch
from rlhf.data.packing import pack
from rlhf.data.records import parse_row
from rlhf.episodes.render import Renderer
from rlhf.types import Prompt, TrajectoryGroup
from tests.fakes import make_trajectory
from tests.tiny import picture

WORDS = 90
"""Ids below it are characters or special tokens of text."""


def renderer(folder: Path) -> Renderer:
    return Renderer(model_folder=str(folder), template="{prompt}")


def prompts(images: Path) -> list[Prompt]:
    """Two images, one, the same one twice, none."""
    one, wide, high = (
        picture(images, 1),
        picture(images, 2, (48, 32)),
        picture(images, 3, (16, 64)),
    )
    rows = [
        {"prompt": "a<image>b<image>c", "images": [one, high]},
        {"prompt": "how many?", "images": [wide]},
        {"prompt": "<image>same<image>", "images": [one, one]},
        {"prompt": "no picture here"},
    ]
    return [parse_row(row, location=f"r:{i}", columns={}, key="k") for i, row in enumerate(rows)]


def groups(folder: Path, asked: Sequence[Prompt], *, size: int = 3, seed: int = 0) -> list[TrajectoryGroup]:
    draw = random.Random(seed)
    found = []
    for index, prompt in enumerate(asked):
        ids = renderer(folder).encode_prompt(prompt)
        trajectories = []
        for sample in range(size):
            sampled = [draw.randrange(3, WORDS) for _ in range(draw.randint(2, 7))]
            made = make_trajectory(
                prompt_ids=ids, sampled_ids=sampled, sample_index=sample, reward=sample / 2
            )
            segment = replace(made.segments[0], images=prompt.images)
            trajectories.append(replace(made, segments=(segment,)))
        found.append(TrajectoryGroup(index=index, prompt=prompt, trajectories=tuple(trajectories)))
    return found


def seen_batch(folder: Path, asked: Sequence[Prompt], *, size: int = 3, seed: int = 0) -> Batch:
    """Packed, with advantages and loss weights for `tests.unit.learner.ranks.policy_gradient`."""
    batch = pack(groups(folder, asked, size=size, seed=seed), vision=renderer(folder).vision)
    draw = torch.Generator().manual_seed(seed)
    return replace(
        batch,
        advantages=torch.randn(batch.num_tokens, generator=draw),
        loss_weights=batch.loss_mask / batch.loss_mask.sum(),
    )
