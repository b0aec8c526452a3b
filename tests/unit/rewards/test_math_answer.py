# ruff: noqa: RUF001 (minus and union signs are what is tested)
"""The grading policy of docs/rewards.md, a line each."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewards.math_answer import extract, grade, gsm8k_row
from rlhf.errors import DataError

PMATRIX = r"\begin{pmatrix}%s\end{pmatrix}"
EQUAL = [
    # numbers
    ("72", "72"),
    ("1,000", "1000"),
    ("1000", "1,000"),
    ("0.5", "1/2"),
    (r"\frac{1}{2}", "0.50"),
    ("-3", "−3"),
    ("10,\\!080", "10080"),
    (r"\frac43", "4/3"),
    (r"1\frac{4}{5}", "9/5"),
    (r"137 \frac{1}{2}", "137.5"),
    (".5", "0.5"),
    ("5", "5."),
    ("5", "+5"),
    ("5", "05"),
    ("1200", r"1.2 \times 10^3"),
    ("3", "**3**"),
    ("½", "0.5"),
    (r"\dfrac{17}{50}", "17/50"),
    ("391", "17*23"),
    ("391", r"17 \times 23"),
    ("2000000", "2 million"),
    ("6000000000000", "6 trillion"),
    ("100000", "100 000"),
    ("100000.5", r"100\,000.5"),
    ("1/3", r"0.\overline{3}"),
    (r"-1.1\overline{6}", "-7/6"),
    (r"\infty", "infinity"),
    (r"(-\infty, 2)", "(-infinity, 2)"),
    # percent, money, units
    ("50%", "0.5"),
    ("50\\%", "1/2"),
    ("0.5", "50%"),
    ("50", "50%"),
    ("50%", "50"),
    ("1", "100%"),
    ("18", "$18"),
    (r"\$18.90", "18.90"),
    ("18", "18 dollars"),
    ("18", "$18 dollars"),
    (r"90^\circ", "90"),
    ("90", r"90^\circ"),
    ("90°", "90 degrees"),
    ("5.4 \\text{ cents}", "5.4"),
    ("15\\mbox{ cm}^2", "15"),
    ("12", "12 apples per day"),
    ("864", r"864 \mbox{ inches}^2"),
    # structure
    ("3", "x=3"),
    ("x=5", "5"),
    ("x=5", "5 = x"),
    ("(1,2)", "( 1 , 2.0 )"),
    ("1,-2", "-2, 1"),
    ("100, 200", "100,200"),
    (r"\{1,-2\}", "-2, 1"),
    (r"1 \pm \sqrt{19}", r"1-\sqrt{19}, 1+\sqrt{19}"),
    ("(2,3)", "2<x<3"),
    (r"x \in [-2,7]", r"[-2,7]"),
    (r"(2,\infty)", "x>2"),
    (r"[2,\infty)", "x≥2"),
    (r"(-\infty,0]", r"x\le 0"),
    (r"(3,4]", r"3 < x \leq 4"),
    (r"(0,9) \cup (9,36)", r"(9,36) ∪ (0,9)"),
    (r"y = 2x+3", "2x + 3"),
    ("3, 5, 7", "7, 3 and 5"),
    ("3, 5, 7", "3, 5, and 7"),
    (r"x = 1 \text{ or } x = -2", r"x = 1 \text{ or } x = -2"),
    (r"x = 1 \text{ or } x = -2", "-2, 1"),
    (r"6\text{ or }7", "7, 6"),
    ("6, 7", "7 or 6"),
    (r"(-\infty,1) \cup (3,\infty)", "x<1 or x>3"),
    (", ".join(map(str, range(40))), ", ".join(map(str, reversed(range(40))))),
    (PMATRIX % r"1\\2", PMATRIX % r" 1 \\ 2 "),
    (PMATRIX % r"1\\-2", PMATRIX % r"1 \\[4pt] -2 \\"),
    (PMATRIX % r"\frac12 \\ 2", PMATRIX % r"1/2 \\ 2"),
    (PMATRIX % r"(1+2)\\(3)", PMATRIX % r"3 \\ 3"),
    (PMATRIX % r"0 & 1 \\ -1 & 0", PMATRIX % r"0&1\\-1&0"),
    (r"\begin{pmatrix} 1/5 \\ -18/5 \end{pmatrix}", r"\begin{bmatrix} 0.2 \\ -3.6 \end{bmatrix}"),
    (r"\left( 3, \frac{\pi}{2} \right)", r"(3, \pi/2)"),
    ("52_8", "52_{8}"),
    # symbols
    (r"3\sqrt{13}", r"\sqrt{117}"),
    (r"3\sqrt{13}", "3*sqrt(13)"),
    ("11\\sqrt2", r"11\sqrt{2}"),
    (r"2k+2", "2(k+1)"),
    (r"6 - 5i", "-5i+6"),
    (r"(a+5)(b+2)", "ab+2a+5b+10"),
    ("x^2", "x**2"),
    (r"\frac{\sqrt{3}}{3}", r"\frac{1}{\sqrt{3}}"),
    (r"\pi", "π"),
    ("12\\pi", "12pi"),
    (r"-\frac{\pi}{6}", r"-\pi/6"),
    # text and choices
    (r"\text{Evelyn}", "evelyn."),
    (r"\text{(C)}", "C"),
    ("C", "(c)"),
    ("B", r"\textbf{B}"),
    ("A", "A."),
    ("B", "Option B"),
    (r"\text{even}", "Even"),
]
DIFFERENT = [
    ("72", "73"),
    ("50", "0.5"),
    ("1/3", "0.333333"),
    (r"\pi", "3.141592653589793"),
    (r"\pi", "22/7"),
    ("1000000007", "1000000009"),
    ("18", "18 or 19"),
    ("18", "18, 19"),
    ("18", "not 18"),
    ("5", "5x"),
    ("5", r"5\pi"),
    ("5", "5 pi"),
    ("5", r"\pm 5"),
    ("5", "(4,6)"),
    ("5", "5 to 6"),
    ("5", "5-6"),
    ("(1,2)", "(2,1)"),
    ("(2,3)", "[2,3]"),
    ("[2,3]", "(2,3)"),
    (r"\$5", "5 cents"),
    ("5 cm", "5 kg"),
    ("52_8", "52_9"),
    ("52_8", "52"),
    ("C", "A or C"),
    ("C", "(A)(C)"),
    ("yes", "not yes"),
    ("east", "east or west"),
    ("0", "1/0"),
    ("0", r"\frac{0}{0}"),
    ("3", "x<3"),
    ("x=3", "y=3"),
    ("1,-2", "1,-2,3"),
    ("1,-2", "1"),
    (r"\sqrt{2}", "1.41421356"),
    ("391", "__import__('os').getpid()"),
    ("12", "1 2"),
    ("121234", "12 1234"),
    *[
        ("2", f"2 {word}")
        for word in ("squared", "cubed", "root", "thirds", "tenths", "quarters", "trillion")
    ],
    *[
        ("4", f"4 {word}")
        for word in ("factorial", "negative", "below zero", "modulo", "millions", "hundreds")
    ],
    ("10", r"1000\%"),
    ("1/3", r"0.\overline{4}"),
    ("6", r"6\text{ or }7"),
    (r"6\text{ or }7", "6"),
    (PMATRIX % r"2 \\ 3", PMATRIX % r"3 \\ 2"),
    (PMATRIX % r"1 \\ -2", PMATRIX % r"2 \\ -3"),
    (PMATRIX % r"x \\ y", PMATRIX % r"y \\ x"),
    (PMATRIX % r"0 & 1 \\ -1 & 0", PMATRIX % r"0 & 0 \\ 0 & 0"),
    (PMATRIX % r"1 \\ 2", PMATRIX % "1 & 2"),
    ("2", "2 dozen"),
    ("0.1", "0.10000001"),
    ("x+1", "x-1"),
    (r"\frac{1}{2}", r"\frac{2}{1}"),
]


@pytest.mark.parametrize(("reference", "answer"), EQUAL)
def test_equal_answer_gets_full_marks(reference: str, answer: str) -> None:
    assert grade(f"<answer>{answer}</answer>", reference).value == 1.0


@pytest.mark.parametrize(("reference", "answer"), DIFFERENT)
def test_different_answer_gets_nothing(reference: str, answer: str) -> None:
    assert grade(f"<answer>{answer}</answer>", reference).value == 0.0


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
