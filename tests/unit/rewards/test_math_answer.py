"""Extraction, options, caches and GSM8K rows; what equals what is in test_math_cases.py."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewards.math_answer import extract, grade, gsm8k_row
from rlhf.errors import DataError


@pytest.mark.parametrize(
    ("completion", "answer"),
    [
        ("<think>7</think><answer>8</answer>", "8"),
        ("thinking</think><answer>8</answer>", "8"),
        ("<think>a</think>9 <think>b</think><answer>8</answer>", "8"),
        ("<answer>7</answer> <answer>8</answer>", "8"),
        ("<answer>8</answer> and <answer>9", "8"),
        ("<answer>8</answer> \\boxed{7} #### 6", "8"),
        ("<answer>\\boxed{8}</answer>", "8"),
        ("<answer>The answer is 8</answer>", "8"),
        ("\\boxed{7} then \\boxed{8}", "8"),
        ("\\boxed{8} then \\boxed{7", "8"),
        ("\\boxed{\\frac{1}{2}}", "\\frac{1}{2}"),
        ("\\fbox{8}", "8"),
        ("\\boxed 8", "8"),
        ("\\boxed{8} #### 7", "8"),
        ("work\n#### 7\n#### 8\n", "8"),
        ("So the answer is 8.", "8"),
        ("The final answer is: **8.5**. Done.", "8.5"),
        ("Answer: 8", "8"),
        ("Answer:\n8", "8"),
        ("**Answer:**\n\n8", "8"),
        ("The answer is 8 apples, since 2+6=8", "8 apples"),
        ("#### Step\n#### Final\nThe answer is 8.", "8"),
        ("#### 2. Check\nThe answer is 8.", "8"),
        ("the answer is 7\n#### $8", "$8"),
        ("the answer is 7\n####\n-\\frac12", "-\\frac12"),
        ("so\n#### yes", "yes"),
    ],
)
def test_extract_finds_the_final_answer(completion: str, answer: str) -> None:
    assert extract(completion) == answer


@pytest.mark.parametrize(
    "completion",
    [
        "",
        "8",
        "<think>8",
        "<think><answer>8</answer>",
        "<think>\\boxed{8}</think>",
        "<think>x</think><answer>8</answer><think>wait",
        "<answer></answer>",
        "<answer> </answer> #### 8",
        "\\boxed{}",
        "\\boxed{8",
        "the answer is \\boxed{8",
        "####",
    ],
)
def test_extract_finds_no_answer(completion: str) -> None:
    assert extract(completion) is None
    assert grade(completion, "8").outcome == "unparsable"


def test_grade_takes_an_unfinished_thought_of_the_template_for_no_answer() -> None:
    thought = "let me see, maybe \\boxed{7}? wait"
    assert grade(thought, "7", prompt_opens_think=True).outcome == "unparsable"
    assert grade(f"{thought}</think>\\boxed{{7}}", "7", prompt_opens_think=True).outcome == "ok"


def test_grade_lenient_takes_the_last_number() -> None:
    assert grade("it is 7, no, 8", "8", lenient=True).value == 1.0
    assert grade("it is 7, no, 8", "8").value == 0.0


def test_grade_joins_boxes_of_a_line_only_for_a_list() -> None:
    assert grade(r"\boxed{1} and \boxed{-2}", "1,-2").value == 1.0
    assert grade(r"\boxed{1} and \boxed{-2}", "1").value == 0.0


@pytest.mark.parametrize("reference", [None, "", "  ", "####", "1/0", "nan", r"\boxed{}"])
def test_grade_calls_a_bad_reference_not_gradable(reference: str | None) -> None:
    result = grade("<answer>1</answer>", reference)
    assert (result.value, result.outcome) == (None, "error")


@pytest.mark.parametrize(
    "answer", ["9^9^9^9^9^9", "(((10!)!)!)!", "2^{99999999}", "9" * 5000, "(" * 200 + "1" + ")" * 200]
)
def test_grade_limits_an_explosive_answer(answer: str) -> None:
    result = grade(f"<answer>{answer}</answer>", "x+1")
    assert (result.value, result.outcome) == (0.0, "limit")


@pytest.mark.parametrize(
    "unit",
    [
        "<",
        "\\boxed{",
        "{",
        "(",
        "\\frac",
        "1,",
        "answer is",
        "^",
        "-",
        "$ ",
        "1 ",
        "a ",
        "a/",
        "\\\\",
        "####",
        "answer is\n",
        " or ",
    ],
)
def test_grade_is_quick_on_repetition(unit: str) -> None:
    start = time.process_time()
    for completion in (
        "<answer>" + unit * 20000 + "</answer>",
        unit * 20000,
        unit + " " * 60000,
        unit + "\n" * 60000,
        unit * 20 + "x",
    ):
        assert grade(completion, "x+1").value == 0.0
    assert time.process_time() - start < 3.0


@given(st.integers(-(10**12), 10**12))
def test_grade_accepts_every_integer_with_commas(value: int) -> None:
    assert grade(f"#### {value:,}", str(value)).value == 1.0
    assert grade(f"#### {value + 1:,}", str(value)).value == 0.0


@given(st.integers(-999, 999), st.integers(1, 999))
def test_grade_accepts_every_spelling_of_a_fraction(top: int, bottom: int) -> None:
    assert grade(rf"\boxed{{\frac{{{top}}}{{{bottom}}}}}", f"{top}/{bottom}").value == 1.0


@given(st.text(max_size=200))
def test_grade_never_raises(text: str) -> None:
    assert grade(f"<answer>{text}</answer>", "7").value in (0.0, 1.0)


def test_gsm8k_row_maps_question_and_gold() -> None:
    row = gsm8k_row({"question": "How many?", "answer": "48+24 = <<48+24=72>>72\n#### 72"})
    assert row == {"prompt": "How many?", "reference": "72", "gold_doubt": ""}


@pytest.mark.parametrize(
    ("answer", "reference", "doubt"),
    [
        ("It is 72\n#### 73", "73", "never mentions its gold 73"),
        ("It is 72\n#### abc", "", "not a number"),
        ("It is 72", "", "no '####'"),
        ("It is 72\n####", "", "not a number"),
        ("each 40/160 = <<40/160=0.25>>0.25\n#### 25", "25", ""),
        ("17 000/5 = 3 400.\n#### 3400", "3400", ""),
    ],
)
def test_gsm8k_row_doubts_a_wrong_gold(answer: str, reference: str, doubt: str) -> None:
    row = gsm8k_row({"question": "?", "answer": answer})
    assert row["reference"] == reference
    assert doubt in row["gold_doubt"]
    assert bool(doubt) == bool(row["gold_doubt"])


def test_gsm8k_row_refuses_other_columns() -> None:
    with pytest.raises(DataError, match="question and answer"):
        gsm8k_row({"prompt": "?"})
