"""Pairs about pictures: nothing but the picture says which answer is better."""

import base64
import io
from collections import Counter

import numpy
import pytest
from PIL import Image

from rewards.vision_preferences import demonstrations, pairs, picture_pairs
from rewards.vision_tasks import ANSWERS


def brightest(uri: str) -> str:
    """The quarter that the shape lies in: the brightest one."""
    pixels = numpy.asarray(Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))), dtype=float).sum(
        -1
    )
    half = pixels.shape[0] // 2
    quarters = [pixels[r : r + half, c : c + half].sum() for r in (0, half) for c in (0, half)]
    return ANSWERS[int(numpy.argmax(quarters))]


def test_every_answer_is_chosen_as_often_as_it_is_rejected():
    rows = pairs(seed=1, size=1200)
    assert len({row["id"] for row in rows}) == 1200
    chosen, rejected = (Counter(row[side] for row in rows) for side in ("chosen", "rejected"))
    assert set(chosen.values()) == {300}
    assert all(abs(rejected[answer] - 300) < 60 for answer in ANSWERS)
    assert all(row["chosen"] != row["rejected"] for row in rows)


@pytest.mark.parametrize(("shown", "side"), [("own", "chosen"), ("other", "rejected")])
def test_a_picture_shows_the_chosen_answer_or_the_rejected_one(shown, side):
    rows = pairs(size=80, shown=shown)
    assert sum(brightest(row["images"][0]) == row[side] for row in rows) >= 76


def test_pictures_of_anything_say_nothing_of_the_answers():
    rows = pairs(size=400, shown="any")
    right = sum(brightest(row["images"][0]) == row["chosen"] for row in rows)
    assert 70 < right < 130


def test_careless_demonstrations_say_one_whatever_is_shown():
    rows = demonstrations(size=400, careless=0.6)
    said = Counter(row["completion"] for row in rows)
    assert 0.62 < said["1"] / 400 < 0.78
    others = [row for row in rows if row["completion"] != "1"]
    assert sum(brightest(row["images"][0]) == row["completion"] for row in others) > 0.9 * len(others)
    assert rows == demonstrations(size=400, careless=0.6)
    assert {row["completion"] for row in demonstrations(size=20, careless=1.0)} == {"1"}


@pytest.mark.parametrize("swapped", [False, True])
def test_the_chosen_picture_is_the_one_of_the_text_unless_they_are_swapped(swapped):
    places = ("top left", "top right", "bottom left", "bottom right")
    rows = picture_pairs(size=80, swapped=swapped)
    named = [ANSWERS[places.index(row["prompt"])] for row in rows]
    side = "rejected" if swapped else "chosen"
    assert sum(brightest(row[side]) == answer for row, answer in zip(rows, named, strict=True)) >= 76
    assert all(row["chosen"] != row["rejected"] for row in rows)
