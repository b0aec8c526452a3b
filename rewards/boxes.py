"""Boxes in pictures: frames and forms, boxes read from text, overlap, and the best pairing of two sets.

A frame says what coordinates count, a form what the four numbers are. Everything is brought to corners (x1, y1, x2,
y2) in one frame before it is compared; overlaps of boxes do not change when both are scaled alike.
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from rlhf.errors import DataError

Frame = Literal["pixels", "resized", "unit", "thousand"]
"""Pixels of the original picture; of the one the model saw; shares of width and height; thousandths of them."""
Form = Literal["xyxy", "xywh", "cxcywh"]
"""Two corners; upper left corner and size; centre and size."""
Size = tuple[float, float]
MAX_CHARACTERS = 20_000
MAX_COORDINATE = 1e9
KEYS = ("bbox_2d", "bbox", "box")
_FENCE = re.compile(r"```(?:json)?")
_TOKENS = re.compile(r"<\|(?:box_start|box_end)\|>")
_NUMBER = r"\s*(-?\d{1,20}(?:\.\d{1,20})?)\s*"
_CORNERS = re.compile(rf"\({_NUMBER},{_NUMBER}\)\s*(?:,\s*)?\({_NUMBER},{_NUMBER}\)")
_OPENING = re.compile(r"[\[{]")
_DECODER = json.JSONDecoder(parse_constant=lambda name: _refuse(name))


@dataclass(frozen=True, slots=True, order=True)
class Written:
    """A box as it is written: four finite numbers of some frame and form, and what it is said to show."""

    values: tuple[float, float, float, float]
    label: str = ""


@dataclass(frozen=True, slots=True)
class Box:
    """A box by its corners, x to the right and y down; its area is above 0."""

    x1: float
    y1: float
    x2: float
    y2: float

    @property
    def area(self) -> float:
        """Width times height."""
        return (self.x2 - self.x1) * (self.y2 - self.y1)


def corners(written: Written, *, form: Form, size: Size = (1.0, 1.0)) -> Box | None:
    """The box in shares of `size`; None where it has no area: swapped corners are not put right."""
    a, b, c, d = written.values
    if form == "xywh":
        a, b, c, d = a, b, a + c, b + d
    elif form == "cxcywh":
        a, b, c, d = a - c / 2, b - d / 2, a + c / 2, b + d / 2
    width, height = size
    box = Box(a / width, b / height, c / width, d / height)
    return box if box.x1 < box.x2 and box.y1 < box.y2 and box.area > 0 else None


def iou(one: Box, other: Box) -> float:
    """Intersection over union, 0 to 1."""
    shared = _shared(one, other)
    return shared / (one.area + other.area - shared)


def giou(one: Box, other: Box) -> float:
    """IoU less the share of the enclosing box that neither covers, above -1 to 1.

    Source: arXiv 1902.09630, algorithm 1.
    """
    shared = _shared(one, other)
    union = one.area + other.area - shared
    width = max(one.x2, other.x2) - min(one.x1, other.x1)
    hull = width * (max(one.y2, other.y2) - min(one.y1, other.y1))
    return shared / union - max(0.0, 1 - union / hull)


def _shared(one: Box, other: Box) -> float:
    width = min(one.x2, other.x2) - max(one.x1, other.x1)
    height = min(one.y2, other.y2) - max(one.y1, other.y1)
    return width * height if width > 0 and height > 0 else 0.0


def frame_size(frame: Frame, sizes: Mapping[str, Any]) -> Size:
    """What a full width and height are in a frame; `sizes` are the row's image_size and input_size.

    DataError when the frame needs a size that is missing or is not [width, height].
    """
    if frame in ("unit", "thousand"):
        return (1.0, 1.0) if frame == "unit" else (1000.0, 1000.0)
    column = "image_size" if frame == "pixels" else "input_size"
    found = sizes.get(column)
    values = _numbers(found)
    if values is None or len(values) != 2 or not all(0 < value <= MAX_COORDINATE for value in values):
        raise DataError(
            f"{column} is {found!r:.80}, expected [width, height] in pixels: boxes of the frame {frame!r} cannot be "
            "compared with another frame's without it. Give it as a column, or in kwargs where all pictures have one."
        )
    return values[0], values[1]


def read_boxes(text: str, *, form: Form = "xyxy", words: bool = False) -> tuple[Written, ...] | None:
    """The boxes that a text lists; None when it is anything else.

    Read are JSON (four numbers, an object with one of KEYS and maybe a `label`, a list of these), several such boxes
    one after another, and two corners as `(x1, y1), (x2, y2)`; code fences may stand around. Another word or number
    is allowed only with `words`. Two lists are two answers, so None.
    """
    if len(text) > MAX_CHARACTERS:
        return None
    text = _TOKENS.sub(" ", _FENCE.sub(" ", text))
    if form == "xyxy":
        text = _CORNERS.sub(r"[\1, \2, \3, \4]", text)
    items, beside = _values(text)
    if items is None or (not words and any(c.isalnum() for c in beside)):
        return None
    single = [_box(item) for item in items]
    if len(items) == 1 and single[0] is None and isinstance(items[0], list):
        single = [_box(item) for item in items[0]]
    boxes = [box for box in single if box is not None]
    return tuple(boxes) if boxes and len(boxes) == len(single) else None


def _values(text: str) -> tuple[list[Any] | None, str]:
    """The JSON lists and objects of a text, one after another, and all that stands beside them."""
    items: list[Any] = []
    beside: list[str] = []
    place = 0
    while opening := _OPENING.search(text, place):
        beside.append(text[place : opening.start()])
        try:
            item, place = _DECODER.raw_decode(text, opening.start())
        except (ValueError, RecursionError):
            return None, ""
        items.append(item)
    return items, "".join(beside) + text[place:]


def _box(item: Any) -> Written | None:
    label = ""
    if isinstance(item, dict):
        keys = [key for key in KEYS if key in item]
        label = item.get("label", "")
        if len(keys) != 1 or not isinstance(label, str):
            return None
        item = item[keys[0]]
    values = _numbers(item)
    if values is None or len(values) != 4:
        return None
    return Written(
        values=(values[0], values[1], values[2], values[3]), label=" ".join(label.casefold().split())
    )


def _numbers(item: Any) -> list[float] | None:
    """A list of finite numbers; None for anything else."""
    if not isinstance(item, list | tuple) or not all(
        isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= MAX_COORDINATE
        for value in item
    ):
        return None
    return [float(value) for value in item]


def _refuse(name: str) -> None:
    raise ValueError(f"{name} is no coordinate")


def best_pairs(weights: Sequence[Sequence[float]]) -> list[tuple[int, int]]:
    """Pairs (row, column), each used at most once, that add up to the most; pairs of weight 0 are left out.

    The Hungarian method with potentials, rows x rows x columns steps. Weights are at least 0.
    """
    if not weights or not weights[0]:
        return []
    if len(weights) > len(weights[0]):
        flipped = best_pairs(list(zip(*weights, strict=True)))
        return sorted((row, column) for column, row in flipped)
    columns = len(weights[0])
    row_price = [0.0] * (len(weights) + 1)
    price = [0.0] * (columns + 1)
    owner = [0] * (columns + 1)  # the row of each column, counted from 1; column 0 is where a search starts
    for row in range(1, len(weights) + 1):
        _assign(row, weights, row_price, price, owner)
    found = ((owner[column] - 1, column - 1) for column in range(1, columns + 1) if owner[column])
    return sorted((row, column) for row, column in found if weights[row][column] > 0)


def _assign(
    row: int, weights: Sequence[Sequence[float]], row_price: list[float], price: list[float], owner: list[int]
) -> None:
    """Give `row` a column, moving earlier rows along the cheapest alternating path."""
    columns = len(price) - 1
    owner[0] = row
    current = 0
    slack = [math.inf] * (columns + 1)
    came_from = [0] * (columns + 1)
    seen = [False] * (columns + 1)
    while owner[current]:
        seen[current] = True
        of = owner[current]
        step, nearest = math.inf, 0
        for column in range(1, columns + 1):
            if seen[column]:
                continue
            reduced = -weights[of - 1][column - 1] - row_price[of] - price[column]
            if reduced < slack[column]:
                slack[column], came_from[column] = reduced, current
            if slack[column] < step:
                step, nearest = slack[column], column
        for column in range(columns + 1):
            if seen[column]:
                row_price[owner[column]] += step
                price[column] -= step
            else:
                slack[column] -= step
        current = nearest
    while current:
        owner[current] = owner[came_from[current]]
        current = came_from[current]
