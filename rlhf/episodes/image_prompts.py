"""Prompts with images as token ids: each image is a start token, its image tokens, an end token."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from rlhf.data.image_rows import SLOT
from rlhf.data.vision_model import FAMILIES, ImageProcessor, VisionModel
from rlhf.errors import DataError
from rlhf.types import Message, Prompt


class ImagePrompts:
    """What a renderer needs beside its tokenizer for a model that sees images."""

    def __init__(self, vision: VisionModel, tokenizer: Any) -> None:
        self._vision = vision
        self._processor = ImageProcessor(vision)
        tokens = (vision.start_id, vision.image_id, vision.end_id)
        self._text = "".join(tokenizer.convert_ids_to_tokens(list(tokens)))

    def spelt(self, messages: Sequence[Message]) -> tuple[Message, ...]:
        """The messages with the tokens of an image, unexpanded, for each slot."""
        return tuple(replace(m, content=m.content.replace(SLOT, self._text)) for m in messages)

    def expanded(self, ids: Sequence[int], prompt: Prompt) -> list[int]:
        """The ids with as many image tokens for each image as its size asks for."""
        num_slots = list(ids).count(self._vision.image_id)
        if num_slots != len(prompt.images):
            raise DataError(
                f"prompt {prompt.id}: its text becomes {num_slots} image tokens, but it has {len(prompt.images)} "
                "images. Its text spells an image token itself, or the chat template drops or repeats messages."
            )
        images = iter(prompt.images)
        found: list[int] = []
        for token in ids:
            is_image = token == self._vision.image_id
            found += [token] * (self._processor.num_tokens(next(images)) if is_image else 1)
        return found


def refuse_images(prompt: Prompt, model: str) -> None:
    """DataError for a prompt with images and a model that sees none."""
    if prompt.images:
        raise DataError(
            f"prompt {prompt.id} has {len(prompt.images)} images, but the model {model!r} sees none here: expected "
            f"one of type {', '.join(FAMILIES)}. Choose such a model, or drop the column with a mapper."
        )
