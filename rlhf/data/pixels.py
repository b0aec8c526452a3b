"""Images of a gallery as the model's input: loaded by reference, prepared once, kept within a bound."""

from collections import OrderedDict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from rlhf.errors import DataError
from rlhf.retrieval import Gallery

if TYPE_CHECKING:
    from PIL.Image import Image


class Preparation(Protocol):
    """A Hugging Face image processor."""

    def __call__(self, images: "Sequence[Image]", *, return_tensors: str) -> dict[str, Tensor]:
        """`pixel_values` [n, channels, height, width]."""


class Pixels:
    """Prepared images by id. Those used last stay in memory, `limit_mb` of them."""

    def __init__(self, gallery: Gallery, prepare: Preparation, *, limit_mb: int) -> None:
        self._gallery, self._prepare = gallery, prepare
        self._limit = limit_mb << 20
        self._held = 0
        self._kept: OrderedDict[str, Tensor] = OrderedDict()

    def of(self, ids: Sequence[str]) -> Tensor:
        """[n, channels, height, width]. Raises DataError naming the images that the gallery cannot load."""
        found = {name: self._kept[name] for name in ids if name in self._kept}
        for name in found:
            self._kept.move_to_end(name)
        missing = [name for name in dict.fromkeys(ids) if name not in found]
        if missing:
            found |= self._load(missing)
        return torch.stack([found[name] for name in ids])

    def _load(self, ids: list[str]) -> dict[str, Tensor]:
        pictures = load_pictures(self._gallery, ids)
        values = self._prepare(pictures, return_tensors="pt")
        loaded = dict(zip(ids, values["pixel_values"].unbind(0), strict=True))
        for name, tensor in loaded.items():
            self._keep(name, tensor.clone())
        return loaded

    def _keep(self, name: str, tensor: Tensor) -> None:
        self._kept[name] = tensor
        self._held += tensor.nbytes
        while self._held > self._limit:
            _, oldest = self._kept.popitem(last=False)
            self._held -= oldest.nbytes


def load_pictures(gallery: Gallery, ids: Sequence[str]) -> "list[Image]":
    """One RGB picture for each id. Raises DataError naming the images that the gallery cannot load."""
    try:
        pictures = gallery.load(ids)
    except (OSError, ValueError, KeyError) as error:
        raise DataError(
            f"the gallery could not load one of {list(ids[:3])} and {max(len(ids) - 3, 0)} more: {error!r}. "
            "Repair or remove the file, or see whether the gallery is the one that the lists were made from."
        ) from error
    if len(pictures) != len(ids):
        raise DataError(
            f"the gallery gave {len(pictures)} pictures for {len(ids)} ids: one for each is expected."
        )
    return [picture.convert("RGB") for picture in pictures]
