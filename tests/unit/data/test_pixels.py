"""Prepared images: each loaded once while it is kept, within a bound, and errors that name what is missing."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from rlhf.data.pixels import Pixels
from rlhf.errors import DataError

SIDE = 256
"""256 x 256 x 4 bytes: four prepared images are a megabyte."""


@dataclass
class Greys:
    """Pictures of one grey, `7` is grey 7; notes what it is asked for."""

    version: str = "1"
    asked: list[list[str]] = field(default_factory=list)
    fault: str = ""

    def ids(self) -> Sequence[str]:
        return [str(k) for k in range(100)]

    def load(self, ids: Sequence[str]) -> list[Image.Image]:
        self.asked.append(list(ids))
        if self.fault == "absent":
            raise KeyError(ids[0])
        mode = "RGBA" if self.fault == "alpha" else "RGB"
        pictures = [Image.new(mode, (2, 2), (int(name),) * len(mode)) for name in ids]
        return pictures[:-1] if self.fault == "few" else pictures


def prepare(images: Sequence[Image.Image], *, return_tensors: str) -> dict[str, Tensor]:
    assert return_tensors == "pt"
    assert all(image.mode == "RGB" for image in images)
    greys = [float(np.asarray(image)[0, 0, 0]) for image in images]
    return {"pixel_values": torch.stack([torch.full((1, SIDE, SIDE), grey) for grey in greys])}


def greys_of(pixels: Tensor) -> list[float]:
    return pixels[:, 0, 0, 0].tolist()


def test_images_come_in_the_order_asked_for_and_are_loaded_once():
    gallery = Greys()
    pixels = Pixels(gallery, prepare, limit_mb=1)
    assert greys_of(pixels.of(["3", "1", "3"])) == [3, 1, 3]
    assert greys_of(pixels.of(["1", "2", "3"])) == [1, 2, 3]
    assert gallery.asked == [["3", "1"], ["2"]]


def test_those_used_last_are_kept_within_the_bound():
    gallery = Greys()
    pixels = Pixels(gallery, prepare, limit_mb=1)
    pixels.of(["0", "1", "2", "3"])
    pixels.of(["0"])
    pixels.of(["4"])
    gallery.asked.clear()
    assert greys_of(pixels.of(["0", "2", "3", "4"])) == [0, 2, 3, 4]
    assert gallery.asked == []
    assert greys_of(pixels.of(["1"])) == [1]
    assert gallery.asked == [["1"]]


def test_more_images_than_fit_are_given_all_the_same():
    gallery = Greys()
    pixels = Pixels(gallery, prepare, limit_mb=1)
    names = [str(k) for k in range(9)]
    assert greys_of(pixels.of(names)) == list(range(9))
    gallery.asked.clear()
    assert greys_of(pixels.of(["5", "0", "8"])) == [5, 0, 8]
    assert gallery.asked == [["0"]]


def test_a_picture_with_alpha_is_prepared_as_rgb():
    assert greys_of(Pixels(Greys(fault="alpha"), prepare, limit_mb=1).of(["7"])) == [7]


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        ("absent", r"could not load one of \['0', '1', '2'\] and 1 more: KeyError\('0'\)"),
        ("few", "gave 3 pictures for 4 ids: one for each is expected"),
    ],
)
def test_what_the_gallery_cannot_give_is_named(fault: str, says: str):
    with pytest.raises(DataError, match=says):
        Pixels(Greys(fault=fault), prepare, limit_mb=1).of(["0", "1", "2", "3"])
