import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rewards.length import Cosine, length, repeated_tokens, repetition, soft_overlong
from rlhf.algorithms.shaping import CosineReward, cosine_reward, overlong_penalty
from rlhf.errors import LoadError
from tests.unit.rewards.attempts import attempt, prompt_of, worthless

GRADER = "rewards.math_answer:grade"


@pytest.mark.parametrize(("unit", "expected"), [("tokens", 4), ("words", 3), ("characters", 14)])
def test_length_in_each_unit(unit, expected: int) -> None:
    assert length(attempt("one two, three", tokens=(5, 6, 7, 8)), unit) == expected


def test_length_counts_characters_of_scripts_without_spaces_as_words() -> None:
    assert length(attempt("我们 need"), "words") == 3


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [(0, 0.0), (6, 0.0), (7, -0.25), (8, -0.5), (10, -1.0), (11, -1.0), (100, -1.0)],
)
def test_soft_overlong_is_the_equation(tokens: int, expected: float) -> None:
    trajectory = attempt("x", tokens=range(tokens))
    assert soft_overlong(trajectory, max_length=10, cache=4) == expected
    assert overlong_penalty(torch.tensor([tokens]), max_tokens=10, cache=4).item() == expected


def test_soft_overlong_in_words_and_its_bounds() -> None:
    assert soft_overlong(attempt("a b c d"), max_length=4, cache=2, unit="words") == -1.0
    with pytest.raises(ValueError, match="cache is 5, expected 1 to max_length = 4"):
        soft_overlong(attempt(""), max_length=4, cache=5)
    with pytest.raises(ValueError, match="unit is 'lines'"):
        soft_overlong(attempt(""), max_length=4, cache=2, unit="lines")  # type: ignore[arg-type]


@pytest.mark.parametrize("tokens", [0, 3, 5, 10, 40])
@pytest.mark.parametrize("answer", ["\\boxed{2}", "\\boxed{3}"])
def test_cosine_agrees_with_the_shaping_of_the_algorithm(tokens: int, answer: str) -> None:
    reward = Cosine(grader=GRADER, max_length=10)
    result = reward(prompt_of(), attempt(answer, tokens=range(tokens)))
    is_right = torch.tensor(["2" in answer])
    expected = cosine_reward(torch.tensor([tokens]), is_right, values=CosineReward(), max_tokens=10)
    assert result.value == pytest.approx(expected.item())
    assert result.parts == {"grade": float("2" in answer)}


def test_cosine_by_hand() -> None:
    reward = Cosine(grader=GRADER, max_length=4, right=(1.0, 0.5), wrong=(-1.0, 0.0), unit="words")
    assert reward(prompt_of(), attempt("\\boxed{2}")).value == pytest.approx(
        0.5 + 0.25 * (1 + math.cos(math.pi / 2))
    )
    assert reward(prompt_of(), attempt("so it is \\boxed{3}")).value == pytest.approx(0.0)


def test_cosine_of_a_cut_completion_is_its_own_value() -> None:
    reward = Cosine(grader=GRADER, max_length=10, cut=-3.0)
    assert reward(prompt_of(), attempt("\\boxed{2}", tokens=range(10), stop="length")).value == -3.0


def test_cosine_does_not_grade_what_the_grader_cannot() -> None:
    reward = Cosine(grader="tests.unit.rewards.attempts:cannot_grade", max_length=10)
    result = reward(prompt_of(), attempt("2"))
    assert (result.value, result.outcome, result.detail) == (None, "error", {"error": "no gold"})


def test_cosine_takes_a_grader_that_returns_a_number() -> None:
    reward = Cosine(grader="tests.unit.rewards.attempts:is_reference", max_length=10)
    assert reward(prompt_of(), attempt("2")).value == 2.0
    assert reward(prompt_of(), attempt("3")).value == -10.0


@pytest.mark.parametrize("grader", ["rewards.math_answer:nothing", "rewards.nowhere:grade", "grade", ":"])
def test_cosine_refuses_an_unknown_grader(grader: str) -> None:
    with pytest.raises(LoadError, match="expected `module:attribute`"):
        Cosine(grader=grader, max_length=10)


@pytest.mark.parametrize("name", worthless(prompt_of()))
def test_cosine_pays_the_least_or_less_than_nothing_for_a_worthless_completion(name: str) -> None:
    prompt = prompt_of()
    reward = Cosine(grader=GRADER, max_length=1000)
    text = worthless(prompt)[name]
    value = reward(prompt, attempt(text, tokens=range(len(text.split())))).value
    assert value is not None
    assert value <= -9.0


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", 0.0),
        ("one two", 0.0),
        ("one two three four", 0.0),
        ("one two three one two three", -0.25),
        ("ONE two three one TWO three", -0.25),
        ("la " * 12, -0.9),
        ("a" * 48, -0.9),
        ("哈" * 12, -0.9),
    ],
)
def test_repetition_is_the_share_of_runs_said_before(text: str, expected: float) -> None:
    assert repetition(text) == pytest.approx(expected)


@given(st.text(max_size=200), st.integers(1, 5))
def test_repetition_is_never_a_prize(text: str, size: int) -> None:
    assert -1 < repetition(text, size=size) <= 0


def slow_covered(tokens: list[int], size: int) -> int:
    """The paper's algorithm, token by token."""
    rewards, seen = [0] * len(tokens), set()
    for start in range(len(tokens) - size + 1):
        run = tuple(tokens[start : start + size])
        if run in seen:
            for t in range(start, start + size):
                rewards[t] = 1
        seen.add(run)
    return sum(rewards)


@given(st.lists(st.integers(0, 2), max_size=40), st.integers(1, 6))
def test_repeated_tokens_agrees_with_the_paper(tokens: list[int], size: int) -> None:
    trajectory = attempt("x", tokens=tokens)
    covered = slow_covered(tokens, size)
    assert repeated_tokens(trajectory, size=size, per_token=-0.5) == pytest.approx(-0.5 * covered)
    assert repeated_tokens(trajectory, size=size) == pytest.approx(-covered / max(len(tokens), 1))


def test_repeated_tokens_does_not_read_the_prompt() -> None:
    assert repeated_tokens(attempt("x", tokens=(1, 2)), size=2) == 0.0
    assert repeated_tokens(attempt("x", tokens=(1, 2, 1, 2)), size=2) == -0.5


@pytest.mark.parametrize("name", worthless(prompt_of()))
def test_a_penalty_pays_nothing_for_a_worthless_completion(name: str) -> None:
    trajectory = attempt(worthless(prompt_of())[name], tokens=(7,) * 50)
    assert repetition(trajectory.completion) <= 0
    assert repeated_tokens(trajectory, size=3) < 0
    assert soft_overlong(trajectory, max_length=40, cache=20) == -1.0
