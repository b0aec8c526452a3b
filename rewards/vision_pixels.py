"""Thirty numbers that pixels tell of a picture: light, contrast, colour, edges, grain, layout."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from rlhf.errors import DataError

Floats = NDArray[np.float32]

VERSION = "pixels-1"
"""Goes up with every change of a number; the tests hold a picture to it."""
FEATURES = (
    "light", "contrast", "range", "red_spread", "green_spread", "blue_spread", "local_contrast",
    "colourfulness", "saturation", "saturation_spread", "chroma_99",
    "gradient", "gradient_90", "gradient_99", "laplacian", "edge_over_range", "fine_over_coarse",
    "smooth_gradient_99", "smooth_edge_over_range", "smooth_laplacian",
    "noise", "noise_median", "chroma_noise", "noise_over_contrast", "flattest_block", "corner_spread",
    "mirror_symmetry", "upside_symmetry", "centre_light", "centre_colour",
)  # fmt: skip
MAX_SIDE = 256
"""Larger pictures are made smaller first: grain and edges mean the same in all, and cost is bounded."""
MIN_SIDE = 8
_TINY = 1e-3


def pixel_features(images: Sequence[Image.Image]) -> NDArray[np.float64]:
    """[n, 30], in the order of FEATURES. DataError for a picture less than 8 pixels wide or high."""
    found = np.empty((len(images), len(FEATURES)))
    by_size: dict[tuple[int, int], list[tuple[int, Image.Image]]] = {}
    for place, image in enumerate(images):
        fitted = _fitted(image)
        by_size.setdefault(fitted.size, []).append((place, fitted))
    for (width, height), members in by_size.items():
        step = max(1, 2**20 // (width * height))  # bounds what is in memory at one time
        for start in range(0, len(members), step):
            part = members[start : start + step]
            pixels = np.stack([np.asarray(image, np.float32) for _, image in part]) / np.float32(255)
            found[[place for place, _ in part]] = _of_pixels(pixels)
    return found


def _fitted(image: Image.Image) -> Image.Image:
    if min(image.size) < MIN_SIDE:
        raise DataError(
            f"a picture is {image.width} x {image.height} pixels, expected {MIN_SIDE} or more each way for pixel "
            "features. Take it out of the gallery."
        )
    image = image.convert("RGB")
    if max(image.size) <= MAX_SIDE:
        return image
    shrink = MAX_SIDE / max(image.size)
    width, height = (max(MIN_SIDE, round(side * shrink)) for side in image.size)
    return image.resize((width, height), Image.Resampling.BOX)


def _of_pixels(pixels: Floats) -> Floats:
    """[n, 30] of [n, height, width, 3] in 0 to 1."""
    light = pixels @ np.array([0.299, 0.587, 0.114], np.float32)
    columns = [
        *_tones(pixels, light),
        *_colours(pixels),
        *_edges(light),
        *_grain(pixels, light),
        *_layout(pixels, light),
    ]
    return np.stack(columns, 1)


def _tones(pixels: Floats, light: Floats) -> list[Floats]:
    mean, spread = light.mean((1, 2)), light.std((1, 2))
    blocks = _block_spreads(light).mean(1)
    return [mean, spread, _range(light), *np.moveaxis(pixels.std((1, 2)), 1, 0), blocks]


def _colours(pixels: Floats) -> list[Floats]:
    # Colourfulness: Hasler and Suesstrunk, 2003.
    red_green = pixels[..., 0] - pixels[..., 1]
    yellow_blue = (pixels[..., 0] + pixels[..., 1]) / 2 - pixels[..., 2]
    spread = np.hypot(red_green.std((1, 2)), yellow_blue.std((1, 2)))
    colourfulness = spread + 0.3 * np.hypot(red_green.mean((1, 2)), yellow_blue.mean((1, 2)))
    chroma = pixels.max(3) - pixels.min(3)
    saturation = chroma / np.maximum(pixels.max(3), _TINY)
    return [
        colourfulness,
        saturation.mean((1, 2)),
        saturation.std((1, 2)),
        _quantile(_smoothed(chroma), 0.99),
    ]


def _edges(light: Floats) -> list[Floats]:
    smooth = _smoothed(light)
    gradient, smooth_gradient = _gradient(light), _gradient(smooth)
    steepest, smooth_steepest = _quantile(gradient, 0.99), _quantile(smooth_gradient, 0.99)
    fine = light[:, 1:-1, 1:-1] - smooth
    return [
        gradient.mean((1, 2)),
        _quantile(gradient, 0.9),
        steepest,
        _log(_laplacian(light).std((1, 2))),
        steepest / np.maximum(_range(light), _TINY),
        _log(fine.std((1, 2))) - _log(smooth.std((1, 2))),
        smooth_steepest,
        smooth_steepest / np.maximum(_range(smooth), _TINY),
        _log(_laplacian(smooth).std((1, 2))),
    ]


def _grain(pixels: Floats, light: Floats) -> list[Floats]:
    # The mask of Immerkaer, 1996: blind to slopes and curves, so that mostly grain remains.
    left = np.abs(_grainy(light))
    noise = left.mean((1, 2))
    chroma = np.abs(_grainy(pixels[..., 0] - pixels[..., 2])).mean((1, 2))
    flattest = _quantile(_block_spreads(light), 0.1)
    quarter_h, quarter_w = light.shape[1] // 6 + 1, light.shape[2] // 6 + 1
    corners = [
        light[:, a, b]
        for a in (slice(quarter_h), slice(-quarter_h, None))
        for b in (slice(quarter_w), slice(-quarter_w, None))
    ]
    spreads = np.stack([corner.std((1, 2)) for corner in corners], 1)
    return [
        _log(noise),
        _log(_quantile(left, 0.5)),
        _log(chroma),
        _log(noise) - _log(light.std((1, 2))),
        _log(flattest),
        _log(np.median(spreads, 1)),
    ]


def _layout(pixels: Floats, light: Floats) -> list[Floats]:
    spread = np.maximum(light.std((1, 2)), _TINY)
    mirror, upside = (
        1 - np.abs(light - other).mean((1, 2)) / (2 * spread) for other in (light[:, :, ::-1], light[:, ::-1])
    )
    height, width = light.shape[1], light.shape[2]
    middle = (slice(None), slice(height // 4, -(height // 4)), slice(width // 4, -(width // 4)))
    whole, centre = pixels.mean((1, 2)), pixels[middle].mean((1, 2))
    return [
        mirror,
        upside,
        np.abs(light[middle].mean((1, 2)) - light.mean((1, 2))),
        np.linalg.norm(centre - whole, axis=1),
    ]


def _gradient(light: Floats) -> Floats:
    slopes: Floats = np.hypot(np.diff(light, axis=2)[:, :-1], np.diff(light, axis=1)[:, :, :-1])
    return slopes


def _laplacian(light: Floats) -> Floats:
    around = light[:, :-2, 1:-1] + light[:, 2:, 1:-1] + light[:, 1:-1, :-2] + light[:, 1:-1, 2:]
    return around - 4 * light[:, 1:-1, 1:-1]


def _grainy(light: Floats) -> Floats:
    twice: Floats = light[:, :-2] - 2 * light[:, 1:-1] + light[:, 2:]
    left: Floats = twice[:, :, :-2] - 2 * twice[:, :, 1:-1] + twice[:, :, 2:]
    return left


def _smoothed(light: Floats) -> Floats:
    rows = light[:, :-2] + light[:, 1:-1] + light[:, 2:]
    means: Floats = (rows[:, :, :-2] + rows[:, :, 1:-1] + rows[:, :, 2:]) / np.float32(9)
    return means


def _block_spreads(light: Floats) -> Floats:
    """[n, blocks]: the deviation within each 4 x 4 pixels; what is left over at two borders is not looked at."""
    count, height, width = len(light), light.shape[1] // 4, light.shape[2] // 4
    blocks = light[:, : 4 * height, : 4 * width].reshape(count, height, 4, width, 4)
    spreads: Floats = blocks.std((2, 4)).reshape(count, -1)
    return spreads


def _range(light: Floats) -> Floats:
    return _quantile(light, 0.95) - _quantile(light, 0.05)


def _quantile(values: Floats, share: float) -> Floats:
    found: Floats = np.quantile(values.reshape(len(values), -1), share, axis=1).astype(np.float32)
    return found


def _log(values: Floats) -> Floats:
    found: Floats = np.log(np.maximum(values, np.float32(_TINY)))
    return found
