# ruff: noqa: RUF001 (compatible forms and characters without width are tested)
import time
from functools import cache

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewards.ocr import TextSimilarity, edit_distance
from rlhf.errors import ConfigError, DataError
from tests.unit.rewards.attempts import prompt_of, worthless

READ = TextSimilarity()


def tagged(answer: str) -> str:
    return f"<think>so</think><answer>{answer}</answer>"


def slow_distance(one: str, other: str) -> int:
    @cache
    def of(i: int, j: int) -> int:
        if not i or not j:
            return i + j
        changed = of(i - 1, j - 1) + (one[i - 1] != other[j - 1])
        return min(of(i - 1, j) + 1, of(i, j - 1) + 1, changed)

    return of(len(one), len(other))


few = st.text(alphabet="ab ", max_size=14)


@given(few | st.text(max_size=14), few | st.text(max_size=14))
def test_distance_is_that_of_the_definition(one, other):
    assert edit_distance(one, other) == slow_distance(one, other)


@given(few, few, few)
def test_distance_is_a_metric(one, other, third):
    assert edit_distance(one, other) == edit_distance(other, one)
    assert (edit_distance(one, other) == 0) == (one == other)
    assert edit_distance(one, third) <= edit_distance(one, other) + edit_distance(other, third)


def test_two_thousand_characters_are_compared_at_once():
    one = "".join(chr(97 + i * i % 23) for i in range(2000))
    other = "".join(chr(97 + i * i % 19) for i in range(2000))
    started = time.process_time()
    distance = edit_distance(one, other)
    assert time.process_time() - started < 1
    assert 0 < distance <= 2000
    assert edit_distance(one, one[:700] + "!" + one[705:]) == 5
    assert edit_distance(one, "") == 2000


@pytest.mark.parametrize(
    ("answer", "gold", "value"),
    [
        ("STOP", "STOP", 1.0),
        ("STEP", "STOP", 0.75),
        ("STOP!", "STOP", 0.8),
        ("stop", "STOP", 0.0),
        (" STOP \n here ", "STOP here", 1.0),
        ("ＳＴＯＰ", "STOP", 1.0),
        ("ST\u200bOP", "STOP", 1.0),
        ("e\u0301", "é", 1.0),
        ("ﬁn", "fin", 1.0),
        ("", "STOP", 0.0),
        ("!!!", "!!!", 1.0),
        (r"\boxed{x}", "x", 1 / 9),
    ],
)
def test_similarity_by_characters(answer, gold, value):
    assert READ(tagged(answer), gold).value == pytest.approx(value)


@pytest.mark.parametrize(
    ("options", "answer", "gold", "value"),
    [
        ({"case": False}, "straSSE", "Straße", 1.0),
        ({"spacing": "ignore"}, "S T O P", "STOP", 1.0),
        ({"spacing": "exact"}, "a  b\nc", "a b c", 4 / 6),
        ({"nfkc": False}, "Ａ", "A", 0.0),
        ({"share": "gold"}, "STOP and GO", "STOP", 0.0),
        ({"share": "gold"}, "STOPS", "STOP", 0.75),
        ({"threshold": 0.5}, "ST", "STOP", 0.5),
        ({"threshold": 0.5}, "S", "STOP", 0.0),
    ],
)
def test_normalisation_is_what_the_options_say(options, answer, gold, value):
    assert TextSimilarity(**options)(tagged(answer), gold).value == pytest.approx(value)


def test_outcomes_say_whether_it_is_the_very_text():
    assert READ(tagged("STOP"), "STOP").outcome == "ok"
    assert READ(tagged("STEP"), "STOP").outcome == "wrong"
    assert READ(tagged("STEP"), "STOP").parts == {"exact": 0.0}
    for completion in (
        "STOP",
        "",
        "<think><answer>STOP</answer>",
        tagged(" "),
        tagged("STOP") + "<answer>GO</answer>",
    ):
        assert READ(completion, "STOP").outcome == "unparsable"
    assert READ(tagged("x" * 20_001), "STOP").outcome == "limit"
    assert TextSimilarity(tagged=False)("<think>x</think>STOP", "STOP").value == 1.0
    assert TextSimilarity(tagged=False)("x" * 1_000_000, "STOP").outcome == "limit"
    assert TextSimilarity(prompt_opens_think=True)("<answer>STOP</answer>", "STOP").outcome == "unparsable"


@pytest.mark.parametrize("reference", [None, "", " \u200b\n", "x" * 20_001])
def test_a_gold_without_text_or_too_long_is_an_error(reference):
    with pytest.raises(DataError, match="expected text of 1 to 20000"):
        READ(tagged("x"), reference)


def test_bad_options_are_refused_at_load():
    for keys, said in (({"spacing": "no"}, "spacing is 'no'"), ({"share": "mean"}, "share is 'mean'")):
        with pytest.raises(ConfigError, match=said):
            TextSimilarity(**keys)
    with pytest.raises(ConfigError, match="threshold is 2"):
        TextSimilarity(threshold=2)


@pytest.mark.parametrize("name", worthless(prompt_of()))
def test_a_worthless_completion_earns_nothing(name):
    completion = worthless(prompt_of("What is written there?"))[name]
    assert (
        READ(completion, "Nothing is written here").value == pytest.approx(0.0)
        or name == "the prompt in tags"
    )
    assert TextSimilarity(threshold=0.8)(completion, "Nothing is written here").value == 0.0


@given(st.text(min_size=1, max_size=40), st.text(max_size=40))
def test_similarity_is_bounded_and_1_for_the_text_itself(gold, answer):
    if not READ.normalised(gold) or "<" in gold + answer:
        return
    assert READ(tagged(gold), gold).value == 1.0
    value = READ(tagged(answer), gold).value
    assert value is not None
    assert 0 <= value <= 1
