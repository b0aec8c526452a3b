"""Where a row's images stand in its messages: one `<image>` in the text for each, in order."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from rlhf.data.images import EXPECTED, image_reference
from rlhf.errors import DataError
from rlhf.types import Message

SLOT = "<image>"
"""Stands for an image in the text of a prompt that has images; in one that has none it is text."""
Parts = list[Any]


def content_of(parts: Sequence[Any], *, where: str) -> tuple[str, Parts]:
    """(text with a slot for each image part, the image of each, or None) of a message's list of parts."""
    texts: list[str] = []
    inline: Parts = []
    for index, part in enumerate(parts):
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind == "text" and isinstance(part.get("text"), str):
            texts.append(part["text"])
        elif kind in ("image", "image_url"):
            texts.append(SLOT)
            given = part.get(kind)
            if isinstance(given, Mapping) and kind == "image_url":
                given = given.get("url")
            inline.append(given)
        else:
            raise DataError(
                f"{where}, content[{index}] is {part!r:.80}, expected {{type: text, text: ...}} or {{type: image}}."
            )
    return "".join(texts), inline


def row_images(row: Mapping[str, Any], inline: Parts, *, where: str) -> tuple[tuple[str, ...], bool]:
    """(references, whether the row speaks of images at all) from `images`, `image` or the messages' own parts."""
    own = [image for image in inline if image is not None]
    found = row.get("images")
    if found is None and is_image(row.get("image")):
        found = [row["image"]]
    if found is not None and (isinstance(found, str | bytes | Mapping) or not isinstance(found, Sequence)):
        raise DataError(f"{where}: `images` is {found!r:.80}, expected a list; each is {EXPECTED}.")
    if found and own:
        raise DataError(
            f"{where} has {len(found)} images in its column and {len(own)} in its messages: give all of them "
            "in one of the two."
        )
    given = list(found or own)
    references = tuple(
        image_reference(image, where=f"{where}: `images[{index}]`") for index, image in enumerate(given)
    )
    return references, bool(inline) or found is not None


def placed(messages: Sequence[Message], num_images: int, *, where: str) -> tuple[Message, ...]:
    """The messages with a slot for each image: where the row has none, all at the head of the first user turn.

    Raises DataError where the row has another number of slots than of images.
    """
    num_slots = sum(message.content.count(SLOT) for message in messages)
    if num_slots == num_images:
        return tuple(messages)
    first = next((i for i, message in enumerate(messages) if message.role == "user"), None)
    if num_slots or first is None:
        raise DataError(
            f"{where} has {num_slots} image placeholders and {num_images} images, expected as many of one as of the "
            f"other. Write {SLOT} (or a part {{type: image}}) once for each image, or nowhere: then they stand before "
            "the first user message."
        )
    head = replace(messages[first], content=SLOT * num_images + messages[first].content)
    return (*messages[:first], head, *messages[first + 1 :])


def is_image(value: Any) -> bool:
    """Whether a value is an image by its looks: a column `image` may name other things, such as a container."""
    if isinstance(value, str):
        return value.startswith("data:image/") or value.lower().endswith(_SUFFIXES)
    is_stored = isinstance(value, Mapping) and bool({"bytes", "path"} & value.keys())
    return is_stored or type(value).__module__.startswith("PIL.")


_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif")
