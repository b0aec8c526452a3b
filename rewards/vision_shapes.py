"""A world of small pictures whose beauty is known: coloured shapes, five attributes, a human score to be held back.

A picture is a function of its id, `shapes-SPLIT-SEED-NUMBER`: nothing is stored, and no picture is in two splits. Its
attributes are independent, even in [0, 1]; H = 10 (.22 sharp + .18 contrast + .15 clean + .25 centred + .20 harmony).
The first three are low-level, what an aesthetic model sees; the last two are composition, what words can ask for.
"""

import colorsys
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b
from typing import Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from rlhf.errors import DataError
from rlhf.retrieval import RetrievalQuery

Split = Literal["train", "validation", "test"]
VERSION = "shapes-2"
"""Goes up with every change of what an id shows; the tests hold some pictures to it."""
SIDE = 32
SHAPES = ("circle", "square", "triangle", "star", "diamond", "cross", "ring", "hexagon")
HUES = {
    "red": 0.0, "orange": 0.075, "yellow": 0.15, "green": 0.33, "teal": 0.48, "blue": 0.62, "purple": 0.76, "pink": 0.9,
}  # fmt: skip
ATTRIBUTES = ("sharp", "contrast", "clean", "centred", "harmony")
WEIGHTS = (0.22, 0.18, 0.15, 0.25, 0.20)
"""Of the attributes in H."""
LOW_LEVEL = 3
"""The first so many attributes are low-level."""
WORDS = (
    ("sharp", "blurry"), ("vivid", "dull"), ("clean", "grainy"), ("centered", "offset"), ("harmonious", "clashing"),
)  # fmt: skip
"""Of each attribute, from 0.5 up and below."""
NAMED_SHARE = 0.35
_DRAWN = 2 * SIDE
_MAX_BLUR, _MAX_NOISE, _LEAST_CONTRAST = 1.7, 22.0, 0.4
_CORNERS = {
    # (number of corners, turn of the first one in circles, radius of every second one)
    "square": (4, 0.125, 1.0),
    "diamond": (4, 0.0, 1.0),
    "triangle": (3, -0.25, 1.0),
    "hexagon": (6, 0.0, 1.0),
    "star": (10, -0.25, 0.45),
}


class Look(NamedTuple):
    """All that is known of a picture."""

    colour: str
    shape: str
    attributes: tuple[float, ...]

    @property
    def text(self) -> str:
        """The query that it answers."""
        return text_of(self.colour, self.shape)


@dataclass(frozen=True, slots=True)
class Shapes:
    """`rlhf.retrieval.Gallery` of the first `size` pictures of a split and a seed."""

    split: Split
    size: int
    seed: int = 0

    def __post_init__(self) -> None:
        _check(self.split)
        if self.size < 1 or self.seed < 0:
            raise DataError(f"size is {self.size} and seed {self.seed}, expected 1 or more, and 0 or more.")

    @property
    def version(self) -> str:
        """Of the pictures."""
        return f"{VERSION}-{self.split}-{self.seed}-{self.size}"

    def ids(self) -> list[str]:
        """All pictures."""
        return [f"shapes-{self.split}-{self.seed}-{number:06d}" for number in range(self.size)]

    def load(self, ids: Sequence[str]) -> list[Image.Image]:
        """Any pictures of this world, those of `captions` too; `info["id"]` of each is its id."""
        return [draw(name) for name in ids]


@dataclass(frozen=True, slots=True)
class ShapesTruth:
    """`rlhf.retrieval.Truth` of this world."""

    def relevant(self, query: RetrievalQuery, ids: Sequence[str]) -> list[bool]:
        """Right shape and right colour. DataError for a query that is none of the 64."""
        if query.text not in _places():
            raise DataError(
                f"query {query.id!r} is {query.text!r}, expected one of the 64 of vision_shapes, such as "
                f"{classes()[0]!r}."
            )
        return [look_of(name).text == query.text for name in ids]

    def taste(self, ids: Sequence[str]) -> list[float]:
        """H, 0 to 10."""
        return [float(score) for score in human_scores(ids)]


def gallery(split: Split, size: int, seed: int = 0) -> Shapes:
    """Pictures of a split."""
    return Shapes(split, size, seed)


def truth() -> ShapesTruth:
    """What only an evaluation may see."""
    return ShapesTruth()


def queries(split: Split) -> list[RetrievalQuery]:
    """`a red circle` and the like: 36 train, 12 validation, 16 test, each with every shape and every colour."""
    _check(split)
    return [
        RetrievalQuery(id=f"{colour}-{shape}", text=text_of(colour, shape))
        for row, shape in enumerate(SHAPES)
        for column, colour in enumerate(HUES)
        if _split_of(row, column) == split
    ]


def captions(split: Split, size: int, seed: int = 1) -> list[tuple[str, str]]:
    """(image id, caption): colour and shape, then a word for each attribute with probability .35, in any picture."""
    return [(name, caption_of(name)) for name in gallery(split, size, seed).ids()]


def classes() -> list[str]:
    """The texts of 64-way zero-shot classification."""
    return [text_of(colour, shape) for shape in SHAPES for colour in HUES]


def labels(ids: Sequence[str]) -> list[int]:
    """The place of each picture's text among `classes()`."""
    places = _places()
    return [places[look_of(name).text] for name in ids]


def zero_shot(split: Split, size: int, seed: int = 2) -> dict[str, list[str]]:
    """{text: ids of its pictures} over all classes: one that no picture has is there as a wrong answer."""
    found: dict[str, list[str]] = {text: [] for text in classes()}
    for name in gallery(split, size, seed).ids():
        found[look_of(name).text].append(name)
    return found


def attributes(ids: Sequence[str]) -> NDArray[np.float64]:
    """[n, 5], in the order of ATTRIBUTES."""
    return np.array([look_of(name).attributes for name in ids], np.float64).reshape(-1, len(ATTRIBUTES))


def human_scores(ids: Sequence[str]) -> NDArray[np.float64]:
    """[n] H, 0 to 10."""
    scores: NDArray[np.float64] = 10 * attributes(ids) @ np.array(WEIGHTS)
    return scores


def low_level_scores(ids: Sequence[str]) -> NDArray[np.float64]:
    """[n] the low-level part of H, brought to 0 to 10."""
    weights = np.array(WEIGHTS[:LOW_LEVEL])
    scores: NDArray[np.float64] = 10 * attributes(ids)[:, :LOW_LEVEL] @ (weights / weights.sum())
    return scores


def text_of(colour: str, shape: str) -> str:
    """The plain query."""
    return f"a {colour} {shape}"


def caption_of(name: str) -> str:
    """The caption of a picture."""
    look, draws = look_of(name), _even(f"caption {name}")
    words = [
        words[value < 0.5]
        for words, value, drawn in zip(WORDS, look.attributes, draws, strict=False)
        if drawn < NAMED_SHARE
    ]
    return " ".join([look.text, *words])


@lru_cache(maxsize=1 << 16)
def look_of(name: str) -> Look:
    """What the picture with this id shows. DataError for an id of another world."""
    world, *rest = name.split("-")
    is_known = world == "shapes" and len(rest) == 3 and rest[0] in get_args(Split)
    if not is_known or not all(part.isascii() and part.isdecimal() for part in rest[1:]):
        raise DataError(f"image id {name!r} is none of this world, expected shapes-SPLIT-SEED-NUMBER.")
    colour, shape, *values = _even(f"look {name}")[: 2 + len(ATTRIBUTES)]
    return Look(tuple(HUES)[int(colour * len(HUES))], SHAPES[int(shape * len(SHAPES))], tuple(values))


def draw(name: str) -> Image.Image:
    """The picture with this id: 32 x 32, RGB."""
    look = look_of(name)
    sharp, contrast, clean, centred, harmony = look.attributes
    direction, size, noise, *_ = _even(f"draw {name}")
    ground, ink = _colours(HUES[look.colour], harmony)
    angle, distance = 2 * math.pi * direction, 14 * (1 - centred)
    centre = (SIDE + distance * math.cos(angle), SIDE + distance * math.sin(angle))
    picture = Image.new("RGB", (_DRAWN, _DRAWN), ground)
    _paint(ImageDraw.Draw(picture), look.shape, (*centre, 15 + 4 * size), (ink, ground))
    # Pillow's blur takes a Python float only.
    blur = ImageFilter.GaussianBlur(float(_MAX_BLUR * (1 - sharp)))
    pixels = np.asarray(picture.reduce(_DRAWN // SIDE).filter(blur), np.float32)
    mean = float(pixels.mean())
    pixels = mean + (pixels - mean) * (_LEAST_CONTRAST + (1 - _LEAST_CONTRAST) * contrast)
    grain = np.random.default_rng(int(noise * 2**53)).standard_normal(pixels.shape, np.float32)
    pixels = pixels + grain * (_MAX_NOISE * (1 - clean))
    drawn = Image.fromarray(np.clip(pixels + 0.5, 0, 255).astype(np.uint8))
    drawn.info["id"] = name
    return drawn


def _colours(hue: float, harmony: float) -> tuple[tuple[int, ...], tuple[int, ...]]:
    # Harmony 1: a calm ground of the same hue. 0: a loud one of the hue across the circle.
    calm = colorsys.hsv_to_rgb(hue, 0.25, 0.3)
    loud = colorsys.hsv_to_rgb((hue + 0.5) % 1, 0.85, 0.6)
    ground = tuple(round(255 * (harmony * c + (1 - harmony) * d)) for c, d in zip(calm, loud, strict=True))
    return ground, tuple(round(255 * part) for part in colorsys.hsv_to_rgb(hue, 0.9, 0.95))


def _paint(
    canvas: ImageDraw.ImageDraw,
    shape: str,
    place: tuple[float, float, float],
    inks: tuple[tuple[int, ...], tuple[int, ...]],
) -> None:
    x, y, radius = place
    ink, ground = inks

    def box(width: float, height: float) -> tuple[float, float, float, float]:
        return (x - width, y - height, x + width, y + height)

    match shape:
        case "circle":
            canvas.ellipse(box(radius, radius), fill=ink)
        case "ring":
            canvas.ellipse(box(radius, radius), fill=ink)
            canvas.ellipse(box(0.55 * radius, 0.55 * radius), fill=ground)
        case "cross":
            canvas.rectangle(box(radius, 0.36 * radius), fill=ink)
            canvas.rectangle(box(0.36 * radius, radius), fill=ink)
        case _:
            number, turn, inner = _CORNERS[shape]
            corners = [
                (radius * (inner if i % 2 else 1.0), 2 * math.pi * (turn + i / number)) for i in range(number)
            ]
            canvas.polygon([(x + r * math.cos(a), y + r * math.sin(a)) for r, a in corners], fill=ink)


def even_numbers(text: str) -> list[float]:
    """Eight numbers in [0, 1) that follow from the text, the same on every machine."""
    digest = blake2b(text.encode()).digest()
    return [int.from_bytes(digest[i : i + 8], "big") / 2**64 * (1 - 2**-53) for i in range(0, 64, 8)]


def _even(what: str) -> list[float]:
    return even_numbers(f"{VERSION} {what}")


def _split_of(row: int, column: int) -> Split:
    if (row + column) % 4 == 0:
        return "test"
    return "validation" if (row + column) % 4 == 2 and row != column else "train"


@lru_cache(maxsize=1)
def _places() -> dict[str, int]:
    return {text: place for place, text in enumerate(classes())}


def _check(split: str) -> None:
    if split not in get_args(Split):
        raise DataError(f"split is {split!r}, expected one of {', '.join(get_args(Split))}.")
