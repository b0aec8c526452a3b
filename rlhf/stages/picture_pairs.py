"""Pairs of pictures for a text: which of the two suits it better."""

from collections.abc import Mapping, Sequence
from typing import Any

from rlhf.config.trainer import RewardModelConfig
from rlhf.data.dual_inputs import DualInputs
from rlhf.data.image_rows import is_image
from rlhf.data.images import image_reference
from rlhf.errors import DataError
from rlhf.stages.trained_rows import IMAGES, that_fit
from rlhf.types import Prompt

SIDES = ("chosen", "rejected")


def shows_pictures(prompt: Prompt) -> bool:
    """Whether a row prefers one picture to another."""
    return all(is_image(prompt.columns.get(side)) for side in SIDES)


def check_pictures(prompt: Prompt, *, where: str) -> tuple[str, ...]:
    """(chosen, rejected) as references. DataError for a row that is no pair of pictures for one text."""
    found = tuple(image_reference(prompt.columns.get(side), where=f"{where}: `{side}`") for side in SIDES)
    if found[0] == found[1]:
        raise DataError(
            f"{where}: `chosen` and `rejected` are the same picture, which prefers nothing. Leave it out."
        )
    if prompt.images or len(prompt.messages) != 1:
        raise DataError(
            f"{where}: `prompt` has {len(prompt.messages)} messages and {len(prompt.images)} images, expected one text "
            "for which the pictures are compared."
        )
    return found


def picture_rows(
    prompts: Sequence[Prompt], config: RewardModelConfig, *, folder: str, key: str
) -> tuple[list[Mapping[str, Any]], int]:
    """(rows with text_ids and the two pictures, number of those that were dropped) for the dual encoder of a folder."""
    inputs = DualInputs(folder)
    rows: list[Mapping[str, Any]] = []
    lengths = []
    for prompt in prompts:
        where = f"{key}: row {prompt.id}"
        ids = inputs.text_ids(prompt.messages[0].content, where=where)
        rows.append({"text_ids": ids, IMAGES: list(check_pictures(prompt, where=where))})
        lengths.append((where, len(ids)))
    fits = that_fit(lengths, limit=config.max_length, on_long=config.on_long, key=key.partition(".")[0])
    kept = [row for row, is_kept in zip(rows, fits, strict=True) if is_kept]
    return kept, len(rows) - len(kept)
