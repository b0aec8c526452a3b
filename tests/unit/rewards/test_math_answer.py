"""Extraction, options, caches and GSM8K rows; what equals what is in test_math_cases.py."""

import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewards import math_answer, math_process
from rewards.math_answer import extract, grade, gsm8k_row
from rlhf.errors import DataError, LoadError
from rlhf.rollout.reward_shapes import bind
from rlhf.types import Message, Prompt, Trajectory, Turn

MATH_500 = Path(__file__).parents[4] / "shared" / "data" / "math500" / "answers.jsonl"


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
        ("The answer is 8.\nAnswer:", "8"),
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


@pytest.mark.parametrize(
    ("columns", "completion", "reference", "value"),
    [
        ({}, "\\boxed{3.15}", "3.14", 0.0),
        ({"tolerance": 0.01}, "\\boxed{3.15}", "3.14", 1.0),
        ({"tolerance": "1%"}, "\\boxed{3.15}", "3.14", 1.0),
        ({"tolerance": None}, "\\boxed{3.15}", "3.14", 0.0),
        ({"tolerance": ""}, "\\boxed{3.14}", "3.14", 1.0),
        ({"tolerance": -1}, "\\boxed{3.14}", "3.14", None),
        ({"simplified": True}, "\\boxed{17*23}", "391", 0.0),
        ({"simplified": False}, "\\boxed{17*23}", "391", 1.0),
        ({"simplified": None}, "\\boxed{17*23}", "391", 1.0),
        ({"simplified": "yes"}, "\\boxed{391}", "391", None),
        ({"lenient": True}, "it is 391", "391", 1.0),
        ({"source": "other", "id": 7}, "\\boxed{391}", "391", 1.0),
    ],
)
def test_grade_takes_its_options_from_the_columns_of_a_record(
    columns: dict[str, Any], completion: str, reference: str, value: float | None
) -> None:
    message = Message(role="assistant", content=completion)
    turn = Turn(message=message, segment=0, start=0, stop=0)
    trajectory = Trajectory(segments=(), turns=(turn,), stop="stop", sample_index=0, seed=0)
    question = Message(role="user", content="?")
    prompt = Prompt(id="a", messages=(question,), reference=reference, columns=columns)
    assert bind(grade, {}, key="rewards[0]").call(prompt, trajectory).value == value


def test_option_of_the_recipe_holds_for_every_record() -> None:
    function = bind(grade, {"tolerance": 0.1}, key="rewards[0]")
    assert function.kwargs == {"tolerance": 0.1}
    assert function.shape.columns == ()
    with pytest.raises(LoadError, match="tolerence"):
        bind(grade, {"tolerence": 0.1}, key="rewards[0]")


def test_same_question_is_compared_once() -> None:
    assert grade("\\boxed{(q+7)^2}", "q^2+14q+49").value == 1.0
    math_process.stop()
    assert grade("once more \\boxed{(q+7)^2}", "q^2+14q+49").value == 1.0
    assert grade("\\boxed{(q+7)^2}", "q^2+14q+49", tolerance=0.0).value == 1.0
    assert not [p for p in psutil.Process().children() if "math_process" in " ".join(p.cmdline())]


def test_same_question_of_many_threads_has_one_verdict() -> None:
    with ThreadPoolExecutor(8) as pool:
        answers = ["\\boxed{(w+7)^2}", "\\boxed{(w+8)^2}"] * 40
        values = list(pool.map(lambda answer: grade(answer, "w^2+14w+49").value, answers))
    assert values == [1.0, 0.0] * 40


def test_long_texts_are_not_kept() -> None:
    before = math_answer._cached.cache_info().currsize, math_answer._checked.cache_info().currsize
    words = "many words " * 300
    assert grade(f"<answer>{words}</answer>", words[:1900]).value == 0.0
    assert grade("<answer>5</answer>", "#### 5" + " " * 5000).value == 1.0
    after = math_answer._cached.cache_info().currsize, math_answer._checked.cache_info().currsize
    assert after[0] <= before[0] + 1
    assert math_answer.MAX_CACHED * 8192 * 4 < 70e6


@pytest.mark.skipif(
    not MATH_500.is_file(), reason="MATH answers are not beside this checkout (../shared/data)"
)
def test_every_math_500_gold_equals_itself_and_not_one_more() -> None:
    golds = [json.loads(line)["answer"] for line in MATH_500.read_text().splitlines()]
    assert len(golds) == 500
    for gold in golds:
        assert grade(rf"so $\boxed{{{gold}}}$.", gold).outcome == "ok"
        assert grade(rf"so $\boxed{{{gold}+1}}$.", gold).value == 0.0


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
