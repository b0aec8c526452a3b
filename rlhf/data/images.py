"""Images of rows: from what a row holds to a reference, a string that any process opens.

A reference is a path or a `data:` URI. Addresses are never fetched.
"""

import base64
import binascii
import hashlib
import io
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from PIL import Image

from rlhf.errors import DataError
from rlhf.types import Prompt

_DATA = "data:"
_ADDRESSES = ("http://", "https://", "ftp://", "s3://", "gs://", "hf://")
_BROKEN = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)
EXPECTED = "a path, a data: URI, or a mapping with `bytes` or `path`"


def image_reference(given: Any, *, where: str) -> str:
    """The reference of an image as a row holds it: text, {bytes, path} as `datasets` stores it, or a PIL image.

    Paths become absolute. Raises DataError, with `where`, for an address and for what is no image.
    """
    image = given
    if isinstance(image, Mapping):
        encoded, path = image.get("bytes"), image.get("path")
        image = bytes(encoded) if encoded else path
    if isinstance(image, Image.Image):
        image = _encoded(image)
    if isinstance(image, bytes):
        image = f"{_DATA}image/*;base64,{base64.b64encode(image).decode()}"
    if not isinstance(image, str) or not image:
        raise DataError(f"{where} is {given!r:.80}, expected {EXPECTED}.")
    reference: str = image
    if reference.lower().startswith(_ADDRESSES):
        raise DataError(
            f"{where} is the address {reference!r:.120}, and images are never fetched. Download it first and give "
            f"{EXPECTED}."
        )
    if not reference.startswith(_DATA):
        reference = str(Path(reference).absolute())
    try:
        image_size(reference)
    except DataError as error:
        raise DataError(f"{where}: {error}") from error
    return reference


def keep_images(prompt: Prompt, folder: Path) -> Prompt:
    """The prompt with the bytes of its images in files of `folder`, named by their content and written once."""
    if not any(reference.startswith(_DATA) for reference in prompt.images):
        return prompt
    kept = tuple(r if not r.startswith(_DATA) else _written(_bytes(r), folder) for r in prompt.images)
    return replace(prompt, images=kept)


def image_size(reference: str) -> tuple[int, int]:
    """(width, height); reads no more than the header. DataError for what cannot be read as an image."""
    try:
        with Image.open(_file(reference)) as image:
            return image.size
    except _BROKEN as error:
        raise _unreadable(reference, error) from error


def open_image(reference: str) -> Image.Image:
    """The picture in RGB. DataError for what cannot be read as an image."""
    try:
        with Image.open(_file(reference)) as image:
            return image.convert("RGB")
    except _BROKEN as error:
        raise _unreadable(reference, error) from error


def shown(reference: str) -> str:
    """A reference for people: a path as it is, the bytes of a data: URI not."""
    return f"{reference[:24]}..." if reference.startswith(_DATA) else reference


def distinct(references: Sequence[Sequence[str]]) -> tuple[str, ...]:
    """Every reference once, in order."""
    return tuple(dict.fromkeys(reference for some in references for reference in some))


def _encoded(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


def _file(reference: str) -> str | io.BytesIO:
    return io.BytesIO(_bytes(reference)) if reference.startswith(_DATA) else reference


def _bytes(reference: str) -> bytes:
    head, comma, body = reference.partition(",")
    if not comma or not head.endswith(";base64"):
        raise DataError(f"the data: URI {reference!r:.40} is not base64, expected data:image/...;base64,...")
    try:
        return base64.b64decode(body, validate=True)
    except binascii.Error as error:
        raise DataError(f"the data: URI {reference!r:.40} is not base64: {error}.") from error


def _written(encoded: bytes, folder: Path) -> str:
    with Image.open(io.BytesIO(encoded)) as image:
        suffix = str(image.format).lower()
    path = folder.absolute() / f"{hashlib.sha256(encoded).hexdigest()}.{suffix}"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder, delete=False) as file:
            file.write(encoded)
        os.replace(file.name, path)
    return str(path)


def _unreadable(reference: str, error: Exception) -> DataError:
    if isinstance(error, DataError):
        return error
    if isinstance(error, FileNotFoundError):
        return DataError(f"there is no image file {reference!r} (relative paths begin in {Path.cwd()}).")
    return DataError(f"{shown(reference)!r} cannot be read as an image: {error}.")
