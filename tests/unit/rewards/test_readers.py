"""Rows of public sets that are left out or refused; tests/recipes reads one row of each that is kept."""

import pytest

from rewards.math_readers import gsm8k_solution_row, math_row, openr1_row, openthoughts_row
from rewards.preference_readers import ultrafeedback_row
from rlhf.errors import DataError

OPENR1 = {
    "problem": "What is 6 x 7?",
    "answer": "42",
    "generations": ["a long thought", "cut", "short", "wrong"],
    "is_reasoning_complete": [True, False, True, True],
    "correctness_math_verify": [True, True, True, False],
}
THOUGHTS = {"problem": "What?", "deepseek_reasoning": " Six. ", "deepseek_solution": "42\n"}
PAIR = {
    "prompt": "Name a colour.",
    "chosen": [{"role": "user", "content": "Name a colour."}, {"role": "assistant", "content": "Blue."}],
    "rejected": [{"role": "user", "content": "Name a colour."}, {"role": "assistant", "content": "No."}],
    "score_chosen": 7.0,
    "score_rejected": 5.0,
}


def test_the_shortest_thought_that_ended_and_is_right_is_learned():
    assert openr1_row(OPENR1)["completion"] == "short"


@pytest.mark.parametrize("name", ["is_reasoning_complete", "correctness_math_verify"])
def test_rows_without_a_thought_known_to_be_right_are_left_out(name):
    for flags in (None, [False] * 4):
        assert openr1_row(OPENR1 | {name: flags}) is None
    with pytest.raises(DataError, match=f"{name} has 1 entries and generations has 4"):
        openr1_row(OPENR1 | {name: [True]})


def test_a_thought_and_its_solution_are_joined_and_neither_may_be_missing():
    assert openthoughts_row(THOUGHTS)["completion"] == "<think>\nSix.\n</think>\n\n42"
    for name in ("deepseek_reasoning", "deepseek_solution"):
        assert openthoughts_row(THOUGHTS | {name: None}) is None


def test_calculator_marks_are_not_learned():
    row = gsm8k_solution_row({"question": "2+3?", "answer": "It is 2+3=<<2+3=5>>5.\n#### 5"})
    assert (row["completion"], row["reference"]) == ("It is 2+3=5.\n#### 5", "5")


def test_the_gold_is_the_last_box_and_a_missing_text_is_named():
    row = {
        "problem": "6 x 7?",
        "solution": r"Not \boxed{41} but \boxed{42}.",
        "level": "Level 1",
        "type": "A",
    }
    assert math_row(row)["reference"] == "42"
    with pytest.raises(DataError, match="no text in 'problem'; its columns are"):
        math_row({"solution": "x"})


def test_pairs_of_close_scores_or_equal_texts_are_left_out():
    assert ultrafeedback_row(PAIR)["margin"] == 2.0
    assert ultrafeedback_row(PAIR | {"score_chosen": 6.0}) is None
    assert ultrafeedback_row(PAIR | {"rejected": PAIR["chosen"]}) is None
    with pytest.raises(DataError, match=r"chosen has the turns str, expected one question"):
        ultrafeedback_row(PAIR | {"chosen": "Blue."})
