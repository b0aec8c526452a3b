"""Pictures are what their ids say, and what they show cannot be had from a pixel."""

import statistics

from PIL import Image

from rewards.vision_tasks import ANSWERS, SIZE, is_answer, is_right, picture, pictures


def level(image: Image.Image, quarter: int) -> float:
    """Mean brightness of a quarter."""
    half = SIZE // 2
    down, right = divmod(quarter, 2)
    part = image.convert("L").crop((right * half, down * half, (right + 1) * half, (down + 1) * half))
    return statistics.fmean(part.tobytes())


def test_rows_are_the_same_every_time_and_splits_share_none():
    rows = pictures(seed=3, size=20)
    assert rows == pictures(seed=3, size=20)
    assert pictures(seed=3, size=5) == rows[:5]
    heldout = pictures(seed=3, size=20, split="heldout")
    assert not {str(row["images"]) for row in rows} & {str(row["images"]) for row in heldout}
    assert [row["reference"] for row in rows[:4]] == list(ANSWERS)


def test_as_many_quarters_are_bright_as_the_answer_says():
    for number in range(40):
        answer = ANSWERS[number % 4]
        levels = sorted(level(picture(f"{number}", "count", answer, noise=0.0), q) for q in range(4))
        dark = 4 - int(answer)
        assert max(levels[:dark], default=0.0) + 10 < levels[dark]


def test_the_quarter_of_the_answer_is_the_bright_one():
    for number in range(40):
        image = picture(f"{number}", "quarter", ANSWERS[number % 4], noise=0.0)
        assert max(range(4), key=lambda q: level(image, q)) == number % 4  # called at once


def test_a_shape_is_fainter_than_the_noise():
    clean, noisy = (picture("x", "count", "2", noise=noise) for noise in (0.0, 0.6))
    spread = statistics.pstdev(noisy.convert("L").tobytes())
    contrast = 0.4 * (max(clean.convert("L").tobytes()) - min(clean.convert("L").tobytes()))
    assert contrast < 2 * spread


def test_only_the_answer_alone_is_right():
    assert [is_right(text, "2") for text in ("2", " 2\n", "22", "two", "3", "")] == [1, 1, 0, 0, 0, 0]
    assert [is_answer(text) for text in ("2", "4", "5", "12", "")] == [1, 1, 0, 0, 0]
