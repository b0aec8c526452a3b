"""Every adversarial case is judged as a careful grader would, quickly, and runs nothing."""

import time
from collections import Counter
from pathlib import Path

import pytest

from rewards.math_answer import grade
from tests.unit.rewards.math_cases.case import Case
from tests.unit.rewards.math_cases.every import CASES
from tests.unit.rewards.math_cases.hostile import RUN

OUTCOMES = {"right": "ok", "wrong": "wrong", "no answer": "unparsable", "limit": "limit", "bad gold": "error"}
VALUES = {"right": 1.0, "bad gold": None}
POLICY_LINES = range(1, 11)
FORMS = [
    "{}",
    "<answer>{}</answer>",
    "\\boxed{{{}}}",
    "\\fbox {{{}}}",
    "\\boxed {}",
    "#### {}",
    "The answer is {}",
    "<think>x</think><answer>\\boxed{{{}}}</answer>",
    "$${}$$",
    "\\boxed{{x={}}}",
    "\\boxed{{({}, 1)}}",
    "\\boxed{{391 + {}}}",
    "\\boxed{{\\frac{{{}}}{{2}}}}",
    "\\boxed{{\\operatorname{{{}}}(1)}}",
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_case_is_judged_as_a_careful_grader_would(case: Case) -> None:
    result = grade(case.completion, case.gold, **case.options)
    assert result.value == VALUES.get(case.verdict, 0.0)
    if case.line != 8:  # what is meant to break the grader may be wrong or beyond a limit
        assert result.outcome == OUTCOMES[case.verdict]


def test_cases_cover_every_line_of_the_policy_on_both_sides() -> None:
    right = Counter(case.line for case in CASES if case.verdict == "right")
    refused = Counter(case.line for case in CASES if case.verdict != "right")
    assert all(right[line] >= 4 for line in POLICY_LINES)
    assert all(refused[line] >= 4 for line in POLICY_LINES)
    assert len(CASES) >= 300
    assert len({case.name for case in CASES}) == len(CASES)


@pytest.mark.parametrize("form", FORMS)
def test_no_form_of_an_attack_runs_anything(form: str, tmp_path: Path) -> None:
    marker = tmp_path / "it-ran"
    for attack, _ in RUN:
        completion = form.format(attack.replace("{marker}", str(marker)))
        for gold in ("391", "x+1", "(1,2)"):
            assert grade(completion, gold, lenient=True).value in (0.0, 1.0)
    assert not marker.exists()


@pytest.mark.parametrize("gold", ["391", "1,-2", "(1,2)", "x=3", r"\text{yes}", "C", "x+1"])
def test_long_texts_cost_little_more_than_reading_them(gold: str) -> None:
    start = time.process_time()
    for unit in (
        "\\boxed{1}",
        "answer is 1 ",
        "<answer>1</answer>",
        "$x$ ",
        "\\(x\\) ",
        "#### 1\n",
        "{\\frac{1}{",
    ):
        grade(unit * (500_000 // len(unit)), gold, lenient=True)
    assert time.process_time() - start < 4.0
