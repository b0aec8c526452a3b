"""Rewards for boxes in pictures: one box by its overlap with the gold's, or several by the best pairing.

The recipe declares the frame and form of the model's boxes and, where they differ, of the gold's (`rewards.boxes`);
the sizes that frames need are columns of the row. The policy with its cases: docs/visual_answers.md.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from rewards.boxes import (
    Box,
    Form,
    Frame,
    Size,
    Written,
    best_pairs,
    corners,
    frame_size,
    giou,
    iou,
    read_boxes,
)
from rewards.claims import claims
from rlhf.errors import ConfigError, DataError
from rlhf.types import RewardResult

Measure = Literal["iou", "giou", "giou_unit"]
MAX_BOXES = 100
GOOD = 0.5
"""The IoU from which on an answer is `ok` where no threshold is set (PASCAL VOC's)."""
_SLACK = 0.02
"""What a gold may lie outside its picture, as a share of it: labels are rounded and drawn by hand."""


@dataclass(frozen=True, kw_only=True)
class _Reading:
    """What both rewards declare."""

    frame: Frame
    """Of the model's boxes."""
    form: Form = "xyxy"
    gold_frame: Frame | None = None
    """Default: the same."""
    gold_form: Form | None = None
    threshold: float | None = None
    lenient: bool = False
    """Words may stand beside the boxes."""
    prompt_opens_think: bool = False

    def __post_init__(self) -> None:
        for name, value, allowed in (
            ("frame", self.frame, get_args(Frame)),
            ("gold_frame", self.gold_frame, (None, *get_args(Frame))),
            ("form", self.form, get_args(Form)),
            ("gold_form", self.gold_form, (None, *get_args(Form))),
        ):
            if value not in allowed:
                raise ConfigError(f"{name} is {value!r}, expected one of {', '.join(filter(None, allowed))}.")
        if self.threshold is not None and not 0 < self.threshold <= 1:
            raise ConfigError(f"threshold is {self.threshold!r}, expected an IoU above 0 and at most 1.")

    @property
    def _gold_frame(self) -> Frame:
        return self.gold_frame or self.frame

    def _gold(self, reference: str | None, sizes: dict[str, Any]) -> list[tuple[Box, str]]:
        """The gold's boxes with their labels. DataError when there is none, or one is no box of its frame."""
        form = self.gold_form or self.form
        found = read_boxes(reference or "", form=form)
        if found is None:
            raise DataError(
                f"reference is {reference!r:.80}, expected a box as [10, 20, 30, 40] or {{'bbox_2d': [...]}}, or a "
                "list of them, in finite numbers."
            )
        size = self._size(self._gold_frame, sizes)
        boxes = []
        for written in found:
            box = corners(written, form=form, size=size)
            if box is None:
                raise DataError(
                    f"reference has the box {list(written.values)}, which as {form} has no area: expected the first "
                    "corner above and left of the second. Is gold_form right?"
                )
            self._refuse_outside(box, written, self._bounds(sizes))
            boxes.append((box, written.label))
        return boxes

    def _refuse_outside(self, box: Box, written: Written, bounds: Size | None) -> None:
        if bounds is None:
            return
        width, height = bounds
        inside_x = -_SLACK * width <= box.x1 and box.x2 <= (1 + _SLACK) * width
        inside_y = -_SLACK * height <= box.y1 and box.y2 <= (1 + _SLACK) * height
        if not (inside_x and inside_y):
            raise DataError(
                f"reference has the box {list(written.values)}, which lies outside its picture in the frame "
                f"{self._gold_frame!r}: is gold_frame right?"
            )

    def _bounds(self, sizes: dict[str, Any]) -> Size | None:
        """The picture's width and height in the numbers that are compared; None where nobody gave them."""
        if self._gold_frame != self.frame:
            return 1.0, 1.0
        column = {"pixels": "image_size", "resized": "input_size"}.get(self.frame)
        return None if column and sizes[column] is None else frame_size(self.frame, sizes)

    def _size(self, frame: Frame, sizes: dict[str, Any]) -> Size:
        return (1.0, 1.0) if self._gold_frame == self.frame else frame_size(frame, sizes)

    def _claimed(self, completion: str) -> tuple[Written, ...] | None:
        """The boxes that all readable claims agree on, in any order; None when there are none or they differ."""
        said = claims(completion, prompt_opens_think=self.prompt_opens_think, phrases=False)
        read = [read_boxes(text, form=self.form, words=self.lenient) for text in said.texts]
        different = {tuple(sorted(boxes)) for boxes in read if boxes is not None}
        return different.pop() if len(different) == 1 else None


@dataclass(frozen=True, kw_only=True)
class OneBox(_Reading):
    """The overlap of the completion's box with the reference's.

    `measure`: iou, 0 to 1; giou, above -1 to 1; giou_unit, giou brought to 0 to 1. With `threshold` 1 from that IoU
    on, else 0. Without one box that has an area: unparsable, and worth the measure's least. The reference's frame and
    box are checked: a bad one is a DataError, never a score.
    """

    measure: Measure = "iou"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.measure not in get_args(Measure):
            raise ConfigError(f"measure is {self.measure!r}, expected one of {', '.join(get_args(Measure))}.")
        if self.threshold is not None and self.measure != "iou":
            raise ConfigError(f"threshold is an IoU, but measure is {self.measure!r}: leave one of them out.")

    def __call__(
        self,
        completion: str,
        reference: str | None,
        image_size: Sequence[float] | None = None,
        input_size: Sequence[float] | None = None,
    ) -> RewardResult:
        """The measure; part `iou` is the raw IoU. `image_size` and `input_size` are [width, height]."""
        sizes = {"image_size": image_size, "input_size": input_size}
        gold = self._gold(reference, sizes)
        if len(gold) != 1:
            raise DataError(
                f"reference has {len(gold)} boxes, expected one: use rewards.box_answers:SeveralBoxes."
            )
        size = self._size(self.frame, sizes)
        found = set(self._claimed(completion) or ())
        boxes = {corners(written, form=self.form, size=size) for written in found}
        box = boxes.pop() if len(boxes) == 1 else None
        if box is None:
            return RewardResult(
                value=-1.0 if self.measure == "giou" else 0.0, outcome="unparsable", parts={"iou": 0.0}
            )
        overlap = iou(box, gold[0][0])
        return RewardResult(
            value=self._value(box, gold[0][0], overlap),
            outcome="ok" if overlap >= (self.threshold or GOOD) else "wrong",
            parts={"iou": overlap},
            detail={"answer": str(list(next(iter(found)).values))},
        )

    def _value(self, box: Box, gold: Box, overlap: float) -> float:
        if self.threshold is not None:
            return float(overlap >= self.threshold)
        if self.measure == "iou":
            return overlap
        return giou(box, gold) if self.measure == "giou" else (1 + giou(box, gold)) / 2


@dataclass(frozen=True, kw_only=True)
class SeveralBoxes(_Reading):
    """How well the completion's boxes are the reference's, each paired with at most one: F1 of the pairing.

    Precision is the paired IoU by the number of boxes given, recall by the number of the reference's; with
    `threshold` a pair of at least that IoU counts 1, another 0. A box given twice is a box too many. With `labels`
    only boxes of one label are paired. More than MAX_BOXES boxes are a `limit`.
    """

    labels: bool = False

    def __call__(
        self,
        completion: str,
        reference: str | None,
        image_size: Sequence[float] | None = None,
        input_size: Sequence[float] | None = None,
    ) -> RewardResult:
        """F1; parts `precision` and `recall`. `image_size` and `input_size` are [width, height]."""
        sizes = {"image_size": image_size, "input_size": input_size}
        gold = self._gold(reference, sizes)
        if len(gold) > MAX_BOXES:
            raise DataError(f"reference has {len(gold)} boxes, expected at most {MAX_BOXES}.")
        if self.labels and not all(label for _, label in gold):
            raise DataError("reference has a box without a label, but labels are to be compared.")
        size = self._size(self.frame, sizes)
        found = self._claimed(completion)
        if found is None:
            return RewardResult(value=0.0, outcome="unparsable", parts={"precision": 0.0, "recall": 0.0})
        if len(found) > MAX_BOXES:
            return RewardResult(value=0.0, outcome="limit", detail={"boxes": float(len(found))})
        boxes = [(corners(written, form=self.form, size=size), written.label) for written in found]
        weights = [[self._weight(box, other) for other in gold] for box in boxes]
        paired = sum(weights[row][column] for row, column in best_pairs(weights))
        value = 2 * paired / (len(boxes) + len(gold))
        return RewardResult(
            value=value,
            outcome="ok" if value >= GOOD else "wrong",
            parts={"precision": paired / len(boxes), "recall": paired / len(gold)},
            detail={"boxes": float(len(boxes))},
        )

    def _weight(self, one: tuple[Box | None, str], gold: tuple[Box, str]) -> float:
        if one[0] is None or (self.labels and one[1] != gold[1]):
            return 0.0
        overlap = iou(one[0], gold[0])
        return overlap if self.threshold is None else float(overlap >= self.threshold)
