import pytest

from rewards.reasoning_preferences import pairs
from rewards.reasoning_tasks import problems
from rlhf.data.preference_pairs import length_bias


def answer(text):
    return int(text.rpartition("<answer>")[2].partition("</answer>")[0])


def test_wrong_answer_differs_in_its_total_alone():
    references = {row["id"]: int(row["reference"]) for row in problems(size=50)}
    for row in pairs(size=50):
        assert answer(row["chosen"]) == references[row["id"]] != answer(row["rejected"])
        assert len(row["chosen"]) == len(row["rejected"]) or references[row["id"]] < 10
        assert row["rejected"].count("<think>") == 1


@pytest.mark.parametrize(("against", "is_longer"), [("careless", True), ("wordy", False)])
def test_careless_is_shorter_and_wordy_longer(against, is_longer):
    rows = pairs(size=30, against=against)
    assert all((len(row["chosen"]) > len(row["rejected"])) == is_longer for row in rows)


def test_slip_is_off_from_one_total_on():
    for row in pairs(size=100, against="slip"):
        right, wrong = (
            [int(word) for word in row[side].removeprefix("<think>").partition("</think>")[0].split()]
            for side in ("chosen", "rejected")
        )
        off = [b - a for a, b in zip(right, wrong, strict=True)]
        assert 1 <= abs(off[-1]) <= 3
        assert set(off) <= {0, off[-1]}
        assert off == sorted(off, key=bool)
        assert min(wrong) >= 0
        assert answer(row["rejected"]) == wrong[-1]


def test_either_is_a_slip_or_careless_by_halves():
    careless = {row["id"]: row["rejected"] for row in pairs(size=200, against="careless")}
    slips = {row["id"]: row["rejected"] for row in pairs(size=200, against="slip")}
    rows = pairs(size=200, against="either")
    share = sum(row["rejected"] == careless[row["id"]] for row in rows) / len(rows)
    assert share == pytest.approx(0.5, abs=0.1)
    assert all(row["rejected"] in (careless[row["id"]], slips[row["id"]]) for row in rows)


def test_padding_that_makes_up_for_careless_answers_leaves_no_length_bias():
    rows = pairs(size=1000, against="either", longer_chosen=0.45)
    bias = length_bias([(len(row["chosen"]), len(row["rejected"])) for row in rows], margin=0.05)
    assert bias.longer_wins == pytest.approx(0.5, abs=0.04)


def test_heldout_pairs_are_about_heldout_problems():
    train = {row["prompt"] for row in pairs(size=100)}
    assert not train & {row["prompt"] for row in pairs(size=50, split="heldout")}


def test_share_of_longer_chosen_is_as_asked():
    rows = pairs(size=400, longer_chosen=0.8)
    share = sum(len(row["chosen"]) > len(row["rejected"]) for row in rows) / len(rows)
    assert share == pytest.approx(0.8, abs=0.06)
