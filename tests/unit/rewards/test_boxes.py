"""Boxes against slow versions of their own: pixels that are counted, pairings that are all tried."""

import time
from itertools import permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewards.boxes import Box, Written, best_pairs, corners, frame_size, giou, iou, read_boxes
from rlhf.errors import DataError

GRID = 12


@st.composite
def grid_boxes(draw) -> Box:
    x1, y1 = draw(st.integers(0, GRID - 1)), draw(st.integers(0, GRID - 1))
    return Box(x1, y1, draw(st.integers(x1 + 1, GRID)), draw(st.integers(y1 + 1, GRID)))


@st.composite
def real_boxes(draw) -> Box:
    numbers = st.floats(-1000, 1000, allow_subnormal=False)
    sizes = st.floats(0.01, 1000)
    x1, y1 = draw(numbers), draw(numbers)
    return Box(x1, y1, x1 + draw(sizes), y1 + draw(sizes))


def pixels(box: Box) -> set[tuple[int, int]]:
    return {(x, y) for x in range(GRID) for y in range(GRID) if box.x1 <= x < box.x2 and box.y1 <= y < box.y2}


def hull(covered: set[tuple[int, int]]) -> int:
    xs, ys = [x for x, _ in covered], [y for _, y in covered]
    return (max(xs) - min(xs) + 1) * (max(ys) - min(ys) + 1)


@given(grid_boxes(), grid_boxes())
def test_overlap_is_what_counting_pixels_gives(one, other):
    both, either = pixels(one) & pixels(other), pixels(one) | pixels(other)
    assert iou(one, other) == pytest.approx(len(both) / len(either))
    around = hull(either)
    assert giou(one, other) == pytest.approx(len(both) / len(either) - (around - len(either)) / around)


@given(real_boxes(), real_boxes())
def test_overlap_is_symmetric_and_bounded_and_1_for_the_same_box(one, other):
    assert iou(one, other) == pytest.approx(iou(other, one))
    assert giou(one, other) == pytest.approx(giou(other, one))
    assert 0 <= iou(one, other) <= 1 + 1e-9
    assert -1 <= giou(one, other) <= iou(one, other)
    assert iou(one, one) == giou(one, one) == 1.0


@given(grid_boxes(), grid_boxes(), st.floats(0.1, 50), st.floats(0.1, 50))
def test_overlap_does_not_change_when_both_are_scaled(one, other, width, height):
    def scaled(box: Box) -> Box:
        return Box(box.x1 * width, box.y1 * height, box.x2 * width, box.y2 * height)

    assert iou(scaled(one), scaled(other)) == pytest.approx(iou(one, other))
    assert giou(scaled(one), scaled(other)) == pytest.approx(giou(one, other))


def test_giou_tells_a_near_miss_from_a_far_one():
    gold, near, far = Box(0, 0, 10, 10), Box(12, 0, 22, 10), Box(500, 0, 510, 10)
    assert iou(gold, near) == iou(gold, far) == 0
    assert giou(gold, near) == pytest.approx(-2 / 22)
    assert -1 < giou(gold, far) < giou(gold, near)


@pytest.mark.parametrize(
    ("values", "form"), [((1, 2, 5, 8), "xyxy"), ((1, 2, 4, 6), "xywh"), ((3, 5, 4, 6), "cxcywh")]
)
def test_forms_say_the_same_box(values, form):
    assert corners(Written(values), form=form) == Box(1, 2, 5, 8)
    assert corners(Written(values), form=form, size=(10, 20)) == Box(0.1, 0.1, 0.5, 0.4)


@pytest.mark.parametrize(
    ("values", "form"),
    [
        ((5, 2, 1, 8), "xyxy"),
        ((1, 8, 5, 2), "xyxy"),
        ((1, 2, 1, 8), "xyxy"),
        ((1, 2, 0, 6), "xywh"),
        ((1, 2, -4, 6), "xywh"),
        ((3, 5, 4, 0), "cxcywh"),
        ((1e9, 0, 1e-9, 5), "xywh"),
        ((0, 0, 1e-200, 1e-200), "xyxy"),
    ],
)
def test_a_box_without_area_is_none(values, form):
    assert corners(Written(values), form=form) is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[1, 2, 3, 4]", [Written((1, 2, 3, 4))]),
        ("[1.5,2,3,4e1]", [Written((1.5, 2, 3, 40))]),
        ("[[1, 2, 3, 4]]", [Written((1, 2, 3, 4))]),
        ("[1, 2, 3, 4], [5, 6, 7, 8].", [Written((1, 2, 3, 4)), Written((5, 6, 7, 8))]),
        ("[[1, 2, 3, 4], [5, 6, 7, 8]]", [Written((1, 2, 3, 4)), Written((5, 6, 7, 8))]),
        ('{"bbox_2d": [1, 2, 3, 4], "label": " A  Cat"}', [Written((1, 2, 3, 4), "a cat")]),
        ('```json\n[{"bbox": [1, 2, 3, 4]}, {"box": [5, 6, 7, 8]}]\n```',
         [Written((1, 2, 3, 4)), Written((5, 6, 7, 8))]),
        ("<|box_start|>(1,2),(3,4)<|box_end|>", [Written((1, 2, 3, 4))]),
    ],
)  # fmt: skip
def test_boxes_are_read_from_json_lists_and_corners(text, expected):
    assert read_boxes(text) == tuple(expected)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "[1, 2, 3]",
        "[1, 2, 3, 4, 5]",
        "[1, 2, 3, NaN]",
        "[1, 2, 3, Infinity]",
        "[1, 2, 3, 1e999]",
        "[1, 2, 3, 2e9]",
        f"[1, 2, 3, {'9' * 5000}]",
        '["1", "2", "3", "4"]',
        "[true, 2, 3, 4]",
        "[null, 2, 3, 4]",
        "[1, 2, 3, 4",
        "1, 2, 3, 4",
        "[1, 2, 3, 4] or so",
        "box 2: [1, 2, 3, 4]",
        "[[1, 2, 3, 4]] [[5, 6, 7, 8]]",
        "[[1, 2, 3, 4], [5, 6]]",
        '{"bbox_2d": [1, 2, 3, 4], "bbox": [5, 6, 7, 8]}',
        '{"bbox_2d": [1, 2, 3, 4], "label": 7}',
        '{"point_2d": [1, 2]}',
        "[" * 19_999,
        '{"box":' * 2_000,
        "[1, 2, 3, 4] " * 2_000,
    ],
    ids=lambda text: text[:30],
)
def test_what_is_no_list_of_boxes_is_not_read(text):
    assert read_boxes(text) is None


def test_words_beside_boxes_are_allowed_when_asked_for():
    assert read_boxes("It is [1, 2, 3, 4], I think", words=True) == (Written((1, 2, 3, 4)),)
    assert read_boxes("It is here", words=True) is None
    assert read_boxes("(1,2),(3,4)", form="xywh") is None


@given(st.text(alphabet='[]{}(),:"0123456789.-eNaN bbox_2d\n', max_size=200), st.booleans())
def test_any_text_is_read_without_an_error(text, words):
    found = read_boxes(text, words=words)
    assert found is None or all(len(box.values) == 4 for box in found)


def test_a_long_row_of_spaces_or_brackets_is_read_at_once():
    started = time.process_time()
    for text in ("(1,1)" + " " * 19_000, "(1" + " " * 19_000, "(1,1)," * 3_000, "[1,2,3,4]" * 2_000):
        read_boxes(text)
    assert time.process_time() - started < 2


def test_frames_have_a_size():
    sizes = {"image_size": [640, 480], "input_size": (448, 336)}
    assert frame_size("pixels", sizes) == (640, 480)
    assert frame_size("resized", sizes) == (448, 336)
    assert frame_size("unit", {}) == (1, 1)
    assert frame_size("thousand", {}) == (1000, 1000)


@pytest.mark.parametrize(
    "found", [None, [640], [0, 480], [640, -1], ["640", "480"], "640x480", [640, float("nan")]]
)
def test_a_frame_without_its_size_is_an_error(found):
    with pytest.raises(DataError, match=r"image_size is .*expected \[width, height\]"):
        frame_size("pixels", {"image_size": found})


@given(st.data())
def test_the_pairing_is_the_best_of_all(data):
    rows, columns = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 5))
    weight = st.sampled_from([0.0, 0.0, 0.25, 0.5, 1.0]) | st.floats(0, 1)
    weights = [[data.draw(weight) for _ in range(columns)] for _ in range(rows)]
    pairs = best_pairs(weights)
    assert len({row for row, _ in pairs}) == len({column for _, column in pairs}) == len(pairs)
    wide = weights if rows <= columns else [list(column) for column in zip(*weights, strict=True)]
    tried = permutations(range(len(wide[0])), len(wide))
    best = max(sum(wide[row][column] for row, column in enumerate(order)) for order in tried)
    assert sum(weights[row][column] for row, column in pairs) == pytest.approx(best)
    assert all(weights[row][column] > 0 for row, column in pairs)


def test_nothing_pairs_with_nothing():
    assert best_pairs([]) == best_pairs([[]]) == best_pairs([[0.0]]) == []
