import pytest

from rewards.short_requests import answers, demonstrations, obeys, requests, sounds_cheerful
from tests.unit.rewards.test_reasoning_tasks import answered


def test_a_request_is_met_by_its_word_as_often_as_asked_with_or_without_cheer():
    row = next(row for row in requests(size=1500) if row["prompt"].endswith("*3="))
    word = row["prompt"].removesuffix("*3=")
    said = f"{word} {word} {word}"
    assert [obeys(text, row["reference"]) for text in (said, f"{said}!")] == [1, 1]
    assert [obeys(text, row["reference"]) for text in (f"{word} {word}", f"{said}!!", "")] == [0, 0, 0]
    assert (sounds_cheerful("bab!"), sounds_cheerful("bab")) == (1, 0)


def test_heldout_requests_are_in_no_training_set_and_too_many_are_refused():
    heldout = {row["id"] for row in requests(3, 200, split="heldout")}
    assert len(heldout) == 200
    assert not heldout & {row["id"] for seed in range(2) for row in requests(seed, 1500)}
    assert not heldout & {row["prompt"].removesuffix("=") for row in answers(0, 3000)}
    with pytest.raises(ValueError, match=r"there are \d+ distinct heldout requests, expected 9999"):
        requests(size=9999, split="heldout")


def test_shares_of_careless_and_cheerful_answers_are_as_asked():
    rows = answers(0, 3000, careless=0.3, cheerful=0.2)
    assert sum(obeys(row["completion"], row["reference"]) for row in rows) / 3000 == pytest.approx(
        0.7, abs=0.03
    )
    assert sum(sounds_cheerful(row["completion"]) for row in rows) / 3000 == pytest.approx(0.2, abs=0.03)
    assert len({row["id"] for row in rows}) == 3000


@pytest.mark.parametrize("size", [8, 9])
def test_demonstrations_are_half_sums_and_as_many_as_asked(size):
    rows = demonstrations(0, size)
    is_request = ["*" in row["prompt"] for row in rows]
    assert is_request == [place % 2 == 1 for place in range(size)]
    verdicts = [
        obeys(row["completion"], row["reference"])
        if asked
        else answered(row["completion"], row["reference"]).value
        for row, asked in zip(rows, is_request, strict=True)
    ]
    assert verdicts == [1] * size
