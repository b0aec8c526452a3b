import numpy as np
import pytest
from PIL import Image, ImageFilter

from rewards.vision_pixels import FEATURES, MAX_SIDE, pixel_features
from rlhf.errors import DataError

PINNED = {
    "light": 0.2584,
    "contrast": 0.0759,
    "chroma_99": 0.7059,
    "gradient_99": 0.2449,
    "noise": -3.6802,
    "mirror_symmetry": 0.2975,
}
"""Of `picture()`: whoever changes them gives vision_pixels another VERSION."""


def picture(width: int = 40, height: int = 24) -> Image.Image:
    """A bright disc left of the middle of a dark ramp."""
    rows, columns = np.mgrid[:height, :width]
    inside = (rows - height / 2) ** 2 + (columns - width / 3) ** 2 < (height / 4) ** 2
    ramp = 40 + columns
    pixels = np.stack([np.where(inside, 230, ramp), np.where(inside, 60, ramp), ramp], 2)
    return Image.fromarray(pixels.astype(np.uint8))


def grainy(image: Image.Image, spread: float) -> Image.Image:
    pixels = np.asarray(image, np.float64)
    return Image.fromarray(
        np.clip(pixels + np.random.default_rng(0).normal(0, spread, pixels.shape), 0, 255).astype(np.uint8)
    )


def feature(name: str, *images: Image.Image) -> list[float]:
    return pixel_features(images)[:, FEATURES.index(name)].tolist()


def test_a_picture_keeps_its_numbers():
    assert {name: feature(name, picture())[0] for name in PINNED} == pytest.approx(PINNED, abs=1e-3)


def test_there_are_thirty_finite_numbers_of_any_picture():
    flat = Image.new("RGB", (8, 8), "black")
    found = pixel_features([flat, Image.new("L", (9, 30), 255), picture(), picture(700, 100).convert("CMYK")])
    assert found.shape == (4, len(FEATURES)) == (4, 30)
    assert len(set(FEATURES)) == 30
    assert np.isfinite(found).all()


def test_pictures_do_not_depend_on_their_neighbours():
    images = [picture(), picture(20, 20), grainy(picture(), 9), picture(20, 20).convert("L")]
    together = pixel_features(images)
    for place, image in enumerate(images):
        assert pixel_features([image])[0] == pytest.approx(together[place], rel=1e-5, abs=1e-6)
    assert pixel_features([]).shape == (0, 30)


def test_blur_takes_edges():
    sharp, blurred = picture(), picture().filter(ImageFilter.GaussianBlur(2.0))
    for name in ("gradient_99", "laplacian", "edge_over_range", "smooth_gradient_99", "fine_over_coarse"):
        high, low = feature(name, sharp, blurred)
        assert high > low


def test_grain_shows_as_noise():
    levels = [feature("noise", grainy(picture(), spread))[0] for spread in (0, 5, 20)]
    assert levels == sorted(levels)
    assert levels[0] < levels[1] < levels[2]


def test_contrast_and_colour_show():
    dull = picture().point(lambda value: 128 + (value - 128) // 3)
    for name in ("contrast", "range", "colourfulness", "chroma_99"):
        high, low = feature(name, picture(), dull)
        assert high > low
    assert feature("saturation", picture().convert("L")) == [0.0]


def test_symmetry_is_that_of_the_picture():
    whole = picture(40, 40)
    twice = Image.new("RGB", (80, 40))
    twice.paste(whole, (0, 0))
    twice.paste(whole.transpose(Image.Transpose.FLIP_LEFT_RIGHT), (40, 0))
    assert feature("mirror_symmetry", twice) == pytest.approx([1.0])
    assert feature("mirror_symmetry", whole)[0] < 0.9


def test_large_pictures_are_made_smaller_first():
    large = picture(4 * MAX_SIDE, 2 * MAX_SIDE)
    reduced = large.resize((MAX_SIDE, MAX_SIDE // 2), Image.Resampling.BOX)
    assert pixel_features([large])[0] == pytest.approx(pixel_features([reduced])[0])


@pytest.mark.parametrize("size", [(7, 30), (30, 7)])
def test_a_picture_that_is_too_small_is_refused(size):
    with pytest.raises(DataError, match=f"{size[0]} x {size[1]}"):
        pixel_features([picture(), Image.new("RGB", size)])
