import time

import pytest

from rewards.claims import claims, last_line, plain


@pytest.mark.parametrize(
    ("completion", "expected"),
    [
        ("<answer>a</answer> and <answer>b</answer>", ("a", "b")),
        ("<answer>a <answer>b</answer>", ("b",)),
        (r"\boxed{a} <answer>b</answer> the answer is c", ("b",)),
        (r"<answer>so \boxed{a}</answer>", ("a",)),
        ("<answer>The answer is a.</answer>", ("a",)),
        (r"\boxed{a} then \boxed{b}. The answer is c", ("a", "b")),
        ("The answer is a. No: the answer is **b**.", ("a", "b")),
        ("answer: a, because of b", ("a",)),
        ("<think><answer>a</answer></think><answer>b</answer>", ("b",)),
        ("a</think>The answer is b", ("b",)),
        ("<answer>a</answer><answer>a</answer><answer> </answer>", ("a",)),
    ],
)
def test_all_claims_of_the_strongest_kind_count(completion, expected):
    assert claims(completion).texts == expected
    assert claims(completion).is_marked


@pytest.mark.parametrize(
    "completion", ["", " \n", "<think>the answer is a", r"\boxed{a", r"\boxed{}", "<answer> </answer>"]
)
def test_nothing_is_claimed_by_an_open_thought_or_a_mark_around_nothing(completion):
    assert claims(completion).texts == ()


def test_a_text_without_a_mark_is_one_claim_that_is_not_marked():
    assert claims("<think>x</think> B, I think.\n").texts == ("B, I think.",)
    assert not claims("B").is_marked
    assert claims("B", prompt_opens_think=True).texts == ()
    assert claims(r"The answer is \boxed{a}", boxes=False).texts == (r"\boxed{a}",)
    assert not claims("The answer is a", phrases=False).is_marked


def test_fonts_and_marks_around_a_claim_are_left_out():
    assert plain(r"**\text{(B)}**") == "(B)"
    assert plain(r" $3\text{ dogs}$ ") == "3 dogs"
    assert last_line("a\nb \n\n") == "b"
    assert last_line("") == ""


@pytest.mark.parametrize(
    "text",
    [
        "<answer>" * 200_000,
        "<answer>a</answer>" * 100_000,
        r"\boxed{" * 200_000,
        "answer is " * 200_000,
        "answer" + " " * 1_000_000,
        r"\text{" * 200_000,
        "a" * 5_000_000,
    ],
    ids=lambda text: text[:10],
)
def test_a_huge_text_is_read_at_once(text):
    started = time.process_time()
    assert len(claims(text).texts) <= 64_000
    assert time.process_time() - started < 2
