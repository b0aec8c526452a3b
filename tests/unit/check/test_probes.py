import pytest

from rlhf.check.probes import GOLD, NUM_WRONG, WRONG, ProbeSet, may_hold, same_answer, shifted
from rlhf.types import Message, Prompt

TEMPLATE = "<think>x</think><answer>{reference}</answer>"


def prompt(gold: str | None, **columns: str) -> Prompt:
    return Prompt(
        id="a", messages=(Message(role="user", content="How many?"),), reference=gold, columns=columns
    )


def completions(row: Prompt, *others: Prompt, template: str = TEMPLATE) -> dict[str, str]:
    probes = ProbeSet.from_prompts([row, *others], template=template)
    return {probe.name: probe.completion for probe in probes.of(row)}


def test_probes_begin_with_the_gold_and_its_wrong_counterparts():
    row = prompt("72")
    probes = ProbeSet.from_prompts([row], template=TEMPLATE).of(row)
    assert [probe.name for probe in probes[: 1 + NUM_WRONG]] == [GOLD, WRONG, WRONG]
    assert [probe.completion for probe in probes[:3]] == [
        "<think>x</think><answer>72</answer>",
        "<think>x</think><answer>no such answer</answer>",
        "<think>x</think><answer>83</answer>",
    ]


def test_probes_of_a_number():
    found = completions(prompt("72"), prompt("5"), prompt("5"))
    assert found["empty"] == ""
    assert found["white space"].isspace()
    assert found["tags around nothing"] == "<think>x</think><answer></answer>"
    assert found["copied prompt"] == "How many?"
    assert found["gold only in think"] == r"<think>72 \boxed{72} <answer>72</answer></think>"
    assert found["gold before </think>"] == r"72 \boxed{72} <answer>72</answer></think>"
    assert found["gold in an unfinished think"] == r"<think>72 \boxed{72} <answer>72</answer>"
    assert found["options with the gold first"] == "<think>x</think><answer>72, 73, 71, 82</answer>"
    assert found["options with the gold last"] == "<think>x</think><answer>73 or 71 or 82 or 72</answer>"
    assert found["gold among candidates"] == "It could be 73. It could be 72. It could be 71. It could be 82."
    constants = [name for name in found if name.startswith("constant")]
    assert constants == ["constant '5'", "constant '0'", "constant '1'", "constant 'A'", "constant 'yes'"]


@pytest.mark.parametrize(
    ("gold", "offered"),
    [
        ("B", "B, A, C, D"),
        ("(c)", "(c), a, b, d"),
        ("F", "F, A, B, C, D, E"),
        ("-0.5", "-0.5, 0.5, -1.5, 9.5"),
        ("1,000", "1,000, 1001, 999, 1010"),
        ("Rome", "Rome, Oslo, Bern"),
        ("yes", "yes, Oslo, Bern"),
    ],
)
def test_a_gold_is_offered_among_answers_of_its_kind(gold, offered):
    found = completions(prompt(gold), prompt("Oslo"), prompt("Bern"), template="{reference}")
    assert found["options with the gold first"] == offered


def test_a_lonely_or_long_gold_is_offered_what_there_is():
    assert completions(prompt("Rome"), template="{reference}")["options with the gold last"] == (
        "something else or none of these or Rome"
    )
    assert "options with the gold last" not in completions(prompt("long " * 99))


def test_a_row_without_a_gold_has_the_probes_that_need_none():
    found = completions(prompt(None))
    assert list(found) == [WRONG, "empty", "white space", "tags around nothing", "copied prompt"]


def test_a_gold_completion_comes_before_the_template():
    program = "<think>easy</think>So:\n```python\ndef f(x):\n    return x\n```\nDone."
    row = prompt("[[1], [1]]", gold_completion=program)
    probes = ProbeSet.from_prompts([row], template=TEMPLATE).of(row)
    assert probes[0].completion == program
    assert probes[1].completion == "<think>easy</think>So:\n```python\npass\n```\nDone."
    assert probes[2].completion == "<think>easy</think>So:\n```python\nefg g(y):\n    sfuvso y\n```\nDone."
    found = {probe.name: probe.completion for probe in probes}
    assert found["gold in an unfinished think"].startswith("<think>")
    assert "def f(x)" in found["gold only in think"]
    assert "</think>So" not in found["gold only in think"]
    assert not [name for name in found if name.startswith("all options")]


def test_equal_completions_are_graded_once():
    found = completions(prompt("72"), template="{reference}")
    assert "tags around nothing" not in found
    assert "copied prompt" not in completions(prompt("how many?"))


@pytest.mark.parametrize("text", ["72", "9", "99.5", "yes", "Zz", r"\frac{1}{2}"])
def test_shifting_changes_every_letter_and_digit_but_no_length(text):
    moved = shifted(text)
    assert len(moved) == len(text)
    assert all((a == b) != a.isalnum() for a, b in zip(text, moved, strict=True))


@pytest.mark.parametrize(
    ("one", "other", "is_same"),
    [
        ("1", "1.0", True),
        ("1,000", "1000", True),
        ("50%", "50", True),
        ("Yes.", "yes", True),
        ("１", "1", True),  # noqa: RUF001
        ("1", "-1", False),
        ("yes", "no", False),
        ("", "", True),
        ("1" * 99, "1" * 98, False),
    ],
)
def test_same_answer_sees_through_writing_only(one, other, is_same):
    assert same_answer(one, other) == is_same


def test_an_answer_that_is_a_word_of_the_gold_may_be_right():
    assert may_hold("x = 1", "1")
    assert may_hold("Yes, it is", "yes")
    assert not may_hold("21", "1")
    assert not may_hold("1,000", "1")
